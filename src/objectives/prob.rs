//! Losses between cross-entropy and the negative probability (arXiv 2510.00526): `Σ m·(1 - p^q)/q / Σ m`.
//!
//! With `q` towards 0 it is cross-entropy; with 1 it is `1 - p`, whose gradient is DFT's. The gradient is `p^q·∇ce`.

use super::ObjectiveConfig;
use super::token_mean::{OfToken, Token, TokenLoss};

pub(super) struct Prob {
    q: f64,
}

impl Prob {
    pub(super) fn new(config: &ObjectiveConfig) -> Self {
        Self { q: config.q() }
    }
}

impl OfToken for Prob {
    fn of(&self, token: Token) -> TokenLoss {
        let power = self.q * token.log_p;
        TokenLoss { weight: power.exp(), loss: -power.exp_m1() / self.q }
    }
}
