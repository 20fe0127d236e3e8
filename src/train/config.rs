//! The recipe's `training` section.

use super::MetricForBest;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The most rows of an optimizer step: far more than anyone wants, and few enough to count.
const MAX_ROWS_PER_STEP: usize = 1 << 20;

/// The recipe's `training`: the optimizer, its schedule, and what is saved when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingConfig {
    /// Passes over the training rows; `max_steps` takes precedence.
    pub epochs: f64,
    /// Optimizer steps; 0 writes the adapter as it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<usize>,
    /// Rows that go through the model at once. It decides memory; the result depends only on its product with
    /// `gradient_accumulation_steps`.
    pub micro_batch_size: usize,
    /// Micro-batches in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the rate goes on after warmup.
    pub lr_scheduler: LrScheduler,
    /// Share of the steps over which the rate rises from 0.
    pub warmup_ratio: f64,
    /// Steps over which the rate rises from 0; takes precedence over `warmup_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// `AdamW`'s β₁.
    pub adam_beta1: f64,
    /// `AdamW`'s β₂.
    pub adam_beta2: f64,
    /// `AdamW`'s ε.
    pub adam_epsilon: f64,
    /// The gradient is scaled down to this global norm; 0 turns it off.
    pub max_grad_norm: f64,
    /// Validate every so many steps; 0: at the end only.
    pub eval_steps: usize,
    /// Save a checkpoint every so many steps; 0: at the end, and where validation is best.
    pub save_steps: usize,
    /// How many of the last checkpoints are kept, besides the best.
    pub save_total_limit: usize,
    /// Which number of a validation decides what is best; by default what the objective's gradient follows:
    /// `token_probability` where tokens are weighted by their probability, `cross_entropy` elsewhere. `TASK/METRIC` is a metric of
    /// a task that `evaluation` has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_for_best_model: Option<MetricForBest>,
    /// Stop after so many validations without a new best; 0 turns it off.
    pub early_stopping_patience: usize,
    /// Whether the adapter of the best validation is what the run ends with; the untrained one does not count. Without
    /// validation it is the last.
    pub load_best_model_at_end: bool,
    /// Which activations are kept for the backward pass.
    pub gradient_checkpointing: GradientCheckpointing,
    /// What `gradient_checkpointing: auto` may fill, in MiB; by default four fifths of the memory that is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_memory_mb: Option<u64>,
    /// Steps in a row with a non-finite loss or gradient after which the run stops.
    pub max_skipped_steps: usize,
    /// Whether a run that ends with a ruined model ends with exit code 1.
    pub fail_on_divergence: bool,
    /// Decides initialisation, order of the rows, and dropout.
    pub seed: u64,
}

/// The recipe's `training.lr_scheduler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// The peak rate to the end.
    Constant,
    /// Straight down to 0.
    Linear,
    /// Half a cosine down to 0.
    Cosine,
}

/// The recipe's `training.gradient_checkpointing`. It changes memory and time, no bit of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GradientCheckpointing {
    /// Those of as many layers as memory has room for; the others are computed again.
    Auto,
    /// All activations are kept.
    None,
    /// Only the input of each layer is kept; the rest is computed again, one layer at a time.
    Layer,
    /// As `layer`, with the inputs of a GPU's layers in the CPU's memory.
    Offload,
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            epochs: 1.0,
            max_steps: None,
            micro_batch_size: 4,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            lr_scheduler: LrScheduler::Cosine,
            warmup_ratio: 0.03,
            warmup_steps: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            eval_steps: 0,
            save_steps: 0,
            save_total_limit: 2,
            metric_for_best_model: None,
            early_stopping_patience: 0,
            load_best_model_at_end: true,
            gradient_checkpointing: GradientCheckpointing::Auto,
            max_memory_mb: None,
            max_skipped_steps: 5,
            fail_on_divergence: true,
            seed: 42,
        }
    }
}

impl TrainingConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and the values that it takes.
    pub fn validate(&self) -> Result<()> {
        let at_least_one = [
            ("micro_batch_size", self.micro_batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("save_total_limit", self.save_total_limit),
            ("max_skipped_steps", self.max_skipped_steps),
            ("max_memory_mb", self.max_memory_mb.unwrap_or(1) as usize),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Err(Error::invalid(format!("training.{key}: must be at least 1")));
            }
        }
        let rows_per_step = self.micro_batch_size.checked_mul(self.gradient_accumulation_steps);
        if rows_per_step.is_none_or(|rows| rows > MAX_ROWS_PER_STEP) {
            let key = if self.micro_batch_size >= self.gradient_accumulation_steps {
                "micro_batch_size"
            } else {
                "gradient_accumulation_steps"
            };
            return Err(Error::invalid(format!(
                "training.{key}: micro_batch_size × gradient_accumulation_steps is {} × {}; a step takes {MAX_ROWS_PER_STEP} \
                 rows at most",
                self.micro_batch_size, self.gradient_accumulation_steps
            )));
        }
        let ranges = [
            ("epochs", self.epochs, self.epochs > 0.0, "above 0"),
            (
                "learning_rate",
                self.learning_rate,
                (0.0..1e38).contains(&self.learning_rate) && self.learning_rate > 0.0,
                "above 0 and below 1e38",
            ),
            ("warmup_ratio", self.warmup_ratio, (0.0..=1.0).contains(&self.warmup_ratio), "from 0 to 1"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "at least 0"),
            ("adam_beta1", self.adam_beta1, (0.0..1.0).contains(&self.adam_beta1), "at least 0 and below 1"),
            ("adam_beta2", self.adam_beta2, (0.0..1.0).contains(&self.adam_beta2), "at least 0 and below 1"),
            (
                "adam_epsilon",
                self.adam_epsilon,
                self.adam_epsilon >= f64::from(f32::MIN_POSITIVE),
                "of at least 1.2e-38",
            ),
            ("max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0.0, "at least 0 (0 turns clipping off)"),
        ];
        for (key, value, fits, expected) in ranges {
            if !(fits && value.is_finite()) {
                return Err(Error::invalid(format!("training.{key}: must be a number {expected}, got {value:?}")));
            }
        }
        Ok(())
    }
}
