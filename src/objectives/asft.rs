//! Anchored supervised fine-tuning (arXiv 2509.23753): `Σ m·(sg(p)·ce + α·KL(θ0 ‖ θ)) / Σ m` over all tokens of the step, with `θ0` the
//! frozen base. The authors' code and LLaMA-Factory's divide within each micro-batch; here a step is divided once.

use super::token_mean::{OfToken, Token, TokenLoss};
use super::{Needs, ObjectiveConfig};

pub(super) struct Asft {
    alpha: f64,
}

impl Asft {
    pub(super) fn new(config: &ObjectiveConfig) -> Self {
        Self { alpha: config.alpha() }
    }
}

impl OfToken for Asft {
    fn of(&self, token: Token) -> TokenLoss {
        let of_target = TokenLoss::weighted(token, token.log_p.exp());
        TokenLoss { loss: of_target.loss + self.alpha * token.divergence, ..of_target }
    }

    fn needs(&self) -> Needs {
        Needs { reference: true, ..Needs::default() }
    }

    fn divergence_weight(&self) -> f64 {
        self.alpha
    }
}
