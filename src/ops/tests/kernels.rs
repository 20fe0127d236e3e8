//! Products against three plain loops in `f64`, at each level that this machine has.

use super::*;
use crate::ops::gemm::pack::{Shape, pack_rows, pack_transposed};
use crate::ops::gemm::{LANES, Lhs, Place, TILE_COLUMNS, TILE_ROWS, Term, add, multiply, store};
use crate::ops::simd::Level;

/// The levels up to this machine's.
fn levels() -> impl Iterator<Item = Level> {
    let all = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];
    all.into_iter().filter(|level| *level <= Level::detect())
}

/// A left and a right side of some depth, with numbers beyond that must not be read: NaN.
struct Sides<E> {
    lhs: Vec<E>,
    stride: usize,
    /// `[depth, columns]`
    rhs: Vec<E>,
    packed: Vec<E>,
    shape: Shape,
}

impl<E: Element> Sides<E> {
    fn new(rows: usize, depth: usize, columns: usize, seed: u64) -> Self {
        let (stride, shape) = (depth + 5, Shape::new::<E>(depth, columns));
        assert_eq!(shape.depth, depth, "whole groups");
        let mut lhs = soiled::<E>(rows * stride);
        for (lhs, x) in lhs.chunks_exact_mut(stride).zip(random(rows * depth, seed).chunks_exact(depth)) {
            lhs[..depth].copy_from_slice(&rounded::<E>(x));
        }
        let rhs = rounded::<E>(&random(depth * columns, seed + 100));
        let mut packed = soiled::<E>(shape.numbers());
        for tile in 0..shape.tiles() {
            let (width, vectors) = shape.tile(tile);
            let from = &rhs[tile * TILE_COLUMNS..];
            pack_rows(from, columns, depth, width, vectors * LANES, &mut packed[shape.offset(tile)..]);
        }
        Self { lhs, stride, rhs, packed, shape }
    }

    fn term(&self) -> Term<'_, E> {
        Term { lhs: Lhs { data: &self.lhs, stride: self.stride }, rhs: &self.packed, shape: self.shape }
    }

    /// The sum at a row and a column, and how large its parts are.
    fn at(&self, row: usize, column: usize) -> (f64, f64) {
        let parts = (0..self.shape.depth).map(|p| {
            let (a, b) = (self.lhs[row * self.stride + p], self.rhs[p * self.shape.columns + column]);
            f64::from(a.to_f32()) * f64::from(b.to_f32())
        });
        parts.fold((0.0, 0.0), |(sum, size), part| (sum + part, size + part.abs()))
    }
}

