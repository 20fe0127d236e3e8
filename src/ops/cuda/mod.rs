//! CUDA kernels of our own and their launches: the only CUDA code, and the only room that needs the `cuda` feature.
//!
//! The sources are in `kernels/*.cu`. They are compiled at run time by NVRTC for the GPU that is there ([`prepare`]), so that a
//! build needs no compiler for them and one binary fits every GPU. Each has a twin on the CPU, and `tests/cuda_kernels.rs` runs
//! the same device code against it without a GPU. What is computed when is decided above, in [`super::frozen_matmul`].

mod frozen_matmul;
mod kernels;

pub(super) use frozen_matmul::{CudaPanels, Input};
pub use kernels::prepare;
