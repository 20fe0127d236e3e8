//! Starting a backward pass from a gradient that is already known.

use super::cpu::with_slice;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

struct SeedGradient(Tensor);

/// A scalar whose backward pass hands `gradient` to `x`, exactly: `d/dx Σ x·gradient`, without the product.
///
/// The scalar's value is 0. candle's `backward` starts from ones only; this is how a layer's backward pass starts from the
/// gradient of its output.
///
/// # Errors
/// When the shapes differ.
pub fn seed_gradient(x: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    if x.shape() != gradient.shape() {
        bail!("a gradient of {:?} does not fit {:?}", gradient.shape(), x.shape());
    }
    if !x.device().is_cpu() {
        return (x * gradient.detach())?.sum_all();
    }
    x.apply_op1(SeedGradient(gradient.detach()))
}

impl CustomOp1 for SeedGradient {
    fn name(&self) -> &'static str {
        "seed_gradient"
    }

    fn cpu_fwd(&self, _storage: &CpuStorage, _layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(())))
    }

    fn bwd(&self, _x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        debug_assert!(with_slice(grad, |one| Ok(one == [1.0]))?);
        Ok(Some(self.0.clone()))
    }
}
