//! How likely a model thinks texts that begin alike are: log-probabilities of continuations of a context.
//!
//! A context is computed once, however many continuations it has: the tokens of each follow it in one batch and attend to the
//! context's keys and to their own. Nothing is padded; the items of a batch lie one after the other.

use super::CausalLm;
use super::forward::Runner;
use crate::nn::{Backend, ForwardContext, GpuBatch, GpuContext};
use crate::ops::{Compute, Element, HeadRequest, Pool, Sequence};
use candle_core::{Result, bail};
use half::bf16;

/// A context, and what may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuations {
    /// At least one token.
    pub context: Vec<u32>,
    /// At least one token each.
    pub continuations: Vec<Vec<u32>>,
}

/// What a model says of a continuation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// `Σ log p` of its tokens, in nats.
    pub log_probability: f64,
    /// Whether each of its tokens is the likeliest; a tie is not.
    pub is_greedy: bool,
}

impl Continuations {
    /// Tokens that a forward pass computes: the last of each continuation is only predicted.
    pub fn tokens(&self) -> usize {
        self.context.len() + self.continuations.iter().map(|tokens| tokens.len() - 1).sum::<usize>()
    }

    /// Positions of the longest text.
    pub fn positions(&self) -> usize {
        self.context.len() + self.continuations.iter().map(|tokens| tokens.len() - 1).max().unwrap_or(0)
    }
}

/// How the tokens of a batch lie, and which of them predict what.
#[derive(Debug, Default)]
struct Layout {
    ids: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<Sequence>,
    /// The rows whose keys and values `sequences` speak of.
    key_rows: Vec<usize>,
    /// Whether some of them stand there twice.
    shared: bool,
    /// Rows that predict, each with its label.
    rows: Vec<usize>,
    labels: Vec<u32>,
}

impl Layout {
    fn of(items: &[&Continuations]) -> Self {
        let mut layout = Self::default();
        for item in items {
            layout.add(item);
        }
        layout
    }

    fn add(&mut self, item: &Continuations) {
        let (start, before) = (self.ids.len(), item.context.len());
        self.push(&item.context, 0);
        let branches = item.continuations.iter().filter(|tokens| tokens.len() > 1).count();
        if branches != 1 {
            self.attend(start..start + before, start..start + before);
        }
        let mut first_branch = true;
        for tokens in &item.continuations {
            let (&last, inner) = tokens.split_last().unwrap_or((&0, &[]));
            let at = self.ids.len();
            self.push(inner, before);
            self.rows.push(start + before - 1);
            self.rows.extend(at..at + inner.len());
            self.labels.extend(inner.iter().chain([&last]));
            if inner.is_empty() {
                continue;
            }
            if branches == 1 {
                self.attend(start..at + inner.len(), start..at + inner.len());
                continue;
            }
            // The context's keys stand before the first branch's by now.
            if !first_branch {
                self.key_rows.extend(start..start + before);
                self.shared = true;
            }
            first_branch = false;
            let keys = self.key_rows.len() - before;
            self.key_rows.extend(at..at + inner.len());
            let queries = at..at + inner.len();
            self.sequences.push(Sequence { queries, keys: keys..self.key_rows.len() });
        }
    }

    fn push(&mut self, tokens: &[u32], position: usize) {
        self.ids.extend(tokens);
        self.positions.extend((position..position + tokens.len()).map(|position| position as u32));
    }

    /// A sequence of these rows, whose keys are their own.
    fn attend(&mut self, queries: std::ops::Range<usize>, keys: std::ops::Range<usize>) {
        let first = self.key_rows.len();
        self.key_rows.extend(keys);
        self.sequences.push(Sequence { queries, keys: first..self.key_rows.len() });
    }

    fn key_rows(&self) -> Option<&[usize]> {
        self.shared.then_some(&self.key_rows[..])
    }
}

