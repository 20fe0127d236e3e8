//! Tasks on a model: a base, an adapter beside its base, a merged folder, or a GGUF file.

pub(super) mod bench;
mod choices;
mod documents;
mod request;
mod rest;
mod tasks;

pub use choices::{ChoiceReport, PlaceShare, ShiftReport};
pub use request::EvalRequest;
pub use rest::{LeftOutItems, RestReport};
pub(super) use tasks::{TaskSet, WantedTasks};

use crate::device::process_memory;
use crate::error::{Error, Result};
use crate::eval::{
    Aggregate, Answer, Asked, Chosen, ItemValue, Journal, Prepared, RunFacts, SelectedGroup, TaskHash, TaskResult,
    aggregate, evaluate_item, file_stamp, group_results, requests_of, results_json,
};
use crate::models::Model;
use crate::train::metrics::TaskScore;
use crate::train::{Event, Observer};
use bench::Bench;
use rest::LeftOuts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A model's results.
#[derive(Debug, Clone, Serialize)]
pub struct ModelResults {
    /// Its name, as it was given.
    pub model: String,
    /// `adapter`, or `base` for the base alone.
    pub what: &'static str,
    /// Tasks, and the groups that they are in, as they are shown.
    pub rows: Vec<ResultRow>,
    /// The files that were written.
    pub files: Vec<PathBuf>,
    /// How it chose in the tasks that are multiple choices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<ChoiceReport>,
    /// The scores on what `EvalRequest::without` leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rest: Option<RestReport>,
    /// Items that this process answered, and in how many seconds.
    pub items: usize,
    /// Seconds in answering them.
    pub seconds: f64,
    /// The process's peak memory in bytes, where the system says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
}

/// A metric of a task or a group, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Its value, and of what.
    #[serde(flatten)]
    pub score: TaskScore,
    /// The task's name in tables.
    pub alias: String,
    /// Whether it is a group.
    pub group: bool,
    /// What a guess among the choices gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// What the best constant answer gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_constant: Option<f64>,
}

/// Evaluates tasks on a model; on an adapter and on its base alone.
///
/// # Errors
/// When a task, its documents or the model cannot be read, do not fit each other, or the disk refuses;
/// [`Error::Interrupted`] where it was asked to stop. What was answered by then is in the journal.
pub fn evaluate(request: &EvalRequest, observer: &mut dyn Observer) -> Result<Vec<ModelResults>> {
    // What can be known without a model comes first.
    let tasks = TaskSet::read(&request.wanted(), observer)?;
    if request.resume && request.output.is_none() {
        return Err(Error::invalid("--resume: an evaluation goes on in its folder, and `--output-path` names none"));
    }
    let left_out = request.without.as_deref().map(|path| LeftOuts::read(path, &tasks, observer)).transpose()?;
    let (bench, mut model) = Bench::open(request, observer)?;
    observer.event(&Event::Phase("tokenizing".into()));
    let questions = Questions { left_out, ..Questions::new(request, &bench, &tasks)? };
    questions.fit(&mut model, observer);

    let run = Run { request, bench: &bench, model: &model, questions: &questions };
    let whats: &[&'static str] = if bench.adapter.is_some() { &["base", "adapter"] } else { &["base"] };
    let journal = run.journal()?;
    let results =
        whats.iter().map(|what| run.evaluate(what, journal.as_ref(), observer)).collect::<Result<Vec<_>>>()?;
    if let Some(journal) = journal {
        run.close(journal, &results)?;
    }
    Ok(results)
}

/// What is asked about each document of each task, in a model's tokens.
pub(super) struct Questions<'a> {
    set: &'a TaskSet,
    asked: Vec<Vec<Asked>>,
    chat_template: Option<String>,
    left_out: Option<LeftOuts>,
}

impl<'a> Questions<'a> {
    /// Those of all documents.
    ///
    /// # Errors
    /// Names the task and the document that cannot be asked about.
    pub(super) fn new(request: &EvalRequest, bench: &Bench, set: &'a TaskSet) -> Result<Self> {
        let chat = request.chat(bench)?;
        let template = request.apply_chat_template.then(|| bench.template()).transpose()?;
        let tokens = bench.tokens();
        let of_task = |task: &Prepared| {
            (0..task.documents.len()).map(|id| requests_of(task, id, &chat, &tokens)).collect::<Result<Vec<Asked>>>()
        };
        let asked = set.tasks.iter().map(of_task).collect::<Result<_>>()?;
        Ok(Self { set, asked, chat_template: template.map(|(_, source)| source.to_owned()), left_out: None })
    }

