//! What a data set holds, in numbers and in one row to look at.

use serde::Serialize;

/// The data in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DataReport {
    /// The rows' format and why it was taken.
    pub format: String,
    /// Rows read, of both files.
    pub rows: usize,
    /// Rows to train on.
    pub train_rows: usize,
    /// Rows to validate on.
    pub validation_rows: usize,
    /// Tokens of the rows to train on.
    pub tokens: usize,
    /// Of these, the tokens that are learnt.
    pub supervised_tokens: usize,
    /// Rows left out because they are too long, of both files.
    pub dropped: usize,
    /// Rows cut because they are too long, of both files.
    pub truncated: usize,
    /// Tokens a row before any was dropped or cut, of both files.
    pub lengths: Lengths,
    /// Rows, of both files, with an answer after which no learnt token ends the turn: what the model learns from them
    /// does not stop. Cut rows are judged as they were before the cut.
    pub eos_unsupervised_rows: usize,
}

/// How long rows are, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// Half of the rows are no longer than this.
    pub p50: usize,
    /// Nine of ten rows are no longer than this.
    pub p90: usize,
    /// The longest.
    pub max: usize,
}

impl Lengths {
    /// The quantiles of `lengths` (nearest rank); all 0 where there is none.
    pub fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        let rank = |share: f64| {
            let rank = (share * lengths.len() as f64).ceil() as usize;
            lengths.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        Self { min: rank(0.0), p50: rank(0.5), p90: rank(0.9), max: rank(1.0) }
    }
}

/// The first row to train on, as the model gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// Text with its special tokens, and whether it is learnt. Joined, it is the whole row.
    pub segments: Vec<(String, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let lengths = Lengths::of((1..=10).rev().collect());
        assert_eq!(lengths, Lengths { min: 1, p50: 5, p90: 9, max: 10 });
        assert_eq!(Lengths::of(vec![7]), Lengths { min: 7, p50: 7, p90: 7, max: 7 });
        assert_eq!(Lengths::of(vec![]), Lengths::default());
    }
}
