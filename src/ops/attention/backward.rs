//! The backward pass of attention: each task is one head of one sequence.

use super::{Attention, AttentionShape, Heads, Packs, Sequence, lend_packs, rows_size, transposed_size};
use crate::ops::element::{Element, convert};
use crate::ops::gemm::pack::{Shape, transpose};
use crate::ops::gemm::{LANES, Lhs, Place, Sums, TILE_COLUMNS, TILE_ROWS, Term, ZERO, add};
use crate::ops::pool::{Ledger, Pool, room};
use crate::ops::rope::RopeTable;
use crate::ops::simd::{Level, exp, sum_lanes, vectorized};
use crate::ops::softcap::{Capped, Scaled, Score};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Queries that meet a tile of keys at a time: the depth of the products for keys and values.
const BLOCK: usize = 64;

/// What the forward pass has left, and the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub struct AttentionOutput<'a, E> {
    /// `[m, heads·d]`
    pub out: &'a [E],
    /// `[m, heads]`
    pub log_sums: &'a [f32],
    /// The gradient of `out`.
    pub gradient: &'a [E],
}

/// The gradients of queries, keys and values, side by side in `dqkv: [m, (heads + 2·kv_heads)·d]`. Queries and keys are
/// rotated back if there is a table.
///
/// With `P` the probabilities and `dP = dO·Vᵀ`: `dS = P∘(dP - rowsum(dO∘O))`, `dQ = scale·dS·K`, `dK = scale·dSᵀ·Q`,
/// `dV = Pᵀ·dO`. Under a cap `dS` is multiplied by the slopes of the scores, `1 - (S/c)²`.
///
/// # Panics
/// When shapes do not fit their slices: a bug of the caller; or when queries and keys are not of the same rows.
pub fn attention_backward<E: Element>(
    attention: &Attention<'_, E>,
    output: AttentionOutput<'_, E>,
    rope: Option<&RopeTable>,
    dqkv: &mut [E],
    pool: &Pool,
) {
    let AttentionShape { heads, head_dim, .. } = attention.shape;
    let m = output.log_sums.len() / heads;
    let rows = room(m, attention.capacity);
    assert!(attention.sequences.iter().all(|s| s.queries == s.keys), "attention: a backward pass with a cache");
    let packs = BackwardPacks {
        keys: Packs::transposed(attention, attention.k, pool),
        key_rows: Packs::rows(attention, attention.k, pool),
        values: Packs::transposed(attention, attention.v, pool),
    };
    let mut means = pool.take::<f32>(m, heads, rows);
    let tokens = output.out.par_chunks(heads * head_dim).zip(output.gradient.par_chunks(heads * head_dim));
    means.par_chunks_mut(heads).zip(tokens).with_min_len(16).for_each(|(means, (out, gradient))| {
        dots(out, gradient, head_dim, means);
    });
    let mut gradients = [(); 3].map(|()| pool.take::<f32>(m, heads * head_dim, rows));
    let mut tasks = Vec::new();
    {
        let [dq, dk, dv] = &mut gradients;
        let (mut dq, mut dk, mut dv) = (&mut dq[..], &mut dk[..], &mut dv[..]);
        for head in 0..heads {
            for (index, sequence) in attention.sequences.iter().enumerate() {
                let size = sequence.queries.len() * head_dim;
                let (q, rest_q) = dq.split_at_mut(size);
                let (k, rest_k) = dk.split_at_mut(size);
                let (v, rest_v) = dv.split_at_mut(size);
                (dq, dk, dv) = (rest_q, rest_k, rest_v);
                tasks.push((Task { attention, output, packs: &packs, means: &means, head, index }, [q, k, v]));
            }
        }
    }
    tasks.sort_by_key(|(task, _)| std::cmp::Reverse(attention.sequences[task.index].queries.len()));
    tasks.into_par_iter().with_max_len(1).for_each(|(task, out)| task.run(out, pool));
    gather(attention.shape, [&gradients[0], &gradients[1], &gradients[2]], rope, dqkv);
}

