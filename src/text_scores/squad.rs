//! Exact match and F1 of short answers, as the evaluation scripts of `SQuAD` have them; `TriviaQA` and others take the same.
//!
//! Both compare normalised answers ([`normalize_answer`]). With `common = Σ_w min(count of w in both)` over words,
//! `P = common / words of the prediction`, `R = common / words of the reference`, `F1 = 2·P·R / (P + R)`, in `[0, 1]`; an item
//! has the best score over its references. Source: `evaluate-v1.1.py` and `evaluate-v2.0.py` of the dataset's authors.

use super::python;
use std::collections::HashMap;

/// The answer in lower case without ASCII punctuation, without the words "a", "an" and "the", and with single spaces.
///
/// A word is what `\b` of Python's `re` bounds: letters and digits, for `_` is gone by then. Rust takes some marks of Indic and
/// other scripts for letters, Python does not; it matters only where such a mark touches one of the three words.
pub fn normalize_answer(text: &str) -> String {
    let text = python::without_punctuation(&text.to_lowercase());
    let mut kept = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let word_end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        kept.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        let next_word = after.find(char::is_alphanumeric).unwrap_or(after.len());
        kept.push_str(&after[..next_word]);
        rest = &after[next_word..];
    }
    let words: Vec<&str> = words(&kept).collect();
    words.join(" ")
}

/// What happens where an answer has no word left after normalising.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Squad {
    /// Version 1.1: it has an F1 of 0, even against another without a word.
    #[default]
    V1,
    /// Version 2.0: two without a word agree, with an F1 of 1. References without a word are left out; where none is left, the
    /// question has no answer, and a prediction without a word is right.
    V2,
}

impl Squad {
    /// 1 if the normalised prediction equals a normalised reference, else 0.
    pub fn exact_match<S: AsRef<str>>(self, prediction: &str, references: &[S]) -> f64 {
        self.best(prediction, references, |prediction, reference| f64::from(u8::from(prediction == reference)))
    }

    /// The best F1 over the references, in `[0, 1]`; 0 for no reference in version 1.1.
    pub fn f1<S: AsRef<str>>(self, prediction: &str, references: &[S]) -> f64 {
        self.best(prediction, references, |prediction, reference| {
            if self == Self::V2 && (prediction.is_empty() || reference.is_empty()) {
                return f64::from(u8::from(prediction == reference));
            }
            word_f1(prediction, reference)
        })
    }

    fn best<S: AsRef<str>>(self, prediction: &str, references: &[S], score: impl Fn(&str, &str) -> f64) -> f64 {
        let prediction = normalize_answer(prediction);
        let mut references: Vec<String> = references.iter().map(|text| normalize_answer(text.as_ref())).collect();
        if self == Self::V2 {
            references.retain(|reference| !reference.is_empty());
            if references.is_empty() {
                references.push(String::new());
            }
        }
        references.iter().map(|reference| score(&prediction, reference)).fold(0.0, f64::max)
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(python::is_space).filter(|word| !word.is_empty())
}

fn word_f1(prediction: &str, reference: &str) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in words(reference) {
        *left.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in words(prediction) {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let precision = f64::from(common) / words(prediction).count() as f64;
    let recall = f64::from(common) / words(reference).count() as f64;
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use super::{Squad, normalize_answer};

    #[test]
    fn punctuation_goes_before_articles() {
        assert_eq!(normalize_answer(" The  Krebs-cycle, a\tpathway. "), "krebscycle pathway");
        assert_eq!(normalize_answer("a.n the_ theß an\u{e9} \u{1c}x"), "theß an\u{e9} x");
    }

    #[test]
    fn the_best_reference_counts() {
        let references = ["ATP synthase", "the proton pump of mitochondria"];
        assert_eq!(Squad::V1.f1("proton pump", &references), 2.0 * 1.0 * 0.5 / 1.5);
        assert_eq!(Squad::V1.exact_match("The ATP synthase.", &references), 1.0);
    }

    #[test]
    fn the_versions_differ_where_no_word_is_left() {
        assert_eq!((Squad::V1.f1("the", &["A."]), Squad::V2.f1("the", &["A."])), (0.0, 1.0));
        assert_eq!((Squad::V1.f1::<&str>("", &[]), Squad::V2.f1::<&str>("", &[])), (0.0, 1.0));
        assert_eq!(Squad::V2.f1("no", &["the"]), 0.0);
        assert_eq!((Squad::V1.exact_match("", &["the", "x"]), Squad::V2.exact_match("", &["the", "x"])), (1.0, 0.0));
    }
}
