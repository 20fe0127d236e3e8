//! The files of an evaluation, as lm-eval writes them, and the journal that they grow from.
//!
//! `samples_TASK_STAMP.jsonl.part` has a line for each item and filter as soon as it is answered. An evaluation that was killed goes on
//! from there: answers are read back from the lines. At the end the journals get their names, and `results_STAMP.json` is written.

use super::aggregate::{Aggregate, TaskResult};
use super::config::OutputType;
use super::document::Prepared;
use super::metrics::{ItemValue, Values};
use super::scoring::{Answer, Asked, written};
use super::value;
use crate::error::{Error, Result};
use crate::fs::write_atomic;
use crate::models::Score;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The folder's name for a model, as lm-eval makes it.
pub fn model_folder(model: &str) -> String {
    let mut name = String::new();
    let mut replaced = false;
    for c in model.chars() {
        let odd = "\"<>:/|\\?*[]".contains(c);
        match (odd, replaced) {
            (true, false) => name.push_str("__"),
            (true, true) => {}
            (false, _) => name.push(c),
        }
        replaced = odd;
    }
    name
}

/// A time as lm-eval puts it into names, from seconds and microseconds since 1970 (UTC): `2026-11-27T05-12-33.123456`.
pub fn file_stamp(seconds: u64, microseconds: u32) -> String {
    let [year, month, day, hour, minute, second] = crate::calendar::date_time(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}-{minute:02}-{second:02}.{microseconds:06}")
}

/// A line of the samples file.
pub(super) fn sample_line(
    prepared: &Prepared,
    asked: &Asked,
    answer: &Answer,
    (filter, values, filtered): (&str, &Values, Value),
) -> Map<String, Value> {
    let document = prepared.documents.row(asked.doc_id).cloned().unwrap_or_default();
    let arguments: Map<String, Value> = asked
        .arguments()
        .iter()
        .enumerate()
        .map(|(i, arguments)| (format!("gen_args_{i}"), arguments.clone()))
        .collect();
    let resps: Vec<Value> = match answer {
        Answer::Text(text) => vec![json!([text])],
        Answer::Scores(scores) => scores.iter().map(|score| json!([written(prepared, score)])).collect(),
    };
    let (target, document) = (asked.target_text(), Value::Object(document));
    let prompt = asked.arguments().first().map(|arguments| value::text(&arguments["arg_0"])).unwrap_or_default();
    let hashed = serde_json::to_string_pretty(&document).unwrap_or_default();
    let hashes = [("doc_hash", sha256(&hashed)), ("prompt_hash", sha256(&prompt)), ("target_hash", sha256(&target))];
    let mut line = Map::new();
    line.insert("doc_id".into(), Value::from(asked.doc_id));
    line.insert("doc".into(), document);
    line.insert("target".into(), Value::from(target));
    line.insert("arguments".into(), Value::Object(arguments));
    line.insert("resps".into(), Value::Array(resps));
    line.insert("filtered_resps".into(), filtered);
    line.insert("filter".into(), Value::from(filter));
    line.insert("metrics".into(), values.iter().map(|(name, _)| Value::from(name.as_str())).collect());
    for (name, hash) in hashes {
        line.insert(name.into(), Value::from(hash));
    }
    for (name, item) in values {
        line.insert(name.clone(), item_value(item));
    }
    line
}

fn item_value(item: &ItemValue) -> Value {
    match item {
        ItemValue::Number(number) => Value::from(*number),
        ItemValue::Classes(gold, taken) => json!([gold, taken]),
        ItemValue::Probabilities(gold, probabilities) => json!([gold, probabilities]),
        ItemValue::Weighted(log_probability, count) => json!([log_probability, count]),
    }
}

