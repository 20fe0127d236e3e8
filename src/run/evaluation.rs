//! The recipe's tasks: read before the model, asked with the validations or at the end.

use super::RunOptions;
use super::eval::bench::{Bench, hash_of};
use super::eval::{EvalRequest, ModelResults, Questions, ResultRow, Run, TaskSet};
use super::output::EVAL;
use super::prepare::Prepared;
use crate::error::{Error, Result};
use crate::eval::{EvalStrategy, evaluation_files, remove_empty_folders};
use crate::models::Model;
use crate::recipe::Recipe;
use crate::train::metrics::TaskScore;
use crate::train::{MetricForBest, Observer, TaskScorer};
use serde::Serialize;
use std::path::PathBuf;

/// The tasks of a recipe with their documents.
pub(super) struct RunTasks {
    request: EvalRequest,
    set: TaskSet,
    strategy: EvalStrategy,
}

impl RunTasks {
    /// Those that the recipe names; `None` where it names none.
    ///
    /// # Errors
    /// When a task is not known, its documents cannot be read, or none has the metric that chooses the best adapter.
    pub fn read(recipe: &Recipe, options: &RunOptions, observer: &mut dyn Observer) -> Result<Option<Self>> {
        let config = &recipe.evaluation;
        if config.tasks.is_empty() {
            return Ok(None);
        }
        let request = EvalRequest {
            model: recipe.base.model.clone(),
            base: None,
            tasks: config.tasks.clone(),
            include: config.include_path.iter().map(Into::into).collect(),
            num_fewshot: config.num_fewshot,
            limit: config.limit,
            output: Some(recipe.output_dir.join(EVAL)),
            resume: false,
            apply_chat_template: config.apply_chat_template,
            fewshot_as_multiturn: true,
            system_instruction: None,
            quantization: None,
            compute: recipe.compute,
            device: recipe.device,
            batch_tokens: config.batch_tokens,
            max_length: None,
            without: None,
            option_shifts: false,
            seed: EvalRequest::SEED,
            offline: options.offline,
        };
        let folder = recipe.output_dir.join(EVAL);
        if folder.exists() && !folder.is_dir() {
            return Err(Error::file(
                folder,
                "is a file, and the answers to `evaluation.tasks` go into a folder of that name",
            )
            .with_help("move it away, or set another `output_dir`"));
        }
        let set = TaskSet::read(&request.wanted(), observer).map_err(|error| in_keys(&error))?;
        let decides = recipe.training.metric_for_best_model.as_ref();
        if let Some(MetricForBest::Task(of)) = decides {
            let known = set.all_metrics();
            if !known.iter().any(|(metric, filters)| {
                (&metric.task, &metric.metric) == (&of.task, &of.metric)
                    && of.filter.as_ref().is_none_or(|filter| filters.contains(filter))
            }) {
                let names = known.iter().flat_map(|(metric, filters)| match &filters[..] {
                    [] | [_] => vec![format!("`{metric}`")],
                    several => several.iter().map(|filter| format!("`{metric},{filter}`")).collect(),
                });
                let known: Vec<String> = names.collect();
                return Err(Error::invalid(format!(
                    "training.metric_for_best_model: none of the tasks in `evaluation.tasks` has the metric `{of}`"
                ))
                .with_help(format!("they have {}", known.join(", "))));
            }
        }
        let strategy = config.strategy(matches!(decides, Some(MetricForBest::Task(_))));
        Ok(Some(Self { request, set, strategy }))
    }

    /// How often all of them are asked in a run with so many validations: at its end of base and adapter.
    pub const fn passes(&self, validations: usize) -> usize {
        match self.strategy {
            EvalStrategy::End => 2,
            EvalStrategy::Steps => validations + 2,
        }
    }

    /// Documents of all tasks.
    pub fn items(&self) -> Vec<(String, usize)> {
        self.set.tasks.iter().map(|task| (task.config.alias().to_owned(), task.documents.len())).collect()
    }
}

/// The tasks, asked of a run's model.
pub(super) struct Evaluation<'a> {
    tasks: &'a RunTasks,
    bench: Bench,
    questions: Questions<'a>,
    /// Whether a text of the tasks is why the model uses its long `RoPE` factors, for the rows that are trained on too.
    pub long_rotations: bool,
}

impl<'a> Evaluation<'a> {
    /// Makes tokens of what is asked, and the model's rotations long enough for it.
    ///
    /// # Errors
    /// Names the task and the document that cannot be asked about; when the tasks are wanted with each validation, and there are no
    /// rows to validate on.
    pub fn new(
        tasks: &'a RunTasks,
        recipe: &Recipe,
        prepared: &Prepared,
        model: &mut Model,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        if tasks.strategy == EvalStrategy::Steps && prepared.dataset.validation.is_empty() {
            return Err(Error::invalid(
                "evaluation.eval_strategy: tasks are measured with the validations, and the recipe holds out no rows for them",
            )
            .with_help("set `data.validation`, or `data.validation_split: 0.1`; or have the tasks measured at the end alone: `evaluation.eval_strategy: end`, \
                 and no task in `training.metric_for_best_model`"));
        }
        let name = (&prepared.base, recipe.base.model.clone());
        let template = prepared.chat_template.as_deref();
        let bench = Bench::new(name, None, template, model, prepared.device.clone(), recipe.compute)?;
        let questions = Questions::new(&tasks.request, &bench, &tasks.set).map_err(|error| in_keys(&error))?;
        let long_rotations = questions.fit(model, observer);
        Ok(Self { tasks, bench, questions, long_rotations })
    }

