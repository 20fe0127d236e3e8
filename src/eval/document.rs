//! From a document to what is asked and what is right.

use super::config::{MetricConfig, OutputType, TaskConfig};
use super::filter::Pipeline;
use super::metrics;
use super::scoring::Asked;
use super::value;
use crate::data::DocumentTemplate;
use crate::error::{Error, Result};
use crate::statistics::{Confusion, mean};
use serde_json::{Map, Value};

/// The rows of a split, each with all columns: what a row lacks is null, as the `datasets` library has it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Documents {
    rows: Vec<Map<String, Value>>,
}

impl Documents {
    /// Rows as they were read.
    pub fn new(rows: Vec<Map<String, Value>>) -> Self {
        let mut columns = Map::new();
        for row in &rows {
            for name in row.keys() {
                if !columns.contains_key(name) {
                    columns.insert(name.clone(), Value::Null);
                }
            }
        }
        let fill = |row: Map<String, Value>| {
            let mut filled = columns.clone();
            filled.extend(row);
            filled
        };
        Self { rows: rows.into_iter().map(fill).collect() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A row.
    pub fn row(&self, index: usize) -> Option<&Map<String, Value>> {
        self.rows.get(index)
    }

    /// The first rows alone.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        self.rows.truncate(count);
        self
    }

    fn has(&self, column: &str) -> bool {
        self.rows.first().is_some_and(|row| row.contains_key(column))
    }
}

/// What a key of a task makes of a document.
#[derive(Debug)]
enum Source {
    Field(String),
    Template(Box<DocumentTemplate>),
    Fixed(Value),
}

impl Source {
    fn new(value: &Value, documents: &Documents) -> Result<Self> {
        Ok(match value {
            Value::String(name) if documents.has(name) => Self::Field(name.clone()),
            Value::String(template) => Self::Template(Box::new(DocumentTemplate::new(template)?)),
            other => Self::Fixed(other.clone()),
        })
    }

    /// The value, and whether a template wrote it.
    fn of(&self, document: &Map<String, Value>) -> Result<(Value, bool)> {
        Ok(match self {
            Self::Field(name) => (document.get(name).cloned().unwrap_or_default(), false),
            Self::Template(template) => (Value::String(template.render(document)?), true),
            Self::Fixed(value) => (value.clone(), false),
        })
    }
}

/// What is right: a choice's index, a text, or several of either.
pub(super) type Target = Value;

/// What a document says, before it is a prompt.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parts {
    pub text: String,
    pub target: Target,
    pub choices: Option<Vec<String>>,
}

/// A task with its documents, checked.
#[derive(Debug)]
pub struct Prepared {
    /// The task.
    pub config: TaskConfig,
    /// What is measured.
    pub metrics: Vec<MetricConfig>,
    pub(super) filters: Vec<Pipeline>,
    /// The documents that are evaluated.
    pub documents: Documents,
    /// How many there were before a limit.
    pub original: usize,
    pub(super) fewshot: Documents,
    sources: Sources,
}

#[derive(Debug)]
struct Sources {
    text: Option<Source>,
    target: Source,
    choices: Option<Source>,
    description: Source,
    gen_prefix: Option<Source>,
}

