//! What an objective measures on its way.

use super::LabelLogProbs;
use serde::{Deserialize, Serialize};

/// Spread of a quantity over samples or tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// 10% of the values lie below.
    pub p10: f64,
    /// Half of the values lie below.
    pub p50: f64,
    /// 90% of the values lie below.
    pub p90: f64,
}

impl Spread {
    /// The spread of `values`; `None` for no value. Quantiles are the nearest values, not blends.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let quantile = |share: f64| sorted[(share * last as f64).round() as usize];
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { mean, p10: quantile(0.1), p50: quantile(0.5), p90: quantile(0.9) })
    }
}

/// The raw values of some micro-batches, to be joined over a step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observations {
    /// Probability of each supervised token.
    pub token_probability: Vec<f64>,
    /// The weight of each token within its sample.
    pub token_weight: Vec<f64>,
    /// Minimum group confidence of each sample.
    pub sample_confidence: Vec<f64>,
    /// Weight of each sample.
    pub sample_weight: Vec<f64>,
}

impl Observations {
    /// What any objective can tell of the tokens.
    pub(super) fn of_tokens(labels: &LabelLogProbs<'_>, weights: &[f64]) -> Self {
        Self {
            token_probability: labels.log_probabilities.iter().map(|log_p| log_p.exp()).collect(),
            token_weight: weights.to_vec(),
            ..Self::default()
        }
    }

    /// Takes the values of another micro-batch of the same step.
    pub fn join(&mut self, other: Self) {
        self.token_probability.extend(other.token_probability);
        self.token_weight.extend(other.token_weight);
        self.sample_confidence.extend(other.sample_confidence);
        self.sample_weight.extend(other.sample_weight);
    }

    /// Means and quantiles.
    pub fn summary(&self) -> ObjectiveMetrics {
        let (sum, squares) = self.token_weight.iter().fold((0.0, 0.0), |(sum, squares), w| (sum + w, squares + w * w));
        let share = sum * sum / (squares * self.token_weight.len() as f64);
        ObjectiveMetrics {
            token_probability: Spread::of(&self.token_probability),
            sample_confidence: Spread::of(&self.sample_confidence),
            sample_weight: Spread::of(&self.sample_weight),
            effective_token_share: Some(share).filter(|share| share.is_finite()),
        }
    }
}

/// What the objective computes anyway, worth a look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ObjectiveMetrics {
    /// Probability of the supervised tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_probability: Option<Spread>,
    /// Minimum group confidence `c` of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_confidence: Option<Spread>,
    /// Weight `1 - c^γ` of the samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_weight: Option<Spread>,
    /// `(Σw)² / (n·Σw²)` of the token weights: 1 when all tokens count alike, 1/n when one does all the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effective_token_share: Option<f64>,
}
