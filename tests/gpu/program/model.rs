//! Llamas of known shapes with random weights, made on the machine: nothing is downloaded.

use crate::support::random_weights::{random, random_weight, random_weight_of};
use candle_core::{DType, Device as Place, Tensor, Var};
use clap::ValueEnum;
use equipoise::device::Device;
use equipoise::error::Result;
use equipoise::models::{CausalLm, Dimensions};
use equipoise::nn::{
    AdapterParams, DecoderLayer, FrozenNorm, Linear, LoraAdapter, Mlp, QuantizationType, Residual, Rope, SelfAttention,
    fallback_of, peft_name,
};
use equipoise::ops::{Activation, AttentionShape, FrozenVector, FrozenWeight};
use equipoise::weight_type::WeightType;
use serde_json::json;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Random layers that are made; then they come again. Fresh memory is what costs.
const LAYERS: usize = 4;

/// Of normalizations.
const EPSILON: f64 = 1e-5;

/// `lora_alpha / r`
const SCALE: f64 = 2.0;

/// A model whose shape is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// Llama 3.1 8B.
    #[value(name = "llama-8b")]
    Llama8b,
    /// `SmolLM2` 135M, with a head of its own.
    Smol,
    /// For trials.
    Tiny,
}

impl Shape {
    pub const fn dimensions(self) -> Dimensions {
        match self {
            Self::Llama8b => Dimensions {
                layers: 32,
                hidden: 4096,
                intermediate: 14336,
                heads: 32,
                kv_heads: 8,
                head_dim: 128,
                vocabulary: 128_256,
                max_positions: 131_072,
                kept_outputs: 0,
                qk_norm: false,
                rotations: 1,
            },
            Self::Smol => Dimensions {
                layers: 30,
                hidden: 576,
                intermediate: 1536,
                heads: 9,
                kv_heads: 3,
                head_dim: 64,
                vocabulary: 49_152,
                max_positions: 8192,
                kept_outputs: 0,
                qk_norm: false,
                rotations: 1,
            },
            Self::Tiny => Dimensions {
                layers: 2,
                hidden: 256,
                intermediate: 512,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                vocabulary: 503,
                max_positions: 8192,
                kept_outputs: 0,
                qk_norm: false,
                rotations: 1,
            },
        }
    }

    const fn theta(self) -> f64 {
        match self {
            Self::Llama8b => 500_000.0,
            Self::Smol => 100_000.0,
            Self::Tiny => 10_000.0,
        }
    }
}

/// A quantization type by its name in a recipe.
pub fn quantization(name: &str) -> Result<QuantizationType, String> {
    let parsed = serde_json::from_value(json!(name)).map_err(|error| error.to_string())?;
    if parsed == QuantizationType::Auto { Err("expected a type, such as q4_k or q8_0".into()) } else { Ok(parsed) }
}

/// Numbers of a model's matrices.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// In the layers.
    pub body: usize,
    /// In the head.
    pub head: usize,
    /// In the adapter.
    pub adapter: usize,
}

/// A model on a device, with an adapter on all linear layers but the head.
pub struct Made {
    pub lm: CausalLm,
    pub params: AdapterParams,
    pub sizes: Sizes,
}

struct Maker<'a> {
    device: &'a Device,
    dtype: WeightType,
    r: usize,
    params: AdapterParams,
    seed: u64,
    body: usize,
    /// By name, and layer among those that are made.
    weights: HashMap<(&'static str, usize), FrozenWeight>,
}

