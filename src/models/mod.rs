//! Causal language models, by layer.
//!
//! A model says what its layers compute. It knows nothing of training, of recomputing activations, or of where its weights
//! came from. One file and one line of `REGISTRY` add an architecture; the file is named as Hugging Face's `model_type`.

mod generate;
mod llama;

pub use generate::{Generator, Sampling};

use crate::error::{Error, Result};
use crate::nn::{AdapterParams, BuildReport, Builder, ForwardContext, LoraConfig, QuantizationConfig};
use crate::ops::{FrozenWeight, RopeTable};
use crate::weights::Base;
use candle_core::{Device, Tensor};
use serde_json::{Map, Value};

/// A decoder that is run layer by layer, which lets training compute activations again without the model knowing.
pub trait CausalLm: Send + Sync {
    /// Sizes, for estimates.
    fn dimensions(&self) -> &Dimensions;
    /// `[b, t]` token ids to `[b, t, d]`, without a gradient.
    ///
    /// # Errors
    /// When an id is outside of the vocabulary.
    fn embed(&self, ids: &Tensor) -> candle_core::Result<Tensor>;
    /// Layer `index` on `[b, t, d]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn layer(&self, index: usize, hidden: &Tensor, context: &ForwardContext<'_>) -> candle_core::Result<Tensor>;
    /// The normalization before the head.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn final_norm(&self, hidden: &Tensor) -> candle_core::Result<Tensor>;
    /// The head, `[vocabulary, d]`.
    fn lm_head(&self) -> &FrozenWeight;
    /// Rotations for tokens at these positions.
    fn rope(&self, position_ids: &[u32]) -> RopeTable;
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

/// Builds an architecture from `config.json` and a base's tensors.
type Build = fn(&Map<String, Value>, &Builder<'_>) -> Result<Box<dyn CausalLm>>;

/// The architectures: `model_type`, and what builds it.
const REGISTRY: &[(&str, Build)] = &[("llama", llama::build)];

/// A model, its adapter's variables, and what building it has found out.
pub struct Model {
    /// The layers.
    pub lm: Box<dyn CausalLm>,
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
