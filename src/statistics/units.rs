//! What is drawn and flipped as a whole: an item, or a cluster of items that share a document, a gene or a passage.

use super::{finite, mean};
use std::collections::HashMap;

/// The items of a cluster, as far as a mean over items needs them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Unit {
    /// The sum of the items' values.
    pub sum: f64,
    /// How many items.
    pub size: f64,
}

/// One unit an item, or one a cluster in order of first appearance. `None` if lengths differ or a value is not finite.
pub(super) fn units(values: &[f64], clusters: Option<&[usize]>) -> Option<Vec<Unit>> {
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let Some(clusters) = clusters else {
        return Some(values.iter().map(|&sum| Unit { sum, size: 1.0 }).collect());
    };
    if clusters.len() != values.len() {
        return None;
    }
    let mut units: Vec<Unit> = Vec::new();
    for (place, value) in number_clusters(clusters).into_iter().zip(values) {
        if place == units.len() {
            units.push(Unit { sum: 0.0, size: 0.0 });
        }
        units[place].sum += value;
        units[place].size += 1.0;
    }
    Some(units)
}

/// The mean over all items of the units.
pub(super) fn unit_mean(units: &[Unit]) -> f64 {
    let (sum, size) = units.iter().fold((0.0, 0.0), |(sum, size), unit| (sum + unit.sum, size + unit.size));
    sum / size
}

/// The mean over items with each unit left out in turn, in O(n). NaN where nothing is left.
pub(super) fn unit_jackknife(units: &[Unit]) -> Vec<f64> {
    let (sum, size) = units.iter().fold((0.0, 0.0), |(sum, size), unit| (sum + unit.sum, size + unit.size));
    units.iter().map(|unit| (sum - unit.sum) / (size - unit.size)).collect()
}

/// A number for each key, from 0 in order of first appearance: cluster ids from the names of documents or genes.
pub fn number_clusters<K: Eq + std::hash::Hash>(keys: &[K]) -> Vec<usize> {
    let mut numbers = HashMap::new();
    keys.iter()
        .map(|key| {
            let next = numbers.len();
            *numbers.entry(key).or_insert(next)
        })
        .collect()
}

/// The clustered standard error of a mean over items, in the units of the values.
///
/// `√(s²/n + 1/n² · Σ_c Σ_{i≠j in c} (x_i - x̄)(x_j - x̄))`, with `s` the sample standard deviation of the `n` values: where
/// items of a cluster go together it is above [`mean_stderr`](super::mean_stderr), and with one item a cluster it equals
/// it. As `CR0` it takes no account of how few the clusters are: below about 30 it tends to be too small. `clusters`
/// holds an id for each value. `None` if the lengths differ, there are fewer than two clusters, or a value is not
/// finite. Source: Miller 2024 (arXiv 2411.00640), appendix A.
pub fn clustered_stderr(values: &[f64], clusters: &[usize]) -> Option<f64> {
    let mean = mean(values)?;
    let residuals: Vec<f64> = values.iter().map(|x| x - mean).collect();
    let units = units(&residuals, Some(clusters))?;
    if units.len() < 2 {
        return None;
    }
    let n = values.len() as f64;
    let squares: f64 = residuals.iter().map(|r| r * r).sum();
    let clustered: f64 = units.iter().map(|unit| unit.sum * unit.sum).sum();
    // Σ over i ≠ j is the square of the cluster's sum without the squares of its items.
    let variance = squares / (n - 1.0) / n + (clustered - squares) / (n * n);
    finite(variance.max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::super::mean_stderr;
    use super::*;

    #[test]
    fn clusters_are_summed_in_order_of_appearance() {
        let units = units(&[1.0, 2.0, 4.0, 8.0], Some(&[7, 3, 7, 9])).unwrap();
        assert_eq!(
            units.iter().map(|unit| (unit.sum, unit.size)).collect::<Vec<_>>(),
            [(5.0, 2.0), (2.0, 1.0), (8.0, 1.0)]
        );
        assert_eq!(unit_mean(&units), 3.75);
        assert_eq!(unit_jackknife(&units), [5.0, 13.0 / 3.0, 7.0 / 3.0]);
        assert_eq!(number_clusters(&["b", "a", "b"]), [0, 1, 0]);
    }

    #[test]
    fn single_items_have_the_plain_standard_error_and_copies_a_greater_one() {
        let values = [0.1, 0.7, 0.4, 0.9];
        let (single, plain) = (clustered_stderr(&values, &[0, 1, 2, 3]).unwrap(), mean_stderr(&values).unwrap());
        assert!((single - plain).abs() < 1e-15);
        let doubled: Vec<f64> = values.iter().chain(&values).copied().collect();
        let clustered = clustered_stderr(&doubled, &[0, 1, 2, 3, 0, 1, 2, 3]).unwrap();
        assert!(clustered > 1.3 * mean_stderr(&doubled).unwrap(), "{clustered}");
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(clustered_stderr(&[0.1, 0.2], &[4, 4]), None);
        assert_eq!(clustered_stderr(&[0.1, 0.2], &[4]), None);
        assert_eq!(clustered_stderr(&[0.1, f64::NAN], &[4, 5]), None);
        assert_eq!(clustered_stderr(&[], &[]), None);
    }
}
