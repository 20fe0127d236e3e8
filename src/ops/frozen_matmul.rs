//! Products with a frozen, quantized weight.
//!
//! Autograd of a plain `matmul` also computes the gradient of the frozen weight: a third of the arithmetic, for nothing.
//! Here the backward pass is `dX = dY·W` alone. The weight is dequantized panel by panel, so that no dense copy of a large
//! one is ever whole in memory, and the arithmetic is `f32` throughout (candle's own quantized product rounds the
//! activations to 8 bits).

use super::composed;
use super::cpu::{contiguous, rows_and_columns, with_slice};
use super::gemm::{Matrix, MatrixMut, Threads, gemm};
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0, BlockQ8_1,
    BlockQ8K,
};
use candle_core::quantized::{GgmlDType, GgmlType, QStorage, QTensor};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Numbers of a dequantized panel at most: 16 MiB of `f32`.
const PANEL: usize = 4 << 20;

/// Batches of at most so many rows go row by row through the weight, which never leaves the cache dequantized.
const FEW_ROWS: usize = 4;

/// A frozen matrix `[out, in]`, held in the type that it is stored in.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    tensor: Arc<QTensor>,
    rows: usize,
    columns: usize,
}

impl FrozenWeight {
    /// Takes a matrix `[out, in]` of any GGML type.
    ///
    /// # Errors
    /// When the tensor is no matrix.
    pub fn new(tensor: Arc<QTensor>) -> Result<Self> {
        let (rows, columns) = tensor.shape().dims2()?;
        Ok(Self { tensor, rows, columns })
    }

    /// A weight of this shape that holds nothing: for plans, which never multiply.
    ///
    /// # Errors
    /// Never on the CPU.
    pub fn hollow(rows: usize, columns: usize) -> Result<Self> {
        let tensor = QTensor::quantize(&Tensor::zeros((1, 1), DType::F32, &Device::Cpu)?, GgmlDType::F32)?;
        Ok(Self { tensor: Arc::new(tensor), rows, columns })
    }

    /// The same weight on another device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            return Ok(self.clone());
        }
        let storage = QStorage::from_data(self.tensor.data()?, device, self.dtype())?;
        Self::new(Arc::new(QTensor::new(storage, (self.rows, self.columns))?))
    }

    /// Whether all numbers of the weight are finite. CPU only.
    ///
    /// # Errors
    /// When the weight is on another device.
    pub fn is_finite(&self) -> Result<bool> {
        let mut finite = true;
        self.for_each_panel(|_, panel| {
            finite &= panel.par_chunks(1 << 14).all(|part| part.iter().all(|x| x.is_finite()));
            Ok(())
        })?;
        Ok(finite)
    }

    /// Outputs of the layer.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the layer.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The type that the weight is held in.
    pub fn dtype(&self) -> GgmlDType {
        self.tensor.dtype()
    }

    /// Bytes that the weight takes in memory.
    pub fn bytes(&self) -> usize {
        self.tensor.storage_size_in_bytes()
    }

    /// The matrix in `f32`, whole: for merging, for tests, and for devices without a kernel of ours.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn dequantize(&self, device: &Device) -> Result<Tensor> {
        self.tensor.dequantize(device)
    }

    /// The rows of the given numbers: `[..ids] -> [..ids, in]`, without a gradient.
    ///
    /// # Errors
    /// When an id is not below [`Self::rows`].
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        self.tensor.embedding(ids)
    }

    /// Writes some rows in `f32` to `out`, which holds `range.len() * in` numbers. CPU only.
    ///
    /// # Errors
    /// When the weight is on another device, or the range is not within it.
    pub fn dequantize_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let dtype = self.dtype();
        let data = self.tensor.data()?;
        let row_bytes = self.columns / dtype.block_size() * dtype.type_size();
        if range.end > self.rows || out.len() != range.len() * self.columns {
            bail!("rows {range:?} of a weight of {} do not fit {} numbers", self.rows, out.len());
        }
        let bytes = &data[range.start * row_bytes..range.end * row_bytes];
        match dtype {
            GgmlDType::F32 => to_float::<f32>(bytes, out),
            GgmlDType::F16 => to_float::<half::f16>(bytes, out),
            GgmlDType::BF16 => to_float::<half::bf16>(bytes, out),
            GgmlDType::Q4_0 => to_float::<BlockQ4_0>(bytes, out),
            GgmlDType::Q4_1 => to_float::<BlockQ4_1>(bytes, out),
            GgmlDType::Q5_0 => to_float::<BlockQ5_0>(bytes, out),
            GgmlDType::Q5_1 => to_float::<BlockQ5_1>(bytes, out),
            GgmlDType::Q8_0 => to_float::<BlockQ8_0>(bytes, out),
            GgmlDType::Q8_1 => to_float::<BlockQ8_1>(bytes, out),
            GgmlDType::Q2K => to_float::<BlockQ2K>(bytes, out),
            GgmlDType::Q3K => to_float::<BlockQ3K>(bytes, out),
            GgmlDType::Q4K => to_float::<BlockQ4K>(bytes, out),
            GgmlDType::Q5K => to_float::<BlockQ5K>(bytes, out),
            GgmlDType::Q6K => to_float::<BlockQ6K>(bytes, out),
            GgmlDType::Q8K => to_float::<BlockQ8K>(bytes, out),
        }
        Ok(())
    }

    /// Calls `f` with each panel of rows in `f32`, dequantized by all threads.
    ///
    /// # Errors
    /// What `f` returns.
    pub fn for_each_panel(&self, mut f: impl FnMut(Range<usize>, &[f32]) -> Result<()>) -> Result<()> {
        let panel_rows = (PANEL / self.columns.max(1)).clamp(1, self.rows.max(1));
        let mut panel = vec![0f32; panel_rows * self.columns];
        for start in (0..self.rows).step_by(panel_rows) {
            let range = start..(start + panel_rows).min(self.rows);
            let panel = &mut panel[..range.len() * self.columns];
            let slice_rows = panel_rows.div_ceil(4 * rayon::current_num_threads()).max(1);
            panel.par_chunks_mut(slice_rows * self.columns).enumerate().try_for_each(|(i, out)| {
                let first = range.start + i * slice_rows;
                self.dequantize_rows(first..first + out.len() / self.columns, out)
            })?;
            f(range, panel)?;
        }
        Ok(())
    }

    /// `out[m, rows] = x[m, in] · Wᵀ`, overwriting `out`.
    pub(super) fn forward_into(&self, x: &[f32], m: usize, out: &mut [f32]) -> Result<()> {
        let (n, k) = (self.rows, self.columns);
        if m <= FEW_ROWS {
            return self.forward_few_rows(x, m, out);
        }
        self.for_each_panel(|range, panel| {
            let dst = MatrixMut::strided(&mut out[range.start..], m, range.len(), n);
            gemm(dst, Matrix::dense(x, m, k), Matrix::dense(panel, range.len(), k).t(), 1.0, false, Threads::All);
            Ok(())
        })
    }

    /// A row of the weight at a time, dequantized into the cache: what token-by-token generation needs.
    fn forward_few_rows(&self, x: &[f32], m: usize, out: &mut [f32]) -> Result<()> {
        let (n, k) = (self.rows, self.columns);
        let slice_rows = n.div_ceil(8 * rayon::current_num_threads()).max(1);
        let parts = (0..n.div_ceil(slice_rows))
            .into_par_iter()
            .map(|part| {
                let range = part * slice_rows..((part + 1) * slice_rows).min(n);
                let mut row = vec![0f32; k];
                let mut dots = Vec::with_capacity(range.len() * m);
                for i in range {
                    self.dequantize_rows(i..i + 1, &mut row)?;
                    dots.extend((0..m).map(|b| super::cpu::sum_of_products(&x[b * k..(b + 1) * k], &row)));
                }
                Ok(dots)
            })
            .collect::<Result<Vec<_>>>()?;
        for (i, dots) in parts.iter().flat_map(|part| part.chunks_exact(m)).enumerate() {
            for (b, &dot) in dots.iter().enumerate() {
                out[b * n + i] = dot;
            }
        }
        Ok(())
    }

    /// `dx[m, in] = dy[m, rows] · W`, overwriting `dx`.
    pub(super) fn backward_into(&self, dy: &[f32], m: usize, dx: &mut [f32]) -> Result<()> {
        let (n, k) = (self.rows, self.columns);
        self.for_each_panel(|range, panel| {
            let lhs = Matrix::strided(&dy[range.start..], m, range.len(), n);
            let rhs = Matrix::dense(panel, range.len(), k);
            gemm(MatrixMut::dense(dx, m, k), lhs, rhs, 1.0, range.start > 0, Threads::All);
            Ok(())
        })
    }
}

