//! How well option probabilities fit the answers: Brier, NLL, ECE, reliability, and answering only where sure.

use serde::Serialize;

/// How many bins calibration errors are taken over, where nothing else is asked for.
pub const CALIBRATION_BINS: u16 = 15;

/// Items with a probability for each option and the right one of each. There is at least one item.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    items: Vec<Item>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Item {
    predicted: usize,
    correct: bool,
    /// The probability of the predicted option.
    confidence: f64,
    /// `Σ_k (p_k - [k = target])²`
    squared_error: f64,
    /// `ln p(target)`
    log_probability: f64,
}

/// How confidences are cut into bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binning {
    /// `(i/bins, (i + 1)/bins]`: the usual ECE (Guo et al. 2017). A confidence of 0 is in the first.
    EqualWidth,
    /// As many items in each, in order of confidence, ties in the order of the items; the first bins hold one more where
    /// the number does not divide. With fewer items than bins there is a bin for each item.
    EqualMass,
}

/// A row of a reliability table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// The lower edge; of equal mass, the lowest confidence.
    pub lower: f64,
    /// The upper edge; of equal mass, the highest confidence.
    pub upper: f64,
    /// How many items.
    pub count: usize,
    /// Their mean confidence; `None` if there are none.
    pub mean_confidence: Option<f64>,
    /// The share whose predicted option is right; `None` if there are none.
    pub accuracy: Option<f64>,
}

impl Predictions {
    /// From a row of logits, or of log-likelihoods, for each item: probabilities are `softmax(z / temperature)`.
    ///
    /// The predicted option is the most probable, of several the first. `None` if there are no items, lengths differ, a
    /// row is empty or does not hold its target, a logit is not finite, or the temperature is not a finite number above 0.
    pub fn from_logits<R: AsRef<[f64]>>(logits: &[R], targets: &[usize], temperature: f64) -> Option<Self> {
        if !(valid(logits, targets) && temperature > 0.0 && temperature.is_finite()) {
            return None;
        }
        let beta = 1.0 / temperature;
        let item = |(row, &target): (&R, &usize)| {
            let row = row.as_ref();
            let probabilities: Vec<f64> = (0..row.len()).map(|k| log_softmax_at(row, k, beta).exp()).collect();
            Item { predicted: argmax(row), ..Item::new(&probabilities, target, log_softmax_at(row, target, beta)) }
        };
        Some(Self { items: logits.iter().zip(targets).map(item).collect() })
    }

    /// From a row of probabilities for each item.
    ///
    /// `None` as for [`from_logits`](Self::from_logits), and if one is negative or a row's sum is off 1 by more than 1e-6.
    pub fn from_probabilities<R: AsRef<[f64]>>(probabilities: &[R], targets: &[usize]) -> Option<Self> {
        let sound = |row: &[f64]| row.iter().all(|&p| p >= 0.0) && (row.iter().sum::<f64>() - 1.0).abs() <= 1e-6;
        if !valid(probabilities, targets) || !probabilities.iter().all(|row| sound(row.as_ref())) {
            return None;
        }
        let item = |(row, &target): (&R, &usize)| Item::new(row.as_ref(), target, row.as_ref()[target].ln());
        Some(Self { items: probabilities.iter().zip(targets).map(item).collect() })
    }

    /// The predicted option of each item.
    pub fn predicted(&self) -> impl Iterator<Item = usize> {
        self.items.iter().map(|item| item.predicted)
    }

    /// The share of items whose predicted option is right.
    pub fn accuracy(&self) -> f64 {
        self.mean(|item| f64::from(item.correct))
    }

    /// The Brier score `1/n Σ_i Σ_k (p_ik - [k = target_i])²`, in `[0, 2]`, lower is better.
    ///
    /// Summed over classes, as lm-eval's `brier_score` and scikit-learn's `brier_score_loss` of several classes do.
    pub fn brier(&self) -> f64 {
        self.mean(|item| item.squared_error)
    }

    /// The mean negative log-likelihood `-1/n Σ ln p(target)`, in nats. Infinite if a right option has probability 0.
    pub fn nll(&self) -> f64 {
        self.mean(|item| -item.log_probability)
    }

