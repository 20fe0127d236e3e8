//! The loop: steps, validations, checkpoints. How a run goes on is in `resume`, what is done when it goes wrong in `watch`.

mod resume;
mod watch;

use super::backward::{Engine, Loss, StepSums, dropout_keys};
use super::checkpoint::{AdapterFiles, Checkpoint, Identity, TrainerState, checkpoint_folder};
use super::clock::Clock;
use super::gpu_memory::GpuBudget;
use super::health::Health;
use super::metrics::{RunHeader, StepMetrics, Validation};
use super::record::{Line, Record};
use super::{AdamW, Event, MetricForBest, Observer, Schedule, TrainingConfig};
use crate::data::{Batch, Dataset, Epoch, Plan, Rows, Sequence};
use crate::device::process_memory;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a run came to.
#[derive(Debug, Clone)]
pub struct FitSummary {
    /// Where the run stands.
    pub state: TrainerState,
    /// Whether it was asked to stop before its end.
    pub interrupted: bool,
    /// The step whose adapter the parameters now hold.
    pub adapter_step: usize,
    /// Whether no step was left to take: an earlier process had taken them all.
    pub was_finished: bool,
    /// What the adapter does to the run's rows, beside the base alone; none for a run that was interrupted or takes no step.
    pub health: Option<Health>,
    /// Seconds in steps, of this process.
    pub seconds: f64,
    /// Tokens in steps, of this process.
    pub tokens: usize,
}

/// What a run needs to know besides its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// What fills up a batch; it is masked by place.
    pub pad_id: u32,
    /// Whether the adapters drop inputs.
    pub dropout: bool,
    /// When the run began, in seconds since 1970.
    pub started: u64,
    /// What there is of a GPU's memory, where one computes.
    pub gpu: Option<GpuBudget>,
    /// What makes a checkpoint an adapter.
    pub files: &'a AdapterFiles,
    /// Which number of a validation decides what is best.
    pub metric: MetricForBest,
    /// Whether the run begins with another run's adapter.
    pub begins_with_adapter: bool,
    /// What is done after the last step, as so many tokens of training.
    pub tokens_after: f64,
}

/// Trains an adapter.
pub struct Trainer<'a> {
    pub(super) engine: Engine<'a>,
    config: &'a TrainingConfig,
    dataset: &'a Dataset,
    plan: &'a Plan,
    out: &'a Path,
    settings: Settings<'a>,
    pub(super) gpu: Option<GpuBudget>,
    /// Rows of a micro-batch; fewer than the recipe's where a GPU's memory was full.
    pub(super) micro_batch_size: usize,
    optimizer: AdamW,
    schedule: Schedule,
    total_steps: usize,
    state: TrainerState,
    epoch: Option<(u64, Epoch)>,
    clock: Clock,
    seconds: f64,
    tokens: usize,
}

/// What a step takes: samples that share a row of the batch, and the row's place in the run.
struct Pack {
    place: u64,
    samples: Vec<Sequence>,
}

impl Pack {
    fn tokens(&self) -> usize {
        self.samples.iter().map(Sequence::len).sum()
    }
}

/// Optimizer steps of a run whose epochs have `rows` rows, or packs of rows.
pub fn total_steps(config: &TrainingConfig, rows: usize) -> usize {
    let rows_per_step = config.micro_batch_size * config.gradient_accumulation_steps;
    config.max_steps.unwrap_or_else(|| total_rows(config, rows).div_ceil(rows_per_step).max(1))
}

fn total_rows(config: &TrainingConfig, rows: usize) -> usize {
    if config.max_steps.is_some() { usize::MAX } else { (config.epochs * rows as f64).ceil() as usize }
}

