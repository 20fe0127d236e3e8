//! From the values of items to those of tasks and groups.

use super::config::MetricConfig;
use super::metrics::ItemValue;
use crate::statistics::{
    Binning, CALIBRATION_BINS, Confusion, Predictions, Resampling, bootstrap_stderr, mean, mean_stderr, pooled_stderr,
    unweighted_mean_stderr, weighted_mean,
};
use crate::text_scores::{RollingLikelihood, perplexity};

/// Resamples of a bootstrapped standard error. lm-eval draws 100,000; a thousand tell a standard error to 3%.
const RESAMPLES: usize = 1000;

/// A metric over the items of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Aggregate {
    /// The metric and the filter, as lm-eval joins them: `acc,none`.
    pub key: String,
    /// Its value.
    pub value: f64,
    /// Its standard error; `None` where it has none.
    pub stderr: Option<f64>,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// How many items it is of.
    pub items: usize,
}

/// A task or a group in numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskResult {
    /// Its name.
    pub name: String,
    /// Its name in tables.
    pub alias: String,
    /// Documents.
    pub sample_len: usize,
    /// Its metrics.
    pub metrics: Vec<Aggregate>,
}

/// A metric over items.
pub fn aggregate(metric: &MetricConfig, filter: &str, values: &[ItemValue], seed: u64) -> Aggregate {
    let aggregation = metric.aggregation();
    let all: Vec<usize> = (0..values.len()).collect();
    let stderr = match aggregation {
        _ if values.len() < 2 => None,
        "mean" => mean_stderr(&numbers(values, &all).collect::<Vec<f64>>()),
        "weighted_perplexity" | "bits_per_byte" | "brier_score" => None,
        _ => {
            let resampling = Resampling { resamples: RESAMPLES, seed, ..Resampling::default() };
            bootstrap_stderr(values.len(), &resampling, |chosen| of(aggregation, values, chosen))
        }
    };
    Aggregate {
        key: format!("{},{filter}", metric.metric),
        value: of(aggregation, values, &all),
        stderr,
        higher_is_better: metric.higher_is_better(),
        items: values.len(),
    }
}

fn numbers<'v>(values: &'v [ItemValue], chosen: &'v [usize]) -> impl Iterator<Item = f64> + 'v {
    chosen.iter().map(|&i| match values[i] {
        ItemValue::Number(number) => number,
        _ => f64::NAN,
    })
}

/// The aggregation of some items.
fn of(aggregation: &str, values: &[ItemValue], chosen: &[usize]) -> f64 {
    let all = || numbers(values, chosen).collect::<Vec<f64>>();
    // Words or bytes, whatever the metric counts.
    let rolling = || {
        let mut sum = RollingLikelihood::default();
        for &i in chosen {
            if let ItemValue::Weighted(log_likelihood, count) = values[i] {
                sum.join(RollingLikelihood { log_likelihood, bytes: count as u64, ..RollingLikelihood::default() });
            }
        }
        sum
    };
    let found = match aggregation {
        "nanmean" => mean(&numbers(values, chosen).filter(|x| !x.is_nan()).collect::<Vec<f64>>()),
        "median" => {
            let mut sorted = all();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied()
        }
        "perplexity" => perplexity(&all()),
        "weighted_perplexity" => rolling().byte_perplexity(),
        "bits_per_byte" => rolling().bits_per_byte(),
        "brier_score" => mean(&chosen.iter().map(|&i| brier(&values[i])).collect::<Vec<f64>>()),
        "f1" => Some(binary_f1(values, chosen)),
        "matthews_corrcoef" => {
            let (golds, taken): (Vec<usize>, Vec<usize>) = classes(values, chosen).unzip();
            Confusion::new(&taken, &golds).map(|of| of.matthews_correlation())
        }
        "balanced_accuracy" => {
            let (golds, taken): (Vec<usize>, Vec<usize>) = classes(values, chosen).unzip();
            Confusion::new(&taken, &golds).map(|of| of.balanced_accuracy())
        }
        "ece" => {
            predictions(values, chosen).map(|of| of.expected_calibration_error(Binning::EqualWidth, CALIBRATION_BINS))
        }
        "aurc" => predictions(values, chosen).map(|of| of.aurc()),
        _ => mean(&all()),
    };
    found.unwrap_or(f64::NAN)
}

fn predictions(values: &[ItemValue], chosen: &[usize]) -> Option<Predictions> {
    let of_items = chosen.iter().map(|&i| match &values[i] {
        ItemValue::Probabilities(gold, p) => Some((p.as_slice(), *gold)),
        _ => None,
    });
    let (probabilities, golds): (Vec<&[f64]>, Vec<usize>) = of_items.collect::<Option<Vec<_>>>()?.into_iter().unzip();
    Predictions::from_probabilities(&probabilities, &golds)
}

fn brier(value: &ItemValue) -> f64 {
    let ItemValue::Probabilities(gold, p) = value else { return f64::NAN };
    p.iter().enumerate().map(|(i, p)| (p - f64::from(i == *gold)).powi(2)).sum()
}

fn classes<'v>(values: &'v [ItemValue], chosen: &'v [usize]) -> impl Iterator<Item = (usize, usize)> + 'v {
    chosen.iter().filter_map(|&i| match values[i] {
        ItemValue::Classes(gold, taken) => Some((gold, taken)),
        _ => None,
    })
}

/// F1 of class 1, as scikit-learn's `f1_score`; 0 where nothing is or was called 1.
fn binary_f1(values: &[ItemValue], chosen: &[usize]) -> f64 {
    let (mut hits, mut golds, mut taken) = (0.0, 0.0, 0.0);
    for (gold, was) in classes(values, chosen) {
        hits += f64::from(gold == 1 && was == 1);
        golds += f64::from(gold == 1);
        taken += f64::from(was == 1);
    }
    if golds + taken == 0.0 { 0.0 } else { 2.0 * hits / (golds + taken) }
}

/// A group's metric from its tasks': `(metric, weight_by_size)`. Weighted by size, the standard error is that of all items pooled.
pub fn group_results(metrics: &[(String, bool)], tasks: &[&TaskResult]) -> Vec<Aggregate> {
    let mut results = Vec::new();
    for (metric, by_size) in metrics {
        let mut keys: Vec<&str> = tasks.iter().flat_map(|task| &task.metrics).map(|of| of.key.as_str()).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys.into_iter().filter(|key| key.split(',').next() == Some(metric)) {
            let parts: Vec<&Aggregate> =
                tasks.iter().filter_map(|task| task.metrics.iter().find(|of| of.key == key)).collect();
            let sizes: Vec<usize> = parts.iter().map(|of| if *by_size { of.items } else { 1 }).collect();
            let scores: Vec<f64> = parts.iter().map(|of| of.value).collect();
            let errors: Option<Vec<f64>> = parts.iter().map(|of| of.stderr).collect();
            let pooled = |errors: Vec<f64>| {
                if *by_size { pooled_stderr(&errors, &sizes) } else { unweighted_mean_stderr(&errors) }
            };
            results.push(Aggregate {
                key: key.to_owned(),
                value: weighted_mean(&scores, &sizes).unwrap_or(f64::NAN),
                stderr: errors.and_then(pooled),
                higher_is_better: parts.first().is_none_or(|of| of.higher_is_better),
                items: parts.iter().map(|of| of.items).sum(),
            });
        }
    }
    results
}
