//! Plain floats, and blocks of 32 numbers with one scale.
//!
//! Where a block holds 16 bytes of quants, their low halves are its first 16 numbers and their high halves the others.

use super::{field, half_at, half_to_f32};

#[inline(always)]
pub(super) fn f32(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_le_bytes(*bytes);
    }
}

#[inline(always)]
pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = half_to_f32(u16::from_le_bytes(*bytes));
    }
}

#[inline(always)]
pub(super) fn bf16(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = f32::from_bits((u16::from_le_bytes(*bytes) as u32) << 16);
    }
}

/// A scale, and 32 numbers of 4 bits around 8.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let quants: [u8; 16] = field(block, 2);
    for (i, &q) in quants.iter().enumerate() {
        out[i] = ((q & 15) as i32 - 8) as f32 * d;
        out[i + 16] = ((q >> 4) as i32 - 8) as f32 * d;
    }
}

/// A scale, a minimum, and 32 numbers of 4 bits.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let quants: [u8; 16] = field(block, 4);
    for (i, &q) in quants.iter().enumerate() {
        out[i] = (q & 15) as f32 * d + m;
        out[i + 16] = (q >> 4) as f32 * d + m;
    }
}

/// A scale, and 32 numbers of 5 bits around 16; the fifth bits are apart.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let fifth = u32::from_le_bytes(field(block, 2));
    let quants: [u8; 16] = field(block, 6);
    for (i, &q) in quants.iter().enumerate() {
        let low = (q & 15) as u32 | ((fifth >> i) & 1) << 4;
        let high = (q >> 4) as u32 | ((fifth >> (i + 16)) & 1) << 4;
        out[i] = (low as i32 - 16) as f32 * d;
        out[i + 16] = (high as i32 - 16) as f32 * d;
    }
}

/// A scale, a minimum, and 32 numbers of 5 bits; the fifth bits are apart.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let fifth = u32::from_le_bytes(field(block, 4));
    let quants: [u8; 16] = field(block, 8);
    for (i, &q) in quants.iter().enumerate() {
        let low = (q & 15) as u32 | ((fifth >> i) & 1) << 4;
        let high = (q >> 4) as u32 | ((fifth >> (i + 16)) & 1) << 4;
        out[i] = low as i32 as f32 * d + m;
        out[i + 16] = high as i32 as f32 * d + m;
    }
}

/// A scale, and 32 signed bytes.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    scaled_bytes(half_at(block, 0), &field(block, 2), out);
}

/// A scale, a sum (which only products of two quantized rows need), and 32 signed bytes.
#[inline(always)]
pub(super) fn q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    scaled_bytes(half_at(block, 0), &field(block, 4), out);
}

#[inline(always)]
pub(super) fn scaled_bytes<const N: usize>(d: f32, quants: &[u8; N], out: &mut [f32; N]) {
    for (out, &q) in out.iter_mut().zip(quants) {
        *out = q as i8 as f32 * d;
    }
}
