//! The numbers of a run, of a step and of a validation: a line of `metrics.jsonl` each.
//!
//! A key has one meaning in all of them: `cross_entropy` is plain, and comparable between objectives; `objective_loss` is the
//! objective's own. Older metrics files name them both `loss`, in lines of different types; those are still read. A number that
//! is not finite is `null`, as JSON has it, and is read back as NaN.

use super::MetricForBest;
use crate::objectives::ObjectiveMetrics;
use serde::{Deserialize, Deserializer, Serialize};
use std::path::Path;

/// What runs: the first line of `metrics.jsonl`, and another one each time that the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// The recipe's name.
    pub name: String,
    /// The base as the recipe names it.
    pub base: String,
    /// Its architecture.
    pub model_type: String,
    /// Its parameters.
    pub parameters: usize,
    /// How its matrices are held, and how many of them in each way.
    pub quantization: Vec<(String, usize)>,
    /// Parameters that are trained.
    pub adapter_parameters: usize,
    /// The device.
    pub device: String,
    /// The type of products and activations.
    pub compute: String,
    /// What a step minimises.
    pub objective: String,
    /// Which number of a validation decides what is best.
    pub metric_for_best_model: MetricForBest,
    /// Rows that are trained on.
    pub train_rows: usize,
    /// Rows that are validated on.
    pub validation_rows: usize,
    /// Rows that are left out since they are longer than `data.max_seq_len`.
    pub dropped_rows: usize,
    /// Rows that are left out since they are not readable.
    pub skipped_rows: usize,
    /// Rows that are left out since nothing in them is learnt.
    pub unlearnt_rows: usize,
    /// Rows that are cut to `data.max_seq_len`.
    pub truncated_rows: usize,
    /// Tokens of the training rows.
    pub tokens: usize,
    /// Of those, supervised.
    pub supervised_tokens: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// The step that this process goes on after; 0 at the beginning.
    pub resumed_after: usize,
    /// SHA-256 of the recipe that runs: of the file `recipe.yaml` in the output folder.
    pub recipe_sha256: String,
    /// Decides initialisation, order of the rows, and dropout.
    pub seed: u64,
    /// Where everything is written.
    pub output_dir: String,
    /// Equipoise's version.
    pub version: String,
}

impl RunHeader {
    /// As it is kept with the adapter, which others may get: paths of this machine without their folders.
    #[must_use]
    pub fn without_folders(&self) -> Self {
        let last =
            |path: &str| Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy().into_owned());
        let base = if Path::new(&self.base).exists() { last(&self.base) } else { self.base.clone() };
        Self { base, output_dir: last(&self.output_dir), ..self.clone() }
    }
}

/// A number; `null`, which JSON has for one that is not finite, is NaN.
pub(crate) fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|number| number.unwrap_or(f64::NAN))
}

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Passes over the data so far, in parts of a pass.
    pub epoch: f64,
    /// Mean cross-entropy of the supervised tokens, in nats: comparable across objectives.
    #[serde(deserialize_with = "or_nan")]
    pub cross_entropy: f64,
    /// The objective's loss of this step.
    #[serde(alias = "loss", deserialize_with = "or_nan")]
    pub objective_loss: f64,
    /// Share of the supervised tokens that the model ranks first, ahead of all others. 0 where an older file has none.
    #[serde(default, deserialize_with = "or_nan")]
    pub token_accuracy: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model, padding left out.
    pub tokens: usize,
    /// Of those, supervised.
    pub supervised_tokens: usize,
    /// Tokens a second, of this step.
    pub tokens_per_second: f64,
    /// The most memory this process has held so far, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// The most of a GPU's memory that was in use so far, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_gpu_memory: Option<u64>,
    /// What the objective measured on its way.
    pub objective: ObjectiveMetrics,
}

/// The validation rows, measured by plain cross-entropy, by what the model would say, and by the objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// After this step; 0 is the untrained adapter.
    pub step: usize,
    /// Mean cross-entropy of the supervised tokens, in nats.
    #[serde(alias = "loss", deserialize_with = "or_nan")]
    pub cross_entropy: f64,
    /// Share of the supervised tokens that the model ranks first, ahead of all others.
    pub token_accuracy: f64,
    /// Mean probability of the supervised tokens. 0 where an older file has none.
    #[serde(default, deserialize_with = "or_nan")]
    pub token_probability: f64,
    /// Share of the supervised tokens with a probability above one half. 0 where an older file has none.
    #[serde(default, deserialize_with = "or_nan")]
    pub likely_tokens: f64,
    /// The objective's own loss.
    #[serde(deserialize_with = "or_nan")]
    pub objective_loss: f64,
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// Whether it is the best of the run so far, by `training.metric_for_best_model`.
    pub best: bool,
    /// Metrics of tasks, where they are measured with each validation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskScore>,
}

/// A metric of a task, measured on the model as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The task's name, or a group's.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// Which of the task's filters the answers went through; `none` without one.
    pub filter: String,
    /// Its value.
    #[serde(deserialize_with = "or_nan")]
    pub value: f64,
    /// Its standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Items.
    pub items: usize,
}

impl Validation {
    /// Whether it is the best, beside the best so far.
    pub fn is_best(&self, so_far: Option<&Self>, metric: &MetricForBest) -> bool {
        so_far.map_or_else(|| metric.goodness(self).is_some(), |best| self.is_better(best, metric))
    }

    /// Whether it is better than another one, by this number; a tie is not. Any finite number is better than none, or one that is
    /// not finite.
    pub fn is_better(&self, than: &Self, metric: &MetricForBest) -> bool {
        match (metric.goodness(self), metric.goodness(than)) {
            (Some(ours), Some(its)) => ours > its,
            (ours, its) => ours.is_some() && its.is_none(),
        }
    }
}
