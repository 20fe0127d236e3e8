//! Scores of chosen answers against the right ones.

use serde::Serialize;
use std::collections::BTreeMap;

/// How often each answer was right, chosen and both. There is at least one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    items: usize,
    classes: BTreeMap<usize, Class>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Class {
    /// Items whose right answer it is.
    targets: usize,
    /// Items for which it was chosen.
    predicted: usize,
    /// Both.
    hits: usize,
}

/// The best that an answer without reading the question scores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ConstantAnswer {
    /// The class that is right most often; of several the lowest.
    pub class: usize,
    /// Its share of the items, the majority-class share: the accuracy of always answering so.
    pub accuracy: f64,
}

impl Confusion {
    /// Counts chosen and right classes, item by item. `None` if there are no items or the lengths differ.
    pub fn new(predicted: &[usize], targets: &[usize]) -> Option<Self> {
        if predicted.is_empty() || predicted.len() != targets.len() {
            return None;
        }
        let mut classes: BTreeMap<usize, Class> = BTreeMap::new();
        for (&predicted, &target) in predicted.iter().zip(targets) {
            classes.entry(predicted).or_default().predicted += 1;
            let class = classes.entry(target).or_default();
            class.targets += 1;
            class.hits += usize::from(predicted == target);
        }
        Some(Self { items: predicted.len(), classes })
    }

    fn hits(&self) -> usize {
        self.classes.values().map(|class| class.hits).sum()
    }

    /// The share of items whose chosen class is the right one.
    pub fn accuracy(&self) -> f64 {
        self.hits() as f64 / self.items as f64
    }

    /// The mean recall over the classes that occur among the right answers: 1 over their number for a constant answer,
    /// however frequent it is. Source: scikit-learn's `balanced_accuracy_score`.
    pub fn balanced_accuracy(&self) -> f64 {
        let occurring = self.classes.values().filter(|class| class.targets > 0);
        let recalls: Vec<f64> = occurring.map(|class| class.hits as f64 / class.targets as f64).collect();
        recalls.iter().sum::<f64>() / recalls.len() as f64
    }

    /// The mean over classes of `F1 = 2·hits / (targets + predicted)`, over all that are right or chosen anywhere.
    /// Source: scikit-learn's `f1_score(average="macro")`.
    pub fn macro_f1(&self) -> f64 {
        let f1 = |class: &Class| 2.0 * class.hits as f64 / (class.targets + class.predicted) as f64;
        self.classes.values().map(f1).sum::<f64>() / self.classes.len() as f64
    }

    /// The Matthews correlation coefficient of several classes, in `[-1, 1]`:
    /// `(c·n - Σ p_k·t_k) / √((n² - Σ p_k²)(n² - Σ t_k²))` with `c` hits among `n` items, and class `k` chosen `p_k` and right
    /// `t_k` times. 0 where only one class is chosen, or right. Source: Gorodkin 2004, Comput. Biol. Chem. 28;
    /// scikit-learn's `matthews_corrcoef`.
    pub fn matthews_correlation(&self) -> f64 {
        let n = self.items as f64;
        let sum = |product: fn(&Class) -> f64| self.classes.values().map(product).sum::<f64>();
        let covariance = self.hits() as f64 * n - sum(|class| class.predicted as f64 * class.targets as f64);
        let predicted = n * n - sum(|class| (class.predicted as f64).powi(2));
        let targets = n * n - sum(|class| (class.targets as f64).powi(2));
        if predicted == 0.0 || targets == 0.0 { 0.0 } else { covariance / (predicted * targets).sqrt() }
    }

    /// The constant answer that scores best: the floor that every accuracy is to be read against.
    pub fn best_constant(&self) -> ConstantAnswer {
        let most = self.classes.values().map(|class| class.targets).max().unwrap_or(0);
        let class = self.classes.iter().find(|(_, class)| class.targets == most).map_or(0, |(&class, _)| class);
        ConstantAnswer { class, accuracy: most as f64 / self.items as f64 }
    }

    /// `(class, share of the right answers, share of the chosen ones)`, by class: a model that has learnt a letter shows here.
    pub fn shares(&self) -> impl Iterator<Item = (usize, f64, f64)> {
        let n = self.items as f64;
        self.classes.iter().map(move |(&class, count)| (class, count.targets as f64 / n, count.predicted as f64 / n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_answer_is_as_good_as_its_class_and_no_better() {
        let targets = [3, 3, 3, 0, 1];
        let constant = Confusion::new(&[3; 5], &targets).unwrap();
        assert_eq!(constant.best_constant(), ConstantAnswer { class: 3, accuracy: 0.6 });
        assert_eq!(constant.accuracy(), 0.6);
        assert!((constant.balanced_accuracy() - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(constant.matthews_correlation(), 0.0);
        assert_eq!(constant.shares().collect::<Vec<_>>(), [(0, 0.2, 0.0), (1, 0.2, 0.0), (3, 0.6, 1.0)]);
    }

    #[test]
    fn of_two_majorities_the_lower_counts() {
        assert_eq!(Confusion::new(&[9, 9], &[5, 2]).unwrap().best_constant().class, 2);
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(Confusion::new(&[], &[]), None);
        assert_eq!(Confusion::new(&[1], &[1, 2]), None);
    }
}
