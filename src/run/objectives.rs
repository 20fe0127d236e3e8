//! Objectives beside each other: one base in memory, the same rows in the same orders, the same beginnings; and what came of each.

mod arms;
mod files;
mod table;

pub use table::{MeanAndSpread, ObjectiveSummary, ObjectivesReport, TaskSummary};

use super::eval::bench::{Bench, hash_of};
use super::eval::{EvalRequest, ModelResults, Questions, ResultRow, Run, TaskSet};
use super::output::{self, OutputFolder};
use super::prepare::{Prepared, check_reference};
use super::{Beside, Forgetting, MeasuredAtEnd, RunOptions, card, is_ruined, take_steps};
use crate::adapter::AdapterBundle;
use crate::error::{Error, Result};
use crate::export::tokenizer_files;
use crate::fs::remove_folder_atomic;
use crate::models::Model;
use crate::recipe::Recipe;
use crate::train::metrics::Validation;
use crate::train::{Checkpoint, Event, FitSummary, MetricForBest, Observer, checkpoints_folder};
use arms::{Arm, Named};
use files::Kept;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is compared, and how.
#[derive(Debug, Clone)]
pub struct ObjectivesRequest {
    /// Objectives by name; the others are compared with the first.
    pub objectives: Vec<String>,
    /// Runs of each: the recipe's seed, and those that follow.
    pub seeds: usize,
    /// Learning rates, of which each objective takes its best with the first seed; the recipe's for all where it is empty.
    pub learning_rates: Vec<f64>,
    /// By which number on the held-out rows a learning rate is best.
    pub select_by: MetricForBest,
    /// The tasks and how they are asked; no tasks: held-out rows alone. Model and output are not looked at.
    pub eval: EvalRequest,
    /// Where everything goes.
    pub output: PathBuf,
    /// Go on with the comparison that is there.
    pub resume: bool,
    /// Fetch nothing.
    pub offline: bool,
}

/// A run of a comparison, or the base alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectiveRun {
    /// The objective, as it was asked for.
    pub objective: String,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// The seed.
    pub seed: u64,
    /// The run's folder, in that of the comparison.
    pub folder: PathBuf,
    /// Why it has no result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Whether the adapter ruins the model.
    pub ruined: bool,
    /// Optimizer steps.
    pub steps: usize,
    /// The held-out rows under the base alone.
    pub before: Option<Validation>,
    /// The held-out rows under the adapter.
    pub after: Option<Validation>,
    /// `(Σw)² / (n·Σw²)` of the tokens' weights, the mean over steps.
    pub effective_token_share: Option<f64>,
    /// Global norm of the gradient before clipping, the mean over steps.
    pub grad_norm: Option<f64>,
    /// Tokens a second, the median over steps.
    pub tokens_per_second: Option<f64>,
    /// A general text under the base and under the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgetting: Option<Forgetting>,
    /// Metrics of the tasks; empty for a run that only the search for a learning rate was for.
    pub tasks: Vec<ResultRow>,
}

/// Trains an adapter under each objective, measures all on the same held-out rows and tasks, and writes runs and tables.
///
/// # Errors
/// For everything that keeps [`super::train`] or [`super::evaluate`] from beginning; when there are no held-out rows; when the output
/// folder holds another comparison; [`Error::Interrupted`] where it was asked to stop.
pub fn objectives(
    recipe: &Recipe,
    request: &ObjectivesRequest,
    observer: &mut dyn Observer,
) -> Result<ObjectivesReport> {
    let named = arms::named(&request.objectives, recipe)?;
    let mut observer = Inner { observer, said: Vec::new() };
    let tasks = TaskSet::read(&request.eval.wanted(), &mut observer)?;
    let mut kept = Kept::open(recipe, request)?;
    let mut comparison = Comparison::new(recipe, request, named, &tasks, &mut kept, &mut observer)?;
    comparison.measure_base(&mut kept, &mut observer)?;
    let chosen = comparison.find_learning_rates(&mut kept, &mut observer)?;
    let seeds = arms::seeds(recipe, request);
    let mut done = 0;
    let total = seeds.len() * chosen.len();
    for &seed in &seeds {
        for (objective, learning_rate) in &chosen {
            done += 1;
            let arm = Arm { objective: objective.clone(), learning_rate: *learning_rate, seed };
            let place = format!("run {done} of {total}");
            comparison.train(&arm, &place, &mut kept, &mut observer)?;
            comparison.measure(&arm, &mut kept, &mut observer)?;
        }
    }
    let report = comparison.report(&kept, &chosen)?;
    kept.publish(&report)?;
    Ok(report)
}

