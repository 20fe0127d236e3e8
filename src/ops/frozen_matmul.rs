//! Products with a frozen, quantized weight as one operation of candle's graph: for devices without kernels of a whole layer.
//!
//! Autograd of a plain `matmul` also computes the gradient of the frozen weight, and keeps it. Here it is `dX = dY·W` alone.
//! The weight stays quantized: it is dequantized panel by panel, in `f32` or `bf16`, and sums are `f32` either way. What a
//! panel is and which part of the product it gives is decided here, for all devices; what dequantizes and multiplies is
//! [`PanelProduct`]: `cuda` has cuBLAS's, `cpu` its twin, by which this is tested without a GPU.

mod cpu;
#[cfg(test)]
mod tests;

use super::compute::Compute;
use super::frozen_weight::FrozenWeight;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use std::ops::Range;

/// Bytes of a dense panel: large enough for products to be fast, small beside any model.
const PANEL_BYTES: usize = 64 << 20;

/// `y = x · Wᵀ` for `x: [.., in]`, in `f32`. With [`Compute::Bf16`] both factors are rounded to it. `x` gets its gradient, the
/// weight none.
///
/// # Errors
/// When shapes or devices do not fit, `x` is not `f32`, or the device refuses.
pub fn frozen_matmul(x: &Tensor, weight: &FrozenWeight, compute: Compute) -> Result<Tensor> {
    FrozenMatmul::new(weight, compute, Direction::Forward).apply(x)
}

/// `dx = dy · W` for `dy: [.., out]`, in `f32`: the backward pass of [`frozen_matmul`] by itself.
///
/// # Errors
/// As [`frozen_matmul`].
pub fn frozen_matmul_backward(dy: &Tensor, weight: &FrozenWeight, compute: Compute) -> Result<Tensor> {
    FrozenMatmul::new(weight, compute, Direction::Backward).apply(dy)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// `[tokens, in] -> [tokens, out]`
    Forward,
    /// `[tokens, out] -> [tokens, in]`
    Backward,
}

/// The operation in a graph.
#[derive(Debug, Clone)]
struct FrozenMatmul {
    weight: FrozenWeight,
    compute: Compute,
    direction: Direction,
    panel_bytes: usize,
}

/// A device that holds a weight, a dense panel of it, an input `[tokens, ..]` and an output that starts with zeros or with
/// anything: what [`multiply`] asks of it.
pub(super) trait PanelProduct {
    /// Writes these rows of the weight, dense, row by row, to the panel.
    fn dequantize(&mut self, rows: Range<usize>) -> Result<()>;
    /// Multiplies the panel with the input.
    fn multiply(&mut self, product: Product) -> Result<()>;
}

/// One product, as BLAS takes it: `c = op(panel) · b` or `c += op(panel) · b`, all matrices column by column (what is
/// `[tokens, n]` by rows is `n × tokens` by columns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Product {
    /// Whether `op` transposes.
    pub transpose: bool,
    /// Rows of `op(panel)` and `c`.
    pub m: usize,
    /// Columns of `b` and `c`: tokens.
    pub n: usize,
    /// Columns of `op(panel)`, rows of `b`.
    pub k: usize,
    /// From a column of the panel to the next.
    pub panel_stride: usize,
    /// Where `b` starts in the input.
    pub input_offset: usize,
    /// From a column of the input to the next.
    pub input_stride: usize,
    /// Where `c` starts in the output.
    pub output_offset: usize,
    /// From a column of the output to the next.
    pub output_stride: usize,
    /// Whether it is added to what is there.
    pub add: bool,
}

/// The sizes of a product of a whole weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Rows of input and output.
    pub tokens: usize,
    /// Rows of the weight (`out`).
    pub rows: usize,
    /// Columns of the weight (`in`).
    pub columns: usize,
    /// The most rows of a panel.
    pub panel_rows: usize,
}

/// The whole product, panel by panel.
fn multiply(direction: Direction, sizes: Sizes, device: &mut impl PanelProduct) -> Result<()> {
    let Sizes { tokens, rows, columns, panel_rows } = sizes;
    for first in (0..rows).step_by(panel_rows) {
        let panel = first..(first + panel_rows).min(rows);
        let count = panel.len();
        device.dequantize(panel)?;
        // The panel is `columns × count` by columns.
        device.multiply(match direction {
            // Each panel gives some outputs.
            Direction::Forward => Product {
                transpose: true,
                m: count,
                n: tokens,
                k: columns,
                panel_stride: columns,
                input_offset: 0,
                input_stride: columns,
                output_offset: first,
                output_stride: rows,
                add: false,
            },
            // Each panel takes some outputs' gradients, and adds to those of all inputs.
            Direction::Backward => Product {
                transpose: false,
                m: columns,
                n: tokens,
                k: count,
                panel_stride: columns,
                input_offset: first,
                input_stride: rows,
                output_offset: 0,
                output_stride: columns,
                add: first > 0,
            },
        })?;
    }
    Ok(())
}

impl FrozenMatmul {
    fn new(weight: &FrozenWeight, compute: Compute, direction: Direction) -> Self {
        Self { weight: weight.clone(), compute, direction, panel_bytes: PANEL_BYTES }
    }

    fn apply(self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(self)
    }

    /// Numbers of a token, in and out.
    const fn widths(&self) -> (usize, usize) {
        match self.direction {
            Direction::Forward => (self.weight.columns(), self.weight.rows()),
            Direction::Backward => (self.weight.rows(), self.weight.columns()),
        }
    }

    /// The product's sizes and the output's shape, for an input of this layout.
    fn plan(&self, layout: &Layout) -> Result<(Sizes, Shape)> {
        let (inputs, outputs) = self.widths();
        let mut dims = layout.dims().to_vec();
        if !layout.is_contiguous() || dims.last() != Some(&inputs) {
            bail!("{}: expected a contiguous [.., {inputs}], got {layout:?}", self.name());
        }
        let tokens = layout.shape().elem_count() / inputs.max(1);
        dims.pop();
        dims.push(outputs);
        let panel_rows = (self.panel_bytes / self.compute.bytes() / self.weight.columns().max(1)).max(1);
        let (rows, columns) = (self.weight.rows(), self.weight.columns());
        Ok((Sizes { tokens, rows, columns, panel_rows: panel_rows.min(rows.max(1)) }, Shape::from(dims)))
    }
}

impl CustomOp1 for FrozenMatmul {
    fn name(&self) -> &'static str {
        match self.direction {
            Direction::Forward => "frozen_matmul",
            Direction::Backward => "frozen_matmul_backward",
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (sizes, shape) = self.plan(layout)?;
        let input = &storage.as_slice::<f32>()?[layout.start_offset()..][..layout.shape().elem_count()];
        let mut device = cpu::CpuPanels::new(&self.weight, self.compute, input, sizes, shape.elem_count());
        multiply(self.direction, sizes, &mut device)?;
        Ok((CpuStorage::F32(device.output), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (sizes, shape) = self.plan(layout)?;
        let input = super::cuda::Input { storage, layout };
        let mut device = super::cuda::CudaPanels::new(&self.weight, self.compute, input, sizes, shape.elem_count())?;
        if sizes.tokens > 0 {
            multiply(self.direction, sizes, &mut device)?;
        }
        Ok((device.into_output(), shape))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        bail!("{}: this binary was built without CUDA", self.name())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        // Linear both ways: what pulls one back is the other.
        let direction = match self.direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        let reverse = Self { direction, ..self.clone() };
        Ok(Some(gradient.detach().contiguous()?.apply_op1_no_bwd(&reverse)?))
    }
}
