//! Sums of gradients by tensor name.

use std::collections::BTreeMap;

/// Sums of gradients by PEFT tensor name, over the micro-batches of a step; not yet divided by the step's denominator.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Vec<f32>>);

impl Gradients {
    /// The sum so far, to be added to and [`Self::put`] back; zeros at first.
    pub fn take(&mut self, name: &str, len: usize) -> Vec<f32> {
        self.0.remove(name).unwrap_or_else(|| vec![0f32; len])
    }

    /// Puts a sum back.
    pub fn put(&mut self, name: &str, sum: Vec<f32>) {
        self.0.insert(name.to_owned(), sum);
    }

    /// Names and sums, in the order of names.
    pub fn into_sums(self) -> impl ExactSizeIterator<Item = (String, Vec<f32>)> {
        self.0.into_iter()
    }

    /// The sum of a tensor's gradient.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// `√Σ g²` over all tensors, in `f64`.
    pub fn norm(&self) -> f64 {
        let squares = |sum: &Vec<f32>| sum.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        self.0.values().map(squares).sum::<f64>().sqrt()
    }

    /// How many tensors have a gradient.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
