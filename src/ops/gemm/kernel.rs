//! The innermost loops: a tile of 8 × 48 sums, held in registers while the depth runs past.
//!
//! All that is unsafe in a product is here. Tiles at an edge are smaller: 1 to 8 rows, and 16, 32 or 48 columns.

use super::Term;
use crate::ops::element::Element;
use crate::ops::simd::Level;
use half::bf16;

/// Rows of a full tile.
pub const TILE_ROWS: usize = 8;
/// Columns of a full tile.
pub const TILE_COLUMNS: usize = 48;
/// Columns of a vector.
pub const LANES: usize = 16;

/// The sums of a tile, row by row.
pub type Sums = [[f32; TILE_COLUMNS]; TILE_ROWS];

/// A tile of a product: rows of the left sides from `row`, 1 to 8 of them, and a tile of the right sides' columns.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The first row.
    pub row: usize,
    /// How many.
    pub rows: usize,
    /// The number of the tile of columns.
    pub tile: usize,
}

/// Sums of zero.
pub const ZERO: Sums = [[0f32; TILE_COLUMNS]; TILE_ROWS];

/// Types with kernels.
pub trait Kernels: Sized {
    /// Numbers of the depth that lie side by side in the packed right side, and are multiplied at once.
    const GROUP: usize;

    /// `sums += Σ terms lhs · rhs` for one tile; where it is `fresh`, `sums = Σ terms lhs · rhs`. Sums outside of the tile
    /// are not touched.
    ///
    /// # Panics
    /// When a term exceeds its slices, or the machine has not this level: a bug of the caller.
    fn accumulate(level: Level, terms: &[Term<'_, Self>], place: Place, fresh: bool, sums: &mut Sums);
}

/// A term at a tile: the left side from the tile's first row on, the packed tile, and its groups of depth.
fn at<'a, E: Element>(term: &Term<'a, E>, place: Place) -> (&'a [E], &'a [E], usize) {
    let start = place.row * term.lhs.stride;
    (&term.lhs.data[start..], &term.rhs[term.shape.offset(place.tile)..], term.shape.depth / E::GROUP)
}

/// Vectors of a tile's columns, if all terms hold what the tile reads, and the machine has the level's instructions.
fn checked_vectors<E: Element>(level: Level, terms: &[Term<'_, E>], place: Place) -> usize {
    let vectors = terms.first().map_or(1, |term| term.shape.tile(place.tile).1);
    let fits = terms.iter().all(|term| {
        let (lhs, rhs, groups) = at(term, place);
        let depth = groups * E::GROUP;
        term.shape.tile(place.tile).1 == vectors
            && lhs.len() >= (place.rows - 1) * term.lhs.stride + depth
            && rhs.len() >= depth * vectors * LANES
    });
    let sizes = (1..=TILE_ROWS).contains(&place.rows) && (1..=TILE_COLUMNS / LANES).contains(&vectors);
    assert!(fits && sizes, "a tile exceeds its operands");
    assert!(level <= Level::detect(), "this machine has no {}", level.name());
    vectors
}

/// Calls `$kernel::<ROWS, VECTORS>(terms, place, fresh, sums)` for the tile's size.
macro_rules! by_size {
    ($kernel:ident, $vectors:expr, $terms:expr, $place:expr, $fresh:expr, $sums:expr) => {
        match $vectors {
            1 => by_size!(@rows $kernel, 1, $terms, $place, $fresh, $sums, 1 2 3 4 5 6 7 8),
            2 => by_size!(@rows $kernel, 2, $terms, $place, $fresh, $sums, 1 2 3 4 5 6 7 8),
            _ => by_size!(@rows $kernel, 3, $terms, $place, $fresh, $sums, 1 2 3 4 5 6 7 8),
        }
    };
    (@rows $kernel:ident, $vectors:literal, $terms:expr, $place:expr, $fresh:expr, $sums:expr, $($rows:literal)*) => {
        match $place.rows {
            $($rows => $kernel::<$rows, $vectors>($terms, $place, $fresh, $sums),)*
            _ => unreachable!("checked by checked_vectors"),
        }
    };
}

impl Kernels for f32 {
    const GROUP: usize = 1;

    fn accumulate(level: Level, terms: &[Term<'_, Self>], place: Place, fresh: bool, sums: &mut Sums) {
        let vectors = checked_vectors(level, terms, place);
        match level {
            // SAFETY: level and terms were checked.
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "intrinsics on pointers")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { by_size!(tile_f32, vectors, terms, place, fresh, sums) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "intrinsics on pointers")]
            Level::Avx2 => unsafe { tile_f32_avx2(vectors, terms, place, fresh, sums) },
            _ => plain(level, terms, place, fresh, sums),
        }
    }
}

impl Kernels for bf16 {
    const GROUP: usize = 2;

