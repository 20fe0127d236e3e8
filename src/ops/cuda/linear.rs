//! Products with frozen, quantized weights and their low-rank updates on a GPU.
//!
//! A weight stays quantized; a panel of its rows at a time is dequantized for cuBLAS, which multiplies with `f32` sums. Sums that
//! several products make are rounded to the type of the activations after each.

use super::adapter::Operands;
use super::programs::{dequantize, type_name};
use super::rows::{Cuda, DropoutKeys, RowDropout, Rows, address};
use crate::device::driver::{Argument, Matrix, MatrixProduct, Number, Work};
use crate::device::{Memory, Term};
use crate::ops::{Compute, FrozenVector, FrozenWeight};
use crate::weight_type::WeightType;
use candle_core::{Error, Result, bail};
use std::ops::Range;

/// Bytes of a dense panel: large enough for products to be fast, small beside any model.
const PANEL_BYTES: usize = 128 << 20;
/// Rows of a panel of a weight.
fn panel_rows(rows: usize, columns: usize, compute: Compute) -> usize {
    (PANEL_BYTES / compute.bytes() / columns.max(1)).clamp(1, rows.max(1))
}

/// Bytes of a panel of a weight.
pub(crate) fn panel_bytes(rows: usize, columns: usize, compute: Compute) -> u64 {
    (panel_rows(rows, columns, compute) * columns * compute.bytes()) as u64
}

/// Threads of a block that dequantizes, each of which writes eight numbers.
const THREADS: usize = 256;
const NUMBERS_OF_BLOCK: usize = 8 * THREADS;

/// A frozen matrix `W: [out, in]`, and its update.
#[derive(Debug, Clone, Copy)]
pub struct GpuModule<'a> {
    /// The matrix.
    pub weight: &'a FrozenWeight,
    /// The frozen bias, `[out]`.
    pub bias: Option<&'a FrozenVector>,
    /// The adapter of a target module.
    pub update: Option<GpuUpdate<'a>>,
}

/// `scale · B(A(dropout(x)))`, PEFT's names: `A: [r, in]`, `B: [out, r]`.
#[derive(Debug, Clone, Copy)]
pub struct GpuUpdate<'a> {
    /// PEFT's names of `A` and `B`.
    pub names: [&'a str; 2],
    /// `r`
    pub rank: usize,
    /// `lora_alpha / r`, or over `√r`.
    pub scale: f32,
    /// In training where inputs are dropped: the tokens' keys, the share that is dropped, the layer's key.
    pub dropout: Option<(&'a DropoutKeys, f32, u64)>,
}

impl<'a> GpuUpdate<'a> {
    fn drop(&self) -> Option<RowDropout<'a>> {
        self.dropout.map(|(keys, probability, layer_key)| RowDropout { keys, probability, layer_key })
    }
}

/// Modules with one input, each with its first output and the first of its ranks.
fn places<'m, 'a>(
    modules: &'m [GpuModule<'a>],
) -> impl Iterator<Item = (&'m GpuModule<'a>, usize, usize)> + use<'m, 'a> {
    let (mut output, mut rank) = (0, 0);
    modules.iter().map(move |module| {
        let place = (module, output, rank);
        output += module.weight.rows();
        rank += module.update.map_or(0, |update| update.rank);
        place
    })
}

