//! The recipe's `quantization` section.

use crate::weight_type::WeightType;
use serde::{Deserialize, Serialize};

/// The recipe's `quantization`: how the frozen weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizationConfig {
    /// The GGML type; see [`QuantizationType`].
    #[serde(rename = "type")]
    pub kind: QuantizationType,
}

/// A type for frozen weights that are stored as floats. GGUF files, and NF4, keep the types that they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizationType {
    /// `q8_0` for what a Hugging Face folder stores as floats; blocks as they are.
    #[default]
    Auto,
    /// As stored: f32, f16, bf16 or NF4.
    None,
    /// 4 bits in blocks of 32, scale.
    Q4_0,
    /// 4 bits in blocks of 32, scale and minimum.
    Q4_1,
    /// 5 bits in blocks of 32, scale.
    Q5_0,
    /// 5 bits in blocks of 32, scale and minimum.
    Q5_1,
    /// 8 bits in blocks of 32, scale.
    Q8_0,
    /// 2-bit K-quant, blocks of 256.
    Q2K,
    /// 3-bit K-quant, blocks of 256.
    Q3K,
    /// 4-bit K-quant, blocks of 256.
    Q4K,
    /// 5-bit K-quant, blocks of 256.
    Q5K,
    /// 6-bit K-quant, blocks of 256.
    Q6K,
}

impl QuantizationType {
    /// The GGML type to quantize to; `None` keeps what is stored.
    pub const fn weight_type(self) -> Option<WeightType> {
        Some(match self {
            Self::None => return None,
            Self::Auto | Self::Q8_0 => WeightType::Q8_0,
            Self::Q4_0 => WeightType::Q4_0,
            Self::Q4_1 => WeightType::Q4_1,
            Self::Q5_0 => WeightType::Q5_0,
            Self::Q5_1 => WeightType::Q5_1,
            Self::Q2K => WeightType::Q2K,
            Self::Q3K => WeightType::Q3K,
            Self::Q4K => WeightType::Q4K,
            Self::Q5K => WeightType::Q5K,
            Self::Q6K => WeightType::Q6K,
        })
    }
}

/// The 32-block type that stands in for a K-quant where a width is not a multiple of 256, as llama.cpp chooses it.
pub const fn fallback_of(dtype: WeightType) -> WeightType {
    match dtype {
        WeightType::Q2K | WeightType::Q3K => WeightType::Q4_0,
        WeightType::Q4K => WeightType::Q5_0,
        WeightType::Q5K => WeightType::Q5_1,
        WeightType::Q6K => WeightType::Q8_0,
        other => other,
    }
}
