//! Rotary position embeddings (arXiv 2104.09864), in the order of Hugging Face: the halves of a head are rotated.

use super::composed;
use super::cpu::{contiguous, with_slice};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
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

    pub(super) fn tensors(&self, b: usize, t: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let shape = (b, t, self.half);
        Ok((Tensor::from_slice(&self.cos, shape, device)?, Tensor::from_slice(&self.sin, shape, device)?))
    }
}

struct Rope(RopeTable);

/// Rotates each head of `x: [b, t, heads·d]`, `f32`: `(x₁, x₂) -> (x₁·cos - x₂·sin, x₂·cos + x₁·sin)` for the halves of a
/// head. The gradient is the rotation by the opposite angle.
///
/// # Errors
/// When the table is for another number of tokens, or the width no multiple of the head's.
pub fn rope(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    let (b, t, width) = x.dims3()?;
    if table.cos.len() != b * t * table.half || width % (2 * table.half) != 0 {
        bail!("rope: a table of {} tokens does not fit {:?}", table.cos.len() / table.half.max(1), x.shape());
    }
    if !x.device().is_cpu() {
        let (cos, sin) = table.tensors(b, t, x.device())?;
        return composed::rope(x, &cos, &sin, 2 * table.half);
    }
    x.contiguous()?.apply_op1(Rope(table.clone()))
}

impl Rope {
    fn rotate(&self, x: &[f32], width: usize, direction: f32) -> Vec<f32> {
        let half = self.0.half;
        let mut out = vec![0f32; x.len()];
        let tables = self.0.cos.par_chunks(half).zip(self.0.sin.par_chunks(half));
        let rows = out.par_chunks_mut(width).zip(x.par_chunks(width)).zip(tables);
        rows.with_min_len(16).for_each(|((out, x), (cos, sin))| {
            for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half)) {
                let ((out1, out2), (x1, x2)) = (out.split_at_mut(half), x.split_at(half));
                for i in 0..half {
                    let sin = sin[i] * direction;
                    out1[i] = x1[i] * cos[i] - x2[i] * sin;
                    out2[i] = x2[i] * cos[i] + x1[i] * sin;
                }
            }
        });
        out
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, width) = layout.shape().dims3()?;
        Ok((CpuStorage::F32(self.rotate(contiguous(storage, layout)?, width, 1.0)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, width) = x.dims3()?;
        let dx = with_slice(grad, |dy| Ok(self.rotate(dy, width, -1.0)))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
