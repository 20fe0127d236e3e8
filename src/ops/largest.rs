//! The largest numbers of a row that comes in pieces, and the entropy of their softmax.

/// The `k` largest numbers so far.
#[derive(Debug, Clone)]
pub(super) struct Largest {
    /// In falling order.
    values: Vec<f32>,
    k: usize,
}

impl Largest {
    pub fn new(k: usize) -> Self {
        Self { values: Vec::with_capacity(k), k }
    }

    /// Takes another piece, whose largest number is `max`. A NaN is not taken.
    pub fn take(&mut self, piece: &[f32], max: f32) {
        if self.values.len() == self.k && max <= self.least() {
            return;
        }
        for &x in piece {
            if self.values.len() < self.k || x > self.least() {
                self.insert(x);
            }
        }
    }

    fn least(&self) -> f32 {
        self.values.last().copied().unwrap_or(f32::NEG_INFINITY)
    }

    fn insert(&mut self, x: f32) {
        if x.is_nan() {
            return;
        }
        if self.values.len() == self.k {
            self.values.pop();
        }
        let place = self.values.partition_point(|&larger| larger >= x);
        self.values.insert(place, x);
    }

    /// `-Σ p·log p` with `p` the softmax of these numbers alone, in nats.
    pub fn entropy(&self) -> f64 {
        entropy(&self.values)
    }
}

/// `-Σ p·log p` with `p` the softmax of some numbers in falling order: `log Σ e^x - Σ p·x`, relative to the first.
pub(super) fn entropy(falling: &[f32]) -> f64 {
    let Some(&first) = falling.first() else { return 0.0 };
    let (mut sum, mut product) = (0.0, 0.0);
    for &x in falling {
        let relative = f64::from(x) - f64::from(first);
        let e = relative.exp();
        if e > 0.0 {
            sum += e;
            product += e * relative;
        }
    }
    // Rounding may leave it a little below 0 where one number has it all.
    (sum.ln() - product / sum).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_found_in_any_order_and_ties_are_kept() {
        let numbers = [3.0, -1.0, 7.0, 7.0, 2.0, f32::NAN, 5.0, f32::NEG_INFINITY];
        for size in 1..=numbers.len() {
            let mut largest = Largest::new(4);
            for piece in numbers.chunks(size) {
                largest.take(piece, piece.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            }
            assert_eq!(largest.values, [7.0, 7.0, 5.0, 3.0]);
        }
    }

    #[test]
    fn entropy_is_that_of_the_softmax() {
        assert!((entropy(&[2.0; 5]) - 5f64.ln()).abs() < 1e-12);
        assert_eq!(entropy(&[900.0, 0.0]), 0.0);
        assert_eq!(entropy(&[1.0, f32::NEG_INFINITY]), 0.0);
        let (p, q) = (0.25f64, 0.75f64);
        let two = [(q / p).ln() as f32, 0.0];
        assert!((entropy(&two) + p * p.ln() + q * q.ln()).abs() < 1e-7);
    }
}
