//! A task's YAML, with lm-eval's keys.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

/// What is asked of a model for each document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputType {
    /// A text, up to a stop string.
    #[default]
    GenerateUntil,
    /// The log-likelihood of each choice.
    MultipleChoice,
    /// The log-likelihood of the target.
    Loglikelihood,
    /// The log-likelihood of a whole text, however long.
    LoglikelihoodRolling,
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// A task, as its YAML has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Its name.
    pub task: String,
    /// Its name in tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_alias: Option<String>,
    /// Names that stand for all tasks that have them.
    #[serde(skip_serializing)]
    pub tag: Option<Names>,
    /// `json`, `csv` or `parquet` with files in `dataset_kwargs`, or a dataset on the Hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_path: Option<String>,
    /// The Hub dataset's subset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_name: Option<String>,
    /// `data_files`: a file or files for each split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dataset_kwargs: Option<Map<String, Value>>,
    /// The split of few-shot examples where no other is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_split: Option<String>,
    /// Evaluated where there is no `test_split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_split: Option<String>,
    /// Evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_split: Option<String>,
    /// The split of few-shot examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewshot_split: Option<String>,
    /// A field's name, or a template: the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_to_text: Option<Value>,
    /// A field's name, a template, an index or a list of answers: what is right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_to_target: Option<Value>,
    /// A field's name, a template that writes a list, a list, or a map whose values are the choices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_to_choice: Option<Value>,
    /// In front of everything; a template.
    #[serde(default)]
    pub description: String,
    /// Between a prompt and its answer.
    #[serde(default = "blank")]
    pub target_delimiter: String,
    /// Behind each few-shot example.
    #[serde(default = "blank_line")]
    pub fewshot_delimiter: String,
    /// Where few-shot examples come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fewshot_config: Option<FewshotConfig>,
    /// How many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
    /// What is measured; by the output type where nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric_list: Option<Vec<MetricConfig>>,
    /// What is asked.
    #[serde(default)]
    pub output_type: OutputType,
    /// `until`, `max_gen_toks`, `temperature`, `do_sample`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_kwargs: Option<Map<String, Value>>,
    /// How often each request is run: 1.
    #[serde(default = "one")]
    pub repeats: usize,
    /// What is made of a generated text before it is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_list: Option<Vec<FilterConfig>>,
    /// Without effect.
    #[serde(default)]
    pub should_decontaminate: bool,
    /// Without effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doc_to_decontamination_query: Option<String>,
    /// How the answer begins; a field's name or a template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gen_prefix: Option<String>,
    /// `version`, and anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

fn blank() -> String {
    " ".to_owned()
}

fn blank_line() -> String {
    "\n\n".to_owned()
}

const fn one() -> usize {
    1
}

/// Where few-shot examples come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewshotConfig {
    /// `first_n`: the first of the split. lm-eval's `default` draws with Python's generator, and is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<String>,
    /// The split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The examples themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<Vec<Map<String, Value>>>,
}

/// A metric of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricConfig {
    /// Its name.
    pub metric: String,
    /// What is made of the items' values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregation: Option<String>,
    /// Whether more is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub higher_is_better: Option<bool>,
    /// Settings of the metric.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// A pipeline of filters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilterConfig {
    /// Its name in the results.
    pub name: String,
    /// Its steps.
    pub filter: Vec<FilterStep>,
}

/// A step of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FilterStep {
    /// Its name.
    pub function: String,
    /// Its settings.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// A group of tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// Its name.
    pub group: String,
    /// Its name in tables.
    pub group_alias: Option<String>,
    /// Names of tasks and groups, or maps of `task` and keys that replace the task's own.
    pub task: Value,
    /// What is made of the tasks' metrics.
    pub aggregate_metric_list: Option<Value>,
    /// `version`, and anything else.
    pub metadata: Option<Value>,
}

/// A metric over a group's tasks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupMetric {
    /// Its name.
    pub metric: String,
    /// `mean` alone.
    pub aggregation: Option<String>,
    /// Not built: the values under all filters are taken.
    pub filter_list: Option<Value>,
    /// Whether a task counts by its items.
    #[serde(default = "yes")]
    pub weight_by_size: bool,
}

const fn yes() -> bool {
    true
}

/// A task's keys, for suggestions.
const TASK_KEYS: &[&str] = &[
    "task",
    "task_alias",
    "tag",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "fewshot_config",
    "num_fewshot",
    "metric_list",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "gen_prefix",
    "metadata",
];

/// Names for the most tokens that are generated; the first that is given counts.
const NEW_TOKENS: [&str; 4] = ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"];

/// Keys of lm-eval's that run Python or need pictures or sound.
const REFUSED: &[(&str, &str)] = &[
    ("class", "runs Python code, which is not done here"),
    ("process_docs", "runs Python code, which is not done here: write the documents as the templates need them"),
    ("process_results", "runs Python code, which is not done here: `metric_list` says what is measured"),
    ("custom_dataset", "runs Python code, which is not done here: name files in `dataset_kwargs.data_files`"),
    ("doc_to_image", "is for pictures; text alone is evaluated here"),
    ("doc_to_audio", "is for sound; text alone is evaluated here"),
    ("unsafe_code", "runs generated code, which is not done here"),
    ("use_prompt", "reads promptsource, which is not built: write `doc_to_text`"),
];

