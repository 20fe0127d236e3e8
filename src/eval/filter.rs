//! What is made of an answer before it is judged.

use super::config::{FilterStep, OutputType, TaskConfig, from_value};
use crate::data::python_regex;
use crate::error::{Error, Result};
use crate::text_scores::is_space;
use onig::Regex;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// A named sequence of steps.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub name: String,
    steps: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    TakeFirst,
    Lowercase,
    Uppercase,
    RemoveWhitespace,
    Regex { regex: Regex, select: i64, fallback: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegexSettings {
    #[serde(default = "number")]
    regex_pattern: String,
    #[serde(default)]
    group_select: i64,
    #[serde(default = "invalid")]
    fallback: String,
}

fn number() -> String {
    r"#### (\-?[0-9\.\,]+)".to_owned()
}

fn invalid() -> String {
    "[invalid]".to_owned()
}

const KNOWN: &str = "`take_first`, `lowercase`, `uppercase`, `remove_whitespace` and `regex`";

impl Pipeline {
    /// The task's pipelines; without any, the answer as it is, under the name `none`.
    pub fn of_task(config: &TaskConfig) -> Result<Vec<Self>> {
        let Some(list) = config.filter_list.as_ref().filter(|list| !list.is_empty()) else {
            return Ok(vec![Self { name: "none".into(), steps: vec![Step::TakeFirst] }]);
        };
        if config.output_type != OutputType::GenerateUntil {
            return Err(Error::invalid("`filter_list` is for `output_type: generate_until`"));
        }
        let pipeline = |filter: &super::config::FilterConfig| {
            let steps = filter.filter.iter().map(Step::new).collect::<Result<_>>()?;
            Ok(Self { name: filter.name.clone(), steps })
        };
        list.iter().map(pipeline).collect()
    }

    /// The answer as it is judged.
    pub fn apply(&self, answer: &str) -> String {
        self.steps.iter().fold(answer.to_owned(), |text, step| step.apply(text))
    }
}

impl Step {
    fn new(step: &FilterStep) -> Result<Self> {
        Ok(match step.function.as_str() {
            "take_first" => Self::TakeFirst,
            "lowercase" => Self::Lowercase,
            "uppercase" => Self::Uppercase,
            "remove_whitespace" => Self::RemoveWhitespace,
            "regex" => {
                let settings: RegexSettings = from_value(Value::Object(step.settings.clone()), Path::new("regex"))
                    .map_err(|error| Error::invalid(format!("`filter_list`: {error}")))?;
                let regex = python_regex(&settings.regex_pattern)
                    .map_err(|what| Error::invalid(format!("`filter_list`: {what}")))?;
                Self::Regex { regex, select: settings.group_select, fallback: settings.fallback }
            }
            other => {
                return Err(Error::invalid(format!("`filter_list`: the filter `{other}` is not built"))
                    .with_help(format!("there are {KNOWN}")));
            }
        })
    }

    fn apply(&self, text: String) -> String {
        match self {
            Self::TakeFirst => text,
            Self::Lowercase => text.to_lowercase(),
            Self::Uppercase => text.to_uppercase(),
            Self::RemoveWhitespace => text.trim_matches(is_space).to_owned(),
            Self::Regex { regex, select, fallback } => found(regex, &text, *select).unwrap_or_else(|| fallback.clone()),
        }
    }
}

/// As Python's `findall`: the match, its group, or the first of its groups that is not empty.
fn found(regex: &Regex, text: &str, select: i64) -> Option<String> {
    let matches: Vec<Option<String>> = regex
        .captures_iter(text)
        .map(|found| match found.len() {
            1 => found.at(0).map(str::to_owned),
            2 => Some(found.at(1).unwrap_or_default().to_owned()),
            groups => (1..groups).filter_map(|group| found.at(group)).find(|text| !text.is_empty()).map(str::to_owned),
        })
        .collect();
    let index = if select < 0 { matches.len() as i64 + select } else { select };
    let chosen = matches.get(usize::try_from(index).ok()?)?.as_ref()?;
    Some(chosen.trim_matches(is_space).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_what_python_finds() {
        let find = |pattern: &str, text: &str, select| found(&python_regex(pattern).unwrap(), text, select);
        assert_eq!(find(r"\w+", " one two ", 0).as_deref(), Some("one"));
        assert_eq!(find(r"\w+", " one two ", -1).as_deref(), Some("two"));
        assert_eq!(find(r"(?:the|a) (\w+)|([A-Z]+\d*)", "the heart TP53", -1).as_deref(), Some("TP53"));
        assert_eq!(find(r"#### (\-?[0-9\.\,]+)", "so #### 1,234", 0).as_deref(), Some("1,234"));
        assert_eq!(find(r"\d", "none", 0), None);
    }
}