/// What all runs share.
struct Comparison<'a> {
    recipe: &'a Recipe,
    request: &'a ObjectivesRequest,
    objectives: Vec<Named>,
    tasks: &'a TaskSet,
    questions: Questions<'a>,
    prepared: Prepared,
    bench: Bench,
    model: Model,
    started: u64,
}

impl<'a> Comparison<'a> {
    fn new(
        recipe: &'a Recipe,
        request: &'a ObjectivesRequest,
        objectives: Vec<Named>,
        tasks: &'a TaskSet,
        kept: &mut Kept,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        // One that needs the base's distribution too takes the most memory: what is kept of activations is the same for all.
        let needs_reference = |of: &&Named| crate::objectives::build(&of.config).needs().reference;
        let heaviest = objectives.iter().find(needs_reference).unwrap_or(&objectives[0]).clone();
        let arm = Arm { objective: heaviest, learning_rate: recipe.training.learning_rate, seed: recipe.training.seed };
        let first = arm.recipe(recipe, &request.output);
        let options = RunOptions { offline: request.offline, ..RunOptions::default() };
        let started = kept.started();
        let prepared = Prepared::new(&first, &options, started, observer)?;
        if prepared.dataset.validation.is_empty() {
            return Err(Error::invalid("the recipe holds out no rows: there is nothing to compare objectives by")
                .with_help("set `data.validation`, or `data.validation_split: 0.1`"));
        }
        for objective in &objectives {
            let own = Arm { objective: objective.clone(), ..arm.clone() }.recipe(recipe, &request.output);
            check_reference(&own, &prepared.rehearsal)?;
            for warning in prepared.warnings(&own) {
                observer.event(&Event::Warning(warning));
            }
            if crate::objectives::build(&objective.config).needs() != crate::objectives::Needs::default()
                && let Some(gpu) = prepared.device.gpu()
            {
                crate::ops::cuda::prepare_objectives(gpu)?;
            }
        }
        let training = &recipe.training;
        let left_alone: Vec<&str> = [
            ("metric_for_best_model", training.metric_for_best_model.is_some()),
            ("eval_steps", training.eval_steps > 0),
            ("early_stopping_patience", training.early_stopping_patience > 0),
        ]
        .into_iter()
        .filter_map(|(key, is_set)| is_set.then_some(key))
        .collect();
        if !left_alone.is_empty() {
            observer.event(&Event::Note(format!(
                "each run of a comparison is validated before and after training alone, and ends with its last adapter; these keys of \
                 `training` are ignored: {}",
                left_alone.join(", ")
            )));
        }
        let mut model = prepared.load_model(&first, observer)?;
        let name = (&prepared.base, recipe.base.model.clone());
        let template = prepared.chat_template.as_deref();
        let bench = Bench::new(name, None, template, &model, prepared.device.clone(), recipe.compute)?;
        observer.event(&Event::Phase("tokenizing the tasks".into()));
        let questions = Questions::new(&request.eval, &bench, tasks)?;
        check_room(request, objectives.len(), &prepared, &model, kept)?;
        kept.check(&prepared, &first, &questions)?;
        questions.fit(&mut model, observer);
        Ok(Self { recipe, request, objectives, tasks, questions, prepared, bench, model, started })
    }

    /// The tasks on the base alone.
    fn measure_base(&mut self, kept: &mut Kept, observer: &mut dyn Observer) -> Result<()> {
        if kept.base().is_some() || self.request.eval.tasks.is_empty() {
            return Ok(());
        }
        observer.event(&Event::Phase("the base alone".into()));
        let results = self.evaluate("base", PathBuf::from("base"), observer)?;
        kept.add_base(results.rows)
    }

