//! Balanced fine-tuning (arXiv 2511.21075): `1/B Σ_b s_b · (Σ_t m·w·ce) / (n_b + ε)`.
//!
//! A token is weighted by its probability, a sample by `s = 1 - c^γ` with `c` its minimum group confidence: what the model
//! cannot say yet in some stretch counts more, and within a sample the tokens that it is unsure of count less. Where the
//! paper's prose and the authors' code differ, the code stands; but a step is divided once, by all of its samples, where
//! the authors' code divides within each micro-batch and so lets the gradient grow with accumulation.
//!
//! Under `token_weighting: group_normalized` it is the later form, as the first author's follow-up defines it (`PertMind`, appendix
//! A.2, equations 20 to 24): with `C[t]` the mean probability of the `group_size` tokens around `t`, cut at the sample's ends,
//! `w = clip(p / (C + ε), 0, 1)`, and `s = 1 - min_t C[t]`. What is not said there: ε, and on which side an even window has its
//! extra token; here that is the later side.
//!
//! With `token_weight_floor`, `w` is at least that. With `normalize_weights` the loss is divided by `Σ_b s_b/n_b·Σ_t m·w` in place of
//! B, so that the weights of a step's tokens have the mean 1: neither is the paper's.

use super::confidence::{Confidence, local_means, min_group_confidence, min_local_confidence};
use super::{
    EPSILON, LabelLogProbs, Objective, ObjectiveConfig, Observations, SampleWeighting, StepTotals, TokenWeighting,
    Weighted,
};

pub(super) struct Bft {
    group_size: usize,
    gamma: f64,
    token_weighting: TokenWeighting,
    sample_weighting: SampleWeighting,
    token_weight_floor: f64,
    normalize_weights: bool,
}

/// The weights of a sample.
struct Sample {
    tokens: Vec<f64>,
    confidence: Confidence,
    weight: f64,
}

impl Bft {
    pub(super) const fn new(config: &ObjectiveConfig) -> Self {
        Self {
            group_size: config.group_size,
            gamma: config.gamma,
            token_weighting: config.token_weighting,
            sample_weighting: config.sample_weighting,
            token_weight_floor: config.token_weight_floor,
            normalize_weights: config.normalize_weights,
        }
    }

    /// `w`, `c_b` and `s_b`.
    fn sample(&self, log_probabilities: &[f64]) -> Sample {
        let probabilities = || log_probabilities.iter().map(|log_p| log_p.exp());
        let floor = |w: f64| w.max(self.token_weight_floor);
        let (tokens, confidence) = match self.token_weighting {
            TokenWeighting::GroupNormalized => {
                let probabilities: Vec<f64> = probabilities().collect();
                let means = local_means(&probabilities, self.group_size);
                let ratios = probabilities.iter().zip(&means).map(|(p, c)| floor((p / (c + EPSILON)).clamp(0.0, 1.0)));
                (ratios.collect(), min_local_confidence(&means, self.group_size))
            }
            TokenWeighting::Probability => {
                (probabilities().map(floor).collect(), min_group_confidence(log_probabilities, self.group_size))
            }
            TokenWeighting::None => {
                (vec![1.0; log_probabilities.len()], min_group_confidence(log_probabilities, self.group_size))
            }
        };
        let weight = match (self.sample_weighting, self.token_weighting) {
            (SampleWeighting::None, _) => 1.0,
            (_, TokenWeighting::GroupNormalized) => 1.0 - confidence.value,
            _ => 1.0 - confidence.value.powf(self.gamma),
        };
        Sample { tokens, confidence, weight }
    }
}

impl Objective for Bft {
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted {
        let mut weights = Vec::with_capacity(labels.log_probabilities.len());
        let mut tokens = Vec::with_capacity(labels.log_probabilities.len());
        let (mut confidences, mut sample_weights) = (Vec::new(), Vec::new());
        for log_probabilities in labels.samples() {
            let sample = self.sample(log_probabilities);
            let scale = sample.weight / (log_probabilities.len() as f64 + EPSILON);
            weights.extend(sample.tokens.iter().map(|w| w * scale));
            tokens.extend(sample.tokens);
            if !log_probabilities.is_empty() {
                confidences.push(sample.confidence.value);
                sample_weights.push(sample.weight);
            }
        }
        let mut observations = Observations::of_tokens(labels, &tokens);
        observations.sample_confidence = confidences;
        observations.sample_weight = sample_weights;
        let losses = weights.iter().zip(labels.log_probabilities).map(|(w, log_p)| -w * log_p).collect();
        Weighted { weights, divergence_weight: 0.0, losses, observations }
    }

    fn denominator(&self, totals: &StepTotals) -> f64 {
        let is_normalized = self.normalize_weights && totals.weight > 0.0;
        if is_normalized { totals.weight } else { totals.samples.max(1) as f64 }
    }
}