fn each_tile_is_right<E: Element>() {
    const ROW: usize = 3;
    for terms in 1..=3 {
        for vectors in 1..=3 {
            for missing in [0, 5, 15] {
                // The second tile of two; the first is full.
                let columns = TILE_COLUMNS + vectors * LANES - missing;
                let depths = [66, 2, 14];
                let sides: Vec<_> = (0..terms)
                    .map(|i| Sides::<E>::new(ROW + TILE_ROWS, depths[i], columns, i as u64 + vectors as u64))
                    .collect();
                let all: Vec<_> = sides.iter().map(Sides::term).collect();
                for level in levels() {
                    for rows in 1..=TILE_ROWS {
                        for (tile, width) in [(0, TILE_COLUMNS), (1, columns - TILE_COLUMNS)] {
                            for fresh in [true, false] {
                                tile_is_right(level, &sides, &all, Place { row: ROW, rows, tile }, width, fresh);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn tile_is_right<E: Element>(
    level: Level,
    sides: &[Sides<E>],
    terms: &[Term<'_, E>],
    place: Place,
    width: usize,
    fresh: bool,
) {
    let mut sums = [[7.5f32; TILE_COLUMNS]; TILE_ROWS];
    E::accumulate(level, terms, place, fresh, &mut sums);
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            let what = format!("{level:?}, {place:?}, {} terms, fresh: {fresh}: row {i}, column {j}", terms.len());
            if i >= place.rows || j >= width.next_multiple_of(LANES) {
                assert_eq!(*sum, 7.5, "{what} is outside of the tile");
            } else if j < width {
                let before = if fresh { 0.0 } else { 7.5 };
                let (expected, size) = sides.iter().fold((before, before), |(sum, size), side| {
                    let at = side.at(place.row + i, place.tile * TILE_COLUMNS + j);
                    (sum + at.0, size + at.1)
                });
                let apart = (f64::from(*sum) - expected).abs();
                assert!(apart < 1e-6 * (1.0 + size), "{what}: {sum} is not {expected}");
            }
        }
    }
}

#[test]
fn each_tile_is_right_at_each_level() {
    each_tile_is_right::<f32>();
    each_tile_is_right::<bf16>();
}

#[test]
#[should_panic(expected = "exceeds its operands")]
fn a_tile_beyond_its_operands_is_refused() {
    let side = Sides::<f32>::new(8, 6, 20, 1);
    let mut sums = [[0f32; TILE_COLUMNS]; TILE_ROWS];
    <f32 as crate::ops::gemm::Kernels>::accumulate(
        Level::detect(),
        &[side.term()],
        Place { row: 1, rows: 8, tile: 0 },
        true,
        &mut sums,
    );
}

fn products_are_right<E: Element>() {
    for (m, n, depth) in [(1, 1, 2), (7, 47, 6), (8, 48, 32), (9, 49, 64), (40, 130, 34), (300, 17, 8), (261, 96, 2)] {
        let sides = [Sides::<E>::new(m, depth, n, 1), Sides::<E>::new(m, 6, n, 2)];
        let terms = sides.each_ref().map(Sides::term);
        let stride = n + 3;
        let (mut stored, mut added) = (vec![0.25f32; m * stride], vec![0.25f32; m * stride]);
        multiply(&terms, (m, n), &mut stored, stride, store::<f32>);
        multiply(&terms, (m, n), &mut added, stride, add);
        for (at, (stored, added)) in stored.iter().zip(&added).enumerate() {
            let (i, j) = (at / stride, at % stride);
            let (expected, size) = if j < n {
                sides.iter().map(|side| side.at(i, j)).fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1))
            } else {
                (0.25, 0.0)
            };
            let before = if j < n { 0.25 } else { 0.0 };
            let near = |got: f32, expected: f64| (f64::from(got) - expected).abs() < 1e-6 * (1.0 + size);
            assert!(near(*stored, expected), "{m}×{n}×{depth}: {stored} at {i}, {j} is not {expected}");
            assert!(
                near(*added, expected + before),
                "{m}×{n}×{depth}: {added} at {i}, {j} is not {expected} and {before}"
            );
        }
    }
}

#[test]
fn products_of_any_size_are_right_and_write_nothing_beside_them() {
    products_are_right::<f32>();
    products_are_right::<bf16>();
}

#[test]
fn a_product_does_not_depend_on_the_number_of_threads() {
    fn run<E: Element>() {
        let side = Sides::<E>::new(150, 70, 100, 3);
        let product = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0f32; 150 * 100];
            pool.install(|| multiply(&[side.term()], (150, 100), &mut out, 100, store::<f32>));
            out
        };
        let one = product(1);
        assert!([2, 3, 7].into_iter().all(|threads| product(threads) == one));
    }
    run::<f32>();
    run::<bf16>();
}

/// A transposed pack of rows is the pack of their columns.
#[test]
fn a_transposed_pack_is_the_pack_of_the_transposed() {
    fn run<E: Element>() {
        for (columns, depth) in [(48usize, 64usize), (33, 70), (5, 2), (16, 33), (1, 1)] {
            let width = columns.next_multiple_of(LANES);
            let rows = random(columns * depth, 3);
            let turned: Vec<f32> = (0..depth * columns).map(|i| rows[i % columns * depth + i / columns]).collect();
            let size = depth.next_multiple_of(E::GROUP) * width;
            let (mut one, mut other) = (soiled::<E>(size), soiled::<E>(size));
            pack_transposed(&rows, depth, columns, depth, width, &mut one);
            pack_rows(&turned, columns, depth, columns, width, &mut other);
            assert_eq!(widened(&one), widened(&other), "{columns} columns, depth {depth}");
        }
    }
    run::<f32>();
    run::<bf16>();
}
