//! The metrics of an item.

use super::config::{MetricConfig, OutputType, TaskConfig};
use super::document::Target;
use super::value;
use crate::data::python_regex;
use crate::error::{Error, Result};
use crate::models::Score;
use crate::text_scores::perplexity::count_words;
use crate::text_scores::{ExactMatch, Rouge, RougeTokens, Squad};
use serde_json::{Map, Value};

/// A metric's value for one item, as its aggregation takes it.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemValue {
    /// A number.
    Number(f64),
    /// The right choice and the one that was taken.
    Classes(usize, usize),
    /// The right choice and the probability of each.
    Probabilities(usize, Vec<f64>),
    /// A log-likelihood, and of how many words or bytes.
    Weighted(f64, usize),
}

/// What is known of a metric.
#[derive(Debug, Clone, Copy)]
pub(super) struct Metric {
    pub name: &'static str,
    pub aggregation: &'static str,
    pub higher_is_better: bool,
    types: &'static [OutputType],
}

const fn metric(
    name: &'static str,
    aggregation: &'static str,
    higher_is_better: bool,
    types: &'static [OutputType],
) -> Metric {
    Metric { name, aggregation, higher_is_better, types }
}

use OutputType::{GenerateUntil, Loglikelihood, LoglikelihoodRolling, MultipleChoice};

const METRICS: &[Metric] = &[
    metric("acc", "mean", true, &[MultipleChoice, Loglikelihood]),
    metric("acc_norm", "mean", true, &[MultipleChoice]),
    metric("acc_bytes", "mean", true, &[MultipleChoice]),
    metric("acc_mutual_info", "mean", true, &[MultipleChoice]),
    metric("exact_match", "mean", true, &[GenerateUntil, MultipleChoice]),
    // Of choices that of class 1, over all items; of texts SQuAD's, of their words.
    metric("f1", "f1", true, &[MultipleChoice, GenerateUntil]),
    metric("rouge1", "mean", true, &[GenerateUntil]),
    metric("rouge2", "mean", true, &[GenerateUntil]),
    metric("rougeL", "mean", true, &[GenerateUntil]),
    metric("mcc", "matthews_corrcoef", true, &[MultipleChoice]),
    metric("brier_score", "brier_score", false, &[MultipleChoice]),
    // Not lm-eval's.
    metric("balanced_accuracy", "balanced_accuracy", true, &[MultipleChoice]),
    metric("nll", "mean", false, &[MultipleChoice]),
    metric("ece", "ece", false, &[MultipleChoice]),
    metric("aurc", "aurc", false, &[MultipleChoice]),
    metric("perplexity", "perplexity", false, &[Loglikelihood]),
    metric("word_perplexity", "weighted_perplexity", false, &[LoglikelihoodRolling]),
    metric("byte_perplexity", "weighted_perplexity", false, &[LoglikelihoodRolling]),
    metric("bits_per_byte", "bits_per_byte", false, &[LoglikelihoodRolling]),
];

const AGGREGATIONS: &[&str] = &[
    "mean",
    "nanmean",
    "median",
    "perplexity",
    "weighted_perplexity",
    "bits_per_byte",
    "f1",
    "matthews_corrcoef",
    "brier_score",
    "balanced_accuracy",
    "ece",
    "aurc",
];

/// The metric of this name.
pub(super) fn find(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// What a task measures: its `metric_list`, or what its output type has.
pub(super) fn of_task(config: &TaskConfig) -> Result<Vec<MetricConfig>> {
    let names: &[&str] = match config.output_type {
        MultipleChoice => &["acc", "acc_norm"],
        Loglikelihood => &["perplexity", "acc"],
        LoglikelihoodRolling => &["word_perplexity", "byte_perplexity", "bits_per_byte"],
        GenerateUntil => &["exact_match"],
    };
    let default = |name: &&str| MetricConfig {
        metric: (*name).to_owned(),
        aggregation: None,
        higher_is_better: None,
        settings: Map::new(),
    };
    let mut list = config.metric_list.clone().unwrap_or_else(|| names.iter().map(default).collect());
    if config.output_type == GenerateUntil {
        // Each text has a number of its own, F1 too.
        for metric in &mut list {
            metric.aggregation.get_or_insert_with(|| "mean".to_owned());
        }
    }
    list.iter().try_for_each(|metric| check(metric, config.output_type))?;
    Ok(list)
}

fn check(config: &MetricConfig, of: OutputType) -> Result<()> {
    let known: Vec<&str> =
        METRICS.iter().filter(|metric| metric.types.contains(&of)).map(|metric| metric.name).collect();
    if !known.contains(&config.metric.as_str()) {
        let similarity = |name: &&&str| strsim::jaro_winkler(name, &config.metric);
        let near = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        let help = match near.filter(|near| similarity(near) > 0.8) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("for this `output_type` there are {}", known.join(", ")),
        };
        return Err(Error::invalid(format!("`metric_list`: the metric `{}` is not one of this task's", config.metric))
            .with_help(help));
    }
    if let Some(aggregation) = config.aggregation.as_deref().filter(|name| !AGGREGATIONS.contains(name)) {
        return Err(Error::invalid(format!("`metric_list`: the aggregation `{aggregation}` is not built"))
            .with_help(format!("there are {}", AGGREGATIONS.join(", "))));
    }
    exact_match_settings(&config.settings).map(drop)
}