    /// A hash of all that is asked: the tasks' settings and their documents.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for task in &self.set.tasks {
            hash.update(json!(task.config).to_string());
        }
        hash.update(self.documents());
        format!("{:x}", hash.finalize())
    }

    /// A hash of what is asked about the documents.
    fn documents(&self) -> String {
        let mut hash = Sha256::new();
        for asked in self.asked.iter().flatten() {
            hash.update(asked.identity());
        }
        format!("{:x}", hash.finalize())
    }

    /// Makes the model's rotations long enough for the longest text; whether that changes them. Says so, and which prompts are cut.
    pub(super) fn fit(&self, model: &mut Model, observer: &mut dyn Observer) -> bool {
        for (task, asked) in self.set.tasks.iter().zip(&self.asked) {
            let cut = asked.iter().filter(|asked| asked.is_cut).count();
            if cut > 0 {
                observer.event(&Event::Note(format!(
                    "{}: {cut} of {} prompts are longer than a text may be, and lose their beginning",
                    task.config.alias(),
                    asked.len()
                )));
            }
        }
        let longest = self.longest();
        let changed = model.lm.fit_rotations(longest);
        if changed {
            observer.event(&Event::Note(format!(
                "the longest text of the tasks has {longest} tokens, more than the base's original context: all texts, rows that are \
                 trained on too, use its long RoPE factors, as servers with a longer context do"
            )));
        }
        changed
    }

    /// Tokens that it takes to answer everything once, those that are generated left out.
    pub(super) fn tokens(&self) -> usize {
        self.asked.iter().flatten().map(Asked::tokens).sum()
    }

    /// Positions of the longest text.
    fn longest(&self) -> usize {
        self.asked.iter().flatten().map(Asked::positions).max().unwrap_or(0)
    }
}

/// An evaluation of a model.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub request: &'a EvalRequest,
    pub bench: &'a Bench,
    pub model: &'a Model,
    pub questions: &'a Questions<'a>,
}

/// By filter and metric, in the order of the documents.
type ItemValues = Vec<BTreeMap<String, Vec<ItemValue>>>;

/// A task's items as they come in.
#[derive(Default)]
struct Collected {
    values: ItemValues,
    hashes: Vec<TaskHash>,
    /// The choices, of documents with one right choice.
    chosen: Vec<Chosen>,
}

/// What came of a task.
struct Outcome {
    /// Its numbers, and its samples' hash.
    result: (TaskResult, String),
    /// The choices, where each document has one that is right.
    chosen: Option<Vec<Chosen>>,
    /// The items' values.
    values: ItemValues,
}

