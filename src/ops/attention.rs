//! Causal attention with grouped queries, in blocks with an online softmax: never `[heads, t, t]`, nor a row of it, whole.
//!
//! Sequences lie one after the other, without padding; tokens attend within their own. Keys and values are packed once for
//! the query heads that share them, never repeated. The forward pass leaves each row's log-sum-exp, from which the backward
//! pass ([`attention_backward`]) computes the probabilities again. Source: arXiv 2205.14135 (online softmax), 2307.08691 (backward).

mod backward;

pub use backward::{AttentionOutput, attention_backward, lend_attention_backward};

use super::element::{Element, convert};
use super::gemm::pack::{Shape, pack_all_rows, pack_all_transposed};
use super::gemm::{LANES, Lhs, Place, Sums, TILE_COLUMNS, TILE_ROWS, Term, ZERO};
use super::pool::{Buffer, Ledger, Lent, Pool, room};
use super::simd::{Level, exp, sum_lanes, vectorized};
use super::softcap::{Capped, Scaled, Score};
use rayon::prelude::*;
use std::ops::Range;

/// Tiles of keys in a block of the forward pass.
const BLOCK_TILES: usize = 6;
/// Keys in a block of the forward pass.
const BLOCK_KEYS: usize = BLOCK_TILES * TILE_COLUMNS;
/// Queries of a task.
const BLOCK_QUERIES: usize = 64;

/// The heads of a layer, and what becomes of their scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// With `c`, a scaled score `s` becomes `c·tanh(s/c)`.
    pub softcap: Option<f32>,
    /// How many keys a query sees at most, its own included; at least 1.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// Heads whose scores are scaled by `1/√d`, and whose queries see all keys before them.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, window: None }
    }

    /// Whether scores have no cap, and queries no window.
    pub const fn is_plain(&self) -> bool {
        self.softcap.is_none() && self.window.is_none()
    }

    /// Numbers of a token's queries, keys and values, side by side.
    pub const fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Tokens that attend to each other: rows of the queries, and rows of the keys and values. The last query sees all keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Rows of the keys and values; at least as many.
    pub keys: Range<usize>,
}

impl Sequence {
    /// The keys that query `i` (from 0) sees.
    fn seen(&self, i: usize, window: Option<usize>) -> Range<usize> {
        let end = self.keys.len() - self.queries.len() + i + 1;
        window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// Rows of numbers, of which heads are some columns.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a, E> {
    /// The numbers from the first column of the first head on.
    pub data: &'a [E],
    /// From row to row.
    pub stride: usize,
}

impl<'a, E> Heads<'a, E> {
    /// From a row and a head on.
    fn at(&self, row: usize, head: usize, head_dim: usize) -> &'a [E] {
        &self.data[row * self.stride + head * head_dim..]
    }
}

/// Queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a, E> {
    /// The heads.
    pub shape: AttentionShape,
    /// `[m, heads·d]`
    pub q: Heads<'a, E>,
    /// `[keys, kv_heads·d]`
    pub k: Heads<'a, E>,
    /// `[keys, kv_heads·d]`
    pub v: Heads<'a, E>,
    /// Which rows attend to which.
    pub sequences: &'a [Sequence],
    /// Tokens that buffers have room for; with 0, those that are there.
    pub capacity: usize,
}

/// A right side for each sequence and head of keys, one after the other.
struct Packs<E: Element> {
    data: Buffer<E>,
    offsets: Vec<usize>,
    size: fn(usize, usize) -> Shape,
}

impl<E: Element> Packs<E> {
    /// Packs with `pack(rows of a head, keys, out)`; `size` gives the shape from keys and width.
    fn new(
        attention: &Attention<'_, E>,
        source: Heads<'_, E>,
        size: fn(usize, usize) -> Shape,
        pack: impl Fn(&[E], usize, Shape, &mut [E]) + Sync,
        pool: &Pool,
    ) -> Self {
        let AttentionShape { kv_heads, head_dim, .. } = attention.shape;
        let mut offsets = vec![0];
        for sequence in attention.sequences {
            for _ in 0..kv_heads {
                offsets.push(offsets[offsets.len() - 1] + size(sequence.keys.len(), head_dim).numbers());
            }
        }
        let total = offsets[offsets.len() - 1];
        let mut data = pool.take::<E>(total, 1, room_of_packs(attention.shape, total, attention.capacity, size));
        let mut rest = &mut data[..];
        let mut tasks = Vec::with_capacity(offsets.len());
        for (i, pair) in offsets.windows(2).enumerate() {
            let (out, tail) = rest.split_at_mut(pair[1] - pair[0]);
            rest = tail;
            tasks.push((&attention.sequences[i / kv_heads], i % kv_heads, out));
        }
        tasks.into_par_iter().for_each(|(sequence, head, out)| {
            let keys = sequence.keys.len();
            pack(source.at(sequence.keys.start, head, head_dim), keys, size(keys, head_dim), out);
        });
        Self { data, offsets, size }
    }

