//! The recipe's `evaluation` section.

use crate::error::{Error, Result};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// The recipe's `evaluation`: what is measured of the adapter besides the held-out rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationConfig {
    /// Names of tasks, groups and tags, patterns such as `mmlu_*`, or YAML files.
    #[serde(deserialize_with = "one_or_several")]
    pub tasks: Vec<String>,
    /// Folders and files with more tasks.
    #[serde(deserialize_with = "one_or_several")]
    pub include_path: Vec<String>,
    /// When the tasks are measured; by default with each validation where `training.metric_for_best_model` is one of their
    /// metrics, else at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_strategy: Option<EvalStrategy>,
    /// The first so many documents of each task alone; below 1, that share of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// In place of a task's own number of few-shot examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
    /// Whether prompts go through the chat template.
    pub apply_chat_template: bool,
    /// Tokens of a forward pass, about.
    pub batch_tokens: usize,
    /// Whether the perplexity of a general text is measured under the base and under the adapter: what was forgotten.
    pub general_text: bool,
}

/// The recipe's `evaluation.eval_strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalStrategy {
    /// After the last step, on the base and on the adapter.
    End,
    /// Besides that, with each validation: before training, every `training.eval_steps`, and after the last step.
    Steps,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            include_path: Vec::new(),
            eval_strategy: None,
            limit: None,
            num_fewshot: None,
            apply_chat_template: false,
            batch_tokens: 2048,
            general_text: true,
        }
    }
}

impl EvaluationConfig {
    /// Checks the values. `decides`: the metric of a task by which the best adapter is chosen.
    ///
    /// # Errors
    /// Names the key and the values that it takes.
    pub fn validate(&self, decides: Option<&str>) -> Result<()> {
        if self.limit.is_some_and(|limit| !(limit > 0.0 && limit.is_finite() && (limit < 1.0 || limit.fract() == 0.0)))
        {
            return Err(Error::invalid("evaluation.limit: must be a whole number of documents, or a share below 1"));
        }
        if self.batch_tokens == 0 {
            return Err(Error::invalid("evaluation.batch_tokens: must be at least 1"));
        }
        if self.tasks.iter().any(|name| name.trim().is_empty()) {
            return Err(Error::invalid("evaluation.tasks: a name is empty"));
        }
        if self.tasks.is_empty() && self.eval_strategy.is_some() {
            return Err(Error::invalid("evaluation.eval_strategy: there are no tasks to measure")
                .with_help("name some in `evaluation.tasks`, or delete the line"));
        }
        let Some(metric) = decides else { return Ok(()) };
        let wrong = |why: &str, help: String| {
            let message = format!("training.metric_for_best_model: `{metric}` is a task's metric, and {why}");
            Err(Error::invalid(message).with_help(help))
        };
        if self.tasks.is_empty() {
            let task = metric.rsplit_once('/').map_or(metric, |(task, _)| task);
            return wrong("`evaluation.tasks` names no task", format!("write `evaluation: {{tasks: [{task}]}}`"));
        }
        if self.eval_strategy == Some(EvalStrategy::End) {
            let help = "delete `evaluation.eval_strategy`, or set it to `steps`; or delete `training.metric_for_best_model`, to have the \
                        objective's own number decide"
                .to_owned();
            return wrong("`evaluation.eval_strategy: end` measures it once", help);
        }
        Ok(())
    }

    /// When the tasks are measured. `decides`: whether one of their metrics chooses the best adapter.
    pub fn strategy(&self, decides: bool) -> EvalStrategy {
        self.eval_strategy.unwrap_or(if decides { EvalStrategy::Steps } else { EvalStrategy::End })
    }
}

/// A list of names, or one.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Names;
    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name, or a list of names")
        }

        fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
            Ok(vec![name.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(name) = names.next_element()? {
                all.push(name);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Names)
}
