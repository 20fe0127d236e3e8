//! Two runs on the same items: the difference of their means, and what can be said of it.

use super::intervals::{bca_interval, percentile_interval};
use super::mcnemar::{McNemar, of_scores};
use super::permutation::{Permutation, sign_flip};
use super::power::{ALPHA, POWER, from_stderr};
use super::resampling::resample_units;
use super::units::{unit_jackknife, unit_mean, units};
use super::{Interval, Resampling, clustered_stderr, finite, mean, mean_stderr};
use serde::Serialize;

/// A paired comparison, in the units of the scores. What is undefined is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedComparison {
    /// How many items both runs have.
    pub items: usize,
    /// How many clusters, if items were in some.
    pub clusters: Option<usize>,
    /// The mean score of the baseline.
    pub baseline: f64,
    /// The mean score of the candidate.
    pub candidate: f64,
    /// The mean difference, candidate minus baseline.
    pub difference: f64,
    /// The paired standard error of the difference, clustered if there are clusters; `None` with fewer than two of them.
    pub stderr: Option<f64>,
    /// The percentile bootstrap interval of the difference.
    pub percentile: Option<Interval>,
    /// The BCa bootstrap interval of the difference.
    pub bca: Option<Interval>,
    /// The sign-flip test.
    pub permutation: Option<Permutation>,
    /// McNemar's exact test, for 0/1 scores of independent items.
    pub mcnemar: Option<McNemar>,
    /// The least difference that this many items show at [`ALPHA`] with [`POWER`]; `None` where the items do not differ, which says nothing
    /// of their spread, and where they are too few for any to be shown.
    pub least_detectable: Option<f64>,
}

