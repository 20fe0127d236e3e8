//! The types that activations are held and multiplied in.

use super::gemm::{Kernels, LANES};
use half::bf16;
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;

/// A number of activations: `f32`, or `bf16` (8 bits of exponent as `f32`, 8 of significand). Sums are `f32` for both.
pub trait Element: Kernels + Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Groups as words of 32 bits: one `f32`, or a pair of `bf16`, the first in the lower half.
    fn to_words(numbers: &[Self; 2 * LANES], words: &mut [u32; LANES]);
    /// Words of two rows: for `bf16` each a number of both, the first in the lower half; for `f32`, whose groups are single,
    /// those of the first.
    fn pair_words(first: &[Self; LANES], second: &[Self; LANES], words: &mut [u32; LANES]);
    /// The reverse of [`Self::to_words`]; `numbers` holds 16 groups.
    fn from_words(words: &[u32; LANES], numbers: &mut [Self]);
    /// So many zeros, without touching their memory.
    fn zeros(count: usize) -> Vec<Self>;
    /// Buffers of this type in a pool.
    #[doc(hidden)]
    fn shelf(shelves: &super::pool::Shelves) -> &super::pool::Shelf<Self>;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn to_words(numbers: &[Self; 2 * LANES], words: &mut [u32; LANES]) {
        for (word, number) in words.iter_mut().zip(numbers) {
            *word = number.to_bits();
        }
    }

    #[inline(always)]
    fn pair_words(first: &[Self; LANES], _second: &[Self; LANES], words: &mut [u32; LANES]) {
        for (word, number) in words.iter_mut().zip(first) {
            *word = number.to_bits();
        }
    }

    #[inline(always)]
    fn from_words(words: &[u32; LANES], numbers: &mut [Self]) {
        for (number, word) in numbers.iter_mut().zip(words) {
            *number = f32::from_bits(*word);
        }
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }

    fn shelf(shelves: &super::pool::Shelves) -> &super::pool::Shelf<Self> {
        &shelves.f32
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        // Without the branch for NaN of the `half` crate, so that loops are vectorized. A NaN of arithmetic stays one: its
        // lower bits are zero, and rounding does not carry.
        let bits = x.to_bits();
        Self::from_bits((bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn to_words(numbers: &[Self; 2 * LANES], words: &mut [u32; LANES]) {
        for (word, pair) in words.iter_mut().zip(numbers.as_chunks::<2>().0) {
            *word = u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
        }
    }

    #[inline(always)]
    fn pair_words(first: &[Self; LANES], second: &[Self; LANES], words: &mut [u32; LANES]) {
        for (word, (first, second)) in words.iter_mut().zip(first.iter().zip(second)) {
            *word = u32::from(first.to_bits()) | u32::from(second.to_bits()) << 16;
        }
    }

    #[inline(always)]
    fn from_words(words: &[u32; LANES], numbers: &mut [Self]) {
        for (pair, word) in numbers.as_chunks_mut::<2>().0.iter_mut().zip(words) {
            *pair = [Self::from_bits(*word as u16), Self::from_bits((*word >> 16) as u16)];
        }
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0u16; count].reinterpret_into()
    }

    fn shelf(shelves: &super::pool::Shelves) -> &super::pool::Shelf<Self> {
        &shelves.bf16
    }
}

super::simd::vectorized! {
    /// `to[i] = from[i]`, rounded.
    pub(crate) fn convert<A: Element, B: Element>(from: &[A], to: &mut [B]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = B::from_f32(from.to_f32());
        }
    }
}

/// Copies, rounding to the type that is wanted, all threads at once.
pub(crate) fn convert_all<E: Element>(from: &[f32], to: &mut [E]) {
    to.par_chunks_mut(1 << 14).zip(from.par_chunks(1 << 14)).for_each(|(to, from)| convert(from, to));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_the_half_crate_does() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            let ours = <bf16 as Element>::from_f32(x);
            assert_eq!(ours.to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
            assert_eq!(Element::to_f32(ours), ours.to_f32());
        }
        assert!(<bf16 as Element>::from_f32(f32::NAN).is_nan());
        assert!(<bf16 as Element>::from_f32(f32::INFINITY - f32::INFINITY).is_nan());
    }
}
