//! The story of a run: recipe → adapter. A stub.

use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::train::Observer;
use crate::train::metrics::Validation;
use serde::Serialize;
use std::path::PathBuf;

/// What the command line decides about a run, besides the recipe.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Fetch nothing.
    pub offline: bool,
    /// Go on from the last checkpoint.
    pub resume: bool,
}

/// What a training run came to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Where everything was written.
    pub output_dir: PathBuf,
    /// The recipe's name.
    pub recipe_name: String,
    /// Optimizer steps done.
    pub steps: usize,
    /// Whether it was asked to stop before the end.
    pub interrupted: bool,
    /// Steps that were skipped as non-finite.
    pub skipped: usize,
    /// Before the first step.
    pub first_validation: Option<Validation>,
    /// After the last step.
    pub last_validation: Option<Validation>,
    /// The step of the lowest validation loss.
    pub best_step: Option<usize>,
    /// Seconds in all.
    pub seconds: f64,
    /// Mean over the run.
    pub tokens_per_second: f64,
    /// The most memory held, in bytes.
    pub peak_memory: Option<u64>,
    /// What was estimated before, in bytes.
    pub estimated_memory: u64,
    /// Trained parameters.
    pub adapter_parameters: usize,
    /// A row of the data, before and after.
    pub sample: Option<Sample>,
    /// What was written.
    pub files: Vec<PathBuf>,
}

/// What the model writes for one prompt, before and after training.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The prompt.
    pub prompt: String,
    /// What the data answers.
    pub reference: String,
    /// The base model's answer.
    pub before: String,
    /// The adapter's answer.
    pub after: String,
}

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The base model.
    pub base: BaseReport,
    /// The adapter.
    pub adapter: AdapterReport,
    /// The data.
    pub data: serde_json::Value,
    /// The first row, in pieces; `true` for what is learnt.
    pub preview: Vec<(String, bool)>,
    /// Optimizer steps.
    pub steps: usize,
    /// Of these, warmup.
    pub warmup_steps: usize,
    /// Estimated memory.
    pub memory: MemoryReport,
    /// The device.
    pub device: String,
    /// What is odd, but no error.
    pub warnings: Vec<String>,
}

/// The base model, in a check.
#[derive(Debug, Clone, Serialize)]
pub struct BaseReport {
    /// As the recipe names it.
    pub model: String,
    /// The architecture.
    pub model_type: String,
    /// Parameters.
    pub parameters: usize,
    /// Bytes of the frozen weights in memory.
    pub weights_bytes: u64,
    /// Tensors by type.
    pub quantization: Vec<(String, usize)>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// The adapter, in a check.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterReport {
    /// Parameters.
    pub parameters: usize,
    /// Bytes.
    pub bytes: u64,
    /// Adapted linear layers.
    pub modules: usize,
    /// Their names.
    pub target_modules: Vec<String>,
}

/// Estimated memory in bytes, in a check.
#[derive(Debug, Clone, Serialize)]
pub struct MemoryReport {
    /// Frozen weights.
    pub weights: u64,
    /// The adapter, its gradient and moments.
    pub adapter_and_optimizer: u64,
    /// Activations.
    pub activations: u64,
    /// The head and the loss.
    pub head: u64,
    /// The sum.
    pub total: u64,
}

/// What to generate from.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// An adapter folder, as `train` writes it or PEFT does.
    pub adapter: PathBuf,
    /// Another base than the adapter names.
    pub base: Option<String>,
    /// Leave the adapter out.
    pub base_only: bool,
    /// A system message.
    pub system: Option<String>,
    /// No chat template.
    pub raw: bool,
    /// The prompt.
    pub prompt: String,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// 0: always the likeliest token.
    pub temperature: f64,
    /// Sample among so many.
    pub top_k: Option<usize>,
    /// Sample among the likeliest that together have this probability.
    pub top_p: Option<f64>,
    /// Decides the sampling.
    pub seed: u64,
    /// Fetch nothing.
    pub offline: bool,
    /// The device.
    pub device: DeviceConfig,
}

/// What was generated.
#[derive(Debug, Clone, Serialize)]
pub struct GenerateSummary {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
    /// Whether the model itself ended.
    pub finished_by_eos: bool,
    /// The text.
    pub text: String,
}

/// Trains.
///
/// # Errors
/// Always: a stub.
pub fn train(_recipe: &Recipe, _options: &RunOptions, _observer: &mut dyn Observer) -> Result<Summary> {
    Err(Error::invalid("not built yet"))
}

/// Checks.
///
/// # Errors
/// Always: a stub.
pub fn check(_recipe: &Recipe, _options: &RunOptions, _observer: &mut dyn Observer) -> Result<CheckReport> {
    Err(Error::invalid("not built yet"))
}

/// Generates.
///
/// # Errors
/// Always: a stub.
pub fn generate(_request: &GenerateRequest, _on_text: &mut dyn FnMut(&str)) -> Result<GenerateSummary> {
    Err(Error::invalid("not built yet"))
}
