//! Attention on a GPU: launches of `attention.cu`.

use super::programs;
use super::rows::{Cuda, Rows, address, size};
use crate::device::Memory;
use crate::device::driver::{Argument, Matrix, Work};
use crate::ops::{AttentionShape, Compute, Sequence};
use candle_core::{Error, Result, bail};
use std::cell::RefCell;

/// The sizes that the kernels of a head's width were written for: see the head of `attention.cu`.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Queries of a block, forward and in the gradient of queries.
    queries: usize,
    /// Keys of a block in the gradient of keys.
    keys: usize,
    threads: u32,
    /// Dynamic shared memory: forward, gradient of queries, gradient of keys.
    shared_bytes: [usize; 3],
}

impl Sizes {
    fn bytes(&self, pass: usize) -> u32 {
        self.shared_bytes[pass] as u32
    }
}

/// More keys than any sequence has.
const NO_WINDOW: u32 = 1 << 31;

/// Threads of a block of `attention_delta`.
const DELTA_THREADS: u32 = 128;

/// Which tokens attend to which, and how that is cut into blocks.
#[derive(Debug)]
pub struct Tiles {
    sequences: Memory,
    queries: Memory,
    query_blocks: u32,
    keys: Memory,
    key_blocks: u32,
    tokens: usize,
    key_rows: usize,
    /// Queries and keys of each sequence.
    lengths: Vec<(usize, usize)>,
}

/// Keys and values of the tokens so far, by layer.
#[derive(Debug, Default)]
pub struct KeyValueMemory {
    layers: RefCell<Vec<Option<Cached>>>,
}

#[derive(Debug)]
struct Cached {
    keys: Memory,
    values: Memory,
    tokens: usize,
    capacity: usize,
}

/// Keys and values, `[tokens, kv·d]` each.
#[derive(Clone, Copy)]
struct KeysValues {
    keys: Matrix,
    values: Matrix,
}

impl Tiles {
    /// Tokens of the batch.
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Pairs of a query and a key that it attends to, of one head.
    fn pairs(&self, window: Option<usize>) -> u64 {
        self.lengths.iter().map(|&(queries, keys)| pairs((queries, keys), window) as u64).sum()
    }
}

/// The pairs of one sequence. The last query sees all keys, the one before it one less; but none more than a window has.
fn pairs((queries, keys): (usize, usize), window: Option<usize>) -> usize {
    let window = window.unwrap_or(keys);
    let before = keys - queries;
    let growing = window.saturating_sub(before).min(queries);
    growing * (2 * before + growing + 1) / 2 + (queries - growing) * window
}

