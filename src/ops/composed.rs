//! The same operations out of candle's differentiable ones: what the kernels are tested against. Slower, and hungrier for
//! memory. All `f32`.

use super::{AttentionShape, FrozenWeight};
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

/// `silu(gate) · up`
///
/// # Errors
/// When shapes do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// Rotates the halves of each head: `x: [b, t, h·d]`, `cos` and `sin`: `[b, t, d/2]`.
///
/// # Errors
/// When shapes do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    let half = head_dim / 2;
    let x = x.reshape((b, t, width / head_dim, head_dim))?;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let (cos, sin) = (cos.reshape((b, t, 1, half))?, sin.reshape((b, t, 1, half))?);
    let rotated = Tensor::cat(
        &[
            (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
            (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
        ],
        D::Minus1,
    )?;
    rotated.reshape((b, t, width))
}

/// Attention with `[b, 1, t, k]` additive mask; `q: [b, t, h·d]`, `k`, `v`: `[b, k, kv·d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: &Tensor, shape: AttentionShape) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    let keys = k.dim(1)?;
    let AttentionShape { heads, kv_heads, head_dim, scale, .. } = shape;
    let q = q.reshape((b, t, heads, head_dim))?.transpose(1, 2)?.contiguous()?;
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = x.reshape((b, keys, kv_heads, head_dim))?.transpose(1, 2)?.unsqueeze(2)?;
        x.broadcast_as((b, kv_heads, heads / kv_heads, keys, head_dim))?
            .contiguous()?
            .reshape((b, heads, keys, head_dim))
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let scores = (q.matmul(&k.t()?)? * f64::from(scale))?;
    let probabilities = candle_nn::ops::softmax(&scores.broadcast_add(mask)?, D::Minus1)?;
    probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, t, heads * head_dim))
}

/// The head: log-probabilities of the targets, whether each is above all others, and the gradient `[n, d]` of each token's
/// cross-entropy, for `hidden: [n, d]`.
///
/// # Errors
/// When shapes do not fit.
pub fn head(hidden: &Tensor, head: &FrozenWeight, targets: &[u32]) -> Result<(Vec<f64>, Vec<bool>, Tensor)> {
    let (mut found, mut top1, mut gradients) = (Vec::new(), Vec::new(), Vec::new());
    for (i, targets) in targets.chunks(HEAD_CHUNK).enumerate() {
        let logits = linear(&hidden.narrow(0, i * HEAD_CHUNK, targets.len())?, head)?;
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?;
        let index = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
        let picked = log_probabilities.gather(&index, 1)?;
        found.extend(picked.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from));
        for (logits, &target) in logits.to_vec2::<f32>()?.iter().zip(targets) {
            let target = target as usize;
            let others = logits[..target].iter().chain(&logits[target + 1..]);
            top1.push(others.into_iter().all(|other| logits[target] > *other));
        }
        let minus_one = Tensor::ones_like(&picked)?.neg()?;
        let pulled = log_probabilities.exp()?.scatter_add(&index, &minus_one, 1)?;
        gradients.push(pulled.matmul(&head.dequantize()?)?);
    }
    Ok((found, top1, Tensor::cat(&gradients, 0)?))
}

/// Tokens whose logits are held at a time.
const HEAD_CHUNK: usize = 256;