    /// The expected calibration error `Σ_b n_b/n · |accuracy_b - mean confidence_b|`, in `[0, 1]`; NaN without bins.
    ///
    /// Source: Naeini et al. 2015, Guo et al. 2017 (equal width); Nguyen and O'Connor 2015 (equal mass).
    pub fn expected_calibration_error(&self, binning: Binning, bins: u16) -> f64 {
        if bins == 0 {
            return f64::NAN;
        }
        let gap = |bin: ReliabilityBin| match (bin.accuracy, bin.mean_confidence) {
            (Some(accuracy), Some(confidence)) => bin.count as f64 * (accuracy - confidence).abs(),
            _ => 0.0,
        };
        self.reliability(binning, bins).into_iter().map(gap).sum::<f64>() / self.items.len() as f64
    }

    /// The reliability table, by confidence. Bins of equal width are all listed, empty ones too.
    pub fn reliability(&self, binning: Binning, bins: u16) -> Vec<ReliabilityBin> {
        let mut ascending: Vec<&Item> = self.items.iter().collect();
        ascending.sort_by(|a, b| a.confidence.total_cmp(&b.confidence));
        let (n, bins) = (ascending.len(), usize::from(bins));
        match binning {
            Binning::EqualWidth => {
                let edge = |i: usize| i as f64 / bins as f64;
                // Rounding may lift a confidence above 1: the last bin takes all that is left.
                let end = |i: usize| if i == bins { n } else { ascending.partition_point(|x| x.confidence <= edge(i)) };
                let start = |i: usize| if i == 0 { 0 } else { end(i) };
                (0..bins).map(|i| bin(&ascending[start(i)..end(i + 1)], edge(i), edge(i + 1))).collect()
            }
            Binning::EqualMass => {
                let start = |i: usize| i * (n / bins) + i.min(n % bins);
                let rows = (0..bins.min(n)).map(|i| &ascending[start(i)..start(i + 1)]);
                rows.map(|row| bin(row, row[0].confidence, row[row.len() - 1].confidence)).collect()
            }
        }
    }

    /// The area under the risk-coverage curve: the mean over `k` of the error rate among the `k` most confident items, in
    /// `[0, 1]`, lower is better. Items of one confidence are taken in their order. Source: Geifman et al. 2019 (ICLR).
    pub fn aurc(&self) -> f64 {
        let mut errors = 0_usize;
        let risks = self.by_confidence().into_iter().enumerate().map(|(i, item)| {
            errors += usize::from(!item.correct);
            errors as f64 / (i + 1) as f64
        });
        risks.sum::<f64>() / self.items.len() as f64
    }

    /// The accuracy among the `⌈coverage·n⌉` most confident items, at least one: what a model that may abstain scores. Items
    /// of one confidence are taken in their order. NaN if the coverage is outside `[0, 1]`.
    pub fn accuracy_at_coverage(&self, coverage: f64) -> f64 {
        if !(0.0..=1.0).contains(&coverage) {
            return f64::NAN;
        }
        // 0.8·n may come out just above a whole number.
        let kept = ((coverage * self.items.len() as f64 - 1e-9).ceil() as usize).clamp(1, self.items.len());
        self.by_confidence()[..kept].iter().filter(|item| item.correct).count() as f64 / kept as f64
    }

    fn mean(&self, value: impl Fn(&Item) -> f64) -> f64 {
        self.items.iter().map(value).sum::<f64>() / self.items.len() as f64
    }

    /// The most confident first; the sort is stable.
    fn by_confidence(&self) -> Vec<&Item> {
        let mut items: Vec<&Item> = self.items.iter().collect();
        items.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
        items
    }
}

impl Item {
    fn new(probabilities: &[f64], target: usize, log_probability: f64) -> Self {
        let predicted = argmax(probabilities);
        let square = |(k, p): (usize, &f64)| (p - f64::from(k == target)).powi(2);
        let squared_error = probabilities.iter().enumerate().map(square).sum();
        Self {
            predicted,
            correct: predicted == target,
            confidence: probabilities[predicted],
            squared_error,
            log_probability,
        }
    }
}

fn bin(items: &[&Item], lower: f64, upper: f64) -> ReliabilityBin {
    let share = |sum: f64| (!items.is_empty()).then(|| sum / items.len() as f64);
    ReliabilityBin {
        lower,
        upper,
        count: items.len(),
        mean_confidence: share(items.iter().map(|item| item.confidence).sum()),
        accuracy: share(items.iter().filter(|item| item.correct).count() as f64),
    }
}

/// The index of the largest value, of several the first.
fn argmax(row: &[f64]) -> usize {
    row.iter().enumerate().fold(0, |best, (k, &value)| if value > row[best] { k } else { best })
}

