//! Which number of a validation decides what is best.

use super::metrics::{TaskScore, Validation};
use crate::objectives::ObjectiveConfig;
use serde::de::{EnumAccess, Error as _, VariantAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;

/// The recipe's `training.metric_for_best_model`: a number of a validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricForBest {
    /// Mean cross-entropy of the supervised tokens: the lower, the better.
    CrossEntropy,
    /// Share of the supervised tokens that the model ranks first: the higher, the better.
    TokenAccuracy,
    /// Mean probability of the supervised tokens: the higher, the better.
    TokenProbability,
    /// The objective's own loss: the lower, the better. Where tokens are weighted by their probability, a ruined model has the
    /// lowest.
    ObjectiveLoss,
    /// A task's metric, which says itself whether more is better.
    Task(TaskMetric),
}

/// A task's metric: `pubmedqa/acc`, or with one of the task's filters `gsm8k/exact_match,strict-match`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskMetric {
    /// The task's name, or a group's.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The filter; where it is not given, the task's first.
    pub filter: Option<String>,
}

impl fmt::Display for TaskMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.task, self.metric)?;
        self.filter.as_ref().map_or(Ok(()), |filter| write!(f, ",{filter}"))
    }
}

impl TaskMetric {
    /// Whether a score is of it.
    pub fn is(&self, score: &TaskScore) -> bool {
        let of_filter = self.filter.as_ref().is_none_or(|filter| *filter == score.filter);
        of_filter && score.task == self.task && score.metric == self.metric
    }

    /// Its score in a validation; of several filters, the first.
    pub fn of<'a>(&self, validation: &'a Validation) -> Option<&'a TaskScore> {
        validation.tasks.iter().find(|score| self.is(score))
    }

    /// From `TASK/METRIC` or `TASK/METRIC,FILTER`.
    fn read(text: &str) -> Option<Self> {
        let (task, metric) = text.split_once('/')?;
        let (metric, filter) = metric.split_once(',').map_or((metric, None), |(metric, filter)| (metric, Some(filter)));
        let is_named = !task.is_empty() && !metric.is_empty() && filter != Some("");
        is_named.then(|| Self { task: task.into(), metric: metric.into(), filter: filter.map(str::to_owned) })
    }
}

impl MetricForBest {
    /// The numbers that each validation has.
    pub const NUMBERS: [Self; 4] =
        [Self::CrossEntropy, Self::TokenAccuracy, Self::TokenProbability, Self::ObjectiveLoss];

    /// What the recipe takes, for messages.
    const WORDS: &[&str] = &["cross_entropy", "token_accuracy", "token_probability", "objective_loss", "TASK/METRIC"];

    /// What the recipe says, or what the objective's gradient follows.
    ///
    /// Where a token's weight is its probability, held constant, its gradient is `p·∇(-log p) = -∇p`: what falls is not
    /// cross-entropy but `1 - p`.
    pub fn resolve(setting: Option<&Self>, objective: &ObjectiveConfig) -> Self {
        let follows = if objective.weighs_by_probability() { Self::TokenProbability } else { Self::CrossEntropy };
        setting.cloned().unwrap_or(follows)
    }

    /// Its name in words, where the objective is known by its own: `bft loss`.
    pub fn name_under(&self, objective: &str) -> String {
        match self {
            Self::ObjectiveLoss => format!("{objective} loss"),
            other => other.name().into_owned(),
        }
    }

    /// Its value as people read it.
    pub fn text(&self, validation: &Validation) -> String {
        match self {
            Self::CrossEntropy => format!("{:.4}", validation.cross_entropy),
            Self::ObjectiveLoss => format!("{:.4}", validation.objective_loss),
            Self::TokenAccuracy => format!("{:.1}%", 100.0 * validation.token_accuracy),
            Self::TokenProbability => format!("{:.1}%", 100.0 * validation.token_probability),
            Self::Task(metric) => {
                metric.of(validation).map_or_else(|| "?".into(), |score| format!("{:.4}", score.value))
            }
        }
    }

    /// The recipe's word for it.
    pub fn key(&self) -> Cow<'static, str> {
        match self {
            Self::CrossEntropy => "cross_entropy".into(),
            Self::TokenAccuracy => "token_accuracy".into(),
            Self::TokenProbability => "token_probability".into(),
            Self::ObjectiveLoss => "objective_loss".into(),
            Self::Task(metric) => metric.to_string().into(),
        }
    }

    /// Its name in words.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Self::CrossEntropy => "cross-entropy".into(),
            Self::TokenAccuracy => "token accuracy".into(),
            Self::TokenProbability => "token probability".into(),
            Self::ObjectiveLoss => "objective loss".into(),
            Self::Task(metric) => metric.to_string().into(),
        }
    }

    /// Whether a validation has it.
    pub fn is_in(&self, validation: &Validation) -> bool {
        !matches!(self, Self::Task(metric) if metric.of(validation).is_none())
    }

    /// The number with its sign so that more is better; `None` where it is not there or not finite.
    pub fn goodness(&self, validation: &Validation) -> Option<f64> {
        let number = match self {
            Self::CrossEntropy => -validation.cross_entropy,
            Self::ObjectiveLoss => -validation.objective_loss,
            Self::TokenAccuracy => validation.token_accuracy,
            Self::TokenProbability => validation.token_probability,
            Self::Task(metric) => {
                let score = metric.of(validation)?;
                if score.higher_is_better { score.value } else { -score.value }
            }
        };
        number.is_finite().then_some(number)
    }

    /// A number by its word, a task's metric by its name.
    fn read(word: &str) -> Option<Self> {
        let number = Self::NUMBERS.into_iter().find(|number| number.key() == word);
        number.or_else(|| TaskMetric::read(word).map(Self::Task))
    }
}

impl Serialize for MetricForBest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.key())
    }
}

impl<'de> Deserialize<'de> for MetricForBest {
    /// As serde's derive reads an enum, so that a recipe's mistakes are answered with the words that there are.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_enum("MetricForBest", Self::WORDS, Words)
    }
}

struct Words;

impl<'de> Visitor<'de> for Words {
    type Value = MetricForBest;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a word, or TASK/METRIC")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Self::Value, A::Error> {
        let (word, rest): (String, _) = access.variant()?;
        rest.unit_variant()?;
        MetricForBest::read(&word).ok_or_else(|| A::Error::unknown_variant(&word, MetricForBest::WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_metrics_of_tasks_are_read_as_they_are_written() {
        for word in [
            "cross_entropy",
            "token_accuracy",
            "token_probability",
            "objective_loss",
            "mmlu/acc_norm",
            "gsm8k/exact_match,strict-match",
        ] {
            let yaml: MetricForBest = serde_yaml::from_str(word).unwrap();
            let json: MetricForBest = serde_json::from_str(&format!("\"{word}\"")).unwrap();
            assert_eq!((yaml.key().as_ref(), &json), (word, &yaml));
            assert_eq!(serde_json::to_string(&yaml).unwrap(), format!("\"{word}\""));
        }
        for wrong in ["accuracy", "/acc", "mmlu/", "mmlu/acc,"] {
            let error = serde_yaml::from_str::<MetricForBest>(wrong).unwrap_err().to_string();
            assert!(error.contains("unknown variant") && error.contains("`cross_entropy`"), "{error}");
        }
    }
}
