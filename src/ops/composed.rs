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

#[cfg(test)]
mod tests {
    //! The kernels and the compositions must agree in value and gradient.

    use super::super::{self as ops, AttentionShape, FrozenWeight, LoraScale, RopeTable};
    use super::*;
    use crate::rng::Rng;
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Var};
    use std::sync::Arc;

    fn random(shape: &[usize], seed: u64) -> Tensor {
        let mut rng = Rng::new(seed);
        let numbers = (0..shape.iter().product()).map(|_| (rng.uniform() - 0.5) as f32).collect::<Vec<_>>();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    fn largest(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn agree(name: &str, inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor, g: &dyn Fn(&[Tensor]) -> Tensor) {
        let run = |h: &dyn Fn(&[Tensor]) -> Tensor| {
            let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
            let out = h(&variables.iter().map(|variable| variable.as_tensor().clone()).collect::<Vec<_>>());
            let store = (&out * random(out.dims(), 77)).unwrap().sum_all().unwrap().backward().unwrap();
            let gradients: Vec<Tensor> =
                variables.iter().map(|variable| store.get(variable).unwrap().clone()).collect();
            (out, gradients)
        };
        let ((a, da), (b, db)) = (run(f), run(g));
        assert!(largest(&a, &b) < 1e-5, "{name}: values differ by {}", largest(&a, &b));
        for (i, (da, db)) in da.iter().zip(&db).enumerate() {
            assert!(largest(da, db) < 1e-4, "{name}: gradient {i} differs by {}", largest(da, db));
        }
    }

    #[test]
    fn kernels_and_compositions_agree() {
        let x = random(&[2, 6, 32], 1);
        let tensor = QTensor::quantize(&random(&[24, 32], 2), GgmlDType::Q8_0).unwrap();
        let weight = FrozenWeight::new(Arc::new(tensor)).unwrap();
        let dense = weight.dequantize(&Device::Cpu).unwrap();
        let x1 = [x.clone()];
        agree("linear", &x1, &|x| ops::frozen_matmul(&x[0], &weight).unwrap(), &|x| linear(&x[0], &dense).unwrap());

        let lora = [x.clone(), random(&[4, 32], 3), random(&[24, 4], 4)];
        let fused = |x: &[Tensor]| ops::lora_linear(&x[0], &weight, &x[1], &x[2], LoraScale(2.0), None).unwrap();
        let apart = |x: &[Tensor]| {
            let update = linear_tracked(&linear_tracked(&x[0], &x[1]), &x[2]);
            (linear(&x[0], &dense).unwrap() + (update * 2.0).unwrap()).unwrap()
        };
        agree("lora", &lora, &fused, &apart);

        let norm = random(&[32], 5);
        let fused = |x: &[Tensor]| ops::rms_norm(&x[0], &norm, 1e-5).unwrap();
        agree("rms_norm", &x1, &fused, &|x| rms_norm(&x[0], &norm, 1e-5).unwrap());

        let two = [x.clone(), random(&[2, 6, 32], 6)];
        agree("swiglu", &two, &|x| ops::swiglu(&x[0], &x[1]).unwrap(), &|x| swiglu(&x[0], &x[1]).unwrap());

        let table = RopeTable::new(&[0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 9], &[1.0, 0.3, 0.1, 0.02], 1.0);
        let (cos, sin) = table.tensors(2, 6, &Device::Cpu).unwrap();
        agree("rope", &x1, &|x| ops::rope(&x[0], &table).unwrap(), &|x| rope(&x[0], &cos, &sin, 8).unwrap());
    }

    fn linear_tracked(x: &Tensor, weight: &Tensor) -> Tensor {
        x.broadcast_matmul(&weight.t().unwrap()).unwrap()
    }

    #[test]
    fn attention_agrees_with_its_composition() {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8 };
        let segments: Arc<[u32]> = [1, 1, 1, 2, 2, 0, 1, 1, 1, 1, 1, 1].into();
        let op = ops::attention::CausalAttention::new(shape, &segments, (2, 6, 6));
        let mask = op.mask(&Device::Cpu).unwrap();
        let inputs = [random(&[2, 6, 32], 1), random(&[2, 6, 16], 2), random(&[2, 6, 16], 3)];
        let fused = |x: &[Tensor]| ops::causal_attention(&x[0], &x[1], &x[2], shape, &segments).unwrap();
        agree("attention", &inputs, &fused, &|x| attention(&x[0], &x[1], &x[2], &mask, shape).unwrap());
    }

    #[test]
    fn the_head_agrees_with_its_composition() {
        let tensor = QTensor::quantize(&random(&[50, 32], 1), GgmlDType::F32).unwrap();
        let head = FrozenWeight::new(Arc::new(tensor)).unwrap();
        let (hidden, targets) = (random(&[5, 32], 2), [3, 49, 0, 7, 7]);
        let fused = ops::linear_cross_entropy(&hidden, &head, &targets, true).unwrap();
        let composed = ops::linear_cross_entropy::composed(&hidden, &head, &targets, true).unwrap();
        for (a, b) in fused.log_probabilities.iter().zip(&composed.log_probabilities) {
            assert!((a - b).abs() < 1e-5, "{a} is not {b}");
        }
        assert_eq!(fused.top1, composed.top1);
        assert!(largest(&fused.gradient.unwrap(), &composed.gradient.unwrap()) < 1e-5);
    }
}