/// What [`attention_backward`] takes for `m` tokens besides what it is given.
pub fn lend_attention_backward<E: Element>(
    shape: AttentionShape,
    (m, capacity): (usize, usize),
    sequences: &[Sequence],
    ledger: &Ledger,
) {
    let AttentionShape { heads, head_dim, .. } = shape;
    let rows = room(m, capacity);
    let sizes = [transposed_size::<E>, rows_size::<E>, transposed_size::<E>];
    let packs = sizes.map(|size| lend_packs::<E>(shape, (sequences, capacity), size, ledger));
    let means = ledger.take::<f32>(m, heads, rows);
    let gradients = [(); 3].map(|()| ledger.take::<f32>(m, heads * head_dim, rows));
    // Tasks of like length run side by side.
    let mut classes = BTreeMap::<usize, (usize, usize)>::new();
    for padded in sequences.iter().map(|sequence| sequence.queries.len().next_multiple_of(BLOCK)) {
        let (tasks, most) = classes.entry(padded.next_power_of_two()).or_default();
        (*tasks, *most) = (*tasks + heads, padded.max(*most));
    }
    for (capacity, (tasks, padded)) in classes {
        ledger.at_once(tasks, || [(); 2].map(|()| ledger.take::<E>(padded, head_dim, capacity)));
    }
    drop((packs, means, gradients));
}

/// From gradients by head (`[heads, m, d]` each; of keys and values one for each query head) to rows of tokens: those of heads
/// that share keys are added, queries and keys multiplied by the scale and rotated back.
fn gather<E: Element>(shape: AttentionShape, [dq, dk, dv]: [&[f32]; 3], rope: Option<&RopeTable>, dqkv: &mut [E]) {
    let AttentionShape { heads, kv_heads, head_dim, scale, .. } = shape;
    let m = dq.len() / (heads * head_dim);
    let group = heads / kv_heads;
    let width = shape.width();
    dqkv.par_chunks_mut(width).enumerate().with_min_len(16).for_each_init(
        || vec![0f32; width],
        |row, (token, out)| {
            row.fill(0.0);
            let place = |head: usize| (head * m + token) * head_dim;
            for head in 0..heads {
                let from = place(head)..place(head) + head_dim;
                let shared = head / group;
                for (part, source, scale) in
                    [(head, dq, scale), (heads + shared, dk, scale), (heads + kv_heads + shared, dv, 1.0)]
                {
                    add_scaled(&source[from.clone()], scale, &mut row[part * head_dim..][..head_dim]);
                }
            }
            if let Some(rope) = rope {
                rope.rotate_back(token, row, shape);
            }
            convert(row, out);
        },
    );
}

struct BackwardPacks<E: Element> {
    keys: Packs<E>,
    key_rows: Packs<E>,
    values: Packs<E>,
}

#[derive(Clone, Copy)]
struct Task<'a, E: Element> {
    attention: &'a Attention<'a, E>,
    output: AttentionOutput<'a, E>,
    packs: &'a BackwardPacks<E>,
    /// `rowsum(dO∘O)`, `[m, heads]`.
    means: &'a [f32],
    head: usize,
    index: usize,
}

/// Probabilities of a block of queries and a tile of keys, and the gradients of their scores.
struct Block<E> {
    /// Packed as a right side: `[queries / GROUP, 48, GROUP]`.
    probabilities: Vec<E>,
    /// In the same layout.
    scores_packed: Vec<E>,
    /// `[queries, 48]`
    scores: Vec<E>,
}

