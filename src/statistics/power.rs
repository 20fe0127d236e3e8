//! What a paired comparison of this size could show.

use super::{finite, normal_quantile};

/// The two-sided level of a test, where nothing else is asked for.
pub const ALPHA: f64 = 0.05;
/// The chance of showing a difference that is there, where nothing else is asked for.
pub const POWER: f64 = 0.8;

/// The least mean difference that a paired comparison of `items` shows with probability `power` at the two-sided level
/// `alpha`, in the units of the scores.
///
/// `(Φ⁻¹(1 - alpha/2) + Φ⁻¹(power))·sd/√n`, with `sd` the standard deviation of the differences: the normal approximation.
/// `None` if there are no items, `sd` is negative or not finite, `alpha` is outside `(0, 1)`, or `power` is not in
/// `[alpha/2, 1)`, as no difference has less power than that. Source: Miller 2024 (arXiv 2411.00640), on power analysis;
/// the same as statsmodels' `NormalIndPower` with `ratio=0` and one tail of `alpha/2`.
pub fn least_detectable_difference(items: usize, sd: f64, alpha: f64, power: f64) -> Option<f64> {
    if items == 0 {
        return None;
    }
    from_stderr(sd / (items as f64).sqrt(), alpha, power)
}

/// The same for accuracies that differ on a share of the items: each difference is -1, 0 or 1, so `sd ≈ √share`.
///
/// The exact `sd` is `√(share - Δ²)`, which is less; the result is hence a little too large, never too small. A result
/// above `discordant_share` says that no difference can be shown with so few items, as the difference is at most the share.
/// `None` as for [`least_detectable_difference`], and if the share is outside `[0, 1]`. Source: Connor 1987, Biometrics 43.
pub fn least_detectable_accuracy_difference(
    items: usize,
    discordant_share: f64,
    alpha: f64,
    power: f64,
) -> Option<f64> {
    if !(0.0..=1.0).contains(&discordant_share) {
        return None;
    }
    least_detectable_difference(items, discordant_share.sqrt(), alpha, power)
}

/// The least difference for a standard error of the difference, clustered or not.
pub(super) fn from_stderr(stderr: f64, alpha: f64, power: f64) -> Option<f64> {
    let valid = alpha > 0.0 && alpha < 1.0 && power >= alpha / 2.0 && power < 1.0 && stderr >= 0.0;
    if !valid {
        return None;
    }
    finite((normal_quantile(1.0 - alpha / 2.0) + normal_quantile(power)) * stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_hundred_items_show_about_five_and_a_half_points() {
        let least = least_detectable_accuracy_difference(500, 0.2, ALPHA, POWER).unwrap();
        assert!((least - 0.056).abs() < 5e-4, "{least}");
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(least_detectable_difference(0, 1.0, ALPHA, POWER), None);
        assert_eq!(least_detectable_difference(9, f64::NAN, ALPHA, POWER), None);
        assert_eq!(least_detectable_difference(9, -1.0, ALPHA, POWER), None);
        assert_eq!(least_detectable_difference(9, 1.0, 0.0, POWER), None);
        assert_eq!(least_detectable_difference(9, 1.0, ALPHA, 1.0), None);
        assert_eq!(least_detectable_difference(9, 1.0, ALPHA, 0.01), None);
        assert_eq!(least_detectable_accuracy_difference(9, 1.5, ALPHA, POWER), None);
    }
}