impl TaskConfig {
    /// A task from its keys, which a file at `path` has.
    ///
    /// # Errors
    /// Names a key that is not known or not built, a value of another type, or what is missing.
    pub fn from_keys(keys: &Map<String, Value>, path: &Path) -> Result<Self> {
        for key in keys.keys() {
            if let Some((_, why)) = REFUSED.iter().find(|(name, _)| name == key) {
                return Err(Error::file(path, format!("`{key}` {why}")));
            }
            if !TASK_KEYS.contains(&key.as_str()) {
                return Err(unknown(path, "a task", key, TASK_KEYS));
            }
        }
        let config: Self = from_value(Value::Object(keys.clone()), path)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let known = ["data_files", "trust_remote_code"];
        if let Some(key) = self.dataset_kwargs.iter().flat_map(Map::keys).find(|key| !known.contains(&key.as_str())) {
            return Err(Error::file(path, format!("`dataset_kwargs.{key}` is not built; `data_files` names files")));
        }
        self.check_generation(path)?;
        let missing = |key: &str, why: &str| Err(Error::file(path, format!("`{key}` is missing: {why}")));
        if self.repeats != 1 {
            return Err(Error::file(path, "`repeats` is 1 here: each request is run once"));
        }
        if self.evaluated_split().is_none() {
            return missing("test_split", "it names the split that is evaluated");
        }
        if self.doc_to_target.is_none() {
            return missing("doc_to_target", "it says what is right");
        }
        match self.output_type {
            OutputType::LoglikelihoodRolling => {}
            _ if self.doc_to_text.is_none() => return missing("doc_to_text", "it is the prompt"),
            OutputType::MultipleChoice if self.doc_to_choice.is_none() => {
                return missing("doc_to_choice", "a multiple-choice task needs choices");
            }
            _ => {}
        }
        Ok(())
    }

    /// The likeliest text is taken, so that settings of a draw must say the same, or have no effect.
    fn check_generation(&self, path: &Path) -> Result<()> {
        let kwargs = self.generation_kwargs.iter().flatten();
        let is_greedy = kwargs.clone().any(|(key, value)| key == "do_sample" && value == false);
        for (key, value) in kwargs {
            let fits = match key.as_str() {
                "until" => value.is_string() || value.is_array(),
                "do_sample" => value == false,
                "temperature" => is_greedy || value.as_f64() == Some(0.0),
                // Without effect on the likeliest text.
                "top_p" | "top_k" => true,
                key if NEW_TOKENS.contains(&key) => value.as_u64().is_some_and(|count| count > 0),
                _ => false,
            };
            if !fits {
                return Err(Error::file(path, format!("`generation_kwargs.{key}`: {value} is not built"))
                    .with_help("the likeliest text is taken: `do_sample: false`, with `until` and `max_gen_toks`"));
            }
        }
        Ok(())
    }

    /// The most tokens that are generated, where the task says it.
    pub fn new_tokens(&self) -> Option<usize> {
        let kwargs = self.generation_kwargs.as_ref()?;
        NEW_TOKENS.iter().find_map(|name| kwargs.get(*name)?.as_u64()).map(|count| count as usize)
    }

    /// The split that is evaluated.
    pub fn evaluated_split(&self) -> Option<&str> {
        self.test_split.as_deref().or(self.validation_split.as_deref())
    }

    /// The split of few-shot examples.
    pub fn fewshot_split(&self) -> Option<&str> {
        let own = self.fewshot_config.as_ref().and_then(|config| config.split.as_deref());
        own.or(self.fewshot_split.as_deref()).or_else(|| {
            let given = self.fewshot_config.as_ref().is_some_and(|config| config.samples.is_some());
            if given { None } else { self.training_split.as_deref().or(self.evaluated_split()) }
        })
    }

    /// Its name in tables.
    pub fn alias(&self) -> &str {
        self.task_alias.as_deref().unwrap_or(&self.task)
    }

    /// `metadata.version`, or `Yaml`.
    pub fn version(&self) -> Value {
        version_of(self.metadata.as_ref()).unwrap_or_else(|| Value::from("Yaml"))
    }
}

/// `version` of a `metadata`.
pub(super) fn version_of(metadata: Option<&Value>) -> Option<Value> {
    metadata?.get("version").cloned()
}

/// A value as a type of this room.
pub(super) fn from_value<T: for<'de> Deserialize<'de>>(value: Value, path: &Path) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!("`{place}`: ") };
        Error::file(path, format!("{place}{}", error.into_inner()))
    })
}

/// The error for a key that is not known.
pub(super) fn unknown(path: &Path, of: &str, key: &str, known: &[&str]) -> Error {
    let near = known.iter().map(|known| (strsim::jaro_winkler(known, key), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    let help = match near {
        Some((similarity, near)) if similarity > 0.8 => format!("did you mean `{near}`?"),
        _ => format!("its keys are {}", known.join(", ")),
    };
    Error::file(path, format!("`{key}` is not a key of {of}")).with_help(help)
}
