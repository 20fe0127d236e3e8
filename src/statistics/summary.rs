//! Means, spreads and standard errors, as lm-eval has them.

use super::finite;

/// The arithmetic mean `Σ x / n`, in the units of the values. `None` if there are no values or one is not finite.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    finite(values.iter().sum::<f64>() / values.len() as f64)
}

/// The sample standard deviation `√(Σ (x - mean)² / (n - 1))`, in the units of the values.
///
/// `None` for fewer than two values or one that is not finite. Source: lm-eval 0.4.13, `sample_stddev`.
pub fn sample_standard_deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    if values.len() < 2 {
        return None;
    }
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    finite((squares / (values.len() - 1) as f64).sqrt())
}

/// The standard error of a mean `s / √n` with the sample standard deviation `s`, in the units of the values.
///
/// For 0/1 scores of mean `a` it is `√(a(1 - a)/(n - 1))`. `None` as for [`sample_standard_deviation`]. Source: lm-eval
/// 0.4.13, `mean_stderr`.
pub fn mean_stderr(values: &[f64]) -> Option<f64> {
    Some(sample_standard_deviation(values)? / (values.len() as f64).sqrt())
}

/// The mean of subtasks' scores, weighted by their sizes: `Σ n_i·x_i / Σ n_i`.
///
/// `None` if the slices differ in length, the sizes sum to 0, or a score is not finite. Source: lm-eval 0.4.13,
/// `aggregate_subtask_metrics` with `weight_by_size: true`.
pub fn weighted_mean(scores: &[f64], sizes: &[usize]) -> Option<f64> {
    let total: f64 = sizes.iter().map(|&size| size as f64).sum();
    if scores.len() != sizes.len() || total == 0.0 {
        return None;
    }
    finite(scores.iter().zip(sizes).map(|(score, &size)| score * size as f64).sum::<f64>() / total)
}

/// The standard error of a group's size-weighted mean: `√(Σ (n_i - 1)·n_i·se_i² / (N - k) / N)` with `N = Σ n_i` and `k`
/// subtasks, in the units of the scores.
///
/// It pools the variances within subtasks and takes none between them. `None` if the slices differ in length, a standard
/// error is negative or not finite, or `N ≤ k`. Source: lm-eval 0.4.13, `pooled_sample_stderr`.
pub fn pooled_stderr(stderrs: &[f64], sizes: &[usize]) -> Option<f64> {
    let total: f64 = sizes.iter().map(|&size| size as f64).sum();
    let freedom = total - sizes.len() as f64;
    if stderrs.len() != sizes.len() || freedom <= 0.0 || stderrs.iter().any(|&stderr| stderr < 0.0) {
        return None;
    }
    let squares = stderrs.iter().zip(sizes).map(|(stderr, &size)| (size as f64 - 1.0) * stderr.powi(2) * size as f64);
    finite((squares.sum::<f64>() / freedom / total).sqrt())
}

/// The standard error of a group's unweighted mean over `k` subtasks: `√(Σ se_i²) / k`, in the units of the scores.
///
/// `None` if there are none, or one is negative or not finite. Source: lm-eval 0.4.13, `unweighted_mean_stderr`, for
/// groups with `weight_by_size: false`.
pub fn unweighted_mean_stderr(stderrs: &[f64]) -> Option<f64> {
    if stderrs.is_empty() || stderrs.iter().any(|&stderr| stderr < 0.0) {
        return None;
    }
    finite(stderrs.iter().map(|stderr| stderr.powi(2)).sum::<f64>().sqrt() / stderrs.len() as f64)
}

/// A quantile of values in ascending order, linear between neighbours: at the place `level·(n - 1)`.
///
/// `None` if there are no values, `level` is outside `[0, 1]`, or the result is not finite. Source: numpy's and scipy's
/// default method "linear" (type 7 of Hyndman and Fan 1996).
pub fn quantile(ascending: &[f64], level: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&level) {
        return None;
    }
    let place = level * ascending.len().checked_sub(1)? as f64;
    let below = place.floor();
    let low = *ascending.get(below as usize)?;
    let high = *ascending.get(place.ceil() as usize)?;
    finite(low + (high - low) * (place - below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_the_closed_form() {
        let scores: Vec<f64> = (0..500).map(|i| f64::from(i % 25 < 14)).collect();
        let expected = (0.56_f64 * 0.44 / 499.0).sqrt();
        assert!((mean_stderr(&scores).unwrap() - expected).abs() < 1e-15);
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[1.0, f64::NAN]), None);
        assert_eq!(mean_stderr(&[1.0]), None);
        assert_eq!(mean_stderr(&[f64::INFINITY, 1.0]), None);
        assert_eq!(sample_standard_deviation(&[1e300, -1e300]), None);
        assert_eq!(weighted_mean(&[0.5], &[0]), None);
        assert_eq!(pooled_stderr(&[0.1, 0.1], &[1, 1]), None);
        assert_eq!(pooled_stderr(&[f64::NAN], &[9]), None);
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1.0], f64::NAN), None);
    }

    #[test]
    fn an_empty_subtask_adds_nothing() {
        let (with, without) = (weighted_mean(&[0.5, 0.9], &[4, 0]), weighted_mean(&[0.5], &[4]));
        assert_eq!(with, without);
    }
}
