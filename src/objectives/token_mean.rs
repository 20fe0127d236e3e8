//! Objectives whose loss of a token depends on that token alone: `Σ m·loss / Σ m` over all tokens of the step.

use super::{LabelLogProbs, Needs, Objective, Observations, StepTotals, Weighted};

/// What is known of a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    /// `log p(target)`, in nats.
    pub log_p: f64,
    /// The entropy of the largest logits, where it is asked for; else 0.
    pub entropy: f64,
    /// `KL(base ‖ model)`, where it is asked for; else 0.
    pub divergence: f64,
}

/// A token's loss.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenLoss {
    /// The factor of `∇ce`.
    pub weight: f64,
    /// The loss itself.
    pub loss: f64,
}

impl TokenLoss {
    /// `weight·ce` under a weight without gradient.
    pub fn weighted(token: Token, weight: f64) -> Self {
        Self { weight, loss: -weight * token.log_p }
    }
}

/// A loss of single tokens.
pub(super) trait OfToken: Send + Sync {
    fn of(&self, token: Token) -> TokenLoss;

    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// The factor of `∇KL(base ‖ model)`.
    fn divergence_weight(&self) -> f64 {
        0.0
    }
}

/// The mean of a token's loss over the supervised tokens of a step.
pub(super) struct TokenMean<T>(pub T);

impl<T: OfToken> Objective for TokenMean<T> {
    fn weigh(&self, labels: &LabelLogProbs<'_>) -> Weighted {
        let at = |of: &[f64], i: usize| of.get(i).copied().unwrap_or(0.0);
        let tokens = labels.log_probabilities.iter().enumerate().map(|(i, &log_p)| {
            self.0.of(Token { log_p, entropy: at(labels.entropies, i), divergence: at(labels.divergences, i) })
        });
        let (weights, losses): (Vec<f64>, Vec<f64>) = tokens.map(|token| (token.weight, token.loss)).unzip();
        let observations = Observations::of_tokens(labels, &weights);
        Weighted { weights, divergence_weight: self.0.divergence_weight(), losses, observations }
    }

    fn denominator(&self, totals: &StepTotals) -> f64 {
        totals.supervised_tokens.max(1) as f64
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}
