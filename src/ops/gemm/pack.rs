//! The layout of a product's right side that the kernels read.
//!
//! Columns go in tiles of 48, the last one in 16, 32 or 48. A tile holds the depth in groups (one number of `f32`, a pair of
//! `bf16`), and in a group its columns side by side: `[depth / GROUP, columns of the tile, GROUP]`. Depth and columns that do
//! not fill a group or a vector are padded with zeros.

use super::kernel::{LANES, TILE_COLUMNS};
use crate::ops::element::Element;
use crate::ops::simd::Level;

/// The sizes of a packed right side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Depth, a multiple of the group.
    pub depth: usize,
    /// Columns, without padding.
    pub columns: usize,
}

impl Shape {
    /// The shape for this type: `depth` is rounded up to whole groups.
    pub fn new<E: Element>(depth: usize, columns: usize) -> Self {
        Self { depth: depth.next_multiple_of(E::GROUP), columns }
    }

    /// How many tiles there are.
    pub const fn tiles(self) -> usize {
        self.columns.div_ceil(TILE_COLUMNS)
    }

    /// Columns of a tile, and how many vectors hold them.
    pub fn tile(self, index: usize) -> (usize, usize) {
        let columns = (self.columns - index * TILE_COLUMNS).min(TILE_COLUMNS);
        (columns, columns.div_ceil(LANES))
    }

    /// Where a tile starts.
    pub const fn offset(self, index: usize) -> usize {
        index * TILE_COLUMNS * self.depth
    }

    /// Numbers in all, padding included.
    pub const fn numbers(self) -> usize {
        self.depth * self.columns.next_multiple_of(LANES)
    }
}

/// Packs rows `[columns, depth]` that lie `stride` apart, as a transposed right side: row `j` becomes column `j` of the tile.
/// `width`: columns of the tile with padding, whole vectors. Writes `[depth / GROUP, width, GROUP]` to `out`.
pub fn pack_transposed<A: Element, B: Element>(
    rows: &[A],
    stride: usize,
    columns: usize,
    depth: usize,
    width: usize,
    out: &mut [B],
) {
    let block = LANES * B::GROUP;
    let (mut words, mut turned) = ([[0; LANES]; LANES], [[0; LANES]; LANES]);
    for vector in 0..width / LANES {
        let first = vector * LANES;
        let count = columns.saturating_sub(first).min(LANES);
        for start in (0..depth).step_by(block) {
            let length = (depth - start).min(block);
            let from = if count == 0 { &[] } else { &rows[first * stride + start..] };
            block_words::<A, B>(from, stride, count, length, &mut words);
            transpose_words(&words, &mut turned);
            let groups = length.div_ceil(B::GROUP);
            let out = &mut out[(start / B::GROUP * width + first) * B::GROUP..];
            write_words(&turned[..groups], width * B::GROUP, out);
        }
    }
}

/// Packs all tiles of a transposed right side, as [`pack_transposed`] does one: rows `[columns, depth]`, which may be fewer
/// than the shape's columns.
pub fn pack_all_transposed<A: Element, B: Element>(
    rows: &[A],
    stride: usize,
    (columns, depth): (usize, usize),
    shape: Shape,
    out: &mut [B],
) {
    for tile in 0..shape.tiles() {
        let first = tile * TILE_COLUMNS;
        let within = shape.tile(tile).0.min(columns - first);
        let width = shape.tile(tile).1 * LANES;
        pack_transposed(&rows[first * stride..], stride, within, depth, width, &mut out[shape.offset(tile)..]);
    }
}

/// Packs all tiles of a right side as it stands, as `pack_rows` does one: rows `[depth, columns]`, which may be fewer than
/// the shape's columns.
pub fn pack_all_rows<A: Element, B: Element>(
    rows: &[A],
    stride: usize,
    (depth, columns): (usize, usize),
    shape: Shape,
    out: &mut [B],
) {
    for tile in 0..shape.tiles() {
        let first = tile * TILE_COLUMNS;
        let within = shape.tile(tile).0.min(columns - first);
        let width = shape.tile(tile).1 * LANES;
        pack_rows(&rows[first..], stride, depth, within, width, &mut out[shape.offset(tile)..]);
    }
}

/// A square of words: 16 columns by 16 groups of depth, or the other way round.
type Words = [[u32; LANES]; LANES];

super::super::simd::vectorized! {
    /// Up to 16 rows of up to 16 groups as words, zero beyond.
    fn block_words<A: Element, B: Element>(rows: &[A], stride: usize, count: usize, length: usize, words: &mut Words) {
        // What is beyond the length stays zero.
        let mut numbers = [B::default(); 2 * LANES];
        for (j, words) in words.iter_mut().enumerate().take(count) {
            let row = &rows[j * stride..j * stride + length];
            for (number, x) in numbers.iter_mut().zip(row) {
                *number = B::from_f32(x.to_f32());
            }
            B::to_words(&numbers, words);
        }
        words[count..].fill([0; LANES]);
    }
}

