//! The recipe's `objective` section.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The recipe's `objective`: what a step minimises. Each key after `type` shapes some of the types alone.
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
    /// The least that BFT multiplies a token's loss by.
    #[serde(skip_serializing_if = "is_default")]
    pub token_weight_floor: f64,
    /// Whether BFT divides a step by the sum of its weights, so that their mean is 1.
    #[serde(skip_serializing_if = "is_default")]
    pub normalize_weights: bool,
    /// The power of EAFT's entropy, 1 by default; the factor of ASFT's divergence, 0.1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Of how many of the largest logits EAFT takes the entropy; 20 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// The least probability of a token that `ProFiT` learns from; 0.1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// The power in `(1 - p^q)/q`; 0.5 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub q: Option<f64>,
}

/// Whether a setting is what it is without being written.
fn is_default<T: Default + PartialEq>(setting: &T) -> bool {
    *setting == T::default()
}

/// The most logits whose entropy EAFT takes: what a block of a GPU's threads can hold.
const MOST_LOGITS: usize = 256;

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
    /// Entropy-adaptive fine-tuning (arXiv 2601.02151): each token weighted by the entropy of the largest logits.
    Eaft,
    /// Anchored supervised fine-tuning (arXiv 2509.23753): as DFT, and the divergence from the base.
    Asft,
    /// `ProFiT` (arXiv 2601.09195): tokens above a probability alone.
    Profit,
    /// `(1 - p^q)/q` of each token (arXiv 2510.00526).
    Prob,
}

impl ObjectiveKind {
    /// The recipe's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Dft => "dft",
            Self::Bft => "bft",
            Self::Eaft => "eaft",
            Self::Asft => "asft",
            Self::Profit => "profit",
            Self::Prob => "prob",
        }
    }
}

/// The recipe's `objective.token_weighting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenWeighting {
    /// The model's probability of the token.
    Probability,
    /// The probability over the mean of its neighbourhood, at most 1; and `1 - c` as the sample's weight, with `c` the least of these
    /// means.
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
    /// `sft`: by `tests/benches/EVIDENCE.md` weights by probability keep a base from learning what it does not know yet. A
    /// recipe for a base that knows most of the answers names `bft`.
    fn default() -> Self {
        Self {
            kind: ObjectiveKind::Sft,
            group_size: 256,
            gamma: 1.0,
            token_weighting: TokenWeighting::Probability,
            sample_weighting: SampleWeighting::MinGroupConfidence,
            token_weight_floor: 0.0,
            normalize_weights: false,
            alpha: None,
            k: None,
            threshold: None,
            q: None,
        }
    }
}

impl ObjectiveConfig {
    /// The objective of this type, with all other keys at their defaults.
    pub fn of(kind: ObjectiveKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// [`Self::alpha`](field@Self::alpha), or its default.
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(if self.kind == ObjectiveKind::Asft { 0.1 } else { 1.0 })
    }

    /// [`Self::k`](field@Self::k), or its default.
    pub fn k(&self) -> usize {
        self.k.unwrap_or(20)
    }

    /// [`Self::threshold`](field@Self::threshold), or its default.
    pub fn threshold(&self) -> f64 {
        self.threshold.unwrap_or(0.1)
    }

    /// [`Self::q`](field@Self::q), or its default.
    pub fn q(&self) -> f64 {
        self.q.unwrap_or(0.5)
    }

    /// Whether the gradient follows the probability of tokens rather than its logarithm: what the model thinks unlikely counts little.
    pub fn weighs_by_probability(&self) -> bool {
        match self.kind {
            ObjectiveKind::Sft | ObjectiveKind::Eaft => false,
            ObjectiveKind::Dft | ObjectiveKind::Asft | ObjectiveKind::Profit => true,
            ObjectiveKind::Bft => self.token_weighting != TokenWeighting::None,
            ObjectiveKind::Prob => self.q() >= 0.5,
        }
    }

    /// The types that a key shapes; a key is named as in a recipe.
    pub fn kinds_with(key: &str) -> &'static [ObjectiveKind] {
        use ObjectiveKind::{Asft, Bft, Eaft, Prob, Profit};
        match key {
            "alpha" => &[Eaft, Asft],
            "k" => &[Eaft],
            "threshold" => &[Profit],
            "q" => &[Prob],
            _ => &[Bft],
        }
    }

    /// Keys that are written and mean nothing under this type, as the recipe names them.
    pub fn unused_keys(&self) -> Vec<&'static str> {
        let written = [
            ("token_weight_floor", self.token_weight_floor != 0.0),
            ("normalize_weights", self.normalize_weights),
            ("alpha", self.alpha.is_some()),
            ("k", self.k.is_some()),
            ("threshold", self.threshold.is_some()),
            ("q", self.q.is_some()),
        ];
        let is_unused = |key: &str| !Self::kinds_with(key).contains(&self.kind);
        written.into_iter().filter(|(key, is_set)| *is_set && is_unused(key)).map(|(key, _)| key).collect()
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and the values that it takes.
    pub fn validate(&self) -> Result<()> {
        if self.group_size == 0 {
            return Err(Error::invalid("objective.group_size: must be at least 1 token"));
        }
        if !(1..=MOST_LOGITS).contains(&self.k()) {
            return Err(Error::invalid(format!("objective.k: must be from 1 to {MOST_LOGITS} logits")));
        }
        let (alpha, q) = (self.alpha(), self.q());
        let ranges = [
            ("gamma", self.gamma.is_finite() && self.gamma > 0.0, "above 0"),
            ("token_weight_floor", (0.0..=1.0).contains(&self.token_weight_floor), "from 0 to 1"),
            ("alpha", alpha.is_finite() && alpha >= 0.0, "of at least 0"),
            ("threshold", (0.0..=1.0).contains(&self.threshold()), "from 0 to 1"),
            ("q", q.is_finite() && q > 0.0, "above 0; towards 0 it is `sft`"),
        ];
        for (key, fits, expected) in ranges {
            if !fits {
                return Err(Error::invalid(format!("objective.{key}: must be a number {expected}")));
            }
        }
        let normalized = self.kind == ObjectiveKind::Bft && self.token_weighting == TokenWeighting::GroupNormalized;
        if normalized && self.gamma != 1.0 {
            return Err(Error::invalid(
                "objective.gamma: `token_weighting: group_normalized` has the sample weight `1 - c`, without a power",
            )
            .with_help("delete `objective.gamma`, or write `token_weighting: probability`"));
        }
        Ok(())
    }
}
