//! Rotary positions of a model: what turns with which frequency.

use crate::ops::RopeTable;

/// The rotation of some layers' heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per token, one for each pair of rotated numbers, at most half a head. What has a frequency of 0 stays as it is.
    pub frequencies: Vec<f32>,
    /// What cosines and sines are multiplied by; scores then grow by its square.
    pub factor: f32,
    /// Other frequencies, for runs with long texts.
    pub long: Option<LongRope>,
    /// Queries of far positions are multiplied by a factor.
    pub temperature: Option<Temperature>,
    /// Whether neighbours are the pairs (`2i` with `2i + 1`), or the halves (`i` with `i + n`).
    pub interleaved: bool,
}

/// Frequencies for runs whose longest text has more tokens than the model was made for at first.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// The positions that the model was made for at first.
    pub original: usize,
    /// In place of [`Rope::frequencies`].
    pub frequencies: Vec<f32>,
}

/// The factor of queries at position `p`: `1 + β·ln(1 + ⌊p/o⌋)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// `β`
    pub beta: f32,
    /// `o`: positions whose factor is 1.
    pub original: usize,
}

impl Rope {
    /// Frequencies as they are.
    pub const fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies, factor: 1.0, long: None, temperature: None, interleaved: false }
    }

    /// `theta^(-2i/width)` for `width` rotated numbers.
    pub fn plain(theta: f64, width: usize) -> Self {
        Self::new((0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64) as f32).collect())
    }

    /// Takes the frequencies for texts of this length; gives whether they are other ones.
    pub fn fit(&mut self, longest: usize) -> bool {
        let Some(long) = self.long.take_if(|long| longest > long.original) else { return false };
        self.frequencies = long.frequencies;
        true
    }

    /// Cosines, sines and factors of tokens at these positions.
    pub fn table(&self, position_ids: &[u32]) -> RopeTable {
        let table = RopeTable::new(position_ids, &self.frequencies, self.factor).with_interleaved(self.interleaved);
        let Some(Temperature { beta, original }) = self.temperature else { return table };
        let factor = |&position: &u32| 1.0 + beta * ((position as usize / original) as f32).ln_1p();
        table.with_query_factors(position_ids.iter().map(factor).collect())
    }
}