impl Cuda {
    /// The tiles of a batch's sequences.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn tiles(&self, sequences: &[Sequence], head_dim: usize) -> Result<Tiles> {
        let sizes = sizes(head_dim, self.compute)?;
        let (mut table, mut queries, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tokens, mut key_rows, mut lengths) = (0, 0, Vec::with_capacity(sequences.len()));
        let number = |number: usize| u32::try_from(number).map_err(Error::wrap);
        for (i, sequence) in sequences.iter().enumerate() {
            let (q, k) = (&sequence.queries, &sequence.keys);
            if k.len() < q.len() {
                bail!("internal: a sequence of {} queries and {} keys", q.len(), k.len());
            }
            for start in [q.start, q.len(), k.start, k.len()] {
                table.push(number(start)?);
            }
            // Those with the most keys first: the last blocks to end are then short ones.
            for first in (0..q.len()).step_by(sizes.queries).rev() {
                queries.extend([number(i)?, number(first)?]);
            }
            for first in (0..k.len()).step_by(sizes.keys) {
                keys.extend([number(i)?, number(first)?]);
            }
            tokens = tokens.max(q.end);
            key_rows = key_rows.max(k.end);
            lengths.push((q.len(), k.len()));
        }
        Ok(Tiles {
            query_blocks: number(queries.len() / 2)?,
            key_blocks: number(keys.len() / 2)?,
            sequences: self.gpu.upload_numbers(&table)?,
            queries: self.gpu.upload_numbers(&queries)?,
            keys: self.gpu.upload_numbers(&keys)?,
            tokens,
            key_rows,
            lengths,
        })
    }

    /// The twin of [`crate::ops::attention::attention`] for `qkv: [m, (heads + 2·kv)·d]`: its output `[m, heads·d]`, and the
    /// log-sums `[m, heads]` in `f32`. With a cache, keys and values are those of all tokens so far of layer `index`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn attention(
        &self,
        shape: AttentionShape,
        qkv: &Rows,
        tiles: &Tiles,
        cache: Option<(&KeyValueMemory, usize)>,
    ) -> Result<(Rows, Memory)> {
        let own = self.own(shape, qkv);
        match cache {
            None => self.attend(shape, qkv, tiles, own),
            Some((cache, index)) => cache.append(self, index, own, |all| self.attend(shape, qkv, tiles, all)),
        }
    }

    /// As [`Self::attention`], of the queries in `qkv` and the keys and values in other rows of that width.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn attention_to(
        &self,
        shape: AttentionShape,
        qkv: &Rows,
        others: &Rows,
        tiles: &Tiles,
    ) -> Result<(Rows, Memory)> {
        self.attend(shape, qkv, tiles, self.own(shape, others))
    }

    fn attend(&self, shape: AttentionShape, qkv: &Rows, tiles: &Tiles, kv: KeysValues) -> Result<(Rows, Memory)> {
        let sizes = sizes(shape.head_dim, self.compute)?;
        if qkv.columns != shape.width() || qkv.rows < tiles.tokens || kv.keys.rows < tiles.key_rows {
            bail!("internal: rows of {} do not fit {shape:?}", qkv.columns);
        }
        let out = self.rows(qkv.rows, shape.heads * shape.head_dim)?;
        let log_sums = self.gpu.allocate(4 * qkv.rows.max(self.capacity) * shape.heads)?;
        let mut arguments = self.inputs(shape, qkv, kv, &[address(&out.memory), address(&log_sums)]);
        arguments.extend([address(&tiles.sequences), address(&tiles.queries)]);
        arguments.extend([size(qkv.columns)?, size(kv.keys.stride)?]);
        arguments.extend(last(shape)?);
        let grid = [tiles.query_blocks, heads(shape.heads)?, 1];
        let program = programs::attention(shape.head_dim, shape.is_plain());
        let kv_numbers = 2 * kv.keys.rows * kv.keys.columns;
        let numbers = kv_numbers + 2 * out.rows * out.columns;
        let work = self.attention_work(shape, tiles, 2, numbers, out.rows);
        self.launch(&program, "attention", (grid, sizes.threads), sizes.bytes(0), &arguments, work)?;
        Ok((out, log_sums))
    }

    /// The gradient of rotated queries, rotated keys, and values, `[m, (heads + 2·kv)·d]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn attention_backward(
        &self,
        shape: AttentionShape,
        qkv: &Rows,
        tiles: &Tiles,
        (out, log_sums): (&Rows, &Memory),
        d_out: &Rows,
    ) -> Result<Rows> {
        let sizes = sizes(shape.head_dim, self.compute)?;
        let program = programs::attention(shape.head_dim, shape.is_plain());
        let delta = self.gpu.allocate(4 * qkv.rows.max(self.capacity) * shape.heads)?;
        let d_qkv = self.rows(qkv.rows, qkv.columns)?;
        let rows = u32::try_from(out.rows).map_err(Error::wrap)?;
        let arguments = [address(&out.memory), address(&d_out.memory), address(&delta), size(shape.heads)?];
        let work = self.attention_work(shape, tiles, 0, 2 * out.rows * out.columns, out.rows);
        self.launch(&program, "attention_delta", ([rows, 1, 1], DELTA_THREADS), 0, &arguments, work)?;

        let (own, into) = (self.own(shape, qkv), self.own(shape, &d_qkv));
        let common = [address(&d_out.memory), address(log_sums), address(&delta)];
        let strides = [size(qkv.columns)?, size(qkv.columns)?, size(qkv.columns)?];

        let mut arguments = self.inputs(shape, qkv, own, &common);
        arguments.extend([address(&d_qkv.memory), address(&tiles.sequences), address(&tiles.queries)]);
        arguments.extend(strides);
        arguments.extend(last(shape)?);
        let grid = [tiles.query_blocks, heads(shape.heads)?, 1];
        let name = "attention_backward_queries";
        let queries = out.rows * out.columns;
        // Scores, their gradients, and what these pull back to queries.
        let work = self.attention_work(shape, tiles, 3, qkv.rows * qkv.columns + 2 * queries, 2 * out.rows);
        self.launch(&program, name, (grid, sizes.threads), sizes.bytes(1), &arguments, work)?;

        let mut arguments = self.inputs(shape, qkv, own, &common);
        arguments.extend([Argument::Address(into.keys.address), Argument::Address(into.values.address)]);
        arguments.extend([address(&tiles.sequences), address(&tiles.keys)]);
        arguments.extend(strides);
        arguments.extend(last(shape)?);
        let grid = [tiles.key_blocks, heads(shape.kv_heads)?, 1];
        let keys_values = qkv.rows * qkv.columns - queries;
        // Scores, their gradients, and what these pull back to keys and to values.
        let work = self.attention_work(shape, tiles, 4, qkv.rows * qkv.columns + queries + keys_values, 2 * out.rows);
        self.launch(&program, "attention_backward_keys", (grid, sizes.threads), sizes.bytes(2), &arguments, work)?;
        Ok(d_qkv)
    }

    /// So many products over all pairs of a query and a key; so many activations, and `f32` sums of rows for each head.
    fn attention_work(&self, shape: AttentionShape, tiles: &Tiles, products: u64, numbers: usize, rows: usize) -> Work {
        let flop = products * 2 * tiles.pairs(shape.window) * (shape.heads * shape.head_dim) as u64;
        Work { bytes: (numbers * self.compute.bytes() + 4 * rows * shape.heads) as u64, flop }
    }

    /// Keys and values of rows that hold queries, keys and values.
    fn own(&self, shape: AttentionShape, qkv: &Rows) -> KeysValues {
        let (queries, width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        KeysValues {
            keys: qkv.matrix(self.compute, queries, width),
            values: qkv.matrix(self.compute, queries + width, width),
        }
    }

    /// Queries, keys, values, and what follows.
    #[expect(clippy::unused_self, reason = "reads as the others")]
    fn inputs(&self, _: AttentionShape, qkv: &Rows, kv: KeysValues, then: &[Argument]) -> Vec<Argument> {
        let mut arguments =
            vec![address(&qkv.memory), Argument::Address(kv.keys.address), Argument::Address(kv.values.address)];
        arguments.extend_from_slice(then);
        arguments
    }
}

