//! Memory for activations that goes round: a buffer returns to its pool when it is dropped, and the next step takes it again.
//!
//! Fresh memory costs more than the arithmetic of a small operation: the system hands out zeroed pages one by one. What a pool
//! will hold can be known beforehand: a [`Ledger`] lends by the same rules, without any memory.

mod ledger;

pub use ledger::{Held, Ledger, Lent};

use super::element::Element;
use half::bf16;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is free, by its numbers.
#[derive(Debug)]
struct Free<T>(BTreeMap<usize, Vec<T>>);

impl<T> Default for Free<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Free<T> {
    fn put(&mut self, numbers: usize, it: T) {
        self.0.entry(numbers).or_default().push(it);
    }

    /// What is taken where `wanted` numbers would be allocated. A buffer much larger than wanted would be missed by those who
    /// need it, and be held for nothing; a smaller one would do for a small batch, but then what a pool comes to hold would
    /// depend on the order of the batches.
    fn take(&mut self, wanted: usize) -> Option<T> {
        let mut fitting = self.0.range_mut(wanted..=wanted + wanted / 4);
        fitting.find_map(|(_, free)| free.pop())
    }
}

/// Free vectors of one type.
#[derive(Debug)]
pub struct Shelf<E>(Mutex<Free<Vec<E>>>);

impl<E> Default for Shelf<E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<E> Shelf<E> {
    fn with<R>(&self, f: impl FnOnce(&mut Free<Vec<E>>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Free vectors of both types, and an account of what was allocated.
#[derive(Debug, Default)]
pub struct Shelves {
    pub(super) f32: Shelf<f32>,
    pub(super) bf16: Shelf<bf16>,
    allocations: AtomicU64,
    bytes: AtomicU64,
}

/// The rows that a buffer for `rows` rows gets: `capacity`, which is the same for all batches of a run; without it, or beyond
/// it, the next power of two.
pub(super) const fn room(rows: usize, capacity: usize) -> usize {
    if rows <= capacity { capacity } else { rows.next_power_of_two() }
}

/// A pool of buffers; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pool(Arc<Shelves>);

impl Pool {
    /// A buffer of `rows × columns` numbers with room for `capacity_rows` (at least `rows`) rows: batches of differing length
    /// then share their buffers, and room that nobody touches takes no memory. Its content is not defined: what the last user left.
    pub fn take<E: Element>(&self, rows: usize, columns: usize, capacity_rows: usize) -> Buffer<E> {
        let (len, wanted) = (rows * columns, rows.max(capacity_rows) * columns);
        let found = E::shelf(&self.0).with(|free| free.take(wanted));
        let data = found.unwrap_or_else(|| {
            self.0.allocations.fetch_add(1, Ordering::Relaxed);
            self.0.bytes.fetch_add((wanted * size_of::<E>()) as u64, Ordering::Relaxed);
            E::zeros(wanted)
        });
        Buffer { data, len, pool: self.clone() }
    }

    /// How many buffers were ever allocated, and their bytes: both stand still once the largest batch has passed.
    pub fn allocated(&self) -> (u64, u64) {
        (self.0.allocations.load(Ordering::Relaxed), self.0.bytes.load(Ordering::Relaxed))
    }
}

/// Numbers that return to their pool when they are dropped.
#[derive(Debug)]
pub struct Buffer<E: Element> {
    data: Vec<E>,
    len: usize,
    pool: Pool,
}

impl<E: Element> From<Vec<E>> for Buffer<E> {
    fn from(data: Vec<E>) -> Self {
        Self { len: data.len(), data, pool: Pool::default() }
    }
}

impl<E: Element> Deref for Buffer<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.data[..self.len]
    }
}

impl<E: Element> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.data[..self.len]
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        E::shelf(&self.pool.0).with(|free| free.put(data.len(), data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let pool = Pool::default();
        for rows in [7, 10, 3, 9] {
            let mut a = pool.take::<f32>(rows, 64, 10);
            let b = pool.take::<bf16>(rows, 64, 10);
            assert_eq!((a.len(), b.len()), (rows * 64, rows * 64));
            a.fill(1.0);
        }
        assert_eq!(pool.allocated(), (2, 10 * 64 * 6));
        let small = pool.take::<f32>(10, 4, 10);
        assert_eq!(small.len(), 40);
        assert_eq!(pool.allocated().0, 3, "a buffer much too large is left for those who need it");
    }
}