impl MetricConfig {
    pub(super) fn aggregation(&self) -> &str {
        self.aggregation.as_deref().unwrap_or_else(|| find(&self.metric).map_or("mean", |metric| metric.aggregation))
    }

    /// Whether more is better.
    pub fn higher_is_better(&self) -> bool {
        self.higher_is_better.unwrap_or_else(|| find(&self.metric).is_none_or(|metric| metric.higher_is_better))
    }
}

/// Values by metric, in the order of `metrics`.
pub(super) type Values = Vec<(String, ItemValue)>;

fn chosen(metrics: &[MetricConfig], of: impl Fn(&str) -> Option<ItemValue>) -> Values {
    metrics.iter().filter_map(|metric| Some((metric.metric.clone(), of(&metric.metric)?))).collect()
}

/// The first of the largest; a NaN wins.
pub(super) fn argmax(numbers: &[f64]) -> usize {
    let above = |a: f64, b: f64| a > b || a.is_nan() && !b.is_nan();
    (0..numbers.len()).reduce(|best, i| if above(numbers[i], numbers[best]) { i } else { best }).unwrap_or(0)
}

/// `softmax` in `f64`.
pub(super) fn softmax(lls: &[f64]) -> Vec<f64> {
    let max = lls.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = lls.iter().map(|ll| (ll - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// `log softmax(lls)[k]`, also where the softmax is 0.
fn log_softmax(lls: &[f64], k: usize) -> f64 {
    let max = lls.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    lls[k] - max - lls.iter().map(|ll| (ll - max).exp()).sum::<f64>().ln()
}

/// Which choices are right.
fn golds(target: &Target, choices: &[String]) -> Vec<usize> {
    let index = |target: &Value| match target {
        Value::Number(number) => number.as_u64().map(|index| index as usize),
        Value::String(text) => choices.iter().position(|choice| choice == text),
        _ => None,
    };
    match target {
        Value::Array(targets) => targets.iter().filter_map(index).collect(),
        other => index(other).into_iter().collect(),
    }
}

/// Of a multiple choice, and of the same choices after nothing where these were asked for.
pub(super) fn of_choices(
    metrics: &[MetricConfig],
    (choices, target): (&[String], &Target),
    scores: &[Score],
    unconditional: &[Score],
) -> Values {
    let lls: Vec<f64> = scores.iter().map(|score| score.log_probability).collect();
    let golds = golds(target, choices);
    let per = |length: &dyn Fn(&String) -> usize| {
        let each = lls.iter().zip(choices).map(|(ll, choice)| ll / length(choice) as f64);
        argmax(&each.collect::<Vec<_>>())
    };
    let hit = |taken: usize| ItemValue::Number(f64::from(golds.contains(&taken)));
    let several = target.is_array();
    chosen(metrics, |name| {
        Some(match name {
            "acc" => hit(argmax(&lls)),
            "acc_norm" => hit(per(&|choice| choice.chars().count())),
            "acc_bytes" => hit(per(&String::len)),
            "acc_mutual_info" => {
                let gains = lls.iter().zip(unconditional).map(|(ll, other)| ll - other.log_probability);
                hit(argmax(&gains.collect::<Vec<_>>()))
            }
            "exact_match" if several => ItemValue::Number(f64::from(golds.iter().any(|&gold| scores[gold].is_greedy))),
            "exact_match" => ItemValue::Number(f64::from(golds.iter().all(|&gold| scores[gold].is_greedy))),
            "nll" => ItemValue::Number(-log_softmax(&lls, *golds.first()?)),
            "f1" | "mcc" | "balanced_accuracy" => ItemValue::Classes(*golds.first()?, argmax(&lls)),
            "brier_score" | "ece" | "aurc" => ItemValue::Probabilities(*golds.first()?, softmax(&lls)),
            _ => return None,
        })
    })
}

/// Of the log-likelihood of a target.
pub(super) fn of_loglikelihood(metrics: &[MetricConfig], score: Score) -> Values {
    chosen(metrics, |name| {
        Some(ItemValue::Number(match name {
            "acc" => f64::from(score.is_greedy),
            "perplexity" => score.log_probability,
            _ => return None,
        }))
    })
}

/// Of the log-likelihood of a whole text. Words are what stands between white space, before the first and behind the last too.
pub(super) fn of_rolling(metrics: &[MetricConfig], text: &str, log_probability: f64) -> Values {
    let words = count_words(text) as usize;
    chosen(metrics, |name| {
        Some(match name {
            "word_perplexity" => ItemValue::Weighted(log_probability, words),
            "byte_perplexity" | "bits_per_byte" => ItemValue::Weighted(log_probability, text.len()),
            _ => return None,
        })
    })
}

/// Of a generated text, which filters may have changed.
pub(super) fn of_text(
    metrics: &[MetricConfig],
    (choices, target): (Option<&[String]>, &Target),
    answer: &str,
) -> Result<Values> {
    let references: Vec<String> = match (target, choices) {
        (Value::Number(index), Some(choices)) => {
            index.as_u64().and_then(|index| choices.get(index as usize)).cloned().into_iter().collect()
        }
        (Value::Array(targets), _) => targets.iter().map(value::text).collect(),
        (other, _) => vec![value::text(other)],
    };
    let mut values = Vec::new();
    for metric in metrics {
        if metric.metric == "exact_match" {
            let settings = exact_match_settings(&metric.settings)?;
            let hit = settings.matches_any(answer, &references);
            values.push((metric.metric.clone(), ItemValue::Number(f64::from(hit))));
            continue;
        }
        let rouge = || {
            let tokens: Vec<RougeTokens> = references.iter().map(|text| RougeTokens::of(text, true)).collect();
            Rouge::best_of(&tokens, &RougeTokens::of(answer, true))
        };
        let value = match metric.metric.as_str() {
            "f1" => Some(Squad::V1.f1(answer, &references)),
            "rouge1" => rouge().map(|rouge| rouge.rouge1.f_measure),
            "rouge2" => rouge().map(|rouge| rouge.rouge2.f_measure),
            "rougeL" => rouge().map(|rouge| rouge.rouge_l.f_measure),
            _ => None,
        };
        values.extend(value.map(|value| (metric.metric.clone(), ItemValue::Number(value))));
    }
    Ok(values)
}

/// What two texts are compared without: patterns, then what the metric itself leaves out.
#[derive(Debug, Default)]
struct Comparison {
    ignored: Vec<onig::Regex>,
    rules: ExactMatch,
}

impl Comparison {
    fn matches_any(&self, answer: &str, references: &[String]) -> bool {
        let remove = |text: &str| self.ignored.iter().fold(text.to_owned(), |text, regex| regex.replace_all(&text, ""));
        self.rules.matches_any_without(answer, references, remove)
    }
}

fn exact_match_settings(settings: &Map<String, Value>) -> Result<Comparison> {
    let mut read = Comparison::default();
    for (key, value) in settings {
        let flag = value.as_bool();
        match (key.as_str(), flag) {
            ("ignore_case", Some(flag)) => read.rules.ignore_case = flag,
            ("ignore_punctuation", Some(flag)) => read.rules.ignore_punctuation = flag,
            ("ignore_numbers", Some(flag)) => read.rules.ignore_numbers = flag,
            ("regexes_to_ignore", _) => {
                for pattern in value.as_array().into_iter().flatten() {
                    let regex = python_regex(pattern.as_str().unwrap_or_default());
                    read.ignored.push(regex.map_err(|what| Error::invalid(format!("`metric_list`: {what}")))?);
                }
            }
            ("hf_evaluate", _) => {}
            (key, _) => {
                return Err(Error::invalid(format!("`metric_list`: `{key}: {value}` is not a setting of a metric"))
                    .with_help("there are `ignore_case`, `ignore_punctuation`, `ignore_numbers` (true or false) and `regexes_to_ignore`"));
            }
        }
    }
    Ok(read)
}
