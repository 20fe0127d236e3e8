//! Dropout on an adapter's inputs.

use super::element::Element;
use crate::rng::mix;
use rayon::prelude::*;

/// Dropout whose mask is a function of its keys: the same when a layer is run again, and whichever way a step is cut into
/// micro-batches.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    /// Share of the inputs that is zeroed; the others are divided by `1 - probability`.
    pub probability: f32,
    /// A key for each row (token) of the input.
    pub row_keys: &'a [u64],
    /// A key for the layer.
    pub layer_key: u64,
}

impl Dropout<'_> {
    /// `out = D(x)` for `x: [rows, columns]`.
    pub fn apply<E: Element>(&self, x: &[E], out: &mut [E], columns: usize) {
        let rows = out.par_chunks_mut(columns).zip(x.par_chunks(columns)).zip(self.row_keys);
        rows.with_min_len(16).for_each(|((out, x), &row_key)| {
            for ((out, x), mask) in out.iter_mut().zip(x).zip(self.mask(row_key)) {
                *out = E::from_f32(x.to_f32() * mask);
            }
        });
    }

    /// `out += D(x)`
    pub fn apply_add(&self, x: &[f32], out: &mut [f32], columns: usize) {
        let rows = out.par_chunks_mut(columns).zip(x.par_chunks(columns)).zip(self.row_keys);
        rows.with_min_len(16).for_each(|((out, x), &row_key)| {
            for ((out, x), mask) in out.iter_mut().zip(x).zip(self.mask(row_key)) {
                *out += x * mask;
            }
        });
    }

    /// The masks of all rows, `[rows, columns]`.
    pub fn masks(&self, columns: usize) -> Vec<f32> {
        self.row_keys.iter().flat_map(|&key| self.mask(key).take(columns)).collect()
    }

    /// Random numbers below the first are dropped; the others are multiplied by the second.
    pub(super) fn factors(probability: f32) -> (u64, f32) {
        ((f64::from(probability) * 2f64.powi(64)) as u64, 1.0 / (1.0 - probability))
    }

    /// What the numbers of a row are multiplied by.
    fn mask(&self, row_key: u64) -> impl Iterator<Item = f32> + use<> {
        let (threshold, keep) = Dropout::factors(self.probability);
        let key = mix(row_key ^ self.layer_key);
        (0u64..).map(move |column| if mix(key.wrapping_add(column)) < threshold { 0.0 } else { keep })
    }
}
