//! A comparison on the disk: what is done (`comparison.json`), and its tables as JSON, CSV and Markdown.

use super::arms::{Arm, held_out_by};
use super::table::ObjectivesReport;
use super::{ObjectiveRun, ObjectivesRequest, Questions, ResultRow};
use crate::error::{Error, Result};
use crate::eval::{difference, pretty};
use crate::fs::{read_within, sweep, write_atomic};
use crate::recipe::Recipe;
use crate::run::output::{lock, now};
use crate::run::prepare::Prepared;
use crate::statistics::{mean, quantile};
use crate::train::METRICS;
use crate::train::metrics::TaskScore;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};

const STATE: &str = "comparison.json";
/// The most bytes of that file.
const MOST_STATE: u64 = 256 << 20;

/// What is done of a comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    /// All that decides about a run's result, but for what its name says.
    identity: Value,
    /// When the comparison began, in seconds since 1970.
    started: u64,
    /// What the finished runs have in common, by name: base, tokens, device, tasks.
    of: Option<BTreeMap<String, String>>,
    /// The tasks on the base alone.
    base: Option<Vec<ResultRow>>,
    runs: Vec<ObjectiveRun>,
}

/// A comparison's folder.
pub(super) struct Kept {
    folder: PathBuf,
    state: State,
    /// Held from the first writing on, until the process ends.
    lock: Option<File>,
}

impl Kept {
    /// Begins a comparison, or goes on with the one that is there.
    ///
    /// # Errors
    /// When the folder holds something else, or a comparison that nobody asked to go on with; when the disk refuses.
    pub fn open(recipe: &Recipe, request: &ObjectivesRequest) -> Result<Self> {
        let folder = request.output.clone();
        let path = folder.join(STATE);
        let identity = identity(recipe, request)?;
        if !path.is_file() {
            // Hidden files are what a killed run left half-written.
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let mut visible = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
            if visible.next().is_some() {
                return Err(Error::file(&folder, "is not empty, and holds no comparison of objectives")
                    .with_help("give another folder with `--output-path`"));
            }
            let state = State { identity, started: now(), of: None, base: None, runs: Vec::new() };
            return Ok(Self { folder, state, lock: None });
        }
        if !request.resume {
            return Err(Error::file(&folder, "holds a comparison already").with_help(
                "`--resume` goes on with it, also with more seeds or objectives; `--output-path` takes another folder",
            ));
        }
        let lock = Some(lock(&folder)?);
        sweep(&folder);
        let state: State = serde_json::from_slice(&read_within(&path, MOST_STATE)?)
            .map_err(|error| Error::file(&path, format!("cannot be read: {error}")))?;
        if let Some(what) = difference(&state.identity, &identity) {
            return Err(Error::file(&path, format!("the comparison differs in `{what}`")).with_help(
                "put it back as it was; objectives, seeds and learning rates alone may be added. Or give another `--output-path`",
            ));
        }
        Ok(Self { folder, state, lock })
    }

    pub const fn started(&self) -> u64 {
        self.state.started
    }

    /// That base, tokens, device and tasks are still what the finished runs had.
    pub fn check(&mut self, prepared: &Prepared, recipe: &Recipe, questions: &Questions<'_>) -> Result<()> {
        let of = prepared.identity(recipe)?;
        let now = [
            ("the base", of.base),
            ("the data", of.data),
            ("the kind of device or of its arithmetic", of.device),
            ("a task or its documents", questions.fingerprint()),
        ];
        let now: BTreeMap<String, String> = now.map(|(what, of)| (what.to_owned(), of)).into();
        if let Some(before) = &self.state.of {
            let changed = now.iter().find(|(what, of)| before.get(*what) != Some(of));
            if let Some((what, _)) = changed {
                return Err(Error::file(self.folder.join(STATE), format!("{what} changed since the comparison began"))
                    .with_help("put back what changed, or give another `--output-path`"));
            }
        }
        self.state.of = Some(now);
        self.save()
    }

    pub fn base(&self) -> Option<&[ResultRow]> {
        self.state.base.as_deref()
    }

    pub fn add_base(&mut self, rows: Vec<ResultRow>) -> Result<()> {
        self.state.base = Some(rows);
        self.save()
    }

    /// A run that is done.
    pub fn run(&self, arm: &Arm) -> Option<&ObjectiveRun> {
        self.run_of(&arm.objective.name, arm.learning_rate, arm.seed)
    }

    pub fn run_of(&self, objective: &str, learning_rate: f64, seed: u64) -> Option<&ObjectiveRun> {
        let is_it =
            |run: &&ObjectiveRun| run.objective == objective && run.learning_rate == learning_rate && run.seed == seed;
        self.state.runs.iter().find(is_it)
    }

    pub fn runs(&self) -> &[ObjectiveRun] {
        &self.state.runs
    }

    pub fn add(&mut self, run: ObjectiveRun) -> Result<()> {
        self.state.runs.push(run);
        self.save()
    }

    /// Adds what a run's adapter gets in the tasks.
    pub fn add_tasks(&mut self, arm: &Arm, rows: Vec<ResultRow>) -> Result<()> {
        let is_it = |run: &&mut ObjectiveRun| {
            run.objective == arm.objective.name && run.learning_rate == arm.learning_rate && run.seed == arm.seed
        };
        if let Some(run) = self.state.runs.iter_mut().find(is_it) {
            run.tasks = rows;
        }
        self.save()
    }

