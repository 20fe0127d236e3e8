//! How a model chooses: which places it takes, how sure it is, and whether it keeps its option where the order changes.

use super::{Outcome, Run};
use crate::error::{Error, Result};
use crate::eval::{Answer, Asked, Chosen, Prepared, shifted_requests_of};
use crate::statistics::{Binning, CALIBRATION_BINS, Confusion, Predictions};
use crate::train::{Event, Observer};
use serde::Serialize;

/// The choices that a model took in a task whose documents have one right choice each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceReport {
    /// The task's name.
    pub task: String,
    /// Its name in tables.
    pub alias: String,
    /// Items.
    pub items: usize,
    /// Share of the items whose likeliest choice is right.
    pub accuracy: f64,
    /// The mean share over the places that are right somewhere: a constant answer has 1 over their number.
    pub balanced_accuracy: f64,
    /// Mean of `-log p` of the right choice, in nats; `p`: the softmax of the choices' log-likelihoods.
    pub nll: f64,
    /// Mean over items of the sum over choices of `(p - right)²`.
    pub brier: f64,
    /// Expected calibration error.
    pub ece: f64,
    /// Area under the risk-coverage curve.
    pub aurc: f64,
    /// Each place: how often it is right, and how often it was taken.
    pub places: Vec<PlaceShare>,
    /// With the options in other orders, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shifts: Option<ShiftReport>,
}

/// A place among the choices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlaceShare {
    /// The choice that stands there in all documents, or the place, from 1.
    pub choice: String,
    /// Share of the items where it is right.
    pub right: f64,
    /// Share of the items where it was taken.
    pub taken: f64,
}

/// A task's items with the options shifted cyclically: by no place, by one, up to all but one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShiftReport {
    /// The accuracy of each shift.
    pub accuracy: Vec<f64>,
    /// Their mean: what is left of the accuracy when no place is preferred.
    pub mean: f64,
    /// Share of the items where the same option was taken under all shifts.
    pub consistent: f64,
}

impl ChoiceReport {
    /// That of a task, in the order of its documents; `None` where they have no single right choice.
    fn of(task: &Prepared, asked: &[Asked], chosen: &[Chosen]) -> Option<Self> {
        let golds: Vec<usize> = chosen.iter().map(|of| of.gold).collect();
        let taken: Vec<usize> = chosen.iter().map(Chosen::taken).collect();
        let scores: Vec<&[f64]> = chosen.iter().map(|of| of.log_likelihoods.as_slice()).collect();
        let predictions = Predictions::from_logits(&scores, &golds, 1.0)?;
        let shares = Confusion::new(&taken, &golds)?;
        let count = scores.iter().map(|scores| scores.len()).max()?;
        let first = asked.first()?.choices()?;
        let is_fixed = asked.iter().all(|asked| asked.choices() == Some(first));
        let share =
            |of: &[usize], place: usize| of.iter().filter(|&&other| other == place).count() as f64 / of.len() as f64;
        let place = |place: usize| PlaceShare {
            choice: if is_fixed { first[place].clone() } else { (place + 1).to_string() },
            right: share(&golds, place),
            taken: share(&taken, place),
        };
        Some(Self {
            task: task.config.task.clone(),
            alias: task.config.alias().to_owned(),
            items: chosen.len(),
            accuracy: predictions.accuracy(),
            balanced_accuracy: shares.balanced_accuracy(),
            nll: predictions.nll(),
            brier: predictions.brier(),
            ece: predictions.expected_calibration_error(Binning::EqualWidth, CALIBRATION_BINS),
            aurc: predictions.aurc(),
            places: (0..count).map(place).collect(),
            shifts: None,
        })
    }
}

impl Run<'_> {
    /// How a model chose in the tasks that are multiple choices.
    pub(super) fn choices(
        &self,
        outcomes: &[Outcome],
        what: &str,
        observer: &mut dyn Observer,
    ) -> Result<Vec<ChoiceReport>> {
        let mut reports = Vec::new();
        for ((task, asked), outcome) in self.tasks().iter().zip(&self.questions.asked).zip(outcomes) {
            let Some(chosen) = outcome.chosen.as_deref() else { continue };
            let Some(mut report) = ChoiceReport::of(task, asked, chosen) else { continue };
            if self.request.option_shifts {
                match self.shifts((task, asked), chosen, what, observer)? {
                    Ok(shifts) => report.shifts = Some(shifts),
                    Err(why) => {
                        let note = format!("{}: its options are not shifted: {why}", report.alias);
                        observer.event(&Event::Note(note));
                    }
                }
            }
            reports.push(report);
        }
        Ok(reports)
    }

    /// The task with its options shifted, or why that cannot be or says nothing.
    fn shifts(
        &self,
        (task, asked): (&Prepared, &[Asked]),
        chosen: &[Chosen],
        what: &str,
        observer: &mut dyn Observer,
    ) -> Result<Result<ShiftReport, &'static str>> {
        let (tokens, chat) = (self.bench.tokens(), self.request.chat(self.bench)?);
        let scorer = self.bench.scorer(self.model, what == "adapter", self.request.batch_tokens);
        let count = chosen.iter().map(|of| of.log_likelihoods.len()).max().unwrap_or(0);
        let accuracy_of = |taken: &[Chosen]| {
            taken.iter().filter(|of| of.taken() == of.gold).count() as f64 / taken.len().max(1) as f64
        };
        let mut accuracy = vec![accuracy_of(chosen)];
        let mut consistent = vec![true; chosen.len()];
        for by in 1..count {
            let moved = asked.iter().map(|asked| shifted_requests_of(task, asked, by, &chat, &tokens));
            let Some(moved) = moved.collect::<Result<Option<Vec<Asked>>>>()? else {
                return Ok(Err("not every document has a field that holds them"));
            };
            if asked.iter().zip(&moved).all(|(asked, moved)| asked.has_context_of(moved)) {
                return Ok(Err("no prompt shows them, so that their order changes nothing"));
            }
            let mut taken = Vec::with_capacity(moved.len());
            for batch in super::batches(&moved, self.request.batch_tokens) {
                let what = format!("{} on the {what}, options shifted by {by}", task.config.alias());
                observer.event(&Event::Items { what, done: batch.start, total: moved.len() });
                if observer.stop_requested() {
                    return Err(Error::Interrupted);
                }
                let batch = &moved[batch];
                let answers: Vec<Answer> = scorer.answer(batch)?;
                taken.extend(batch.iter().zip(&answers).filter_map(|(asked, answer)| asked.chosen(answer)));
            }
            for ((same, now), before) in consistent.iter_mut().zip(&taken).zip(chosen) {
                *same &= now.taken() == (before.taken() + by) % before.log_likelihoods.len();
            }
            accuracy.push(accuracy_of(&taken));
        }
        Ok(Ok(ShiftReport {
            mean: accuracy.iter().sum::<f64>() / accuracy.len() as f64,
            consistent: consistent.iter().filter(|same| **same).count() as f64 / consistent.len().max(1) as f64,
            accuracy,
        }))
    }
}
