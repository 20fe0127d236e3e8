//! The order of an epoch: which rows come when, and which of them share a row of the batch.
//!
//! It knows lengths, not tokens. An order depends on the seed, the epoch's number and the lengths alone.

use super::rows::Rows;
use crate::rng::{Rng, key, name_key};
use std::collections::BTreeMap;
use std::ops::Range;

/// How many steps' rows are sorted by length at a time; more would give less padding, and less chance.
const GROUPED_STEPS: usize = 50;

/// How the rows of an epoch are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// In random order, each by itself.
    Shuffled,
    /// In random order of steps; the rows of a step are of like length.
    Grouped {
        /// Rows that a step takes.
        rows_per_step: usize,
    },
    /// Several to a row of at most this many tokens.
    Packed {
        /// The most tokens.
        max_seq_len: usize,
    },
}

/// Packs and epochs of a run that is looked at as a whole.
const MOST_LOOKED_AT: usize = 4 << 20;
const MOST_EPOCHS_LOOKED_AT: usize = 32;

/// The orders of all epochs over the rows to train on.
#[derive(Debug, Clone)]
pub struct Plan {
    lengths: Vec<u32>,
    /// Where each source's rows begin and end, and how often they come.
    sources: Vec<(usize, usize, f64)>,
    arrangement: Arrangement,
    seed: u64,
    packs: usize,
}

/// One epoch: packs of rows, in order. Without packing, a pack is one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    rows: Vec<u32>,
    /// Where each pack ends in `rows`; empty where each pack is one row.
    ends: Vec<u32>,
}

impl Epoch {
    /// Number of packs.
    pub const fn len(&self) -> usize {
        if self.ends.is_empty() { self.rows.len() } else { self.ends.len() }
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows of a pack.
    pub fn pack(&self, pack: usize) -> &[u32] {
        if self.ends.is_empty() {
            return &self.rows[pack..=pack];
        }
        let begin = if pack == 0 { 0 } else { self.ends[pack - 1] };
        &self.rows[begin as usize..self.ends[pack] as usize]
    }
}

impl Plan {
    /// The plan for these rows.
    pub fn new(rows: &Rows, arrangement: Arrangement, seed: u64) -> Self {
        let lengths = rows.entries().map(|entry| entry.tokens).collect();
        let sources = rows.sources().iter().map(|(range, weight)| (range.start, range.end, *weight)).collect();
        let mut plan = Self { lengths, sources, arrangement, seed, packs: 0 };
        plan.packs = match arrangement {
            Arrangement::Packed { .. } => plan.epoch(0).len(),
            _ => plan.drawn(0).len(),
        };
        plan
    }

    /// Packs of an epoch; the same in all of them.
    pub const fn packs_per_epoch(&self) -> usize {
        self.packs
    }

    /// The order of an epoch, from 0.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        let mut rows = self.drawn(epoch);
        match self.arrangement {
            Arrangement::Shuffled => Epoch { rows, ends: Vec::new() },
            Arrangement::Grouped { rows_per_step } => {
                self.group(&mut rows, rows_per_step, epoch);
                Epoch { rows, ends: Vec::new() }
            }
            Arrangement::Packed { max_seq_len } => self.pack(&rows, max_seq_len, epoch),
        }
    }

    /// Rows of an epoch, and tokens of the first one, however they are packed.
    pub fn rows_and_tokens(&self) -> (usize, usize) {
        let rows = self.drawn(0);
        (rows.len(), rows.iter().map(|&row| self.lengths[row as usize] as usize).sum())
    }

    /// Calls `f` with each micro-batch of a run over the first `packs` packs, as a list of packs: each step takes `per_step` of
    /// them, in order of their lengths, `at_once` at a time. Of a run that is too long it looks at the beginning only; whether
    /// it has seen all.
    pub fn each_micro_batch(
        &self,
        packs: usize,
        per_step: usize,
        at_once: usize,
        mut f: impl FnMut(&mut dyn Iterator<Item = &[u32]>),
    ) -> bool {
        let n = self.packs_per_epoch();
        let looked_at = packs.min(MOST_LOOKED_AT).min(n.saturating_mul(MOST_EPOCHS_LOOKED_AT));
        // Rows of a step, and for each of its packs the tokens and the place among the rows.
        let (mut rows, mut step) = (Vec::new(), Vec::with_capacity(per_step));
        let mut take = |rows: &mut Vec<u32>, step: &mut Vec<(usize, Range<usize>)>| {
            step.sort_by_key(|(tokens, place)| (*tokens, place.start));
            for micro_batch in step.chunks(at_once) {
                f(&mut micro_batch.iter().map(|(_, place)| &rows[place.clone()]));
            }
            rows.clear();
            step.clear();
        };
        for number in 0..looked_at.div_ceil(n.max(1)) {
            let epoch = self.epoch(number as u64);
            for pack in 0..n.min(looked_at - number * n) {
                let begin = rows.len();
                rows.extend_from_slice(epoch.pack(pack));
                let tokens = rows[begin..].iter().map(|&row| self.lengths[row as usize] as usize).sum();
                step.push((tokens, begin..rows.len()));
                if step.len() == per_step {
                    take(&mut rows, &mut step);
                }
            }
        }
        take(&mut rows, &mut step);
        looked_at == packs
    }

