//! Numbers of GGML's blocks, and of bitsandbytes', as `f32`.
//!
//! candle's `to_float` goes number by number. A frozen weight is dequantized in every pass of every step, so the loops here
//! run over arrays of fixed size, which the compiler turns into vector code: once for any machine, and on x86-64 once for
//! AVX2 and once for AVX-512, chosen at run time. The order of the arithmetic is candle's, and so is every bit of the
//! result (of a NaN, only that it is one).
//!
//! It does not own quantization, threads, or the shape of a weight.

// Code is compiled for a wider instruction set only where it is inlined into the function that asks for the set.
#![expect(clippy::inline_always, reason = "what is not inlined is compiled for the narrowest machine")]

mod blocks;
mod k_quants;
mod tables;

use crate::weight_type::WeightType;
use std::hint::black_box;

/// Writes the numbers of whole blocks to `out`. `bytes` are little-endian, as in a GGUF file.
///
/// # Panics
/// When `bytes` are not the whole blocks of exactly `out.len()` numbers.
pub fn dequantize(dtype: WeightType, bytes: &[u8], out: &mut [f32]) {
    let blocks = out.len() / dtype.block_size();
    assert!(
        blocks * dtype.block_size() == out.len() && blocks * dtype.type_size() == bytes.len(),
        "{} bytes of {dtype:?} are not {} numbers",
        bytes.len(),
        out.len()
    );
    if !(x86::avx512(dtype, bytes, out) || x86::avx2(dtype, bytes, out)) {
        any_machine(dtype, bytes, out);
    }
}

/// A macro, for a function that is passed as a value is not sure to be inlined.
macro_rules! each_block {
    ($bytes:ident, $out:ident, $block:path) => {
        for (bytes, out) in $bytes.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            // Opaque, or the compiler may make vectors across blocks, gathered byte by byte: several times slower.
            $block(black_box(bytes), out);
        }
    };
}

#[inline(always)]
fn any_machine(dtype: WeightType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        WeightType::F32 => blocks::f32(bytes, out),
        WeightType::F16 => blocks::f16(bytes, out),
        WeightType::BF16 => blocks::bf16(bytes, out),
        WeightType::Q4_0 => each_block!(bytes, out, blocks::q4_0),
        WeightType::Q4_1 => each_block!(bytes, out, blocks::q4_1),
        WeightType::Q5_0 => each_block!(bytes, out, blocks::q5_0),
        WeightType::Q5_1 => each_block!(bytes, out, blocks::q5_1),
        WeightType::Q8_0 => each_block!(bytes, out, blocks::q8_0),
        WeightType::Q8_1 => each_block!(bytes, out, blocks::q8_1),
        WeightType::Q2K => each_block!(bytes, out, k_quants::q2k),
        WeightType::Q3K => each_block!(bytes, out, k_quants::q3k),
        WeightType::Q4K => each_block!(bytes, out, k_quants::q4k),
        WeightType::Q5K => each_block!(bytes, out, k_quants::q5k),
        WeightType::Q6K => each_block!(bytes, out, k_quants::q6k),
        WeightType::Q8K => each_block!(bytes, out, k_quants::q8k),
        WeightType::Iq4Nl => each_block!(bytes, out, tables::iq4_nl),
        WeightType::Iq4Xs => each_block!(bytes, out, tables::iq4_xs),
        WeightType::Nf4 => each_block!(bytes, out, tables::nf4),
    }
}

/// Some bytes of a block, by value: the compiler then knows that writing the output does not change them. Sizes and offsets
/// are constants wherever this is inlined, so the check costs nothing.
#[inline(always)]
fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("a field lies within its block")
}

/// The half float at an offset, exactly, without a branch.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    half_to_f32(u16::from_le_bytes(field(block, at)))
}

