//! The story of a run: a recipe in, an adapter out. Also its rehearsal (`check`), its data alone (`data`), text from what it
//! made (`generate`), and what servers would make of that (`lint`).

mod advice;
mod card;
mod compare;
mod contamination;
mod data;
mod eval;
mod evaluation;
mod export;
mod families;
mod forgetting;
mod generate;
mod header;
mod left_out;
mod lint;
mod memory;
mod micro_batches;
mod objectives;
mod output;
mod prepare;
mod report;
mod sample;
mod timing;
mod trained_on;
mod upload;
mod verify;
mod warnings;

pub use compare::{CalibrationRow, CompareRequest, CompareRow, Comparison, RunName, compare};
pub use contamination::{AgainstRequest, ContaminatedItem, ContaminationReport, RowPlace, TaskContamination};
pub use data::{DataSummary, ShownRow, data};
pub use eval::{
    ChoiceReport, EvalRequest, LeftOutItems, ModelResults, PlaceShare, RestReport, ResultRow, ShiftReport, evaluate,
};
pub use evaluation::TaskChange;
pub use export::{ExportRequest, ExportSummary, ExportedTarget, export};
pub use families::{FamilyReport, family_reports};
pub use forgetting::Forgetting;
pub use generate::{GenerateRequest, GenerateSummary, generate};
pub use lint::{LintRequest, LintSummary, ServerReport, lint};
pub use objectives::{
    MeanAndSpread, ObjectiveRun, ObjectiveSummary, ObjectivesReport, ObjectivesRequest, TaskSummary, objectives,
};
pub use report::{AdapterReport, BaseReport, CheckReport, Sample, Summary};
pub use timing::TimeEstimate;
pub use upload::{UploadRequest, Uploaded, plan_upload, upload};
pub use verify::{Verified, VerifyRequest, verify};

use crate::device::{Device, Gpu, process_memory};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::ops::Pool;
use crate::recipe::Recipe;
use crate::train::metrics::Validation;
use crate::train::{
    Event, FitSummary, METRICS, MetricForBest, Observer, Schedule, Settings, TaskScorer, Trainer, Verdict,
    checkpoint_folder, total_steps,
};
use evaluation::{Evaluation, RunTasks};
use output::OutputFolder;
use prepare::Prepared;
use std::path::PathBuf;
use std::time::Instant;

/// The file of an adapter that holds its chat template, where that is not its base's.
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// What the command line decides about a run, besides the recipe.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Fetch nothing.
    pub offline: bool,
    /// Go on from the last checkpoint.
    pub resume: bool,
    /// Remove the run that the output folder holds.
    pub overwrite: bool,
    /// An open device, in place of the one that the recipe names.
    pub device: Option<Device>,
}

/// Trains an adapter as the recipe says, and writes it to the recipe's output folder.
///
/// # Errors
/// For everything that [`check`] finds, before anything is written; when the output folder holds something else or cannot
/// be written; when the recipe wants an upload that the Hub would not let in; and [`crate::Error::Diverged`]. An upload that
/// fails after training is not an error here: [`Summary::uploaded`] has it.
pub fn train(recipe: &Recipe, options: &RunOptions, observer: &mut dyn Observer) -> Result<Summary> {
    let start = Instant::now();
    OutputFolder::look(recipe, options)?;
    let uploads = upload::before_training(recipe, options, observer)?;
    let started = output::started(recipe, options)?;
    let changes = output::changes(recipe, options);
    let tasks = RunTasks::read(recipe, options, observer)?;
    let prepared = Prepared::new(recipe, options, started, observer)?;
    let mut model = prepared.load_model(recipe, observer)?;
    let evaluation = tasks.as_ref().map(|tasks| Evaluation::new(tasks, recipe, &prepared, &mut model, observer));
    let evaluation = evaluation.transpose()?;
    for warning in prepared.warnings(recipe) {
        observer.event(&Event::Warning(warning));
    }
    if observer.stop_requested() {
        return Err(Error::Interrupted);
    }
    let steps = total_steps(&recipe.training, prepared.plan.packs_per_epoch());
    if let Some(warning) = output::check_disk(recipe, options, (model.params.parameters(), steps))? {
        observer.event(&Event::Warning(warning));
    }
    let out = OutputFolder::open(recipe, options)?;
    let mut advising = advice::Advising { observer, of_base: recipe.lora.init_from.is_none() };
    let tasks = evaluation.as_ref().and_then(|evaluation| evaluation.with_validations(&model));
    let beside = Beside {
        tasks: tasks.as_ref().map(|tasks| tasks as &dyn TaskScorer),
        tokens_after: evaluation.as_ref().map_or(0.0, |of| 2.0 * of.tokens() as f64 / 3.0),
        first_validation: None,
        long_rotations: evaluation.as_ref().is_some_and(|of| of.long_rotations),
    };
    let fit = take_steps(recipe, options, (&prepared, &model), beside, (&out, changes, started), &mut advising)?;
    let ending = if fit.interrupted {
        Ending::default()
    } else {
        end(recipe, (&prepared, &model), &fit, evaluation, (&out, uploads), observer)?
    };
    Ok(summary(recipe, &prepared, &model, fit, ending, start))
}

