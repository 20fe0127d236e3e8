//! Balanced fine-tuning (arXiv 2511.21075): `1/B Σ_b s_b · (Σ_t m·w·ce) / (n_b + ε)`.
//!
//! A token is weighted by its probability, a sample by `s = 1 - c^γ` with `c` its minimum group confidence: what the model
//! cannot say yet in some stretch counts more, and within a sample the tokens that it is unsure of count less. Where the
//! paper's prose and the authors' code differ, the code stands; but a step is divided once, by all of its samples, where
//! the authors' code divides within each micro-batch and so lets the gradient grow with accumulation.

use super::confidence::{Mean, centred_means, min_group_confidence};
use super::{
    EPSILON, LabelLogProbs, Objective, ObjectiveConfig, Observations, SampleWeighting, TokenWeighting, Weighted,
};

pub(super) struct Bft {
    group_size: usize,
    gamma: f64,
    token_weighting: TokenWeighting,
    sample_weighting: SampleWeighting,
}

impl Bft {
    pub(super) const fn new(config: &ObjectiveConfig) -> Self {
        Self {
            group_size: config.group_size,
            gamma: config.gamma,
            token_weighting: config.token_weighting,
            sample_weighting: config.sample_weighting,
        }
    }

    fn token_weights(&self, sample: &[f64]) -> Vec<f64> {
        match self.token_weighting {
            TokenWeighting::None => vec![1.0; sample.len()],
            TokenWeighting::Probability => sample.iter().map(|log_p| log_p.exp()).collect(),
            TokenWeighting::GroupNormalized => {
                let probabilities: Vec<f64> = sample.iter().map(|log_p| log_p.exp()).collect();
                let neighbourhood = centred_means(&probabilities, self.group_size);
                probabilities.iter().zip(neighbourhood).map(|(p, c)| (p / (c + EPSILON)).clamp(0.0, 1.0)).collect()
            }
        }
    }

    /// `c_b` and `s_b`.
    fn sample_weight(&self, sample: &[f64]) -> (f64, f64) {
        let mean = match self.token_weighting {
            TokenWeighting::GroupNormalized => Mean::Arithmetic,
            TokenWeighting::Probability | TokenWeighting::None => Mean::Geometric,
        };
        let confidence = min_group_confidence(sample, self.group_size, mean).value;
        match self.sample_weighting {
            SampleWeighting::MinGroupConfidence => (confidence, 1.0 - confidence.powf(self.gamma)),
            SampleWeighting::None => (confidence, 1.0),
        }
    }
}

impl Objective for Bft {
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted {
        let mut weights = Vec::with_capacity(labels.log_probabilities.len());
        let mut tokens = Vec::with_capacity(labels.log_probabilities.len());
        let (mut confidences, mut sample_weights) = (Vec::new(), Vec::new());
        for sample in labels.samples() {
            let token_weights = self.token_weights(sample);
            let (confidence, sample_weight) = self.sample_weight(sample);
            let scale = sample_weight / (sample.len() as f64 + EPSILON);
            weights.extend(token_weights.iter().map(|w| w * scale));
            tokens.extend(token_weights);
            if !sample.is_empty() {
                confidences.push(confidence);
                sample_weights.push(sample_weight);
            }
        }
        let mut observations = Observations::of_tokens(labels, &tokens);
        observations.sample_confidence = confidences;
        observations.sample_weight = sample_weights;
        Weighted { weights, observations }
    }

    fn denominator(&self, samples: usize, _supervised_tokens: usize) -> f64 {
        samples.max(1) as f64
    }
}
