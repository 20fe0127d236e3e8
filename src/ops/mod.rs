//! Differentiable operations with hand-written gradients: the floor on which every model stands.
//!
//! candle's own fused operations (`QMatMul`, `rms_norm`, `softmax_last_dim`, `rope`) return no gradient, silently. Here
//! everything either has a gradient, or refuses. On the CPU each operation is one fused kernel on `f32`; on another device
//! it is composed of candle's differentiable operations, and a test holds the two against each other.
//!
//! It does not own layers or parameters: `nn` does.

pub mod attention;
mod composed;
mod cpu;
pub mod frozen_matmul;
pub mod gemm;
pub mod linear_cross_entropy;
pub mod lora;
pub mod rms_norm;
pub mod rope;
pub mod seed_gradient;
pub mod swiglu;

pub use attention::{AttentionShape, causal_attention};
pub use frozen_matmul::{FrozenWeight, frozen_matmul};
pub use linear_cross_entropy::{HeadPass, linear_cross_entropy};
pub use lora::{Dropout, LoraScale, lora_linear};
pub use rms_norm::rms_norm;
pub use rope::{RopeTable, rope};
pub use seed_gradient::seed_gradient;
pub use swiglu::swiglu;