/// What a run measures beside its rows.
#[derive(Clone, Copy, Default)]
struct Beside<'a> {
    /// Tasks, with each validation.
    tasks: Option<&'a dyn TaskScorer>,
    /// What that takes after the last step, as so many tokens of training.
    tokens_after: f64,
    /// The validation before training, where it is known.
    first_validation: Option<&'a Validation>,
    /// Whether a text of the tasks changes the model's rotations.
    long_rotations: bool,
}

/// The steps: from the beginning, or from where an earlier process was. `changes` are what the recipe has otherwise by now.
fn take_steps(
    recipe: &Recipe,
    options: &RunOptions,
    (prepared, model): (&Prepared, &Model),
    beside: Beside<'_>,
    (out, changes, started): (&OutputFolder, Vec<String>, u64),
    observer: &mut dyn Observer,
) -> Result<FitSummary> {
    let objective = crate::objectives::build(&recipe.objective);
    let pool = Pool::default();
    let engine = prepared.engine(recipe, model, &*objective, &pool);
    let mut files = prepared.adapter_files(recipe)?;
    files.others.push(("recipe.yaml".into(), recipe.to_yaml()?.into_bytes()));
    let settings = Settings {
        pad_id: prepared.pad_id(),
        dropout: recipe.lora.lora_dropout > 0.0,
        started,
        gpu: prepared.gpu_budget(recipe),
        files: &files,
        metric: &header::metric(recipe),
        tasks: beside.tasks,
        first_validation: beside.first_validation,
        begins_with_adapter: recipe.lora.init_from.is_some(),
        tokens_after: prepared.tokens_after() + beside.tokens_after,
    };
    let rows = (&prepared.dataset, &prepared.plan);
    let mut identity = prepared.identity(recipe)?;
    if beside.long_rotations {
        identity.data += ", long RoPE factors for the tasks";
    }
    let mut trainer = Trainer::new(engine, &recipe.training, rows, identity, settings, out.path())?;
    if options.resume {
        trainer.resume()?;
        for change in changes {
            observer.event(&Event::Note(format!("goes on with {change}")));
        }
    }
    out.write_recipe(recipe)?;
    let fit = trainer.fit(prepared.header(recipe, model)?, observer)?;
    let (buffers, bytes) = pool.allocated();
    tracing::debug!(buffers, bytes, "the steps' buffers");
    Ok(fit)
}

/// What a run leaves at its end.
#[derive(Default)]
struct Ending {
    files: Vec<PathBuf>,
    sample: Option<Sample>,
    measured: MeasuredAtEnd,
    uploaded: Option<Uploaded>,
}

/// What is measured of the adapter that a run ends with, beside its base.
#[derive(Default)]
struct MeasuredAtEnd {
    tasks: Vec<TaskChange>,
    forgetting: Option<Forgetting>,
    /// What was written of it.
    files: Vec<PathBuf>,
    /// Whether the tasks were interrupted.
    interrupted: bool,
}

