//! How long a run will take: measured on a few of its rows, before it begins.

use super::Prepared;
use crate::data::{Batch, Sequence};
use crate::error::Result;
use crate::models::Model;
use crate::objectives;
use crate::ops::Pool;
use crate::recipe::Recipe;
use crate::train::backward::Engine;
use serde::Serialize;
use std::time::Instant;

/// Tokens of the first measurement, and the most of the second.
const FEW: usize = 32;
const MANY: usize = 512;
/// Seconds that the second measurement may take.
const PATIENCE: f64 = 10.0;

/// An estimate of a run's time, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimeEstimate {
    /// Tokens a second, in steps.
    pub tokens_per_second: f64,
    /// A step, in the mean.
    pub step_seconds: f64,
    /// Validations: one before training, those that are due, and one at the end.
    pub validations: usize,
    /// Each of them.
    pub validation_seconds: f64,
    /// All of it, the sample at the end included.
    pub total_seconds: f64,
}

/// Seconds of a pass over so many tokens: `fixed + each·tokens`. What is fixed is above all the dequantization of the weights.
#[derive(Debug, Clone, Copy)]
struct Line {
    fixed: f64,
    each: f64,
}

impl Line {
    fn through(few: (usize, f64), many: (usize, f64)) -> Self {
        if many.0 <= few.0 {
            return Self { fixed: 0.0, each: few.1 / few.0.max(1) as f64 };
        }
        // Noise may turn a small slope round.
        let each = ((many.1 - few.1) / (many.0 - few.0) as f64).max(0.0);
        Self { fixed: (many.1 - each * many.0 as f64).max(0.0), each }
    }

    fn seconds(self, tokens: f64) -> f64 {
        self.fixed + self.each * tokens
    }
}

impl Prepared {
    /// Times passes over some rows, with gradients and without, and estimates the time of the run from them.
    pub(super) fn time(&self, recipe: &Recipe, model: &Model, steps: usize) -> Result<Option<TimeEstimate>> {
        let (objective, pool) = (objectives::build(&recipe.objective), Pool::default());
        let engine = Engine { capacity: 0, ..self.engine(recipe, model, &*objective, &pool) };
        let packs = self.plan.packs_per_epoch().max(1);
        let rows_at_once = recipe.training.micro_batch_size as f64;
        let tokens = self.dataset.report.tokens as f64 / packs as f64 * rows_at_once;
        let Some(few) = self.some_tokens(FEW)? else { return Ok(None) };
        let step = |batch: &Batch| engine.sums(std::slice::from_ref(batch), |_| None).map(drop);
        // The first pass fetches its memory.
        step(&few)?;
        let few_step = timed(|| step(&few))?;
        let affordable = (FEW as f64 * PATIENCE / few_step) as usize;
        let Some(many) = self.some_tokens(MANY.min(tokens as usize).min(affordable))? else { return Ok(None) };
        step(&many)?;
        let many_step = timed(|| step(&many))?;
        let (few_pass, many_pass) = (timed(|| engine.evaluate(&few))?, timed(|| engine.evaluate(&many))?);
        let (few, many) = (few.tokens(), many.tokens());
        let step = Line::through((few, few_step), (many, many_step));
        let pass = Line::through((few, few_pass), (many, many_pass));

        let accumulation = recipe.training.gradient_accumulation_steps as f64;
        let step_seconds = accumulation * step.seconds(tokens);
        let held_out: u64 = self.dataset.validation.entries().map(|entry| u64::from(entry.tokens)).sum();
        let batches = (self.dataset.validation.len() as f64 / rows_at_once).ceil();
        let validation_seconds = pass.fixed * batches + pass.each * held_out as f64;
        let every = recipe.training.eval_steps;
        let due = if every == 0 { 1 } else { steps.div_ceil(every) };
        let validations = if held_out == 0 { 0 } else { 1 + if steps == 0 { 0 } else { due } };
        let tokens_per_second = accumulation * tokens / step_seconds;
        let total_seconds = steps as f64 * step_seconds
            + validations as f64 * validation_seconds
            + self.tokens_after() / tokens_per_second;
        Ok(Some(TimeEstimate { tokens_per_second, step_seconds, validations, validation_seconds, total_seconds }))
    }

    /// Rows of the data, cut to so many tokens in all; `None` where nothing in them is learnt.
    fn some_tokens(&self, most: usize) -> Result<Option<Batch>> {
        let (mut rows, mut tokens) = (Vec::new(), 0);
        for row in 0..self.dataset.train.len() {
            let Sequence { mut input_ids, mut labels, weight } = self.dataset.train.get(row)?;
            // Its end: that is where something is learnt.
            let cut = input_ids.len().saturating_sub(most.saturating_sub(tokens).max(2));
            tokens += input_ids.len() - cut;
            rows.push(Sequence { input_ids: input_ids.split_off(cut), labels: labels.split_off(cut), weight });
            if tokens >= most {
                break;
            }
        }
        let batch = Batch::collate(&rows.iter().collect::<Vec<_>>(), self.pad_id());
        Ok((!batch.supervised_targets().is_empty()).then_some(batch))
    }
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_fixed_is_told_from_what_each_token_takes() {
        let line = Line::through((32, 1.32), (512, 6.12));
        assert!((line.fixed - 1.0).abs() < 1e-9 && (line.each - 0.01).abs() < 1e-9, "{line:?}");
        assert!((line.seconds(2048.0) - 21.48).abs() < 1e-9);
        let flat = Line::through((32, 1.0), (512, 0.9));
        assert_eq!((flat.fixed, flat.each), (0.9, 0.0));
        assert_eq!(Line::through((32, 16.0), (30, 15.0)).seconds(64.0), 32.0);
    }
}