    /// The most tokens of `packs` packs.
    pub fn most_tokens(&self, packs: usize) -> usize {
        let mut lengths = self.lengths.clone();
        let repeats = packs > lengths.len() || self.sources.iter().any(|(_, _, weight)| *weight > 1.0);
        if repeats {
            // The same row may come several times.
            let longest = lengths.iter().max().map_or(0, |&length| length as usize);
            return match self.arrangement {
                Arrangement::Packed { max_seq_len } => packs.saturating_mul(max_seq_len.max(longest)),
                _ => packs.saturating_mul(longest),
            };
        }
        let cut = packs.min(lengths.len());
        if cut < lengths.len() {
            lengths.select_nth_unstable_by(cut, |a, b| b.cmp(a));
        }
        let longest: usize = lengths[..cut].iter().map(|&length| length as usize).sum();
        match self.arrangement {
            Arrangement::Packed { max_seq_len } => {
                let all = self.lengths.iter().map(|&length| length as usize).sum::<usize>();
                longest.max(all.min(packs.saturating_mul(max_seq_len)))
            }
            _ => longest,
        }
    }

    /// The rows of an epoch in random order: of each source as often as its weight says.
    fn drawn(&self, epoch: u64) -> Vec<u32> {
        let mut rows = Vec::with_capacity(self.lengths.len());
        for (source, &(begin, end, weight)) in self.sources.iter().enumerate() {
            for _ in 0..weight.floor() as usize {
                rows.extend(begin as u32..end as u32);
            }
            let n = end - begin;
            // A source that is small and light is still one that is wanted.
            let least = usize::from(weight < 1.0).min(n);
            let part = ((weight.fract() * n as f64).round() as usize).max(least);
            // How rows fall into packs depends on their lengths: with other rows, there would be other numbers of packs.
            let turn = if matches!(self.arrangement, Arrangement::Packed { .. }) { 0 } else { epoch };
            rows.extend(self.part(source, n, part, turn).into_iter().map(|row| (begin + row) as u32));
        }
        let order = Rng::new(key(self.seed, &[name_key("epoch_order"), epoch])).permutation(rows.len());
        order.into_iter().map(|place| rows[place]).collect()
    }

    /// `part` of `n` rows; in the epochs that follow one another, one after the other through all of them.
    fn part(&self, source: usize, n: usize, part: usize, turn: u64) -> Vec<usize> {
        if part == 0 {
            return Vec::new();
        }
        let order = |round: u64| Rng::new(key(self.seed, &[name_key("weight"), source as u64, round])).permutation(n);
        let begin = u128::from(turn) * part as u128;
        let (round, at) = ((begin / n as u128) as u64, (begin % n as u128) as usize);
        let mut rows: Vec<usize> = order(round)[at..].iter().copied().take(part).collect();
        if rows.len() < part {
            // The next round begins; none of this epoch's rows comes twice.
            let taken: std::collections::HashSet<usize> = rows.iter().copied().collect();
            let missing = part - rows.len();
            rows.extend(order(round + 1).into_iter().filter(|row| !taken.contains(row)).take(missing));
        }
        rows
    }

    /// Sorts the rows of some steps at a time by length, then puts the steps in random order. Steps are counted from the
    /// beginning of the run, so that where an epoch begins in the middle of a step, that step keeps its rows.
    fn group(&self, rows: &mut [u32], rows_per_step: usize, epoch: u64) {
        let begun = (u128::from(epoch) * rows.len() as u128 % rows_per_step as u128) as usize;
        let open = (rows_per_step - begun) % rows_per_step;
        let rows = &mut rows[open.min(self.packs)..];
        for some in rows.chunks_mut(GROUPED_STEPS * rows_per_step) {
            some.sort_by_key(|&row| self.lengths[row as usize]);
        }
        // The last step of the epoch may be a part of one, and stays where it is.
        let whole = rows.len() / rows_per_step;
        let order = Rng::new(key(self.seed, &[name_key("grouped_steps"), epoch])).permutation(whole);
        let steps: Vec<u32> = order
            .into_iter()
            .flat_map(|step| rows[step * rows_per_step..(step + 1) * rows_per_step].to_vec())
            .collect();
        rows[..steps.len()].copy_from_slice(&steps);
    }