/// Makes the model.
///
/// # Errors
/// When the memory is full.
pub fn make(shape: Shape, kind: QuantizationType, r: usize, device: &Device) -> Result<Made> {
    let d = shape.dimensions();
    let dtype = kind.weight_type().unwrap_or(WeightType::BF16);
    let mut maker =
        Maker { device, dtype, r, params: AdapterParams::default(), seed: 1, body: 0, weights: HashMap::new() };
    let layers = (0..d.layers).map(|i| maker.layer(i, &d)).collect::<Result<Vec<_>>>()?;
    // The library too holds embedding and head in 8 bits at least.
    let precise = if kind == QuantizationType::None { dtype } else { WeightType::Q8_0 };
    let embed_tokens = random_weight_of(d.vocabulary, d.hidden, precise, 2, 1.0)?;
    let lm_head = random_weight(d.vocabulary, d.hidden, precise, 3)?.to_device(device)?;
    let ropes = vec![Rope::plain(shape.theta(), d.head_dim)];
    let norm = maker.norm(d.hidden)?.weight;
    let Maker { mut params, body, .. } = maker;
    if let Device::Gpu(gpu) = device {
        params.move_to(gpu)?;
    }
    let sizes = Sizes { body, head: d.vocabulary * d.hidden, adapter: params.parameters() };
    let adapter_memory = params.memory().cloned();
    let lm = CausalLm {
        dimensions: d,
        epsilon: EPSILON,
        ropes,
        embed_tokens,
        embedding_factor: 1.0,
        layers,
        norm,
        lm_head,
        logits_softcap: None,
        adapter_memory,
    };
    Ok(Made { lm, params, sizes })
}

impl Maker<'_> {
    fn norm(&self, width: usize) -> Result<FrozenNorm> {
        let weight = FrozenVector::new(&Tensor::ones(width, DType::F32, &Place::Cpu)?, self.device)?;
        Ok(FrozenNorm { weight, epsilon: EPSILON })
    }

    fn linear(&mut self, layer: usize, name: &'static str, inputs: usize, outputs: usize) -> Result<Linear> {
        self.seed += 1;
        self.body += inputs * outputs;
        let fits = inputs.is_multiple_of(self.dtype.block_size());
        let dtype = if fits { self.dtype } else { fallback_of(self.dtype) };
        let weight = match self.weights.entry((name, layer % LAYERS)) {
            Entry::Occupied(made) => made.get().to_device(self.device)?,
            Entry::Vacant(place) => {
                place.insert(random_weight(outputs, inputs, dtype, self.seed)?).to_device(self.device)?
            }
        };
        // As training begins: `A` random, `B` zero.
        let a = random(self.r * inputs, self.seed, 1.0 / (inputs as f32).sqrt());
        let a = Var::from_tensor(&Tensor::from_vec(a, (self.r, inputs), &Place::Cpu)?)?;
        let b = Var::zeros((outputs, self.r), DType::F32, &Place::Cpu)?;
        let names = ["lora_A", "lora_B"].map(|part| peft_name(&format!("model.layers.{layer}.{name}"), part));
        self.params.insert(names[0].clone(), a.clone());
        self.params.insert(names[1].clone(), b.clone());
        let adapter = LoraAdapter { a, b, scale: SCALE, dropout: 0.0, key: self.seed, names };
        Ok(Linear { weight, bias: None, adapter: Some(adapter) })
    }

    fn layer(&mut self, index: usize, d: &Dimensions) -> Result<DecoderLayer> {
        let (query, key) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
        Ok(DecoderLayer {
            index,
            attention: SelfAttention {
                residual: Residual::pre_normalized(self.norm(d.hidden)?),
                shape: AttentionShape::new(d.heads, d.kv_heads, d.head_dim),
                rope: Some(0),
                qk_norm: None,
                qkv: vec![
                    self.linear(index, "self_attn.q_proj", d.hidden, query)?,
                    self.linear(index, "self_attn.k_proj", d.hidden, key)?,
                    self.linear(index, "self_attn.v_proj", d.hidden, key)?,
                ],
                o: self.linear(index, "self_attn.o_proj", query, d.hidden)?,
            },
            mlp: Mlp {
                residual: Residual::pre_normalized(self.norm(d.hidden)?),
                activation: Activation::Silu,
                gate_up: vec![
                    self.linear(index, "mlp.gate_proj", d.hidden, d.intermediate)?,
                    self.linear(index, "mlp.up_proj", d.hidden, d.intermediate)?,
                ],
                down: self.linear(index, "mlp.down_proj", d.intermediate, d.hidden)?,
            },
        })
    }
}
