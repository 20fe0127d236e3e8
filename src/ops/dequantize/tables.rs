//! Blocks of 4-bit codes that stand for the levels of a table.

use super::{field, half_at};
use crate::weight_type::NF4_LEVELS;

/// llama.cpp's `kvalues_iq4nl` (`ggml-common.h`).
const IQ4_LEVELS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// The levels of both codes of a byte, so that one read gives two numbers.
static NF4_PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [NF4_LEVELS[byte >> 4], NF4_LEVELS[byte & 15]];
        byte += 1;
    }
    pairs
};

/// The largest magnitude, and 64 codes; the first of two in the high half of a byte.
#[inline(always)]
pub(super) fn nf4(block: &[u8; 36], out: &mut [f32; 64]) {
    let magnitude = f32::from_le_bytes(field(block, 0));
    let codes: [u8; 32] = field(block, 4);
    for (out, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(&codes) {
        let [first, second] = NF4_PAIRS[byte as usize];
        *out = [first * magnitude, second * magnitude];
    }
}

/// A scale, and 32 codes: the low halves of the bytes, then the high ones.
#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    levels(half_at(block, 0), &field(block, 2), out);
}

/// A scale, and 8 groups of 32 codes with a scale of 6 bits around 32, the upper two apart.
#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = half_at(block, 0);
    let upper = u16::from_le_bytes(field(block, 2));
    let lower: [u8; 4] = field(block, 4);
    for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = (lower[group / 2] >> (group % 2 * 4)) & 15;
        let high = (upper >> (2 * group)) & 3;
        let scale = d * ((low as u16 | high << 4) as i32 - 32) as f32;
        levels(scale, &field(block, 8 + 16 * group), out);
    }
}

#[inline(always)]
fn levels(scale: f32, codes: &[u8; 16], out: &mut [f32; 32]) {
    for (i, &byte) in codes.iter().enumerate() {
        out[i] = scale * IQ4_LEVELS[(byte & 15) as usize];
        out[i + 16] = scale * IQ4_LEVELS[(byte >> 4) as usize];
    }
}
