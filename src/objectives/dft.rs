//! Dynamic fine-tuning (arXiv 2508.05629): `Σ m·sg(p)·ce / Σ m` over all tokens of the step.

use super::token_mean::{OfToken, Token, TokenLoss};

pub(super) struct Dft;

impl OfToken for Dft {
    fn of(&self, token: Token) -> TokenLoss {
        TokenLoss::weighted(token, token.log_p.exp())
    }
}
