//! The bootstrap: resamples of items or clusters with replacement, and what a statistic is on each.

use super::sample_standard_deviation;
use super::units::Unit;
use crate::rng::{Rng, key, name_key};

/// More resamples than this are not drawn.
pub const MAX_RESAMPLES: usize = 1_000_000;

/// How random tests and intervals are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling {
    /// How many resamples or sign flips, [`MAX_RESAMPLES`] at most.
    pub resamples: usize,
    /// The share of such intervals that hold the true value, in `(0, 1)`.
    pub confidence: f64,
    /// The seed of all draws.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Self {
        Self { resamples: 10_000, confidence: 0.95, seed: 1234 }
    }
}

impl Resampling {
    /// How many are drawn.
    pub(super) fn count(&self) -> usize {
        self.resamples.min(MAX_RESAMPLES)
    }

    /// A sequence of its own for each use of the seed.
    pub(super) fn rng(&self, purpose: &str) -> Rng {
        Rng::new(key(self.seed, &[name_key(purpose)]))
    }
}

/// A statistic on each of many resamples of `0..n` with replacement.
///
/// `statistic` gets `n` indices, each uniform in `0..n`. With the indices of clusters in place of items, this is the cluster
/// bootstrap. Empty if `n` is 0. Source: Efron and Tibshirani 1993, An introduction to the bootstrap, §6.
pub fn resample(n: usize, resampling: &Resampling, mut statistic: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    if n == 0 {
        return Vec::new();
    }
    let mut rng = resampling.rng("bootstrap");
    let mut indices = vec![0; n];
    let draw = |_| {
        indices.fill_with(|| index(&mut rng, n as u64));
        statistic(&indices)
    };
    (0..resampling.count()).map(draw).collect()
}

/// The bootstrap standard error of any statistic of `n` items, in its units: the sample standard deviation over resamples.
///
/// For statistics without a closed form (median, F1, MCC, AUC). For a mean it is `√((n - 1)/n)` of
/// [`mean_stderr`](super::mean_stderr), which is to be preferred. `None` if `n` is 0, fewer than two resamples are drawn, or
/// the statistic is not finite on one of them. Source: lm-eval 0.4.13, `bootstrap_stderr`, whose 100,000 draws come from
/// another generator.
pub fn bootstrap_stderr(n: usize, resampling: &Resampling, statistic: impl FnMut(&[usize]) -> f64) -> Option<f64> {
    sample_standard_deviation(&resample(n, resampling, statistic))
}

/// A statistic on `0..n` with each index left out in turn, for [`acceleration`](super::acceleration).
///
/// It calls `statistic` `n` times on `n - 1` indices. Empty if `n` is below 2.
pub fn jackknife(n: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    if n < 2 {
        return Vec::new();
    }
    let mut indices: Vec<usize> = (1..n).collect();
    (0..n)
        .map(|left_out| {
            let value = statistic(&indices);
            // The index that was left out takes the place of the next one.
            if let Some(place) = indices.get_mut(left_out) {
                *place = left_out;
            }
            value
        })
        .collect()
}

/// The mean over items on each resample of units: the bootstrap of a mean without a call for each item.
pub(super) fn resample_units(units: &[Unit], resampling: &Resampling) -> Vec<f64> {
    if units.is_empty() {
        return Vec::new();
    }
    let mut rng = resampling.rng("bootstrap");
    let draw = |_| {
        let (mut sum, mut size) = (0.0, 0.0);
        for _ in 0..units.len() {
            let unit = units[index(&mut rng, units.len() as u64)];
            sum += unit.sum;
            size += unit.size;
        }
        sum / size
    };
    (0..resampling.count()).map(draw).collect()
}

/// Uniform in `0..bound` without bias, for a bound above 0: the upper half of a product, drawn again where the lower half
/// says that an index would come up once too often. It divides almost never, unlike [`Rng::below`]. Source: Lemire 2019,
/// ACM Trans. Model. Comput. Simul. 29.
#[inline]
fn index(rng: &mut Rng, bound: u64) -> usize {
    let mut product = u128::from(rng.next_u64()) * u128::from(bound);
    if (product as u64) < bound {
        let threshold = bound.wrapping_neg() % bound;
        while (product as u64) < threshold {
            product = u128::from(rng.next_u64()) * u128::from(bound);
        }
    }
    (product >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::super::mean_stderr;
    use super::*;

    #[test]
    fn every_index_is_as_frequent() {
        let mut rng = Rng::new(3);
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[index(&mut rng, 7)] += 1;
        }
        // χ² with 6 degrees of freedom is below 22.5 in 999 of 1,000.
        let chi_squared: f64 = counts.iter().map(|&count| (f64::from(count) - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi_squared < 22.5, "{counts:?}");
    }

    #[test]
    fn a_mean_has_about_its_standard_error() {
        let values: Vec<f64> = (0..60).map(|i| f64::from(i * i % 17)).collect();
        let mean = |indices: &[usize]| indices.iter().map(|&i| values[i]).sum::<f64>() / indices.len() as f64;
        let stderr = bootstrap_stderr(60, &Resampling::default(), mean).unwrap();
        let expected = mean_stderr(&values).unwrap() * (59.0_f64 / 60.0).sqrt();
        // A standard deviation over B draws is off by 1/√(2B) of itself.
        assert!((stderr / expected - 1.0).abs() < 5.0 / 20_000_f64.sqrt(), "{stderr} {expected}");
    }

    #[test]
    fn units_and_indices_draw_alike() {
        let units: Vec<Unit> = (0..9).map(|i| Unit { sum: f64::from(i * i), size: 1.0 }).collect();
        let mean = |indices: &[usize]| indices.iter().map(|&i| units[i].sum).sum::<f64>() / 9.0;
        let resampling = Resampling { resamples: 50, ..Resampling::default() };
        assert_eq!(resample(9, &resampling, mean), resample_units(&units, &resampling));
        let other = Resampling { seed: 7, ..resampling };
        assert_ne!(resample_units(&units, &resampling), resample_units(&units, &other));
    }

    #[test]
    fn the_jackknife_leaves_out_each_index_once() {
        assert_eq!(jackknife(4, |indices| indices.iter().sum::<usize>() as f64), [6.0, 5.0, 4.0, 3.0]);
        assert!(jackknife(1, |_| 0.0).is_empty());
    }

    #[test]
    fn what_is_undefined_is_none() {
        let none = Resampling { resamples: 0, ..Resampling::default() };
        assert_eq!(bootstrap_stderr(5, &none, |_| 0.0), None);
        assert_eq!(bootstrap_stderr(0, &Resampling::default(), |_| 0.0), None);
        let few = Resampling { resamples: 10, ..Resampling::default() };
        assert_eq!(bootstrap_stderr(5, &few, |_| f64::NAN), None);
    }
}
