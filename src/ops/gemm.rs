//! A safe door to the `gemm` crate: bounds are checked, strides are explicit.

use gemm::Parallelism;

/// A matrix that is read: element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows lie `row_stride` apart.
    pub const fn strided(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// A row-major matrix without gaps.
    pub const fn dense(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// The same numbers, rows as columns.
    #[must_use]
    pub const fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    const fn span(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            0
        } else {
            (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
        }
    }
}

/// A row-major matrix that is written.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// A row-major matrix whose rows lie `row_stride` apart.
    pub const fn strided(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride }
    }

    /// A row-major matrix without gaps.
    pub const fn dense(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        Self { data, rows, columns, row_stride: columns }
    }
}

/// Whether a product may use all threads, or runs inside a thread of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All threads of rayon's pool.
    All,
    /// The calling thread.
    One,
}

/// `dst = scale · lhs · rhs`, or `dst += scale · lhs · rhs` under `accumulate`. All `f32`.
///
/// The depth is never split between threads, so the result does not depend on their timing.
///
/// # Panics
/// When the shapes do not fit each other or their slices: a bug of the caller.
#[expect(clippy::needless_pass_by_value, reason = "dst is a mutable view that ends with the call")]
pub fn gemm(dst: MatrixMut<'_>, lhs: Matrix<'_>, rhs: Matrix<'_>, scale: f32, accumulate: bool, threads: Threads) {
    let (m, n, k) = (dst.rows, dst.columns, lhs.columns);
    assert!(lhs.rows == m && rhs.rows == k && rhs.columns == n, "gemm: shapes do not fit");
    if m == 0 || n == 0 {
        return;
    }
    let span = (m - 1) * dst.row_stride + n;
    assert!(dst.row_stride >= n && span <= dst.data.len(), "gemm: dst exceeds its slice");
    assert!(lhs.span() <= lhs.data.len() && rhs.span() <= rhs.data.len(), "gemm: an input exceeds its slice");
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::One => Parallelism::None,
    };
    // SAFETY: all three matrices lie within their slices (checked above), dst is borrowed mutably and so does not overlap
    // the inputs, and its rows do not overlap each other.
    #[expect(unsafe_code, reason = "the gemm crate takes pointers")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.data.as_mut_ptr(),
            1,
            dst.row_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_transposes_scales_and_accumulates() {
        // lhs is 2×3 in rows of 4, rhs is a 2×3 matrix transposed to 3×2, dst is 2×2 in rows of 3.
        let lhs = [1., 2., 3., 9., 4., 5., 6., 9.];
        let rhs = [1., 0., 1., 0., 1., 1.];
        let mut dst = [10., 20., -1., 30., 40.];
        gemm(
            MatrixMut::strided(&mut dst, 2, 2, 3),
            Matrix::strided(&lhs, 2, 3, 4),
            Matrix::dense(&rhs, 2, 3).t(),
            2.0,
            true,
            Threads::One,
        );
        assert_eq!(dst, [18., 30., -1., 50., 62.]);
    }
}
