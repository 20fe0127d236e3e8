//! McNemar's exact test of two runs with right and wrong answers to the same items.

use serde::Serialize;

/// How two runs disagree, and how probable a disagreement at least as lopsided is if neither is better.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct McNemar {
    /// Items that only the baseline has right.
    pub only_baseline: usize,
    /// Items that only the candidate has right.
    pub only_candidate: usize,
    /// The two-sided p value.
    pub p: f64,
}

/// McNemar's exact test: of `m` items that exactly one run has right, the number that the candidate has right is
/// binomial(m, 1/2) if neither is better.
///
/// `p = min(1, 2·P(X ≤ min(only_baseline, only_candidate)))`; 1 where the runs never disagree. It takes items as
/// independent. Source: McNemar 1947, Psychometrika 12; the same as scipy's `binomtest(k, m, 0.5)` and statsmodels'
/// `mcnemar(exact=True)`.
pub fn mcnemar(only_baseline: usize, only_candidate: usize) -> McNemar {
    let lesser = only_baseline.min(only_candidate);
    let p = match only_baseline.checked_add(only_candidate) {
        Some(discordant) => lower_tail_twice(lesser, discordant),
        None => f64::NAN,
    };
    McNemar { only_baseline, only_candidate, p }
}

/// The test on 0/1 scores; `None` if another score is among them or the lengths differ.
pub(super) fn of_scores(baseline: &[f64], candidate: &[f64]) -> Option<McNemar> {
    let binary = |scores: &[f64]| scores.iter().all(|&score| score == 0.0 || score == 1.0);
    if baseline.len() != candidate.len() || baseline.is_empty() || !binary(baseline) || !binary(candidate) {
        return None;
    }
    let pairs = || baseline.iter().zip(candidate);
    Some(mcnemar(pairs().filter(|(a, b)| a > b).count(), pairs().filter(|(a, b)| a < b).count()))
}

/// `min(1, 2·P(X ≤ k))` for `X` binomial(n, 1/2) and `k ≤ n/2`.
///
/// Terms are relative to the one in the middle and go by their ratios, so no factorial overflows and no logarithm rounds:
/// the error is below `n·ε`. Terms too small for an f64 are 0.
fn lower_tail_twice(k: usize, n: usize) -> f64 {
    let middle = n / 2;
    if k >= middle && n.is_multiple_of(2) {
        return 1.0;
    }
    let (mut term, mut below, mut tail) = (1.0, 0.0, 0.0);
    for i in (0..=middle).rev() {
        // `term` is C(n, i) / C(n, middle).
        if i <= k {
            tail += term;
        }
        // The middle of an even n has no twin on the upper side.
        below += if i == middle && n.is_multiple_of(2) { term / 2.0 } else { term };
        term *= i as f64 / (n - i + 1) as f64;
        if term == 0.0 {
            break;
        }
    }
    (tail / below).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_counts_by_hand() {
        let by_hand =
            [(0, 0, 1.0), (1, 0, 1.0), (0, 5, 2.0 / 32.0), (4, 1, 12.0 / 32.0), (3, 3, 1.0), (5, 1, 14.0 / 64.0)];
        for (baseline, candidate, p) in by_hand {
            assert!((mcnemar(baseline, candidate).p - p).abs() < 1e-15, "{baseline} {candidate}");
        }
    }

    #[test]
    fn huge_counts_end() {
        assert!(mcnemar(usize::MAX, 1).p.is_nan());
        assert_eq!(mcnemar(0, 1_000_000).p, 0.0);
        let near_one = mcnemar(500_000, 500_000 + 1).p;
        assert!((near_one - 1.0).abs() < 1e-9, "{near_one}");
    }

    #[test]
    fn scores_that_are_not_right_or_wrong() {
        assert_eq!(of_scores(&[0.0, 0.5], &[0.0, 1.0]), None);
        assert_eq!(of_scores(&[0.0], &[0.0, 1.0]), None);
        let test = of_scores(&[0.0, 1.0, 1.0, 0.0], &[1.0, 1.0, 0.0, 1.0]).unwrap();
        assert_eq!((test.only_baseline, test.only_candidate), (1, 2));
    }
}
