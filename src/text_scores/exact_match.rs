//! `exact_match` of generated answers, as lm-evaluation-harness and Hugging Face `evaluate` have it.
//!
//! A score of 1 or 0. Source: `exact_match_hf_evaluate` in `api/metrics.py` and `process_results` in `api/task.py` of
//! `lm_eval` 0.4.13.

use super::python;

/// What does not count in the comparison. By default everything counts, white space too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExactMatch {
    /// Compare in lower case.
    pub ignore_case: bool,
    /// Leave out ASCII punctuation.
    pub ignore_punctuation: bool,
    /// Leave out the digits 0 to 9.
    pub ignore_numbers: bool,
}

impl ExactMatch {
    /// Whether the prediction equals the reference.
    pub fn matches(&self, prediction: &str, reference: &str) -> bool {
        self.matches_any(prediction, &[reference])
    }

    /// Whether the prediction equals one of the references, which is a task with several targets. None is matched by nothing.
    pub fn matches_any<S: AsRef<str>>(&self, prediction: &str, references: &[S]) -> bool {
        self.matches_any_without(prediction, references, str::to_owned)
    }

    /// As [`Self::matches_any`] after `remove` has been applied to each text: it stands for `regexes_to_ignore`, and takes
    /// out of a text what each pattern matches, one pattern after the other.
    pub fn matches_any_without<S: AsRef<str>>(
        &self,
        prediction: &str,
        references: &[S],
        remove: impl Fn(&str) -> String,
    ) -> bool {
        let references: Vec<String> = references.iter().map(|reference| remove(reference.as_ref())).collect();
        let widest = references.iter().map(|reference| reference.chars().count()).max().unwrap_or(0);
        let prediction = remove(prediction);
        let prediction = self.what_counts(&prediction, prediction.chars().count());
        references.iter().any(|reference| self.what_counts(reference, widest) == prediction)
    }

    /// What is left of a text in a numpy array of this width, which is the length of its longest text.
    fn what_counts(self, text: &str, width: usize) -> String {
        // numpy pads with NUL, so it does not see those at the end.
        let mut text = text.trim_end_matches('\0').to_owned();
        if self.ignore_case {
            // The array keeps its width, and cuts what lower-casing makes longer: only `İ` does.
            text = text.to_lowercase().chars().take(width).collect();
        }
        if self.ignore_punctuation {
            text = python::without_punctuation(&text);
        }
        if self.ignore_numbers {
            text.retain(|c| !c.is_ascii_digit());
        }
        text.truncate(text.trim_end_matches('\0').len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::ExactMatch;

    #[test]
    fn everything_counts_but_what_is_ignored() {
        let strict = ExactMatch::default();
        assert!(strict.matches("TP53", "TP53"));
        assert!(!strict.matches("TP53", "tp53") && !strict.matches("TP53 ", "TP53"));
        let lenient = ExactMatch { ignore_case: true, ignore_punctuation: true, ..strict };
        assert!(lenient.matches("TP-53.", "tp53"));
        assert!(!lenient.matches("TP 53", "tp53"));
        assert!(ExactMatch { ignore_numbers: true, ..strict }.matches("TP53", "TP"));
    }

    #[test]
    fn any_reference_will_do() {
        let strict = ExactMatch::default();
        assert!(strict.matches_any("b", &["a", "b"]));
        assert!(!strict.matches_any::<&str>("", &[]));
    }

    #[test]
    fn patterns_are_taken_out_before_all_else() {
        let without_article = |text: &str| text.replace("The ", "");
        let options = ExactMatch { ignore_case: true, ..ExactMatch::default() };
        assert!(options.matches_any_without("The Nucleus", &["nucleus"], without_article));
        assert!(!options.matches_any_without("the Nucleus", &["nucleus"], without_article));
    }
}
