//! Validations: what is measured, which is the best, and early stopping.

use super::{Measured, Trainer};
use crate::data::{Batch, Rows};
use crate::error::{Error, Result};
use crate::train::backward::Loss;
use crate::train::metrics::{TaskScore, Validation};
use crate::train::record::{Line, Record};
use crate::train::{Event, Health, Observer, Verdict};
use std::time::Instant;

impl Trainer<'_> {
    /// Measures the validation rows; whether they are at their best since training began. A loss that is not finite ends the
    /// run: no parameters come back from there.
    pub(super) fn validate(&mut self, record: &mut Record, observer: &mut dyn Observer) -> Result<Measured> {
        if self.dataset.validation.is_empty() {
            return Ok(Measured::Other);
        }
        let start = Instant::now();
        if let Some(known) = self.settings.first_validation.filter(|known| known.step == self.state.step) {
            return self.take(known.clone(), record, observer);
        }
        let validation: &Rows = &self.dataset.validation;
        let mut rows: Vec<usize> = (0..validation.len()).collect();
        rows.sort_by_key(|&row| validation.entry(row).tokens);
        let loss = loop {
            match self.evaluate(&rows, observer) {
                Ok(Some(loss)) => break loss,
                Ok(None) => return Ok(Measured::BrokenOff),
                Err(error) => {
                    let tokens = rows.iter().map(|&row| validation.entry(row).tokens as usize).max();
                    self.make_room(error, tokens, observer)?;
                }
            }
        };
        self.check_finite(&loss)?;
        let tasks = match self.settings.tasks.map(|tasks| tasks.scores(observer)) {
            None => Vec::new(),
            Some(scores) => match scores? {
                Some(scores) => scores,
                None => return Ok(Measured::BrokenOff),
            },
        };
        let validation = self.validation(&loss, rows.len(), tasks);
        self.clock.validation(start.elapsed().as_secs_f64());
        self.take(validation, record, observer)
    }

    /// Takes what was measured.
    fn take(&mut self, validation: Validation, record: &mut Record, observer: &mut dyn Observer) -> Result<Measured> {
        record.write(&Line::Validation(validation.clone()))?;
        observer.event(&Event::Validation(validation.clone()));
        let health = self.beside_the_first(&validation, validation.step);
        let measured = if validation.best { Measured::Best } else { Measured::Other };
        self.note(validation);
        if let Some(health) = health.filter(|health| health.verdict != Verdict::Healthy) {
            self.report(health, record, observer)?;
        }
        Ok(measured)
    }

    /// A validation beside the one before training, which is of the base alone: the untrained adapter changes nothing. None where
    /// the run began with another run's adapter.
    pub(super) fn beside_the_first(&self, validation: &Validation, step: usize) -> Option<Health> {
        let first = self.state.first_validation.as_ref().filter(|_| !self.settings.begins_with_adapter && step > 0)?;
        let numbers = |of: &Validation| (of.cross_entropy, of.token_accuracy);
        let vocabulary = self.engine.lm.dimensions.vocabulary;
        Some(Health::of(step, numbers(validation), numbers(first), validation.supervised_tokens, vocabulary))
    }

    fn check_finite(&self, loss: &Loss) -> Result<()> {
        let mean = loss.cross_entropy / loss.supervised.max(1) as f64;
        if mean.is_finite() {
            return Ok(());
        }
        if self.state.updates == 0 {
            return Err(Error::Diverged {
                message: format!("the validation loss is {mean} before anything was learnt"),
                help: Some("base and adapter do not compute: check the base's files, and lora.lora_alpha".into()),
            });
        }
        Err(self.diverged(&format!("step {}: the validation loss is {mean}", self.state.step)))
    }

    fn validation(&self, loss: &Loss, rows: usize, tasks: Vec<TaskScore>) -> Validation {
        let supervised = loss.supervised.max(1) as f64;
        let step = self.state.step;
        let mut validation = Validation {
            step,
            cross_entropy: loss.cross_entropy / supervised,
            token_accuracy: loss.top1 as f64 / supervised,
            token_probability: loss.probability / supervised,
            likely_tokens: loss.likely as f64 / supervised,
            objective_loss: loss.sum / loss.denominator(self.engine.objective, rows),
            supervised_tokens: loss.supervised,
            best: false,
            tasks,
        };
        let best = self.state.best_validation.as_ref();
        validation.best = step > 0 && validation.is_best(best, self.settings.metric);
        validation
    }

    /// The loss of validation rows, in micro-batches; none where the run was asked to stop before the last of them.
    fn evaluate(&self, rows: &[usize], observer: &mut dyn Observer) -> Result<Option<Loss>> {
        let (mut loss, total) = (Loss::default(), rows.len());
        for (i, rows) in rows.chunks(self.micro_batch_size).enumerate() {
            observer.event(&Event::Validating { done: i * self.micro_batch_size, total });
            if observer.stop_requested() {
                return Ok(None);
            }
            let samples = rows.iter().map(|&row| self.dataset.validation.get(row)).collect::<Result<Vec<_>>>()?;
            loss.join(
                self.engine.evaluate(&Batch::collate(&samples.iter().collect::<Vec<_>>(), self.settings.pad_id))?,
            );
        }
        Ok(Some(loss))
    }

    fn note(&mut self, validation: Validation) {
        if self.state.first_validation.is_none() {
            self.state.first_validation = Some(validation.clone());
        }
        if validation.best {
            self.state.best_validation = Some(validation.clone());
            (self.state.stale_validations, self.state.stopped_early) = (0, false);
        } else if validation.step > 0 {
            self.state.stale_validations += 1;
            let patience = self.config.early_stopping_patience;
            self.state.stopped_early = patience > 0 && self.state.stale_validations >= patience;
        }
        self.state.last_validation = Some(validation);
    }
}
