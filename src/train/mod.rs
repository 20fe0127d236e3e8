//! Training: the step, the optimizer, what is saved and how it goes on.
//!
//! It owns the loop and its state on the disk. It prints nothing: an [`Observer`] gets its events. It knows no recipe: its
//! configuration is [`TrainingConfig`].

mod adamw;
pub mod backward;
mod checkpoint;
mod clock;
mod config;
mod event;
mod gpu_memory;
mod health;
mod memory;
mod metric_for_best;
pub mod metrics;
mod record;
mod schedule;
mod trainer;

pub use adamw::AdamW;
pub use checkpoint::{
    AdapterFiles, Checkpoint, Identity, TrainerState, checkpoint_folder, checkpoints_folder, read_state,
};
pub use config::{GradientCheckpointing, LrScheduler, TrainingConfig};
pub use event::{Event, Observer};
pub use gpu_memory::GpuBudget;
pub use health::{Health, Verdict};
pub use memory::MemoryEstimate;
pub use metric_for_best::{MetricForBest, TaskMetric};
pub use schedule::Schedule;
pub use trainer::{FitSummary, METRICS, Settings, TaskScorer, Trainer, total_steps};