    /// `[d, keys]`, for products with rows of heads.
    fn transposed(attention: &Attention<'_, E>, source: Heads<'_, E>, pool: &Pool) -> Self {
        let pack = |rows: &[E], keys, shape: Shape, out: &mut [E]| {
            pack_all_transposed(rows, source.stride, (keys, shape.depth), shape, out);
        };
        Self::new(attention, source, transposed_size::<E>, pack, pool)
    }

    /// `[keys, d]`, for products with rows of probabilities.
    fn rows(attention: &Attention<'_, E>, source: Heads<'_, E>, pool: &Pool) -> Self {
        let pack = |rows: &[E], keys, shape: Shape, out: &mut [E]| {
            pack_all_rows(rows, source.stride, (keys, shape.columns), shape, out);
        };
        Self::new(attention, source, rows_size::<E>, pack, pool)
    }

    /// The pack of a sequence and a head of keys.
    fn get(&self, attention: &Attention<'_, E>, sequence: usize, kv_head: usize) -> (&[E], Shape) {
        let i = sequence * attention.shape.kv_heads + kv_head;
        let keys = attention.sequences[sequence].keys.len();
        (&self.data[self.offsets[i]..self.offsets[i + 1]], (self.size)(keys, attention.shape.head_dim))
    }
}

/// Numbers that a buffer for `total` numbers of packs gets. Keys are padded sequence by sequence: a quarter more is enough
/// but for many short ones.
fn room_of_packs(
    AttentionShape { kv_heads, head_dim, .. }: AttentionShape,
    total: usize,
    capacity: usize,
    size: fn(usize, usize) -> Shape,
) -> usize {
    room(total, kv_heads * size(capacity + capacity / 4, head_dim).numbers())
}

/// What packs take whose shapes `size` gives from keys and width.
fn lend_packs<E: Element>(
    shape: AttentionShape,
    (sequences, capacity): (&[Sequence], usize),
    size: fn(usize, usize) -> Shape,
    ledger: &Ledger,
) -> Lent {
    let numbers = sequences.iter().map(|sequence| size(sequence.keys.len(), shape.head_dim).numbers());
    let total = shape.kv_heads * numbers.sum::<usize>();
    ledger.take::<E>(total, 1, room_of_packs(shape, total, capacity, size))
}

/// The shape of a head's keys or values, `[d, keys]`.
fn transposed_size<E: Element>(keys: usize, head_dim: usize) -> Shape {
    Shape::new::<E>(head_dim, keys)
}

/// The shape of a head's keys or values, `[keys, d]`.
fn rows_size<E: Element>(keys: usize, head_dim: usize) -> Shape {
    Shape::new::<E>(keys, head_dim)
}

/// What [`attention`] takes besides what it is given.
pub fn lend_attention<E: Element>(shape: AttentionShape, sequences: &[Sequence], capacity: usize, ledger: &Ledger) {
    let keys = lend_packs::<E>(shape, (sequences, capacity), transposed_size::<E>, ledger);
    drop((keys, lend_packs::<E>(shape, (sequences, capacity), rows_size::<E>, ledger)));
}

