//! The numbers of a step and of a validation: a line of `metrics.jsonl` each.

use crate::objectives::ObjectiveMetrics;
use serde::{Deserialize, Serialize};

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// From 1.
    pub step: usize,
    /// Passes over the data so far, in parts of a pass.
    pub epoch: f64,
    /// The objective's loss of this step.
    pub loss: f64,
    /// Mean cross-entropy of the supervised tokens, in nats: comparable across objectives.
    pub cross_entropy: f64,
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

/// The validation rows, measured by plain cross-entropy and by the objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// After this step; 0 is the untrained adapter.
    pub step: usize,
    /// Mean cross-entropy of the supervised tokens, in nats. This one decides which checkpoint is best.
    pub loss: f64,
    /// The objective's own loss.
    pub objective_loss: f64,
    /// Share of the supervised tokens that the model ranks first.
    pub token_accuracy: f64,
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// Whether it is the lowest loss of the run so far.
    pub best: bool,
}
