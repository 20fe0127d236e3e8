//! Training.

mod config;
mod event;
pub mod metrics;

pub use config::{GradientCheckpointing, LrScheduler, TrainingConfig};
pub use event::{Event, Observer};
