//! The micro-batches of a run by their sizes: what its memory is estimated from.

use crate::data::{Batch, Dataset, Entry, IGNORED, Plan, Rows, Sequence};
use crate::train::TrainingConfig;
use std::collections::BTreeMap;

/// The micro-batches of a run that differ in what they make of memory. Their tokens are not the run's: only sizes count.
#[derive(Debug)]
pub(super) struct MicroBatches {
    /// Those of the steps.
    pub trained: Vec<Batch>,
    /// Those of the validations.
    pub validation: Vec<Batch>,
    /// The most tokens of one.
    pub most_tokens: usize,
}

/// Tokens, supervised tokens and the longest row; as classes, to the next power of two: within one, buffers are shared.
type Sizes = (usize, usize, usize);

/// Tokens and supervised tokens of each row of each pack.
type Packs = Vec<Vec<(usize, usize)>>;

/// Of each class the micro-batch with the most tokens, and that with the most supervised ones: how many, and the packs.
#[derive(Default)]
struct Largest(BTreeMap<Sizes, [(usize, Packs); 2]>);

impl Largest {
    fn add<'a>(&mut self, packs: impl Iterator<Item = Vec<&'a Entry>>) {
        let size = |entry: &&Entry| (entry.tokens as usize, entry.supervised as usize);
        let packs: Vec<Vec<_>> = packs.map(|pack| pack.iter().map(size).collect()).collect();
        let rows = packs.iter().flatten();
        let tokens = rows.clone().map(|(tokens, _)| tokens).sum::<usize>();
        let supervised = rows.clone().map(|(_, supervised)| supervised).sum::<usize>();
        let longest = rows.map(|(tokens, _)| *tokens).max().unwrap_or(0);
        let class = [tokens, supervised, longest].map(usize::next_power_of_two);
        let largest = self.0.entry(class.into()).or_default();
        for (largest, size) in largest.iter_mut().zip([tokens, supervised]) {
            if size > largest.0 {
                *largest = (size, packs.clone());
            }
        }
    }

    fn into_batches(self) -> Vec<Batch> {
        let distinct = |[(_, tokens), (_, supervised)]: [(usize, Packs); 2]| {
            let second = (supervised != tokens && !supervised.is_empty()).then_some(supervised);
            [Some(tokens), second].into_iter().flatten()
        };
        self.0.into_values().flat_map(distinct).map(|packs| batch(&packs)).collect()
    }
}

impl MicroBatches {
    /// Those of a run of `training` over these rows.
    pub(super) fn of(plan: &Plan, dataset: &Dataset, training: &TrainingConfig) -> Self {
        let at_once = training.micro_batch_size;
        let per_step = at_once * training.gradient_accumulation_steps;
        let packs = match training.max_steps {
            Some(steps) => steps.saturating_mul(per_step),
            None => (training.epochs * plan.packs_per_epoch() as f64).ceil() as usize,
        };
        let mut largest = Largest::default();
        let all = plan.each_micro_batch(packs, per_step, at_once, |packs| {
            largest.add(packs.map(|rows| rows.iter().map(|&row| dataset.train.entry(row as usize)).collect()));
        });
        let mut trained = largest.into_batches();
        if !all {
            // No row of the run is longer than the first, and no more tokens come at once.
            let (longest, all) = (plan.most_tokens(1), plan.most_tokens(at_once));
            let others = (all - longest).div_ceil(at_once.saturating_sub(1).max(1));
            let rows = std::iter::once(longest).chain(std::iter::repeat_n(others, at_once - 1));
            let pack = |tokens: usize| vec![(tokens, tokens.saturating_sub(1))];
            trained.push(batch(&rows.filter(|&tokens| tokens > 0).map(pack).collect::<Packs>()));
        }
        let validation = validation(&dataset.validation, at_once);
        let most_tokens = trained.iter().chain(&validation).map(Batch::tokens).max().unwrap_or(0);
        Self { trained, validation, most_tokens }
    }
}

/// Validations take the rows in order of their lengths.
fn validation(rows: &Rows, at_once: usize) -> Vec<Batch> {
    let mut entries: Vec<&Entry> = rows.entries().collect();
    entries.sort_by_key(|entry| entry.tokens);
    let mut largest = Largest::default();
    for entries in entries.chunks(at_once) {
        largest.add(entries.iter().map(|entry| vec![*entry]));
    }
    largest.into_batches()
}

/// A batch of packs of rows of so many tokens, of which the last so many are supervised.
fn batch(packs: &[Vec<(usize, usize)>]) -> Batch {
    let row = |&(tokens, supervised): &(usize, usize)| {
        let label = |place| if place + supervised < tokens { IGNORED } else { 0 };
        Sequence::new(vec![0; tokens], (0..tokens).map(label).collect())
    };
    let packs: Vec<Vec<Sequence>> = packs.iter().map(|pack| pack.iter().map(row).collect()).collect();
    let packs: Vec<Vec<&Sequence>> = packs.iter().map(|pack| pack.iter().collect()).collect();
    Batch::collate_packed(&packs.iter().map(Vec::as_slice).collect::<Vec<_>>(), 0)
}