fn to_float<T: GgmlType>(bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.len() / size_of::<T>();
    assert!(bytes.as_ptr().cast::<T>().is_aligned() && blocks * T::BLCK_SIZE == out.len(), "blocks do not fit");
    // SAFETY: `bytes` is the storage of a Vec<T> inside a QTensor, cut at block borders; alignment and length are checked
    // above, and every bit pattern is a valid block (integers and half floats).
    #[expect(unsafe_code, reason = "candle hands out the blocks of a tensor as bytes only")]
    let blocks = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<T>(), blocks) };
    T::to_float(blocks, out);
}

struct FrozenMatmul(FrozenWeight);

/// `y = x · Wᵀ` for `x: [.., in]`, `f32`; the gradient is `dx = dy · W`. `W` gets none.
///
/// # Errors
/// When the last dimension of `x` is not the weight's, or `x` is not `f32`.
pub fn frozen_matmul(x: &Tensor, weight: &FrozenWeight) -> Result<Tensor> {
    check_input(x, weight)?;
    if !x.device().is_cpu() {
        return composed::linear(x, &weight.dequantize(x.device())?);
    }
    x.contiguous()?.apply_op1(FrozenMatmul(weight.clone()))
}

pub(super) fn check_input(x: &Tensor, weight: &FrozenWeight) -> Result<()> {
    let (_, columns) = rows_and_columns(x.dims())?;
    if columns != weight.columns || x.dtype() != DType::F32 {
        bail!("a weight of {} inputs was given {:?} of {:?}", weight.columns, x.shape(), x.dtype());
    }
    Ok(())
}

/// The dimensions of `x` with the last one replaced.
pub(super) fn with_last_dim(dims: &[usize], last: usize) -> Shape {
    let mut dims = dims.to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    Shape::from(dims)
}

impl CustomOp1 for FrozenMatmul {
    fn name(&self) -> &'static str {
        "frozen_matmul"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let (m, _) = rows_and_columns(layout.dims())?;
        let mut out = vec![0f32; m * self.0.rows];
        self.0.forward_into(x, m, &mut out)?;
        Ok((CpuStorage::F32(out), with_last_dim(layout.dims(), self.0.rows)))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (m, k) = rows_and_columns(x.dims())?;
        let dx = with_slice(grad, |dy| {
            let mut dx = vec![0f32; m * k];
            self.0.backward_into(dy, m, &mut dx)?;
            Ok(dx)
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