impl<E: Element> Task<'_, E> {
    fn run(&self, [dq, dk, dv]: [&mut [f32]; 3], pool: &Pool) {
        let AttentionShape { heads, kv_heads, head_dim, window, .. } = self.attention.shape;
        let sequence = &self.attention.sequences[self.index];
        let (t, start) = (sequence.queries.len(), sequence.queries.start);
        let kv_head = self.head / (heads / kv_heads);
        let padded = t.next_multiple_of(BLOCK);
        let gradient = Heads { data: self.output.gradient, stride: heads * head_dim };
        // Queries and output gradients with the tokens as their depth, padded with zeros.
        let [qt, dot] = [self.attention.q, gradient].map(|source| {
            let mut out = pool.take::<E>(padded, head_dim, padded.next_power_of_two());
            let rows = source.at(start, self.head, head_dim);
            transpose(rows, source.stride, (t, head_dim), &mut out, padded);
            for out in out.chunks_exact_mut(padded) {
                out[t..].fill(E::default());
            }
            out
        });
        dq.fill(0.0);
        let mut block = Block {
            probabilities: vec![E::default(); BLOCK * TILE_COLUMNS],
            scores_packed: vec![E::default(); BLOCK * TILE_COLUMNS],
            scores: vec![E::default(); BLOCK * TILE_COLUMNS],
        };
        let level = Level::detect();
        let row_tiles = head_dim.div_ceil(TILE_ROWS);
        let mut sums = vec![ZERO; 2 * row_tiles];
        for tile in 0..t.div_ceil(TILE_COLUMNS) {
            let first_key = tile * TILE_COLUMNS;
            // Queries before the tile's first key see nothing of it.
            let first_block = first_key / BLOCK * BLOCK;
            let keys = (t - first_key).min(TILE_COLUMNS);
            // Nor do those whose windows begin after its last key.
            let end = window.map_or(t, |window| t.min((first_key + keys - 1).saturating_add(window)));
            for first in (first_block..end).step_by(BLOCK) {
                let count = (end - first).min(BLOCK);
                // Rows above the diagonal, whole tiles of them, see nothing either.
                let above = first_key.saturating_sub(first) / TILE_ROWS * TILE_ROWS;
                let depth = count.next_multiple_of(TILE_ROWS) - above;
                self.scores(kv_head, tile, (first, above..count), &mut block);
                self.add_queries(kv_head, tile, (first, above..count), &block, dq);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let (source, packed, row) = if row < row_tiles {
                        (&qt, &block.scores_packed, row)
                    } else {
                        (&dot, &block.probabilities, row - row_tiles)
                    };
                    let term = Term {
                        lhs: Lhs { data: &source[row * TILE_ROWS * padded + first + above..], stride: padded },
                        rhs: &packed[above * TILE_COLUMNS..],
                        shape: Shape { depth, columns: TILE_COLUMNS },
                    };
                    let place = Place { row: 0, rows: (head_dim - row * TILE_ROWS).min(TILE_ROWS), tile: 0 };
                    E::accumulate(level, &[term], place, first == first_block, sums);
                }
            }
            spread(&sums[..row_tiles], keys, head_dim, &mut dk[first_key * head_dim..]);
            spread(&sums[row_tiles..], keys, head_dim, &mut dv[first_key * head_dim..]);
        }
    }

    /// Probabilities and score gradients of queries, `within` the block from `first` on, and a tile of keys.
    fn scores(&self, kv_head: usize, tile: usize, (first, within): (usize, Range<usize>), block: &mut Block<E>) {
        let level = Level::detect();
        let AttentionShape { heads, head_dim, scale, softcap, window, .. } = self.attention.shape;
        let sequence = &self.attention.sequences[self.index];
        let (start, first_key) = (sequence.queries.start, tile * TILE_COLUMNS);
        let keys = self.packs.keys.get(self.attention, self.index, kv_head);
        let values = self.packs.values.get(self.attention, self.index, kv_head);
        let (mut raw, mut pulled) = (ZERO, ZERO);
        let mut p = [[E::default(); TILE_COLUMNS]; TILE_ROWS];
        for row in within.clone().step_by(TILE_ROWS) {
            let rows = (within.end - row).min(TILE_ROWS);
            let token = start + first + row;
            let q = Lhs { data: self.attention.q.at(token, self.head, head_dim), stride: self.attention.q.stride };
            let gradient = &self.output.gradient[(token * heads + self.head) * head_dim..];
            let gradient = Lhs { data: gradient, stride: heads * head_dim };
            let place = Place { row: 0, rows, tile };
            E::accumulate(level, &[Term { lhs: q, rhs: keys.0, shape: keys.1 }], place, true, &mut raw);
            E::accumulate(level, &[Term { lhs: gradient, rhs: values.0, shape: values.1 }], place, true, &mut pulled);
            let (ds, _) =
                block.scores[row * TILE_COLUMNS..][..TILE_ROWS * TILE_COLUMNS].as_chunks_mut::<TILE_COLUMNS>();
            if rows < TILE_ROWS {
                p[rows..].fill([E::default(); TILE_COLUMNS]);
                ds[rows..].fill([E::default(); TILE_COLUMNS]);
            }
            for i in 0..rows {
                let place = (token + i) * heads + self.head;
                // Beyond the diagonal nothing is seen, and nothing left of the window.
                let keys = sequence.seen(first + row + i, window);
                let seen = [keys.start, keys.end].map(|key| super::within(key, first_key, TILE_COLUMNS));
                let query = Query { log_sum: self.output.log_sums[place], mean: self.means[place], seen };
                let out = (&mut p[i], &mut ds[i]);
                match softcap {
                    None => score_row(query, Scaled(scale), &raw[i], &pulled[i], out),
                    Some(cap) => score_row(query, Capped::new(scale, cap), &raw[i], &pulled[i], out),
                }
            }
            let packed = row * TILE_COLUMNS..(row + TILE_ROWS) * TILE_COLUMNS;
            interleave(&p, &mut block.probabilities[packed.clone()]);
            interleave(ds, &mut block.scores_packed[packed]);
        }
    }

    /// `dq += dS·K`
    fn add_queries(
        &self,
        kv_head: usize,
        tile: usize,
        (first, within): (usize, Range<usize>),
        block: &Block<E>,
        dq: &mut [f32],
    ) {
        let head_dim = self.attention.shape.head_dim;
        let (keys, shape) = self.packs.key_rows.get(self.attention, self.index, kv_head);
        let first_key = tile * TILE_COLUMNS;
        let depth = (shape.depth - first_key).min(TILE_COLUMNS);
        let level = Level::detect();
        let mut sums = ZERO;
        for column in 0..shape.tiles() {
            let (columns, vectors) = shape.tile(column);
            let rhs = &keys[shape.offset(column) + first_key * vectors * LANES..];
            for row in within.clone().step_by(TILE_ROWS) {
                let rows = (within.end - row).min(TILE_ROWS);
                let lhs = Lhs { data: &block.scores[row * TILE_COLUMNS..], stride: TILE_COLUMNS };
                let term = Term { lhs, rhs, shape: Shape { depth, columns } };
                E::accumulate(level, &[term], Place { row: 0, rows, tile: 0 }, true, &mut sums);
                let out = &mut dq[(first + row) * head_dim + column * TILE_COLUMNS..];
                add(out, head_dim, &sums[..rows], columns);
            }
        }
    }
}

