//! Matrix products of our own: `f32` sums of `f32` or `bf16` numbers.
//!
//! The left side is read where it lies, row by row; the right side is packed ([`pack`]), so that whoever packs can
//! dequantize on the way. The depth is never split between threads, so results do not depend on their number or timing.

mod kernel;
pub mod pack;

pub use kernel::{Kernels, LANES, Place, Sums, TILE_COLUMNS, TILE_ROWS, ZERO};

use super::element::Element;
use super::simd::Level;
use pack::Shape;
use rayon::prelude::*;

/// A left side: element `(i, p)` is `data[i * stride + p]`.
#[derive(Debug, Clone, Copy)]
pub struct Lhs<'a, E> {
    /// The numbers from the first one on.
    pub data: &'a [E],
    /// From row to row.
    pub stride: usize,
}

/// A stretch of the depth: some columns of a left side, and the packed right side that they meet.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a, E> {
    /// The left side from the first column of this stretch.
    pub lhs: Lhs<'a, E>,
    /// The right side: tiles of this shape, one after the other.
    pub rhs: &'a [E],
    /// Its shape; all terms of a product have the same columns.
    pub shape: Shape,
}

/// Rows of the output that a task takes at a time, so that a tile of the right side serves many of them from the cache.
const BLOCK_ROWS: usize = 128;

/// `out[m, n] = Σ terms lhs · rhs`, tile by tile: `store(out, stride, sums, columns)` is called with the output from the
/// tile's first number on, and its rows of sums. `stride`: from row to row of `out`, whose first `m` rows and `n` columns are written.
///
/// # Panics
/// When shapes do not fit their slices: a bug of the caller.
pub fn multiply<E: Element, O: Send>(
    terms: &[Term<'_, E>],
    (m, n): (usize, usize),
    out: &mut [O],
    stride: usize,
    store: impl Fn(&mut [O], usize, &[[f32; TILE_COLUMNS]], usize) + Sync,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(terms.iter().all(|term| term.shape.columns == n) && n <= stride, "gemm: shapes do not fit");
    let level = Level::detect();
    let block = (m.div_ceil(2 * rayon::current_num_threads())).next_multiple_of(TILE_ROWS).clamp(TILE_ROWS, BLOCK_ROWS);
    let out = &mut out[..(m - 1) * stride + n];
    out.par_chunks_mut(block * stride).enumerate().for_each(|(index, out)| {
        let first = index * block;
        let mut sums = ZERO;
        for tile in 0..n.div_ceil(TILE_COLUMNS) {
            let column = tile * TILE_COLUMNS;
            let columns = (n - column).min(TILE_COLUMNS);
            for row in (0..(m - first).min(block)).step_by(TILE_ROWS) {
                let rows = (m - first - row).min(TILE_ROWS);
                E::accumulate(level, terms, Place { row: first + row, rows, tile }, true, &mut sums);
                store(&mut out[row * stride + column..], stride, &sums[..rows], columns);
            }
        }
    });
}

super::simd::vectorized! {
    /// Stores a tile of sums, rounded.
    pub fn store<O: Element>(out: &mut [O], stride: usize, sums: &[[f32; TILE_COLUMNS]], columns: usize) {
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut out[i * stride..][..columns];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = O::from_f32(*sum);
            }
        }
    }
}

super::simd::vectorized! {
    /// Adds a tile of sums to what is there.
    pub fn add(out: &mut [f32], stride: usize, sums: &[[f32; TILE_COLUMNS]], columns: usize) {
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut out[i * stride..][..columns];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += *sum;
            }
        }
    }
}

/// `lhs · rows`, where the depth is the tokens: `lhs: [r, tokens]` as it lies (padded to whole groups with zeros), `rows:
/// [tokens, columns]` that lie `stride` apart. `packed` has room for [`Shape::numbers`], `results` for `r` rows of whole
/// tiles. `sink(row, column, sums)` is called for each row of each tile of the result.
///
/// The tasks are tiles of columns: `r` is small, and a tile is packed and used up in the cache.
pub fn contract_tokens<E: Element>(
    (lhs, r): (Lhs<'_, E>, usize),
    (rows, stride): (&[E], usize),
    (tokens, columns): (usize, usize),
    (packed, results): (&mut [E], &mut [f32]),
    mut sink: impl FnMut(usize, usize, &[f32]),
) {
    let shape = Shape::new::<E>(tokens, columns);
    let level = Level::detect();
    let tile_results = r * TILE_COLUMNS;
    let tiles = packed[..shape.numbers()].par_chunks_mut(TILE_COLUMNS * shape.depth);
    tiles.zip(results.par_chunks_mut(tile_results)).enumerate().for_each(|(tile, (packed, results))| {
        let (columns, vectors) = shape.tile(tile);
        pack::pack_rows(&rows[tile * TILE_COLUMNS..], stride, tokens, columns, vectors * LANES, packed);
        let only = Shape { depth: shape.depth, columns };
        let mut sums = ZERO;
        for first in (0..r).step_by(TILE_ROWS) {
            let count = (r - first).min(TILE_ROWS);
            let place = Place { row: first, rows: count, tile: 0 };
            E::accumulate(level, &[Term { lhs, rhs: packed, shape: only }], place, true, &mut sums);
            for (sums, out) in
                sums.iter().zip(results[first * TILE_COLUMNS..].chunks_exact_mut(TILE_COLUMNS)).take(count)
            {
                out.copy_from_slice(sums);
            }
        }
    });
    for tile in 0..shape.tiles() {
        let (columns, _) = shape.tile(tile);
        for row in 0..r {
            sink(row, tile * TILE_COLUMNS, &results[tile * tile_results + row * TILE_COLUMNS..][..columns]);
        }
    }
}