impl Prepared {
    /// A task with the documents of its splits. `limit`: the first so many alone, or that share of them where it is below 1.
    ///
    /// # Errors
    /// When a key is not a valid template, a metric or a filter is not known, there is no document, or few-shot examples would be
    /// drawn.
    pub fn new(config: TaskConfig, documents: Documents, fewshot: Documents, limit: Option<f64>) -> Result<Self> {
        let original = documents.len();
        let count = match limit {
            None => original,
            Some(share) if share < 1.0 => (share * original as f64).ceil() as usize,
            Some(count) => count as usize,
        };
        let documents = documents.first(count);
        let of_task = |error: Error| {
            let located = Error::invalid(format!("task `{}`: {error}", config.task));
            match error.help() {
                Some(help) => located.with_help(help),
                None => located,
            }
        };
        if documents.is_empty() {
            return Err(of_task(Error::invalid("there is no document to evaluate")));
        }
        let key = |name: &str, value: &Value| {
            Source::new(value, &documents).map_err(|error| of_task(Error::invalid(format!("`{name}` {error}"))))
        };
        let sources = Sources {
            text: config.doc_to_text.as_ref().map(|value| key("doc_to_text", value)).transpose()?,
            target: key("doc_to_target", config.doc_to_target.as_ref().unwrap_or(&Value::Null))?,
            choices: config.doc_to_choice.as_ref().map(|value| key("doc_to_choice", value)).transpose()?,
            description: key("description", &Value::from(config.description.clone()))?,
            gen_prefix: config
                .gen_prefix
                .as_ref()
                .map(|value| key("gen_prefix", &Value::from(value.clone())))
                .transpose()?,
        };
        let metrics = metrics::of_task(&config).map_err(of_task)?;
        let filters = Pipeline::of_task(&config).map_err(of_task)?;
        let prepared = Self { config, metrics, filters, documents, original, fewshot, sources };
        prepared.check_fewshot()?;
        Ok(prepared)
    }

    fn check_fewshot(&self) -> Result<()> {
        let wanted = self.config.num_fewshot.unwrap_or(0);
        if wanted == 0 {
            return Ok(());
        }
        let task = &self.config.task;
        let sampler = self.config.fewshot_config.as_ref().and_then(|config| config.sampler.as_deref());
        if sampler != Some("first_n") {
            return Err(Error::invalid(format!(
                "task `{task}`: few-shot examples of the sampler `{}` are drawn by Python's generator, which is not built",
                sampler.unwrap_or("default")
            ))
            .with_help("set `fewshot_config: {sampler: first_n}`, or `num_fewshot` to 0"));
        }
        // A document is not an example for itself.
        let is_same = self.config.fewshot_split() == self.config.evaluated_split();
        let others = self.fewshot.len().saturating_sub(usize::from(is_same));
        if others < wanted {
            return Err(Error::invalid(format!(
                "task `{task}`: {wanted} few-shot examples are wanted, and there are {others}"
            )));
        }
        Ok(())
    }

    /// The names of its filters.
    pub fn filter_names(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().map(|filter| filter.name.as_str())
    }

    /// What a guess among the choices of a multiple-choice task gets, and what the best constant answer gets: the choice of one place
    /// for all documents. `None` for other tasks, and where there are several right answers.
    pub fn floors<'a>(&self, asked: impl IntoIterator<Item = &'a Asked>) -> Option<(f64, f64)> {
        if self.config.output_type != OutputType::MultipleChoice {
            return None;
        }
        let golds: Vec<(usize, usize)> = asked.into_iter().map(Asked::gold).collect::<Option<_>>()?;
        let chance = mean(&golds.iter().map(|&(_, choices)| 1.0 / choices as f64).collect::<Vec<f64>>())?;
        let places: Vec<usize> = golds.into_iter().map(|(gold, _)| gold).collect();
        Some((chance, Confusion::new(&places, &places)?.best_constant().accuracy))
    }

    /// The place of a document, for messages.
    pub(super) fn place(&self, id: usize, error: &Error) -> Error {
        let located = Error::invalid(format!("task `{}`, document {id}: {error}", self.config.task));
        match error.help() {
            Some(help) => located.with_help(help),
            None => located,
        }
    }

    pub(super) fn description(&self, document: &Map<String, Value>) -> Result<String> {
        Ok(value::text(&self.sources.description.of(document)?.0))
    }

    pub(super) fn gen_prefix(&self, document: &Map<String, Value>) -> Result<Option<String>> {
        self.sources.gen_prefix.as_ref().map(|source| Ok(value::text(&source.of(document)?.0))).transpose()
    }

    /// What a document says; `evaluated` documents must be right in all, few-shot examples need their answer alone.
    pub(super) fn parts(&self, document: &Map<String, Value>) -> Result<Parts> {
        let key = |name: &str, error: &Error| Error::invalid(format!("`{name}`: {error}"));
        let text = match &self.sources.text {
            None => String::new(),
            Some(source) => match source.of(document).map_err(|error| key("doc_to_text", &error))? {
                (Value::String(text), _) => text,
                (other, _) => {
                    return Err(Error::invalid(format!(
                        "`doc_to_text` is {other}, and not a text: tasks whose choices are contexts are not built"
                    )));
                }
            },
        };
        let choices = self.sources.choices.as_ref().map(|source| choices(source, document)).transpose()?;
        let (target, rendered) = self.sources.target.of(document).map_err(|error| key("doc_to_target", &error))?;
        let target = match target {
            Value::String(text) if rendered => read_target(text, choices.is_some()),
            other => other,
        };
        Ok(Parts { text, target, choices })
    }

    /// The few-shot examples for a document, which is none itself.
    pub(super) fn examples<'d>(
        &'d self,
        document: &'d Map<String, Value>,
    ) -> impl Iterator<Item = &'d Map<String, Value>> {
        let others = self.fewshot.rows.iter().filter(move |row| *row != document);
        others.take(self.config.num_fewshot.unwrap_or(0))
    }

    /// The parts of a document that is evaluated.
    pub(super) fn checked_parts(&self, document: &Map<String, Value>) -> Result<Parts> {
        let parts = self.parts(document)?;
        if self.config.output_type == OutputType::MultipleChoice {
            check_choices(parts.choices.as_deref().unwrap_or_default(), &parts.target)?;
        }
        Ok(parts)
    }
}

