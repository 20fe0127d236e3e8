//! What a step minimises: from log-probabilities of labels to a weight for each token.
//!
//! An objective never sees a model or a logit. Its weights carry no gradient: the loss of a step is
//! `Σ weight·ce / denominator`, and only `ce = -log p` is differentiated. Both sums run over all micro-batches of the step,
//! so that a step does not depend on how it is cut. One file and one line of [`build`] add an objective.

mod bft;
mod confidence;
mod config;
mod dft;
mod metrics;
mod sft;

pub use confidence::{Confidence, Mean, min_group_confidence};
pub use config::{ObjectiveConfig, ObjectiveKind, SampleWeighting, TokenWeighting};
pub use metrics::{ObjectiveMetrics, Observations, Spread};

/// What keeps a quotient finite; the authors' code has the same.
pub(crate) const EPSILON: f64 = 1e-8;

/// The supervised tokens of whole samples.
#[derive(Debug, Clone, Copy)]
pub struct LabelLogProbs<'a> {
    /// `log p(target)` in nats, sample by sample, in the order of the tokens.
    pub log_probabilities: &'a [f64],
    /// How many of them belong to each sample, in order; may be 0.
    pub lengths: &'a [usize],
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

/// A weight for each token.
#[derive(Debug, Clone, Default)]
pub struct Weighted {
    /// In the order of the log-probabilities, not yet divided by the step's denominator.
    pub weights: Vec<f64>,
    /// What was measured on the way.
    pub observations: Observations,
}

/// An objective.
pub trait Objective: Send + Sync {
    /// Weighs the tokens of whole samples.
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted;

    /// What the weighted sum over a step is divided by, given the samples and supervised tokens of the step.
    fn denominator(&self, samples: usize, supervised_tokens: usize) -> f64;
}

/// The objective that a recipe asks for.
pub fn build(config: &ObjectiveConfig) -> Box<dyn Objective> {
    match config.kind {
        ObjectiveKind::Sft => Box::new(sft::Sft),
        ObjectiveKind::Dft => Box::new(dft::Dft),
        ObjectiveKind::Bft => Box::new(bft::Bft::new(config)),
    }
}
