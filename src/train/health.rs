//! Whether training ruins the model: its own rows under the adapter, beside the base alone on the same rows.
//!
//! An objective that weighs tokens by their probability cannot tell: where a model is destroyed, probabilities go to 0, and
//! `p·ce` with them. Cross-entropy and token accuracy can, but differ from row to row. So both are measured twice on the same
//! rows, with the adapter and without it; that takes two passes without gradients, and is done where the numbers of a step
//! look bad, less and less often, and at the end of a run.

use super::backward::Loss;
use super::metrics::or_nan;
use serde::{Deserialize, Serialize};

/// How far the cross-entropy may lie above the base's, in nats, while no more tokens are ranked first.
const WORSE: f64 = 0.5;
/// How far it may lie above, in nats, whatever the accuracy: an objective that weighs tokens by their probability gives up the
/// least likely of them, and may rank more of the others first.
const FAR: f64 = 1.0;
/// With fewer learnt tokens a difference may be chance: no model is called ruined.
pub(super) const FEW_TOKENS: usize = 64;
/// So many learnt tokens are compared at the end of a run, where its rows have them.
pub(super) const ENOUGH_TOKENS: usize = 256;

/// What an adapter does to a run's rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// After this step.
    pub step: usize,
    /// Mean cross-entropy of the supervised tokens, in nats, with the adapter.
    #[serde(deserialize_with = "or_nan")]
    pub cross_entropy: f64,
    /// That of the base alone.
    #[serde(deserialize_with = "or_nan")]
    pub base_cross_entropy: f64,
    /// Share of the supervised tokens that the model ranks first, with the adapter.
    #[serde(deserialize_with = "or_nan")]
    pub token_accuracy: f64,
    /// That of the base alone.
    #[serde(deserialize_with = "or_nan")]
    pub base_token_accuracy: f64,
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// What that means.
    pub verdict: Verdict,
}

/// What a comparison with the base alone means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing to say.
    Healthy,
    /// The cross-entropy is more than 0.5 nats above the base's and the token accuracy is not; or it is more than 1 nat above.
    Worse,
    /// It is more than 1 nat above, and the model predicts half as many tokens as the base or fewer; or it is above that of a
    /// guess among all tokens, where the base's is not. Not on fewer than 64 tokens, but for a cross-entropy that is not finite.
    Ruined,
}

impl Health {
    /// The verdict on the losses of the same rows, for a vocabulary of so many tokens.
    pub fn new(step: usize, adapter: &Loss, base: &Loss, vocabulary: usize) -> Self {
        let supervised = adapter.supervised.max(1) as f64;
        let mean = |loss: &Loss| (loss.cross_entropy / supervised, loss.top1 as f64 / supervised);
        Self::of(step, mean(adapter), mean(base), adapter.supervised, vocabulary)
    }

    /// As [`Self::new`], from cross-entropy and token accuracy.
    pub fn of(
        step: usize,
        (cross_entropy, token_accuracy): (f64, f64),
        (base_cross_entropy, base_token_accuracy): (f64, f64),
        supervised_tokens: usize,
        vocabulary: usize,
    ) -> Self {
        let rise = cross_entropy - base_cross_entropy;
        let guess = (vocabulary as f64).ln();
        let is_lost = rise > FAR && token_accuracy <= base_token_accuracy / 2.0;
        let is_worse = rise > FAR || rise > WORSE && token_accuracy <= base_token_accuracy;
        let is_guessing = cross_entropy > guess && base_cross_entropy < guess && rise > WORSE;
        let is_not_finite = rise.is_nan() || !cross_entropy.is_finite();
        let verdict = if is_not_finite || (is_lost || is_guessing) && supervised_tokens >= FEW_TOKENS {
            Verdict::Ruined
        } else if is_worse || is_lost || is_guessing {
            Verdict::Worse
        } else {
            Verdict::Healthy
        };
        Self {
            step,
            cross_entropy,
            base_cross_entropy,
            token_accuracy,
            base_token_accuracy,
            supervised_tokens,
            verdict,
        }
    }

    /// The comparison in words, without the verdict.
    pub fn numbers(&self) -> String {
        format!(
            "cross-entropy {:.2}, the base alone {:.2}; token accuracy {:.1}%, the base alone {:.1}%",
            self.cross_entropy,
            self.base_cross_entropy,
            100.0 * self.token_accuracy,
            100.0 * self.base_token_accuracy
        )
    }
}

