//! The types that weights are held in: candle's names of GGML's, in one enum with those that candle does not have.
//!
//! It owns names and sizes of blocks, and the levels of those that have a table. What a block means is
//! [`crate::ops::dequantize`]'s, what files call it [`crate::weights`]'s.

use candle_core::quantized::GgmlDType;
use std::fmt;

/// The type of a weight's elements, or of the blocks that hold them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WeightType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, 5 bits of them exponent.
    F16,
    /// 16-bit floats, 8 bits of them exponent.
    BF16,
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
    /// 8 bits in blocks of 32, scale and sum: a format of activations.
    Q8_1,
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
    /// 8-bit K-quant, blocks of 256: a format of activations.
    Q8K,
    /// 4 bits in blocks of 32, scale and a table of 16 levels.
    Iq4Nl,
    /// 4 bits in blocks of 256, scales of 32 and a table of 16 levels.
    Iq4Xs,
    /// bitsandbytes' 4 bits in blocks of 64: the largest magnitude in `f32`, then two codes a byte, the first in the high half.
    Nf4,
}

/// What the codes of [`WeightType::Nf4`] stand for, in parts of the block's largest magnitude: bitsandbytes' table
/// (`bitsandbytes/functional.py`, `get_4bit_type`).
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl WeightType {
    /// Numbers of a block; 1 of plain floats.
    pub const fn block_size(self) -> usize {
        self.facts().1
    }

    /// Bytes of a block.
    pub const fn type_size(self) -> usize {
        self.facts().2
    }

    /// Whether it is a plain float.
    pub const fn is_float(self) -> bool {
        self.block_size() == 1
    }

    /// Bytes of so many numbers, which are whole blocks.
    pub const fn bytes(self, numbers: usize) -> usize {
        numbers / self.block_size() * self.type_size()
    }

    /// candle's type, with which it quantizes; `None` where it has none.
    pub const fn candle(self) -> Option<GgmlDType> {
        Some(match self {
            Self::Iq4Nl | Self::Iq4Xs | Self::Nf4 => return None,
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q8_1 => GgmlDType::Q8_1,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
            Self::Q8K => GgmlDType::Q8K,
        })
    }

    /// The name, the numbers of a block, and its bytes.
    const fn facts(self) -> (&'static str, usize, usize) {
        match self {
            Self::F32 => ("F32", 1, 4),
            Self::F16 => ("F16", 1, 2),
            Self::BF16 => ("BF16", 1, 2),
            Self::Q4_0 => ("Q4_0", 32, 18),
            Self::Q4_1 => ("Q4_1", 32, 20),
            Self::Q5_0 => ("Q5_0", 32, 22),
            Self::Q5_1 => ("Q5_1", 32, 24),
            Self::Q8_0 => ("Q8_0", 32, 34),
            Self::Q8_1 => ("Q8_1", 32, 36),
            Self::Q2K => ("Q2K", 256, 84),
            Self::Q3K => ("Q3K", 256, 110),
            Self::Q4K => ("Q4K", 256, 144),
            Self::Q5K => ("Q5K", 256, 176),
            Self::Q6K => ("Q6K", 256, 210),
            Self::Q8K => ("Q8K", 256, 292),
            Self::Iq4Nl => ("IQ4_NL", 32, 18),
            Self::Iq4Xs => ("IQ4_XS", 256, 136),
            Self::Nf4 => ("NF4", 64, 36),
        }
    }
}

/// The name, as candle writes it: `Q4K`.
impl fmt::Debug for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.facts().0)
    }
}

impl From<GgmlDType> for WeightType {
    fn from(dtype: GgmlDType) -> Self {
        match dtype {
            GgmlDType::F32 => Self::F32,
            GgmlDType::F16 => Self::F16,
            GgmlDType::BF16 => Self::BF16,
            GgmlDType::Q4_0 => Self::Q4_0,
            GgmlDType::Q4_1 => Self::Q4_1,
            GgmlDType::Q5_0 => Self::Q5_0,
            GgmlDType::Q5_1 => Self::Q5_1,
            GgmlDType::Q8_0 => Self::Q8_0,
            GgmlDType::Q8_1 => Self::Q8_1,
            GgmlDType::Q2K => Self::Q2K,
            GgmlDType::Q3K => Self::Q3K,
            GgmlDType::Q4K => Self::Q4K,
            GgmlDType::Q5K => Self::Q5K,
            GgmlDType::Q6K => Self::Q6K,
            GgmlDType::Q8K => Self::Q8K,
        }
    }
}

/// The types that candle has.
#[cfg(test)]
pub(crate) const CANDLES: [GgmlDType; 15] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q8_1,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
    GgmlDType::Q8K,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_candles() {
        for dtype in CANDLES {
            let ours = WeightType::from(dtype);
            assert_eq!(format!("{ours:?}"), format!("{dtype:?}"));
            assert_eq!((ours.block_size(), ours.type_size()), (dtype.block_size(), dtype.type_size()), "{dtype:?}");
            assert_eq!(ours.candle(), Some(dtype));
        }
    }
}
