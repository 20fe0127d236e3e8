//! The loop: steps, validations, checkpoints. How a run goes on is in `resume`, how it is measured in `validate`, what is done
//! when it goes wrong in `watch`.

mod resume;
mod validate;
mod watch;

use super::backward::{Engine, StepSums, dropout_keys};
use super::checkpoint::{AdapterFiles, Checkpoint, Identity, TrainerState, checkpoint_folder};
use super::clock::Clock;
use super::gpu_memory::GpuBudget;
use super::health::Health;
use super::metrics::{RunHeader, StepMetrics, TaskScore, Validation};
use super::record::{Line, Record};
use super::{AdamW, Event, MetricForBest, Observer, Schedule, TrainingConfig};
use crate::data::{Batch, Dataset, Epoch, IGNORED, Plan, Sequence};
use crate::device::process_memory;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A run's lines, in its output folder.
pub const METRICS: &str = "metrics.jsonl";

/// What a run came to.
#[derive(Debug, Clone)]
pub struct FitSummary {
    /// Where the run stands.
    pub state: TrainerState,
    /// Whether it was asked to stop before its end.
    pub interrupted: bool,
    /// The step whose adapter the parameters now hold.
    pub adapter_step: usize,
    /// Steps of the whole run.
    pub total_steps: usize,
    /// The step that this process went on after; 0 at the beginning.
    pub resumed_after: usize,
    /// Whether nothing was left to do: an earlier process had taken all steps, and measured them.
    pub was_finished: bool,
    /// What the adapter does to the run's rows, beside the base alone; none for a run that was interrupted or takes no step.
    pub health: Option<Health>,
    /// Seconds in steps, of this process.
    pub seconds: f64,
    /// Tokens in steps, of this process.
    pub tokens: usize,
}

/// Measures tasks on the model as it stands, with its adapter.
pub trait TaskScorer {
    /// The metrics of all tasks; `None` where it was asked to stop before the last of them.
    ///
    /// # Errors
    /// When the model gives no numbers or the device refuses.
    fn scores(&self, observer: &mut dyn Observer) -> Result<Option<Vec<TaskScore>>>;

    /// A hash of what is asked.
    fn fingerprint(&self) -> String;
}

/// What a run needs to know besides its configuration.
#[derive(Clone, Copy)]
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
    pub metric: &'a MetricForBest,
    /// What measures tasks with each validation.
    pub tasks: Option<&'a dyn TaskScorer>,
    /// The validation before training, where it is known.
    pub first_validation: Option<&'a Validation>,
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

