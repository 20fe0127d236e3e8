//! The arithmetic of a training step, forward and backward by hand: the floor on which every model stands.
//!
//! candle's own fused operations (`QMatMul`, `rms_norm`, `softmax_last_dim`, `rope`) return no gradient, silently, and its
//! graph keeps every intermediate. Here each operation is a function on rows of numbers with its backward beside it, in `f32`
//! or `bf16` with `f32` sums ([`Element`]), on memory that goes round ([`Pool`]). [`cuda`] has the same for a GPU. [`composed`]
//! holds the same operations out of candle's differentiable ones, as what the kernels are tested against.
//!
//! It does not own layers or parameters: `nn` does.

// Code is compiled for a wider instruction set only where it is inlined into the function that asks for the set.
#![expect(clippy::inline_always, reason = "what is not inlined is compiled for the narrowest machine")]

pub mod attention;
mod branch;
pub mod composed;
mod compute;
mod cpu;
pub mod cuda;
pub mod dequantize;
mod dropout;
pub mod element;
mod frozen_vector;
mod frozen_weight;
mod gate;
pub mod gemm;
mod head_norm;
mod largest;
mod linear;
mod linear_cross_entropy;
mod pool;
mod rms_norm;
mod rope;
pub mod simd;
mod softcap;
#[cfg(test)]
mod tests;

use crate::device::Device;
use candle_core::Result;

pub use attention::{AttentionShape, Sequence};
pub use branch::{add_normalized, add_scaled, branch_norm_backward, scaled};
pub use compute::{Compute, ComputeConfig};
pub use cpu::numbers;
pub use dropout::Dropout;
pub use element::Element;
pub use frozen_vector::FrozenVector;
pub use frozen_weight::FrozenWeight;
pub use gate::{Activation, gate, gate_backward};
pub use head_norm::{HeadNorms, normalize_heads, normalize_heads_backward};
pub use linear::{Group, GroupSizes, Module, ModuleSizes, SavedInput, Update, UpdateGradient};
pub use linear_cross_entropy::{HeadPass, HeadRequest, lend_linear_cross_entropy, linear_cross_entropy};
pub use pool::{Buffer, Held, Ledger, Lent, Pool};
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use rope::RopeTable;
pub use softcap::softcap;

/// Makes ready what operations need on this device, so that what does not fit shows before anything is loaded.
///
/// # Errors
/// When a GPU's kernels cannot be compiled or loaded.
pub fn prepare(device: &Device) -> Result<()> {
    device.gpu().map_or(Ok(()), cuda::prepare)
}
