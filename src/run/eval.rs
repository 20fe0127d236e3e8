//! Tasks on a model: a base, an adapter beside its base, a merged folder, or a GGUF file.

use super::output::now;
use super::prepare::{encoder, open_base, open_device};
use super::trained_on::TrainedOn;
use crate::adapter::AdapterSummary;
use crate::data::source::RowReader;
use crate::data::{ChatTemplate, Encoder};
use crate::device::{Device, DeviceConfig, process_memory};
use crate::error::{Error, Result};
use crate::eval::{
    Aggregate, Answer, Asked, ChatSettings, Documents, ItemValue, Journal, Prepared, Registry, RunFacts, Scorer,
    Selected, TaskConfig, TaskHash, TaskResult, Tokens, aggregate, evaluate_item, file_stamp, group_results,
    model_folder, requests_of, results_json,
};
use crate::hub::{self, BaseConfig, DatasetConfig, FetchOptions};
use crate::models::{self, Continuations, Generator, Model, Sampling, Score};
use crate::nn::{QuantizationConfig, QuantizationType};
use crate::ops::{Compute, ComputeConfig, Pool};
use crate::train::{Event, Observer};
use crate::weights::Base;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What is evaluated, and how.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of its own")]
pub struct EvalRequest {
    /// An adapter, a model's folder, a GGUF file, or a Hub id.
    pub model: String,
    /// Another base than the adapter names.
    pub base: Option<String>,
    /// Names of tasks, groups and tags, or YAML files.
    pub tasks: Vec<String>,
    /// Folders and files with more tasks.
    pub include: Vec<PathBuf>,
    /// In place of a task's own number of few-shot examples.
    pub num_fewshot: Option<usize>,
    /// The first so many documents of each task alone; below 1, that share of them.
    pub limit: Option<f64>,
    /// Where the files go.
    pub output: Option<PathBuf>,
    /// Go on with the last unfinished evaluation there.
    pub resume: bool,
    /// Prompts go through the chat template.
    pub apply_chat_template: bool,
    /// Under a chat template, whether few-shot examples are turns of their own.
    pub fewshot_as_multiturn: bool,
    /// Before the description, or the system's turn.
    pub system_instruction: Option<String>,
    /// How the frozen weights are held, where that is not how an adapter was trained or a base is stored.
    pub quantization: Option<QuantizationType>,
    /// The type of products.
    pub compute: ComputeConfig,
    /// The device.
    pub device: DeviceConfig,
    /// Tokens of a forward pass, about.
    pub batch_tokens: usize,
    /// Decides the draws of bootstrapped standard errors.
    pub seed: u64,
    /// Fetch nothing.
    pub offline: bool,
}

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
    /// Items that this process answered, and in how many seconds.
    pub items: usize,
    /// Seconds in answering them.
    pub seconds: f64,
    /// The process's peak memory in bytes, where the system says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
}

/// A metric of a task or a group.
#[derive(Debug, Clone, Serialize)]
pub struct ResultRow {
    /// The task's name.
    pub task: String,
    /// Its name in tables.
    pub alias: String,
    /// Whether it is a group.
    pub group: bool,
    /// The metric.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// Its value.
    pub value: f64,
    /// Its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Items.
    pub items: usize,
    /// What a guess among the choices gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// What the best constant answer gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_constant: Option<f64>,
}

/// Everything that tasks are evaluated with.
struct Bench {
    model: Model,
    device: Device,
    encoder: Encoder,
    template_source: String,
    prefix: u32,
    ends: Vec<u32>,
    compute: Compute,
    /// Its place or id, and what its files are made of.
    base_name: String,
    base_sha256: String,
    adapter: Option<String>,
}