/// What came of a validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measured {
    /// The best since training began.
    Best,
    /// Not the best, or there are no rows.
    Other,
    /// The run was asked to stop before all rows were measured. Nothing is noted or recorded.
    BrokenOff,
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

    fn learnt(&self) -> usize {
        self.samples.iter().flat_map(|sample| &sample.labels).filter(|&&label| label != IGNORED).count()
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
        let validation_tokens = dataset.validation.entries().map(|entry| f64::from(entry.tokens)).sum();
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
            validation_is_to_come: false,
            tasks: settings.tasks.map(TaskScorer::fingerprint),
            metric: Some(settings.metric.clone()),
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
            clock: Clock::new(tokens_per_pack * packs_per_step as f64, settings.tokens_after, validation_tokens),
            seconds: 0.0,
            tokens: 0,
        })
    }

    /// Trains to the end, or until the observer asks to stop.
    ///
    /// # Errors
    /// When the disk refuses, and [`Error::Diverged`] after too many steps in a row without a finite gradient.
    pub fn fit(mut self, mut header: RunHeader, observer: &mut dyn Observer) -> Result<FitSummary> {
        let resumed_after = self.state.step;
        let was_finished = resumed_after > 0 && self.is_over() && !self.state.validation_is_to_come;
        let resumed = (resumed_after > 0).then_some(resumed_after);
        let mut record = Record::open(&self.out.join(METRICS), resumed, self.state.validation_is_to_come)?;
        (header.total_steps, header.resumed_after) = (self.total_steps, resumed_after);
        if !was_finished {
            record.write(&Line::Run(Box::new(header.without_folders())))?;
        }
        observer.event(&Event::Run(header));
        if let Some(gpu) = self.engine.device.gpu() {
            // What was refused to an earlier run on this device is not a reason for this one.
            gpu.take_refusal();
        }
        self.reserve()?;
        observer.event(&Event::Start { step: resumed_after, total_steps: self.total_steps });
        let mut interrupted = self.begin(&mut record, observer)?;
        while !self.is_over() && !interrupted {
            self.step(&mut record, observer)?;
            interrupted = self.end_step(&mut record, observer)?;
        }
        if interrupted {
            observer.event(&Event::Interrupted { step: self.state.step });
        }
        let adapter_step = if interrupted { self.state.step } else { self.load_best()? };
        let health = if interrupted { None } else { self.final_health(adapter_step, &mut record, observer)? };
        let Self { state, seconds, tokens, total_steps, .. } = self;
        Ok(FitSummary {
            state,
            interrupted,
            adapter_step,
            total_steps,
            resumed_after,
            was_finished,
            health,
            seconds,
            tokens,
        })
    }

    /// What comes before the next step: the validation of the untrained adapter, or the one that a stop broke off. Whether the
    /// run is to stop here.
    fn begin(&mut self, record: &mut Record, observer: &mut dyn Observer) -> Result<bool> {
        if self.state.validation_is_to_come {
            return self.end_step(record, observer);
        }
        if self.state.step == 0 && self.validate(record, observer)? == Measured::BrokenOff {
            return Ok(true);
        }
        Ok(!self.is_over() && observer.stop_requested())
    }

    /// What is due after a step: a validation, a checkpoint. Whether the run is to stop here.
    fn end_step(&mut self, record: &mut Record, observer: &mut dyn Observer) -> Result<bool> {
        let step = self.state.step;
        let last = step == self.total_steps;
        if last {
            self.check_skipped()?;
        }
        // A checkpoint that waits for its validation is written again behind it.
        let waited = std::mem::take(&mut self.state.validation_is_to_come);
        let mut measured = Measured::Other;
        if last || is_due(step, self.config.eval_steps) {
            measured = self.validate(record, observer)?;
        }
        self.state.validation_is_to_come = measured == Measured::BrokenOff;
        if self.state.stopped_early {
            let best_step = self.state.best_validation.as_ref().map_or(step, |best| best.step);
            observer.event(&Event::EarlyStop { step, best_step });
        }
        let interrupted =
            measured == Measured::BrokenOff || !last && !self.state.stopped_early && observer.stop_requested();
        // While steps are skipped nothing is learnt, and the checkpoints from before are the good ones.
        let due = is_due(step, self.config.save_steps) && self.state.skipped_in_a_row == 0;
        let must = last || interrupted || self.state.stopped_early || waited;
        if must || due || measured == Measured::Best {
            self.save(observer)?;
        }
        Ok(interrupted)
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
        let packs_per_step = self.config.micro_batch_size * self.config.gradient_accumulation_steps;
        let first = (step - 1) * packs_per_step;
        let end = (first + packs_per_step).min(total_rows(self.config, self.plan.packs_per_epoch()));
        (first..end).map(|place| self.pack(place)).collect()
    }

    /// The pack at a place of the run.
    fn pack(&mut self, place: usize) -> Result<Pack> {
        let n = self.plan.packs_per_epoch();
        let number = (place / n) as u64;
        let epoch = match self.epoch.take() {
            Some((current, epoch)) if current == number => epoch,
            _ => self.plan.epoch(number),
        };
        let samples = epoch.pack(place % n).iter().map(|&row| self.dataset.train.get(row as usize));
        let pack = Pack { place: place as u64, samples: samples.collect::<Result<_>>()? };
        self.epoch = Some((number, epoch));
        Ok(pack)
    }

    /// One optimizer step.
    fn step(&mut self, record: &mut Record, observer: &mut dyn Observer) -> Result<()> {
        let start = Instant::now();
        let step = self.state.step + 1;
        let mut packs = self.packs(step)?;
        let consumed = packs.len();
        sort(&mut packs);
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
        let (dropout, seed) = (self.settings.dropout, self.config.seed);
        let keys = |i: usize| {
            let places: Vec<u64> = micro[i].iter().map(|pack| pack.place).collect();
            dropout.then(|| dropout_keys(&batches[i], seed, &places))
        };
        self.engine.sums(&batches, keys)
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

/// Rows of like length side by side: less padding, and the result does not depend on how they are cut.
fn sort(packs: &mut [Pack]) {
    packs.sort_by_key(|pack| (pack.tokens(), pack.place));
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
