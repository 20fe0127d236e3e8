//! Temperature scaling: one number that makes option probabilities less, or more, sure.

use super::calibration::{log_softmax_at, valid};
use serde::Serialize;

/// A fitted temperature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Temperature {
    /// What logits are divided by: above 1 where the model is too sure.
    pub temperature: f64,
    /// The mean negative log-likelihood of the right options at 1, in nats.
    pub nll_before: f64,
    /// The same at `temperature`.
    pub nll_after: f64,
    /// The least lies outside `[1/1000, 1000]`, and `temperature` is the nearer end: every answer is right (towards 0), or
    /// logits tell nothing or mislead (towards infinity).
    pub at_bound: bool,
}

/// `ln 1000`
const BOUND: f64 = 6.907_755_278_982_137;
/// Bisections of `[-BOUND, BOUND]`: to about the last bit.
const STEPS: usize = 60;

/// The temperature `T` that minimises `-1/n Σ log softmax(z_i / T)[target_i]`, the mean negative log-likelihood.
///
/// `logits` holds a row of options for each item, `targets` the right one of each. With `β = 1/T` the loss is convex, and
/// its derivative `1/n Σ (E_softmax(βz)[z] - z_target)` rises with `β`: its root is bisected on `log T`, which finds it to the
/// last digits, where a search by the loss itself would stop at half of them. To be fitted on items that calibration is
/// then not measured on. `None` as for [`Predictions::from_logits`](super::Predictions::from_logits), and if no item's
/// logits differ. Source: Guo et al. 2017 (arXiv 1706.04599).
pub fn fit_temperature<R: AsRef<[f64]>>(logits: &[R], targets: &[usize]) -> Option<Temperature> {
    if !valid(logits, targets) || logits.iter().all(|row| spread(row.as_ref()) == 0.0) {
        return None;
    }
    // From the sharpest to the flattest: the slope by β falls, as β does.
    let (mut low, mut high) = (-BOUND, BOUND);
    let rising = |log_t: f64| slope(logits, targets, (-log_t).exp()) > 0.0;
    let inside = rising(low) && !rising(high);
    if inside {
        for _ in 0..STEPS {
            let middle = f64::midpoint(low, high);
            if rising(middle) { low = middle } else { high = middle }
        }
    }
    // Where even the sharpest is not too sure, the least is at that end.
    let log_t = if inside {
        f64::midpoint(low, high)
    } else if rising(low) {
        high
    } else {
        low
    };
    Some(Temperature {
        temperature: log_t.exp(),
        nll_before: nll(logits, targets, 1.0),
        nll_after: nll(logits, targets, (-log_t).exp()),
        at_bound: !inside,
    })
}

fn spread(row: &[f64]) -> f64 {
    let (low, high) = row.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &z| (l.min(z), h.max(z)));
    high - low
}

fn nll<R: AsRef<[f64]>>(logits: &[R], targets: &[usize], beta: f64) -> f64 {
    let sum: f64 = logits.iter().zip(targets).map(|(row, &target)| log_softmax_at(row.as_ref(), target, beta)).sum();
    -sum / targets.len() as f64
}

/// The derivative of the loss by `β`, times the number of items.
fn slope<R: AsRef<[f64]>>(logits: &[R], targets: &[usize], beta: f64) -> f64 {
    let of_item = |(row, &target): (&R, &usize)| {
        let row = row.as_ref();
        let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (mut weights, mut moments) = (0.0, 0.0);
        for z in row.iter().map(|z| z - highest) {
            let weight = (beta * z).exp();
            weights += weight;
            moments += weight * z;
        }
        moments / weights - (row[target] - highest)
    };
    logits.iter().zip(targets).map(of_item).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_options_it_is_found_by_hand() {
        // 3 of 4 right at a logit difference of 2: softmax(2/T) = 3/4, so T = 2/ln 3.
        let rows = [[2.0, 0.0]; 4];
        let fitted = fit_temperature(&rows, &[0, 0, 0, 1]).unwrap();
        assert!((fitted.temperature - 2.0 / 3_f64.ln()).abs() < 1e-13, "{fitted:?}");
        assert!(fitted.nll_after < fitted.nll_before && !fitted.at_bound);
    }

    #[test]
    fn right_and_misleading_answers_end_at_the_bounds() {
        let rows = [[2.0, 0.0], [0.0, 1.0]];
        let right = fit_temperature(&rows, &[0, 1]).unwrap();
        assert!(right.at_bound && (right.temperature - 1e-3).abs() < 1e-12, "{right:?}");
        let wrong = fit_temperature(&rows, &[1, 0]).unwrap();
        assert!(wrong.at_bound && (wrong.temperature - 1e3).abs() < 1e-6, "{wrong:?}");
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(fit_temperature(&[[1.0, 1.0]], &[0]), None);
        assert_eq!(fit_temperature(&[[1.0, f64::NAN]], &[0]), None);
        assert_eq!(fit_temperature(&[[1.0, 2.0]], &[2]), None);
        assert_eq!(fit_temperature::<[f64; 2]>(&[], &[]), None);
    }
}
