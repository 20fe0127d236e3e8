//! A frozen linear layer and its low-rank update as one operation.

use super::composed;
use super::cpu::{contiguous, rows_and_columns, with_slice};
use super::frozen_matmul::{FrozenWeight, check_input, with_last_dim};
use super::gemm::{Matrix, MatrixMut, Threads, gemm};
use crate::rng::mix;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// What the update is multiplied by: `lora_alpha / r`, or `lora_alpha / √r`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraScale(pub f32);

/// Dropout on the adapter's inputs whose mask is a function of its keys: the same when a layer is run again, and whichever
/// way a step is cut into micro-batches.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Share of the inputs that is zeroed; the others are divided by `1 - probability`.
    pub probability: f32,
    /// A key for each row (token) of the input.
    pub row_keys: Arc<[u64]>,
    /// A key for the layer.
    pub layer_key: u64,
}

impl Dropout {
    /// Multiplies `x: [rows, columns]` by the mask.
    fn apply(&self, x: &mut [f32], columns: usize) {
        let threshold = (f64::from(self.probability) * 2f64.powi(64)) as u64;
        let keep = 1.0 / (1.0 - self.probability);
        x.par_chunks_mut(columns).zip(&*self.row_keys).with_min_len(16).for_each(|(row, &row_key)| {
            let key = mix(row_key ^ self.layer_key);
            for (column, x) in row.iter_mut().enumerate() {
                *x *= if mix(key.wrapping_add(column as u64)) < threshold { 0.0 } else { keep };
            }
        });
    }
}

struct LoraLinear {
    weight: FrozenWeight,
    scale: f32,
    dropout: Option<Dropout>,
}

/// `y = x·Wᵀ + s·(D(x)·Aᵀ)·Bᵀ` for `x: [.., in]`, frozen `W: [out, in]`, `A: [r, in]`, `B: [out, r]`, all but `W` in `f32`;
/// `D` is dropout.
///
/// With `u = D(x)·Aᵀ` and `v = s·dy·B`, the gradients are `dx = dy·W + D(v·A)`, `dA = vᵀ·D(x)`, `dB = s·dyᵀ·u`.
/// Source: arXiv 2106.09685; names and scaling are PEFT's.
///
/// # Errors
/// When shapes do not fit each other.
pub fn lora_linear(
    x: &Tensor,
    weight: &FrozenWeight,
    a: &Tensor,
    b: &Tensor,
    scale: LoraScale,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    check_input(x, weight)?;
    let (rank, _) = a.dims2()?;
    if a.dims() != [rank, weight.columns()] || b.dims() != [weight.rows(), rank] {
        bail!("lora: A {:?} and B {:?} do not fit [{}, {}]", a.shape(), b.shape(), weight.rows(), weight.columns());
    }
    let (rows, columns) = rows_and_columns(x.dims())?;
    if dropout.as_ref().is_some_and(|dropout| dropout.row_keys.len() != rows) {
        bail!("lora: dropout has keys for another number of rows than {rows}");
    }
    let op = LoraLinear { weight: weight.clone(), scale: scale.0, dropout };
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op3(a, b, op);
    }
    let base = composed::linear(x, &weight.dequantize(x.device())?)?;
    let x = x.reshape((rows, columns))?;
    let dropped = match &op.dropout {
        Some(dropout) => {
            let mut mask = vec![1f32; rows * columns];
            dropout.apply(&mut mask, columns);
            (&x * Tensor::from_vec(mask, x.shape(), x.device())?)?
        }
        None => x,
    };
    let update = (dropped.matmul(&a.t()?)?.matmul(&b.t()?)? * f64::from(scale.0))?;
    let shape = base.shape().clone();
    base + update.reshape(shape)?
}

impl LoraLinear {
    /// Calls `f` with `D(x)`, which is `x` itself where nothing is dropped.
    fn with_dropped<R>(&self, x: &[f32], f: impl FnOnce(&[f32]) -> R) -> R {
        match &self.dropout {
            None => f(x),
            Some(dropout) => {
                let mut dropped = x.to_vec();
                dropout.apply(&mut dropped, self.weight.columns());
                f(&dropped)
            }
        }
    }