/// When to look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// The step of the last comparison, and how many steps the next one waits.
    last: usize,
    wait: usize,
    /// What was said last.
    pub said: Option<Verdict>,
}

impl Watch {
    /// Whether a step's numbers call for a comparison. `first` are cross-entropy and token accuracy of the first step, whose
    /// adapter has learnt nothing yet.
    pub fn is_due(&mut self, step: usize, (cross_entropy, accuracy): (f64, f64), first: (f64, f64)) -> bool {
        let looks_bad = cross_entropy > first.0 + WORSE || accuracy < first.1 / 2.0;
        if !looks_bad || step < self.last + self.wait {
            return false;
        }
        let most = if self.said.is_none_or(|said| said == Verdict::Healthy) { 64 } else { 4 };
        self.wait = if self.last == 0 { 1 } else { (2 * self.wait).clamp(1, most) };
        self.last = step;
        true
    }

    /// Whether there is something new to say.
    pub fn is_news(&mut self, verdict: Verdict) -> bool {
        let before = self.said.replace(verdict).unwrap_or(Verdict::Healthy);
        before != verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(adapter: (f64, f64), base: (f64, f64)) -> Verdict {
        Health::of(7, adapter, base, 100, 2048).verdict
    }

    #[test]
    fn what_is_ruined_is_told_from_what_is_sharper() {
        assert_eq!(verdict((2.2, 0.52), (2.4, 0.49)), Verdict::Healthy);
        // Probability weighting gives up some tokens, and ranks more of the others first.
        assert_eq!(verdict((2.51, 0.51), (2.38, 0.49)), Verdict::Healthy);
        assert_eq!(verdict((2.98, 0.51), (2.41, 0.495)), Verdict::Healthy);
        assert_eq!(verdict((2.98, 0.49), (2.41, 0.495)), Verdict::Worse);
        assert_eq!(verdict((4.5, 0.45), (2.4, 0.49)), Verdict::Worse);
        assert_eq!(verdict((4.5, 0.2), (2.4, 0.49)), Verdict::Ruined);
        assert_eq!(verdict((26.8, 0.04), (2.9, 0.52)), Verdict::Ruined);
        // All logits are the same: ln 2048, and nothing is ranked first.
        assert_eq!(verdict((7.62, 0.0), (2.9, 0.52)), Verdict::Ruined);
        // Worse than a guess, though it has learnt some tokens by heart.
        assert_eq!(verdict((9.0, 0.6), (6.4, 0.1)), Verdict::Ruined);
        // The base guesses itself: a random one, or rows that no model expects.
        assert_eq!(verdict((9.0, 0.1), (8.5, 0.1)), Verdict::Healthy);
        assert_eq!(verdict((f64::NAN, 0.0), (2.9, 0.52)), Verdict::Ruined);
    }

    #[test]
    fn a_handful_of_tokens_calls_no_model_ruined() {
        let on = |tokens, cross_entropy| Health::of(7, (cross_entropy, 0.04), (2.9, 0.52), tokens, 2048).verdict;
        assert_eq!((on(63, 26.8), on(64, 26.8)), (Verdict::Worse, Verdict::Ruined));
        // That it does not compute is not chance.
        assert_eq!((on(2, f64::NAN), on(2, f64::INFINITY)), (Verdict::Ruined, Verdict::Ruined));
    }

    #[test]
    fn comparisons_get_rarer_while_nothing_is_wrong() {
        let mut watch = Watch::default();
        let due: Vec<usize> = (2..200).filter(|&step| watch.is_due(step, (9.0, 0.1), (2.0, 0.5))).collect();
        assert_eq!(due, [2, 3, 5, 9, 17, 33, 65, 129, 193]);
        assert!(!watch.is_due(300, (2.4, 0.3), (2.0, 0.5)), "nothing looks bad");
        assert!(watch.is_due(301, (2.0, 0.2), (2.0, 0.5)), "half as many tokens are right");
        assert!(watch.is_news(Verdict::Worse) && !watch.is_news(Verdict::Worse) && watch.is_news(Verdict::Ruined));
        assert!(watch.is_news(Verdict::Healthy), "and that it has recovered");
    }
}
