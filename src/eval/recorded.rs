//! What an evaluation left behind, read back: Equipoise's files, or lm-eval's with `--log_samples`.

use crate::error::{Error, Result};
use crate::fs::read_within;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The most bytes of a results file.
const MOST_RESULTS: u64 = 256 << 20;

/// An evaluation of one model.
#[derive(Debug, Clone)]
pub struct RecordedRun {
    /// The model's name.
    pub model: String,
    /// The results file.
    pub path: PathBuf,
    /// Whether it is of an adapter, where Equipoise wrote it.
    is_adapter: bool,
    /// When it began, in seconds since 1970.
    date: f64,
    /// Its tasks.
    pub tasks: BTreeMap<String, RecordedTask>,
}

/// A task of an evaluation.
#[derive(Debug, Clone)]
pub struct RecordedTask {
    /// The task's version.
    pub version: Value,
    /// By metric, whether more is better.
    pub higher_is_better: BTreeMap<String, bool>,
    /// Metrics whose number over all items is not the mean of the items' numbers.
    not_means: BTreeSet<String>,
    /// The keys of its results, `metric,filter`, in their order.
    results: Vec<String>,
    /// The samples file; `None` where none was written.
    samples: Option<PathBuf>,
}

/// The items of a task, in the order of their documents.
#[derive(Debug, Clone, Default)]
pub struct RecordedItems {
    /// The file that they are from.
    pub path: PathBuf,
    /// By filter.
    pub filters: BTreeMap<String, Vec<RecordedItem>>,
}

impl RecordedItems {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.filters.values().all(Vec::is_empty)
    }
}

/// An item under a filter.
#[derive(Debug, Clone)]
pub struct RecordedItem {
    /// The document's number.
    pub id: u64,
    /// Hashes of document and target.
    pub hashes: [String; 2],
    /// The hash of the prompt.
    pub prompt_hash: String,
    /// By metric; metrics that have no number for a single item are left out.
    pub values: BTreeMap<String, f64>,
    /// Of multiple choice: the log-likelihood of each choice, and which is right.
    pub choices: Option<(Vec<f64>, usize)>,
    /// What items of one cluster share, where a field of the document was asked for.
    pub cluster: Option<String>,
}

impl RecordedRun {
    /// The evaluations at a path: a results file, or a folder that holds some, or whose folders do (one for each model). Of several in
    /// one folder it is the last. Bases come before adapters, and then the first that was evaluated.
    ///
    /// # Errors
    /// When there is none, or a file cannot be read.
    pub fn find(path: &Path) -> Result<Vec<Self>> {
        if path.is_file() {
            return Ok(vec![Self::read(path)?]);
        }
        let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
        let entries: Vec<PathBuf> = entries.filter_map(std::result::Result::ok).map(|entry| entry.path()).collect();
        let mut runs = Vec::new();
        for folder in std::iter::once(path).chain(entries.iter().map(PathBuf::as_path).filter(|path| path.is_dir())) {
            runs.extend(last_results(folder).map(|path| Self::read(&path)).transpose()?);
        }
        if runs.is_empty() {
            return Err(Error::file(path, "holds no results of an evaluation (results_*.json)")
                .with_help("give the folder of `equipoise eval --output-path`, or that of lm_eval's `--output_path`"));
        }
        runs.sort_by(|a, b| a.is_adapter.cmp(&b.is_adapter).then(a.date.total_cmp(&b.date)));
        Ok(runs)
    }