    fn down(&self, x: &[f32], a: &[f32], m: usize, rank: usize) -> Vec<f32> {
        let k = self.weight.columns();
        let mut u = vec![0f32; m * rank];
        self.with_dropped(x, |x| {
            let a = Matrix::dense(a, rank, k).t();
            gemm(MatrixMut::dense(&mut u, m, rank), Matrix::dense(x, m, k), a, 1.0, false, Threads::All);
        });
        u
    }

    fn forward(&self, x: &[f32], a: &[f32], b: &[f32], m: usize) -> Result<Vec<f32>> {
        let (n, rank) = (self.weight.rows(), a.len() / self.weight.columns());
        let mut out = vec![0f32; m * n];
        self.weight.forward_into(x, m, &mut out)?;
        let u = self.down(x, a, m, rank);
        let b = Matrix::dense(b, n, rank).t();
        gemm(MatrixMut::dense(&mut out, m, n), Matrix::dense(&u, m, rank), b, self.scale, true, Threads::All);
        Ok(out)
    }

    fn backward(&self, x: &[f32], a: &[f32], b: &[f32], dy: &[f32], m: usize) -> Result<[Vec<f32>; 3]> {
        let (n, k) = (self.weight.rows(), self.weight.columns());
        let rank = a.len() / k;
        let dy_matrix = Matrix::dense(dy, m, n);
        let mut v = vec![0f32; m * rank];
        let b = Matrix::dense(b, n, rank);
        gemm(MatrixMut::dense(&mut v, m, rank), dy_matrix, b, self.scale, false, Threads::All);
        let v_matrix = Matrix::dense(&v, m, rank);

        let mut dx = vec![0f32; m * k];
        self.weight.backward_into(dy, m, &mut dx)?;
        let a = Matrix::dense(a, rank, k);
        match &self.dropout {
            None => gemm(MatrixMut::dense(&mut dx, m, k), v_matrix, a, 1.0, true, Threads::All),
            Some(dropout) => {
                let mut update = vec![0f32; m * k];
                gemm(MatrixMut::dense(&mut update, m, k), v_matrix, a, 1.0, false, Threads::All);
                dropout.apply(&mut update, k);
                dx.par_iter_mut().zip(&update).with_min_len(1 << 14).for_each(|(dx, update)| *dx += update);
            }
        }

        let (mut da, mut db) = (vec![0f32; rank * k], vec![0f32; n * rank]);
        let mut u = vec![0f32; m * rank];
        self.with_dropped(x, |x| {
            let x = Matrix::dense(x, m, k);
            gemm(MatrixMut::dense(&mut u, m, rank), x, a.t(), 1.0, false, Threads::All);
            gemm(MatrixMut::dense(&mut da, rank, k), v_matrix.t(), x, 1.0, false, Threads::All);
        });
        let u = Matrix::dense(&u, m, rank);
        gemm(MatrixMut::dense(&mut db, n, rank), dy_matrix.t(), u, self.scale, false, Threads::All);
        Ok([dx, da, db])
    }
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora_linear"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (m, _) = rows_and_columns(l1.dims())?;
        let out = self.forward(contiguous(s1, l1)?, contiguous(s2, l2)?, contiguous(s3, l3)?, m)?;
        Ok((CpuStorage::F32(out), with_last_dim(l1.dims(), self.weight.rows())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (m, _) = rows_and_columns(x.dims())?;
        let [dx, da, db] = with_slice(x, |xs| {
            with_slice(a, |a| with_slice(b, |b| with_slice(grad, |dy| self.backward(xs, a, b, dy, m))))
        })?;
        let device = x.device();
        Ok((
            Some(Tensor::from_vec(dx, x.shape(), device)?),
            Some(Tensor::from_vec(da, a.shape(), device)?),
            Some(Tensor::from_vec(db, b.shape(), device)?),
        ))
    }
}