    /// The learning rate of each objective: the recipe's, or the best of several with the first seed.
    fn find_learning_rates(&mut self, kept: &mut Kept, observer: &mut dyn Observer) -> Result<Vec<(Named, f64)>> {
        let rates = &self.request.learning_rates;
        let seed = self.recipe.training.seed;
        let (mut chosen, mut done) = (Vec::new(), 0);
        let total = self.objectives.len() * rates.len();
        for objective in self.objectives.clone() {
            let mut best: Option<(f64, Validation)> = None;
            for &learning_rate in rates {
                done += 1;
                let arm = Arm { objective: objective.clone(), learning_rate, seed };
                self.train(&arm, &format!("learning rate {done} of {total}"), kept, observer)?;
                let sound = kept.run(&arm).filter(|run| run.failed.is_none() && !run.ruined);
                let after = sound.and_then(|run| run.after.clone());
                let by = &self.request.select_by;
                if let Some(after) = after
                    && best.as_ref().is_none_or(|(_, best)| after.is_better(best, by))
                {
                    best = Some((learning_rate, after));
                }
            }
            let rate = match best {
                Some((rate, _)) => rate,
                None if rates.is_empty() => self.recipe.training.learning_rate,
                None => {
                    let name = &objective.name;
                    return Err(Error::invalid(format!(
                        "--learning-rates: each of them ruins the model under `{name}`"
                    ))
                    .with_help("give lower ones beside them: with `--resume` nothing is trained twice"));
                }
            };
            chosen.push((objective, rate));
        }
        Ok(chosen)
    }

    /// Trains, unless that is done.
    fn train(&mut self, arm: &Arm, place: &str, kept: &mut Kept, observer: &mut dyn Observer) -> Result<()> {
        let recipe = arm.recipe(self.recipe, &self.request.output);
        if kept.run(arm).is_some() {
            // A process that was killed here may have left them.
            remove_folder_atomic(&checkpoints_folder(&recipe.output_dir));
            return Ok(());
        }
        if observer.stop_requested() {
            return Err(Error::Interrupted);
        }
        let (name, rate) = (&arm.objective.name, arm.learning_rate);
        let what = format!("{place}: {name}, learning rate {rate:e}, seed {}", arm.seed);
        observer.event(&Event::NextRun { what, objective: arm.objective.config.kind.name().to_owned() });
        let mut run = ObjectiveRun {
            objective: name.clone(),
            learning_rate: rate,
            seed: arm.seed,
            folder: arm.place(),
            failed: None,
            ruined: false,
            steps: 0,
            before: None,
            after: None,
            effective_token_share: None,
            grad_norm: None,
            tokens_per_second: None,
            forgetting: None,
            tasks: Vec::new(),
        };
        // The same base, or the same adapter, on the same rows: only the objective's own loss differs between objectives.
        let same = kept.runs().iter().find(|run| run.objective == *name);
        let known = same.and_then(|run| run.before.clone());
        match self.take_steps(&recipe, known.as_ref(), observer) {
            Ok((fit, _)) if fit.interrupted => return Err(Error::Interrupted),
            Ok((fit, forgetting)) => {
                run.forgetting = forgetting;
                (run.ruined, run.steps) = (is_ruined(&fit), fit.state.step);
                (run.before, run.after) = (fit.state.first_validation, fit.state.last_validation);
            }
            // What follows names checkpoints, which go.
            Err(Error::Diverged { message, .. }) => run.failed = message.split(';').next().map(str::to_owned),
            Err(error) => return Err(error),
        }
        files::add_steps(&mut run, &recipe.output_dir)?;
        kept.add(run)?;
        // The run is done: nothing will go on from there.
        remove_folder_atomic(&checkpoints_folder(&recipe.output_dir));
        Ok(())
    }

    /// Evaluates the tasks on the adapter of a run, unless that is done.
    fn measure(&mut self, arm: &Arm, kept: &mut Kept, observer: &mut dyn Observer) -> Result<()> {
        let is_due = kept.run(arm).is_some_and(|run| run.failed.is_none() && run.tasks.is_empty());
        if self.request.eval.tasks.is_empty() || !is_due {
            return Ok(());
        }
        let folder = self.request.output.join(arm.place());
        let adapter = AdapterBundle::load(&folder, &self.prepared.base)?;
        self.model.params.assign(&adapter.tensors, &folder)?;
        self.bench.adapter = Some((arm.place().display().to_string(), hash_of(&folder)?));
        let results = self.evaluate("adapter", arm.place().join("eval"), observer)?;
        kept.add_tasks(arm, results.rows)
    }

