//! Perplexities of texts from their log-likelihoods, as lm-evaluation-harness defines them.
//!
//! Source: `api/metrics.py` and `process_results` in `api/task.py` of `lm_eval` 0.4.13. Log-likelihoods are in nats and summed
//! over all tokens of a text; sums run over all texts before they are divided, so long texts count more.

use super::python;

/// `perplexity` of the output type `loglikelihood`: `exp(-mean)` over items, whatever their lengths. Above 0, 1 at best; infinite
/// where it exceeds f64. `None` for no item.
pub fn perplexity(log_likelihoods: &[f64]) -> Option<f64> {
    let sum: f64 = log_likelihoods.iter().sum();
    (!log_likelihoods.is_empty()).then(|| (-sum / log_likelihoods.len() as f64).exp())
}

/// The words of a text: one more than its runs of white space, so that white space at an end adds an empty word, and an
/// empty text has one. This is `len(re.split(r"\s+", text))`.
pub fn count_words(text: &str) -> u64 {
    let (mut runs, mut after_space) = (0, false);
    for c in text.chars() {
        let space = python::is_space(c);
        runs += u64::from(space && !after_space);
        after_space = space;
    }
    runs + 1
}

/// What is summed over the texts of the output type `loglikelihood_rolling`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RollingLikelihood {
    /// In nats.
    pub log_likelihood: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
    /// See [`count_words`]. A task may count them in another text than it scores, as wikitext does.
    pub words: u64,
    /// Bytes of UTF-8.
    pub bytes: u64,
}

impl RollingLikelihood {
    /// One text.
    pub fn of(text: &str, log_likelihood: f64, tokens: u64) -> Self {
        Self { log_likelihood, tokens, words: count_words(text), bytes: text.len() as u64 }
    }

    /// Adds the sums of other texts.
    pub fn join(&mut self, other: Self) {
        self.log_likelihood += other.log_likelihood;
        self.tokens += other.tokens;
        self.words += other.words;
        self.bytes += other.bytes;
    }

    /// `exp(-Σll / Σtokens)`, which depends on the tokenizer; lm-evaluation-harness does not report it. `None` for no token.
    pub fn token_perplexity(&self) -> Option<f64> {
        self.nats_per(self.tokens).map(f64::exp)
    }

    /// `exp(-Σll / Σwords)`. `None` for no word.
    pub fn word_perplexity(&self) -> Option<f64> {
        self.nats_per(self.words).map(f64::exp)
    }

    /// `exp(-Σll / Σbytes)`. `None` for no byte.
    pub fn byte_perplexity(&self) -> Option<f64> {
        self.nats_per(self.bytes).map(f64::exp)
    }

    /// `-Σll / (Σbytes · ln 2)`, 0 at best. `None` for no byte.
    pub fn bits_per_byte(&self) -> Option<f64> {
        self.nats_per(self.bytes).map(|nats| nats / std::f64::consts::LN_2)
    }

    fn nats_per(&self, count: u64) -> Option<f64> {
        (count > 0).then(|| -self.log_likelihood / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::{RollingLikelihood, count_words, perplexity};

    #[test]
    fn words_are_split_as_re_split_does() {
        for (text, words) in
            [("", 1), ("gene", 1), (" gene ", 3), ("a b\t\nc", 3), ("a\u{1f}b\u{a0}c\u{200b}d", 3), ("  ", 2)]
        {
            assert_eq!(count_words(text), words, "{text:?}");
        }
    }

    #[test]
    fn sums_are_divided_after_they_are_joined() {
        let mut all = RollingLikelihood::of("é b", -4.0, 2);
        all.join(RollingLikelihood::of("abcdefgh", -8.0, 1));
        assert_eq!((all.tokens, all.words, all.bytes), (3, 3, 12));
        assert_eq!(all.word_perplexity(), Some(4.0_f64.exp()));
        assert_eq!(all.token_perplexity(), all.word_perplexity());
        assert_eq!(all.byte_perplexity(), Some(1.0_f64.exp()));
        assert_eq!(all.bits_per_byte(), Some(1.0 / 2.0_f64.ln()));
    }

    #[test]
    fn nothing_has_no_perplexity() {
        assert_eq!(perplexity(&[]), None);
        assert_eq!(perplexity(&[-1.0, -3.0]), Some(2.0_f64.exp()));
        assert_eq!(RollingLikelihood::default().bits_per_byte(), None);
        assert_eq!(RollingLikelihood::default().word_perplexity(), None);
    }
}