/// `ln softmax(beta·row)[k]`
pub(super) fn log_softmax_at(row: &[f64], k: usize, beta: f64) -> f64 {
    let highest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = row.iter().map(|z| (beta * (z - highest)).exp()).sum();
    beta * (row[k] - highest) - sum.ln()
}

/// Whether there are items, a target within each row, and only numbers that differences and sums do not overflow.
pub(super) fn valid<R: AsRef<[f64]>>(rows: &[R], targets: &[usize]) -> bool {
    let sound = |(row, &target): (&R, &usize)| {
        target < row.as_ref().len() && row.as_ref().iter().all(|value| value.abs() < 1e100)
    };
    !rows.is_empty() && rows.len() == targets.len() && rows.iter().zip(targets).all(sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two options; `confidences` are of the first, which is right for those listed.
    fn predictions(confidences: &[f64], right: &[usize]) -> Predictions {
        let rows: Vec<[f64; 2]> = confidences.iter().map(|&p| [p, 1.0 - p]).collect();
        let targets: Vec<usize> = (0..rows.len()).map(|i| usize::from(!right.contains(&i))).collect();
        Predictions::from_probabilities(&rows, &targets).unwrap()
    }

    #[test]
    fn an_edge_belongs_to_the_bin_below() {
        let bins = predictions(&[0.6, 0.8, 1.0, 0.61], &[]).reliability(Binning::EqualWidth, 5);
        assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [0, 0, 1, 2, 1]);
        assert_eq!(bins[0].accuracy, None);
    }

    #[test]
    fn equal_mass_gives_the_first_bins_one_more() {
        let bins = predictions(&[0.9, 0.6, 0.7, 0.8, 0.5], &[]).reliability(Binning::EqualMass, 2);
        assert_eq!(
            bins.iter().map(|bin| (bin.count, bin.lower, bin.upper)).collect::<Vec<_>>(),
            [(3, 0.5, 0.7), (2, 0.8, 0.9)]
        );
        assert_eq!(predictions(&[0.9, 0.6], &[]).reliability(Binning::EqualMass, 15).len(), 2);
    }

    #[test]
    fn the_surest_answers_are_taken_first_and_ties_by_index() {
        let tied = predictions(&[0.7, 0.9, 0.7, 0.7, 0.6], &[1, 2]);
        // wrong, right, right, wrong, wrong: in order of confidence right, wrong, right, wrong, wrong
        assert!((tied.aurc() - (0.0 + 1.0 / 2.0 + 1.0 / 3.0 + 2.0 / 4.0 + 3.0 / 5.0) / 5.0).abs() < 1e-15);
        assert_eq!(tied.accuracy_at_coverage(0.4), 0.5);
        assert_eq!(tied.accuracy_at_coverage(0.8), 0.5);
        assert_eq!(tied.accuracy_at_coverage(0.0), 1.0);
        assert!(tied.accuracy_at_coverage(1.1).is_nan());
    }

    #[test]
    fn a_right_option_without_probability_costs_infinitely_much() {
        assert_eq!(predictions(&[1.0, 0.5], &[1]).nll(), f64::INFINITY);
        let logits = Predictions::from_logits(&[[0.0, -2000.0]], &[1], 1.0).unwrap();
        assert_eq!((logits.nll(), logits.brier()), (2000.0, 2.0));
    }

    #[test]
    fn of_equal_logits_the_first_is_predicted() {
        let equal = Predictions::from_logits(&[[0.5, 0.5, 0.1]], &[1], 2.0).unwrap();
        assert_eq!((equal.predicted().next(), equal.accuracy()), (Some(0), 0.0));
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(Predictions::from_logits::<[f64; 2]>(&[], &[], 1.0), None);
        assert_eq!(Predictions::from_logits(&[[1.0, f64::NEG_INFINITY]], &[0], 1.0), None);
        assert_eq!(Predictions::from_logits(&[[1.0, 2.0]], &[2], 1.0), None);
        assert_eq!(Predictions::from_logits(&[[1.0, 2.0]], &[1], 0.0), None);
        assert_eq!(Predictions::from_probabilities(&[[0.6, 0.6]], &[1]), None);
        assert_eq!(Predictions::from_probabilities(&[[1.5, -0.5]], &[1]), None);
        assert_eq!(Predictions::from_probabilities(&[Vec::new()], &[0]), None);
        assert!(predictions(&[0.5], &[]).expected_calibration_error(Binning::EqualMass, 0).is_nan());
    }
}
