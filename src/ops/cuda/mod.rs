//! The operations of a training step on a GPU: CUDA kernels of our own, their launches, and products by cuBLAS.
//!
//! The kernels are in `kernels/*.cu`. They are compiled at run time for the GPU that is there, so that one build fits every GPU.
//! Activations are in the type of the products, `f32` or `bf16`; sums are `f32` inside. Each operation has a twin on the CPU, and
//! the tests run all of it, kernels and launches, without a GPU: see [`crate::device::driver`]. What is computed when is decided
//! above, in `nn` and `train`.

mod adapter;
mod attention;
mod head;
mod linear;
mod programs;
mod rows;

pub use adapter::{AdamWFactors, AdapterMemory, Operands};
pub use attention::{KeyValueMemory, Tiles};
pub(crate) use head::chunk_tokens;
pub(crate) use linear::panel_bytes;
pub use linear::{GpuModule, GpuUpdate};
pub use programs::{TYPES, programs};
pub use rows::{Cuda, DropoutKeys, Places, RopeMemory, RowDropout, Rows};

use crate::device::Gpu;
use crate::ops::Compute;
use candle_core::Result;

/// Compiles and loads the kernels that every model needs: what does not fit shows at the start.
///
/// # Errors
/// When NVRTC refuses, the driver is older than NVRTC, or the GPU is too old.
pub fn prepare(gpu: &Gpu) -> Result<()> {
    for (program, kernel) in programs::always() {
        gpu.prepare(&program, kernel)?;
    }
    // cuBLAS takes its memory with its first product: what is free is asked for after that.
    let cuda = Cuda { gpu: gpu.clone(), compute: Compute::F32, capacity: 0 };
    let [a, b, c] = [cuda.zeros(16, 16)?, cuda.zeros(16, 16)?, cuda.rows(16, 16)?];
    let [a, b, c] = [&a, &b, &c].map(|rows| rows.matrix(Compute::F32, 0, 16));
    cuda.multiply((a, false), (b, false), c, (1.0, 0.0))?;
    gpu.synchronize()
}

/// Compiles and loads the kernels of attention for heads of a width.
///
/// # Errors
/// When there are none for that width, or as [`prepare`].
pub fn prepare_attention(gpu: &Gpu, head_dim: usize, compute: Compute) -> Result<()> {
    attention::check_width(head_dim, compute)?;
    gpu.prepare(&programs::attention(head_dim), "attention_f32")
}