impl Run<'_> {
    fn tasks(&self) -> &[Prepared] {
        &self.questions.set.tasks
    }

    fn model_name(&self, what: &str) -> &str {
        match &self.bench.adapter {
            Some((adapter, _)) if what == "adapter" => adapter,
            _ => &self.bench.base_name,
        }
    }

    /// The tasks, each with the number of its filters.
    fn names(&self) -> Vec<(String, usize)> {
        self.tasks().iter().map(|task| (task.config.task.clone(), task.filter_names().count())).collect()
    }

    /// Everything that decides about the answers.
    fn identity(&self) -> Value {
        let (request, bench) = (self.request, self.bench);
        let configs: Map<String, Value> =
            self.tasks().iter().map(|task| (task.config.task.clone(), json!(task.config))).collect();
        json!({
            "base": bench.base_sha256,
            "adapter": bench.adapter,
            "tasks": configs,
            "limit": request.limit,
            "documents": self.questions.documents(),
            "compute": bench.compute.name(),
            "device": if bench.device.is_cpu() { "cpu" } else { "cuda" },
            "quantization": request.quantization,
            "batch_tokens": request.batch_tokens,
            "max_length": self.bench.max_length,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    fn journal(&self) -> Result<Option<Journal>> {
        let Some(output) = &self.request.output else { return Ok(None) };
        if self.request.resume {
            return Journal::resume(output, &self.identity()).map(Some);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Journal::start(output, &file_stamp(since.as_secs(), since.subsec_micros()), &self.identity()).map(Some)
    }

    /// Goes on with the unfinished evaluation in the request's folder if it was of the same, else begins one.
    pub(super) fn continued(&self) -> Result<Option<Journal>> {
        let Some(output) = &self.request.output else { return Ok(None) };
        Journal::unfinished(output, &self.identity())?.map_or_else(|| self.journal(), |journal| Ok(Some(journal)))
    }

    /// Removes the journal of results that are written.
    pub(super) fn close(&self, journal: Journal, results: &[ModelResults]) -> Result<()> {
        let models: Vec<&str> = results.iter().map(|of| of.model.as_str()).collect();
        journal.close(&models, &self.names())
    }

    /// The results of the base, or of the adapter.
    pub(super) fn evaluate(
        &self,
        what: &'static str,
        journal: Option<&Journal>,
        observer: &mut dyn Observer,
    ) -> Result<ModelResults> {
        let (started, clock) = (SystemTime::now(), Instant::now());
        let (mut outcomes, mut answered) = (Vec::new(), 0);
        for (task, asked) in self.tasks().iter().zip(&self.questions.asked) {
            let (outcome, items) = self.evaluate_task((task, asked), what, journal, observer)?;
            outcomes.push(outcome);
            answered += items;
        }
        let results: Vec<&TaskResult> = outcomes.iter().map(|of: &Outcome| &of.result.0).collect();
        let groups = self.groups(&results);
        let rest = self.rest(&outcomes)?;
        let (seconds, model) = (clock.elapsed().as_secs_f64(), self.model_name(what));
        let files = journal.map_or_else(
            || Ok(Vec::new()),
            |journal| {
                let tasks: Vec<_> = self.tasks().iter().zip(outcomes.iter().map(|of| &of.result)).collect();
                let mut results = results_json(&tasks, &groups, &self.facts((what, model), started, seconds));
                if let Some((rest, report)) = &rest {
                    results["rest"] = report.json(rest);
                }
                journal.publish(model, &self.names(), &results)
            },
        )?;
        let choices = self.choices(&outcomes, what, observer)?;
        Ok(ModelResults {
            model: model.to_owned(),
            what,
            rows: self.rows(&results, &groups),
            files,
            choices,
            rest: rest.map(|(_, report)| report),
            items: answered,
            seconds,
            peak_memory: process_memory().map(|(peak, _)| peak),
        })
    }

    /// A task, and how many of its items were answered now.
    fn evaluate_task(
        &self,
        (task, asked): (&Prepared, &[Asked]),
        what: &str,
        journal: Option<&Journal>,
        observer: &mut dyn Observer,
    ) -> Result<(Outcome, usize)> {
        let (model, most) = (self.model_name(what), self.request.batch_tokens);
        let scorer = self.bench.scorer(self.model, what == "adapter", most);
        let mut collected = Collected::default();
        let known = journal.map_or_else(|| Ok(Vec::new()), |journal| journal.answers(model, task, asked))?;
        for (asked, answer) in asked.iter().zip(&known) {
            collected.add(task, asked, answer)?;
        }
        let done = known.len();
        for batch in batches(asked, most).into_iter().filter(|batch| batch.end > done) {
            let (what, total) = (format!("{} on the {what}", task.config.alias()), asked.len());
            observer.event(&Event::Items { what, done: batch.start.max(done), total });
            if observer.stop_requested() {
                return Err(Error::Interrupted);
            }
            let batch = &asked[batch];
            let mut lines = Vec::new();
            for (asked, answer) in batch.iter().zip(scorer.answer(batch)?).filter(|(asked, _)| asked.doc_id >= done) {
                lines.extend(collected.add(task, asked, &answer)?);
            }
            if let Some(journal) = journal {
                journal.append(model, &task.config.task, &lines)?;
            }
        }
        Ok((collected.finish(task, self.request.seed)?, asked.len() - done))
    }

    fn groups(&self, results: &[&TaskResult]) -> Vec<(TaskResult, Vec<String>, Value)> {
        let of_group = |group: &SelectedGroup| {
            let tasks: Vec<&TaskResult> =
                results.iter().copied().filter(|task| group.tasks.contains(&task.name)).collect();
            let result = TaskResult {
                name: group.name.clone(),
                alias: group.alias.clone(),
                sample_len: tasks.iter().map(|task| task.sample_len).sum(),
                metrics: group_results(&group.metrics, &tasks),
            };
            (result, group.children.clone(), group.version.clone())
        };
        self.questions.set.selected.groups.iter().map(of_group).collect()
    }

    fn facts(&self, (what, model): (&str, &str), started: SystemTime, seconds: f64) -> RunFacts {
        let request = self.request;
        let config = json!({
            "model": "equipoise",
            "model_args": model,
            "adapter": what == "adapter",
            "model_num_parameters": self.model.report.parameters,
            "model_dtype": self.bench.compute.name(),
            "model_sha": self.bench.base_sha256,
            "batch_size": format!("{} tokens", request.batch_tokens),
            "device": if self.bench.device.is_cpu() { "cpu" } else { "cuda" },
            "limit": request.limit,
            "gen_kwargs": Value::Null,
            "random_seed": request.seed,
        });
        RunFacts {
            model: model.to_owned(),
            config: config.as_object().cloned().unwrap_or_default(),
            started: started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            seconds,
            max_length: self.bench.max_length,
            system_instruction: request.system_instruction.clone(),
            chat_template: self.questions.chat_template.clone(),
            fewshot_as_multiturn: request.apply_chat_template && request.fewshot_as_multiturn,
        }
    }

    fn rows(&self, results: &[&TaskResult], groups: &[(TaskResult, Vec<String>, Value)]) -> Vec<ResultRow> {
        let mut rows = Vec::new();
        for ((task, asked), result) in self.tasks().iter().zip(&self.questions.asked).zip(results) {
            let floors = task.floors(asked);
            rows.extend(result.metrics.iter().map(|of| row(result, of, false, floors)));
        }
        for (result, ..) in groups {
            rows.extend(result.metrics.iter().map(|of| row(result, of, true, None)));
        }
        rows
    }
}

fn row(result: &TaskResult, of: &Aggregate, group: bool, floors: Option<(f64, f64)>) -> ResultRow {
    let (metric, filter) = of.key.split_once(',').unwrap_or((&of.key, "none"));
    let floors = floors.filter(|_| metric.starts_with("acc"));
    ResultRow {
        score: TaskScore {
            task: result.name.clone(),
            metric: metric.to_owned(),
            filter: filter.to_owned(),
            value: of.value,
            stderr: of.stderr,
            higher_is_better: of.higher_is_better,
            items: of.items,
        },
        alias: result.alias.clone(),
        group,
        chance: floors.map(|(chance, _)| chance),
        best_constant: floors.map(|(_, constant)| constant),
    }
}

impl Collected {
    /// Takes an item; the lines of the samples file for it.
    fn add(&mut self, task: &Prepared, asked: &Asked, answer: &Answer) -> Result<Vec<Map<String, Value>>> {
        let item = evaluate_item(task, asked, answer)?;
        self.chosen.extend(asked.chosen(answer));
        self.values.resize_with(item.values.len(), BTreeMap::new);
        self.hashes.resize_with(item.lines.len(), TaskHash::default);
        for (hash, line) in self.hashes.iter_mut().zip(&item.lines) {
            hash.add(line);
        }
        for (all, values) in self.values.iter_mut().zip(item.values) {
            for (metric, value) in values {
                all.entry(metric).or_default().push(value);
            }
        }
        Ok(item.lines)
    }

    fn finish(self, task: &Prepared, seed: u64) -> Result<Outcome> {
        let result = result_of(task, &self.values, task.documents.len(), seed)?;
        let chosen = Some(self.chosen).filter(|chosen| chosen.len() == task.documents.len());
        Ok(Outcome { result: (result, TaskHash::of_all(&self.hashes)), chosen, values: self.values })
    }
}

/// A task's metrics over the values of so many items.
fn result_of(task: &Prepared, values: &ItemValues, items: usize, seed: u64) -> Result<TaskResult> {
    let mut metrics = Vec::new();
    for (filter, values) in task.filter_names().zip(values) {
        for metric in &task.metrics {
            let values = values.get(&metric.metric).filter(|values| values.len() == items);
            let values = values.ok_or_else(|| {
                Error::invalid(format!("internal: `{}` was not measured on each item", metric.metric))
            })?;
            metrics.push(aggregate(metric, filter, values, seed));
        }
    }
    let (name, alias) = (task.config.task.clone(), task.config.alias().to_owned());
    Ok(TaskResult { name, alias, sample_len: items, metrics })
}

/// Documents that go through the model together: always the same ones, so that an evaluation that goes on has the same numbers.
fn batches(asked: &[Asked], most: usize) -> Vec<std::ops::Range<usize>> {
    let (mut batches, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (i, item) in asked.iter().enumerate() {
        let alone = item.generation.is_some();
        if i > start && (alone || tokens + item.tokens() > most) {
            batches.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += item.tokens();
    }
    if start < asked.len() {
        batches.push(start..asked.len());
    }
    batches
}
