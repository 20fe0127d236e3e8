//! What is asked of a GPU: memory, copies, kernels, matrix products.
//!
//! All that trains on a GPU is written against [`Driver`], whose implementations are NVIDIA's driver (`nvidia`, under the
//! feature `cuda`), and in the tests one that runs the same kernels, compiled for the CPU, one that computes nothing, and one that
//! notes what another is asked.

use super::GpuFacts;
use candle_core::Result;
use std::fmt::Debug;

/// An address in the memory of a device.
pub type Address = u64;

/// A file of kernels in CUDA C++, which is compiled at run time.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file's name, without `.cu`.
    pub name: &'static str,
    /// The parts of its source, in order.
    pub source: &'static [&'static str],
    /// What is defined before it.
    pub defines: Vec<(&'static str, usize)>,
}

impl Program {
    /// What tells it from others of this library.
    pub fn key(&self) -> (&'static str, &[(&'static str, usize)]) {
        (self.name, &self.defines)
    }

    /// The whole source.
    pub fn text(&self) -> String {
        let defines = self.defines.iter().map(|(name, value)| format!("#define {name} {value}\n"));
        defines.chain(self.source.iter().map(|part| (*part).to_owned())).collect()
    }
}

/// An argument of a kernel, in its type there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// `u32`
    U32(u32),
    /// `u64`
    U64(u64),
    /// `float`
    F32(f32),
}

/// What a piece of work has to do at least, for profiles and models of a step's time. Nothing is computed from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of a device's memory that are read and written, each once.
    pub bytes: u64,
    /// Floating-point operations of matrix products; those of elementwise kernels are not counted.
    pub flop: u64,
}

/// One run of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The file that the kernel is in.
    pub program: &'a Program,
    /// The kernel.
    pub kernel: &'a str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory besides what the kernel declares.
    pub shared_bytes: u32,
    /// In the order of the kernel.
    pub arguments: &'a [Argument],
    /// What it has to do.
    pub work: Work,
}

/// The type of a matrix' numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl Number {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// A matrix in a device's memory, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Where it begins.
    pub address: Address,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Numbers from row to row.
    pub stride: usize,
    /// The type of its numbers.
    pub number: Number,
}

/// `c = alpha · op(a) · op(b) + beta · c`, with `f32` sums. `a` and `b` are of one type; `c` is of theirs, or `f32`. With a
/// `beta` of 0, what stood in `c` is not read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatrixProduct {
    /// Left factor.
    pub a: Matrix,
    /// Whether it is transposed.
    pub transpose_a: bool,
    /// Right factor.
    pub b: Matrix,
    /// Whether it is transposed.
    pub transpose_b: bool,
    /// Where the product goes.
    pub c: Matrix,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what is there.
    pub beta: f32,
}

impl MatrixProduct {
    /// Rows and columns of `c`, and the length of the sums, if the three matrices fit.
    pub fn sizes(&self) -> Option<(usize, usize, usize)> {
        let of = |matrix: Matrix, transpose: bool| {
            if transpose { (matrix.columns, matrix.rows) } else { (matrix.rows, matrix.columns) }
        };
        let ((m, k), (k_b, n)) = (of(self.a, self.transpose_a), of(self.b, self.transpose_b));
        let strides = [self.a, self.b, self.c].iter().all(|matrix| matrix.stride >= matrix.columns);
        (k == k_b && (self.c.rows, self.c.columns) == (m, n) && strides).then_some((m, n, k))
    }

    /// `2·m·n·k` operations; both factors are read, `c` is written, and read where it counts.
    pub fn work(&self) -> Work {
        let (m, n, k) = self.sizes().unwrap_or_default();
        let (factors, sums) = ((m * k + n * k) * self.a.number.bytes(), m * n * self.c.number.bytes());
        let passes = if self.beta == 0.0 { 1 } else { 2 };
        Work { bytes: (factors + passes * sums) as u64, flop: 2 * (m * n) as u64 * k as u64 }
    }
}