/// Writes tiles of `[d, 48 keys]` as rows `[keys, d]`.
fn spread(sums: &[Sums], keys: usize, head_dim: usize, out: &mut [f32]) {
    transpose(sums.as_flattened().as_flattened(), TILE_COLUMNS, (head_dim, keys), out, head_dim);
}

/// What a row's probabilities are made of besides its scores.
#[derive(Clone, Copy)]
struct Query {
    log_sum: f32,
    /// `rowsum(dO∘O)`
    mean: f32,
    /// The keys of the tile that the query sees: the first, and what follows the last.
    seen: [u32; 2],
}

vectorized! {
    /// `p = exp(score - log_sum)` for the keys that are seen and zero for the others, `ds = p·(pulled - mean)·slope` for scores
    /// and their slopes from products of queries and keys.
    fn score_row<E: Element, S: Score>(query: Query, score: S, products: &[f32; TILE_COLUMNS],
        pulled: &[f32; TILE_COLUMNS], out: (&mut [E; TILE_COLUMNS], &mut [E; TILE_COLUMNS])) {
        let (p, ds) = out;
        let [start, end] = query.seen;
        for j in 0..TILE_COLUMNS {
            let is_seen = (j as u32).wrapping_sub(start) < end - start;
            let (score, slope) = score.with_slope::<FMA>(products[j]);
            let probability = exp::<FMA>(score - query.log_sum);
            let probability = if is_seen { probability } else { 0.0 };
            p[j] = E::from_f32(probability);
            ds[j] = E::from_f32(if is_seen { probability * (pulled[j] - query.mean) * slope } else { 0.0 });
        }
    }
}

vectorized! {
    /// Packs 8 rows of 48: `[8 / GROUP, 48, GROUP]`.
    fn interleave<E: Element>(rows: &[[E; TILE_COLUMNS]], out: &mut [E]) {
        if E::GROUP == 1 {
            out.copy_from_slice(rows.as_flattened());
            return;
        }
        for (pair, out) in rows.chunks_exact(2).zip(out.chunks_exact_mut(2 * TILE_COLUMNS)) {
            for (j, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                *out = [pair[0][j], pair[1][j]];
            }
        }
    }
}

vectorized! {
    /// The dot product of each head of two rows.
    fn dots<E: Element>(a: &[E], b: &[E], head_dim: usize, out: &mut [f32]) {
        for ((a, b), out) in a.chunks_exact(head_dim).zip(b.chunks_exact(head_dim)).zip(out) {
            let mut lanes = [0f32; LANES];
            let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            for (a, b) in a.iter().zip(b) {
                for lane in 0..LANES {
                    lanes[lane] += a[lane].to_f32() * b[lane].to_f32();
                }
            }
            let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a.to_f32() * b.to_f32()).sum();
            *out = sum_lanes(lanes) + tail;
        }
    }
}

vectorized! {
    /// `to += scale·from`
    fn add_scaled(from: &[f32], scale: f32, to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += *from * scale;
        }
    }
}
