//! An interval for a single rate.

use super::{Interval, normal_quantile};

/// The Wilson score interval of a rate of `successes` among `trials`, for independent trials.
///
/// `(p + z²/2n ± z·√(p(1 - p)/n + z²/4n²)) / (1 + z²/n)` with `p = successes/trials` and `z = Φ⁻¹((1 + confidence)/2)`; no
/// continuity correction. Rates of 0 and 1 have an interval too, and it never leaves `[0, 1]`. `None` if there are no
/// trials, more successes than trials, or the confidence is outside `(0, 1)`. Source: Wilson 1927, JASA 22; the same as
/// scipy's `binomtest(..).proportion_ci(method="wilson")`.
pub fn wilson_interval(successes: usize, trials: usize, confidence: f64) -> Option<Interval> {
    if trials == 0 || successes > trials || !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let (n, z) = (trials as f64, normal_quantile(f64::midpoint(1.0, confidence)));
    let rate = successes as f64 / n;
    let centre = rate + z * z / (2.0 * n);
    let half = z * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // At the ends the formula gives 0 and 1; rounding must not move them.
    let low = if successes == 0 { 0.0 } else { ((centre - half) / scale).max(0.0) };
    let high = if successes == trials { 1.0 } else { ((centre + half) / scale).min(1.0) };
    Some(Interval { low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_rate_is_not_certain() {
        let interval = wilson_interval(10, 10, 0.95).unwrap();
        assert_eq!(interval.high, 1.0);
        // Without failures the formula is n/(n + z²).
        let expected = 10.0 / (10.0 + 1.959_963_984_540_054_f64.powi(2));
        assert!((interval.low - expected).abs() < 1e-14, "{interval:?}");
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(wilson_interval(0, 0, 0.95), None);
        assert_eq!(wilson_interval(3, 2, 0.95), None);
        assert_eq!(wilson_interval(1, 2, 1.0), None);
        assert_eq!(wilson_interval(1, 2, f64::NAN), None);
    }
}
