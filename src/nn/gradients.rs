//! Sums of gradients by tensor name.

use crate::ops::{Buffer, Pool};
use std::collections::BTreeMap;

/// Sums of gradients by PEFT tensor name, over the micro-batches of a step; not yet divided by the step's denominator.
#[derive(Debug, Default)]
pub struct Gradients {
    sums: BTreeMap<String, Buffer<f32>>,
    pool: Pool,
}

impl Gradients {
    /// No sums; their memory comes from `pool`, and goes back to it.
    pub fn new(pool: &Pool) -> Self {
        Self { sums: BTreeMap::new(), pool: pool.clone() }
    }

    /// The sum so far, to be added to and [`Self::put`] back; zeros at first.
    pub fn take(&mut self, name: &str, len: usize) -> Buffer<f32> {
        self.sums.remove(name).unwrap_or_else(|| {
            let mut zeros = self.pool.take(1, len, 1);
            zeros.fill(0.0);
            zeros
        })
    }

    /// Puts a sum back.
    pub fn put(&mut self, name: &str, sum: impl Into<Buffer<f32>>) {
        self.sums.insert(name.to_owned(), sum.into());
    }

    /// Names and sums, in the order of names.
    pub fn into_sums(self) -> impl ExactSizeIterator<Item = (String, Vec<f32>)> {
        self.sums.into_iter().map(|(name, sum)| (name, sum.to_vec()))
    }

    /// The sum of a tensor's gradient.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.sums.get(name).map(|sum| &**sum)
    }

    /// `√Σ g²` over all tensors, in `f64`.
    pub fn norm(&self) -> f64 {
        let squares = |sum: &Buffer<f32>| sum.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        self.sums.values().map(squares).sum::<f64>().sqrt()
    }

    /// How many tensors have a gradient.
    pub fn len(&self) -> usize {
        self.sums.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }
}
