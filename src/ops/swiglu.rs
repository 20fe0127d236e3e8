//! The gated activation of Llama's MLP (arXiv 2002.05202).

use super::composed;
use super::cpu::{contiguous, with_slice};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// Numbers that a thread takes at a time.
const CHUNK: usize = 1 << 14;

struct SwiGlu;

/// `y = silu(gate) · up`, elementwise, `f32`, with `silu(x) = x·σ(x)`.
///
/// `dup = dy·silu(gate)`, `dgate = dy·up·σ(gate)·(1 + gate·(1 - σ(gate)))`.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !gate.device().is_cpu() {
        return composed::swiglu(gate, up);
    }
    if gate.shape() != up.shape() {
        candle_core::bail!("swiglu: {:?} and {:?} differ", gate.shape(), up.shape());
    }
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let mut out = vec![0f32; gate.len()];
        out.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(
            |((out, gate), up)| {
                for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate * sigmoid(gate) * up;
                }
            },
        );
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let shape = gate.shape();
        let (dgate, dup) =
            with_slice(gate, |gate| with_slice(up, |up| with_slice(grad, |dy| Ok(backward(gate, up, dy)))))?;
        let device = grad.device();
        Ok((Some(Tensor::from_vec(dgate, shape, device)?), Some(Tensor::from_vec(dup, shape, device)?)))
    }
}

fn backward(gate: &[f32], up: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0f32; gate.len()], vec![0f32; gate.len()]);
    dgate
        .par_chunks_mut(CHUNK)
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)))
        .for_each(|(((dgate, dup), gate), (up, dy))| {
            for i in 0..gate.len() {
                let sigmoid = sigmoid(gate[i]);
                dup[i] = dy[i] * gate[i] * sigmoid;
                dgate[i] = dy[i] * up[i] * sigmoid * (1.0 + gate[i] * (1.0 - sigmoid));
            }
        });
    (dgate, dup)
}