    fn read(path: &Path) -> Result<Self> {
        let whole: Value = serde_json::from_slice(&read_within(path, MOST_RESULTS)?)
            .map_err(|error| Error::file(path, format!("is not JSON: {error}")))?;
        let configs = whole.get("configs").and_then(Value::as_object).ok_or_else(|| {
            Error::file(path, "has no `configs`: it is not the results file of an evaluation")
                .with_help("give a file `results_*.json` of `equipoise eval` or of lm_eval")
        })?;
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stamp = name.strip_prefix("results_").and_then(|rest| rest.strip_suffix(".json")).unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new("."));
        let task = |name: &String| {
            let better = whole["higher_is_better"].get(name).and_then(Value::as_object);
            let better = better.into_iter().flatten().map(|(metric, better)| (metric.clone(), better != false));
            let samples = folder.join(format!("samples_{name}_{stamp}.jsonl"));
            let not_means = not_means(&configs[name]);
            let results = whole["results"].get(name).and_then(Value::as_object);
            let results = results.into_iter().flat_map(Map::keys).cloned().collect();
            let version = whole["versions"].get(name).cloned().unwrap_or_default();
            let samples = samples.is_file().then_some(samples);
            (name.clone(), RecordedTask { version, higher_is_better: better.collect(), not_means, results, samples })
        };
        let text = |key: &str| whole.get(key).and_then(Value::as_str).map(str::to_owned);
        Ok(Self {
            model: text("model_name").unwrap_or_else(|| path.display().to_string()),
            path: path.to_owned(),
            is_adapter: whole["config"]["adapter"] == true,
            date: whole.get("date").and_then(Value::as_f64).unwrap_or(0.0),
            tasks: configs.keys().map(task).collect(),
        })
    }

    /// Whether a metric over all items of a task is the mean of the items' numbers, which a paired comparison is of.
    pub fn is_mean(&self, task: &str, metric: &str) -> bool {
        self.tasks.get(task).is_some_and(|task| !task.not_means.contains(metric))
    }

    /// The filter of the first result that a task has of a metric.
    pub fn first_filter(&self, task: &str, metric: &str) -> Option<&str> {
        let results = &self.tasks.get(task)?.results;
        results.iter().find_map(|key| key.strip_prefix(metric)?.strip_prefix(','))
    }

    /// The items of a task. `cluster` names a field of the documents that items of one cluster share.
    ///
    /// # Errors
    /// When they were not written, or cannot be read; when a document has no such field.
    pub fn items(&self, task: &str, cluster: Option<&str>) -> Result<RecordedItems> {
        let samples = self.tasks.get(task).and_then(|task| task.samples.clone()).ok_or_else(|| {
            Error::file(&self.path, format!("no samples of the task `{task}` lie beside it")).with_help(
                "a comparison needs the score of each item: `equipoise eval --output-path` writes them, lm_eval with `--log_samples`",
            )
        })?;
        let text = std::fs::read_to_string(&samples).map_err(Error::io("read", &samples))?;
        let mut items = RecordedItems { path: samples.clone(), ..RecordedItems::default() };
        for (number, line) in text.lines().enumerate() {
            let place = |what: String| Error::file(&samples, format!("line {}: {what}", number + 1));
            let line: Map<String, Value> =
                serde_json::from_str(line).map_err(|error| place(format!("is not a JSON object: {error}")))?;
            let item = RecordedItem::read(&line, cluster).map_err(place)?;
            let filter = line.get("filter").and_then(Value::as_str).unwrap_or("none");
            items.filters.entry(filter.to_owned()).or_default().push(item);
        }
        for of_filter in items.filters.values_mut() {
            of_filter.sort_by_key(|item| item.id);
        }
        Ok(items)
    }
}

/// The metrics of a task that are no means: perplexities, whose items are log-likelihoods, and what is aggregated otherwise, as the task
/// says or as the metric is.
fn not_means(config: &Value) -> BTreeSet<String> {
    let perplexities = ["perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"].map(str::to_owned);
    let list = config.get("metric_list").and_then(Value::as_array);
    let is_of_texts = config.get("output_type").is_some_and(|of| of == "generate_until");
    let others = list.into_iter().flatten().filter_map(|of| {
        let metric = of.get("metric").and_then(Value::as_str)?;
        // Each text that is generated has a number of its own, F1 too.
        let usual = || super::metrics::find(metric).filter(|_| !is_of_texts).map(|metric| metric.aggregation);
        let how = of.get("aggregation").and_then(Value::as_str).or_else(usual)?;
        (!["mean", "brier_score"].contains(&how)).then(|| metric.to_owned())
    });
    others.chain(perplexities).collect()
}

