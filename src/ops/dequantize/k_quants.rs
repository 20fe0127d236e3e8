//! K-quants: blocks of 256 numbers with one half float for scales, in groups of 16 or 32 with a small scale of their own.

use super::blocks::scaled_bytes;
use super::{field, half_at};
use std::array::from_fn;

/// 2 bits a number; 16 groups with a scale and a minimum of 4 bits each.
#[inline(always)]
pub(super) fn q2k(block: &[u8; 84], out: &mut [f32; 256]) {
    let scales: [u8; 16] = field(block, 0);
    let (d, d_min) = (half_at(block, 80), half_at(block, 82));
    let scale: [f32; 16] = from_fn(|g| d * (scales[g] & 15) as f32);
    let min: [f32; 16] = from_fn(|g| d_min * (scales[g] >> 4) as f32);
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let place = Place::of(g);
        let quants: [u8; 16] = field(block, 16 + 32 * place.half + place.first);
        for (out, &q) in out.iter_mut().zip(&quants) {
            *out = scale[g] * ((q >> place.shift) & 3) as f32 - min[g];
        }
    }
}

/// 3 bits a number around 4, the third apart; 16 groups with a scale of 6 bits around 32.
#[inline(always)]
pub(super) fn q3k(block: &[u8; 110], out: &mut [f32; 256]) {
    let scales: [u8; 12] = field(block, 96);
    let d = half_at(block, 108);
    let scale: [f32; 16] = from_fn(|g| {
        let low = (scales[g % 8] >> (g / 8 * 4)) & 15;
        let high = (scales[8 + g % 4] >> (g / 4 * 2)) & 3;
        d * ((low | high << 4) as i32 - 32) as f32
    });
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let place = Place::of(g);
        let third: [u8; 16] = field(block, place.first);
        let quants: [u8; 16] = field(block, 32 + 32 * place.half + place.first);
        for i in 0..16 {
            let low = (quants[i] >> place.shift) & 3;
            let high = (third[i] >> (4 * place.half + place.shift / 2)) & 1;
            out[i] = scale[g] * ((low | high << 2) as i32 - 4) as f32;
        }
    }
}

/// 4 bits a number; 8 groups with a scale and a minimum of 6 bits each.
#[inline(always)]
pub(super) fn q4k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, min) = scales_and_minima(block);
    let quants: [u8; 128] = field(block, 16);
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let quants: [u8; 32] = field(&quants, 32 * pair);
        for (i, &q) in quants.iter().enumerate() {
            out[i] = scale[2 * pair] * (q & 15) as f32 - min[2 * pair];
            out[i + 32] = scale[2 * pair + 1] * (q >> 4) as f32 - min[2 * pair + 1];
        }
    }
}

/// 5 bits a number, the fifth apart; scales and minima as in [`q4k`].
#[inline(always)]
pub(super) fn q5k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, min) = scales_and_minima(block);
    let fifth: [u8; 32] = field(block, 16);
    let quants: [u8; 128] = field(block, 48);
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let quants: [u8; 32] = field(&quants, 32 * pair);
        for i in 0..32 {
            let bits = fifth[i] >> (2 * pair);
            let low = (quants[i] & 15) | (bits & 1) << 4;
            let high = (quants[i] >> 4) | (bits & 2) << 3;
            out[i] = scale[2 * pair] * low as f32 - min[2 * pair];
            out[i + 32] = scale[2 * pair + 1] * high as f32 - min[2 * pair + 1];
        }
    }
}

/// 6 bits a number around 32, the upper two apart; 16 groups with a scale of 8 bits.
#[inline(always)]
pub(super) fn q6k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scales: [u8; 16] = field(block, 192);
    let d = half_at(block, 208);
    let scale: [f32; 16] = from_fn(|g| d * scales[g] as i8 as f32);
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let Place { half, shift, first } = Place::of(g);
        let lower: [u8; 16] = field(block, 64 * half + shift % 4 * 16 + first);
        let upper: [u8; 16] = field(block, 128 + 32 * half + first);
        for i in 0..16 {
            let q = (lower[i] >> (shift & 4)) & 15 | ((upper[i] >> shift) & 3) << 4;
            out[i] = scale[g] * (q as i32 - 32) as f32;
        }
    }
}

/// A scale in `f32`, 256 signed bytes, and their sums (which only products of two quantized rows need).
#[inline(always)]
pub(super) fn q8k(block: &[u8; 292], out: &mut [f32; 256]) {
    scaled_bytes(f32::from_le_bytes(field(block, 0)), &field(block, 4), out);
}

/// Where a group of 16 numbers has its bits: each half of a block is 32 bytes, which hold 4 numbers each, 32 numbers apart.
struct Place {
    half: usize,
    shift: usize,
    first: usize,
}

impl Place {
    #[inline(always)]
    fn of(group: usize) -> Self {
        Self { half: group / 8, shift: group % 8 / 2 * 2, first: group % 2 * 16 }
    }
}

/// The scales and minima of the 8 groups of a [`q4k`] or [`q5k`] block. They are 6 bits each in 12 bytes: four scales, four
/// minima, then both halves of the other eight; their upper two bits are those of the first eight bytes.
#[inline(always)]
fn scales_and_minima(block: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, d_min) = (half_at(block, 0), half_at(block, 2));
    let first: u64 = u64::from_le_bytes(field(block, 4));
    let last = u32::from_le_bytes(field(block, 12)) as u64;
    let (scale, min) = (first as u32 as u64, first >> 32);
    let upper = |x: u64| (x >> 2) & 0x3030_3030;
    let scale = (scale & 0x3f3f_3f3f) | (last & 0x0f0f_0f0f | upper(scale)) << 32;
    let min = (min & 0x3f3f_3f3f) | ((last >> 4) & 0x0f0f_0f0f | upper(min)) << 32;
    let (scale, min) = (scale.to_le_bytes(), min.to_le_bytes());
    (from_fn(|g| d * scale[g] as f32), from_fn(|g| d_min * min[g] as f32))
}
