//! How sure the model is of a stretch of text: means of token probabilities over windows.

/// The confidence of a sample's weakest window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// The least window mean, between 0 and 1; 0 for a sample without a token.
    pub value: f64,
    /// The first token of that window, counted among the supervised tokens; `None` without a token.
    pub start: Option<usize>,
}

/// The minimum group confidence of a sample: a window of `group_size` supervised tokens, stride 1, the gaps closed up; all
/// tokens are one window where there are fewer. `c = clamp(exp(min over windows of mean log p), 0, 1)`.
///
/// Source: arXiv 2511.21075 and the authors' `trainer_utils.py`.
pub fn min_group_confidence(log_probabilities: &[f64], group_size: usize) -> Confidence {
    let window = group_size.min(log_probabilities.len()).max(1);
    let means = log_probabilities.windows(window).map(|window| window.iter().sum::<f64>() / window.len() as f64);
    match least(means) {
        None => Confidence { value: 0.0, start: None },
        Some((start, value)) => Confidence { value: value.exp().clamp(0.0, 1.0), start: Some(start) },
    }
}

/// The least of [`local_means`] of a sample's probabilities: the windows at its ends, which are cut, count too.
///
/// Source: `PertMind`, appendix A.2.
pub fn min_local_confidence(local_means: &[f64], group_size: usize) -> Confidence {
    match least(local_means.iter().copied()) {
        None => Confidence { value: 0.0, start: None },
        Some((centre, value)) => {
            Confidence { value: value.clamp(0.0, 1.0), start: Some(window_start(centre, group_size)) }
        }
    }
}

/// For each value, the mean of the window around it: `(size - 1) / 2` values before and `size / 2` after, cut at the ends.
pub fn local_means(values: &[f64], size: usize) -> Vec<f64> {
    (0..values.len())
        .map(|i| {
            let window = &values[window_start(i, size)..values.len().min(i + size / 2 + 1)];
            window.iter().sum::<f64>() / window.len() as f64
        })
        .collect()
}

const fn window_start(centre: usize, size: usize) -> usize {
    centre.saturating_sub(size.saturating_sub(1) / 2)
}

/// The first of the least values, and where it is.
fn least(values: impl Iterator<Item = f64>) -> Option<(usize, f64)> {
    values.enumerate().reduce(|least, next| if next.1 < least.1 { next } else { least })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_window_is_found_where_it_is() {
        let log_p: Vec<f64> = [0.9, 0.9, 0.1, 0.2, 0.9].iter().map(|p: &f64| p.ln()).collect();
        let weakest = min_group_confidence(&log_p, 2);
        assert_eq!(weakest.start, Some(2));
        assert!((weakest.value - (0.1f64 * 0.2).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn a_short_sample_is_one_window_and_an_empty_one_has_no_confidence() {
        let log_p = [0.5f64.ln(), 0.25f64.ln()];
        let all = min_group_confidence(&log_p, 256);
        assert_eq!(all.start, Some(0));
        assert!((all.value - 0.125f64.sqrt()).abs() < 1e-12);
        assert_eq!(min_group_confidence(&[], 8), Confidence { value: 0.0, start: None });
        assert_eq!(min_local_confidence(&[], 8), Confidence { value: 0.0, start: None });
    }

    #[test]
    fn a_local_window_is_cut_at_the_ends() {
        // Size 4: one before, two after.
        assert_eq!(local_means(&[1., 2., 3., 4.], 4), [2.0, 2.5, 3.0, 3.5]);
    }

    /// Whole windows alone would give 0.525.
    #[test]
    fn windows_that_are_cut_count_in_the_least_local_confidence() {
        let means = local_means(&[0.1, 0.2, 0.9, 0.9, 0.9, 0.9], 4);
        for (mean, expected) in means.iter().zip([0.4, 0.525, 0.725, 0.9, 0.9, 0.9]) {
            assert!((mean - expected).abs() < 1e-12);
        }
        let weakest = min_local_confidence(&means, 4);
        assert_eq!(weakest.start, Some(0));
        assert!((weakest.value - 0.4).abs() < 1e-12);
    }
}