/// `softmax(cap(scale·q·kᵀ) + mask)·v` for each head, to `out: [m, heads·d]`; each row's log-sum-exp of scores goes to
/// `log_sums: [m, heads]`. `cap(s)` is `c·tanh(s/c)`, or `s` without a cap; query `i` sees key `j` where `i - window < j ≤ i`.
///
/// # Panics
/// When shapes do not fit their slices: a bug of the caller.
pub fn attention<E: Element>(attention: &Attention<'_, E>, out: &mut [E], log_sums: &mut [f32], pool: &Pool) {
    let AttentionShape { heads, kv_heads, head_dim, window, .. } = attention.shape;
    let keys = Packs::transposed(attention, attention.k, pool);
    let values = Packs::rows(attention, attention.v, pool);
    let mut tasks = Vec::new();
    let (mut out, mut log_sums) = (out, log_sums);
    for (index, sequence) in attention.sequences.iter().enumerate() {
        for first in (0..sequence.queries.len()).step_by(BLOCK_QUERIES) {
            let count = (sequence.queries.len() - first).min(BLOCK_QUERIES);
            let (rows, rest) = out.split_at_mut(count * heads * head_dim);
            let (sums, rest_sums) = log_sums.split_at_mut(count * heads);
            (out, log_sums) = (rest, rest_sums);
            tasks.push((index, first, rows, sums));
        }
    }
    // The last queries see the most keys: those tasks go first.
    tasks.sort_by_key(|(index, first, ..)| std::cmp::Reverse(attention.sequences[*index].seen(*first, window).len()));
    tasks.into_par_iter().with_max_len(1).for_each(|(index, first, out, log_sums)| {
        let mut state = vec![ZERO; head_dim.div_ceil(TILE_COLUMNS)];
        let mut scratch = Scratch::default();
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let block = QueryBlock {
                attention,
                sequence: index,
                head,
                keys: keys.get(attention, index, kv_head),
                values: values.get(attention, index, kv_head),
            };
            let count = log_sums.len() / heads;
            for row in (0..count).step_by(TILE_ROWS) {
                let rows = (count - row).min(TILE_ROWS);
                let sums = block.run(first + row, rows, &mut state, &mut scratch);
                for i in 0..rows {
                    log_sums[(row + i) * heads + head] = sums[i];
                    let out = &mut out[((row + i) * heads + head) * head_dim..][..head_dim];
                    for (out, state) in out.chunks_mut(TILE_COLUMNS).zip(&state) {
                        convert(&state[i][..out.len()], out);
                    }
                }
            }
        }
    });
}

/// What a task writes and reads for each 8 queries.
struct Scratch<E> {
    scores: [Sums; BLOCK_TILES],
    probabilities: [[E; BLOCK_KEYS]; TILE_ROWS],
}

impl<E: Element> Default for Scratch<E> {
    fn default() -> Self {
        Self { scores: [ZERO; BLOCK_TILES], probabilities: [[E::default(); BLOCK_KEYS]; TILE_ROWS] }
    }
}

/// Some queries of one head.
struct QueryBlock<'a, E: Element> {
    attention: &'a Attention<'a, E>,
    sequence: usize,
    head: usize,
    keys: (&'a [E], Shape),
    values: (&'a [E], Shape),
}

impl<E: Element> QueryBlock<'_, E> {
    /// Up to 8 queries from `first` of the sequence: the outputs in `state`, and the log-sum-exps.
    fn run(&self, first: usize, rows: usize, state: &mut [Sums], scratch: &mut Scratch<E>) -> [f32; TILE_ROWS] {
        let level = Level::detect();
        let AttentionShape { head_dim, scale, softcap, window, .. } = self.attention.shape;
        let sequence = &self.attention.sequences[self.sequence];
        let q = self.attention.q.at(sequence.queries.start + first, self.head, head_dim);
        let lhs = Lhs { data: q, stride: self.attention.q.stride };
        let mut running = Running::default();
        let Scratch { scores, probabilities } = scratch;
        state.fill(ZERO);
        let last = sequence.seen(first + rows - 1, window).end;
        // Tiles left of the first query's window are seen by none. All see a key of the first block.
        let start = sequence.seen(first, window).start / TILE_COLUMNS * TILE_COLUMNS;
        for start in (start..last).step_by(BLOCK_KEYS) {
            let count = (last - start).min(BLOCK_KEYS);
            let tiles = count.div_ceil(TILE_COLUMNS);
            for (tile, sums) in scores.iter_mut().enumerate().take(tiles) {
                let term = Term { lhs, rhs: self.keys.0, shape: self.keys.1 };
                let place = Place { row: 0, rows, tile: start / TILE_COLUMNS + tile };
                E::accumulate(level, &[term], place, true, sums);
            }
            let mut seen = [(0, 0); TILE_ROWS];
            for (i, seen) in seen.iter_mut().enumerate().take(rows) {
                let keys = sequence.seen(first + i, window);
                *seen = (within(keys.start, start, count), within(keys.end, start, count));
            }
            let (scores, seen) = (&scores[..tiles], &seen[..rows]);
            match softcap {
                None => running.block(scores, seen, Scaled(scale), state, probabilities),
                Some(cap) => running.block(scores, seen, Capped::new(scale, cap), state, probabilities),
            }
            let (values, shape) = self.values;
            let depth = count.next_multiple_of(E::GROUP);
            for (tile, state) in state.iter_mut().enumerate() {
                let (columns, vectors) = shape.tile(tile);
                let term = Term {
                    lhs: Lhs { data: probabilities.as_flattened(), stride: BLOCK_KEYS },
                    rhs: &values[shape.offset(tile) + start * vectors * LANES..],
                    shape: Shape { depth, columns },
                };
                E::accumulate(level, &[term], Place { row: 0, rows, tile: 0 }, false, state);
            }
        }
        running.finish(rows, state)
    }
}

