//! Intervals from a statistic's bootstrap distribution: percentile and BCa.

use super::{Interval, finite, normal_cdf, normal_quantile, quantile};

/// The percentile bootstrap interval: the quantiles `(1 ∓ confidence)/2` of the statistic over resamples.
///
/// `None` if there are no resamples, one is not finite, or the confidence is outside `(0, 1)`. Source: Efron and Tibshirani
/// 1993, §13.3; the same as scipy's `bootstrap(method="percentile")`.
pub fn percentile_interval(resampled: &[f64], confidence: f64) -> Option<Interval> {
    let tail = tail(confidence)?;
    between(resampled, [tail, 1.0 - tail])
}

/// The bias-corrected and accelerated (BCa) bootstrap interval.
///
/// The quantiles `Φ(z0 + (z0 + z)/(1 - a·(z0 + z)))` of the statistic over resamples, with `z = Φ⁻¹((1 ∓ confidence)/2)`, `z0`
/// from [`bias_correction`] and `a` from [`acceleration`]; `estimate` is the statistic of the sample itself and `jackknife`
/// its values with one unit left out. It is second-order accurate, the percentile interval of the first order only.
///
/// `None` if there are no resamples, a number is not finite, the confidence is outside `(0, 1)`, or all resamples lie on one
/// side of the estimate. Source: Efron 1987, JASA 82; Efron and Tibshirani 1993, §14.3; the same as scipy's
/// `bootstrap(method="BCa")`.
pub fn bca_interval(resampled: &[f64], estimate: f64, jackknife: &[f64], confidence: f64) -> Option<Interval> {
    let (z0, a) = (bias_correction(resampled, estimate)?, acceleration(jackknife)?);
    let z = normal_quantile(tail(confidence)?);
    let level = |z: f64| normal_cdf(z0 + (z0 + z) / (1.0 - a * (z0 + z)));
    between(resampled, [level(z), level(-z)])
}

/// The bias correction `z0 = Φ⁻¹((#{θ* < θ} + #{θ* ≤ θ}) / 2B)`: how far the estimate `θ` lies from the median of its `B`
/// resampled values `θ*`, in standard normal units.
///
/// Ties count half: means of 0/1 scores have many. `None` if there are no resamples, a number is not finite, or all
/// resamples lie on one side.
pub fn bias_correction(resampled: &[f64], estimate: f64) -> Option<f64> {
    if resampled.iter().chain([&estimate]).any(|value| !value.is_finite()) {
        return None;
    }
    let below = resampled.iter().filter(|&&value| value < estimate).count();
    let not_above = resampled.iter().filter(|&&value| value <= estimate).count();
    finite(normal_quantile((below + not_above) as f64 / (2 * resampled.len()) as f64))
}

/// The acceleration `a = Σ (θ. - θ_i)³ / (6·(Σ (θ. - θ_i)²)^1.5)` of jackknife values `θ_i` with mean `θ.`: how fast the
/// standard error changes with the statistic.
///
/// 0 where all values are equal. `None` if there are fewer than two, or one is not finite.
pub fn acceleration(jackknife: &[f64]) -> Option<f64> {
    if jackknife.len() < 2 {
        return None;
    }
    let mean = super::mean(jackknife)?;
    let largest = jackknife.iter().map(|value| (mean - value).abs()).fold(0.0, f64::max);
    // Mere rounding of equal values is no skewness.
    if largest <= 4.0 * f64::EPSILON * mean.abs() || largest == 0.0 {
        return Some(0.0);
    }
    // Divided by the largest, so that no power of a small deviation is lost.
    let deviations = || jackknife.iter().map(|value| (mean - value) / largest);
    let cubes: f64 = deviations().map(|d| d.powi(3)).sum();
    let squares: f64 = deviations().map(|d| d.powi(2)).sum();
    finite(cubes / (6.0 * squares.powf(1.5)))
}

/// `(1 - confidence)/2`
fn tail(confidence: f64) -> Option<f64> {
    (confidence > 0.0 && confidence < 1.0).then_some((1.0 - confidence) / 2.0)
}

fn between(resampled: &[f64], levels: [f64; 2]) -> Option<Interval> {
    if resampled.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let mut ascending = resampled.to_vec();
    ascending.sort_unstable_by(f64::total_cmp);
    Some(Interval { low: quantile(&ascending, levels[0])?, high: quantile(&ascending, levels[1])? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_bias_and_skewness_both_intervals_are_one() {
        let resampled: Vec<f64> = (-50..=50).map(f64::from).collect();
        let bca = bca_interval(&resampled, 0.0, &[-1.0, 0.0, 1.0], 0.9).unwrap();
        let percentile = percentile_interval(&resampled, 0.9).unwrap();
        assert!((bca.low - percentile.low).abs() < 1e-9 && (bca.high - percentile.high).abs() < 1e-9, "{bca:?}");
        assert!((percentile.low + 45.0).abs() < 1e-9 && (percentile.high - 45.0).abs() < 1e-9, "{percentile:?}");
    }

    #[test]
    fn a_skewed_statistic_moves_the_interval_to_its_long_side() {
        let resampled: Vec<f64> = (0..=1000).map(f64::from).collect();
        let bca = bca_interval(&resampled, 500.0, &[0.0, 0.1, 0.2, -2.0], 0.9).unwrap();
        assert!(bca.low > 50.0 && bca.high > 950.0, "{bca:?}");
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(percentile_interval(&[], 0.95), None);
        assert_eq!(percentile_interval(&[1.0, f64::NAN], 0.95), None);
        assert_eq!(percentile_interval(&[1.0], 1.0), None);
        assert_eq!(bias_correction(&[1.0, 2.0], 3.0), None);
        assert_eq!(bias_correction(&[], 3.0), None);
        assert_eq!(acceleration(&[1.0]), None);
        assert_eq!(acceleration(&[1.0, f64::NAN]), None);
        assert_eq!(acceleration(&[0.3; 7]), Some(0.0));
    }
}
