//! The recipe's `objective` section.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The recipe's `objective`: what a step minimises. The keys after `type` shape BFT alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// Which objective.
    #[serde(rename = "type")]
    pub kind: ObjectiveKind,
    /// Tokens in a window of the minimum group confidence.
    pub group_size: usize,
    /// The power in the sample weight `1 - c^gamma`.
    pub gamma: f64,
    /// What a token's loss is multiplied by.
    pub token_weighting: TokenWeighting,
    /// What a sample's loss is multiplied by.
    pub sample_weighting: SampleWeighting,
}

/// The recipe's `objective.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// Supervised fine-tuning: the mean cross-entropy of tokens.
    Sft,
    /// Dynamic fine-tuning (arXiv 2508.05629): each token weighted by its probability.
    Dft,
    /// Balanced fine-tuning (arXiv 2511.21075): as DFT, and each sample weighted by its minimum group confidence.
    Bft,
}

/// The recipe's `objective.token_weighting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenWeighting {
    /// The model's probability of the token.
    Probability,
    /// The probability over the mean of its neighbourhood, at most 1. Experimental.
    GroupNormalized,
    /// 1.
    None,
}

/// The recipe's `objective.sample_weighting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleWeighting {
    /// `1 - c^gamma` with `c` the least mean confidence of a window of `group_size` tokens.
    MinGroupConfidence,
    /// 1.
    None,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            kind: ObjectiveKind::Bft,
            group_size: 256,
            gamma: 1.0,
            token_weighting: TokenWeighting::Probability,
            sample_weighting: SampleWeighting::MinGroupConfidence,
        }
    }
}

impl ObjectiveConfig {
    /// Whether a token's loss is multiplied by the model's probability of it, in some form.
    pub fn weighs_by_probability(&self) -> bool {
        match self.kind {
            ObjectiveKind::Sft => false,
            ObjectiveKind::Dft => true,
            ObjectiveKind::Bft => self.token_weighting != TokenWeighting::None,
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and the values that it takes.
    pub fn validate(&self) -> Result<()> {
        if self.group_size == 0 {
            return Err(Error::invalid("objective.group_size: must be at least 1 token"));
        }
        if !(self.gamma.is_finite() && self.gamma > 0.0) {
            return Err(Error::invalid("objective.gamma: must be a number above 0"));
        }
        Ok(())
    }
}