/// The answer that a line of the samples file holds.
fn answer_of(line: &Value, of: OutputType, requests: usize) -> Option<Answer> {
    let resps = line.get("resps")?.as_array()?;
    if of == OutputType::GenerateUntil {
        return Some(Answer::Text(resps.first()?.get(0)?.as_str()?.to_owned()));
    }
    let score = |resp: &Value| {
        let leaf = resp.get(0)?;
        let (number, greedy) = match leaf {
            Value::Array(pair) => (pair.first()?, pair.get(1)?.as_str()? == "True"),
            single => (single, true),
        };
        Some(Score { log_probability: number.as_str()?.parse().ok()?, is_greedy: greedy })
    };
    let scores: Vec<Score> = resps.iter().map(score).collect::<Option<_>>()?;
    (scores.len() == requests).then_some(Answer::Scores(scores))
}

/// What an unfinished evaluation was of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    /// Everything that decides about its answers.
    identity: Value,
    stamp: String,
}

/// The files of an evaluation while it runs.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    stamp: String,
}

impl Journal {
    /// A new evaluation in a folder, which is made where it is not there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn start(folder: &Path, stamp: &str, identity: &Value) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let journal = Self { folder: folder.to_owned(), stamp: stamp.to_owned() };
        let state = State { identity: identity.clone(), stamp: stamp.to_owned() };
        write_atomic(&journal.state_path(), &serde_json::to_vec_pretty(&state).unwrap_or_default())?;
        Ok(journal)
    }

    /// The last unfinished evaluation of a folder.
    ///
    /// # Errors
    /// When there is none, or it was of something else: says of what.
    pub fn resume(folder: &Path, identity: &Value) -> Result<Self> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok);
        let mut states: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_state(path)).collect();
        states.sort();
        let Some(path) = states.pop() else {
            return Err(Error::file(folder, "has no unfinished evaluation to go on with")
                .with_help("run the command without `--resume`"));
        };
        let bytes = crate::fs::read_within(&path, 16 << 20)?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, format!("cannot be read: {error}")))?;
        if let Some(what) = difference(&state.identity, identity) {
            return Err(Error::file(&path, format!("the unfinished evaluation was of another `{what}`")).with_help(
                "give the same arguments as before, or run without `--resume`, which begins anew beside it",
            ));
        }
        Ok(Self { folder: folder.to_owned(), stamp: state.stamp })
    }

    /// When the evaluation began, as its files say it.
    pub fn stamp(&self) -> &str {
        &self.stamp
    }

    fn state_path(&self) -> PathBuf {
        self.folder.join(format!("evaluation_{}.part.json", self.stamp))
    }

    /// The samples of a task.
    fn samples(&self, task: &str) -> PathBuf {
        self.folder.join(format!("samples_{task}_{}.jsonl", self.stamp))
    }

    fn part(&self, task: &str) -> PathBuf {
        self.folder.join(format!("samples_{task}_{}.jsonl.part", self.stamp))
    }

    /// The answers that a task has by now, in the order of its documents. Lines behind the last whole item are cut off.
    ///
    /// # Errors
    /// When the disk refuses, or a line is not one of this task's.
    pub fn answers(&self, prepared: &Prepared, requests: impl Fn(usize) -> Result<usize>) -> Result<Vec<Answer>> {
        let path = self.part(&prepared.config.task);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let ends = bytes[..whole].iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
        let (mut answers, mut start, mut kept) = (Vec::new(), 0, 0);
        let filters = prepared.filters.len();
        let mut number = 0;
        for end in ends {
            let line: Option<Value> = serde_json::from_slice(&bytes[start..end]).ok();
            let (item, filter) = (number / filters, number % filters);
            if filter == 0 {
                let answer = match &line {
                    Some(line) if line["doc_id"] == item && item < prepared.documents.len() => {
                        answer_of(line, prepared.config.output_type, requests(item)?)
                    }
                    _ => None,
                };
                let damaged = || {
                    Error::file(&path, format!("line {} is not the answer to document {item}", number + 1))
                        .with_help("remove the file: its task is evaluated again")
                };
                answers.push(answer.ok_or_else(damaged)?);
            }
            number += 1;
            start = end;
            if number % filters == 0 {
                kept = end;
            }
        }
        answers.truncate(number / filters);
        if kept < bytes.len() {
            let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
            file.set_len(kept as u64).map_err(Error::io("write", &path))?;
        }
        Ok(answers)
    }

    /// Adds items to a task's samples.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&self, task: &str, lines: &[Map<String, Value>]) -> Result<()> {
        let path = self.part(task);
        let mut text = String::new();
        for line in lines {
            text.push_str(&serde_json::to_string(line).unwrap_or_default());
            text.push('\n');
        }
        let mut file =
            std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        file.write_all(text.as_bytes()).map_err(Error::io("write", &path))
    }

    /// Gives the samples of tasks, each with its number of filters, their names, and writes the results. The paths of all files.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(self, tasks: &[(&str, usize)], results: &Value) -> Result<Vec<PathBuf>> {
        let path = self.folder.join(format!("results_{}.json", self.stamp));
        let mut written = vec![path.clone()];
        for (task, filters) in tasks {
            let (part, samples) = (self.part(task), self.samples(task));
            if *filters > 1 {
                let text = std::fs::read_to_string(&part).map_err(Error::io("read", &part))?;
                write_atomic(&samples, filter_by_filter(&text, *filters).as_bytes())?;
                std::fs::remove_file(&part).map_err(Error::io("remove", part))?;
            } else {
                std::fs::rename(&part, &samples).map_err(Error::io("rename", part))?;
            }
            written.push(samples);
        }
        write_atomic(&path, &serde_json::to_vec_pretty(results).unwrap_or_default())?;
        let state = self.state_path();
        std::fs::remove_file(&state).map_err(Error::io("remove", state))?;
        Ok(written)
    }
}