super::super::simd::vectorized! {
    /// Writes each row of words, `stride` numbers apart.
    fn write_words<B: Element>(words: &[[u32; LANES]], stride: usize, out: &mut [B]) {
        for (words, out) in words.iter().zip(out.chunks_mut(stride)) {
            B::from_words(words, &mut out[..LANES * B::GROUP]);
        }
    }
}

/// Rows as columns.
fn transpose_words(words: &Words, out: &mut Words) {
    match Level::detect() {
        // SAFETY: both levels have AVX-512 F.
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "calls a function of an instruction set that was detected")]
        Level::Avx512 | Level::Avx512Bf16 => unsafe { transpose_words_avx512(words, out) },
        _ => *out = std::array::from_fn(|i| std::array::from_fn(|j| words[j][i])),
    }
}

/// Four rounds, each exchanging within pairs: words, double words, quarters, halves.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn transpose_words_avx512(words: &Words, out: &mut Words) {
    use std::arch::x86_64::{
        __m512i, _mm512_loadu_si512, _mm512_shuffle_i32x4, _mm512_storeu_si512, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    // SAFETY: a row is 16 words, as many as are read.
    #[expect(unsafe_code, reason = "intrinsics on pointers")]
    let load = |i: usize| -> __m512i { unsafe { _mm512_loadu_si512(words[i].as_ptr().cast()) } };
    // Words 4q + c of rows 4p..4p+4 come to lie side by side: quarter q of `quads[4p + c]`.
    let mut quads = [load(0); LANES];
    for p in 0..4 {
        let [a, b, c, d] = [load(4 * p), load(4 * p + 1), load(4 * p + 2), load(4 * p + 3)];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        quads[4 * p] = _mm512_unpacklo_epi64(ab_low, cd_low);
        quads[4 * p + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
        quads[4 * p + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
        quads[4 * p + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
    }
    for c in 0..4 {
        let [p0, p1, p2, p3] = [quads[c], quads[4 + c], quads[8 + c], quads[12 + c]];
        // Quarters (0, 2) and (1, 3) of two rows of four.
        let (even_low, odd_low) = (_mm512_shuffle_i32x4(p0, p1, 0x88), _mm512_shuffle_i32x4(p0, p1, 0xdd));
        let (even_high, odd_high) = (_mm512_shuffle_i32x4(p2, p3, 0x88), _mm512_shuffle_i32x4(p2, p3, 0xdd));
        let rows = [
            (c, _mm512_shuffle_i32x4(even_low, even_high, 0x88)),
            (8 + c, _mm512_shuffle_i32x4(even_low, even_high, 0xdd)),
            (4 + c, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88)),
            (12 + c, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd)),
        ];
        for (row, words) in rows {
            // SAFETY: a row is 16 words, as many as are written.
            #[expect(unsafe_code, reason = "intrinsics on pointers")]
            unsafe {
                _mm512_storeu_si512(out[row].as_mut_ptr().cast(), words);
            }
        }
    }
}

/// `[rows, columns]` that lie `stride` apart to `[columns, rows]` that lie `out_stride` apart.
pub fn transpose<E: Element>(
    from: &[E],
    stride: usize,
    (rows, columns): (usize, usize),
    out: &mut [E],
    out_stride: usize,
) {
    let side = LANES * E::GROUP;
    let (mut words, mut turned) = ([[0; LANES]; LANES], [[0; LANES]; LANES]);
    for row in (0..rows).step_by(side) {
        for column in (0..columns).step_by(LANES) {
            let (height, width) = ((rows - row).min(side), (columns - column).min(LANES));
            grouped_words(&from[row * stride + column..], stride, height, width, &mut words);
            transpose_words(&words, &mut turned);
            for (j, words) in turned.iter().enumerate().take(width) {
                let out = &mut out[(column + j) * out_stride + row..];
                if height == side {
                    E::from_words(words, &mut out[..side]);
                } else {
                    let mut numbers = [E::default(); 2 * LANES];
                    E::from_words(words, &mut numbers[..side]);
                    out[..height].copy_from_slice(&numbers[..height]);
                }
            }
        }
    }
}

super::super::simd::vectorized! {
    /// Rows in groups (pairs of `bf16`), side by side: word `c` of group `p` holds what rows of the group have in column `c`.
    fn grouped_words<E: Element>(rows: &[E], stride: usize, height: usize, width: usize, words: &mut Words) {
        if width == LANES && height == LANES * E::GROUP {
            for (p, words) in words.iter_mut().enumerate() {
                let row = |g: usize| rows[(p * E::GROUP + g) * stride..].first_chunk::<LANES>();
                if let (Some(first), Some(second)) = (row(0), row(E::GROUP - 1)) {
                    E::pair_words(first, second, words);
                }
            }
            return;
        }
        for (p, words) in words.iter_mut().enumerate() {
            let first = padded_row(rows, p * E::GROUP, stride, height, width);
            let second = padded_row(rows, p * E::GROUP + E::GROUP - 1, stride, height, width);
            E::pair_words(&first, &second, words);
        }
    }
}

/// 16 numbers of a row, zeros beyond the last row and column.
#[inline(always)]
fn padded_row<E: Element>(rows: &[E], row: usize, stride: usize, height: usize, width: usize) -> [E; LANES] {
    let mut numbers = [E::default(); LANES];
    if row < height {
        let from = &rows[row * stride..][..width];
        match from.first_chunk::<LANES>() {
            Some(full) => numbers = *full,
            None => numbers[..width].copy_from_slice(from),
        }
    }
    numbers
}

super::super::simd::vectorized! {
    /// Packs rows `[depth, columns]` that lie `stride` apart: a tile of a right side as it stands. Writes
    /// `[depth / GROUP, width, GROUP]` to `out`.
    pub(crate) fn pack_rows<A: Element, B: Element>(rows: &[A], stride: usize, depth: usize, columns: usize, width: usize,
        out: &mut [B]) {
        let groups = depth.div_ceil(B::GROUP);
        let out = &mut out[..groups * width * B::GROUP];
        for (group, out) in out.chunks_exact_mut(width * B::GROUP).enumerate() {
            out[columns * B::GROUP..].fill(B::default());
            let row = |g: usize| {
                let d = group * B::GROUP + g;
                if d < depth { &rows[d * stride..d * stride + columns] } else { &[] }
            };
            if B::GROUP == 1 {
                for (out, x) in out.iter_mut().zip(row(0)) {
                    *out = B::from_f32(x.to_f32());
                }
            } else {
                let (even, odd) = (row(0), row(1));
                if odd.is_empty() {
                    for (out, x) in out.chunks_exact_mut(2).zip(even) {
                        out[0] = B::from_f32(x.to_f32());
                        out[1] = B::default();
                    }
                } else {
                    for (out, (x, y)) in out.chunks_exact_mut(2).zip(even.iter().zip(odd)) {
                        out[0] = B::from_f32(x.to_f32());
                        out[1] = B::from_f32(y.to_f32());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn numbers<E: Element>(count: usize) -> Vec<E> {
        (0..count).map(|i| E::from_f32((i % 251) as f32 - 125.0)).collect()
    }

    /// What stands at a depth and column of a pack, by the layout's definition.
    fn packed_at<E: Element>(packed: &[E], width: usize, depth: usize, column: usize) -> f32 {
        packed[(depth / E::GROUP * width + column) * E::GROUP + depth % E::GROUP].to_f32()
    }

    fn packs_are_right<E: Element>() {
        for (columns, depth, width) in [(48, 64, 48), (33, 70, 48), (5, 2, 16), (16, 33, 16), (1, 1, 16), (31, 256, 32)]
        {
            let stride = depth.max(columns) + 3;
            let rows = numbers::<f32>(stride * depth.max(columns));
            let padded = depth.next_multiple_of(E::GROUP);
            let mut out = vec![E::from_f32(9.0); padded * width];
            pack_transposed(&rows, stride, columns, depth, width, &mut out);
            let mut straight = vec![E::from_f32(9.0); padded * width];
            pack_rows(&rows, stride, depth, columns, width, &mut straight);
            for d in 0..padded {
                for c in 0..width {
                    let inside = d < depth && c < columns;
                    let expected = if inside { rows[c * stride + d] } else { 0.0 };
                    assert_eq!(packed_at(&out, width, d, c), expected, "transposed, depth {d}, column {c}");
                    let expected = if inside { rows[d * stride + c] } else { 0.0 };
                    assert_eq!(packed_at(&straight, width, d, c), expected, "rows, depth {d}, column {c}");
                }
            }
        }
    }

    #[test]
    fn packs_hold_each_number_in_its_place_and_zeros_beyond() {
        packs_are_right::<f32>();
        packs_are_right::<bf16>();
    }

    #[test]
    fn transposing_twice_changes_nothing() {
        let from = numbers::<bf16>(37 * 50);
        let (mut once, mut twice) = (vec![bf16::ZERO; 40 * 50], vec![bf16::ZERO; 37 * 50]);
        transpose(&from, 50, (37, 50), &mut once, 40);
        assert_eq!(once[40 * 7 + 5], from[5 * 50 + 7]);
        transpose(&once, 40, (50, 37), &mut twice, 50);
        assert_eq!(from, twice);
    }
}
