//! The operations of a training step on a GPU: CUDA kernels of our own, their launches, and products by cuBLAS.
//!
//! The kernels are in `kernels/*.cu`. They are compiled at run time for the GPU that is there, so that one build fits every GPU.
//! Activations are in the type of the products, `f32` or `bf16`; sums are `f32` inside. Each operation has a twin on the CPU, and
//! the tests run all of it, kernels and launches, without a GPU: see [`crate::device::driver`]. What is computed when is decided
//! above, in `nn` and `train`.

mod adapter;
mod attention;
mod branch;
mod head;
mod heads;
mod linear;
mod programs;
mod rows;

pub use adapter::{AdamWFactors, AdapterMemory, Operands};
pub use attention::{KeyValueMemory, Tiles};
pub(crate) use head::chunk_tokens;
pub use heads::RopeMemory;
pub(crate) use linear::panel_bytes;
pub use linear::{GpuModule, GpuUpdate};
pub use programs::{TYPES, programs};
pub use rows::{Cuda, DropoutKeys, Places, RowDropout, Rows};

use crate::device::Gpu;
use crate::ops::{AttentionShape, Compute};
use candle_core::Result;

/// Compiles and loads the kernels that every model needs: what does not fit shows at the start.
///
/// # Errors
/// When NVRTC refuses, the driver is older than NVRTC, or the GPU is too old.
pub fn prepare(gpu: &Gpu) -> Result<()> {
    for (program, kernel) in programs::always() {
        gpu.prepare(&program, kernel)?;
    }
    // cuBLAS loads kernels with its first products: what is free is asked for after that.
    multiply_once(gpu, Compute::F32, [16, 16, 16])?;
    if gpu.facts()?.has_bf16() {
        multiply_once(gpu, Compute::Bf16, WARM_UP)?;
    }
    gpu.synchronize()
}

/// Rows, columns, and the length of the sums of a product as a model has them: large enough for a kernel of tensor cores.
const WARM_UP: [usize; 3] = [128, 512, 256];

fn multiply_once(gpu: &Gpu, compute: Compute, [m, n, k]: [usize; 3]) -> Result<()> {
    let cuda = Cuda { gpu: gpu.clone(), compute, capacity: 0 };
    let [a, b, c] = [cuda.zeros(m, k)?, cuda.zeros(n, k)?, cuda.rows(m, n)?];
    let (a, b, c) = (a.matrix(compute, 0, k), b.matrix(compute, 0, k), c.matrix(compute, 0, n));
    cuda.multiply((a, false), (b, true), c, (1.0, 0.0))
}

/// Compiles and loads the kernels that only some families of models need.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_families(gpu: &Gpu) -> Result<()> {
    gpu.prepare(&programs::families(), "scaled_f32")
}

/// Compiles and loads the kernels that only some objectives need.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_objectives(gpu: &Gpu) -> Result<()> {
    gpu.prepare(&programs::objectives(), "along_f32")
}

/// Compiles and loads the kernels of attention for these shapes; what several share, once.
///
/// # Errors
/// When there are none for heads of a width, or as [`prepare`].
pub fn prepare_attention(gpu: &Gpu, shapes: impl IntoIterator<Item = AttentionShape>, compute: Compute) -> Result<()> {
    for shape in shapes {
        attention::check_width(shape.head_dim, compute)?;
        gpu.prepare(&programs::attention(shape.head_dim, shape.is_plain()), "attention_f32")?;
    }
    Ok(())
}
