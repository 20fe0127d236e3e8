//! The sign-flip test: whether a mean of paired differences could as well have the other sign.

use super::Resampling;
use serde::Serialize;

/// With so many differences that are not 0, or fewer, all `2^n` signs are tried.
pub const EXACT_UNITS: usize = 20;

/// A permutation p value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Permutation {
    /// The two-sided p value.
    pub p: f64,
    /// Whether all signs were tried; else it comes from random ones.
    pub exact: bool,
}

/// The two-sided sign-flip (paired permutation) test of a sum of differences, or of clusters' sums of differences.
///
/// If neither run is better, the sign of each difference is a coin toss. The p value is the share of all signs for which
/// `|Σ ±d|` is at least `|Σ d|`. With more than [`EXACT_UNITS`] differences that are not 0 it is `(k + 1)/(n + 1)`, where
/// `k` of `n` random assignments are as extreme, and so never 0. Sums count as equal within the rounding of a sum,
/// `n·ε·Σ|d|`: tied scores are common. A flip per cluster keeps what its items share.
///
/// `None` if there are no differences, or the sum of their sizes is not finite. Source: Fisher 1935; Phipson and Smyth 2010, Stat.
/// Appl. Genet. Mol. Biol. 9 (for the + 1); the same as scipy's `permutation_test(permutation_type="samples")`.
pub fn sign_flip(differences: &[f64], resampling: &Resampling) -> Option<Permutation> {
    let size: f64 = differences.iter().map(|d| d.abs()).sum();
    if differences.is_empty() || !size.is_finite() {
        return None;
    }
    // A difference of 0 is the same with either sign.
    let flipped: Vec<f64> = differences.iter().copied().filter(|&d| d != 0.0).collect();
    let limit = flipped.iter().sum::<f64>().abs() - flipped.len() as f64 * f64::EPSILON * size;
    let exact = flipped.len() <= EXACT_UNITS;
    let p = if exact { of_all(&flipped, limit) } else { of_random(&flipped, limit, resampling) };
    Some(Permutation { p, exact })
}

/// The share of all signs with a sum of at least `limit`, from the sums of two halves: each sum is of few additions.
fn of_all(differences: &[f64], limit: f64) -> f64 {
    let (left, right) = differences.split_at(differences.len() / 2);
    let (left, right) = (signed_sums(left), signed_sums(right));
    let extreme: usize = left.iter().map(|l| right.iter().filter(|&r| (l + r).abs() >= limit).count()).sum();
    extreme as f64 / (left.len() * right.len()) as f64
}

/// The sums of the differences under all `2^n` signs.
fn signed_sums(differences: &[f64]) -> Vec<f64> {
    let add = |sums: Vec<f64>, d: &f64| sums.iter().flat_map(|sum| [sum + d, sum - d]).collect();
    differences.iter().fold(vec![0.0], add)
}

fn of_random(differences: &[f64], limit: f64, resampling: &Resampling) -> f64 {
    let mut rng = resampling.rng("sign flips");
    let mut extreme = 0_usize;
    for _ in 0..resampling.count() {
        let mut sum = 0.0;
        for chunk in differences.chunks(64) {
            let mut signs = rng.next_u64();
            for d in chunk {
                // The highest bit of a float is its sign.
                sum += f64::from_bits(d.to_bits() ^ (signs << 63));
                signs >>= 1;
            }
        }
        extreme += usize::from(sum.abs() >= limit);
    }
    (extreme + 1) as f64 / (resampling.count() + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::mcnemar;
    use super::*;

    fn p(differences: &[f64]) -> f64 {
        sign_flip(differences, &Resampling::default()).unwrap().p
    }

    #[test]
    fn small_samples_by_hand() {
        assert_eq!(p(&[1.0]), 1.0);
        assert_eq!(p(&[1.0, 2.0, 3.0]), 2.0 / 8.0);
        assert_eq!(p(&[1.0, 2.0, -3.0]), 1.0);
        // The sums ±0.3 tie with the observed one, though not to the bit.
        assert_eq!(p(&[0.1, 0.2, 0.0, 0.3, -0.3]), 12.0 / 16.0);
    }

    #[test]
    fn of_right_and_wrong_it_is_mcnemars_test() {
        let differences = |gains, losses| [vec![1.0; gains], vec![-1.0; losses], vec![0.0; 30]].concat();
        assert!((p(&differences(14, 5)) - mcnemar(5, 14).p).abs() < 1e-15);
        let (random, exact) = (sign_flip(&differences(34, 18), &Resampling::default()).unwrap(), mcnemar(18, 34).p);
        assert!(!random.exact);
        assert!((random.p - exact).abs() < 5.0 * (exact / 10_000.0).sqrt(), "{random:?} {exact}");
    }

    #[test]
    fn extreme_data_never_have_p_0() {
        let certain = sign_flip(&[1.0; 200], &Resampling { resamples: 99, ..Resampling::default() }).unwrap();
        assert_eq!(certain, Permutation { p: 0.01, exact: false });
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(sign_flip(&[], &Resampling::default()), None);
        assert_eq!(sign_flip(&[f64::NAN], &Resampling::default()), None);
        assert_eq!(sign_flip(&[f64::MAX, f64::MAX], &Resampling::default()), None);
        assert_eq!(p(&[0.0, 0.0]), 1.0);
    }
}
