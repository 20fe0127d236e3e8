//! Statistics of evaluation: how sure a score is, whether two runs differ, how well probabilities are calibrated.
//!
//! Pure functions of numbers: nothing here reads a file, knows a task or prints. Random draws come from [`crate::rng`] by a
//! seed that is an argument, so the same input gives the same bits on every machine.
//!
//! What is undefined is `None`: a spread of one item, an empty slice, a NaN or an infinity among the numbers, slices of
//! unlike lengths. Nothing here panics.

#![expect(clippy::doc_markdown, reason = "BCa and McNemar are names, and clippy.toml does not list them")]

mod calibration;
mod classification;
mod intervals;
mod mcnemar;
mod multiple;
mod normal;
mod paired;
mod permutation;
mod power;
mod rates;
mod resampling;
mod summary;
mod temperature;
mod units;

pub use calibration::{Binning, CALIBRATION_BINS, Predictions, ReliabilityBin};
pub use classification::{Confusion, ConstantAnswer};
pub use intervals::{acceleration, bca_interval, bias_correction, percentile_interval};
pub use mcnemar::{McNemar, mcnemar};
pub use multiple::holm;
pub use normal::{normal_cdf, normal_quantile};
pub use paired::{PairedComparison, compare_paired};
pub use permutation::{EXACT_UNITS, Permutation, sign_flip};
pub use power::{ALPHA, POWER, least_detectable_accuracy_difference, least_detectable_difference};
pub use rates::wilson_interval;
pub use resampling::{MAX_RESAMPLES, Resampling, bootstrap_stderr, jackknife, resample};
pub use summary::{
    mean, mean_stderr, pooled_stderr, quantile, sample_standard_deviation, unweighted_mean_stderr, weighted_mean,
};
pub use temperature::{Temperature, fit_temperature};
pub use units::{clustered_stderr, number_clusters};

use serde::Serialize;

/// An interval that holds its ends, in the units of what it is of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl std::fmt::Display for Interval {
    /// As `[-0.0120, +0.0340]`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{:+.4}, {:+.4}]", self.low, self.high)
    }
}

/// A p value to four digits; smaller ones as `<0.0001`.
pub fn p_text(p: f64) -> String {
    if p < 1e-4 { "<0.0001".to_owned() } else { format!("{p:.4}") }
}

/// The number, unless it is NaN or infinite.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}
