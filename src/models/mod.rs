//! Causal language models, by layer.
//!
//! An architecture says how its weights are named and which layers they make. It knows nothing of training, of recomputing
//! activations, or of where its weights came from. One file and one line of `REGISTRY` add one; the file is named as Hugging
//! Face's `model_type`.

mod forward;
mod generate;
mod llama;
mod tape;

pub use generate::{Generator, Sampling};
pub use tape::TapeContext;

use crate::error::{Error, Result};
use crate::nn::{AdapterParams, BuildReport, Builder, DecoderLayer, LoraConfig, QuantizationConfig};
use crate::ops::{AttentionShape, FrozenWeight, RopeTable};
use crate::weights::Base;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde_json::{Map, Value};

/// A decoder, layer by layer: whoever runs it decides which activations are kept.
#[derive(Debug)]
pub struct CausalLm {
    /// Sizes.
    pub dimensions: Dimensions,
    /// What the last normalization adds to the mean square.
    pub epsilon: f64,
    /// Of the rotary positions, in radians per token.
    pub frequencies: Vec<f32>,
    /// `[vocabulary, d]`
    pub embed_tokens: FrozenWeight,
    /// The layers.
    pub layers: Vec<DecoderLayer>,
    /// The normalization before the head, `[d]`.
    pub norm: Tensor,
    /// `[vocabulary, d]`
    pub lm_head: FrozenWeight,
}

impl CausalLm {
    /// Rotations for tokens at these positions.
    pub fn rope(&self, position_ids: &[u32]) -> RopeTable {
        RopeTable::new(position_ids, &self.frequencies, 1.0)
    }

    /// Embeddings of tokens, `[n, d]`, on the CPU.
    ///
    /// # Errors
    /// When an id is outside of the vocabulary.
    pub fn embed(&self, ids: &[u32], out: &mut [f32]) -> candle_core::Result<()> {
        let rows = out.par_chunks_exact_mut(self.dimensions.hidden).zip(ids);
        rows.with_min_len(16).try_for_each(|(out, &id)| {
            let id = id as usize;
            self.embed_tokens.dequantize_rows(id..id + 1, out)
        })
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
    pub const fn attention(&self) -> AttentionShape {
        AttentionShape { heads: self.heads, kv_heads: self.kv_heads, head_dim: self.head_dim }
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
    let lm = build(base.config(), &builder)?;
    let (params, report) = builder.finish()?;
    Ok(Model { lm, params, report })
}
