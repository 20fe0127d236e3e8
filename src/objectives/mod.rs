//! What a step minimises: from log-probabilities of labels to a weight for each token.
//!
//! An objective never sees a model or a logit. It gives each token a loss, and the factors of two gradients: that of the
//! cross-entropy `ce = -log p`, and that of the divergence from the base. Weights within a loss are constants: no gradient goes
//! through them. A step is `Σ loss / denominator`; both sums run over all micro-batches of the step, so that a step does not
//! depend on how it is cut. One file and one line of [`build`] add an objective.

mod advice;
mod asft;
mod bft;
mod confidence;
mod config;
mod dft;
mod eaft;
mod metrics;
mod prob;
mod profit;
mod sft;
mod token_mean;

pub use advice::{Prior, RowSample};
pub use confidence::{Confidence, local_means, min_group_confidence, min_local_confidence};
pub use config::{ObjectiveConfig, ObjectiveKind, SampleWeighting, TokenWeighting};
pub use metrics::{ObjectiveMetrics, Observations, Spread};

use token_mean::TokenMean;

/// What keeps a quotient finite; the authors' code has the same.
pub(crate) const EPSILON: f64 = 1e-8;

/// The supervised tokens of whole samples.
#[derive(Debug, Clone, Copy, Default)]
pub struct LabelLogProbs<'a> {
    /// `log p(target)` in nats, sample by sample, in the order of the tokens.
    pub log_probabilities: &'a [f64],
    /// How many of them belong to each sample, in order; may be 0.
    pub lengths: &'a [usize],
    /// Entropy of the renormalized largest logits of each token, in nats: under [`Needs::top_k`], else empty.
    pub entropies: &'a [f64],
    /// `KL(base ‖ model)` at each token over the whole vocabulary, in nats: under [`Needs::reference`], else empty.
    pub divergences: &'a [f64],
}

impl<'a> LabelLogProbs<'a> {
    /// The log-probabilities of each sample.
    pub fn samples(&self) -> impl Iterator<Item = &'a [f64]> {
        let (all, mut start) = (self.log_probabilities, 0);
        self.lengths.iter().map(move |&length| {
            start += length;
            &all[start - length..start]
        })
    }
}

/// What an objective must know of a token besides the probability of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The entropy of so many of the largest logits.
    pub top_k: Option<usize>,
    /// The frozen base's distribution: another forward pass, without the adapter.
    pub reference: bool,
}

/// Each token's loss and what its gradient is made of. Nothing is divided yet by the step's denominator.
#[derive(Debug, Clone, Default)]
pub struct Weighted {
    /// The factor of each token's `∇ce`, in the order of the log-probabilities.
    pub weights: Vec<f64>,
    /// The factor of each token's `∇KL(base ‖ model)`; 0 for objectives without a reference.
    pub divergence_weight: f64,
    /// Each token's loss.
    pub losses: Vec<f64>,
    /// What was measured on the way.
    pub observations: Observations,
}

/// What a step's sums may be divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTotals {
    /// Samples of the step, those without a supervised token among them.
    pub samples: usize,
    /// Supervised tokens of the step.
    pub supervised_tokens: usize,
    /// `Σ weights`, each times its row's weight.
    pub weight: f64,
}

/// An objective.
pub trait Objective: Send + Sync {
    /// Weighs the tokens of whole samples.
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted;

    /// What the sums over a step are divided by.
    fn denominator(&self, totals: &StepTotals) -> f64;

    /// What it must know of each token.
    fn needs(&self) -> Needs {
        Needs::default()
    }
}

/// The objective that a recipe asks for.
pub fn build(config: &ObjectiveConfig) -> Box<dyn Objective> {
    match config.kind {
        ObjectiveKind::Sft => Box::new(TokenMean(sft::Sft)),
        ObjectiveKind::Dft => Box::new(TokenMean(dft::Dft)),
        ObjectiveKind::Bft => Box::new(bft::Bft::new(config)),
        ObjectiveKind::Eaft => Box::new(TokenMean(eaft::Eaft::new(config))),
        ObjectiveKind::Asft => Box::new(TokenMean(asft::Asft::new(config))),
        ObjectiveKind::Profit => Box::new(TokenMean(profit::Profit::new(config))),
        ObjectiveKind::Prob => Box::new(TokenMean(prob::Prob::new(config))),
    }
}