impl CausalLm {
    /// What the model says of each continuation of each item, without dropout. `capacity`: the most tokens that a batch has.
    ///
    /// # Errors
    /// For a context or a continuation without a token, for ids outside of the vocabulary, and for more tokens than the model has
    /// positions.
    pub fn score(
        &self,
        items: &[&Continuations],
        runner: Runner<'_>,
        compute: Compute,
        (pool, capacity): (&Pool, usize),
    ) -> Result<Vec<Vec<Score>>> {
        for item in items {
            if item.context.is_empty() || item.continuations.iter().any(Vec::is_empty) {
                bail!("a context and each of its continuations need a token");
            }
            let (positions, most) = (item.positions(), self.dimensions.max_positions);
            if positions > most {
                bail!("{positions} tokens: expected 1 to {most}, which is what the model was made for");
            }
        }
        let layout = Layout::of(items);
        if layout.rows.is_empty() {
            return Ok(items.iter().map(|_| Vec::new()).collect());
        }
        let capacity = capacity.max(layout.ids.len());
        let (log_probabilities, top1) = match (runner, compute) {
            (Runner::Cpu { adapter }, Compute::F32) => {
                self.score_on(&self.score_context::<f32>(&layout, adapter, (pool, capacity)), &layout)
            }
            (Runner::Cpu { adapter }, Compute::Bf16) => {
                self.score_on(&self.score_context::<bf16>(&layout, adapter, (pool, capacity)), &layout)
            }
            (Runner::Gpu { gpu, adapter }, compute) => {
                let batch = GpuBatch {
                    compute,
                    capacity,
                    adapter,
                    ropes: self.rotations(&layout.positions),
                    sequences: &layout.sequences,
                    key_rows: layout.key_rows(),
                    head_dim: self.dimensions.head_dim,
                    dropout_keys: None,
                    cache: None,
                    offload: false,
                    tokens: layout.ids.len(),
                };
                self.score_on(&GpuContext::new(gpu, &batch)?, &layout)
            }
        }?;
        let mut predictions = log_probabilities.into_iter().zip(top1);
        let mut of = |tokens: &Vec<u32>| {
            let mut score = Score { log_probability: 0.0, is_greedy: true };
            for (log_p, top1) in predictions.by_ref().take(tokens.len()) {
                score.log_probability += log_p;
                score.is_greedy &= top1;
            }
            score
        };
        Ok(items.iter().map(|item| item.continuations.iter().map(&mut of).collect()).collect())
    }

    fn score_context<'a, E: Element>(
        &self,
        layout: &'a Layout,
        adapter: bool,
        (pool, capacity): (&'a Pool, usize),
    ) -> ForwardContext<'a, E> {
        ForwardContext {
            ropes: self.rotations(&layout.positions),
            sequences: layout.sequences.clone(),
            key_rows: layout.key_rows(),
            dropout_keys: None,
            adapter,
            cache: None,
            pool,
            tokens: layout.ids.len(),
            capacity,
        }
    }

    fn score_on<B: Backend>(&self, backend: &B, layout: &Layout) -> Result<(Vec<f64>, Vec<bool>)> {
        let mut x = backend.embed(&self.embed_tokens, &layout.ids, self.embedding_factor)?;
        for layer in &self.layers {
            x = layer.forward(&x, backend)?.0;
        }
        let prediction = backend.predict(&x, &layout.rows, self.head(), &layout.labels, HeadRequest::default())?;
        Ok((prediction.log_probabilities, prediction.top1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_of_one_token_share_a_row_and_longer_ones_the_context() {
        let item = Continuations { context: vec![5, 6], continuations: vec![vec![1], vec![2, 3], vec![4, 7, 8]] };
        assert_eq!((item.tokens(), item.positions()), (5, 4));
        let layout = Layout::of(&[&item]);
        assert_eq!(layout.ids, [5, 6, 2, 4, 7]);
        assert_eq!(layout.positions, [0, 1, 2, 2, 3]);
        assert_eq!(layout.rows, [1, 1, 2, 1, 3, 4]);
        assert_eq!(layout.labels, [1, 2, 3, 4, 7, 8]);
        assert_eq!(layout.key_rows(), Some(&[0, 1, 2, 0, 1, 3, 4][..]));
        let parts: Vec<_> = layout.sequences.iter().map(|s| (s.queries.clone(), s.keys.clone())).collect();
        assert_eq!(parts, [(0..2, 0..2), (2..3, 0..3), (3..5, 3..7)]);
        // One that is longer needs no keys twice.
        let item = Continuations { context: vec![5, 6], continuations: vec![vec![1], vec![2, 3]] };
        let layout = Layout::of(&[&item, &item]);
        assert_eq!(layout.key_rows(), None);
        assert_eq!(layout.sequences.iter().map(|s| s.keys.clone()).collect::<Vec<_>>(), [0..3, 3..6]);
    }
}
