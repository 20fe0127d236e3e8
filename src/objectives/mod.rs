//! Objectives.

mod config;
mod metrics;

pub use config::{ObjectiveConfig, ObjectiveKind, SampleWeighting, TokenWeighting};
pub use metrics::{ObjectiveMetrics, Spread};
