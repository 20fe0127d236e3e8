//! What a run says of itself at its beginning, and of its result in a sentence.

use super::Prepared;
use crate::error::Result;
use crate::models::Model;
use crate::recipe::Recipe;
use crate::train::metrics::{RunHeader, Validation};
use crate::train::{Health, MetricForBest, Verdict};

/// What of a number counts as a change: half of the last digit that is shown.
const UNSEEN: f64 = 5e-5;

impl Prepared {
    /// What the run is, at its beginning; the trainer knows the steps.
    pub(super) fn header(&self, recipe: &Recipe, model: &Model) -> Result<RunHeader> {
        let report = &self.dataset.report;
        Ok(RunHeader {
            name: recipe.name.clone(),
            base: recipe.base.model.clone(),
            model_type: self.base.model_type().to_owned(),
            parameters: model.report.parameters,
            quantization: model.report.types.clone().into_iter().collect(),
            adapter_parameters: model.params.parameters(),
            device: self.device_name(),
            compute: self.compute.name().to_owned(),
            objective: recipe.objective.kind.name().to_owned(),
            metric_for_best_model: metric(recipe),
            train_rows: report.train_rows,
            validation_rows: report.validation_rows,
            dropped_rows: report.dropped,
            skipped_rows: report.skipped,
            unlearnt_rows: report.unlearnt,
            truncated_rows: report.truncated,
            tokens: report.tokens,
            supervised_tokens: report.supervised_tokens,
            total_steps: 0,
            resumed_after: 0,
            recipe_sha256: recipe.sha256()?,
            seed: recipe.training.seed,
            output_dir: recipe.output_dir.display().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// Which number decides what is best.
pub(super) fn metric(recipe: &Recipe) -> MetricForBest {
    MetricForBest::resolve(recipe.training.metric_for_best_model.as_ref(), &recipe.objective)
}

/// How a run judges its validations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Judge<'a> {
    /// Which number decides.
    pub metric: &'a MetricForBest,
    /// Whether the objective weighs tokens by their probability.
    pub weighs_by_probability: bool,
    /// What was measured before training, in words.
    pub began_with: &'static str,
}

impl Judge<'_> {
    /// Whether the adapter is better than what the run began with, and what to make of numbers that disagree.
    pub(super) fn verdict(self, (before, after): (&Validation, &Validation), health: Option<&Health>) -> String {
        if health.is_some_and(|health| health.verdict == Verdict::Ruined) {
            return "the model is ruined: do not use this adapter".to_owned();
        }
        let rise = after.cross_entropy - before.cross_entropy;
        let accuracy = after.token_accuracy - before.token_accuracy;
        let (name, began_with) = (self.metric.name(), self.began_with);
        if self.metric.goodness(before).or(self.metric.goodness(after)).is_none() {
            return format!("{name}, which decides, is not a finite number");
        }
        if !after.is_better(before, self.metric) {
            let but = if *self.metric != MetricForBest::CrossEntropy && rise < -UNSEEN {
                ", though cross-entropy fell"
            } else if *self.metric != MetricForBest::TokenAccuracy && accuracy > UNSEEN {
                ", though token accuracy rose"
            } else {
                ""
            };
            if !before.is_better(after, self.metric) {
                return format!("no difference by {name}, which decides{but}");
            }
            return format!("{began_with} is better by {name}, which decides{but}");
        }
        let better = format!("better than {began_with} by {name}, which decides");
        if rise <= UNSEEN {
            let but = if accuracy < -UNSEEN { "; token accuracy fell" } else { "" };
            return format!("{better}{but}");
        }
        let why = if self.weighs_by_probability {
            "weighting by probability gives up the least likely tokens. That does no harm where answers are taken greedily; sampling \
             and perplexity suffer"
        } else {
            "its probabilities have become worse"
        };
        format!("{better}; cross-entropy rose by {rise:.2} nats: {why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validation(cross_entropy: f64, token_accuracy: f64, token_probability: f64) -> Validation {
        Validation {
            step: 1,
            cross_entropy,
            token_accuracy,
            token_probability,
            likely_tokens: 0.0,
            objective_loss: 0.1,
            supervised_tokens: 100,
            best: true,
            tasks: Vec::new(),
        }
    }

    #[test]
    fn numbers_that_disagree_are_said_and_explained() {
        let before = validation(2.38, 0.493, 0.36);
        let judge = |metric: &'static MetricForBest, weighs_by_probability| Judge {
            metric,
            weighs_by_probability,
            began_with: "the base alone",
        };
        let say = |after: &Validation, metric: &'static MetricForBest, weighs| {
            judge(metric, weighs).verdict((&before, after), None)
        };
        let bft = say(&validation(2.49, 0.507, 0.39), &MetricForBest::TokenProbability, true);
        assert!(
            bft.starts_with("better than the base alone by token probability") && bft.contains("0.11 nats"),
            "{bft}"
        );
        let sft = say(&validation(2.21, 0.519, 0.38), &MetricForBest::CrossEntropy, false);
        assert_eq!(sft, "better than the base alone by cross-entropy, which decides");
        let worse = say(&validation(2.49, 0.507, 0.39), &MetricForBest::CrossEntropy, true);
        assert_eq!(worse, "the base alone is better by cross-entropy, which decides, though token accuracy rose");
        let same = say(&before, &MetricForBest::TokenProbability, true);
        assert_eq!(same, "no difference by token probability, which decides");
        let ruined = Health::of(9, (9.0, 0.0), (2.4, 0.5), 100, 2048);
        let sft = judge(&MetricForBest::CrossEntropy, false);
        let ruined = sft.verdict((&before, &validation(9.0, 0.0, 0.0)), Some(&ruined));
        assert_eq!(ruined, "the model is ruined: do not use this adapter");
        let going_on = Judge { began_with: "the adapter it began with", ..sft };
        assert_eq!(
            going_on.verdict((&before, &validation(2.5, 0.4, 0.3)), None),
            "the adapter it began with is better by cross-entropy, which decides"
        );
    }
}
