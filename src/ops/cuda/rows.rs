//! Rows of numbers on a GPU, and what is done to each row by itself.

use super::programs;
use crate::device::driver::{Argument, Launch, Matrix, Program, Work};
use crate::device::{Gpu, Memory, PinnedMemory, Term};
use crate::ops::dropout::Dropout;
use crate::ops::{Activation, Compute, FrozenVector};
use candle_core::{Error, Result, bail};
use half::bf16;

/// Threads of a block.
const THREADS: u32 = 256;
/// Numbers of a row that a block takes, where a row has several blocks.
const PART: usize = 2048;

/// Operations on a GPU, in one type of numbers.
#[derive(Debug, Clone)]
pub struct Cuda {
    /// The GPU.
    pub gpu: Gpu,
    /// The type of activations.
    pub compute: Compute,
    /// Rows that buffers have room for at least, so that batches of differing length share their buffers.
    pub capacity: usize,
}

/// Rows of activations, `[rows, columns]`, in the type that its [`Cuda`] computes in.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "rows of numbers have rows and columns")]
pub struct Rows {
    pub(super) memory: Memory,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

/// A key for each token, for dropout.
#[derive(Debug)]
pub struct DropoutKeys(Memory);

/// Which rows of a batch are meant, ascending.
#[derive(Debug)]
pub struct Places {
    memory: Memory,
    count: usize,
}

/// One dropout: the twin of [`Dropout`].
#[derive(Debug, Clone, Copy)]
pub struct RowDropout<'a> {
    /// A key for each row.
    pub keys: &'a DropoutKeys,
    /// Share of the numbers that is zeroed.
    pub probability: f32,
    /// A key for the layer.
    pub layer_key: u64,
}

pub(super) const fn address(memory: &Memory) -> Argument {
    Argument::Address(memory.address())
}

pub(super) fn size(number: usize) -> Result<Argument> {
    u32::try_from(number).map(Argument::U32).map_err(Error::wrap)
}

impl Rows {
    /// How many rows there are.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Some columns of all rows, as a matrix.
    pub(super) fn matrix(&self, compute: Compute, first: usize, columns: usize) -> Matrix {
        let number = compute.number();
        let address = self.memory.address() + (first * number.bytes()) as u64;
        Matrix { address, rows: self.rows, columns, stride: self.columns, number }
    }
}

