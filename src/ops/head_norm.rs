//! Root-mean-square normalization of queries and keys, of each head by itself (`qwen3`, `gemma3`) or of all heads together
//! (`olmo2`).

use super::attention::AttentionShape;
use super::element::Element;
use super::rms_norm::{inverse_root, slopes};
use super::simd::vectorized;
use rayon::prelude::*;

/// What queries and keys are normalized with: `x / √(mean(x²) + ε) · w` over runs of as many numbers as a weight has, those of a
/// head or of all heads.
#[derive(Debug, Clone, Copy)]
pub struct HeadNorms<'a> {
    /// The weight of the queries, `[d]` or `[heads·d]`.
    pub query: &'a [f32],
    /// The weight of the keys, `[d]` or `[kv_heads·d]`.
    pub key: &'a [f32],
    /// ε
    pub epsilon: f64,
}

/// Rows `[q, k, v]` of `qkv` with queries and keys normalized, to `y`; both `[m, (heads + 2·kv_heads)·d]`. Values are copied.
///
/// # Panics
/// When shapes do not fit: a bug of the caller.
pub fn normalize_heads<E: Element>(qkv: &[E], shape: AttentionShape, norms: HeadNorms<'_>, y: &mut [E]) {
    let (queries, keys) = columns(shape, norms);
    let width = shape.width();
    y.par_chunks_mut(width).zip(qkv.par_chunks(width)).with_min_len(16).for_each(|(y, x)| {
        normalize(&x[..queries], norms.query, norms.epsilon, &mut y[..queries]);
        normalize(&x[queries..keys], norms.key, norms.epsilon, &mut y[queries..keys]);
        y[keys..].copy_from_slice(&x[keys..]);
    });
}

/// The gradient of [`normalize_heads`], in place: `d_qkv` holds that of `y`, and gets that of `qkv`: with `g = dy∘w` and
/// `s = 1/√(mean(x²) + ε)`, `s·g - x·s³·mean(g∘x)` over each run. That of the values stays. The weights are frozen.
///
/// # Panics
/// When shapes do not fit: a bug of the caller.
pub fn normalize_heads_backward<E: Element>(qkv: &[E], shape: AttentionShape, norms: HeadNorms<'_>, d_qkv: &mut [E]) {
    let (queries, keys) = columns(shape, norms);
    let width = shape.width();
    d_qkv.par_chunks_mut(width).zip(qkv.par_chunks(width)).with_min_len(16).for_each(|(d, x)| {
        pull(&x[..queries], norms.query, norms.epsilon, &mut d[..queries]);
        pull(&x[queries..keys], norms.key, norms.epsilon, &mut d[queries..keys]);
    });
}

/// Where the queries end in a row, and where the keys do.
fn columns(AttentionShape { heads, kv_heads, head_dim, .. }: AttentionShape, norms: HeadNorms<'_>) -> (usize, usize) {
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    for (weight, numbers) in [(norms.query, queries), (norms.key, keys)] {
        assert!(
            weight.len() == head_dim || weight.len() == numbers,
            "head norm: {} weights for heads of {head_dim}, {numbers} numbers together",
            weight.len()
        );
    }
    (queries, queries + keys)
}

vectorized! {
    /// Normalizes each run of as many numbers as the weight has.
    fn normalize<E: Element>(x: &[E], weight: &[f32], epsilon: f64, y: &mut [E]) {
        for (x, y) in x.chunks_exact(weight.len()).zip(y.chunks_exact_mut(weight.len())) {
            let scale = inverse_root(x, epsilon);
            for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
                *y = E::from_f32(x.to_f32() * scale * weight);
            }
        }
    }
}

vectorized! {
    /// The gradient of each run of `x` in the place of that of its norm.
    fn pull<E: Element>(x: &[E], weight: &[f32], epsilon: f64, d: &mut [E]) {
        for (x, d) in x.chunks_exact(weight.len()).zip(d.chunks_exact_mut(weight.len())) {
            let (scale, along) = slopes(x, weight, epsilon, d);
            for ((d, x), weight) in d.iter_mut().zip(x).zip(weight) {
                *d = E::from_f32(d.to_f32() * weight * scale - x.to_f32() * along);
            }
        }
    }
}