    fn accumulate(level: Level, terms: &[Term<'_, Self>], place: Place, fresh: bool, sums: &mut Sums) {
        let vectors = checked_vectors(level, terms, place);
        match level {
            // SAFETY: level and terms were checked.
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "intrinsics on pointers")]
            Level::Avx512Bf16 => unsafe { by_size!(tile_bf16, vectors, terms, place, fresh, sums) },
            _ => plain(level, terms, place, fresh, sums),
        }
    }
}

/// # Safety
/// The machine has AVX-512 BF16, and `checked_vectors` has passed with this size.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
#[expect(unsafe_code, reason = "intrinsics on pointers")]
unsafe fn tile_bf16<const ROWS: usize, const VECTORS: usize>(
    terms: &[Term<'_, bf16>],
    place: Place,
    fresh: bool,
    sums: &mut Sums,
) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
        _mm512_setzero_si512, _mm512_storeu_ps,
    };
    // SAFETY: `checked_vectors` holds the reads within the slices: row i of the left side ends at i·stride + 2·groups, the
    // right side at groups·2·16·VECTORS. A pair of bf16 is read as one unaligned i32. The sums have 8 rows of 48.
    unsafe {
        let mut c = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for (c, sums) in c.iter_mut().zip(sums.iter()).filter(|_| !fresh) {
            for (v, c) in c.iter_mut().enumerate() {
                *c = _mm512_loadu_ps(sums.as_ptr().add(LANES * v));
            }
        }
        for term in terms {
            let (lhs, rhs, groups) = at(term, place);
            let (mut lhs, mut rhs, stride) = (lhs.as_ptr(), rhs.as_ptr(), term.lhs.stride);
            for _ in 0..groups {
                let mut b = [_mm512_setzero_si512(); VECTORS];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = _mm512_loadu_si512(rhs.add(2 * LANES * v).cast());
                }
                for (i, c) in c.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(lhs.add(i * stride).cast::<i32>().read_unaligned());
                    for (c, b) in c.iter_mut().zip(b) {
                        *c = _mm512_dpbf16_ps(
                            *c,
                            std::mem::transmute::<__m512i, __m512bh>(a),
                            std::mem::transmute::<__m512i, __m512bh>(b),
                        );
                    }
                }
                rhs = rhs.add(2 * LANES * VECTORS);
                lhs = lhs.add(2);
            }
        }
        for (c, sums) in c.iter().zip(sums.iter_mut()) {
            for (v, c) in c.iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(LANES * v), *c);
            }
        }
    }
}

