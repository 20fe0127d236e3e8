//! Supervised fine-tuning: `Σ m·ce / Σ m` over all tokens of the step.

use super::{LabelLogProbs, Objective, Observations, Weighted};

pub(super) struct Sft;

impl Objective for Sft {
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted {
        let weights = vec![1.0; labels.log_probabilities.len()];
        let observations = Observations::of_tokens(labels, &weights);
        Weighted { weights, observations }
    }

    fn denominator(&self, _samples: usize, supervised_tokens: usize) -> f64 {
        supervised_tokens.max(1) as f64
    }
}
