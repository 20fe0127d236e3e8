//! What is done when a run goes wrong: steps without a finite gradient are skipped, and a model that gets worse is measured
//! beside the base alone.

use super::{Checkpoint, Pack, Trainer, checkpoint_folder, collate, sort};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::train::backward::Loss;
use crate::train::health::{ENOUGH_TOKENS, FEW_TOKENS};
use crate::train::record::{Line, Record};
use crate::train::{Event, Observer};
use crate::train::{Health, Verdict};
use std::path::PathBuf;

impl Trainer<'_> {
    /// Looks at a step's cross-entropy and token accuracy; where they are bad beside those of the first step, compares the
    /// adapter with the base alone on the step's rows.
    pub(super) fn watch(
        &mut self,
        numbers: (f64, f64),
        packs: &[Pack],
        record: &mut Record,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let step = self.state.step;
        let Some(first) = self.state.first_step else {
            // The first step's adapter has learnt nothing yet, unless it is another run's.
            let base = if self.settings.begins_with_adapter { self.base_numbers(packs, observer)? } else { numbers };
            self.state.first_step = Some(base);
            return Ok(());
        };
        if !self.state.watch.is_due(step, numbers, first) {
            return Ok(());
        }
        let more = if learnt(packs) < FEW_TOKENS { self.rows_to_compare(FEW_TOKENS)? } else { Vec::new() };
        let health = self.compare(if more.is_empty() { packs } else { &more }, observer)?;
        self.report(health, record, observer)
    }

    /// The rows of the last step, and as many more as it takes for so many learnt tokens: those of the steps before, the last
    /// first, then those that would come next; no more than an epoch has.
    fn rows_to_compare(&mut self, tokens: usize) -> Result<Vec<Pack>> {
        let mut packs = self.packs(self.state.step)?;
        let first = packs.first().map_or(0, |pack| pack.place as usize);
        let behind = first + packs.len();
        let others = self.plan.packs_per_epoch().saturating_sub(packs.len());
        let mut found = learnt(&packs);
        for place in (0..first).rev().chain(behind..).take(others) {
            if found >= tokens {
                break;
            }
            let pack = self.pack(place)?;
            found += pack.learnt();
            packs.push(pack);
        }
        sort(&mut packs);
        Ok(packs)
    }

    /// What the adapter that a run ends with does to its rows: those of the last steps, and those of the validation.
    pub(super) fn final_health(
        &mut self,
        adapter_step: usize,
        record: &mut Record,
        observer: &mut dyn Observer,
    ) -> Result<Option<Health>> {
        if adapter_step == 0 {
            return Ok(None);
        }
        // The adapter is saved: a run that is asked to stop is judged by the rows of its last step, which takes no longer than it.
        let enough = if observer.stop_requested() { 0 } else { ENOUGH_TOKENS };
        let packs = self.rows_to_compare(enough)?;
        let of_rows = self.compare(&packs, observer)?;
        let known = [&self.state.best_validation, &self.state.last_validation];
        let validation = known.into_iter().flatten().find(|validation| validation.step == adapter_step);
        let of_validation = validation.and_then(|validation| self.beside_the_first(validation, adapter_step));
        let worst = of_validation.filter(|of| of.verdict > of_rows.verdict).unwrap_or(of_rows);
        let health = Health { step: adapter_step, ..worst };
        // A sound adapter of an earlier step does not mean that training has recovered.
        if adapter_step == self.state.step || health.verdict != Verdict::Healthy {
            self.report(health, record, observer)?;
        }
        Ok((health.supervised_tokens > 0).then_some(health))
    }

    pub(super) fn report(&mut self, health: Health, record: &mut Record, observer: &mut dyn Observer) -> Result<()> {
        if health.supervised_tokens > 0 && self.state.watch.is_news(health.verdict) {
            record.write(&Line::Health(health))?;
            observer.event(&Event::Health(health));
        }
        Ok(())
    }

    /// The adapter beside the base alone, on some rows.
    fn compare(&mut self, packs: &[Pack], observer: &mut dyn Observer) -> Result<Health> {
        let (adapter, base) = (self.measure(packs, true, observer)?, self.measure(packs, false, observer)?);
        Ok(Health::new(self.state.step, &adapter, &base, self.engine.lm.dimensions.vocabulary))
    }

    /// Cross-entropy and token accuracy of the base alone.
    fn base_numbers(&mut self, packs: &[Pack], observer: &mut dyn Observer) -> Result<(f64, f64)> {
        let loss = self.measure(packs, false, observer)?;
        let supervised = loss.supervised.max(1) as f64;
        Ok((loss.cross_entropy / supervised, loss.top1 as f64 / supervised))
    }

    fn measure(&mut self, packs: &[Pack], adapter: bool, observer: &mut dyn Observer) -> Result<Loss> {
        loop {
            let mut loss = Loss::default();
            let measured = micro_batches(packs, self.micro_batch_size, self.engine.capacity).try_for_each(|packs| {
                let batch = collate(packs, self.settings.pad_id);
                let of = if adapter { self.engine.evaluate(&batch) } else { self.engine.evaluate_base(&batch) };
                of.map(|of| loss.join(of))
            });
            match measured {
                Ok(()) => return Ok(loss),
                Err(error) => self.make_room(error, packs.iter().map(Pack::tokens).max(), observer)?,
            }
        }
    }

    pub(super) fn skip(&mut self, loss: &Loss, record: &mut Record, observer: &mut dyn Observer) -> Result<()> {
        let step = self.state.step;
        self.state.skipped += 1;
        self.state.skipped_in_a_row += 1;
        let reason = if loss.sum.is_finite() { "gradient" } else { "loss" };
        record.write(&Line::Skipped { step, reason: format!("the {reason} is not finite") })?;
        observer.event(&Event::Skipped { step, skipped: self.state.skipped });
        if self.state.skipped_in_a_row < self.config.max_skipped_steps {
            return Ok(());
        }
        Err(self.diverged(&format!(
            "step {step}: the {reason} is not finite, as in the {} steps before",
            self.state.skipped_in_a_row - 1
        )))
    }

    /// A run that skipped more steps than it took has learnt nothing to speak of, and must not pass for a good one.
    pub(super) fn check_skipped(&self) -> Result<()> {
        if 2 * self.state.skipped <= self.total_steps {
            return Ok(());
        }
        let (skipped, total) = (self.state.skipped, self.total_steps);
        Err(self.diverged(&format!("{skipped} of {total} steps were skipped, since loss or gradient was not finite")))
    }

    pub(super) fn diverged(&self, what: &str) -> Error {
        let place = self.last_good_checkpoint().map_or_else(
            || "no checkpoint computes a finite loss".to_owned(),
            |folder| format!("the last good checkpoint is {}", folder.display()),
        );
        Error::Diverged {
            message: format!("{what}; {place}"),
            help: Some("lower training.learning_rate, or set training.max_grad_norm and training.warmup_ratio".into()),
        }
    }

    /// The last checkpoint whose adapter gives a finite loss on a row. An update may have ruined the parameters though its own
    /// gradient was finite, so that being saved is not a proof. Leaves the parameters changed.
    fn last_good_checkpoint(&self) -> Option<PathBuf> {
        let row = Batch::collate(&[&self.dataset.train.get(0).ok()?], self.settings.pad_id);
        Checkpoint::steps(self.out).into_iter().rev().map(|step| checkpoint_folder(self.out, step)).find(|folder| {
            let assigned = Checkpoint::load(folder).and_then(|saved| self.engine.params.assign(&saved.adapter, folder));
            assigned.and_then(|()| self.engine.evaluate(&row)).is_ok_and(|loss| loss.cross_entropy.is_finite())
        })
    }
}

/// Packs of several steps, `most` at a time, and no more tokens than a step's micro-batch has: buffers have room for those.
fn micro_batches(packs: &[Pack], most: usize, capacity: usize) -> impl Iterator<Item = &[Pack]> {
    let mut rest = packs;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = rest.iter().take(most).take_while(|pack| {
            tokens += pack.tokens();
            tokens <= capacity
        });
        let count = fits.count().max(1).min(rest.len());
        let (now, later) = rest.split_at(count);
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

fn learnt(packs: &[Pack]) -> usize {
    packs.iter().map(Pack::learnt).sum()
}
