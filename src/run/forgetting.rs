//! What was forgotten: a general text under the base and under the adapter.

use super::eval::bench::score;
use super::prepare::Prepared;
use crate::error::Result;
use crate::eval::{Tokens, general_text};
use crate::models::{Continuations, Model};
use crate::ops::Pool;
use crate::recipe::Recipe;
use crate::train::{Event, Observer};
use serde::{Deserialize, Serialize};

/// The perplexity of a general text, `exp` of the mean cross-entropy of its tokens: the lower, the better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Forgetting {
    /// Its tokens.
    pub tokens: usize,
    /// Under the base alone.
    pub base_perplexity: f64,
    /// With the adapter.
    pub perplexity: f64,
}

impl Forgetting {
    /// By which share the perplexity rose.
    pub fn rise(&self) -> f64 {
        self.perplexity / self.base_perplexity - 1.0
    }

    /// It in numbers: `perplexity 14.20 → 15.05 (+6.0%)`.
    pub fn text(&self) -> String {
        let Self { base_perplexity, perplexity, .. } = self;
        format!("perplexity {base_perplexity:.2} → {perplexity:.2} ({:+.1}%)", 100.0 * self.rise())
    }
}

impl Prepared {
    /// The general text under the base and under the adapter, where the recipe wants it. That it cannot be measured does not spoil a
    /// run that is done.
    pub(super) fn forgetting(&self, recipe: &Recipe, model: &Model, observer: &mut dyn Observer) -> Option<Forgetting> {
        if !recipe.evaluation.general_text {
            return None;
        }
        observer.event(&Event::Phase("measuring a general text".into()));
        self.measure(model).unwrap_or_else(|error| {
            observer.event(&Event::Note(format!("no general text could be measured: {error}")));
            None
        })
    }

    fn measure(&self, model: &Model) -> Result<Option<Forgetting>> {
        let special = self.base.special_tokens();
        let first = special.bos.as_ref().or(special.eos.as_ref());
        // Without either nothing can stand before the text's first token.
        let Some(&(_, prefix)) = first else { return Ok(None) };
        // Half as many at once as in a step, since each is predicted: that fits into what the run was estimated to take.
        let most = model.lm.dimensions.max_positions.min(self.micro_batches.most_tokens / 2).max(1);
        let tokens = Tokens { encoder: &self.encoder, prefix, max_length: most };
        let items = general_text(&tokens)?;
        let count: usize = items.iter().flat_map(|item| &item.continuations).map(Vec::len).sum();
        if count == 0 {
            return Ok(None);
        }
        let pool = Pool::default();
        let items: Vec<&Continuations> = items.iter().collect();
        let perplexity = |adapter: bool| -> Result<f64> {
            let runner = model.lm.runner(&self.device, adapter);
            let scores = score(&model.lm, runner, self.compute, (&pool, most), &items)?;
            let sum: f64 = scores.iter().flatten().map(|score| score.log_probability).sum();
            Ok((-sum / count as f64).exp())
        };
        let (base_perplexity, perplexity) = (perplexity(false)?, perplexity(true)?);
        Ok(Some(Forgetting { tokens: count, base_perplexity, perplexity }))
    }
}
