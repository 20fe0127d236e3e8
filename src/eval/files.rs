//! The files of an evaluation, as lm-eval writes them, and the journal that they grow from.
//!
//! `samples_TASK_TIME.jsonl.part` gets the lines of an item as soon as it is answered, and `evaluation_TIME.part.json` says what the
//! evaluation is of. One that was killed goes on from there, at any moment: answers are read back from the lines. A model's results
//! and samples are written whole when all of its items are answered; the journals of all models are removed at the very end.

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
use std::io::Write as _;
use std::path::{Path, PathBuf};

fn sha256(text: &str) -> String {
    format!("{:x}", Sha256::digest(text.as_bytes()))
}

/// JSON with an indent of two.
///
/// # Errors
/// When a key is no text.
pub(crate) fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value)
        .map_err(|error| Error::invalid(format!("internal: no JSON can be written: {error}")))
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
    let mut line = Map::new();
    line.insert("doc_id".into(), Value::from(asked.doc_id));
    line.insert("doc".into(), Value::Object(document));
    line.insert("target".into(), Value::from(asked.target_text()));
    line.insert("arguments".into(), Value::Object(arguments));
    line.insert("resps".into(), Value::Array(resps));
    line.insert("filtered_resps".into(), filtered);
    line.insert("filter".into(), Value::from(filter));
    line.insert("metrics".into(), values.iter().map(|(name, _)| Value::from(name.as_str())).collect());
    for (name, hash) in hashes(prepared, asked) {
        line.insert(name.into(), Value::from(hash));
    }
    for (name, item) in values {
        line.insert(name.clone(), item_value(item));
    }
    line
}

/// lm-eval's hash of a document: a line's `doc_hash`.
pub fn document_hash(prepared: &Prepared, id: usize) -> String {
    sha256(&serde_json::to_string_pretty(&prepared.documents.row(id)).unwrap_or_default())
}