    /// The steps of a run, from its last checkpoint where there is one. `known`: the held-out rows before training.
    fn take_steps(
        &mut self,
        recipe: &Recipe,
        known: Option<&Validation>,
        observer: &mut dyn Observer,
    ) -> Result<(FitSummary, Option<Forgetting>)> {
        let mut forgetting = None;
        let resume = !Checkpoint::steps(&recipe.output_dir).is_empty();
        let options = RunOptions {
            offline: self.request.offline,
            resume,
            overwrite: !resume && recipe.output_dir.exists(),
            ..RunOptions::default()
        };
        self.prepared.order_by(recipe);
        let (prepared, model) = (&self.prepared, &self.model);
        prepared.begin_anew(recipe, model, observer)?;
        let out = OutputFolder::open(recipe, &options)?;
        let started = if resume { output::started(recipe, &options)? } else { self.started };
        let beside = Beside { first_validation: known, ..Beside::default() };
        let fit = take_steps(recipe, &options, (prepared, model), beside, (&out, Vec::new(), started), observer)?;
        if !fit.interrupted {
            // As `end` does, but for the sample and the upload.
            output::write_adapter(prepared.adapter_files(recipe)?.config, model.params.as_tensors()?, &out)?;
            card::write_tokenizer(prepared, &out, observer)?;
            let measured = MeasuredAtEnd::new(recipe, (prepared, model), None, observer);
            card::write_card(recipe, prepared, &fit, (None, &measured), &out)?;
            forgetting = measured.forgetting;
        }
        Ok((fit, forgetting))
    }

    /// The tasks on the base, or on the adapter that the model holds; files go to a folder of the comparison.
    fn evaluate(&self, what: &'static str, folder: PathBuf, observer: &mut dyn Observer) -> Result<ModelResults> {
        let output = self.request.output.join(folder);
        let request = EvalRequest { output: Some(output), resume: false, ..self.request.eval.clone() };
        let run = Run { request: &request, bench: &self.bench, model: &self.model, questions: &self.questions };
        let journal = run.continued()?;
        let results = run.evaluate(what, journal.as_ref(), observer)?;
        if let Some(journal) = journal {
            run.close(journal, std::slice::from_ref(&results))?;
        }
        Ok(results)
    }

    fn report(&self, kept: &Kept, chosen: &[(Named, f64)]) -> Result<ObjectivesReport> {
        let chosen: Vec<(String, f64)> = chosen.iter().map(|(of, rate)| (of.name.clone(), *rate)).collect();
        let seeds = arms::seeds(self.recipe, self.request);
        let mut report = table::report(kept, &chosen, &seeds, self.tasks, &self.request.output)?;
        let data = &self.prepared.dataset.report;
        if self.recipe.lora.init_from.is_none() {
            report.before = kept.runs().iter().find_map(|run| run.before.clone());
        }
        report.name.clone_from(&self.recipe.name);
        report.base.clone_from(&self.recipe.base.model);
        (report.train_rows, report.validation_rows) = (data.train_rows, data.validation_rows);
        report.device = self.prepared.device_name();
        report.learning_rates.clone_from(&self.request.learning_rates);
        report.select_by.clone_from(&self.request.select_by);
        report.limit = self.request.eval.limit;
        let training = &self.recipe.training;
        report.rows_per_step = training.micro_batch_size * training.gradient_accumulation_steps;
        Ok(report)
    }
}

/// Whether the disk has room for the runs that are to come.
fn check_room(
    request: &ObjectivesRequest,
    objectives: usize,
    prepared: &Prepared,
    model: &Model,
    kept: &Kept,
) -> Result<()> {
    // With the first seed, the best of several learning rates is one of the runs that look for it.
    let of_each = request.learning_rates.len().saturating_sub(1) + request.seeds;
    let to_come = (objectives * of_each).saturating_sub(kept.runs().len());
    let tokenizer = tokenizer_files(&prepared.base, prepared.chat_template.as_deref()).unwrap_or_default();
    let beside = tokenizer.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    output::check_room(&request.output, model.params.parameters(), (to_come, beside))
}

/// Hears what a run says of itself once for all of them: notes and warnings are not said again, headers and verdicts not at all.
struct Inner<'a> {
    observer: &'a mut dyn Observer,
    said: Vec<String>,
}

impl Observer for Inner<'_> {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Run(_) | Event::Health(_) | Event::Saved { .. } => return,
            Event::Note(text) | Event::Warning(text) => {
                if self.said.contains(text) {
                    return;
                }
                self.said.push(text.clone());
            }
            _ => {}
        }
        self.observer.event(event);
    }

    fn stop_requested(&self) -> bool {
        self.observer.stop_requested()
    }
}