fn choices(source: &Source, document: &Map<String, Value>) -> Result<Vec<String>> {
    let (value, rendered) = source.of(document).map_err(|error| Error::invalid(format!("`doc_to_choice`: {error}")))?;
    let read = match &value {
        Value::String(text) if rendered => value::literal(text),
        other => Some(other.clone()),
    };
    match read {
        Some(Value::Array(items)) => Ok(items.iter().map(value::text).collect()),
        Some(Value::Object(items)) => Ok(items.values().map(value::text).collect()),
        _ => Err(Error::invalid(format!("`doc_to_choice` gives no list: {}", shown(&value::text(&value))))
            .with_help("a template writes a list as Python does: `{{choices}}`, or `{{[a, b]}}`")),
    }
}

/// A target that a template wrote: a number where there are choices, a list, or the text itself.
fn read_target(text: String, has_choices: bool) -> Value {
    let is_number = has_choices && !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let is_list = text.len() >= 2 && text.starts_with('[') && text.ends_with(']');
    let read = if is_number || is_list { value::literal(&text) } else { None };
    read.unwrap_or(Value::String(text))
}

/// lm-eval counts an item whose target is not among the choices as wrong, with a warning; here it is a mistake.
fn check_choices(choices: &[String], target: &Target) -> Result<()> {
    if choices.len() < 2 {
        return Err(Error::invalid(format!("`doc_to_choice` gives {} choices, and two are needed", choices.len())));
    }
    if let Some(index) = choices.iter().position(String::is_empty) {
        return Err(Error::invalid(format!("choice {index} is empty, counted from 0")));
    }
    let fits = |target: &Value| match target {
        Value::Number(number) => number.as_u64().is_some_and(|index| (index as usize) < choices.len()),
        Value::String(text) => choices.contains(text),
        _ => false,
    };
    let wrong = match target {
        Value::Array(targets) => targets.iter().find(|target| !(target.is_number() && fits(target))),
        other => Some(other).filter(|other| !fits(other)),
    };
    wrong.map_or(Ok(()), |wrong| {
        let (last, all) = (choices.len() - 1, choices.join("`, `"));
        Err(Error::invalid(format!(
            "the target {} is none of the choices: expected an index from 0 to {last}, or one of `{}`",
            shown(&wrong.to_string()),
            shown(&all)
        )))
    })
}

fn shown(text: &str) -> String {
    if text.chars().count() <= 100 { text.to_owned() } else { text.chars().take(99).chain(['…']).collect() }
}
