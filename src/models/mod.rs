//! Causal language models, by layer.
//!
//! An architecture says how its weights are named and which layers they make. It knows nothing of training, of recomputing
//! activations, or of where its weights came from. One file and one line of `REGISTRY` add one; the file is named as Hugging
//! Face's `model_type`.

mod config;
mod decoder;
mod exaone4;
mod forward;
mod gemma2;
mod gemma3_text;
mod generate;
mod glm4;
mod granite;
mod llama;
mod ministral3;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod score;
mod seed_oss;
mod smollm3;
mod tape;
mod unsupported;

pub use decoder::Defaults;
pub use forward::Runner;
pub use generate::{Generator, Sampling};
pub use rope::rope_frequencies;
pub use score::{Continuations, Score};
pub use tape::TapeContext;

use crate::device::Device;
use crate::error::Result;
use crate::nn::{
    AdapterParams, BuildReport, Builder, DecoderLayer, Head, Join, LoraConfig, Norm, QuantizationConfig, Residual, Rope,
};
use crate::ops::cuda::AdapterMemory;
use crate::ops::{Activation, FrozenVector, FrozenWeight, RopeTable};
use crate::weights::Base;
use config::Config;
use decoder::{Family, Names};
use std::sync::Arc;

/// A decoder, layer by layer: whoever runs it decides which activations are kept.
#[derive(Debug)]
pub struct CausalLm {
    /// Sizes.
    pub dimensions: Dimensions,
    /// What the last normalization adds to the mean square.
    pub epsilon: f64,
    /// The rotations that layers choose from.
    pub ropes: Vec<Rope>,
    /// `[vocabulary, d]`, always on the CPU: a batch needs few of its rows.
    pub embed_tokens: FrozenWeight,
    /// What embeddings are multiplied by.
    pub embedding_factor: f32,
    /// The layers.
    pub layers: Vec<DecoderLayer>,
    /// The normalization before the head, `[d]`.
    pub norm: FrozenVector,
    /// `[vocabulary, d]`
    pub lm_head: FrozenWeight,
    /// With `c`, a logit `z` becomes `c·tanh(z/c)`.
    pub logits_softcap: Option<f32>,
    /// The adapter in a GPU's memory, where the model is on one.
    pub adapter_memory: Option<Arc<AdapterMemory>>,
}

impl CausalLm {
    /// The rotations of tokens at these positions.
    pub fn rotations(&self, position_ids: &[u32]) -> Vec<RopeTable> {
        self.ropes.iter().map(|rope| rope.table(position_ids)).collect()
    }

    /// Takes the rotations that the model has for texts of this length; gives whether they are other ones than for short texts.
    pub fn fit_rotations(&mut self, longest: usize) -> bool {
        let mut others = false;
        for rope in &mut self.ropes {
            others |= rope.fit(longest);
        }
        others
    }

    /// Whether the model needs the GPU program of parts that only some families have.
    pub fn needs_family_kernels(&self) -> bool {
        let joins = |residual: &Residual| !matches!(residual.join, Join::Sum);
        self.embedding_factor != 1.0
            || self.logits_softcap.is_some()
            || self.ropes.iter().any(|rope| rope.interleaved)
            || self.layers.iter().any(|DecoderLayer { attention, mlp, .. }| {
                attention.qk_norm.is_some()
                    || mlp.activation != Activation::Silu
                    || joins(&attention.residual)
                    || joins(&mlp.residual)
            })
    }

    /// The model's end.
    pub const fn head(&self) -> Head<'_> {
        Head {
            norm: Norm { weight: &self.norm, epsilon: self.epsilon },
            weight: &self.lm_head,
            softcap: self.logits_softcap,
        }
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
    /// Branches of a layer whose output the backward pass reads: 0 to 2.
    pub kept_outputs: usize,
    /// Whether queries and keys are normalized, and so have a copy of their own.
    pub qk_norm: bool,
    /// Rotations that layers choose from, each with a table for the tokens of a batch.
    pub rotations: usize,
}

/// The families, a line each.
const REGISTRY: &[Family] = &[
    exaone4::FAMILY,
    gemma2::FAMILY,
    gemma3_text::FAMILY,
    glm4::FAMILY,
    granite::FAMILY,
    granite::FOUR,
    llama::FAMILY,
    mistral::MINISTRAL,
    ministral3::FAMILY,
    mistral::FAMILY,
    olmo2::FAMILY,
    olmo2::THIRD,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3::VL,
    seed_oss::FAMILY,
    smollm3::FAMILY,
];

/// What people know of a family.
#[derive(Debug, Clone)]
pub struct FamilyFacts {
    /// Hugging Face's name of the architecture.
    pub model_type: &'static str,
    /// Models of it.
    pub models: &'static str,
    /// The names of a layer's linear modules, behind `model.layers.N.`.
    pub modules: Vec<&'static str>,
}

/// All families that are supported, by their names.
pub fn families() -> impl Iterator<Item = FamilyFacts> {
    REGISTRY.iter().map(|family| {
        let Names { qkv, o, gate_up, down, .. } = family.names;
        let modules = qkv.iter().chain([&o]).chain(gate_up).chain([&down]).copied().collect();
        FamilyFacts { model_type: family.model_type, models: family.models, modules }
    })
}

/// The defaults of a `model_type`'s class, where the family is supported.
pub fn defaults(model_type: &str) -> Option<&'static Defaults> {
    family(model_type).map(|family| &family.defaults)
}

fn family(model_type: &str) -> Option<&'static Family> {
    REGISTRY.iter().find(|family| family.model_type == model_type)
}

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
    let Some(family) = family(base.model_type()) else {
        return Err(unsupported::error(base));
    };
    let builder = Builder::new(base, quantization, lora, seed, device, plan)?;
    let config = Config::new(base.config(), base.model_type());
    let decoder = (family.describe)(&config, &builder)?;
    config.check_unread()?;
    let mut lm = decoder.build(&family.names, &builder)?;
    let (mut params, report) = builder.finish()?;
    if let Some(gpu) = device.gpu().filter(|_| !plan) {
        params.move_to(gpu)?;
        lm.adapter_memory = params.memory().cloned();
    }
    Ok(Model { lm, params, report })
}