/// All items under the first filter, then all under the next: lm-eval's order.
fn filter_by_filter(text: &str, filters: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let ordered = (0..filters).flat_map(|filter| lines.iter().skip(filter).step_by(filters));
    ordered.fold(String::with_capacity(text.len()), |mut all, line| {
        all.push_str(line);
        all.push('\n');
        all
    })
}

fn is_state(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("evaluation_") && name.ends_with(".part.json")
}

/// The first key in which two evaluations differ.
fn difference(before: &Value, now: &Value) -> Option<String> {
    let (Some(before), Some(now)) = (before.as_object(), now.as_object()) else { return Some("file".into()) };
    now.iter().find(|(key, value)| before.get(*key) != Some(value)).map(|(key, _)| key.clone())
}

/// What the results say of the run besides its numbers.
#[derive(Debug, Clone)]
pub struct RunFacts {
    /// The model's name.
    pub model: String,
    /// lm-eval's `config`.
    pub config: Map<String, Value>,
    /// Seconds since 1970.
    pub started: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// The model's positions.
    pub max_length: usize,
    /// The system instruction.
    pub system_instruction: Option<String>,
    /// The chat template that prompts went through.
    pub chat_template: Option<String>,
    /// Whether few-shot examples were turns of their own.
    pub fewshot_as_multiturn: bool,
}

fn numbers(result: &TaskResult) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("name".into(), Value::from(result.name.as_str()));
    map.insert("alias".into(), Value::from(result.alias.as_str()));
    map.insert("sample_len".into(), Value::from(result.sample_len));
    for Aggregate { key, value, stderr, .. } in &result.metrics {
        let (metric, filter) = key.split_once(',').unwrap_or((key, "none"));
        map.insert(key.clone(), Value::from(*value));
        map.insert(format!("{metric}_stderr,{filter}"), stderr.map_or_else(|| Value::from("N/A"), Value::from));
    }
    map
}

