//! ROUGE-1, ROUGE-2 and ROUGE-L as the Python package `rouge_score` 0.1.2 computes them.
//!
//! Source: C.-Y. Lin, "ROUGE: A package for automatic evaluation of summaries", 2004. The package's rules count: lower case,
//! tokens are runs of `[a-z0-9]`, and with `use_stemmer` tokens of more than three characters are stemmed ([`super::porter`]).
//! Then precision is `hits / tokens of the prediction`, recall `hits / tokens of the reference`, each in `[0, 1]`, 0 where there
//! is none; and `F = 2·P·R / (P + R)`, 0 where both are 0.

use super::porter;
use std::collections::HashMap;

/// The tokens of a text. Comparing many texts with each other splits and stems each of them once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RougeTokens(Vec<String>);

impl RougeTokens {
    /// Splits a text. Letters are lower-cased as Unicode has it, so the Kelvin sign is a `k`, and `İ` an `i` and a gap.
    pub fn of(text: &str, use_stemmer: bool) -> Self {
        let lower = text.to_lowercase();
        let tokens = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
        let stemmed =
            tokens.map(|token| if use_stemmer && token.len() > 3 { porter::stem(token) } else { token.to_owned() });
        Self(stemmed.filter(|token| !token.is_empty()).collect())
    }

    /// The tokens in the order of the text.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

/// Precision, recall and their harmonic mean, each in `[0, 1]`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// `hits / n-grams of the prediction`.
    pub precision: f64,
    /// `hits / n-grams of the reference`.
    pub recall: f64,
    /// `2·P·R / (P + R)`.
    pub f_measure: f64,
}

impl Score {
    fn of(hits: usize, in_reference: usize, in_prediction: usize) -> Self {
        let share = |all: usize| hits as f64 / all.max(1) as f64;
        let (precision, recall) = (share(in_prediction), share(in_reference));
        let sum = precision + recall;
        let f_measure = if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 };
        Self { precision, recall, f_measure }
    }
}

/// The scores of one prediction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    /// Of single tokens; those that repeat count as often as in the text where they are rarer.
    pub rouge1: Score,
    /// Of pairs of neighbours, in the same way.
    pub rouge2: Score,
    /// Of the longest common subsequence of the whole texts.
    pub rouge_l: Score,
}

impl Rouge {
    /// Compares a prediction with a reference.
    pub fn of(reference: &RougeTokens, prediction: &RougeTokens) -> Self {
        let (reference, prediction) = (reference.as_slice(), prediction.as_slice());
        let common = common_subsequence(reference, prediction);
        Self {
            rouge1: n_grams(reference, prediction, 1),
            rouge2: n_grams(reference, prediction, 2),
            rouge_l: Score::of(common, reference.len(), prediction.len()),
        }
    }

    /// Compares with several references: for each of the three scores that of the reference with the highest F-measure, the
    /// first of equals, as `score_multi`. `None` for no reference.
    pub fn best_of(references: &[RougeTokens], prediction: &RougeTokens) -> Option<Self> {
        let better = |best: Score, new: Score| if new.f_measure > best.f_measure { new } else { best };
        let scores = references.iter().map(|reference| Self::of(reference, prediction));
        scores.reduce(|best, new| Self {
            rouge1: better(best.rouge1, new.rouge1),
            rouge2: better(best.rouge2, new.rouge2),
            rouge_l: better(best.rouge_l, new.rouge_l),
        })
    }

    /// Compares two texts.
    pub fn of_texts(reference: &str, prediction: &str, use_stemmer: bool) -> Self {
        Self::of(&RougeTokens::of(reference, use_stemmer), &RougeTokens::of(prediction, use_stemmer))
    }
}

/// `hits = Σ_g min(count of g in the reference, count of g in the prediction)` over n-grams `g`.
fn n_grams(reference: &[String], prediction: &[String], n: usize) -> Score {
    let mut left: HashMap<&[String], usize> = HashMap::new();
    for gram in reference.windows(n) {
        *left.entry(gram).or_default() += 1;
    }
    let mut hits = 0;
    for gram in prediction.windows(n) {
        if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            hits += 1;
        }
    }
    let grams = |tokens: &[String]| (tokens.len() + 1).saturating_sub(n);
    Score::of(hits, grams(reference), grams(prediction))
}

/// The length of the longest common subsequence, in `O(n·m)` steps and the memory of one row.
fn common_subsequence(reference: &[String], prediction: &[String]) -> usize {
    // `row[j]` is the length for the rows so far and the first `j` tokens of the prediction.
    let mut row = vec![0; prediction.len() + 1];
    for token in reference {
        let mut diagonal = 0;
        for (j, other) in prediction.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if token == other { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Rouge, RougeTokens, Score};

    fn tokens(text: &str) -> String {
        RougeTokens::of(text, true).as_slice().join(" ")
    }

    #[test]
    fn tokens_are_lowercase_ascii_and_stemmed_if_long() {
        assert_eq!(tokens("RNA-binding proteins, 5'-caps"), "rna bind protein 5 cap");
        assert_eq!(tokens("ties was 10\u{212a} \u{130}on"), "tie was 10k i on");
        assert_eq!(tokens("… — !? é ß"), "");
    }

    #[test]
    fn repeated_tokens_are_clipped() {
        let rouge = Rouge::of_texts("the cat the sat", "the the the the", false);
        assert_eq!(rouge.rouge1, Score { precision: 0.5, recall: 0.5, f_measure: 0.5 });
        assert_eq!(rouge.rouge2, Score::default());
        assert_eq!(rouge.rouge_l, rouge.rouge1);
    }

    #[test]
    fn one_token_has_no_pair_and_no_token_no_score() {
        let rouge = Rouge::of_texts("mitosis", "Mitosis!", false);
        assert_eq!((rouge.rouge1.f_measure, rouge.rouge2.f_measure, rouge.rouge_l.f_measure), (1.0, 0.0, 1.0));
        assert_eq!(Rouge::of_texts("", "...", true), Rouge::default());
        assert_eq!(Rouge::best_of(&[], &RougeTokens::default()), None);
    }
}
