//! Access to the numbers of a CPU tensor, for the kernels of this floor.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// The `f32` numbers of a contiguous storage, as a custom operation is given them.
pub(super) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got strides {:?}", layout.stride());
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Runs `f` on the `f32` numbers of a CPU tensor, in row-major order.
pub(super) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(contiguous(storage, layout)?),
        _ => bail!("expected a tensor on the CPU"),
    }
}

/// The product of all dimensions but the last, and the last.
pub(super) fn rows_and_columns(dims: &[usize]) -> Result<(usize, usize)> {
    match dims.split_last() {
        Some((&columns, rows)) => Ok((rows.iter().product(), columns)),
        None => bail!("expected at least one dimension"),
    }
}

/// The dot product of two rows in sixteen lanes: a fixed order that the compiler can vectorize.
pub(super) fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a_chunks, b_chunks) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for lane in 0..16 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    lanes.iter().sum::<f32>() + tail
}
