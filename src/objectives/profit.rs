//! `ProFiT` (arXiv 2601.09195): `Σ m·[p ≥ τ]·ce / Σ m`. Tokens below the threshold count in the division, not in the sum.

use super::ObjectiveConfig;
use super::token_mean::{OfToken, Token, TokenLoss};

pub(super) struct Profit {
    threshold: f64,
}

impl Profit {
    pub(super) fn new(config: &ObjectiveConfig) -> Self {
        Self { threshold: config.threshold() }
    }
}

impl OfToken for Profit {
    fn of(&self, token: Token) -> TokenLoss {
        // Not a product with 0: a log-probability of -∞ would give a NaN.
        if token.log_p.exp() >= self.threshold {
            TokenLoss::weighted(token, 1.0)
        } else {
            TokenLoss { weight: 0.0, loss: 0.0 }
        }
    }
}