impl Cuda {
    /// Rows of undefined content.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn rows(&self, rows: usize, columns: usize) -> Result<Rows> {
        self.rows_for(rows, columns, Term::Short)
    }

    /// Rows of undefined content, for as long as is said.
    pub(super) fn rows_for(&self, rows: usize, columns: usize, term: Term) -> Result<Rows> {
        let memory = self.gpu.allocate_for(rows.max(self.capacity) * columns * self.compute.bytes(), term)?;
        Ok(Rows { memory, rows, columns })
    }

    /// Rows of these numbers, rounded, for the residual stream: they last.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn upload(&self, numbers: &[f32], columns: usize) -> Result<Rows> {
        let rows = self.rows_for(numbers.len() / columns.max(1), columns, Term::Long)?;
        match self.compute {
            Compute::F32 => rows.memory.write(0, crate::device::Plain::bytes(numbers))?,
            Compute::Bf16 => {
                let mut rounded = vec![bf16::ZERO; numbers.len()];
                crate::ops::element::convert_all(numbers, &mut rounded);
                rows.memory.write(0, crate::device::Plain::bytes(&rounded))?;
            }
        }
        Ok(rows)
    }

    /// The numbers of some rows in `f32`, once all work is done.
    ///
    /// # Errors
    /// When work failed.
    pub fn download(&self, rows: &Rows) -> Result<Vec<f32>> {
        let count = rows.rows * rows.columns;
        match self.compute {
            Compute::F32 => rows.memory.read::<f32>(0, count),
            Compute::Bf16 => Ok(rows.memory.read::<bf16>(0, count)?.into_iter().map(bf16::to_f32).collect()),
        }
    }

    /// A copy in pinned memory of the CPU.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn to_pinned(&self, rows: &Rows) -> Result<PinnedMemory> {
        let pinned = self.gpu.allocate_pinned(rows.memory.bytes())?;
        pinned.copy_from(&rows.memory, rows.rows * rows.columns * self.compute.bytes())?;
        Ok(pinned)
    }

    /// Rows that [`Self::to_pinned`] copied.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn from_pinned(&self, pinned: &PinnedMemory, rows: usize, columns: usize) -> Result<Rows> {
        let copy = self.rows_for(rows, columns, Term::Long)?;
        pinned.copy_to(&copy.memory, rows * columns * self.compute.bytes())?;
        Ok(copy)
    }

    /// A copy, for the residual stream: it lasts.
    ///
    /// # Errors
    /// When the memory is full.
    pub(super) fn copy(&self, from: &Rows) -> Result<Rows> {
        let to = self.rows_for(from.rows, from.columns, Term::Long)?;
        to.memory.copy_from(0, &from.memory, from.rows * from.columns * self.compute.bytes())?;
        Ok(to)
    }

    /// Keys of dropout on the GPU.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn dropout_keys(&self, keys: &[u64]) -> Result<DropoutKeys> {
        Ok(DropoutKeys(self.gpu.upload_numbers(keys)?))
    }

    /// Numbers of rows on the GPU.
    ///
    /// # Errors
    /// When the memory is full, or a number is past 32 bits.
    pub fn places(&self, rows: &[usize]) -> Result<Places> {
        let rows = rows.iter().map(|&row| u32::try_from(row).map_err(Error::wrap)).collect::<Result<Vec<_>>>()?;
        Ok(Places { memory: self.gpu.upload_numbers(&rows)?, count: rows.len() })
    }

    /// Runs a kernel whose arguments were put together for it. Kernels with a type have it in their name.
    pub(super) fn launch(
        &self,
        program: &Program,
        kernel: &str,
        (grid, block): ([u32; 3], u32),
        shared_bytes: u32,
        arguments: &[Argument],
        work: Work,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let kernel = format!("{kernel}_{}", self.compute.name());
        let launch = Launch { program, kernel: &kernel, grid, block, shared_bytes, arguments, work };
        // SAFETY: the functions of this room give each kernel the arguments that its file names, with buffers of the sizes that it
        // reads and writes; the tests run each with checked memory.
        #[expect(unsafe_code, reason = "a kernel's arguments cannot be checked")]
        unsafe {
            self.gpu.launch(launch)
        }
    }

    /// A block for each row; the kernel reads and writes a row's numbers so many times in all.
    pub(super) fn each_row(
        &self,
        program: &Program,
        kernel: &str,
        (rows, width): (usize, usize),
        passes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let grid = [u32::try_from(rows).map_err(Error::wrap)?, 1, 1];
        self.launch(program, kernel, (grid, THREADS), 0, arguments, self.work(rows * width * passes))
    }

    /// A block for each part of each row, by a kernel that every model needs; as [`Self::each_row`].
    pub(super) fn each_part(
        &self,
        kernel: &str,
        shape: (usize, usize),
        passes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        self.each_part_by(&programs::rows(), kernel, shape, passes, arguments)
    }

    /// A block for each part of each row; as [`Self::each_row`].
    pub(super) fn each_part_by(
        &self,
        program: &Program,
        kernel: &str,
        (rows, width): (usize, usize),
        passes: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let parts = u32::try_from(width.div_ceil(PART)).map_err(Error::wrap)?;
        let grid = [u32::try_from(rows).map_err(Error::wrap)?, parts, 1];
        self.launch(program, kernel, (grid, THREADS), 0, arguments, self.work(rows * width * passes))
    }

    /// So many activations that are read or written.
    pub(super) const fn work(&self, numbers: usize) -> Work {
        Work { bytes: (numbers * self.compute.bytes()) as u64, flop: 0 }
    }

    /// The twin of [`crate::ops::rms_norm`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn rms_norm(&self, x: &Rows, weight: &FrozenVector, epsilon: f64) -> Result<Rows> {
        let weight = on_gpu(weight, x.columns)?;
        let y = self.rows(x.rows, x.columns)?;
        let arguments =
            [address(&x.memory), weight, address(&y.memory), size(x.columns)?, Argument::F32(epsilon as f32)];
        self.each_row(&programs::rows(), "rms_norm", (x.rows, x.columns), 2, &arguments)?;
        Ok(y)
    }

    /// Adds to `gradient` what the gradient `dy` of [`Self::rms_norm`]'s output gives for `x`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn rms_norm_backward(
        &self,
        x: &Rows,
        weight: &FrozenVector,
        epsilon: f64,
        dy: &Rows,
        gradient: &Rows,
    ) -> Result<()> {
        same_shape(&[x, dy, gradient])?;
        let weight = on_gpu(weight, x.columns)?;
        let [x_at, dy, gradient] = [x, dy, gradient].map(|rows| address(&rows.memory));
        let arguments = [x_at, weight, dy, gradient, size(x.columns)?, Argument::F32(epsilon as f32)];
        self.each_row(&programs::rows(), "rms_norm_backward", (x.rows, x.columns), 4, &arguments)
    }

    /// The twin of [`crate::ops::gate`], for `[m, 2·width]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn gate(&self, activation: Activation, gate_up: &Rows) -> Result<Rows> {
        let width = gate_up.columns / 2;
        let y = self.rows(gate_up.rows, width)?;
        let (program, kernel) = match activation {
            Activation::Silu => (programs::rows(), "swiglu"),
            Activation::GeluTanh => (programs::families(), "geglu"),
        };
        let arguments = [address(&gate_up.memory), address(&y.memory), size(width)?];
        self.each_part_by(&program, kernel, (y.rows, width), 3, &arguments)?;
        Ok(y)
    }

    /// The gradient of gates and ups, in their place: the twin of [`crate::ops::gate_backward`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn gate_backward(&self, activation: Activation, gate_up: Rows, dy: &Rows) -> Result<Rows> {
        let width = gate_up.columns / 2;
        if (dy.rows, dy.columns) != (gate_up.rows, width) {
            bail!("internal: a gate of {} columns has no gradient of {}", gate_up.columns, dy.columns);
        }
        let (program, kernel) = match activation {
            Activation::Silu => (programs::rows(), "swiglu_backward"),
            Activation::GeluTanh => (programs::families(), "geglu_backward"),
        };
        let both = address(&gate_up.memory);
        let arguments = [both, address(&dy.memory), both, size(width)?];
        self.each_part_by(&program, kernel, (dy.rows, width), 5, &arguments)?;
        Ok(gate_up)
    }

    /// `out = D(x)`, or `out += D(x)` under `add`: the twin of [`Dropout::apply`] and [`Dropout::apply_add`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn dropout(&self, x: &Rows, drop: RowDropout<'_>, out: &Rows, add: bool) -> Result<()> {
        same_shape(&[x, out])?;
        let (threshold, keep) = Dropout::factors(drop.probability);
        let arguments = [
            address(&x.memory),
            address(&drop.keys.0),
            Argument::U64(drop.layer_key),
            Argument::U64(threshold),
            Argument::F32(keep),
            address(&out.memory),
            size(x.columns)?,
        ];
        let (kernel, passes) = if add { ("dropout_add", 3) } else { ("dropout", 2) };
        self.each_part(kernel, (x.rows, x.columns), passes, &arguments)
    }

    /// Adds a bias to some columns of all rows.
    pub(super) fn add_bias(&self, y: &Rows, first: usize, bias: &FrozenVector) -> Result<()> {
        let width = bias.numbers().len();
        let bias = on_gpu(bias, width)?;
        let y_at = Argument::Address(y.matrix(self.compute, first, width).address);
        self.each_part("add_bias", (y.rows, width), 2, &[y_at, bias, size(y.columns)?, size(width)?])
    }

    /// `out[i] = x[places[i]]`
    ///
    /// # Errors
    /// When the device refuses.
    pub fn gather(&self, x: &Rows, places: &Places) -> Result<Rows> {
        let out = self.rows(places.count, x.columns)?;
        let arguments = [address(&x.memory), address(&places.memory), address(&out.memory), size(x.columns)?];
        self.each_part("gather", (out.rows, out.columns), 2, &arguments)?;
        Ok(out)
    }

    /// `out[places[i]] = x[i]` in `rows` rows, which are zero elsewhere.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn scatter(&self, x: &Rows, places: &Places, rows: usize) -> Result<Rows> {
        let out = self.rows_for(rows, x.columns, Term::Long)?;
        out.memory.zero()?;
        let arguments = [address(&x.memory), address(&places.memory), address(&out.memory), size(x.columns)?];
        self.each_part("scatter", (x.rows, x.columns), 2, &arguments)?;
        Ok(out)
    }

    /// Rows of zeros.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn zeros(&self, rows: usize, columns: usize) -> Result<Rows> {
        let out = self.rows(rows, columns)?;
        out.memory.zero()?;
        Ok(out)
    }

    /// Multiplies each row by a factor.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn scale(&self, x: &Rows, factors: &[f32]) -> Result<()> {
        if factors.len() != x.rows {
            bail!("internal: {} factors for {} rows", factors.len(), x.rows);
        }
        let factors = self.gpu.upload_numbers(factors)?;
        self.each_part("scale", (x.rows, x.columns), 2, &[address(&x.memory), address(&factors), size(x.columns)?])
    }

    /// Copies some columns of all rows to `out`, whose rows they are, from row `first` on.
    pub(super) fn copy_columns(&self, x: Matrix, out: &Memory, first: usize) -> Result<()> {
        let at = out.address() + (first * x.columns * self.compute.bytes()) as u64;
        if (first + x.rows) * x.columns * self.compute.bytes() > out.bytes() {
            bail!("internal: {} rows do not fit behind {first}", x.rows);
        }
        let arguments = [Argument::Address(x.address), Argument::Address(at), size(x.stride)?, size(x.columns)?];
        self.each_part("copy_rows", (x.rows, x.columns), 2, &arguments)
    }
}

/// A vector on the GPU, which must have this width.
pub(super) fn on_gpu(vector: &FrozenVector, width: usize) -> Result<Argument> {
    match vector.memory() {
        Some(memory) if vector.numbers().len() == width => Ok(address(memory)),
        Some(_) => bail!("internal: a vector of {} numbers for rows of {width}", vector.numbers().len()),
        None => bail!("internal: a vector on the CPU was asked for on a GPU"),
    }
}

pub(super) fn same_shape(all: &[&Rows]) -> Result<()> {
    if all.windows(2).any(|pair| (pair[0].rows, pair[0].columns) != (pair[1].rows, pair[1].columns)) {
        bail!("internal: rows of other shapes were expected");
    }
    Ok(())
}
