//! Supervised fine-tuning: `Σ m·ce / Σ m` over all tokens of the step.

use super::token_mean::{OfToken, Token, TokenLoss};

pub(super) struct Sft;

impl OfToken for Sft {
    fn of(&self, token: Token) -> TokenLoss {
        TokenLoss::weighted(token, 1.0)
    }
}
