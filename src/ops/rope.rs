//! Rotary position embeddings (arXiv 2104.09864), in the order of Hugging Face: the halves of a head are rotated, or those of
//! its first numbers.

use super::attention::AttentionShape;
use super::element::Element;
use super::simd::vectorized;
use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Cosines and sines for each token of a batch.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
    query_factors: Option<Arc<[f32]>>,
}

impl RopeTable {
    /// `cos` and `sin` of `position · frequency` for each position and each of the `D / 2` frequencies (radians per token),
    /// times `scale` (1 but for YaRN and `longrope`). `D`, at most `head_dim`, is how much of a head is rotated.
    pub fn new(position_ids: &[u32], frequencies: &[f32], scale: f32) -> Self {
        // The product is taken in f32, as transformers takes it; in f64 the angles of far positions would differ.
        let angles = || position_ids.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f));
        Self {
            cos: angles().map(|angle| angle.cos() * scale).collect(),
            sin: angles().map(|angle| angle.sin() * scale).collect(),
            half: frequencies.len(),
            query_factors: None,
        }
    }

    /// The table with a factor for each token's queries, by which they are multiplied after the rotation.
    #[must_use]
    pub fn with_query_factors(self, factors: Vec<f32>) -> Self {
        Self { query_factors: Some(factors.into()), ..self }
    }

    /// Cosines and sines, `[tokens, D / 2]` each.
    pub(super) fn numbers(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// A factor for each token's queries.
    pub fn query_factors(&self) -> Option<&[f32]> {
        self.query_factors.as_deref()
    }

    /// Cosines and sines, `[b, t, D / 2]`.
    ///
    /// # Errors
    /// When the table is for another number of tokens.
    pub fn tensors(&self, b: usize, t: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (b, t, self.half);
        Ok((Tensor::from_slice(&self.cos, shape, device)?, Tensor::from_slice(&self.sin, shape, device)?))
    }

    /// The factors of the queries, `[b, t, 1]`.
    ///
    /// # Errors
    /// When there are factors for another number of tokens.
    pub fn query_factor_tensor(&self, b: usize, t: usize, device: &Device) -> Result<Option<Tensor>> {
        self.query_factors().map(|factors| Tensor::from_slice(factors, (b, t, 1), device)).transpose()
    }

    /// Rotates queries and keys of each row `[q, k, v]` of `qkv: [tokens, width]` in place: with the halves `x₁` and `x₂` of the
    /// first `D` numbers of each head, `(x₁, x₂) -> (x₁·cos - x₂·sin, x₂·cos + x₁·sin)`. The other numbers of a head stay.
    /// Queries, all numbers of them, are then multiplied by the token's factor.
    ///
    /// # Panics
    /// When the table has fewer tokens, or heads are narrower than `D`: a bug of the caller.
    pub fn rotate<E: Element>(&self, qkv: &mut [E], shape: AttentionShape) {
        qkv.par_chunks_mut(shape.width()).enumerate().with_min_len(16).for_each(|(token, row)| {
            self.turn(token, row, shape, 1.0);
        });
    }

    /// The gradient: rotates queries and keys of one token's row `[q, k, ..]` by the opposite angles, and multiplies queries
    /// by the same factor.
    ///
    /// # Panics
    /// As [`Self::rotate`].
    pub fn rotate_back(&self, token: usize, row: &mut [f32], shape: AttentionShape) {
        self.turn(token, row, shape, -1.0);
    }

    fn turn<E: Element>(
        &self,
        token: usize,
        row: &mut [E],
        AttentionShape { heads, kv_heads, head_dim, .. }: AttentionShape,
        direction: f32,
    ) {
        let range = token * self.half..(token + 1) * self.half;
        let (cos, sin) = (&self.cos[range.clone()], &self.sin[range]);
        let (queries, rest) = row.split_at_mut(heads * head_dim);
        let keys = &mut rest[..kv_heads * head_dim];
        match &self.query_factors {
            None => rotate_heads(queries, head_dim, cos, sin, direction),
            Some(factors) => rotate_scaled(queries, head_dim, cos, sin, direction, factors[token]),
        }
        rotate_heads(keys, head_dim, cos, sin, direction);
    }
}

/// Rotates the first numbers of a head by the angles that are there.
#[inline(always)]
fn rotate_head<E: Element>(head: &mut [E], cos: &[f32], sin: &[f32], direction: f32, factor: f32) {
    let (first, second) = head[..2 * cos.len()].split_at_mut(cos.len());
    for (((x1, x2), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (a, b, sin) = (x1.to_f32(), x2.to_f32(), sin * direction);
        *x1 = E::from_f32((a * cos - b * sin) * factor);
        *x2 = E::from_f32((b * cos + a * sin) * factor);
    }
}

vectorized! {
    fn rotate_heads<E: Element>(heads: &mut [E], head_dim: usize, cos: &[f32], sin: &[f32], direction: f32) {
        for head in heads.chunks_exact_mut(head_dim) {
            rotate_head(head, cos, sin, direction, 1.0);
        }
    }
}

vectorized! {
    /// As [`rotate_heads`], and all numbers times a factor.
    fn rotate_scaled<E: Element>(heads: &mut [E], head_dim: usize, cos: &[f32], sin: &[f32], direction: f32, factor: f32) {
        for head in heads.chunks_exact_mut(head_dim) {
            rotate_head(head, cos, sin, direction, factor);
            for x in &mut head[2 * cos.len()..] {
                *x = E::from_f32(x.to_f32() * factor);
            }
        }
    }
}
