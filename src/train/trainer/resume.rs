//! How a run goes on: from its last checkpoint, where what was done stays as it was.

use super::{Checkpoint, METRICS, Trainer, TrainerState, checkpoint_folder, total_rows};
use crate::error::{Error, Result};
use crate::train::metrics::Validation;
use crate::train::record::validations;
use crate::train::{MetricForBest, Schedule, TrainingConfig};
use std::path::Path;

impl Trainer<'_> {
    /// Goes on where the last checkpoint stands; without one, begins at the beginning.
    ///
    /// # Errors
    /// When the checkpoint is damaged, is of another recipe, base or data, or when the schedule of the recipe is not the one
    /// that the steps so far were taken by.
    pub fn resume(&mut self) -> Result<()> {
        let Some(&step) = Checkpoint::steps(self.out).last() else { return Ok(()) };
        let folder = checkpoint_folder(self.out, step);
        let checkpoint = Checkpoint::load(&folder)?;
        let (saved, now) = (&checkpoint.state.identity, &self.state.identity);
        for (what, saved, now) in [
            ("the recipe", &saved.recipe, &now.recipe),
            ("the base model's files", &saved.base, &now.base),
            ("the tokenized data", &saved.data, &now.data),
            ("the kind of device or of its arithmetic", &saved.device, &now.device),
        ] {
            if saved != now {
                return Err(Error::file(&folder, format!("{what} changed since this checkpoint was written"))
                    .with_help(
                        "put back what changed (a Hub id can be pinned: `org/name@commit`), or train into another \
                         `output_dir`",
                    ));
            }
        }
        self.check_schedule(checkpoint.state.schedule, (step, checkpoint.state.rows), &folder)?;
        self.check_tasks(&checkpoint.state, &folder)?;
        self.engine.params.assign(&checkpoint.adapter, &folder)?;
        self.optimizer.restore(&checkpoint.optimizer, checkpoint.state.updates, &folder)?;
        let tasks = self.state.tasks.take();
        self.state = checkpoint.state;
        self.state.tasks = tasks;
        self.state.schedule = Some(self.schedule);
        // The recipe may judge by another number by now, and have another patience.
        self.judge_again(&folder)?;
        let patience = self.config.early_stopping_patience;
        self.state.stopped_early = patience > 0 && self.state.stale_validations >= patience;
        self.prune();
        Ok(())
    }

    /// Scores by which the best adapter is chosen must be of the same questions.
    fn check_tasks(&self, saved: &TrainerState, folder: &Path) -> Result<()> {
        let is_other = saved.tasks.is_some() && saved.tasks != self.state.tasks;
        if !(is_other && matches!(self.settings.metric, MetricForBest::Task(_))) {
            return Ok(());
        }
        let message = format!(
            "the tasks or their documents changed since this checkpoint was written: earlier scores of {} do not compare",
            self.settings.metric.name()
        );
        Err(Error::file(folder, message).with_help(
            "put `evaluation` and the tasks' files back as they were, or choose by another `training.metric_for_best_model`; or begin again \
             with `--overwrite`",
        ))
    }

    /// Under another `metric_for_best_model` than before, finds the best of the recorded validations by that one.
    fn judge_again(&mut self, folder: &Path) -> Result<()> {
        let metric = self.settings.metric;
        let before = self.state.metric.replace(metric.clone());
        let Some(before) = before.filter(|before| before != metric) else { return Ok(()) };
        let Some(last) = &self.state.last_validation else { return Ok(()) };
        let key = "training.metric_for_best_model";
        // One that is still to come may have been written by a process that was killed: it is measured again.
        let last_step = self.state.step - usize::from(self.state.validation_is_to_come && self.state.step > 0);
        let recorded = validations(&self.out.join(METRICS), last_step)?;
        let best_before = self.state.best_validation.as_ref();
        let is_recorded = |of: &Validation| of.step == 0 || recorded.iter().any(|it| it.step == of.step);
        let known = self.state.first_validation.iter().chain([last]).chain(&recorded);
        if !best_before.into_iter().chain([last]).all(is_recorded) || !known.into_iter().all(|of| metric.is_in(of)) {
            let message = format!(
                "{METRICS} lacks validations of this run, or their tasks: which is best by {} is not known",
                metric.name()
            );
            return Err(Error::file(folder, message)
                .with_help(format!("put `{key}` back: it was {}; or begin again with `--overwrite`", before.key())));
        }
        (self.state.best_validation, self.state.stale_validations) = (None, 0);
        for mut validation in recorded {
            let best = self.state.best_validation.as_ref();
            validation.best = validation.is_best(best, metric);
            if validation.best {
                (self.state.best_validation, self.state.stale_validations) = (Some(validation), 0);
            } else {
                self.state.stale_validations += 1;
            }
        }
        let step = self.state.best_validation.as_ref().map_or(self.state.step, |best| best.step);
        if self.config.load_best_model_at_end && !checkpoint_folder(self.out, step).is_dir() {
            let message = format!(
                "by {} the validation after step {step} is the best so far, and the checkpoint of that step was not kept",
                metric.name()
            );
            return Err(Error::file(folder, message).with_help(format!(
                "put `{key}` back: it was {}; or set `training.load_best_model_at_end: false`, which ends with the last adapter",
                before.key()
            )));
        }
        Ok(())
    }

    /// A run may become longer or shorter where that changes no step that is done: each had its learning rate.
    fn check_schedule(&self, saved: Option<Schedule>, (step, rows): (usize, usize), folder: &Path) -> Result<()> {
        if step > self.total_steps {
            return Err(Error::file(
                folder,
                format!("is of step {step}, and the recipe ends after {}", self.total_steps),
            )
            .with_help("set `training.max_steps` to that step or a later one"));
        }
        let per_step = self.config.micro_batch_size * self.config.gradient_accumulation_steps;
        let taken = (step * per_step).min(total_rows(self.config, self.plan.packs_per_epoch()));
        if rows != taken {
            return Err(Error::file(
                folder,
                format!("the steps so far took {rows} rows, and under this recipe they would have taken {taken}"),
            )
            .with_help(
                "an earlier end cut its last step short; put `training.epochs` back, or remove this checkpoint to go on from the \
                 one before",
            ));
        }
        let now = self.schedule;
        let Some(saved) = saved else { return Ok(()) };
        match (1..=step).find(|&step| saved.rate(step) != now.rate(step)) {
            None => Ok(()),
            Some(other) => Err(Error::file(
                folder,
                format!(
                    "the recipe gives step {other}, which is done, another learning rate: {:.3e}, not {:.3e}",
                    now.rate(other),
                    saved.rate(other)
                ),
            )
            .with_help(format!(
                "{} of {} steps are done. {}. To train on under another schedule, begin a run with `lora.init_from: {}`",
                step,
                saved.total_steps(),
                self.same_rates(saved, step),
                folder.display()
            ))),
        }
    }

    /// What gives the steps that are done the rates that they had.
    fn same_rates(&self, saved: Schedule, step: usize) -> String {
        let warmup = saved.warmup_steps();
        let config = TrainingConfig { warmup_steps: Some(warmup), ..self.config.clone() };
        let now = Schedule::new(&config, self.total_steps);
        if (1..=step).all(|step| saved.rate(step) == now.rate(step)) {
            let why = match self.config.warmup_steps {
                None => {
                    "`warmup_ratio` is a share of all steps, and a run of another length has a longer or shorter warmup"
                }
                Some(_) => "The warmup was another one",
            };
            return format!("{why}: `training.warmup_steps={warmup}` keeps it as it was");
        }
        "Put back the keys of the schedule (`learning_rate`, `lr_scheduler`, `warmup_*`, `max_steps`, `epochs`); only a run with \
         `lr_scheduler: constant` can be made longer"
            .to_owned()
    }
}
