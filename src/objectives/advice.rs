//! Which objective suits a base and its data, by what the base knows of the answers before training.
//!
//! Weighting tokens by their probability keeps a model near what it knows already. That pays where it knows most of the answers, and
//! costs where it does not: arXiv 2510.00526 found weights by probability better than cross-entropy at the one end, cross-entropy
//! better at the other, and neither in between, which is where it has medicine. `docs/objectives.md` has our own table.

use serde::Serialize;

/// Below this mean probability of the answers' tokens a base knows little of them. All data of our own table is below, and `sft` was
/// the best on each.
const LITTLE: f64 = 0.45;
/// From this mean probability on it knows most of them.
const MOST: f64 = 0.7;

/// What a base knows of answers that it was not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prior {
    /// Mean probability of the supervised tokens.
    pub token_probability: f64,
    /// Share of them with a probability above one half.
    pub likely_tokens: f64,
    /// Their mean cross-entropy, in nats.
    pub cross_entropy: f64,
    /// Of how many rows that is, where it is not of all that are held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<RowSample>,
}

/// Some of the rows that are held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RowSample {
    /// Rows that were measured.
    pub rows: usize,
    /// Rows that are held out.
    pub of: usize,
}

impl Prior {
    /// Where that lies, which objective is favoured there, and what compares them.
    pub fn advice(&self) -> String {
        format!("{}. `equipoise objectives` compares them on this recipe; docs/objectives.md says more", self.reading())
    }

    /// Where that lies, and which objective is favoured there.
    pub fn reading(&self) -> String {
        let Self { token_probability, likely_tokens, cross_entropy, sample } = self;
        let sample = sample.map_or_else(String::new, |RowSample { rows, of }| format!(", by {rows} of {of} rows"));
        let (knows, favoured) = if *token_probability < LITTLE {
            ("little", "there `sft` and `eaft` are favoured over `bft` and `dft`")
        } else if *token_probability < MOST {
            ("some", "there no objective is favoured")
        } else {
            ("most", "there `bft` and `dft` are favoured over `sft`")
        };
        format!(
            "the base knows {knows} of the held-out answers{sample}: their tokens have a probability of {:.0}% on average, and {:.0}% of \
             them more than 50% (cross-entropy {cross_entropy:.2}); {favoured}",
            100.0 * token_probability,
            100.0 * likely_tokens
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_base_knows_decides_what_is_favoured() {
        let prior = Prior { token_probability: 0.2, likely_tokens: 0.5, cross_entropy: 1.0, sample: None };
        let says = |token_probability| Prior { token_probability, ..prior }.advice();
        for (probability, phrases) in [
            (0.2, ["knows little", "`sft` and `eaft` are favoured"]),
            (0.5, ["knows some", "no objective is favoured"]),
            (0.8, ["knows most", "`bft` and `dft` are favoured"]),
        ] {
            let text = says(probability);
            assert!(phrases.iter().all(|phrase| text.contains(phrase)), "{text}");
            assert!(text.contains("`equipoise objectives`"), "{text}");
        }
        let some = Prior { sample: Some(RowSample { rows: 12, of: 125 }), ..prior }.advice();
        assert!(some.contains("of the held-out answers, by 12 of 125 rows: their"), "{some}");
    }
}
