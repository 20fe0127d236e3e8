//! The recipe's `compute`: the type of products and activations.

use super::simd::Level;
use crate::device::{Device, driver::Number};
use serde::{Deserialize, Serialize};

/// The recipe's `compute`. Adapter, optimizer and all sums are `f32` either way; so is the residual stream on the CPU. On a GPU
/// it has the type of the products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeConfig {
    /// The fastest that the machine does natively: `bf16` where the CPU (AVX-512 BF16) or the GPU (from compute capability 8.0
    /// on) multiplies it, else `f32`.
    #[default]
    Auto,
    /// `f32` throughout.
    F32,
    /// Factors of products are rounded to `bf16`, as PyTorch's autocast does.
    Bf16,
}

/// The type of products and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}

impl ComputeConfig {
    /// What it comes to on a device. A GPU without `bf16` gets `f32`.
    pub fn resolve(self, device: &Device) -> Compute {
        let has_bf16 = match device {
            Device::Cpu => self == Self::Bf16 || Level::detect() == Level::Avx512Bf16,
            Device::Gpu(gpu) => gpu.facts().is_ok_and(|facts| facts.has_bf16()),
        };
        if has_bf16 && self != Self::F32 { Compute::Bf16 } else { Compute::F32 }
    }
}

impl Compute {
    /// Its name in a recipe.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        self.number().bytes()
    }

    /// The type as a device has it.
    pub(crate) const fn number(self) -> Number {
        match self {
            Self::F32 => Number::F32,
            Self::Bf16 => Number::Bf16,
        }
    }
}
