//! The learning rate of each step.

use super::{LrScheduler, TrainingConfig};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Warmup, then constant, linear or cosine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    peak: f64,
    kind: LrScheduler,
    warmup: usize,
    total: usize,
}

impl Schedule {
    /// The schedule of a run of `total` steps. Warmup never takes all of them.
    pub fn new(config: &TrainingConfig, total: usize) -> Self {
        let warmup = config.warmup_steps.unwrap_or((config.warmup_ratio * total as f64).ceil() as usize);
        Self {
            peak: config.learning_rate,
            kind: config.lr_scheduler,
            warmup: warmup.min(total.saturating_sub(1)),
            total,
        }
    }

    /// Steps of the whole run.
    pub const fn total_steps(&self) -> usize {
        self.total
    }

    /// Steps before the peak.
    pub const fn warmup_steps(&self) -> usize {
        self.warmup
    }

    /// The rate of step `step`, from 1: `peak·step/(warmup+1)` in warmup, the peak at step `warmup + 1`, then
    /// `peak·(1 - x)` or `peak·(1 + cos πx)/2` with `x` from 0 toward 1.
    pub fn rate(&self, step: usize) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / (self.warmup + 1) as f64;
        }
        let done = (step - 1 - self.warmup) as f64 / (self.total - self.warmup).max(1) as f64;
        self.peak
            * match self.kind {
                LrScheduler::Constant => 1.0,
                LrScheduler::Linear => 1.0 - done,
                LrScheduler::Cosine => f64::midpoint(1.0, (PI * done).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: LrScheduler) -> Schedule {
        let config = TrainingConfig {
            learning_rate: 1.0,
            lr_scheduler: kind,
            warmup_steps: Some(3),
            ..TrainingConfig::default()
        };
        Schedule::new(&config, 11)
    }

    #[test]
    fn warmup_rises_to_the_peak_and_decay_falls_toward_zero() {
        let linear = schedule(LrScheduler::Linear);
        let rates: Vec<f64> = (1..=11).map(|step| linear.rate(step)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 0.875]);
        assert_eq!(rates[10], 0.125);
        assert!((schedule(LrScheduler::Cosine).rate(8) - 0.5).abs() < 1e-12, "half way down");
        assert_eq!(schedule(LrScheduler::Constant).rate(11), 1.0);
    }

    #[test]
    fn a_warmup_longer_than_the_run_still_reaches_the_peak() {
        let config = TrainingConfig { warmup_steps: Some(100), learning_rate: 1.0, ..TrainingConfig::default() };
        assert_eq!(Schedule::new(&config, 2).rate(2), 1.0);
    }
}