/// The hashes by which a line says what it is of.
fn hashes(prepared: &Prepared, asked: &Asked) -> [(&'static str, String); 3] {
    let prompt = asked.arguments().first().map(|arguments| value::text(&arguments["arg_0"])).unwrap_or_default();
    [
        ("doc_hash", document_hash(prepared, asked.doc_id)),
        ("prompt_hash", sha256(&prompt)),
        ("target_hash", sha256(&asked.target_text())),
    ]
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

impl State {
    /// The last one of a folder, and its file.
    fn last(output: &Path) -> Result<Option<(PathBuf, Self)>> {
        let entries = std::fs::read_dir(output).into_iter().flatten().filter_map(std::result::Result::ok);
        let Some(path) = entries.map(|entry| entry.path()).filter(|path| is_state(path)).max() else { return Ok(None) };
        let bytes = crate::fs::read_within(&path, 16 << 20)?;
        let state = serde_json::from_slice(&bytes);
        state
            .map(|state| Some((path.clone(), state)))
            .map_err(|error| Error::file(path, format!("cannot be read: {error}")))
    }
}

/// The files of an evaluation while it runs: of one model, or of an adapter and its base.
#[derive(Debug)]
pub struct Journal {
    output: PathBuf,
    stamp: String,
}

impl Journal {
    /// A new evaluation in a folder, which is made where it is not there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn start(output: &Path, stamp: &str, identity: &Value) -> Result<Self> {
        std::fs::create_dir_all(output).map_err(Error::io("create", output))?;
        let journal = Self { output: output.to_owned(), stamp: stamp.to_owned() };
        let state = State { identity: identity.clone(), stamp: stamp.to_owned() };
        write_atomic(&journal.state_path(), &pretty(&state)?)?;
        Ok(journal)
    }

    /// The last unfinished evaluation of a folder.
    ///
    /// # Errors
    /// When there is none, or it was of something else: says of what.
    pub fn resume(output: &Path, identity: &Value) -> Result<Self> {
        let Some((path, state)) = State::last(output)? else {
            return Err(Error::file(output, "has no unfinished evaluation to go on with")
                .with_help("run the command without `--resume`"));
        };
        if let Some(what) = difference(&state.identity, identity) {
            return Err(Error::file(&path, format!("the unfinished evaluation differs in `{what}`")).with_help(
                "give the same arguments, model and data as before; without `--resume` a new evaluation begins beside it",
            ));
        }
        Ok(Self { output: output.to_owned(), stamp: state.stamp })
    }

    /// The last unfinished evaluation of a folder, if it is of the same.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn unfinished(output: &Path, identity: &Value) -> Result<Option<Self>> {
        let same = State::last(output)?.filter(|(_, state)| state.identity == *identity);
        Ok(same.map(|(_, state)| Self { output: output.to_owned(), stamp: state.stamp }))
    }

    fn state_path(&self) -> PathBuf {
        self.output.join(format!("evaluation_{}.part.json", self.stamp))
    }

    fn folder(&self, model: &str) -> PathBuf {
        self.output.join(model_folder(model))
    }

    fn part(&self, model: &str, task: &str) -> PathBuf {
        self.folder(model).join(format!("samples_{task}_{}.jsonl.part", self.stamp))
    }

    /// The answers of a model that a task has by now, in the order of its documents. What stands behind the last whole item is cut
    /// off.
    ///
    /// # Errors
    /// When the disk refuses, or a line is not the answer to its document.
    pub fn answers(&self, model: &str, prepared: &Prepared, asked: &[Asked]) -> Result<Vec<Answer>> {
        let path = self.part(model, &prepared.config.task);
        let text = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let lines: Vec<&[u8]> =
            text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")).collect();
        let filters = prepared.filters.len();
        let items = lines.chunks_exact(filters);
        let (mut answers, mut kept) = (Vec::new(), 0);
        for (id, of_item) in items.enumerate() {
            let answer = asked.get(id).and_then(|asked| {
                let line: Value = serde_json::from_slice(of_item[0]).ok()?;
                let is_same = hashes(prepared, asked).iter().all(|(name, hash)| line[*name] == hash.as_str());
                answer_of(&line, prepared.config.output_type, asked.requests()).filter(|_| is_same)
            });
            let damaged = || {
                Error::file(&path, format!("line {} is not the answer to document {id}", id * filters + 1))
                    .with_help("remove the file: the task is evaluated again")
            };
            answers.push(answer.ok_or_else(damaged)?);
            kept += of_item.iter().map(|line| line.len()).sum::<usize>();
        }
        if kept < text.len() {
            let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(Error::io("open", &path))?;
            file.set_len(kept as u64).map_err(Error::io("write", &path))?;
        }
        Ok(answers)
    }

    /// Adds lines to the samples of a model's task.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&self, model: &str, task: &str, lines: &[Map<String, Value>]) -> Result<()> {
        let (folder, path) = (self.folder(model), self.part(model, task));
        std::fs::create_dir_all(&folder).map_err(Error::io("create", folder))?;
        let mut text = String::new();
        for line in lines {
            text.push_str(&Value::Object(line.clone()).to_string());
            text.push('\n');
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(Error::io("write", path))
    }

    /// Writes a model's results, and the samples of its tasks, each with its number of filters. The paths of all files.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn publish(&self, model: &str, tasks: &[(String, usize)], results: &Value) -> Result<Vec<PathBuf>> {
        let folder = self.folder(model);
        let mut written = vec![folder.join(format!("results_{}.json", self.stamp))];
        for (task, filters) in tasks {
            let part = self.part(model, task);
            let text = std::fs::read_to_string(&part).map_err(Error::io("read", part))?;
            let samples = folder.join(format!("samples_{task}_{}.jsonl", self.stamp));
            write_atomic(&samples, filter_by_filter(&text, *filters).as_bytes())?;
            written.push(samples);
        }
        write_atomic(&written[0], &pretty(results)?)?;
        Ok(written)
    }

    /// Removes the journals of models and tasks, whose results are written.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn close(self, models: &[&str], tasks: &[(String, usize)]) -> Result<()> {
        // What says that the evaluation is unfinished goes last.
        let parts = models.iter().flat_map(|model| tasks.iter().map(|(task, _)| self.part(model, task)));
        for path in parts.chain([self.state_path()]) {
            match std::fs::remove_file(&path) {
                // A run that was killed here has removed it.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
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

/// The files of evaluations in a folder, finished or not, and nothing else.
pub fn evaluation_files(output: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_own = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        path.is_file()
            && (is_state(path)
                || name.starts_with("results_") && ends(&[".json"])
                || name.starts_with("samples_") && ends(&[".jsonl", ".jsonl.part"]))
    };
    let folders = entries(output).filter(|path| path.is_dir()).collect::<Vec<_>>();
    entries(output).chain(folders.iter().flat_map(|folder| entries(folder))).filter(is_own).collect()
}

/// Removes folders of evaluations that are empty by now, and the folder itself where it is.
pub fn remove_empty_folders(output: &Path) {
    for entry in std::fs::read_dir(output).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        // One that holds something stays.
        let _ = std::fs::remove_dir(entry.path());
    }
    let _ = std::fs::remove_dir(output);
}

/// The first key in which two trees differ, dotted.
pub(crate) fn difference(before: &Value, now: &Value) -> Option<String> {
    let (Some(before), Some(now)) = (before.as_object(), now.as_object()) else {
        return (before != now).then(String::new);
    };
    let keys = now.keys().chain(before.keys().filter(|key| !now.contains_key(*key)));
    keys.into_iter().find_map(|key| {
        let of = |tree: &Map<String, Value>| tree.get(key).cloned().unwrap_or_default();
        let below = difference(&of(before), &of(now))?;
        Some(if below.is_empty() { key.clone() } else { format!("{key}.{below}") })
    })
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

/// The numbers of a task or a group, as `results` has them.
pub(crate) fn numbers(result: &TaskResult) -> Map<String, Value> {
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
    tasks: &[(&Prepared, &(TaskResult, String))],
    groups: &[(TaskResult, Vec<String>, Value)],
    facts: &RunFacts,
) -> Value {
    let mut results = Map::new();
    for (_, (result, _)) in tasks {
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
        tasks.iter().map(|(prepared, _)| (prepared.config.task.clone(), f(prepared))).collect::<Vec<_>>()
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
    let hashes = tasks.iter().map(|(_, (result, hash))| (result.name.clone(), Value::from(hash.as_str())));
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

    /// The hash of the lines of all filters, in hexadecimal.
    pub fn of_all(filters: &[Self]) -> String {
        sha256(&filters.iter().map(|filter| filter.0.as_str()).collect::<String>())
    }
}