/// What all kernels end with: heads, query heads of a head of keys, and what becomes of scores: `Inputs` of
/// `attention_common.cuh` has what `unit` and `power` are.
fn last(shape: AttentionShape) -> Result<[Argument; 6]> {
    let AttentionShape { heads, kv_heads, scale, softcap, window, .. } = shape;
    if window == Some(0) || softcap.is_some_and(|cap| !(cap > 0.0 && cap.is_finite())) {
        bail!("internal: attention with a window of {window:?} keys and a cap of {softcap:?}");
    }
    let power = softcap.map_or(0.0, |cap| (2.0 * std::f64::consts::LOG2_E * f64::from(scale) / f64::from(cap)) as f32);
    let window = window.and_then(|window| u32::try_from(window).ok()).map_or(NO_WINDOW, |window| window.min(NO_WINDOW));
    Ok([
        size(heads)?,
        size(heads / kv_heads)?,
        Argument::F32(scale),
        Argument::F32(softcap.unwrap_or(scale)),
        Argument::F32(power),
        Argument::U32(window),
    ])
}

fn heads(heads: usize) -> Result<u32> {
    u32::try_from(heads).map_err(Error::wrap)
}

impl KeyValueMemory {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: RefCell::new((0..layers).map(|_| None).collect()) }
    }

    /// Appends keys and values to a layer's, and calls `f` with all so far.
    fn append<R>(
        &self,
        cuda: &Cuda,
        layer: usize,
        new: KeysValues,
        f: impl FnOnce(KeysValues) -> Result<R>,
    ) -> Result<R> {
        let mut layers = self.layers.borrow_mut();
        let Some(cached) = layers.get_mut(layer) else { bail!("internal: no cache for layer {layer}") };
        let (width, number) = (new.keys.columns, cuda.compute.number());
        let tokens = cached.as_ref().map_or(0, |cached| cached.tokens) + new.keys.rows;
        if cached.as_ref().is_none_or(|cached| cached.capacity < tokens) {
            let capacity = tokens.next_power_of_two().max(64);
            let bytes = capacity * width * number.bytes();
            let (keys, values) = (cuda.gpu.allocate(bytes)?, cuda.gpu.allocate(bytes)?);
            let mut before = 0;
            if let Some(old) = cached.take() {
                let bytes = old.tokens * width * number.bytes();
                keys.copy_from(0, &old.keys, bytes)?;
                values.copy_from(0, &old.values, bytes)?;
                before = old.tokens;
            }
            *cached = Some(Cached { keys, values, tokens: before, capacity });
        }
        let Some(cached) = cached else { bail!("internal: no cache") };
        cuda.copy_columns(new.keys, &cached.keys, cached.tokens)?;
        cuda.copy_columns(new.values, &cached.values, cached.tokens)?;
        cached.tokens = tokens;
        let all =
            |memory: &Memory| Matrix { address: memory.address(), rows: tokens, columns: width, stride: width, number };
        f(KeysValues { keys: all(&cached.keys), values: all(&cached.values) })
    }
}