    /// Tokens that it takes to answer all items once, those that are generated left out.
    pub fn tokens(&self) -> usize {
        self.questions.tokens()
    }

    /// What measures the tasks with each validation, where the recipe wants that.
    pub fn with_validations<'b>(&'b self, model: &'b Model) -> Option<WithValidations<'b>> {
        let run = Run { request: &self.tasks.request, bench: &self.bench, model, questions: &self.questions };
        (self.tasks.strategy == EvalStrategy::Steps).then_some(WithValidations(run))
    }

    /// The tasks on the base and on the adapter in the output folder, with lm-eval's files beside it. One that was interrupted goes on.
    ///
    /// # Errors
    /// When the model gives no numbers, or device or disk refuse; [`Error::Interrupted`].
    pub fn at_end(mut self, recipe: &Recipe, model: &Model, observer: &mut dyn Observer) -> Result<Vec<ModelResults>> {
        // By its name, so that the folder may be moved.
        self.bench.adapter = Some((recipe.name.clone(), hash_of(&recipe.output_dir)?));
        let run = Run { request: &self.tasks.request, bench: &self.bench, model, questions: &self.questions };
        let journal = run.continued()?;
        let results = vec![
            run.evaluate("base", journal.as_ref(), observer)?,
            run.evaluate("adapter", journal.as_ref(), observer)?,
        ];
        if let Some(journal) = journal {
            run.close(journal, &results)?;
        }
        // Of an earlier adapter, or of other tasks.
        let folder = recipe.output_dir.join(EVAL);
        let now: Vec<&PathBuf> = results.iter().flat_map(|of| &of.files).collect();
        for path in evaluation_files(&folder).iter().filter(|path| !now.contains(path)) {
            std::fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
        remove_empty_folders(&folder);
        Ok(results)
    }
}

/// An error that names the command line's flags, in the recipe's keys.
fn in_keys(error: &Error) -> Error {
    let keys = |text: &str| {
        [
            ("--include-path", "evaluation.include_path"),
            ("--num-fewshot", "evaluation.num_fewshot"),
            ("--apply-chat-template", "evaluation.apply_chat_template"),
            ("--limit", "evaluation.limit"),
        ]
        .iter()
        .fold(text.to_owned(), |text, (flag, key)| text.replace(flag, key))
    };
    let located = Error::invalid(keys(&error.to_string()));
    match error.help().map(keys) {
        Some(help) => located.with_help(help),
        None => located,
    }
}

/// Measures tasks while a run is trained.
pub(super) struct WithValidations<'a>(Run<'a>);

impl TaskScorer for WithValidations<'_> {
    fn scores(&self, observer: &mut dyn Observer) -> Result<Option<Vec<TaskScore>>> {
        match self.0.evaluate("adapter", None, observer) {
            Ok(results) => Ok(Some(results.rows.into_iter().map(|row| row.score).collect())),
            Err(Error::Interrupted) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fingerprint(&self) -> String {
        self.0.questions.fingerprint()
    }
}

/// A metric of a task under the base and under the adapter that a run ends with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskChange {
    /// With the adapter.
    #[serde(flatten)]
    pub after: ResultRow,
    /// Under the base alone.
    pub base: f64,
    /// Its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_stderr: Option<f64>,
}

impl TaskChange {
    /// Those of an evaluation's two models.
    pub(super) fn of(results: &[ModelResults]) -> Vec<Self> {
        let [base, adapter] = results else { return Vec::new() };
        let rows = base.rows.iter().zip(&adapter.rows);
        let change = |(base, after): (&ResultRow, &ResultRow)| Self {
            after: after.clone(),
            base: base.score.value,
            base_stderr: base.score.stderr,
        };
        rows.map(change).collect()
    }

    /// Task, metric, and the filter where there is one.
    pub fn name(&self) -> String {
        let ResultRow { alias, score: TaskScore { metric, filter, .. }, .. } = &self.after;
        if filter == "none" { format!("{alias} {metric}") } else { format!("{alias} {metric} ({filter})") }
    }

    /// The two values: `0.4140 → 0.5822 ± 0.0221`.
    pub fn text(&self) -> String {
        let TaskScore { value, stderr, .. } = self.after.score;
        let stderr = stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.4}"));
        format!("{:.4} → {value:.4}{stderr}", self.base)
    }
}
