//! Entropy-adaptive fine-tuning (arXiv 2601.02151): `Σ m·sg((H/3)^α)·ce / Σ m` over all tokens of the step.
//!
//! `H` is the entropy of the `k` largest logits, renormalized: near 0 where the model is sure, `ln k` where it is not. So a token that
//! the model is sure of and the data contradicts counts little. 3 is about `ln 20`; LLaMA-Factory divides by it too, Axolotl does not,
//! so that its loss is `3^α` times this one.

use super::token_mean::{OfToken, Token, TokenLoss};
use super::{Needs, ObjectiveConfig};

/// What the entropy is divided by.
const SCALE: f64 = 3.0;

pub(super) struct Eaft {
    alpha: f64,
    k: usize,
}

impl Eaft {
    pub(super) fn new(config: &ObjectiveConfig) -> Self {
        Self { alpha: config.alpha(), k: config.k() }
    }
}

impl OfToken for Eaft {
    fn of(&self, token: Token) -> TokenLoss {
        TokenLoss::weighted(token, (token.entropy / SCALE).powf(self.alpha))
    }

    fn needs(&self) -> Needs {
        Needs { top_k: Some(self.k), ..Needs::default() }
    }
}