/// The online softmax of up to 8 rows.
struct Running {
    max: [f32; TILE_ROWS],
    sum: [f32; TILE_ROWS],
}

impl Default for Running {
    fn default() -> Self {
        Self { max: [f32::NEG_INFINITY; TILE_ROWS], sum: [0.0; TILE_ROWS] }
    }
}

impl Running {
    /// Takes a block of products, of which row `i` sees those from `seen[i].0` to before `seen[i].1`, maybe none: writes the
    /// probabilities relative to the maximum so far, and scales down what was gathered under an earlier one.
    fn block<E: Element, S: Score>(
        &mut self,
        products: &[Sums],
        seen: &[(u32, u32)],
        score: S,
        state: &mut [Sums],
        probabilities: &mut [[E; BLOCK_KEYS]; TILE_ROWS],
    ) {
        for (i, (&seen, probabilities)) in seen.iter().zip(probabilities).enumerate() {
            let (max, sum) = softmax_row(products, i, seen, score, self.max[i], probabilities);
            if max > self.max[i] {
                let factor = exp::<false>(self.max[i] - max);
                self.sum[i] *= factor;
                for state in state.iter_mut() {
                    state[i].iter_mut().for_each(|x| *x *= factor);
                }
                self.max[i] = max;
            }
            self.sum[i] += sum;
        }
    }

    /// Divides by the sums; gives the log-sum-exps.
    fn finish(&self, rows: usize, state: &mut [Sums]) -> [f32; TILE_ROWS] {
        let mut log_sums = [0f32; TILE_ROWS];
        for i in 0..rows {
            let inverse = 1.0 / self.sum[i];
            for state in state.iter_mut() {
                state[i].iter_mut().for_each(|x| *x *= inverse);
            }
            log_sums[i] = self.max[i] + self.sum[i].ln();
        }
        log_sums
    }
}

/// Where key `at` lies in a block of `count` keys from `start` on; its ends, if it lies outside.
fn within(at: usize, start: usize, count: usize) -> u32 {
    at.saturating_sub(start).min(count) as u32
}

vectorized! {
    /// Of row `i` of some tiles of products: `out[j] = exp(score(product[j]) - max)` for `seen.0 ≤ j < seen.1`, zero for the
    /// others of these tiles; gives the maximum (at least `floor`) and the sum.
    fn softmax_row<E: Element, S: Score>(products: &[Sums], i: usize, seen: (u32, u32), score: S, floor: f32,
        out: &mut [E; BLOCK_KEYS]) -> (f32, f32) {
        let count = seen.1 - seen.0;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for (tile, sums) in products.iter().enumerate() {
            let (row, _) = sums[i].as_chunks::<LANES>();
            for (v, row) in row.iter().enumerate() {
                let first = ((tile * TILE_COLUMNS + v * LANES) as u32).wrapping_sub(seen.0);
                for lane in 0..LANES {
                    let x = if first.wrapping_add(lane as u32) < count { row[lane] } else { f32::NEG_INFINITY };
                    lanes[lane] = if x > lanes[lane] { x } else { lanes[lane] };
                }
            }
        }
        let largest = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let largest = if count > 0 { score.of::<FMA>(largest) } else { floor };
        let max = if largest > floor { largest } else { floor };
        let mut sums_of_lanes = [0f32; LANES];
        let (out, _) = out.as_chunks_mut::<LANES>();
        for (tile, (sums, out)) in products.iter().zip(out.chunks_exact_mut(TILE_COLUMNS / LANES)).enumerate() {
            let (row, _) = sums[i].as_chunks::<LANES>();
            for (v, (row, out)) in row.iter().zip(out).enumerate() {
                let first = ((tile * TILE_COLUMNS + v * LANES) as u32).wrapping_sub(seen.0);
                for lane in 0..LANES {
                    let p = exp::<FMA>(score.of::<FMA>(row[lane]) - max);
                    let p = if first.wrapping_add(lane as u32) < count { p } else { 0.0 };
                    sums_of_lanes[lane] += p;
                    out[lane] = E::from_f32(p);
                }
            }
        }
        (max, sum_lanes(sums_of_lanes))
    }
}
