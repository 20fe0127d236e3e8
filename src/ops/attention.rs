//! Causal attention with grouped queries, in blocks of queries: never `[heads, t, t]` whole.
//!
//! Tokens attend within their segment only, so that several samples may share a row. Keys and values are read where they
//! are, never repeated for the query heads that share them. The backward pass computes the probabilities again.

use super::composed;
use super::cpu::{contiguous, with_slice};
use super::gemm::{Matrix, MatrixMut, Threads, gemm};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// Queries in a block: scores of `64 × t` numbers stay in the cache.
const BLOCK: usize = 64;

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

pub(super) struct CausalAttention {
    shape: AttentionShape,
    /// `[b, keys]`
    segments: Arc<[u32]>,
    batch: usize,
    queries: usize,
    keys: usize,
}

/// `softmax(q·kᵀ/√d + mask)·v` for each head: `q: [b, t, heads·d]`, `k`, `v`: `[b, keys, kv_heads·d]`, `f32`, with
/// `keys ≥ t`; the queries are the last `t` tokens. `segments: [b, keys]`: a query sees the keys up to itself that are of its
/// own segment.
///
/// With `P` the probabilities and `dP = dO·Vᵀ`: `dS = P∘(dP - rowsum(P∘dP))`, `dQ = dS·K/√d`, `dK = dSᵀ·Q/√d`, `dV = Pᵀ·dO`.
///
/// # Errors
/// When shapes do not fit each other.
pub fn causal_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: AttentionShape,
    segments: &Arc<[u32]>,
) -> Result<Tensor> {
    let (batch, queries, width) = q.dims3()?;
    let (_, keys, kv_width) = k.dims3()?;
    let AttentionShape { heads, kv_heads, head_dim } = shape;
    let fits = width == heads * head_dim
        && kv_width == kv_heads * head_dim
        && k.dims() == v.dims()
        && k.dim(0)? == batch
        && kv_heads > 0
        && heads % kv_heads == 0
        && keys >= queries
        && segments.len() == batch * keys;
    if !fits {
        bail!("attention: q {:?}, k {:?}, v {:?} do not fit {shape:?}", q.shape(), k.shape(), v.shape());
    }
    let op = CausalAttention::new(shape, segments, (batch, queries, keys));
    if !q.device().is_cpu() {
        return composed::attention(q, k, v, &op.mask(q.device())?, shape);
    }
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// Buffers of one thread.
struct Scratch {
    probabilities: Vec<f32>,
    gradients: Vec<f32>,
}

impl CausalAttention {
    pub(super) fn new(
        shape: AttentionShape,
        segments: &Arc<[u32]>,
        (batch, queries, keys): (usize, usize, usize),
    ) -> Self {
        Self { shape, segments: segments.clone(), batch, queries, keys }
    }

    pub(super) fn mask(&self, device: &candle_core::Device) -> Result<Tensor> {
        let mut mask = vec![f32::NEG_INFINITY; self.batch * self.queries * self.keys];
        for (row, mask) in mask.chunks_exact_mut(self.keys).enumerate() {
            let (b, i) = (row / self.queries, row % self.queries);
            for (j, mask) in mask.iter_mut().enumerate() {
                if self.sees(b, i, j) {
                    *mask = 0.0;
                }
            }
        }
        Tensor::from_vec(mask, (self.batch, 1, self.queries, self.keys), device)
    }

    /// Where query `i` stands among the keys.
    const fn position(&self, i: usize) -> usize {
        self.keys - self.queries + i
    }

    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let segments = &self.segments[b * self.keys..(b + 1) * self.keys];
        j <= self.position(i) && segments[j] == segments[self.position(i)]
    }

    const fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    const fn kv_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    fn scratch(&self, backward: bool) -> Scratch {
        let size = BLOCK.min(self.queries) * self.keys;
        Scratch { probabilities: vec![0f32; size], gradients: vec![0f32; if backward { size } else { 0 }] }
    }

    fn queries_of<'a>(&self, q: &'a [f32], b: usize, head: usize, first: usize, count: usize) -> Matrix<'a> {
        let start = (b * self.queries + first) * self.width() + head * self.shape.head_dim;
        Matrix::strided(&q[start..], count, self.shape.head_dim, self.width())
    }

    fn keys_of<'a>(&self, k: &'a [f32], b: usize, kv_head: usize, count: usize) -> Matrix<'a> {
        let start = b * self.keys * self.kv_width() + kv_head * self.shape.head_dim;
        Matrix::strided(&k[start..], count, self.shape.head_dim, self.kv_width())
    }

    /// The blocks of queries: first query, how many, and how many keys the last of them sees.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.queries).step_by(BLOCK).map(|first| {
            let count = BLOCK.min(self.queries - first);
            (first, count, self.position(first + count - 1) + 1)
        })
    }

    /// Probabilities of a block, `[count, seen]`, in `scratch`.
    fn probabilities(
        &self,
        q: Matrix<'_>,
        k: Matrix<'_>,
        b: usize,
        (first, count, seen): (usize, usize, usize),
        out: &mut [f32],
    ) {
        let scale = 1.0 / (self.shape.head_dim as f32).sqrt();
        gemm(MatrixMut::dense(out, count, seen), q, k.t(), scale, false, Threads::One);
        let segments = &self.segments[b * self.keys..(b + 1) * self.keys];
        for (i, row) in out.chunks_exact_mut(seen).take(count).enumerate() {
            let position = self.position(first + i);
            let segment = segments[position];
            for (score, &other) in row[..=position].iter_mut().zip(segments) {
                if other != segment {
                    *score = f32::NEG_INFINITY;
                }
            }
            row[position + 1..].fill(f32::NEG_INFINITY);
            let max = row[..=position].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0f32;
            for score in &mut *row {
                *score = (*score - max).exp();
                sum += *score;
            }
            let inverse = 1.0 / sum;
            for p in row.iter_mut() {
                *p *= inverse;
            }
        }
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let panels: Vec<Vec<f32>> = (0..self.batch * heads)
            .into_par_iter()
            .map_init(
                || self.scratch(false),
                |scratch, task| {
                    let (b, head) = (task / heads, task % heads);
                    let kv_head = head / (heads / kv_heads);
                    let mut out = vec![0f32; self.queries * head_dim];
                    for (first, count, seen) in self.blocks() {
                        let p = &mut scratch.probabilities[..count * seen];
                        let keys = self.keys_of(k, b, kv_head, seen);
                        self.probabilities(self.queries_of(q, b, head, first, count), keys, b, (first, count, seen), p);
                        let dst = MatrixMut::dense(&mut out[first * head_dim..], count, head_dim);
                        let values = self.keys_of(v, b, kv_head, seen);
                        gemm(dst, Matrix::dense(p, count, seen), values, 1.0, false, Threads::One);
                    }
                    out
                },
            )
            .collect();
        interleave(&panels, heads, self.queries, head_dim)
    }

    /// Gradients of one key head and the query heads that share it: `dq` of each of them, `dk`, `dv`.
    fn backward_group(&self, inputs: [&[f32]; 4], b: usize, kv_head: usize, scratch: &mut Scratch) -> [Vec<f32>; 3] {
        let [q, k, v, dout] = inputs;
        let head_dim = self.shape.head_dim;
        let group = self.shape.heads / self.shape.kv_heads;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let panel = self.queries * head_dim;
        let mut dq = vec![0f32; group * panel];
        let (mut dk, mut dv) = (vec![0f32; self.keys * head_dim], vec![0f32; self.keys * head_dim]);
        for member in 0..group {
            let head = kv_head * group + member;
            for (first, count, seen) in self.blocks() {
                let q = self.queries_of(q, b, head, first, count);
                let (k, v) = (self.keys_of(k, b, kv_head, seen), self.keys_of(v, b, kv_head, seen));
                let dout = self.queries_of(dout, b, head, first, count);
                let p = &mut scratch.probabilities[..count * seen];
                let ds = &mut scratch.gradients[..count * seen];
                self.probabilities(q, k, b, (first, count, seen), p);
                gemm(MatrixMut::dense(ds, count, seen), dout, v.t(), 1.0, false, Threads::One);
                let p_matrix = Matrix::dense(p, count, seen);
                gemm(MatrixMut::dense(&mut dv, seen, head_dim), p_matrix.t(), dout, 1.0, true, Threads::One);
                for (ds, p) in ds.chunks_exact_mut(seen).zip(p.chunks_exact(seen)) {
                    let mean = super::cpu::sum_of_products(ds, p);
                    for (ds, p) in ds.iter_mut().zip(p) {
                        *ds = p * (*ds - mean);
                    }
                }
                let ds = Matrix::dense(ds, count, seen);
                let dq = MatrixMut::dense(&mut dq[member * panel + first * head_dim..], count, head_dim);
                gemm(dq, ds, k, scale, false, Threads::One);
                gemm(MatrixMut::dense(&mut dk, seen, head_dim), ds.t(), q, scale, true, Threads::One);
            }
        }
        [dq, dk, dv]
    }

    fn backward(&self, q: &[f32], k: &[f32], v: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let groups: Vec<[Vec<f32>; 3]> = (0..self.batch * kv_heads)
            .into_par_iter()
            .map_init(
                || self.scratch(true),
                |scratch, task| self.backward_group([q, k, v, dout], task / kv_heads, task % kv_heads, scratch),
            )
            .collect();
        let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
        for [q, k, v] in groups {
            dq.extend(q.chunks_exact(self.queries * head_dim).map(<[f32]>::to_vec));
            dk.push(k);
            dv.push(v);
        }
        [
            interleave(&dq, heads, self.queries, head_dim),
            interleave(&dk, kv_heads, self.keys, head_dim),
            interleave(&dv, kv_heads, self.keys, head_dim),
        ]
    }
}

/// From a panel `[t, d]` for each head of each row to `[b, t, heads·d]`.
fn interleave(panels: &[Vec<f32>], heads: usize, tokens: usize, head_dim: usize) -> Vec<f32> {
    let mut out = vec![0f32; panels.len() * tokens * head_dim];
    out.par_chunks_mut(heads * head_dim).enumerate().with_min_len(16).for_each(|(row, out)| {
        let (b, t) = (row / tokens, row % tokens);
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            out.copy_from_slice(&panels[b * heads + head][t * head_dim..(t + 1) * head_dim]);
        }
    });
    out
}

impl CustomOp3 for CausalAttention {
    fn name(&self) -> &'static str {
        "causal_attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = with_slice(q, |q| {
            with_slice(k, |k| with_slice(v, |v| with_slice(grad, |dout| Ok(self.backward(q, k, v, dout)))))
        })?;
        let device = q.device();
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), device)?),
            Some(Tensor::from_vec(dk, k.shape(), device)?),
            Some(Tensor::from_vec(dv, v.shape(), device)?),
        ))
    }
}
