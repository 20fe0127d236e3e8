//! Access to the numbers of a CPU tensor, for the kernels of this floor.

use candle_core::{Result, Storage, Tensor, bail};
use std::ops::{Deref, Range};

/// The numbers of a tensor, held against writing as long as this lives.
struct Numbers<S> {
    storage: S,
    range: Range<usize>,
}

/// The `f32` numbers of a contiguous tensor on the CPU, held against writing as long as they are.
///
/// # Errors
/// When the tensor is on another device, of another type, or has gaps.
pub fn numbers(tensor: &Tensor) -> Result<impl Deref<Target = [f32]>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got strides {:?}", layout.stride());
    };
    match &*storage {
        Storage::Cpu(numbers) => numbers.as_slice::<f32>().map(|_| ())?,
        _ => bail!("expected a tensor on the CPU"),
    }
    Ok(Numbers { storage, range: start..end })
}

impl<S: Deref<Target = Storage>> Deref for Numbers<S> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(numbers) => numbers.as_slice::<f32>().map_or(&[], |numbers| &numbers[self.range.clone()]),
            _ => &[],
        }
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
