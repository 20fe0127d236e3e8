//! The recipe's `quantization` section.

use candle_core::quantized::GgmlDType;
use serde::{Deserialize, Serialize};

/// The recipe's `quantization`: how the frozen weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizationConfig {
    /// The GGML type; see [`QuantizationType`].
    #[serde(rename = "type")]
    pub kind: QuantizationType,
}

/// A type for frozen weights. GGUF files keep the types that they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizationType {
    /// `q8_0` for a Hugging Face folder; a GGUF file as it is.
    #[default]
    Auto,
    /// As stored: f32, f16 or bf16.
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
    pub const fn ggml(self) -> Option<GgmlDType> {
        Some(match self {
            Self::None => return None,
            Self::Auto | Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        })
    }
}

/// The 32-block type that stands in for a K-quant where a width is not a multiple of 256, as llama.cpp chooses it.
pub const fn fallback_of(dtype: GgmlDType) -> GgmlDType {
    match dtype {
        GgmlDType::Q2K | GgmlDType::Q3K => GgmlDType::Q4_0,
        GgmlDType::Q4K => GgmlDType::Q5_0,
        GgmlDType::Q5K => GgmlDType::Q5_1,
        GgmlDType::Q6K => GgmlDType::Q8_0,
        other => other,
    }
}