/// That there are kernels for heads of this width.
pub(super) fn check_width(head_dim: usize, compute: Compute) -> Result<()> {
    sizes(head_dim, compute).map(|_| ())
}

/// As the head of `attention.cu` says.
fn sizes(head_dim: usize, compute: Compute) -> Result<Sizes> {
    if head_dim == 0 || head_dim > 256 || !head_dim.is_multiple_of(2) {
        bail!("attention on a GPU: heads of {head_dim} numbers are not supported: expected an even number up to 256");
    }
    let padded = head_dim.next_multiple_of(16);
    Ok(match compute {
        Compute::F32 => {
            let rows = if padded <= 128 { 32 } else { 16 };
            let streamed = if padded <= 96 { 32 } else { 16 };
            let (row_bytes, weight_bytes) = (4 * (padded + 4), 4 * rows * (streamed + 4));
            let forward = row_bytes * (rows + 2 * streamed) + weight_bytes;
            let backward = row_bytes * (2 * rows + 2 * streamed) + 2 * weight_bytes;
            Sizes { queries: rows, keys: rows, threads: 256, shared_bytes: [forward, backward, backward] }
        }
        Compute::Bf16 => {
            // Up to this width, what a block owns stays in registers.
            let kept = padded <= 128;
            let (queries, keys) = (if padded <= 64 { 128 } else { 64 }, 64);
            let forward_keys = if kept { 64 } else { 32 };
            let streamed = match padded {
                0..=64 => 64,
                65..=128 => 32,
                _ => 16,
            };
            let row_bytes = 2 * (padded + 8);
            let forward = if kept { forward_keys + queries.max(forward_keys) } else { 2 * forward_keys + queries };
            let backward = |owned: usize| {
                if kept { (2 * owned).max(4 * streamed) } else { 2 * owned + 4 * streamed }
            };
            let shared_bytes = [forward, backward(queries), backward(keys)].map(|rows| row_bytes * rows);
            Sizes { queries, keys, threads: 128, shared_bytes }
        }
    })
}