impl MeasuredAtEnd {
    /// Asks the tasks and measures the general text. That it cannot be done does not spoil a run that is done.
    fn new(
        recipe: &Recipe,
        (prepared, model): (&Prepared, &Model),
        evaluation: Option<Evaluation<'_>>,
        observer: &mut dyn Observer,
    ) -> Self {
        let forgetting = prepared.forgetting(recipe, model, observer);
        let results = evaluation.map_or_else(|| Ok(Vec::new()), |of| of.at_end(recipe, model, observer));
        let interrupted = matches!(results, Err(Error::Interrupted));
        let results = results.unwrap_or_else(|error| {
            if !interrupted {
                observer.event(&Event::Warning(format!("the tasks could not be measured: {error}")));
            }
            Vec::new()
        });
        let files = results.iter().flat_map(|of| of.files.clone()).collect();
        Self { tasks: TaskChange::of(&results), forgetting, files, interrupted }
    }
}

/// Writes the adapter and what goes with it, and uploads it where the recipe says so.
fn end(
    recipe: &Recipe,
    (prepared, model): (&Prepared, &Model),
    fit: &FitSummary,
    evaluation: Option<Evaluation<'_>>,
    (out, uploads): (&OutputFolder, bool),
    observer: &mut dyn Observer,
) -> Result<Ending> {
    observer.event(&Event::Phase("writing the adapter".into()));
    let mut files = output::write_adapter(prepared.adapter_files(recipe)?.config, model.params.as_tensors()?, out)?;
    files.extend(card::write_tokenizer(prepared, out, observer)?);
    let sample = prepared.sample(&model.lm, observer);
    let measured = MeasuredAtEnd::new(recipe, (prepared, model), evaluation, observer);
    files.push(card::write_card(recipe, prepared, fit, (sample.as_ref(), &measured), out)?);
    files.extend(["recipe.yaml", METRICS].map(|name| out.path().join(name)));
    files.extend(measured.files.iter().cloned());
    let uploads = uploads && !is_ruined(fit) && !measured.interrupted;
    let uploaded = if uploads { upload::after_training(recipe, observer) } else { None };
    Ok(Ending { files, sample, measured, uploaded })
}

fn is_ruined(fit: &FitSummary) -> bool {
    fit.health.is_some_and(|health| health.verdict == Verdict::Ruined)
}

fn summary(
    recipe: &Recipe,
    prepared: &Prepared,
    model: &Model,
    fit: FitSummary,
    Ending { files, sample, measured, uploaded }: Ending,
    start: Instant,
) -> Summary {
    Summary {
        output_dir: recipe.output_dir.clone(),
        adapter_dir: if fit.interrupted && fit.state.step > 0 {
            checkpoint_folder(&recipe.output_dir, fit.state.step)
        } else {
            recipe.output_dir.clone()
        },
        recipe_name: recipe.name.clone(),
        steps: fit.state.step,
        total_steps: fit.total_steps,
        resumed_after: fit.resumed_after,
        was_finished: fit.was_finished,
        longer: output::longer(recipe, &fit),
        begins_with_adapter: recipe.lora.init_from.is_some(),
        objective: recipe.objective.kind.name().to_owned(),
        metric_for_best_model: header::metric(recipe),
        verdict: verdict(recipe, &fit),
        health: fit.health,
        fails: recipe.training.fail_on_divergence && is_ruined(&fit),
        interrupted: fit.interrupted,
        stopped_early: fit.state.stopped_early,
        skipped: fit.state.skipped,
        adapter_step: fit.adapter_step,
        best_step: fit.state.best_validation.as_ref().map(|best| best.step),
        best_validation: fit.state.best_validation,
        first_validation: fit.state.first_validation,
        last_validation: fit.state.last_validation,
        seconds: start.elapsed().as_secs_f64(),
        training_seconds: fit.seconds,
        tokens_per_second: if fit.seconds > 0.0 { fit.tokens as f64 / fit.seconds } else { 0.0 },
        peak_memory: process_memory().map(|(peak, _)| peak),
        peak_gpu_memory: prepared.device.gpu().map(|gpu| gpu.memory().peak as u64),
        estimated_memory: prepared.memory(recipe).total,
        adapter_parameters: model.params.parameters(),
        tasks: measured.tasks,
        tasks_interrupted: measured.interrupted,
        forgetting: measured.forgetting,
        sample,
        files,
        uploaded,
    }
}