/// `results_STAMP.json`: tasks with their samples' hashes, and groups with the names of their tasks.
pub fn results_json(
    tasks: &[(&Prepared, &TaskResult, String)],
    groups: &[(TaskResult, Vec<String>, Value)],
    facts: &RunFacts,
) -> Value {
    let mut results = Map::new();
    for (_, result, _) in tasks {
        results.insert(result.name.clone(), Value::Object(numbers(result)));
    }
    let mut of_groups = Map::new();
    for (result, ..) in groups {
        let numbers = Value::Object(numbers(result));
        results.insert(result.name.clone(), numbers.clone());
        if !result.metrics.is_empty() {
            of_groups.insert(result.name.clone(), numbers);
        }
    }
    let sorted = |mut pairs: Vec<(String, Value)>| {
        pairs.sort_by(|a, b| a.0.cmp(&b.0));
        Value::Object(pairs.into_iter().collect())
    };
    let each = |f: &dyn Fn(&Prepared) -> Value| {
        tasks.iter().map(|(prepared, ..)| (prepared.config.task.clone(), f(prepared))).collect::<Vec<_>>()
    };
    let better = |prepared: &Prepared| {
        let each = prepared.metrics.iter().map(|of| (of.metric.clone(), Value::from(of.higher_is_better())));
        Value::Object(each.collect())
    };
    let mut versions = each(&|prepared| prepared.config.version());
    versions.extend(groups.iter().map(|(result, _, version)| (result.name.clone(), version.clone())));
    let mut whole = Map::new();
    whole.insert("results".into(), Value::Object(results));
    if !of_groups.is_empty() {
        whole.insert("groups".into(), Value::Object(of_groups));
    }
    let subtasks = groups.iter().map(|(result, names, _)| (result.name.clone(), json!(names)));
    whole.insert("group_subtasks".into(), Value::Object(subtasks.collect()));
    whole.insert("configs".into(), sorted(each(&|prepared| json!(prepared.config))));
    whole.insert("versions".into(), sorted(versions));
    whole.insert("n-shot".into(), sorted(each(&|prepared| json!(prepared.config.num_fewshot.unwrap_or(0)))));
    whole.insert("higher_is_better".into(), sorted(each(&better)));
    let samples = |prepared: &Prepared| json!({"original": prepared.original, "effective": prepared.documents.len()});
    whole.insert("n-samples".into(), Value::Object(each(&samples).into_iter().collect()));
    whole.insert("config".into(), Value::Object(facts.config.clone()));
    whole.insert("git_hash".into(), Value::Null);
    whole.insert("date".into(), Value::from(facts.started));
    whole.insert("equipoise_version".into(), Value::from(env!("CARGO_PKG_VERSION")));
    whole.insert("max_length".into(), Value::from(facts.max_length));
    let hashes = tasks.iter().map(|(_, result, hash)| (result.name.clone(), Value::from(hash.as_str())));
    whole.insert("task_hashes".into(), Value::Object(hashes.collect()));
    whole.insert("model_source".into(), Value::from("equipoise"));
    whole.insert("model_name".into(), Value::from(facts.model.as_str()));
    whole.insert("model_name_sanitized".into(), Value::from(model_folder(&facts.model)));
    for (name, text) in [("system_instruction", &facts.system_instruction), ("chat_template", &facts.chat_template)] {
        whole.insert(name.into(), json!(text));
        whole.insert(format!("{name}_sha"), json!(text.as_deref().map(sha256)));
    }
    whole.insert("fewshot_as_multiturn".into(), json!(facts.fewshot_as_multiturn));
    whole.insert("total_evaluation_time_seconds".into(), Value::from(facts.seconds.to_string()));
    Value::Object(whole)
}

/// lm-eval's hash of a task: of the hashes of its samples' lines.
#[derive(Debug, Default)]
pub struct TaskHash(String);

impl TaskHash {
    /// Takes another line.
    pub fn add(&mut self, line: &Map<String, Value>) {
        for name in ["doc_hash", "prompt_hash", "target_hash"] {
            self.0.push_str(line.get(name).and_then(Value::as_str).unwrap_or_default());
        }
    }

    /// The hash, in hexadecimal.
    pub fn finish(self) -> String {
        sha256(&self.0)
    }

    /// This one's lines, and behind them another's.
    #[must_use]
    pub fn followed_by(mut self, other: &Self) -> Self {
        self.0.push_str(&other.0);
        self
    }
}
