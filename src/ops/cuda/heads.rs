//! Heads of queries and keys on a GPU, in rows `[q, k, v]`: their norms, and their rotation.

use super::programs;
use super::rows::{Cuda, Rows, address, on_gpu, size};
use crate::device::Memory;
use crate::device::driver::Argument;
use crate::ops::{AttentionShape, FrozenVector, RopeTable};
use candle_core::{Result, bail};

/// Cosines and sines for the tokens of a batch, and factors of their queries.
#[derive(Debug)]
pub struct RopeMemory {
    cos: Memory,
    sin: Memory,
    query_factors: Option<Memory>,
    half: usize,
    tokens: usize,
    interleaved: bool,
}

impl Cuda {
    /// Cosines, sines and factors on the GPU.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn rope(&self, table: &RopeTable, tokens: usize) -> Result<RopeMemory> {
        let ((cos, sin), factors) = (table.numbers(), table.query_factors());
        let half = cos.len() / tokens.max(1);
        if factors.is_some_and(|factors| factors.len() != tokens) {
            bail!("internal: factors of queries for another number of tokens than {tokens}");
        }
        let query_factors = factors.map(|factors| self.gpu.upload_numbers(factors)).transpose()?;
        let (cos, sin) = (self.gpu.upload_numbers(cos)?, self.gpu.upload_numbers(sin)?);
        Ok(RopeMemory { cos, sin, query_factors, half, tokens, interleaved: table.is_interleaved() })
    }

    /// Rotates queries and keys in place by the tokens' positions, or `back`: the twin of [`RopeTable::rotate`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn rotate(&self, qkv: &Rows, rope: &RopeMemory, shape: AttentionShape, back: bool) -> Result<()> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        if qkv.columns != shape.width() || 2 * rope.half > head_dim || rope.tokens < qkv.rows {
            bail!("internal: rows of {} are not rotated by {} numbers of {shape:?}", qkv.columns, 2 * rope.half);
        }
        let arguments = [
            address(&qkv.memory),
            address(&rope.cos),
            address(&rope.sin),
            Argument::Address(rope.query_factors.as_ref().map_or(0, Memory::address)),
            size(qkv.columns)?,
            size(heads)?,
            size(heads + kv_heads)?,
            size(head_dim)?,
            size(rope.half)?,
            Argument::F32(if back { -1.0 } else { 1.0 }),
        ];
        let passing = if rope.query_factors.is_some() { heads * (head_dim - 2 * rope.half) } else { 0 };
        let touched = (heads + kv_heads) * 2 * rope.half + passing;
        let (program, kernel) =
            if rope.interleaved { (programs::families(), "rope_neighbours") } else { (programs::rows(), "rope") };
        self.each_row(&program, kernel, (qkv.rows, touched), 2, &arguments)
    }

    /// Rows with queries and keys normalized: by head where the weights have a head's width, over all heads where they have all
    /// heads'. The twin of [`crate::ops::normalize_heads`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn normalize_heads(
        &self,
        qkv: &Rows,
        shape: AttentionShape,
        query: &FrozenVector,
        key: &FrozenVector,
        epsilon: f64,
    ) -> Result<Rows> {
        let y = self.rows(qkv.rows, qkv.columns)?;
        let arguments = head_norm_arguments(qkv, shape, (query, key), &y, epsilon)?;
        self.each_row(&programs::families(), "head_norm", (qkv.rows, qkv.columns), 2, &arguments)?;
        Ok(y)
    }

    /// Overwrites the gradient of [`Self::normalize_heads`]' output with that of its input.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn normalize_heads_backward(
        &self,
        qkv: &Rows,
        shape: AttentionShape,
        query: &FrozenVector,
        key: &FrozenVector,
        epsilon: f64,
        d_qkv: &Rows,
    ) -> Result<()> {
        let arguments = head_norm_arguments(qkv, shape, (query, key), d_qkv, epsilon)?;
        let touched = (shape.heads + shape.kv_heads) * shape.head_dim;
        self.each_row(&programs::families(), "head_norm_backward", (qkv.rows, touched), 3, &arguments)
    }
}

fn head_norm_arguments(
    qkv: &Rows,
    shape: AttentionShape,
    (query, key): (&FrozenVector, &FrozenVector),
    other: &Rows,
    epsilon: f64,
) -> Result<[Argument; 10]> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let runs = [query, key].map(|weight| weight.numbers().len());
    let fit = [(runs[0], queries), (runs[1], keys)].iter().all(|(run, all)| run == all || *run == head_dim);
    if !fit || [qkv.columns, other.columns] != [shape.width(); 2] || qkv.rows != other.rows {
        bail!("internal: weights of {runs:?} numbers and rows of {} are none of {shape:?}", qkv.columns);
    }
    Ok([
        address(&qkv.memory),
        on_gpu(query, runs[0])?,
        on_gpu(key, runs[1])?,
        address(&other.memory),
        size(queries)?,
        size(keys)?,
        size(runs[0])?,
        size(runs[1])?,
        size(qkv.columns)?,
        Argument::F32(epsilon as f32),
    ])
}
