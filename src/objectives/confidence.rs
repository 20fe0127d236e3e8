//! How sure the model is of a stretch of text: means of token probabilities over windows.

/// Which mean is taken over a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mean {
    /// `exp` of the mean log-probability: the paper's and the authors' code.
    Geometric,
    /// The mean probability: the group-normalized variant.
    Arithmetic,
}

/// The confidence of a sample's weakest window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// The least window mean, between 0 and 1; 0 for a sample without a token.
    pub value: f64,
    /// The first token of that window, counted among the supervised tokens; `None` without a token.
    pub start: Option<usize>,
}

/// The minimum group confidence of a sample: a window of `group_size` supervised tokens, stride 1, the gaps closed up; all
/// tokens are one window where there are fewer.
///
/// `c = clamp(exp(min over windows of mean log p), 0, 1)` for the geometric mean; `min over windows of mean p` for the
/// arithmetic. Source: arXiv 2511.21075 and the authors' `trainer_utils.py`.
pub fn min_group_confidence(log_probabilities: &[f64], group_size: usize, mean: Mean) -> Confidence {
    let window = group_size.min(log_probabilities.len()).max(1);
    let values: Vec<f64> = match mean {
        Mean::Geometric => log_probabilities.to_vec(),
        Mean::Arithmetic => log_probabilities.iter().map(|log_p| log_p.exp()).collect(),
    };
    let least = values
        .windows(window)
        .map(|window| window.iter().sum::<f64>() / window.len() as f64)
        .enumerate()
        .reduce(|least, next| if next.1 < least.1 { next } else { least });
    match (least, mean) {
        (None, _) => Confidence { value: 0.0, start: None },
        (Some((start, value)), Mean::Geometric) => {
            Confidence { value: value.exp().clamp(0.0, 1.0), start: Some(start) }
        }
        (Some((start, value)), Mean::Arithmetic) => Confidence { value: value.clamp(0.0, 1.0), start: Some(start) },
    }
}

/// For each value, the mean of the window around it: `(size - 1) / 2` values before and `size / 2` after, cut at the ends.
pub(super) fn centred_means(values: &[f64], size: usize) -> Vec<f64> {
    (0..values.len())
        .map(|i| {
            let window = &values[i.saturating_sub((size - 1) / 2)..values.len().min(i + size / 2 + 1)];
            window.iter().sum::<f64>() / window.len() as f64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weakest_window_is_found_where_it_is() {
        let log_p: Vec<f64> = [0.9, 0.9, 0.1, 0.2, 0.9].iter().map(|p: &f64| p.ln()).collect();
        let geometric = min_group_confidence(&log_p, 2, Mean::Geometric);
        assert_eq!(geometric.start, Some(2));
        assert!((geometric.value - (0.1f64 * 0.2).sqrt()).abs() < 1e-12);
        let arithmetic = min_group_confidence(&log_p, 2, Mean::Arithmetic);
        assert!((arithmetic.value - 0.15).abs() < 1e-12);
    }

    #[test]
    fn a_short_sample_is_one_window_and_an_empty_one_has_no_confidence() {
        let log_p = [0.5f64.ln(), 0.25f64.ln()];
        let all = min_group_confidence(&log_p, 256, Mean::Geometric);
        assert_eq!(all.start, Some(0));
        assert!((all.value - 0.125f64.sqrt()).abs() < 1e-12);
        assert_eq!(min_group_confidence(&[], 8, Mean::Geometric), Confidence { value: 0.0, start: None });
    }

    #[test]
    fn a_centred_window_is_cut_at_the_ends() {
        // Size 4: one before, two after.
        assert_eq!(centred_means(&[1., 2., 3., 4.], 4), [2.0, 2.5, 3.0, 3.5]);
    }
}
