//! What the base knows of the held-out rows, and which objective that favours.

use super::prepare::Prepared;
use super::timing::TimeEstimate;
use crate::data::Batch;
use crate::error::Result;
use crate::models::Model;
use crate::objectives::{Prior, RowSample, build};
use crate::ops::Pool;
use crate::recipe::Recipe;
use crate::train::backward::Loss;
use crate::train::metrics::Validation;
use crate::train::{Event, Observer};

/// Tokens of the rows that `check` measures, about.
const MEASURED_TOKENS: usize = 2048;
/// The most seconds that it may take, about.
const PATIENCE: f64 = 20.0;

impl Prepared {
    /// What the base knows of some validation rows, as many as the time allows; `None` where there are none, or where the run begins with an adapter.
    ///
    /// # Errors
    /// When the rows cannot be read or the device refuses.
    pub(super) fn prior(&self, recipe: &Recipe, model: &Model, time: Option<&TimeEstimate>) -> Result<Option<Prior>> {
        let validation = &self.dataset.validation;
        if validation.is_empty() || recipe.lora.init_from.is_some() {
            return Ok(None);
        }
        let (objective, pool) = (build(&recipe.objective), Pool::default());
        let engine = self.engine(recipe, model, &*objective, &pool);
        // A pass without a backward pass is faster than a step.
        let affordable = time.map_or(MEASURED_TOKENS, |time| (PATIENCE * time.tokens_per_second) as usize);
        // Evenly spaced rows, with about that number of tokens.
        let all: usize = validation.entries().map(|entry| entry.tokens as usize).sum();
        let step = all.div_ceil(MEASURED_TOKENS.min(affordable).max(1));
        let (mut loss, mut rows) = (Loss::default(), 0);
        for row in (0..validation.len()).step_by(step) {
            rows += 1;
            let sample = validation.get(row)?;
            loss.join(engine.evaluate(&Batch::collate(&[&sample], self.pad_id()))?);
        }
        let supervised = loss.supervised as f64;
        let prior = Prior {
            token_probability: loss.probability / supervised,
            likely_tokens: loss.likely as f64 / supervised,
            cross_entropy: loss.cross_entropy / supervised,
            sample: (rows < validation.len()).then_some(RowSample { rows, of: validation.len() }),
        };
        Ok((loss.supervised > 0).then_some(prior))
    }
}

impl From<&Validation> for Prior {
    fn from(validation: &Validation) -> Self {
        Self {
            token_probability: validation.token_probability,
            likely_tokens: validation.likely_tokens,
            cross_entropy: validation.cross_entropy,
            sample: None,
        }
    }
}

/// Says behind the validation before training which objective it favours.
pub(super) struct Advising<'a> {
    pub observer: &'a mut dyn Observer,
    /// Whether that validation is of the base alone.
    pub of_base: bool,
}

impl Observer for Advising<'_> {
    fn event(&mut self, event: &Event) {
        self.observer.event(event);
        if let Event::Validation(validation) = event
            && validation.step == 0
            && self.of_base
        {
            let prior = Prior::from(validation);
            self.observer.event(&Event::Note(prior.advice()));
        }
    }

    fn stop_requested(&self) -> bool {
        self.observer.stop_requested()
    }
}