fn outputs(modules: &[GpuModule<'_>]) -> usize {
    modules.iter().map(|module| module.weight.rows()).sum()
}

fn ranks(modules: &[GpuModule<'_>]) -> usize {
    modules.iter().filter_map(|module| module.update).map(|update| update.rank).sum()
}

impl Cuda {
    pub(super) fn multiply(
        &self,
        (a, transpose_a): (Matrix, bool),
        (b, transpose_b): (Matrix, bool),
        c: Matrix,
        (alpha, beta): (f32, f32),
    ) -> Result<()> {
        if c.rows == 0 || c.columns == 0 {
            return Ok(());
        }
        let product = MatrixProduct { a, transpose_a, b, transpose_b, c, alpha, beta };
        // SAFETY: matrices come from buffers of this room, whose sizes they are made of.
        #[expect(unsafe_code, reason = "cuBLAS takes addresses")]
        unsafe {
            self.gpu.multiply(&product)
        }
    }

    /// `D(x)·Aᵀ` of each update, side by side.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn down(&self, modules: &[GpuModule<'_>], operands: &Operands<'_>, x: &Rows) -> Result<Rows> {
        let (k, ranks) = (x.columns, ranks(modules));
        let down = self.rows(x.rows, ranks)?;
        if let Some(a) = stacked(modules, |name| operands.matrix(name)) {
            let all = down.matrix(self.compute, 0, ranks);
            self.multiply((x.matrix(self.compute, 0, k), false), (a, true), all, (1.0, 0.0))?;
            return Ok(down);
        }
        for (module, _, first) in places(modules) {
            let Some(update) = module.update else { continue };
            let dropped = self.dropped(&update, x)?;
            let x = dropped.as_ref().unwrap_or(x).matrix(self.compute, 0, k);
            let a = operands.matrix(update.names[0])?;
            self.multiply((x, false), (a, true), down.matrix(self.compute, first, update.rank), (1.0, 0.0))?;
        }
        Ok(down)
    }

    fn dropped(&self, update: &GpuUpdate<'_>, x: &Rows) -> Result<Option<Rows>> {
        let Some(drop) = update.drop() else { return Ok(None) };
        let dropped = self.rows(x.rows, x.columns)?;
        self.dropout(x, drop, &dropped, false)?;
        Ok(Some(dropped))
    }

    /// `y = x·Wᵀ + bias + scale·down·Bᵀ`, the modules side by side.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn linear(&self, modules: &[GpuModule<'_>], operands: &Operands<'_>, x: &Rows, down: &Rows) -> Result<Rows> {
        let y = self.rows(x.rows, outputs(modules))?;
        self.linear_into(modules, operands, (x, down), &y, 0.0)?;
        Ok(y)
    }

    /// [`Self::linear`] of one module, and `onto`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn linear_onto(
        &self,
        module: GpuModule<'_>,
        operands: &Operands<'_>,
        (x, down): (&Rows, &Rows),
        onto: &Rows,
    ) -> Result<Rows> {
        let y = self.copy(onto)?;
        self.linear_into(&[module], operands, (x, down), &y, 1.0)?;
        Ok(y)
    }

    fn linear_into(
        &self,
        modules: &[GpuModule<'_>],
        operands: &Operands<'_>,
        (x, down): (&Rows, &Rows),
        y: &Rows,
        beta: f32,
    ) -> Result<()> {
        let k = x.columns;
        for (module, first, rank) in places(modules) {
            let weight = module.weight;
            if weight.columns() != k {
                bail!("internal: a weight of {} inputs for rows of {k}", weight.columns());
            }
            // The update goes first. The frozen product then adds to it, and reading what is there hides behind its own
            // arithmetic.
            let mut beta = beta;
            if let Some(update) = module.update {
                let b = operands.matrix(update.names[1])?;
                let down = down.matrix(self.compute, rank, update.rank);
                let out = y.matrix(self.compute, first, weight.rows());
                self.multiply((down, false), (b, true), out, (update.scale, beta))?;
                beta = 1.0;
            }
            self.each_panel(weight, |rows, panel| {
                let out = y.matrix(self.compute, first + rows.start, rows.len());
                self.multiply((x.matrix(self.compute, 0, k), false), (panel, true), out, (1.0, beta))
            })?;
            if let Some(bias) = module.bias {
                self.add_bias(y, first, bias)?;
            }
        }
        Ok(())
    }

    /// The gradient of the input for `dy`, if it is wanted; the updates' gradients are added to those of `operands`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn linear_backward(
        &self,
        modules: &[GpuModule<'_>],
        operands: &Operands<'_>,
        (x, down): (&Rows, &Rows),
        dy: &Rows,
        wanted: bool,
    ) -> Result<Option<Rows>> {
        let d_down = self.updates_backward(modules, operands, (x, down), dy)?;
        if !wanted {
            return Ok(None);
        }
        let dx = self.rows(x.rows, x.columns)?;
        let into = dx.matrix(self.compute, 0, x.columns);
        // The updates go first, as in the forward pass, but for those whose inputs were dropped: these are added through a mask.
        let mut beta = 0.0;
        let mut add = |a: Matrix, b: Matrix| {
            let done = self.multiply((a, false), (b, false), into, (1.0, beta));
            beta = 1.0;
            done
        };
        let mut dropped = Vec::new();
        if let Some(a) = stacked(modules, |name| operands.matrix(name)) {
            add(d_down.matrix(self.compute, 0, d_down.columns), a)?;
        } else {
            for (module, _, rank) in places(modules) {
                let Some(update) = module.update else { continue };
                let d_down = d_down.matrix(self.compute, rank, update.rank);
                let a = operands.matrix(update.names[0])?;
                match update.drop() {
                    None => add(d_down, a)?,
                    Some(drop) => dropped.push((d_down, a, drop)),
                }
            }
        }
        for (module, first, _) in places(modules) {
            self.each_panel(module.weight, |rows, panel| {
                add(dy.matrix(self.compute, first + rows.start, rows.len()), panel)
            })?;
        }
        for (d_down, a, drop) in dropped {
            let through = self.rows(x.rows, x.columns)?;
            let all = through.matrix(self.compute, 0, x.columns);
            self.multiply((d_down, false), (a, false), all, (1.0, 0.0))?;
            self.dropout(&through, drop, &dx, true)?;
        }
        Ok(Some(dx))
    }

    /// Gradients of all `A` and `B`, and of what is between them: `scale·dy·B`, side by side.
    fn updates_backward(
        &self,
        modules: &[GpuModule<'_>],
        operands: &Operands<'_>,
        (x, down): (&Rows, &Rows),
        dy: &Rows,
    ) -> Result<Rows> {
        let (k, ranks) = (x.columns, ranks(modules));
        let d_down = self.rows(x.rows, ranks)?;
        for (module, first, rank) in places(modules) {
            let Some(update) = module.update else { continue };
            let dy = dy.matrix(self.compute, first, module.weight.rows());
            let b = operands.matrix(update.names[1])?;
            let into = d_down.matrix(self.compute, rank, update.rank);
            self.multiply((dy, false), (b, false), into, (update.scale, 0.0))?;
            let down = down.matrix(self.compute, rank, update.rank);
            let d_b = operands.gradient(update.names[1])?;
            self.multiply((dy, true), (down, false), d_b, (update.scale, 1.0))?;
        }
        if let Some(d_a) = stacked(modules, |name| operands.gradient(name)) {
            let all = d_down.matrix(self.compute, 0, ranks);
            self.multiply((all, true), (x.matrix(self.compute, 0, k), false), d_a, (1.0, 1.0))?;
            return Ok(d_down);
        }
        for (module, _, rank) in places(modules) {
            let Some(update) = module.update else { continue };
            let dropped = self.dropped(&update, x)?;
            let x = dropped.as_ref().unwrap_or(x).matrix(self.compute, 0, k);
            let d_a = operands.gradient(update.names[0])?;
            self.multiply((d_down.matrix(self.compute, rank, update.rank), true), (x, false), d_a, (1.0, 1.0))?;
        }
        Ok(d_down)
    }

    /// Calls `f` with the rows and the dense numbers of each panel.
    pub(super) fn each_panel(
        &self,
        weight: &FrozenWeight,
        mut f: impl FnMut(Range<usize>, Matrix) -> Result<()>,
    ) -> Result<()> {
        let (rows, columns, number) = (weight.rows(), weight.columns(), self.compute.number());
        let panel_rows = panel_rows(rows, columns, self.compute);
        let panel = self.gpu.allocate(panel_rows * columns * number.bytes())?;
        for first in (0..rows).step_by(panel_rows) {
            let range = first..(first + panel_rows).min(rows);
            self.dequantize(weight, range.clone(), &panel)?;
            let matrix = Matrix { address: panel.address(), rows: range.len(), columns, stride: columns, number };
            f(range, matrix)?;
        }
        Ok(())
    }

    /// Writes some rows of a weight, dense, to a buffer that holds them.
    ///
    /// # Errors
    /// When they do not fit, or the device refuses.
    pub fn dequantize(&self, weight: &FrozenWeight, rows: Range<usize>, out: &Memory) -> Result<()> {
        let numbers = rows.len() * weight.columns();
        if rows.end > weight.rows() || numbers * self.compute.bytes() > out.bytes() {
            bail!("internal: rows {rows:?} of a weight of {} do not fit {} bytes", weight.rows(), out.bytes());
        }
        let blocks = weight.memory()?.address() + (rows.start * weight.row_bytes()) as u64;
        self.dequantize_blocks(weight.dtype(), blocks, numbers, out)
    }

    /// Embeddings: the rows of these numbers of a weight on the CPU, times a factor. What is copied to the GPU is still quantized.
    ///
    /// # Errors
    /// When a number is not below the weight's rows, or the device refuses.
    pub fn embed(&self, weight: &FrozenWeight, ids: &[u32], scale: f32) -> Result<Rows> {
        let blocks = self.gpu.upload(&weight.stored_rows(ids)?)?;
        let rows = self.rows_for(ids.len(), weight.columns(), Term::Long)?;
        self.dequantize_blocks(weight.dtype(), blocks.address(), ids.len() * weight.columns(), &rows.memory)?;
        if scale.to_bits() != 1f32.to_bits() {
            self.scale_to(&rows, scale, &rows)?;
        }
        Ok(rows)
    }

    fn dequantize_blocks(&self, dtype: WeightType, blocks: u64, numbers: usize, out: &Memory) -> Result<()> {
        let Some(name) = type_name(dtype) else { bail!("no CUDA kernel for {dtype:?}") };
        let grid = [u32::try_from(numbers.div_ceil(NUMBERS_OF_BLOCK)).map_err(Error::wrap)?, 1, 1];
        let arguments = [Argument::Address(blocks), address(out), Argument::U64(numbers as u64)];
        let kernel = format!("dequantize_{name}");
        let stored = dtype.bytes(numbers);
        let work = Work { bytes: stored as u64 + self.work(numbers).bytes, flop: 0 };
        self.launch(&dequantize(), &kernel, (grid, THREADS as u32), 0, &arguments, work)
    }
}

/// All `A` of a group, or their gradients, as one matrix, where they follow each other in memory and no input is dropped.
fn stacked(modules: &[GpuModule<'_>], of: impl Fn(&str) -> Result<Matrix>) -> Option<Matrix> {
    let updates = || modules.iter().filter_map(|module| module.update);
    if updates().any(|update| update.dropout.is_some()) {
        return None;
    }
    joined(updates().map(|update| of(update.names[0])))
}

/// One matrix out of some that follow each other.
fn joined(parts: impl Iterator<Item = Result<Matrix>>) -> Option<Matrix> {
    let mut whole: Option<Matrix> = None;
    for part in parts {
        let part = part.ok()?;
        whole = Some(match whole {
            None => part,
            Some(whole) if whole.address + bytes(whole) == part.address && whole.columns == part.columns => {
                Matrix { rows: whole.rows + part.rows, ..whole }
            }
            Some(_) => return None,
        });
    }
    whole
}

const fn bytes(matrix: Matrix) -> u64 {
    let number = match matrix.number {
        Number::F32 => 4,
        Number::Bf16 => 2,
    };
    (matrix.rows * matrix.stride * number) as u64
}
