//! Operations on rows of numbers: normalization, rotary positions.

use super::*;
use crate::ops::{AttentionShape, RopeTable, composed, rms_norm, rms_norm_backward};

struct RmsNorm {
    weight: Vec<f32>,
}

impl Operation for RmsNorm {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = soiled::<E>(inputs[0].len());
        rms_norm(&inputs[0], &self.weight, 1e-5, &mut y);
        widened(&y)
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut dx = vec![0.0; dy.len()];
        rms_norm_backward(&inputs[0], &self.weight, 1e-5, dy, &mut dx);
        vec![dx]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let d = self.weight.len();
        let weight = Tensor::from_slice(&self.weight, d, &Device::Cpu).unwrap();
        composed::rms_norm(&inputs[0].reshape(((), d)).unwrap(), &weight, 1e-5).unwrap()
    }
}

#[test]
fn rms_norm_is_right_forward_and_backward() {
    for (rows, d) in [(12, 32), (1, 7), (37, 100), (3, 2048)] {
        let operation = RmsNorm { weight: random(d, 4) };
        check(&format!("rms_norm {rows}×{d}"), &operation, &[random(rows * d, 5)]);
    }
}

#[test]
fn the_gradient_of_a_norm_is_added_to_what_is_there() {
    let (x, weight, dy) = (random(40, 1), random(20, 2), random(40, 3));
    let (mut alone, mut added) = (vec![0.0; 40], vec![3.0; 40]);
    rms_norm_backward(&x, &weight, 1e-5, &dy, &mut alone);
    rms_norm_backward(&x, &weight, 1e-5, &dy, &mut added);
    for (alone, added) in alone.iter().zip(&added) {
        assert!((alone + 3.0 - added).abs() < 1e-5);
    }
}

/// Queries, keys and values of rows as a layer has them.
struct Rope {
    table: RopeTable,
    shape: AttentionShape,
}

impl Rope {
    /// Heads of `head_dim`, of which the first `2·frequencies.len()` numbers are rotated.
    fn new(positions: &[u32], frequencies: &[f32], (heads, kv_heads, head_dim): (usize, usize, usize)) -> Self {
        let table = RopeTable::new(positions, frequencies, 1.25);
        Self { table, shape: AttentionShape::new(heads, kv_heads, head_dim) }
    }

    /// With a factor for each token's queries.
    fn scaled(self, tokens: usize) -> Self {
        let factors = (0..tokens).map(|i| 1.0 + 0.3 * i as f32).collect();
        Self { table: self.table.with_query_factors(factors), ..self }
    }
}

impl Operation for Rope {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut x = rounded::<E>(&inputs[0]);
        self.table.rotate(&mut x, self.shape);
        widened(&x)
    }

    fn backward<E: Element>(&self, _inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut dx = dy.to_vec();
        for (token, row) in dx.chunks_exact_mut(self.shape.width()).enumerate() {
            self.table.rotate_back(token, row, self.shape);
        }
        vec![dx]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let rows = inputs[0].reshape((1, (), self.shape.width())).unwrap();
        let t = rows.dim(1).unwrap();
        let (cos, sin) = self.table.tensors(1, t, &Device::Cpu).unwrap();
        let factors = self.table.query_factor_tensor(1, t, &Device::Cpu).unwrap();
        let part = |start, count| rows.narrow(2, start * head_dim, count * head_dim).unwrap().contiguous().unwrap();
        let q = composed::rope(&part(0, heads), &cos, &sin, factors.as_ref(), head_dim).unwrap();
        let k = composed::rope(&part(heads, kv_heads), &cos, &sin, None, head_dim).unwrap();
        Tensor::cat(&[q, k, part(heads + kv_heads, kv_heads)], 2).unwrap()
    }
}

#[test]
fn rope_is_right_forward_and_backward() {
    const FREQUENCIES: [f32; 5] = [1.0, 0.3, 0.05, 0.01, 0.0];
    for positions in [&[0, 1, 2, 0, 1, 7][..], &[5; 40], &[1000, 1]] {
        // Whole heads, a part of each, and heads of an odd rest.
        for (half, heads) in [(4, (3, 1, 8)), (3, (2, 2, 8)), (1, (4, 2, 16)), (5, (1, 1, 37))] {
            let new = || Rope::new(positions, &FREQUENCIES[..half], heads);
            for (name, rope) in [("rope", new()), ("rope with factors", new().scaled(positions.len()))] {
                let x = random(positions.len() * rope.shape.width(), 8);
                check(&format!("{name}, {half} of {heads:?} at {positions:?}"), &rope, &[x]);
            }
        }
    }
}

/// The plain formula, head by head: whole heads have its bits, and so have the rotated numbers of a part.
#[test]
fn what_is_rotated_has_the_bits_of_the_formula() {
    fn of<E: Element>() {
        for half in [4, 3] {
            let rope = Rope::new(&[0, 3, 50], &[1.0, 0.3, 0.05, 0.01][..half], (3, 2, 8));
            let input = rounded::<E>(&random(3 * rope.shape.width(), 8));
            let mut got = input.clone();
            rope.table.rotate(&mut got, rope.shape);
            let (cos, sin) = rope.table.numbers();
            for (i, (got, input)) in got.chunks_exact(8).zip(input.chunks_exact(8)).enumerate() {
                let (token, mut expected) = (i / 7, input.to_vec());
                for j in (0..half).filter(|_| i % 7 < 5) {
                    let (a, b) = (input[j].to_f32(), input[j + half].to_f32());
                    let (cos, sin) = (cos[token * half + j], sin[token * half + j]);
                    expected[j] = E::from_f32(a * cos - b * sin);
                    expected[j + half] = E::from_f32(b * cos + a * sin);
                }
                assert_eq!(widened(got), widened(&expected));
            }
        }
    }
    of::<f32>();
    of::<bf16>();
}

#[test]
fn factors_of_one_change_no_bit() {
    fn of<E: Element>() {
        let plain = Rope::new(&[0, 3, 50], &[1.0, 0.3, 0.05], (3, 2, 10));
        let input = rounded::<E>(&random(3 * plain.shape.width(), 8));
        let (mut got, mut expected) = (input.clone(), input);
        plain.table.rotate(&mut expected, plain.shape);
        plain.table.with_query_factors(vec![1.0; 3]).rotate(&mut got, plain.shape);
        assert_eq!(widened(&got), widened(&expected));
    }
    of::<f32>();
    of::<bf16>();
}
