//! The same operations out of candle's differentiable ones, for devices without a kernel of ours.
//!
//! Slower and hungrier for memory than the kernels, and the reference that the CPU kernels are tested against.

use candle_core::{D, DType, Result, Tensor};

/// `y = x · Wᵀ` for a dense `W: [out, in]`, which gets no gradient of its own to keep.
pub(super) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, columns) = super::cpu::rows_and_columns(x.dims())?;
    let y = x.reshape((rows, columns))?.matmul(&weight.detach().t()?)?;
    y.reshape(super::frozen_matmul::with_last_dim(x.dims(), weight.dim(0)?))
}

/// `x / √(mean(x²) + ε) · w`
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(variance + epsilon)?.sqrt()?)?.broadcast_mul(weight)
}

/// `silu(gate) · up`
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

/// Rotates the halves of each head: `x: [b, t, h·d]`, `cos` and `sin`: `[b, t, d/2]`.
pub(super) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, head_dim: usize) -> Result<Tensor> {
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
pub(super) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: &Tensor,
    shape: super::AttentionShape,
) -> Result<Tensor> {
    let (b, t, _) = q.dims3()?;
    let keys = k.dim(1)?;
    let super::AttentionShape { heads, kv_heads, head_dim } = shape;
    let q = q.reshape((b, t, heads, head_dim))?.transpose(1, 2)?.contiguous()?;
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = x.reshape((b, keys, kv_heads, head_dim))?.transpose(1, 2)?.unsqueeze(2)?;
        x.broadcast_as((b, kv_heads, heads / kv_heads, keys, head_dim))?
            .contiguous()?
            .reshape((b, heads, keys, head_dim))
    };
    let (k, v) = (spread(k)?, spread(v)?);
    let scores = (q.matmul(&k.t()?)? * (1.0 / (head_dim as f64).sqrt()))?;
    let probabilities = candle_nn::ops::softmax(&scores.broadcast_add(&mask.to_dtype(DType::F32)?)?, D::Minus1)?;
    probabilities.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((b, t, heads * head_dim))
}
