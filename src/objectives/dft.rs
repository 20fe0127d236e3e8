//! Dynamic fine-tuning (arXiv 2508.05629): `Σ m·sg(p)·ce / Σ m` over all tokens of the step.

use super::{LabelLogProbs, Objective, Observations, Weighted};

pub(super) struct Dft;

impl Objective for Dft {
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted {
        let weights: Vec<f64> = labels.log_probabilities.iter().map(|log_p| log_p.exp()).collect();
        let observations = Observations::of_tokens(labels, &weights);
        Weighted { weights, observations }
    }

    fn denominator(&self, _samples: usize, supervised_tokens: usize) -> f64 {
        supervised_tokens.max(1) as f64
    }
}