/// # Safety
/// The machine has AVX-512 F, and `checked_vectors` has passed with this size.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "intrinsics on pointers")]
unsafe fn tile_f32<const ROWS: usize, const VECTORS: usize>(
    terms: &[Term<'_, f32>],
    place: Place,
    fresh: bool,
    sums: &mut Sums,
) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};
    // SAFETY: as in `tile_bf16`, with single numbers in place of pairs.
    unsafe {
        let mut c = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for (c, sums) in c.iter_mut().zip(sums.iter()).filter(|_| !fresh) {
            for (v, c) in c.iter_mut().enumerate() {
                *c = _mm512_loadu_ps(sums.as_ptr().add(LANES * v));
            }
        }
        for term in terms {
            let (lhs, rhs, groups) = at(term, place);
            let (mut lhs, mut rhs, stride) = (lhs.as_ptr(), rhs.as_ptr(), term.lhs.stride);
            for _ in 0..groups {
                let mut b = [_mm512_setzero_ps(); VECTORS];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = _mm512_loadu_ps(rhs.add(LANES * v));
                }
                for (i, c) in c.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*lhs.add(i * stride));
                    for (c, b) in c.iter_mut().zip(b) {
                        *c = _mm512_fmadd_ps(a, b, *c);
                    }
                }
                rhs = rhs.add(LANES * VECTORS);
                lhs = lhs.add(1);
            }
        }
        for (c, sums) in c.iter().zip(sums.iter_mut()) {
            for (v, c) in c.iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(LANES * v), *c);
            }
        }
    }
}