    fn save(&mut self) -> Result<()> {
        let path = self.folder.join(STATE);
        if self.lock.is_none() {
            std::fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
            self.lock = Some(lock(&self.folder)?);
            if path.exists() {
                return Err(Error::file(&self.folder, "another process began a comparison there meanwhile")
                    .with_help("`--resume` goes on with it; `--output-path` takes another folder"));
            }
        }
        write_atomic(&path, &pretty(&self.state)?)
    }

    /// Writes the tables.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn publish(&self, report: &ObjectivesReport) -> Result<()> {
        write_atomic(&self.folder.join("objectives.json"), &pretty(report)?)?;
        write_atomic(&self.folder.join("objectives.csv"), csv(report).as_bytes())?;
        write_atomic(&self.folder.join("objectives.md"), super::table::markdown(report).as_bytes())
    }
}

/// All that decides about a run but objective, learning rate and seed, which are in its name.
fn identity(recipe: &Recipe, request: &ObjectivesRequest) -> Result<Value> {
    let mut own = recipe.clone();
    own.data.validation_seed = held_out_by(recipe);
    (own.training.seed, own.training.learning_rate) = (0, 1.0);
    (own.hub, own.output_dir) = (None, PathBuf::new());
    let recipe: Value = serde_yaml::from_str(&own.to_yaml()?)
        .map_err(|error| Error::invalid(format!("internal: the recipe cannot be read back: {error}")))?;
    let eval = &request.eval;
    Ok(json!({
        "recipe": recipe,
        "eval": {
            "tasks": eval.tasks,
            "include_path": eval.include,
            "num_fewshot": eval.num_fewshot,
            "limit": eval.limit,
            "apply_chat_template": eval.apply_chat_template,
            "batch_tokens": eval.batch_tokens,
        },
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// What the steps of a run came to, from its lines.
///
/// # Errors
/// When they cannot be read.
pub(super) fn add_steps(run: &mut ObjectiveRun, folder: &Path) -> Result<()> {
    let path = folder.join(METRICS);
    let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let steps: Vec<Value> = lines.filter(|line| line["type"] == "step").collect();
    let all = |number: &dyn Fn(&Value) -> Option<f64>| steps.iter().filter_map(number).collect::<Vec<f64>>();
    run.effective_token_share = mean(&all(&|line| line["objective"]["effective_token_share"].as_f64()));
    run.grad_norm = mean(&all(&|line| line["grad_norm"].as_f64()));
    let mut speeds = all(&|line| line["tokens_per_second"].as_f64());
    speeds.sort_by(f64::total_cmp);
    run.tokens_per_second = quantile(&speeds, 0.5);
    Ok(())
}

/// A line for each run, and one for the base alone.
fn csv(report: &ObjectivesReport) -> String {
    let tasks: Vec<(&str, &str, &str)> = report.base_tasks.iter().map(|row| of_score(&row.score)).collect();
    let mut text = String::from(
        "objective,learning_rate,seed,steps,cross_entropy,token_accuracy,token_probability,general_text_perplexity,\
         effective_token_share,grad_norm,tokens_per_second,ruined,failed",
    );
    for (task, metric, filter) in &tasks {
        let _ = write!(text, ",{}", field(&format!("{task}/{metric},{filter}")));
    }
    text.push('\n');
    let number = |of: Option<f64>| of.map_or_else(String::new, |of| of.to_string());
    let values = |rows: &[ResultRow]| {
        let of = |(task, metric, filter): &(&str, &str, &str)| {
            let row = rows.iter().find(|row| of_score(&row.score) == (*task, *metric, *filter));
            format!(",{}", number(row.map(|row| row.score.value)))
        };
        tasks.iter().map(of).collect::<String>()
    };
    let before = report.before.as_ref();
    let of = [
        before.map(|of| of.cross_entropy),
        before.map(|of| of.token_accuracy),
        before.map(|of| of.token_probability),
        report.base_general_text(),
    ]
    .map(number);
    let _ = writeln!(text, "base,,,0,{},,,,false,{}", of.join(","), values(&report.base_tasks));
    for run in &report.runs {
        let after = run.after.as_ref();
        let of = [
            after.map(|of| of.cross_entropy),
            after.map(|of| of.token_accuracy),
            after.map(|of| of.token_probability),
            run.forgetting.map(|of| of.perplexity),
            run.effective_token_share,
            run.grad_norm,
            run.tokens_per_second,
        ]
        .map(number);
        let _ = writeln!(
            text,
            "{},{},{},{},{},{},{}{}",
            field(&run.objective),
            run.learning_rate,
            run.seed,
            run.steps,
            of.join(","),
            run.ruined,
            field(run.failed.as_deref().unwrap_or_default()),
            values(&run.tasks)
        );
    }
    text
}

/// What a score is of: task, metric and filter.
fn of_score(score: &TaskScore) -> (&str, &str, &str) {
    (&score.task, &score.metric, &score.filter)
}

/// A field of a CSV file (RFC 4180).
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
