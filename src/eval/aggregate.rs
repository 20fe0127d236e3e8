//! From the values of items to those of tasks and groups.

use super::config::MetricConfig;
use super::metrics::ItemValue;
use crate::rng::Rng;
use std::collections::BTreeMap;

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
    let value = of(aggregation, values, &all);
    let stderr = match aggregation {
        _ if values.len() < 2 => None,
        "mean" => {
            let numbers: Vec<f64> = numbers(values, &all).collect();
            Some(sample_std(&numbers) / (numbers.len() as f64).sqrt())
        }
        "weighted_perplexity" | "bits_per_byte" | "brier_score" => None,
        _ => Some(bootstrap(aggregation, values, seed)),
    };
    Aggregate {
        key: format!("{},{filter}", metric.metric),
        value,
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
    let n = chosen.len() as f64;
    let sums = || {
        chosen.iter().fold((0.0, 0.0), |(lls, counts), &i| match values[i] {
            ItemValue::Weighted(ll, count) => (lls + ll, counts + count as f64),
            _ => (f64::NAN, f64::NAN),
        })
    };
    match aggregation {
        "nanmean" => {
            let known: Vec<f64> = numbers(values, chosen).filter(|x| !x.is_nan()).collect();
            known.iter().sum::<f64>() / known.len() as f64
        }
        "median" => {
            let mut sorted: Vec<f64> = numbers(values, chosen).collect();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
        }
        "perplexity" => (-numbers(values, chosen).sum::<f64>() / n).exp(),
        "weighted_perplexity" => {
            let (lls, counts) = sums();
            (-lls / counts).exp()
        }
        "bits_per_byte" => {
            let (lls, counts) = sums();
            -lls / counts / std::f64::consts::LN_2
        }
        "brier_score" => {
            let each = chosen.iter().map(|&i| match &values[i] {
                ItemValue::Probabilities(gold, p) => {
                    p.iter().enumerate().map(|(i, p)| (p - f64::from(i == *gold)).powi(2)).sum::<f64>()
                }
                _ => f64::NAN,
            });
            each.sum::<f64>() / n
        }
        "f1" => binary_f1(values, chosen),
        "matthews_corrcoef" => matthews(values, chosen),
        _ => numbers(values, chosen).sum::<f64>() / n,
    }
}

fn classes<'v>(values: &'v [ItemValue], chosen: &'v [usize]) -> impl Iterator<Item = (i64, i64)> + 'v {
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

/// The Matthews correlation coefficient of any number of classes; 0 where all are one.
fn matthews(values: &[ItemValue], chosen: &[usize]) -> f64 {
    let (mut hits, mut n) = (0.0, 0.0);
    let mut counts: BTreeMap<i64, (f64, f64)> = BTreeMap::new();
    for (gold, was) in classes(values, chosen) {
        n += 1.0;
        hits += f64::from(gold == was);
        counts.entry(gold).or_default().0 += 1.0;
        counts.entry(was).or_default().1 += 1.0;
    }
    let sum = |f: &dyn Fn(&(f64, f64)) -> f64| counts.values().map(f).sum::<f64>();
    let covariance = hits * n - sum(&|(gold, was)| gold * was);
    let scale = (n * n - sum(&|(gold, _)| gold * gold)) * (n * n - sum(&|(_, was)| was * was));
    if scale == 0.0 { 0.0 } else { covariance / scale.sqrt() }
}

/// The standard deviation with `n - 1`.
fn sample_std(numbers: &[f64]) -> f64 {
    let n = numbers.len() as f64;
    let mean = numbers.iter().sum::<f64>() / n;
    (numbers.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0)).sqrt()
}

fn bootstrap(aggregation: &str, values: &[ItemValue], seed: u64) -> f64 {
    let mut rng = Rng::new(seed);
    let draw = |_| {
        let chosen: Vec<usize> = (0..values.len()).map(|_| rng.below(values.len() as u64) as usize).collect();
        of(aggregation, values, &chosen)
    };
    sample_std(&(0..RESAMPLES).map(draw).collect::<Vec<f64>>())
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
            let sizes: Vec<f64> = parts.iter().map(|of| if *by_size { of.items as f64 } else { 1.0 }).collect();
            let total: f64 = sizes.iter().sum();
            let value = parts.iter().zip(&sizes).map(|(of, size)| of.value * size).sum::<f64>() / total;
            let errors: Option<Vec<f64>> = parts.iter().map(|of| of.stderr).collect();
            let stderr = errors.map(|errors| pooled(&errors, &sizes, *by_size));
            results.push(Aggregate {
                key: key.to_owned(),
                value,
                stderr,
                higher_is_better: parts.first().is_none_or(|of| of.higher_is_better),
                items: parts.iter().map(|of| of.items).sum(),
            });
        }
    }
    results
}

fn pooled(errors: &[f64], sizes: &[f64], by_size: bool) -> f64 {
    let (total, k) = (sizes.iter().sum::<f64>(), errors.len() as f64);
    if !by_size {
        return errors.iter().map(|error| error * error).sum::<f64>().sqrt() / k;
    }
    let variance = errors.iter().zip(sizes).map(|(error, n)| (n - 1.0) * error * error * n).sum::<f64>() / (total - k);
    (variance / total).sqrt()
}
