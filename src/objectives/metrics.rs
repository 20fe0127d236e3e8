//! What an objective measures on its way.

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
