//! What a run, or its rehearsal, has to say at its end.

use super::evaluation::TaskChange;
use super::forgetting::Forgetting;
use super::timing::TimeEstimate;
use super::upload::Uploaded;
use crate::data::DataReport;
use crate::objectives::Prior;
use crate::train::metrics::Validation;
use crate::train::{Health, MemoryEstimate, MetricForBest};
use serde::Serialize;
use std::path::PathBuf;

/// What a training run came to.
#[derive(Debug, Clone, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Summary {
    /// Where everything was written.
    pub output_dir: PathBuf,
    /// Where the adapter is: there, or after an interruption its last checkpoint.
    pub adapter_dir: PathBuf,
    /// The recipe's name.
    pub recipe_name: String,
    /// Optimizer steps done, by all processes of the run.
    pub steps: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// The step that this process went on after; 0 at the beginning.
    pub resumed_after: usize,
    /// Whether all was done before: by an earlier process.
    pub was_finished: bool,
    /// The settings by which `--resume` would make a longer run of it; none where that would change steps that are done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longer: Option<String>,
    /// Whether it began with another run's adapter, by `lora.init_from`.
    pub begins_with_adapter: bool,
    /// The objective, as the recipe writes it.
    pub objective: String,
    /// Which number of a validation decides what is best.
    pub metric_for_best_model: MetricForBest,
    /// Whether the adapter is better than what the run began with, in a sentence; none without validations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// The adapter beside the base alone, on rows of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// Whether the run ends with a ruined model, and the recipe has that as a failure.
    pub fails: bool,
    /// Whether it was asked to stop before the end.
    pub interrupted: bool,
    /// Whether early stopping ended it.
    pub stopped_early: bool,
    /// Steps that were skipped as non-finite.
    pub skipped: usize,
    /// The step whose adapter was written.
    pub adapter_step: usize,
    /// The step of the best validation.
    pub best_step: Option<usize>,
    /// The best validation since training began.
    pub best_validation: Option<Validation>,
    /// Before the first step.
    pub first_validation: Option<Validation>,
    /// After the last step.
    pub last_validation: Option<Validation>,
    /// Seconds in all, of this process.
    pub seconds: f64,
    /// Of those, in steps.
    pub training_seconds: f64,
    /// Mean over the steps of this process.
    pub tokens_per_second: f64,
    /// The most memory held, in bytes.
    pub peak_memory: Option<u64>,
    /// The most of a GPU's memory that was in use, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_gpu_memory: Option<u64>,
    /// What was estimated before, in bytes.
    pub estimated_memory: u64,
    /// Trained parameters.
    pub adapter_parameters: usize,
    /// Metrics of the recipe's tasks, under the base and under the adapter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskChange>,
    /// Whether it was asked to stop within them: the adapter is done, and nothing was uploaded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tasks_interrupted: bool,
    /// A general text, under the base and under the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forgetting: Option<Forgetting>,
    /// A row of the data, before and after.
    pub sample: Option<Sample>,
    /// What was written.
    pub files: Vec<PathBuf>,
    /// What came of the upload, where the recipe wants one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploaded: Option<Uploaded>,
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
    /// Whether the prompt is plain text, which no chat template made.
    pub raw: bool,
}

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// The base model.
    pub base: BaseReport,
    /// The adapter.
    pub adapter: AdapterReport,
    /// The objective, by its name in a recipe.
    pub objective: String,
    /// The data.
    pub data: DataReport,
    /// The first row, in pieces; `true` for what is learnt.
    pub preview: Vec<(String, bool)>,
    /// Optimizer steps.
    pub steps: usize,
    /// Of these, warmup.
    pub warmup_steps: usize,
    /// Estimated time; none where no row could be timed.
    pub time: Option<TimeEstimate>,
    /// Estimated memory, in bytes.
    pub memory: MemoryEstimate,
    /// The recipe's tasks, and documents of each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<(String, usize)>,
    /// Tokens that it takes to answer them once, those that are generated left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub task_tokens: usize,
    /// Of how many layers the activations are kept for the backward pass; the others are computed again.
    pub kept_layers: usize,
    /// How many layers there are.
    pub layers: usize,
    /// The device.
    pub device: String,
    /// What the base knows of some of the held-out rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prior: Option<Prior>,
    /// Which objective that favours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Of a GPU, the libraries that it is used through, each with its version, and their files.
    pub libraries: Vec<(String, PathBuf)>,
    /// What is odd, but no error.
    pub warnings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
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
    /// Matrices by type.
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
