//! Causal language models, by layer.
//!
//! An architecture says how its weights are named and which layers they make. It knows nothing of training, of recomputing
//! activations, or of where its weights came from. One file and one line of `REGISTRY` add one; the file is named as Hugging
//! Face's `model_type`.

mod forward;
mod generate;
mod llama;
mod tape;

pub use forward::Runner;
pub use generate::{Generator, Sampling};
pub use tape::TapeContext;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::nn::{AdapterParams, BuildReport, Builder, DecoderLayer, Head, LoraConfig, Norm, QuantizationConfig};
use crate::ops::cuda::AdapterMemory;
use crate::ops::{AttentionShape, FrozenVector, FrozenWeight, RopeTable};
use crate::weights::Base;
use serde_json::{Map, Value};
use std::sync::Arc;

/// A decoder, layer by layer: whoever runs it decides which activations are kept.
#[derive(Debug)]
pub struct CausalLm {
    /// Sizes.
    pub dimensions: Dimensions,
    /// What the last normalization adds to the mean square.
    pub epsilon: f64,
    /// Of the rotary positions, in radians per token.
    pub frequencies: Vec<f32>,
    /// `[vocabulary, d]`, always on the CPU: a batch needs few of its rows.
    pub embed_tokens: FrozenWeight,
    /// The layers.
    pub layers: Vec<DecoderLayer>,
    /// The normalization before the head, `[d]`.
    pub norm: FrozenVector,
    /// `[vocabulary, d]`
    pub lm_head: FrozenWeight,
    /// The adapter in a GPU's memory, where the model is on one.
    pub adapter_memory: Option<Arc<AdapterMemory>>,
}

impl CausalLm {
    /// Rotations for tokens at these positions.
    pub fn rope(&self, position_ids: &[u32]) -> RopeTable {
        RopeTable::new(position_ids, &self.frequencies, 1.0)
    }

    /// The model's end.
    pub const fn head(&self) -> Head<'_> {
        Head { norm: Norm { weight: &self.norm, epsilon: self.epsilon }, weight: &self.lm_head }
    }
}

/// The sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions {
    /// Layers.
    pub layers: usize,
    /// Width of the hidden states.
    pub hidden: usize,
    /// Width within the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Positions that the model was made for.
    pub max_positions: usize,
}

impl Dimensions {
    /// The heads of a layer.
    pub fn attention(&self) -> AttentionShape {
        AttentionShape::new(self.heads, self.kv_heads, self.head_dim)
    }
}

/// Builds an architecture from `config.json` and a base's tensors.
type Build = fn(&Map<String, Value>, &Builder<'_>) -> Result<CausalLm>;

/// The architectures: `model_type`, and what builds it.
const REGISTRY: &[(&str, Build)] = &[("llama", llama::build)];

/// A model, its adapter's variables, and what building it has found out.
pub struct Model {
    /// The layers.
    pub lm: CausalLm,
    /// The adapter.
    pub params: AdapterParams,
    /// Sizes, types and remarks.
    pub report: BuildReport,
}

/// Loads a model for training or generation. Under `plan` no weight is read: only shapes are checked, and the model cannot
/// run.
///
/// # Errors
/// For an unknown `model_type`; for tensors that are missing, of other shapes or not finite; for targets that do not exist.
pub fn load(
    base: &Base,
    quantization: QuantizationConfig,
    lora: Option<&LoraConfig>,
    seed: u64,
    device: &Device,
    plan: bool,
) -> Result<Model> {
    let Some((_, build)) = REGISTRY.iter().find(|(name, _)| *name == base.model_type()) else {
        let known: Vec<_> = REGISTRY.iter().map(|(name, _)| *name).collect();
        return Err(Error::file(
            base.path(),
            format!("the architecture `{}` is not supported; supported are: {}", base.model_type(), known.join(", ")),
        ));
    };
    let builder = Builder::new(base, quantization, lora, seed, device, plan)?;
    let mut lm = build(base.config(), &builder)?;
    let (mut params, report) = builder.finish()?;
    if let Some(gpu) = device.gpu().filter(|_| !plan) {
        params.move_to(gpu)?;
        lm.adapter_memory = params.memory().cloned();
    }
    Ok(Model { lm, params, report })
}
