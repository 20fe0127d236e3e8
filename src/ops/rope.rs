//! Rotary position embeddings (arXiv 2104.09864), in the order of Hugging Face: the halves of a head are rotated.

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
}

impl RopeTable {
    /// `cos` and `sin` of `position · frequency` for each position and each of the `head_dim / 2` frequencies (radians per
    /// token), times `scale` (1 but for YaRN).
    pub fn new(position_ids: &[u32], frequencies: &[f32], scale: f32) -> Self {
        // The product is taken in f32, as transformers takes it; in f64 the angles of far positions would differ.
        let angles = || position_ids.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f));
        Self {
            cos: angles().map(|angle| angle.cos() * scale).collect(),
            sin: angles().map(|angle| angle.sin() * scale).collect(),
            half: frequencies.len(),
        }
    }

    /// Cosines and sines, `[tokens, head_dim / 2]` each.
    pub(super) fn numbers(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Cosines and sines, `[b, t, head_dim / 2]`.
    ///
    /// # Errors
    /// When the table is for another number of tokens.
    pub fn tensors(&self, b: usize, t: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (b, t, self.half);
        Ok((Tensor::from_slice(&self.cos, shape, device)?, Tensor::from_slice(&self.sin, shape, device)?))
    }

    /// Rotates the first `width` numbers of each row of `x` in place: `(x₁, x₂) -> (x₁·cos - x₂·sin, x₂·cos + x₁·sin)` for
    /// the halves of each head. Row `i` is token `i` of the table; rows lie `stride` apart.
    pub fn rotate<E: Element>(&self, x: &mut [E], stride: usize, width: usize) {
        x.par_chunks_mut(stride).enumerate().with_min_len(16).for_each(|(token, row)| {
            let (cos, sin) = self.of(token);
            rotate_row(&mut row[..width], cos, sin, 1.0);
        });
    }

    /// Rotates the heads of one token by the opposite angles: the gradient.
    pub fn rotate_back(&self, token: usize, row: &mut [f32]) {
        let (cos, sin) = self.of(token);
        rotate_row(row, cos, sin, -1.0);
    }

    fn of(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.half..(token + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

vectorized! {
    fn rotate_row<E: Element>(row: &mut [E], cos: &[f32], sin: &[f32], direction: f32) {
        for head in row.chunks_exact_mut(2 * cos.len()) {
            let (first, second) = head.split_at_mut(cos.len());
            for (((x1, x2), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (a, b, sin) = (x1.to_f32(), x2.to_f32(), sin * direction);
                *x1 = E::from_f32(a * cos - b * sin);
                *x2 = E::from_f32(b * cos + a * sin);
            }
        }
    }
}