/// A tile two rows at a time: their sums are what the registers of AVX2 hold.
///
/// # Safety
/// The machine has AVX2 and FMA, and `checked_vectors` has passed with this number of vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "intrinsics on pointers")]
unsafe fn tile_f32_avx2(vectors: usize, terms: &[Term<'_, f32>], place: Place, fresh: bool, sums: &mut Sums) {
    for first in (0..place.rows).step_by(2) {
        let rows = (place.rows - first).min(2);
        let (place, sums) = (Place { row: place.row + first, rows, ..place }, &mut sums[first..first + rows]);
        // SAFETY: as the caller says; these rows are some of the tile's.
        unsafe {
            match (rows, vectors) {
                (1, 1) => rows_f32_avx2::<1, 1>(terms, place, fresh, sums),
                (1, 2) => rows_f32_avx2::<1, 2>(terms, place, fresh, sums),
                (1, _) => rows_f32_avx2::<1, 3>(terms, place, fresh, sums),
                (_, 1) => rows_f32_avx2::<2, 1>(terms, place, fresh, sums),
                (_, 2) => rows_f32_avx2::<2, 2>(terms, place, fresh, sums),
                _ => rows_f32_avx2::<2, 3>(terms, place, fresh, sums),
            }
        }
    }
}

/// # Safety
/// The machine has AVX2 and FMA, `checked_vectors` has passed with this size, and there are so many rows of sums.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[expect(unsafe_code, reason = "intrinsics on pointers")]
unsafe fn rows_f32_avx2<const ROWS: usize, const VECTORS: usize>(
    terms: &[Term<'_, f32>],
    place: Place,
    fresh: bool,
    sums: &mut [[f32; TILE_COLUMNS]],
) {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    const HALF: usize = LANES / 2;
    // SAFETY: as in `tile_f32`, with two vectors of 8 in place of one of 16.
    unsafe {
        let mut c = [[[_mm256_setzero_ps(); 2]; VECTORS]; ROWS];
        for (c, sums) in c.iter_mut().zip(sums.iter()).filter(|_| !fresh) {
            for (v, c) in c.as_flattened_mut().iter_mut().enumerate() {
                *c = _mm256_loadu_ps(sums.as_ptr().add(HALF * v));
            }
        }
        for term in terms {
            let (lhs, rhs, groups) = at(term, place);
            let (mut lhs, mut rhs, stride) = (lhs.as_ptr(), rhs.as_ptr(), term.lhs.stride);
            for _ in 0..groups {
                let mut a = [_mm256_setzero_ps(); ROWS];
                for (i, a) in a.iter_mut().enumerate() {
                    *a = _mm256_set1_ps(*lhs.add(i * stride));
                }
                for v in 0..VECTORS {
                    for half in 0..2 {
                        let b = _mm256_loadu_ps(rhs.add(LANES * v + HALF * half));
                        for (c, a) in c.iter_mut().zip(a) {
                            c[v][half] = _mm256_fmadd_ps(a, b, c[v][half]);
                        }
                    }
                }
                rhs = rhs.add(LANES * VECTORS);
                lhs = lhs.add(1);
            }
        }
        for (c, sums) in c.iter().zip(sums.iter_mut()) {
            for (v, c) in c.as_flattened().iter().enumerate() {
                _mm256_storeu_ps(sums.as_mut_ptr().add(HALF * v), *c);
            }
        }
    }
}

/// The same sums without intrinsics, two rows at a time: what the registers of AVX2 hold.
fn plain<E: Element>(level: Level, terms: &[Term<'_, E>], place: Place, fresh: bool, sums: &mut Sums) {
    if fresh {
        let columns = terms.first().map_or(1, |term| term.shape.tile(place.tile).1) * LANES;
        sums[..place.rows].iter_mut().for_each(|sums| sums[..columns].fill(0.0));
    }
    for term in terms {
        let (lhs, rhs, groups) = at(term, place);
        let rhs = &rhs[..groups * term.shape.tile(place.tile).1 * LANES * E::GROUP];
        for first in (0..place.rows).step_by(2) {
            let rows = (place.rows - first).min(2);
            let part = PlainTile { lhs: &lhs[first * term.lhs.stride..], stride: term.lhs.stride, rhs, groups };
            let sums = &mut sums[first..first + rows];
            match (rows, term.shape.tile(place.tile).1) {
                (1, 1) => part.run::<1, 1>(level, sums),
                (1, 2) => part.run::<1, 2>(level, sums),
                (1, _) => part.run::<1, 3>(level, sums),
                (_, 1) => part.run::<2, 1>(level, sums),
                (_, 2) => part.run::<2, 2>(level, sums),
                _ => part.run::<2, 3>(level, sums),
            }
        }
    }
}

/// One or two rows of a tile.
struct PlainTile<'a, E> {
    lhs: &'a [E],
    stride: usize,
    rhs: &'a [E],
    groups: usize,
}

impl<E: Element> PlainTile<'_, E> {
    fn run<const ROWS: usize, const VECTORS: usize>(&self, level: Level, sums: &mut [[f32; TILE_COLUMNS]]) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn avx2<E: Element, const ROWS: usize, const VECTORS: usize>(
            tile: &PlainTile<'_, E>,
            sums: &mut [[f32; TILE_COLUMNS]],
        ) {
            tile.body::<ROWS, VECTORS>(sums, f32::mul_add);
        }
        match level {
            // SAFETY: every level but the portable one has AVX2 and FMA.
            #[cfg(target_arch = "x86_64")]
            #[expect(unsafe_code, reason = "calls a function of an instruction set that was detected")]
            Level::Avx2 | Level::Avx512 | Level::Avx512Bf16 => unsafe { avx2::<E, ROWS, VECTORS>(self, sums) },
            _ => self.body::<ROWS, VECTORS>(sums, |a, b, c| a * b + c),
        }
    }

    #[inline(always)]
    fn body<const ROWS: usize, const VECTORS: usize>(
        &self,
        sums: &mut [[f32; TILE_COLUMNS]],
        multiply_add: impl Fn(f32, f32, f32) -> f32,
    ) {
        let mut c = [[[0f32; LANES]; VECTORS]; ROWS];
        let (vectors, _) = self.rhs.as_chunks::<LANES>();
        for (group, vectors) in vectors.chunks_exact(VECTORS * E::GROUP).enumerate().take(self.groups) {
            for (i, c) in c.iter_mut().enumerate() {
                let lhs = &self.lhs[i * self.stride + group * E::GROUP..][..E::GROUP];
                for (v, c) in c.iter_mut().enumerate() {
                    let pairs = &vectors[v * E::GROUP..(v + 1) * E::GROUP];
                    for (g, a) in lhs.iter().enumerate() {
                        for (lane, c) in c.iter_mut().enumerate() {
                            let at = lane * E::GROUP + g;
                            *c = multiply_add(a.to_f32(), pairs[at / LANES][at % LANES].to_f32(), *c);
                        }
                    }
                }
            }
        }
        for (sums, c) in sums.iter_mut().zip(c) {
            for (sum, c) in sums.iter_mut().zip(c.iter().flatten()) {
                *sum += c;
            }
        }
    }
}