/// Evaluates tasks on a model; on an adapter and on its base alone.
///
/// # Errors
/// When a task, its documents or the model cannot be read, do not fit each other, or the disk refuses;
/// [`Error::Interrupted`] where it was asked to stop. What was answered by then is in the journal.
pub fn evaluate(request: &EvalRequest, observer: &mut dyn Observer) -> Result<Vec<ModelResults>> {
    // What can be known without a model comes first.
    let selected = select(request)?;
    if request.resume && request.output.is_none() {
        return Err(Error::invalid("--resume: an evaluation goes on in its folder, and `--output-path` names none"));
    }
    let mut tasks = Vec::new();
    for config in &selected.tasks {
        tasks.push(prepare(config.clone(), request, observer)?);
    }
    let bench = Bench::open(request, observer)?;
    let template = request.apply_chat_template.then(|| bench.template()).transpose()?;
    let chat = ChatSettings {
        system_instruction: request.system_instruction.as_deref(),
        template,
        multiturn: request.fewshot_as_multiturn,
    };
    observer.event(&Event::Phase("tokenizing".into()));
    let tokens =
        Tokens { encoder: &bench.encoder, prefix: bench.prefix, max_length: bench.model.lm.dimensions.max_positions };
    let mut asked = Vec::new();
    for task in &tasks {
        let of_task = (0..task.documents.len()).map(|id| requests_of(task, id, &chat, &tokens));
        asked.push(of_task.collect::<Result<Vec<Asked>>>()?);
    }
    let mut all = Vec::new();
    let whats: &[&'static str] = if bench.adapter.is_some() { &["base", "adapter"] } else { &["base"] };
    for what in whats {
        let chat_template = template.map(|_| bench.template_source.as_str());
        let run =
            Run { request, bench: &bench, selected: &selected, tasks: &tasks, asked: &asked, chat_template, what };
        all.push(run.evaluate(observer)?);
    }
    Ok(all)
}

fn select(request: &EvalRequest) -> Result<Selected> {
    let mut registry = Registry::built_in();
    for path in &request.include {
        registry.include(path)?;
    }
    let mut selected = registry.select(&request.tasks)?;
    for task in &mut selected.tasks {
        // As in lm-eval: a task that says 0 is meant so.
        if task.num_fewshot != Some(0) {
            task.num_fewshot = request.num_fewshot.or(task.num_fewshot);
        }
    }
    Ok(selected)
}

/// Reads a task's documents.
fn prepare(config: TaskConfig, request: &EvalRequest, observer: &mut dyn Observer) -> Result<Prepared> {
    observer.event(&Event::Phase(format!("reading {}", config.task)));
    let split = config.evaluated_split().unwrap_or_default().to_owned();
    let documents = documents(&config, &split, request.offline, observer)?;
    let wanted = config.num_fewshot.unwrap_or(0) > 0;
    let given = config.fewshot_config.as_ref().and_then(|fewshot| fewshot.samples.clone());
    let fewshot = match (config.fewshot_split().map(str::to_owned), given) {
        (Some(of), _) if wanted && of == split => documents.clone(),
        (Some(of), _) if wanted => self::documents(&config, &of, request.offline, observer)?,
        (None, Some(samples)) if wanted => Documents::new(samples),
        _ => Documents::default(),
    };
    Prepared::new(config, documents, fewshot, request.limit)
}

/// The documents of a split: of files, or of a dataset on the Hub.
fn documents(config: &TaskConfig, split: &str, offline: bool, observer: &mut dyn Observer) -> Result<Documents> {
    let task = &config.task;
    let missing = |what: String| {
        Error::invalid(format!("task `{task}`: {what}")).with_help(
            "write `dataset_path: json` and `dataset_kwargs: {data_files: {test: FILE}}`, or a dataset's Hub id as `dataset_path`",
        )
    };
    let Some(path) = config.dataset_path.as_deref() else { return Err(missing("it has no `dataset_path`".into())) };
    let files = if ["json", "csv", "parquet"].contains(&path) {
        let given = config.dataset_kwargs.as_ref().and_then(|kwargs| kwargs.get("data_files"));
        let of_split = match given {
            Some(Value::Object(splits)) => splits.get(split).cloned(),
            other => other.cloned(),
        };
        match of_split {
            Some(Value::String(file)) => vec![PathBuf::from(file)],
            Some(Value::Array(files)) => files.iter().filter_map(Value::as_str).map(PathBuf::from).collect(),
            _ => return Err(missing(format!("`dataset_kwargs.data_files` has no split `{split}`"))),
        }
    } else {
        let dataset = DatasetConfig { id: path, split: Some(split), subset: config.dataset_name.as_deref() };
        hub::fetch_dataset(&dataset, &[split], &FetchOptions::for_data(offline), &mut |progress| {
            let what = format!("fetching {}", progress.file);
            observer.event(&Event::Bytes { what, done: progress.done, total: progress.total });
        })?
    };
    let mut rows = Vec::new();
    for file in &files {
        let mut reader = RowReader::open(file)?;
        while let Some(row) = reader.next_row()? {
            rows.push(row.parse(file)?);
        }
    }
    Ok(Documents::new(rows))
}

impl Bench {
    fn open(request: &EvalRequest, observer: &mut dyn Observer) -> Result<Self> {
        let device = open_device(request.device)?;
        let path = Path::new(&request.model);
        let is_adapter = path.join(crate::adapter::ADAPTER_CONFIG).is_file()
            || path.is_file() && AdapterSummary::read(path).is_ok()
            || request.base.is_some();
        let mut bench = if is_adapter {
            Self::of_adapter(path, request, device, observer)?
        } else {
            let base = open_base(&BaseConfig { model: request.model.clone(), file: None }, request.offline, observer)?;
            let stored = if base.is_gguf() { QuantizationConfig::default() } else { as_stored() };
            let quantization = request.quantization.map_or(stored, |kind| QuantizationConfig { kind });
            observer.event(&Event::Phase("loading the weights".into()));
            let model = models::load(&base, quantization, None, 0, &device, false)?;
            Self::new((&base, request.model.clone()), None, None, model, device, request.compute)?
        };
        let positions = bench.model.lm.dimensions.max_positions;
        bench.model.lm.fit_rotations(positions);
        for note in &bench.model.report.notes {
            observer.event(&Event::Note(note.clone()));
        }
        Ok(bench)
    }

    fn of_adapter(path: &Path, request: &EvalRequest, device: Device, observer: &mut dyn Observer) -> Result<Self> {
        let trained_on = TrainedOn::of(path, request.base.as_deref())?;
        let base = trained_on.open(request.offline, observer)?;
        let bundle = trained_on.adapter(&base, observer)?;
        let held = trained_on.held(&base, &bundle)?;
        let quantization = request.quantization.map_or(held, |kind| QuantizationConfig { kind });
        observer.event(&Event::Phase("loading the weights".into()));
        let model = models::load(&base, quantization, Some(&bundle.config.lora), 0, &device, false)?;
        model.params.assign(&bundle.tensors, path)?;
        model.params.upload()?;
        let template = trained_on.chat_template(&base)?;
        let name = trained_on.base_name().to_owned();
        Self::new((&base, name), Some(path), template.as_deref(), model, device, request.compute)
    }

    fn new(
        (base, base_name): (&Base, String),
        adapter: Option<&Path>,
        template: Option<&str>,
        model: Model,
        device: Device,
        compute: ComputeConfig,
    ) -> Result<Self> {
        let encoder = encoder(base, template, now())?;
        let special = base.special_tokens();
        let prefix = special.bos.as_ref().or(special.eos.as_ref()).map(|(_, id)| *id).ok_or_else(|| {
            Error::file(base.path(), "has neither a BOS nor an EOS token: nothing can stand before a text")
        })?;
        Ok(Self {
            template_source: template.or(base.chat_template()).unwrap_or_default().to_owned(),
            prefix,
            ends: special.eos_ids.clone(),
            compute: compute.resolve(&device),
            base_sha256: base.fingerprint()?,
            adapter: adapter.map(|path| path.display().to_string()),
            model,
            device,
            encoder,
            base_name,
        })
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.encoder.template().ok_or_else(|| {
            Error::invalid("--apply-chat-template: the model has no chat template")
                .with_help("leave it out: prompts are plain text then, as lm-eval has them by default")
        })
    }

    fn scorer(&self, adapter: bool, batch_tokens: usize) -> BenchScorer<'_> {
        BenchScorer { bench: self, adapter, pool: Pool::default(), capacity: batch_tokens }
    }
}