/// Compares two runs by their scores of the same items, in the same order.
///
/// With `d_i = candidate_i - baseline_i`: the mean of `d`; its standard error `s_d/√n`; percentile and BCa bootstrap
/// intervals of it; the sign-flip test; and for 0/1 scores McNemar's. The items' own spread, which both runs share, drops
/// out of `d`, so this sees smaller differences than two separate standard errors do.
///
/// `clusters` holds an id for each item, where several share a document, a gene or a passage. Then the standard error is
/// [`clustered_stderr`], the bootstrap draws clusters (its mean is over items, of which resamples hold unlike numbers),
/// signs flip per cluster, and McNemar's test is left out unless each item is a cluster of its own.
///
/// The least detectable difference is the normal approximation's, but no less than exact tests allow: fewer than six units that
/// differ, all in the same direction, have `p ≥ 2/2⁵ > 0.05`. So it is no less than six times the least unit's difference: `6/n` for 0/1
/// scores of `n` items.
///
/// `None` if there are no items, lengths differ, or a score is not finite. Where all differences are equal, the standard
/// error is 0 and the intervals have no width: the items say nothing of the spread. Sources: Miller 2024 (arXiv
/// 2411.00640); and those of each part.
pub fn compare_paired(
    baseline: &[f64],
    candidate: &[f64],
    clusters: Option<&[usize]>,
    resampling: &Resampling,
) -> Option<PairedComparison> {
    if baseline.len() != candidate.len() {
        return None;
    }
    let differences: Vec<f64> = candidate.iter().zip(baseline).map(|(c, b)| c - b).collect();
    let units = units(&differences, clusters)?;
    let difference = finite(unit_mean(&units))?;
    let resampled = resample_units(&units, resampling);
    let sums: Vec<f64> = units.iter().map(|unit| unit.sum).collect();
    let stderr = match clusters {
        None => mean_stderr(&differences),
        Some(clusters) => clustered_stderr(&differences, clusters),
    };
    let independent = units.len() == differences.len();
    // The fewest units with `2/2ⁿ < ALPHA`.
    let fewest = (1.0 - ALPHA.log2()).floor() + 1.0;
    let least_sum = sums.iter().map(|sum| sum.abs()).filter(|sum| *sum > 0.0).fold(f64::INFINITY, f64::min);
    let floor = fewest * least_sum / differences.len() as f64;
    let least_detectable = stderr
        .filter(|stderr| *stderr > 0.0 && units.len() as f64 >= fewest)
        .and_then(|stderr| from_stderr(stderr, ALPHA, POWER))
        .map(|least| least.max(floor));
    Some(PairedComparison {
        items: differences.len(),
        clusters: clusters.map(|_| units.len()),
        baseline: mean(baseline)?,
        candidate: mean(candidate)?,
        difference,
        stderr,
        percentile: percentile_interval(&resampled, resampling.confidence),
        bca: bca_interval(&resampled, difference, &unit_jackknife(&units), resampling.confidence),
        permutation: sign_flip(&sums, resampling),
        mcnemar: if independent { of_scores(baseline, candidate) } else { None },
        least_detectable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_item_has_a_difference_and_no_spread() {
        let one = compare_paired(&[0.25], &[1.0], None, &Resampling::default()).unwrap();
        assert_eq!((one.difference, one.stderr, one.bca, one.least_detectable), (0.75, None, None, None));
        assert_eq!(one.permutation, Some(Permutation { p: 1.0, exact: true }));
        assert_eq!(one.mcnemar, None);
    }

    #[test]
    fn the_same_run_twice_differs_in_nothing() {
        let scores: Vec<f64> = (0..40).map(|i| f64::from(i % 3 == 0)).collect();
        let same = compare_paired(&scores, &scores, None, &Resampling::default()).unwrap();
        let nothing = Some(Interval { low: 0.0, high: 0.0 });
        assert_eq!((same.difference, same.stderr, same.percentile, same.bca), (0.0, Some(0.0), nothing, nothing));
        assert_eq!((same.permutation.unwrap().p, same.mcnemar.unwrap().p), (1.0, 1.0));
        assert_eq!(same.least_detectable, None, "items that do not differ do not say what they would show");
    }

    /// A difference that is called detectable can have `p < 0.05` by the exact test.
    #[test]
    fn few_items_show_no_less_than_their_exact_tests() {
        let baseline = vec![0.0; 20];
        let with = |right: usize| (0..20).map(|i| f64::from(i < right)).collect::<Vec<f64>>();
        let one = compare_paired(&baseline, &with(1), None, &Resampling::default()).unwrap();
        assert_eq!(one.least_detectable, Some(0.3));
        let p_of = |right: usize| {
            compare_paired(&baseline, &with(right), None, &Resampling::default()).unwrap().mcnemar.unwrap().p
        };
        assert!(p_of(5) > ALPHA && p_of(6) < ALPHA);
        // Means over three seeds, and items in clusters.
        let thirds: Vec<f64> = with(1).iter().map(|score| score / 3.0).collect();
        let of_thirds = compare_paired(&baseline, &thirds, None, &Resampling::default()).unwrap();
        assert_eq!(of_thirds.least_detectable, Some(6.0 * (1.0 / 3.0) / 20.0));
        let pairs: Vec<usize> = (0..20).map(|i| i / 2).collect();
        let of_pairs = compare_paired(&baseline, &with(2), Some(&pairs), &Resampling::default()).unwrap();
        assert_eq!(of_pairs.least_detectable, Some(6.0 * 2.0 / 20.0));
        let five = compare_paired(&[0.0; 5], &[1.0, 1.0, 0.0, 0.0, 0.0], None, &Resampling::default()).unwrap();
        assert_eq!(five.least_detectable, None);
    }

    #[test]
    fn clusters_of_one_item_change_nothing_but_their_count() {
        let baseline: Vec<f64> = (0..30).map(|i| f64::from(i % 3 == 0)).collect();
        let candidate: Vec<f64> = (0..30).map(|i| f64::from(i % 7 < 4)).collect();
        let ids: Vec<usize> = (0..30).rev().collect();
        let plain = compare_paired(&baseline, &candidate, None, &Resampling::default()).unwrap();
        let single = compare_paired(&baseline, &candidate, Some(&ids), &Resampling::default()).unwrap();
        assert_eq!((single.clusters, plain.clusters), (Some(30), None));
        assert!((single.stderr.unwrap() - plain.stderr.unwrap()).abs() < 1e-15);
        assert_eq!((single.bca, single.permutation, single.mcnemar), (plain.bca, plain.permutation, plain.mcnemar));
    }

    #[test]
    fn what_is_undefined_is_none() {
        let resampling = Resampling::default();
        assert_eq!(compare_paired(&[], &[], None, &resampling), None);
        assert_eq!(compare_paired(&[1.0], &[1.0, 0.0], None, &resampling), None);
        assert_eq!(compare_paired(&[1.0, f64::NAN], &[1.0, 0.0], None, &resampling), None);
        assert_eq!(compare_paired(&[1.0, 0.0], &[1.0, 0.0], Some(&[1]), &resampling), None);
        let odd = Resampling { resamples: 0, confidence: 7.0, seed: 0 };
        let compared = compare_paired(&[1.0, 0.0], &[0.0, 0.0], None, &odd).unwrap();
        assert_eq!((compared.percentile, compared.bca), (None, None));
    }
}