#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let bits = bits as u32;
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent's bias is 15 in a half and 127 in an f32.
    let normal = magnitude + ((127 - 15) << 23);
    // 2⁻²⁴, what the last bit of a subnormal half stands for.
    let subnormal = ((bits & 0x3ff) as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let not_finite = magnitude | 0x7f80_0000;
    let finite = if bits & 0x7c00 == 0 { subnormal } else { normal };
    let value = if bits & 0x7c00 == 0x7c00 { not_finite } else { finite };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{WeightType, any_machine};
    use crate::ops::simd::Level;

    /// Dequantizes and returns true, if this machine has AVX-512.
    pub(super) fn avx512(dtype: WeightType, bytes: &[u8], out: &mut [f32]) -> bool {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
        fn kernel(dtype: WeightType, bytes: &[u8], out: &mut [f32]) {
            any_machine(dtype, bytes, out);
        }
        if Level::detect() >= Level::Avx512 {
            // SAFETY: the machine has every feature that the kernel is compiled for.
            #[expect(unsafe_code, reason = "only a check at run time tells that the features are there")]
            unsafe {
                kernel(dtype, bytes, out);
            }
            return true;
        }
        false
    }

    /// Dequantizes and returns true, if this machine has AVX2.
    pub(super) fn avx2(dtype: WeightType, bytes: &[u8], out: &mut [f32]) -> bool {
        #[target_feature(enable = "avx2,fma")]
        fn kernel(dtype: WeightType, bytes: &[u8], out: &mut [f32]) {
            any_machine(dtype, bytes, out);
        }
        if Level::detect() >= Level::Avx2 {
            // SAFETY: the machine has every feature that the kernel is compiled for.
            #[expect(unsafe_code, reason = "only a check at run time tells that the features are there")]
            unsafe {
                kernel(dtype, bytes, out);
            }
            return true;
        }
        false
    }
}

/// No wider code for other machines: what is compiled for any of them already uses their vectors.
#[cfg(not(target_arch = "x86_64"))]
mod x86 {
    use super::WeightType;

    pub(super) fn avx512(_: WeightType, _: &[u8], _: &mut [f32]) -> bool {
        false
    }

    pub(super) fn avx2(_: WeightType, _: &[u8], _: &mut [f32]) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::weight_type::CANDLES;
    use candle_core::quantized::{QStorage, QTensor};
    use candle_core::{Device, Tensor};

    /// Returns whether this machine can run it.
    type Kernel = fn(WeightType, &[u8], &mut [f32]) -> bool;

    /// Dequantizes with what is compiled for each machine, as far as this one has it, and expects candle's bits.
    fn assert_bits_are_candles(tensor: &QTensor) {
        let dtype = WeightType::from(tensor.dtype());
        let expected = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes = tensor.data().unwrap();
        let compiled: [(&str, Kernel); 4] = [
            ("AVX-512", x86::avx512),
            ("AVX2", x86::avx2),
            ("any machine", |dtype, bytes, out| {
                any_machine(dtype, bytes, out);
                true
            }),
            ("chosen", |dtype, bytes, out| {
                dequantize(dtype, bytes, out);
                true
            }),
        ];
        for (name, kernel) in compiled {
            let mut out = vec![7f32; expected.len()];
            if !kernel(dtype, &bytes, &mut out) {
                println!("skipped: this machine has no {name}");
                continue;
            }
            for (i, (x, y)) in out.iter().zip(&expected).enumerate() {
                let same = x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan();
                assert!(same, "{dtype:?}, {name}, number {i}: {x} instead of {y}");
            }
        }
    }

    #[test]
    fn quantized_numbers_are_candles() {
        let mut rng = Rng::new(1);
        let numbers: Vec<f32> = (0..5 * 256).map(|_| rng.uniform() as f32 - 0.5).collect();
        let tensor = Tensor::from_vec(numbers, (1, 5 * 256), &Device::Cpu).unwrap();
        for dtype in CANDLES {
            assert_bits_are_candles(&QTensor::quantize(&tensor, dtype).unwrap());
        }
    }

    /// Bytes that no quantizer writes: subnormal, infinite and NaN scales, and every value of every field.
    #[test]
    fn numbers_of_random_bytes_are_candles() {
        let mut rng = Rng::new(2);
        for dtype in CANDLES {
            let numbers = 301 * 256;
            let words = (numbers / dtype.block_size() * dtype.type_size()).div_ceil(8);
            let mut bytes: Vec<u8> = (0..words).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
            bytes.truncate(numbers / dtype.block_size() * dtype.type_size());
            let storage = QStorage::from_data(bytes.into(), &Device::Cpu, dtype).unwrap();
            assert_bits_are_candles(&QTensor::new(storage, (1, numbers)).unwrap());
        }
    }

    #[test]
    fn every_half_is_exact() {
        for bits in 0..=u16::MAX {
            let (x, y) = (half_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(), "{bits:#06x}: {x} instead of {y}");
        }
    }

    #[test]
    #[should_panic(expected = "35 bytes of Q8_0 are not 32 numbers")]
    fn a_length_that_does_not_fit_is_refused() {
        dequantize(WeightType::Q8_0, &[0; 35], &mut [0.0; 32]);
    }
}