fn as_stored() -> QuantizationConfig {
    QuantizationConfig { kind: QuantizationType::None }
}

/// A model of the bench, with the adapter or without.
struct BenchScorer<'a> {
    bench: &'a Bench,
    adapter: bool,
    pool: Pool,
    capacity: usize,
}

impl Scorer for BenchScorer<'_> {
    fn score(&mut self, items: &[&Continuations]) -> Result<Vec<Vec<Score>>> {
        let Bench { model, device, compute, .. } = self.bench;
        let runner = model.lm.runner(device, self.adapter);
        Ok(rayon::scope(|_| model.lm.score(items, runner, *compute, (&self.pool, self.capacity)))?)
    }

    fn generate(&mut self, prompt: &[u32], most: usize, until: &[String]) -> Result<String> {
        let Bench { model, device, encoder, ends, .. } = self.bench;
        let mut generator = Generator::new(&model.lm, device, self.adapter, Sampling::default());
        let (mut tokens, mut failed) = (Vec::new(), None);
        generator.run(prompt, most, ends, |token| {
            tokens.push(token);
            // A stop string may begin some tokens back.
            let tail = &tokens[tokens.len().saturating_sub(64)..];
            match encoder.decode(tail, false) {
                Ok(text) => !until.iter().any(|stop| text.contains(stop.as_str())),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let mut text = encoder.decode(&tokens, true)?;
        for stop in until {
            if let Some(at) = text.find(stop.as_str()) {
                text.truncate(at);
            }
        }
        Ok(text)
    }
}

/// The evaluation of one model.
struct Run<'a> {
    request: &'a EvalRequest,
    bench: &'a Bench,
    selected: &'a Selected,
    tasks: &'a [Prepared],
    asked: &'a [Vec<Asked>],
    chat_template: Option<&'a str>,
    what: &'static str,
}

/// A task's items as they come in.
#[derive(Default)]
struct Collected {
    /// By filter and metric, in the order of the documents.
    values: Vec<Vec<Vec<ItemValue>>>,
    hash: Vec<TaskHash>,
}

impl Run<'_> {
    fn is_adapter(&self) -> bool {
        self.what == "adapter"
    }

    fn model_name(&self) -> &str {
        match &self.bench.adapter {
            Some(adapter) if self.is_adapter() => adapter,
            _ => &self.bench.base_name,
        }
    }

    /// Everything that decides about the answers.
    fn identity(&self) -> Value {
        let request = self.request;
        let configs: Map<String, Value> =
            self.tasks.iter().map(|task| (task.config.task.clone(), json!(task.config))).collect();
        let documents: Vec<usize> = self.tasks.iter().map(|task| task.documents.len()).collect();
        json!({
            "model": self.model_name(),
            "base": self.bench.base_sha256,
            "tasks": configs,
            "documents": documents,
            "limit": request.limit,
            "chat_template": request.apply_chat_template,
            "system_instruction": request.system_instruction,
            "fewshot_as_multiturn": request.fewshot_as_multiturn,
            "compute": self.bench.compute.name(),
            "device": if self.bench.device.is_cpu() { "cpu" } else { "cuda" },
            "quantization": request.quantization,
            "batch_tokens": request.batch_tokens,
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    fn journal(&self) -> Result<Option<Journal>> {
        let Some(output) = &self.request.output else { return Ok(None) };
        let folder = output.join(model_folder(self.model_name()));
        if self.request.resume && folder.is_dir() {
            return Journal::resume(&folder, &self.identity()).map(Some);
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Journal::start(&folder, &file_stamp(since.as_secs(), since.subsec_micros()), &self.identity()).map(Some)
    }

    fn evaluate(&self, observer: &mut dyn Observer) -> Result<ModelResults> {
        let (started, clock) = (SystemTime::now(), Instant::now());
        let journal = self.journal()?;
        let mut scorer = self.bench.scorer(self.is_adapter(), self.request.batch_tokens);
        let (mut results, mut hashes, mut answered) = (Vec::new(), Vec::new(), 0);
        for (task, asked) in self.tasks.iter().zip(self.asked) {
            let mut collected = Collected::default();
            let known = match &journal {
                Some(journal) => journal.answers(task, |id| Ok(asked[id].requests()))?,
                None => Vec::new(),
            };
            let done = known.len();
            for (asked, answer) in asked.iter().zip(&known) {
                collected.add(task, asked, answer, None)?;
            }
            for batch in batches(asked, self.request.batch_tokens) {
                let end = batch.end;
                if end <= done {
                    continue;
                }
                let what = format!("{} on the {}", task.config.alias(), self.what);
                observer.event(&Event::Items { what, done: batch.start.max(done), total: asked.len() });
                if observer.stop_requested() {
                    return Err(Error::Interrupted);
                }
                let batch = &asked[batch];
                let answers = answer(batch, &mut scorer)?;
                answered += batch.len();
                for (asked, answer) in batch.iter().zip(&answers).filter(|(asked, _)| asked.doc_id >= done) {
                    collected.add(task, asked, answer, journal.as_ref())?;
                }
            }
            let (result, hash) = collected.finish(task, self.request.seed);
            results.push(result);
            hashes.push(hash);
        }
        let groups = self.groups(&results);
        let seconds = clock.elapsed().as_secs_f64();
        let mut files = Vec::new();
        if let Some(journal) = journal {
            let facts = self.facts(started, seconds);
            let tasks: Vec<_> = self
                .tasks
                .iter()
                .zip(&results)
                .zip(&hashes)
                .map(|((task, of), hash)| (task, of, hash.clone()))
                .collect();
            let named = |task: &Prepared| (task.config.task.clone(), task.filter_names().count());
            let named: Vec<(String, usize)> = self.tasks.iter().map(named).collect();
            let named: Vec<(&str, usize)> = named.iter().map(|(name, filters)| (name.as_str(), *filters)).collect();
            files = journal.finish(&named, &results_json(&tasks, &groups, &facts))?;
        }
        Ok(ModelResults {
            model: self.model_name().to_owned(),
            what: self.what,
            rows: self.rows(&results, &groups),
            files,
            items: answered,
            seconds,
            peak_memory: process_memory().map(|(peak, _)| peak),
        })
    }

    fn groups(&self, results: &[TaskResult]) -> Vec<(TaskResult, Vec<String>, Value)> {
        let of_group = |group: &crate::eval::SelectedGroup| {
            let tasks: Vec<&TaskResult> = results.iter().filter(|task| group.tasks.contains(&task.name)).collect();
            let result = TaskResult {
                name: group.name.clone(),
                alias: group.alias.clone(),
                sample_len: tasks.iter().map(|task| task.sample_len).sum(),
                metrics: group_results(&group.metrics, &tasks),
            };
            (result, group.children.clone(), group.version.clone())
        };
        self.selected.groups.iter().map(of_group).collect()
    }

    fn facts(&self, started: SystemTime, seconds: f64) -> RunFacts {
        let request = self.request;
        let config = json!({
            "model": "equipoise",
            "model_args": self.model_name(),
            "model_num_parameters": self.bench.model.report.parameters,
            "model_dtype": self.bench.compute.name(),
            "model_sha": self.bench.base_sha256,
            "batch_size": format!("{} tokens", request.batch_tokens),
            "device": if self.bench.device.is_cpu() { "cpu" } else { "cuda" },
            "limit": request.limit,
            "gen_kwargs": Value::Null,
            "random_seed": request.seed,
        });
        RunFacts {
            model: self.model_name().to_owned(),
            config: config.as_object().cloned().unwrap_or_default(),
            started: started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            seconds,
            max_length: self.bench.model.lm.dimensions.max_positions,
            system_instruction: request.system_instruction.clone(),
            chat_template: self.chat_template.map(str::to_owned),
            fewshot_as_multiturn: request.apply_chat_template && request.fewshot_as_multiturn,
        }
    }

    fn rows(&self, results: &[TaskResult], groups: &[(TaskResult, Vec<String>, Value)]) -> Vec<ResultRow> {
        let mut rows = Vec::new();
        for (task, result) in self.tasks.iter().zip(results) {
            rows.extend(result.metrics.iter().map(|of| row(result, of, false, task.floors())));
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
        task: result.name.clone(),
        alias: result.alias.clone(),
        group,
        metric: metric.to_owned(),
        filter: filter.to_owned(),
        value: of.value,
        stderr: of.stderr,
        higher_is_better: of.higher_is_better,
        items: of.items,
        chance: floors.map(|(chance, _)| chance),
        best_constant: floors.map(|(_, constant)| constant),
    }
}

impl Collected {
    fn add(&mut self, task: &Prepared, asked: &Asked, answer: &Answer, journal: Option<&Journal>) -> Result<()> {
        let item = evaluate_item(task, asked, answer)?;
        if let Some(journal) = journal {
            journal.append(&task.config.task, &item.lines)?;
        }
        self.values.resize_with(item.values.len(), Vec::new);
        self.hash.resize_with(item.lines.len(), TaskHash::default);
        for (hash, line) in self.hash.iter_mut().zip(&item.lines) {
            hash.add(line);
        }
        for (all, values) in self.values.iter_mut().zip(item.values) {
            all.resize_with(values.len(), Vec::new);
            for (all, (_, value)) in all.iter_mut().zip(values) {
                all.push(value);
            }
        }
        Ok(())
    }

    fn finish(self, task: &Prepared, seed: u64) -> (TaskResult, String) {
        let mut metrics = Vec::new();
        for (filter, values) in task.filter_names().zip(&self.values) {
            for (metric, values) in task.metrics.iter().zip(values) {
                metrics.push(aggregate(metric, filter, values, seed));
            }
        }
        let result = TaskResult {
            name: task.config.task.clone(),
            alias: task.config.alias().to_owned(),
            sample_len: task.documents.len(),
            metrics,
        };
        let mut hashes = self.hash.into_iter();
        let hash = hashes.next().unwrap_or_default();
        (result, hashes.fold(hash, |all, each| all.followed_by(&each)).finish())
    }
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

fn answer(batch: &[Asked], scorer: &mut BenchScorer<'_>) -> Result<Vec<Answer>> {
    let items: Vec<&Continuations> = batch.iter().flat_map(|asked| &asked.items).collect();
    let mut scores = if items.is_empty() { Vec::new() } else { scorer.score(&items)? }.into_iter();
    let mut answers = Vec::new();
    for asked in batch {
        let of_items: Vec<Vec<Score>> = scores.by_ref().take(asked.items.len()).collect();
        answers.push(match &asked.generation {
            Some(generation) => {
                Answer::Text(scorer.generate(&generation.prompt, generation.most, &generation.until)?)
            }
            None => Answer::Scores(asked.scores(&of_items)),
        });
    }
    Ok(answers)
}