/// The last results file of a folder. Its name holds the time.
fn last_results(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok);
    let is_results = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("results_") && path.extension().is_some_and(|end| end == "json") && path.is_file()
    };
    entries.map(|entry| entry.path()).filter(is_results).max()
}

impl RecordedItem {
    fn read(line: &Map<String, Value>, cluster: Option<&str>) -> std::result::Result<Self, String> {
        let text = |key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
        let needed = |key: &str| text(key).ok_or_else(|| format!("has no `{key}`"));
        let id = line.get("doc_id").and_then(Value::as_u64).ok_or("has no `doc_id`")?;
        let names = line.get("metrics").and_then(Value::as_array).ok_or("has no `metrics`")?;
        let names = names.iter().filter_map(Value::as_str);
        let values = names.filter_map(|name| Some((name.to_owned(), value_of(line.get(name)?)?)));
        let cluster = match cluster {
            Some(field) => {
                let value = line.get("doc").and_then(|doc| doc.get(field)).filter(|value| !value.is_null());
                Some(value.ok_or_else(|| format!("its document has no field `{field}`, which names the clusters"))?)
            }
            None => None,
        };
        Ok(Self {
            id,
            hashes: [needed("doc_hash")?, needed("target_hash")?],
            prompt_hash: text("prompt_hash").unwrap_or_default(),
            values: values.collect(),
            choices: choices_of(line),
            cluster: cluster.map(super::value::text),
        })
    }
}

/// A metric's number for a single item; `None` for those that are of all items alone, such as a perplexity or an F1 over classes.
fn value_of(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(yes) => Some(f64::from(*yes)),
        Value::Number(number) => number.as_f64(),
        // The Brier score's: the right choice, and the probability of each.
        Value::Array(pair) => {
            let [gold, Value::Array(probabilities)] = &pair[..] else { return None };
            let gold = usize::try_from(gold.as_u64()?).ok()?;
            let error = |(i, p): (usize, &Value)| Some((p.as_f64()? - f64::from(i == gold)).powi(2));
            probabilities.iter().enumerate().map(error).sum()
        }
        _ => None,
    }
}

/// The log-likelihood of each choice, and which is right: where each choice is a continuation of one prompt, and the target is the
/// number or the text of one of them.
fn choices_of(line: &Map<String, Value>) -> Option<(Vec<f64>, usize)> {
    let arguments = line.get("arguments")?.as_object()?;
    let argument = |i: usize, key: &str| arguments.get(&format!("gen_args_{i}"))?.get(key)?.as_str();
    let context = argument(0, "arg_0")?;
    // Others ask for the choices without a prompt.
    let count = (0..arguments.len()).take_while(|&i| argument(i, "arg_0") == Some(context)).count();
    let number = |resp: &Value| match resp.get(0)?.get(0)? {
        Value::String(number) => number.parse().ok(),
        number => number.as_f64(),
    };
    let scores: Vec<f64> = line.get("resps")?.as_array()?.iter().take(count).map(number).collect::<Option<_>>()?;
    let target = super::value::text(line.get("target")?);
    let is_target = |&i: &usize| argument(i, "arg_1").is_some_and(|choice| choice.trim() == target.trim());
    let gold = match (target.parse().ok(), (0..count).find(is_target)) {
        // Choices that are numbers: whether the target is one of them, or counts them, is not known.
        (Some(number), Some(place)) if number != place => return None,
        (number, place) => number.or(place)?,
    };
    (count > 1 && scores.len() == count && gold < count).then_some((scores, gold))
}