/// What a run's numbers come to, in a sentence.
fn verdict(recipe: &Recipe, fit: &FitSummary) -> Option<String> {
    let judge = header::Judge {
        metric: &header::metric(recipe),
        weighs_by_probability: recipe.objective.weighs_by_probability(),
        began_with: began_with(recipe),
    };
    let verdict = of_adapter(fit).map(|of| judge.verdict(of, fit.health.as_ref()))?;
    let training = &recipe.training;
    let several = training.eval_steps > 0 && training.eval_steps < fit.total_steps && training.load_best_model_at_end;
    let chose = several && matches!(judge.metric, MetricForBest::Task(_));
    Some(if chose && verdict.starts_with("better") {
        format!("{verdict}; the same score chose the adapter, so it is optimistic")
    } else {
        verdict
    })
}

/// What the validation before training is of, in words.
const fn began_with(recipe: &Recipe) -> &'static str {
    if recipe.lora.init_from.is_some() { "the adapter it began with" } else { "the base alone" }
}

/// The validation before training, and the one of the adapter that the run ends with.
fn of_adapter(fit: &FitSummary) -> Option<(&Validation, &Validation)> {
    let known = [&fit.state.best_validation, &fit.state.last_validation];
    let after = known.into_iter().flatten().find(|validation| validation.step == fit.adapter_step)?;
    fit.state.first_validation.as_ref().filter(|before| before.step != after.step).map(|before| (before, after))
}

/// Does all that can be done without training: opens and loads the base, reads the data, counts and estimates. Writes
/// nothing. That the output folder is taken is a warning here, since `train` has options for that.
///
/// # Errors
/// For everything else that would keep [`train`] from its first step.
pub fn check(recipe: &Recipe, options: &RunOptions, observer: &mut dyn Observer) -> Result<CheckReport> {
    let tasks = RunTasks::read(recipe, options, observer)?;
    let prepared = Prepared::new(recipe, options, output::now(), observer)?;
    let mut model = prepared.load_model(recipe, observer)?;
    let evaluation = tasks.as_ref().map(|tasks| Evaluation::new(tasks, recipe, &prepared, &mut model, observer));
    let evaluation = evaluation.transpose()?;
    let steps = total_steps(&recipe.training, prepared.plan.packs_per_epoch());
    observer.event(&Event::Phase("timing some rows".into()));
    let time = prepared.time(recipe, &model, steps).unwrap_or_else(|error| {
        // That it does not fit, for one, is said elsewhere.
        tracing::debug!(%error, "could not time some rows");
        None
    });
    let task_tokens = evaluation.as_ref().map_or(0, Evaluation::tokens);
    let time = time.map(|time| {
        let passes = tasks.as_ref().map_or(0, |tasks| tasks.passes(time.validations));
        // A pass without a backward pass takes a third of a step.
        let seconds = (passes * task_tokens) as f64 / (3.0 * time.tokens_per_second);
        TimeEstimate { total_seconds: time.total_seconds + seconds, ..time }
    });
    let prior = prepared.prior(recipe, &model, time.as_ref()).unwrap_or_else(|error| {
        tracing::debug!(%error, "could not measure validation rows");
        None
    });
    let parameters = model.params.parameters();
    let report = model.report;
    let mut warnings = prepared.warnings(recipe);
    if let Err(error) = OutputFolder::look(recipe, options) {
        warnings.push(error.to_string());
    }
    Ok(CheckReport {
        base: BaseReport {
            model: recipe.base.model.clone(),
            model_type: prepared.base.model_type().to_owned(),
            parameters: report.parameters,
            weights_bytes: report.bytes,
            quantization: report.types.into_iter().collect(),
            notes: report.notes.into_iter().collect(),
        },
        objective: recipe.objective.kind.name().to_owned(),
        adapter: AdapterReport {
            parameters,
            bytes: 4 * parameters as u64,
            modules: model.params.len() / 2,
            target_modules: report.target_modules.into_iter().collect(),
        },
        data: prepared.dataset.report.clone(),
        preview: prepared.dataset.preview.segments.clone(),
        steps,
        warmup_steps: Schedule::new(&recipe.training, steps).warmup_steps(),
        time,
        memory: prepared.memory(recipe),
        tasks: tasks.as_ref().map_or_else(Vec::new, RunTasks::items),
        task_tokens,
        kept_layers: prepared.kept_layers,
        layers: prepared.layers(),
        device: prepared.device_name(),
        advice: prior.map(|prior| prior.advice()),
        prior,
        libraries: prepared.device.gpu().map(Gpu::facts).transpose()?.map_or_else(Vec::new, |facts| facts.libraries),
        warnings,
    })
}
