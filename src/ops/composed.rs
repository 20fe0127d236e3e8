//! The same operations out of candle's differentiable ones: what the kernels are tested against. Slower, and hungrier for
//! memory. All `f32`.

use super::{Activation, AttentionShape, FrozenWeight};
use candle_core::{D, Result, Tensor};

/// `y = x · Wᵀ` for `x: [.., in]`, with the weight dequantized whole.
///
/// # Errors
/// When shapes do not fit.
pub fn linear(x: &Tensor, weight: &FrozenWeight) -> Result<Tensor> {
    x.broadcast_matmul(&weight.dequantize()?.detach().t()?)
}

/// `x / √(mean(x²) + ε) · w`
///
/// # Errors
/// When shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(variance + epsilon)?.sqrt()?)?.broadcast_mul(weight)
}

/// Normalizes runs of as many numbers as the weight has, of the last dimension.
///
/// # Errors
/// When shapes do not fit.
pub fn head_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    rms_norm(&x.reshape(((), weight.elem_count()))?, weight, epsilon)?.reshape(x.shape())
}

/// `c·tanh(x/c)`, or `x` without a cap.
///
/// # Errors
/// Never.
pub fn softcap(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    let Some(cap) = cap.map(f64::from) else { return Ok(x) };
    (x / cap)?.tanh()? * cap
}

/// `act(gate) · up`
///
/// # Errors
/// When shapes do not fit.
pub fn gate(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => gate.silu()? * up,
        Activation::GeluTanh => gate.gelu()? * up,
    }
}

/// Rotates the halves of the first `D` numbers of each head: `x: [b, t, h·d]`, `cos` and `sin`: `[b, t, D/2]`; then, for
/// queries, all are multiplied by `factors: [b, t, 1]`.
///
/// # Errors
/// When shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, factors: Option<&Tensor>, head_dim: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    let half = cos.dim(D::Minus1)?;
    let x = x.reshape((b, t, width / head_dim, head_dim))?;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let rest = x.narrow(D::Minus1, 2 * half, head_dim - 2 * half)?;
    let (cos, sin) = (cos.reshape((b, t, 1, half))?, sin.reshape((b, t, 1, half))?);
    let mut parts = vec![
        (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
        (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
    ];
    if rest.elem_count() > 0 {
        parts.push(rest);
    }
    let rotated = Tensor::cat(&parts, D::Minus1)?.reshape((b, t, width))?;
    factors.map_or(Ok(rotated.clone()), |factors| rotated.broadcast_mul(factors))
}

/// Attention with `[b, 1, t, k]` additive mask, which has the window; `q: [b, t, h·d]`, `k`, `v`: `[b, k, kv·d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    let keys = k.dim(1)?;
    let AttentionShape { heads, kv_heads, head_dim, scale, softcap: cap, .. } = shape;
    let q = q.reshape((b, t, heads, head_dim))?.transpose(1, 2)?.contiguous()?;
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = x.reshape((b, keys, kv_heads, head_dim))?.transpose(1, 2)?.unsqueeze(2)?;
        x.broadcast_as((b, kv_heads, heads / kv_heads, keys, head_dim))?
            .contiguous()?
            .reshape((b, heads, keys, head_dim))
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let scores = softcap((q.matmul(&k.t()?)? * f64::from(scale))?, cap)?;
    let probabilities = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, t, heads * head_dim))
}

/// What [`head`] gives.
#[derive(Debug)]
pub struct HeadPass {
    /// Of the targets, in nats.
    pub log_probabilities: Vec<f64>,
    /// Whether each is above all others.
    pub top1: Vec<bool>,
    /// The gradient of each token's cross-entropy, `[n, d]`.
    pub gradient: Tensor,
    /// Of the softmax over the largest logits, in nats; empty without `top_k`.
    pub entropies: Vec<f64>,
}

/// The head for `hidden: [n, d]` and logits under a cap, with the entropy of the `top_k` largest.
///
/// # Errors
/// When shapes do not fit.
pub fn head(
    hidden: &Tensor,
    head: &FrozenWeight,
    targets: &[u32],
    cap: Option<f32>,
    top_k: Option<usize>,
) -> Result<HeadPass> {
    let (mut found, mut top1, mut gradients, mut entropies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (i, targets) in targets.chunks(HEAD_CHUNK).enumerate() {
        let logits = softcap(linear(&hidden.narrow(0, i * HEAD_CHUNK, targets.len())?, head)?, cap)?;
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?;
        let index = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
        let picked = log_probabilities.gather(&index, 1)?;
        found.extend(picked.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from));
        for (logits, &target) in logits.to_vec2::<f32>()?.iter().zip(targets) {
            let target = target as usize;
            let others = logits[..target].iter().chain(&logits[target + 1..]);
            top1.push(others.into_iter().all(|other| logits[target] > *other));
            if let Some(k) = top_k {
                let mut sorted = logits.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                sorted.truncate(k);
                let p = candle_nn::ops::softmax(&Tensor::new(sorted.as_slice(), hidden.device())?, 0)?;
                entropies.push(-p.to_vec1::<f32>()?.iter().map(|&p| f64::from(p) * f64::from(p).ln()).sum::<f64>());
            }
        }
        let minus_one = Tensor::ones_like(&picked)?.neg()?;
        let mut pulled = log_probabilities.exp()?.scatter_add(&index, &minus_one, 1)?;
        if let Some(cap) = cap.map(f64::from) {
            pulled = (&pulled - (&pulled * (&logits / cap)?.sqr()?)?)?;
        }
        gradients.push(pulled.matmul(&head.dequantize()?)?);
    }
    Ok(HeadPass { log_probabilities: found, top1, gradient: Tensor::cat(&gradients, 0)?, entropies })
}

/// What [`divergences`] gives.
#[derive(Debug)]
pub struct Reference {
    /// `KL(reference ‖ hidden)` of each row over the whole vocabulary, in nats.
    pub divergences: Vec<f64>,
    /// Its gradient for `hidden`, `[n, d]`.
    pub gradient: Tensor,
}

/// How far the head's distributions for `hidden: [n, d]` are from those for `reference`.
///
/// # Errors
/// When shapes do not fit.
pub fn divergences(hidden: &Tensor, reference: &Tensor, head: &FrozenWeight) -> Result<Reference> {
    let (mut divergences, mut gradients) = (Vec::new(), Vec::new());
    let n = hidden.dim(0)?;
    for start in (0..n).step_by(HEAD_CHUNK) {
        let count = HEAD_CHUNK.min(n - start);
        let log_softmax = |of: &Tensor| candle_nn::ops::log_softmax(&linear(&of.narrow(0, start, count)?, head)?, 1);
        let (log_p, log_q) = (log_softmax(reference)?, log_softmax(hidden)?);
        let kl = (log_p.exp()? * (&log_p - &log_q)?)?.sum(1)?;
        divergences.extend(kl.to_vec1::<f32>()?.into_iter().map(f64::from));
        gradients.push((log_q.exp()? - log_p.exp()?)?.matmul(&head.dequantize()?)?);
    }
    Ok(Reference { divergences, gradient: Tensor::cat(&gradients, 0)? })
}

/// Tokens whose logits are held at a time.
const HEAD_CHUNK: usize = 256;
