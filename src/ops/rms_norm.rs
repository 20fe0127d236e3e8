//! Root mean square normalization (arXiv 1910.07467).

use super::composed;
use super::cpu::{contiguous, rows_and_columns, sum_of_products, with_slice};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

struct RmsNorm {
    weight: Arc<[f32]>,
    epsilon: f32,
}

/// `y = x / √(mean(x²) + ε) · w` over the last dimension of `x: [.., d]`, `f32`. The frozen `weight: [d]` gets no gradient.
///
/// With `n = 1/√(mean(x²) + ε)` and `g = dy·w`, the gradient is `dx = n·g - x·n³·mean(g·x)`.
///
/// # Errors
/// When the widths differ, or the types are not `f32`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return composed::rms_norm(x, &weight.detach(), epsilon);
    }
    let (_, columns) = rows_and_columns(x.dims())?;
    if weight.dims() != [columns] {
        candle_core::bail!("rms_norm: a weight of {:?} does not fit {:?}", weight.shape(), x.shape());
    }
    let weight = with_slice(weight, |weight| Ok(weight.into()))?;
    x.contiguous()?.apply_op1(RmsNorm { weight, epsilon: epsilon as f32 })
}

impl RmsNorm {
    fn inverse_norm(&self, x: &[f32]) -> f32 {
        1.0 / (sum_of_products(x, x) / x.len() as f32 + self.epsilon).sqrt()
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let columns = self.weight.len();
        let mut out = vec![0f32; x.len()];
        out.par_chunks_mut(columns).zip(x.par_chunks(columns)).with_min_len(16).for_each(|(out, x)| {
            let inverse = self.inverse_norm(x);
            for ((out, x), w) in out.iter_mut().zip(x).zip(&*self.weight) {
                *out = x * inverse * w;
            }
        });
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let columns = self.weight.len();
        let dx = with_slice(x, |x| {
            with_slice(grad, |dy| {
                let mut dx = vec![0f32; x.len()];
                let rows = dx.par_chunks_mut(columns).zip(x.par_chunks(columns)).zip(dy.par_chunks(columns));
                rows.with_min_len(16).for_each(|((dx, x), dy)| {
                    let inverse = self.inverse_norm(x);
                    for ((g, dy), w) in dx.iter_mut().zip(dy).zip(&*self.weight) {
                        *g = dy * w;
                    }
                    let mean = sum_of_products(dx, x) / columns as f32;
                    let pull = inverse * inverse * inverse * mean;
                    for (g, x) in dx.iter_mut().zip(x) {
                        *g = *g * inverse - x * pull;
                    }
                });
                Ok(dx)
            })
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