/// The least bytes that are asked for.
const SEGMENT: usize = 32 << 20;
/// What larger requests are multiples of: a driver gives no less.
const PAGE: usize = 2 << 20;

/// A GPU. All work is done in the order in which it was asked for.
pub trait Driver: Debug + Send + Sync {
    /// What the device says of itself.
    ///
    /// # Errors
    /// When the driver does not answer.
    fn facts(&self) -> Result<GpuFacts>;

    /// How much to ask for at a time where so many bytes are needed: an arena gives the rest to others.
    fn segment_bytes(&self, bytes: usize) -> usize {
        bytes.max(SEGMENT).next_multiple_of(PAGE)
    }

    /// Whether each buffer is an allocation of its own, so that a tool that looks at allocations sees where a kernel leaves one.
    /// It is slow: for looking into a fault.
    fn buffers_apart(&self) -> bool {
        false
    }

    /// Bytes that its libraries hold of the device's memory from the beginning on: what cuBLAS works in.
    fn workspace_bytes(&self) -> usize {
        0
    }

    /// Memory, at a multiple of 256; `None` where there is not enough.
    ///
    /// # Errors
    /// For other reasons than that.
    fn allocate(&self, bytes: usize) -> Result<Option<Address>>;

    /// Gives memory back, once all work that was asked for is done.
    ///
    /// # Safety
    /// The address is one that [`Self::allocate`] gave, and nothing will use it.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn free(&self, address: Address);

    /// Copies to the device.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// There is so much memory at the address.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn upload(&self, from: &[u8], to: Address) -> Result<()>;

    /// Copies from the device, once all work that was asked for is done.
    ///
    /// # Errors
    /// When the driver refuses, or work before it failed.
    ///
    /// # Safety
    /// There is so much memory at the address.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn download(&self, from: Address, to: &mut [u8]) -> Result<()>;

    /// Memory of the CPU that a device reads and writes by itself, at an address of which [`Self::copy`] knows.
    ///
    /// # Errors
    /// When there is not enough.
    fn allocate_pinned(&self, bytes: usize) -> Result<Address>;

    /// Gives pinned memory back, once all work that was asked for is done.
    ///
    /// # Safety
    /// The address is one that [`Self::allocate_pinned`] gave, and nothing will use it.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn free_pinned(&self, address: Address);

    /// Copies within the device, and to and from pinned memory.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// There is so much memory at both addresses.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()>;

    /// Writes zeros.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Safety
    /// There is so much memory at the address.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()>;

    /// Runs a kernel, which is compiled and loaded where it was not yet.
    ///
    /// # Errors
    /// When the compiler or the driver refuses.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what they point to is there.
    #[expect(unsafe_code, reason = "arguments cannot be checked")]
    unsafe fn launch(&self, launch: Launch<'_>) -> Result<()>;

    /// Compiles and loads a program, so that what does not fit shows early.
    ///
    /// # Errors
    /// When the compiler or the driver refuses.
    fn prepare(&self, program: &Program, kernel: &str) -> Result<()>;

    /// Multiplies matrices.
    ///
    /// # Errors
    /// When they do not fit each other, or cuBLAS refuses.
    ///
    /// # Safety
    /// The matrices are within memory.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()>;

    /// Waits until all work is done.
    ///
    /// # Errors
    /// When any of it failed.
    fn synchronize(&self) -> Result<()>;

    /// Marks the moment at which all work is done that was asked for so far. It waits for nothing.
    ///
    /// # Errors
    /// When the driver refuses.
    fn mark(&self) -> Result<()>;

    /// Waits until all work is done; gives the seconds from the first [`Self::mark`] to each, and forgets them.
    ///
    /// # Errors
    /// When any work failed.
    fn take_marks(&self) -> Result<Vec<f64>>;
}