impl<'a> Trainer<'a> {
    /// A run at its beginning. `plan` orders the rows of `dataset`; `out`: where checkpoints and metrics go.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn new(
        engine: Engine<'a>,
        config: &'a TrainingConfig,
        (dataset, plan): (&'a Dataset, &'a Plan),
        identity: Identity,
        settings: Settings<'a>,
        out: &'a Path,
    ) -> Result<Self> {
        let total_steps = total_steps(config, plan.packs_per_epoch());
        let schedule = Schedule::new(config, total_steps);
        let packs_per_step = config.micro_batch_size * config.gradient_accumulation_steps;
        let tokens_per_pack = dataset.report.tokens as f64 / plan.packs_per_epoch().max(1) as f64;
        let state = TrainerState {
            step: 0,
            updates: 0,
            rows: 0,
            seed: config.seed,
            started: settings.started,
            skipped: 0,
            skipped_in_a_row: 0,
            first_validation: None,
            last_validation: None,
            best_validation: None,
            stale_validations: 0,
            stopped_early: false,
            first_step: None,
            seconds: 0.0,
            tokens: 0,
            watch: super::health::Watch::default(),
            schedule: Some(schedule),
            identity,
        };
        Ok(Self {
            optimizer: AdamW::new(config, engine.params),
            schedule,
            engine,
            config,
            dataset,
            plan,
            out,
            settings,
            gpu: settings.gpu,
            micro_batch_size: config.micro_batch_size,
            total_steps,
            state,
            epoch: None,
            clock: Clock::new(tokens_per_pack * packs_per_step as f64, settings.tokens_after),
            seconds: 0.0,
            tokens: 0,
        })
    }

    /// Trains to the end, or until the observer asks to stop.
    ///
    /// # Errors
    /// When the disk refuses, and [`Error::Diverged`] after too many steps in a row without a finite gradient.
    pub fn fit(mut self, mut header: RunHeader, observer: &mut dyn Observer) -> Result<FitSummary> {
        let resumed = (self.state.step > 0).then_some(self.state.step);
        let was_finished = resumed.is_some() && self.is_over();
        let mut record = Record::open(&self.out.join("metrics.jsonl"), resumed)?;
        (header.total_steps, header.resumed_after) = (self.total_steps, self.state.step);
        if !was_finished {
            record.write(&Line::Run(Box::new(header.without_folders())))?;
        }
        observer.event(&Event::Run(header));
        if let Some(gpu) = self.engine.device.gpu() {
            // What was refused to an earlier run on this device is no reason for this one.
            gpu.take_refusal();
        }
        self.reserve()?;
        observer.event(&Event::Start { step: self.state.step, total_steps: self.total_steps });
        if self.state.step == 0 {
            self.validate(&mut record, observer)?;
        }
        let mut interrupted = !self.is_over() && observer.stop_requested();
        while !self.is_over() && !interrupted {
            self.step(&mut record, observer)?;
            let step = self.state.step;
            let last = step == self.total_steps;
            if last {
                self.check_skipped()?;
            }
            let mut best = false;
            if last || is_due(step, self.config.eval_steps) {
                best = self.validate(&mut record, observer)?;
            }
            if self.state.stopped_early {
                let best_step = self.state.best_validation.as_ref().map_or(step, |best| best.step);
                observer.event(&Event::EarlyStop { step, best_step });
            }
            interrupted = !last && !self.state.stopped_early && observer.stop_requested();
            // While steps are skipped nothing is learnt, and the checkpoints from before are the good ones.
            let due = is_due(step, self.config.save_steps) && self.state.skipped_in_a_row == 0;
            if last || best || interrupted || self.state.stopped_early || due {
                self.save(observer)?;
            }
        }
        if interrupted {
            observer.event(&Event::Interrupted { step: self.state.step });
        }
        let adapter_step = if interrupted { self.state.step } else { self.load_best()? };
        let health = if interrupted { None } else { self.final_health(adapter_step, &mut record, observer)? };
        let Self { state, seconds, tokens, .. } = self;
        Ok(FitSummary { state, interrupted, adapter_step, was_finished, health, seconds, tokens })
    }

    /// Whether there is no step left to take.
    fn is_over(&self) -> bool {
        self.state.step >= self.total_steps || self.state.stopped_early
    }

    /// Seconds until the end of the run, its validations and what comes after.
    fn seconds_left(&self) -> Option<f64> {
        let (step, total) = (self.state.step, self.total_steps);
        let every = self.config.eval_steps;
        let validations = match (self.dataset.validation.is_empty(), every) {
            (true, _) => 0,
            (false, 0) => 1,
            // Those that are due behind this step, and the last, unless it is one of them. One that is due now is to come.
            (false, every) => total.div_ceil(every) - step.saturating_sub(1) / every,
        };
        self.clock.left(total - step, validations)
    }

    /// The packs of a step, in the order in which the run meets them.
    fn packs(&mut self, step: usize) -> Result<Vec<Pack>> {
        let n = self.plan.packs_per_epoch();
        let packs_per_step = self.config.micro_batch_size * self.config.gradient_accumulation_steps;
        let first = (step - 1) * packs_per_step;
        let end = (first + packs_per_step).min(total_rows(self.config, n));
        let mut packs = Vec::with_capacity(packs_per_step);
        for place in first..end {
            let number = (place / n) as u64;
            let epoch = match self.epoch.take() {
                Some((current, epoch)) if current == number => epoch,
                _ => self.plan.epoch(number),
            };
            let samples = epoch.pack(place % n).iter().map(|&row| self.dataset.train.get(row as usize));
            packs.push(Pack { place: place as u64, samples: samples.collect::<Result<_>>()? });
            self.epoch = Some((number, epoch));
        }
        Ok(packs)
    }

    /// One optimizer step.
    fn step(&mut self, record: &mut Record, observer: &mut dyn Observer) -> Result<()> {
        let start = Instant::now();
        let step = self.state.step + 1;
        let mut packs = self.packs(step)?;
        let consumed = packs.len();
        // Rows of like length side by side: less padding, and the step's result does not depend on how it is cut.
        packs.sort_by_key(|pack| (pack.tokens(), pack.place));
        let StepSums { loss, denominator, gradients } = loop {
            match self.sums(&packs) {
                Ok(sums) => break sums,
                Err(error) => self.make_room(error, packs.iter().map(Pack::tokens).max(), observer)?,
            }
        };
        let grad_norm = gradients.norm()? / denominator;
        let learning_rate = self.schedule.rate(step);

        self.state.step = step;
        self.state.rows += consumed;
        if !(loss.sum.is_finite() && grad_norm.is_finite()) {
            return self.skip(&loss, record, observer);
        }
        self.state.skipped_in_a_row = 0;
        if loss.supervised > 0 {
            let factor = clip_factor(grad_norm, self.config.max_grad_norm) / denominator;
            self.optimizer.update(self.engine.params, &gradients, factor, learning_rate)?;
        }
        self.state.updates = self.optimizer.updates();

        let seconds = start.elapsed().as_secs_f64();
        self.seconds += seconds;
        self.tokens += loss.tokens;
        self.state.seconds += seconds;
        self.state.tokens += loss.tokens;
        self.clock.step(seconds, loss.tokens);
        let supervised = loss.supervised.max(1) as f64;
        let metrics = StepMetrics {
            step,
            epoch: self.state.rows as f64 / self.plan.packs_per_epoch() as f64,
            cross_entropy: loss.cross_entropy / supervised,
            objective_loss: loss.sum / denominator,
            token_accuracy: loss.top1 as f64 / supervised,
            learning_rate,
            grad_norm,
            tokens: loss.tokens,
            supervised_tokens: loss.supervised,
            tokens_per_second: loss.tokens as f64 / seconds,
            peak_memory: process_memory().map(|(peak, _)| peak),
            peak_gpu_memory: self.engine.device.gpu().map(|gpu| gpu.memory().peak as u64),
            objective: loss.observations.summary(),
        };
        record.write(&Line::Step(metrics.clone()))?;
        let numbers = (metrics.cross_entropy, metrics.token_accuracy);
        let is_measured = metrics.supervised_tokens > 0;
        observer.event(&Event::Step { metrics, seconds_left: self.seconds_left() });
        if is_measured { self.watch(numbers, &packs, record, observer) } else { Ok(()) }
    }

    /// Loss and gradients of a step's packs, in micro-batches.
    fn sums(&self, packs: &[Pack]) -> Result<StepSums<'a>> {
        let micro: Vec<_> = packs.chunks(self.micro_batch_size).collect();
        let batches: Vec<Batch> = micro.iter().map(|packs| collate(packs, self.settings.pad_id)).collect();
        let keys = |i: usize| {
            let places: Vec<u64> = micro[i].iter().map(|pack| pack.place).collect();
            self.settings.dropout.then(|| dropout_keys(&batches[i], self.config.seed, &places))
        };
        self.engine.sums(&batches, keys)
    }

    /// Measures the validation rows; whether they are at their best since training began. A loss that is not finite ends the
    /// run: no parameters come back from there.
    fn validate(&mut self, record: &mut Record, observer: &mut dyn Observer) -> Result<bool> {
        if self.dataset.validation.is_empty() {
            return Ok(false);
        }
        let start = Instant::now();
        let validation: &Rows = &self.dataset.validation;
        let mut rows: Vec<usize> = (0..validation.len()).collect();
        rows.sort_by_key(|&row| validation.entry(row).tokens);
        let loss = loop {
            match self.evaluate(&rows, observer) {
                Ok(loss) => break loss,
                Err(error) => {
                    let tokens = rows.iter().map(|&row| validation.entry(row).tokens as usize).max();
                    self.make_room(error, tokens, observer)?;
                }
            }
        };
        let supervised = loss.supervised.max(1) as f64;
        let mean = loss.cross_entropy / supervised;
        let step = self.state.step;
        if !mean.is_finite() {
            if self.state.updates == 0 {
                return Err(Error::Diverged {
                    message: format!("the validation loss is {mean} before anything was learnt"),
                    help: Some("base and adapter do not compute: check the base's files, and lora.lora_alpha".into()),
                });
            }
            return Err(self.diverged(&format!("step {step}: the validation loss is {mean}")));
        }
        let mut validation = Validation {
            step,
            cross_entropy: mean,
            token_accuracy: loss.top1 as f64 / supervised,
            token_probability: loss.probability / supervised,
            objective_loss: loss.sum / self.engine.objective.denominator(rows.len(), loss.supervised),
            supervised_tokens: loss.supervised,
            best: false,
        };
        let best = self.state.best_validation.as_ref();
        validation.best = step > 0 && best.is_none_or(|best| validation.is_better(best, self.settings.metric));
        let best = validation.best;
        self.clock.validation(start.elapsed().as_secs_f64());
        record.write(&Line::Validation(validation.clone()))?;
        observer.event(&Event::Validation(validation.clone()));
        let first = self.state.first_validation.as_ref().filter(|_| !self.settings.begins_with_adapter);
        // The untrained adapter is the base: what was measured before training is the other half of a pair.
        let health = first.filter(|_| step > 0).map(|first| {
            let numbers = |of: &Validation| (of.cross_entropy, of.token_accuracy);
            let vocabulary = self.engine.lm.dimensions.vocabulary;
            Health::of(step, numbers(&validation), numbers(first), validation.supervised_tokens, vocabulary)
        });
        self.note(validation);
        if let Some(health) = health.filter(|health| health.verdict != super::Verdict::Healthy) {
            self.report(health, record, observer)?;
        }
        Ok(best)
    }

    /// The loss of validation rows, in micro-batches.
    fn evaluate(&self, rows: &[usize], observer: &mut dyn Observer) -> Result<Loss> {
        let (mut loss, total) = (Loss::default(), rows.len());
        for (i, rows) in rows.chunks(self.micro_batch_size).enumerate() {
            observer.event(&Event::Validating { done: i * self.micro_batch_size, total });
            let samples = rows.iter().map(|&row| self.dataset.validation.get(row)).collect::<Result<Vec<_>>>()?;
            loss.join(
                self.engine.evaluate(&Batch::collate(&samples.iter().collect::<Vec<_>>(), self.settings.pad_id))?,
            );
        }
        Ok(loss)
    }

    fn note(&mut self, validation: Validation) {
        if self.state.first_validation.is_none() {
            self.state.first_validation = Some(validation.clone());
        }
        if validation.best {
            self.state.best_validation = Some(validation.clone());
            self.state.stale_validations = 0;
        } else if validation.step > 0 {
            self.state.stale_validations += 1;
            let patience = self.config.early_stopping_patience;
            self.state.stopped_early = patience > 0 && self.state.stale_validations >= patience;
        }
        self.state.last_validation = Some(validation);
    }

    fn save(&self, observer: &mut dyn Observer) -> Result<()> {
        let adapter = self.engine.params.as_tensors()?;
        let saved = Checkpoint::save(self.out, self.settings.files, adapter, &self.optimizer, &self.state);
        let path = saved.map_err(|error| self.explain_full(error))?;
        self.prune();
        observer.event(&Event::Saved { step: self.state.step, path });
        Ok(())
    }

    /// That the disk is full, with what is lost and how to go on.
    fn explain_full(&self, error: Error) -> Error {
        let Error::Io { path, source, .. } = &error else { return error };
        if source.kind() != std::io::ErrorKind::StorageFull {
            return error;
        }
        let parameters: usize = self.engine.params.iter().map(|(_, variable)| variable.elem_count()).sum();
        let kept = Checkpoint::steps(self.out).last().map_or_else(
            || "no checkpoint stands yet".to_owned(),
            |step| format!("the checkpoint of step {step} stands, and what came after is lost"),
        );
        let (step, mib) = (self.state.step, (12 * parameters as u64).div_ceil(1 << 20));
        Error::file(path, format!("the disk is full: the checkpoint of step {step} could not be written; {kept}"))
            .with_help(format!("a checkpoint takes {mib} MiB: free some space, and go on with `--resume`"))
    }

    fn prune(&self) {
        let best = self.state.best_validation.as_ref().map(|best| best.step);
        Checkpoint::prune(self.out, self.config.save_total_limit, best);
    }

    /// Sets the parameters to those of the best validation, if that is asked for; tells the step that they are of.
    fn load_best(&self) -> Result<usize> {
        let best = self.state.best_validation.as_ref().map(|best| best.step);
        let best = best.filter(|&step| self.config.load_best_model_at_end && step != self.state.step && step > 0);
        let Some(step) = best else { return Ok(self.state.step) };
        let folder: PathBuf = checkpoint_folder(self.out, step);
        let best = Checkpoint::load(&folder).map_err(|error| {
            error.with_help("it is the best checkpoint, and cannot be computed again; begin again with `--overwrite`")
        })?;
        self.engine.params.assign(&best.adapter, &folder)?;
        Ok(step)
    }
}

const fn is_due(step: usize, every: usize) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn collate(packs: &[Pack], pad_id: u32) -> Batch {
    let rows: Vec<Vec<&Sequence>> = packs.iter().map(|pack| pack.samples.iter().collect()).collect();
    Batch::collate_packed(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>(), pad_id)
}

/// What brings a gradient of norm `norm` down to `limit`, as PyTorch's `clip_grad_norm_` has it; 1 where it is within, or
/// where the limit is 0.
fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