    /// Best fit, the longest rows first: each goes where the least room is left over. Rows of one length come in the order
    /// of `rows`, so that other rows meet in each epoch; how many packs there are depends on the lengths alone.
    fn pack(&self, rows: &[u32], max_seq_len: usize, epoch: u64) -> Epoch {
        let mut longest_first = rows.to_vec();
        longest_first.sort_by_key(|&row| std::cmp::Reverse(self.lengths[row as usize]));
        let mut packs: Vec<Vec<u32>> = Vec::new();
        let mut room: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for row in longest_first {
            let length = self.lengths[row as usize] as usize;
            let found = room.range(length..).next().map(|(&left, _)| left);
            let (left, pack) = if let Some(left) = found {
                let with_room = room.get_mut(&left).expect("just found");
                let pack = with_room.pop().expect("no empty list is kept");
                if with_room.is_empty() {
                    room.remove(&left);
                }
                (left, pack)
            } else {
                packs.push(Vec::new());
                (max_seq_len.max(length), packs.len() as u32 - 1)
            };
            packs[pack as usize].push(row);
            if left > length {
                room.entry(left - length).or_default().push(pack);
            }
        }
        let order = Rng::new(key(self.seed, &[name_key("packs"), epoch])).permutation(packs.len());
        let (mut flat, mut ends) = (Vec::with_capacity(rows.len()), Vec::with_capacity(packs.len()));
        for pack in order {
            flat.extend_from_slice(&packs[pack]);
            ends.push(flat.len() as u32);
        }
        Epoch { rows: flat, ends }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokenize::Sequence;

    fn rows(lengths: &[usize]) -> Rows {
        let row = |&n: &usize| Sequence::new(vec![1; n], vec![1; n]);
        Rows::of(&lengths.iter().map(row).collect::<Vec<_>>())
    }

    fn weighted(parts: &[(usize, f64)]) -> Rows {
        let n = parts.iter().map(|(n, _)| n).sum::<usize>();
        let mut begin = 0;
        let ranges = parts.iter().map(|&(n, weight)| {
            begin += n;
            (begin - n..begin, weight)
        });
        rows(&vec![3; n]).with_sources(ranges.collect())
    }

    fn all(epoch: &Epoch) -> Vec<u32> {
        (0..epoch.len()).flat_map(|pack| epoch.pack(pack).to_vec()).collect()
    }

    fn sorted(mut rows: Vec<u32>) -> Vec<u32> {
        rows.sort_unstable();
        rows
    }

    #[test]
    fn each_epoch_has_its_own_order_that_seed_and_number_tell() {
        let rows = rows(&[5; 100]);
        let plan = Plan::new(&rows, Arrangement::Shuffled, 1);
        assert_eq!(plan.packs_per_epoch(), 100);
        assert_eq!(plan.epoch(0), plan.epoch(0));
        assert_ne!(plan.epoch(0), plan.epoch(1));
        assert_ne!(plan.epoch(0), Plan::new(&rows, Arrangement::Shuffled, 2).epoch(0));
        assert_eq!(sorted(all(&plan.epoch(3))), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn weights_say_how_often_rows_come_and_a_part_is_another_one_in_each_epoch() {
        let plan = Plan::new(&weighted(&[(10, 2.0), (100, 0.3), (4, 1.5)]), Arrangement::Shuffled, 7);
        assert_eq!(plan.packs_per_epoch(), 20 + 30 + 6);
        let mut times = vec![0; 114];
        for epoch in 0..10 {
            let rows = all(&plan.epoch(epoch));
            assert_eq!(rows.len(), 56);
            assert!((0..10).all(|row| rows.iter().filter(|&&other| other == row).count() == 2));
            assert!((10..110).all(|row| rows.iter().filter(|&&other| other == row).count() <= 1));
            for row in rows {
                times[row as usize] += 1;
            }
        }
        assert!(times[10..110].iter().all(|&times| (2..=4).contains(&times)), "{times:?}");
        assert!(times[110..].iter().all(|&times| (14..=16).contains(&times)), "{times:?}");
    }

    #[test]
    fn packs_hold_every_row_once_and_no_more_than_fits() {
        let lengths: Vec<usize> = (0..500).map(|i| 5 + i * 37 % 120).collect();
        let plan = Plan::new(&rows(&lengths), Arrangement::Packed { max_seq_len: 128 }, 3);
        let mut meetings = std::collections::HashSet::new();
        for epoch in 0..4 {
            let epoch = plan.epoch(epoch);
            assert_eq!(epoch.len(), plan.packs_per_epoch(), "as many packs in each epoch");
            assert_eq!(sorted(all(&epoch)), (0..500).collect::<Vec<_>>());
            for pack in 0..epoch.len() {
                let tokens: usize = epoch.pack(pack).iter().map(|&row| lengths[row as usize]).sum();
                assert!(tokens <= 128);
                meetings.insert(sorted(epoch.pack(pack).to_vec()));
            }
        }
        assert!(meetings.len() > plan.packs_per_epoch() * 2, "other rows meet in other epochs");
        let full = lengths.iter().sum::<usize>() as f64 / (128 * plan.packs_per_epoch()) as f64;
        assert!(full > 0.98, "best fit leaves little room: {full}");
        assert_eq!(plan.most_tokens(2), 256);
    }

    #[test]
    fn micro_batches_are_those_of_the_runs_own_steps() {
        let lengths: Vec<usize> = (0..200).map(|i| 10 + (i * 37) % 91).collect();
        let tokens = |rows: &[u32]| rows.iter().map(|&row| lengths[row as usize]).sum::<usize>();
        for arrangement in [Arrangement::Shuffled, Arrangement::Packed { max_seq_len: 128 }] {
            let plan = Plan::new(&rows(&lengths), arrangement, 5);
            let n = plan.packs_per_epoch();
            for (packs, per_step, at_once) in [(40, 8, 4), (2 * n + 3, 6, 6), (3, 8, 2), (n, 1, 1)] {
                let pack = |place: usize| plan.epoch((place / n) as u64).pack(place % n).to_vec();
                let all: Vec<Vec<u32>> = (0..packs).map(pack).collect();
                let expected = all.chunks(per_step).flat_map(|step| {
                    let mut step = step.to_vec();
                    step.sort_by_key(|pack| tokens(pack));
                    step.chunks(at_once).map(<[_]>::to_vec).collect::<Vec<_>>()
                });
                let mut found: Vec<Vec<Vec<u32>>> = Vec::new();
                let add = |packs: &mut dyn Iterator<Item = &[u32]>| found.push(packs.map(<[_]>::to_vec).collect());
                assert!(plan.each_micro_batch(packs, per_step, at_once, add), "it is short");
                assert_eq!(found, expected.collect::<Vec<Vec<_>>>());
            }
        }
        let plan = Plan::new(&rows(&lengths), Arrangement::Shuffled, 5);
        assert!(!plan.each_micro_batch(usize::MAX, 8, 4, |_| ()), "it is long");
    }

    #[test]
    fn a_pack_may_hold_one_row_that_fills_it() {
        let plan = Plan::new(&rows(&[8, 8, 3, 5]), Arrangement::Packed { max_seq_len: 8 }, 0);
        let mut packs: Vec<_> = (0..3).map(|pack| sorted(plan.epoch(0).pack(pack).to_vec())).collect();
        packs.sort();
        assert_eq!(packs, [vec![0], vec![1], vec![2, 3]]);
        assert_eq!(plan.most_tokens(3), 24);
    }

    #[test]
    fn grouped_steps_hold_rows_of_like_length_over_the_border_of_epochs_too() {
        let lengths: Vec<usize> = (0..1003).map(|i| 1 + i * 619 % 997).collect();
        let plan = Plan::new(&rows(&lengths), Arrangement::Grouped { rows_per_step: 8 }, 3);
        let run: Vec<u32> = (0..3).flat_map(|epoch| all(&plan.epoch(epoch))).collect();
        assert_eq!(sorted(run[1003..2006].to_vec()), (0..1003).collect::<Vec<_>>());
        let spread = |step: &[u32]| {
            let lengths = step.iter().map(|&row| lengths[row as usize]);
            lengths.clone().max().unwrap() - lengths.min().unwrap()
        };
        let mut spreads: Vec<usize> = run.chunks(8).map(spread).collect();
        spreads.sort_unstable();
        assert!(spreads[spreads.len() / 2] < 40, "half of the steps: {spreads:?}");
        assert!(spreads[spreads.len() * 9 / 10] < 120, "nine of ten: {spreads:?}");
        let means: Vec<usize> = run.chunks(8).map(|step| lengths[step[0] as usize]).take(50).collect();
        assert!(!means.is_sorted(), "steps come in random order");
    }
}
