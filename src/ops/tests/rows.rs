//! Operations on rows of numbers: normalization, the gate, rotary positions.

use super::*;
use crate::ops::{RopeTable, composed, rms_norm, rms_norm_backward, swiglu, swiglu_backward};

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

struct SwiGlu {
    width: usize,
}

impl Operation for SwiGlu {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = soiled::<E>(inputs[0].len() / 2);
        swiglu(&rounded::<E>(&inputs[0]), self.width, &mut y);
        widened(&y)
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut d = soiled::<E>(inputs[0].len());
        swiglu_backward(&rounded::<E>(&inputs[0]), self.width, dy, &mut d);
        vec![widened(&d)]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let both = inputs[0].reshape(((), 2 * self.width)).unwrap();
        let [gate, up] = [0, 1].map(|half| both.narrow(1, half * self.width, self.width).unwrap());
        composed::swiglu(&gate, &up).unwrap()
    }
}

#[test]
fn swiglu_is_right_forward_and_backward() {
    for (rows, width, scale) in [(7, 9, 1.0), (33, 96, 3.0), (2, 160, 6.0)] {
        let inputs = random(rows * 2 * width, 6).into_iter().map(|x| x * scale).collect();
        check(&format!("swiglu {rows}×{width}"), &SwiGlu { width }, &[inputs]);
    }
}

#[test]
fn swiglu_is_finite_where_the_gate_is_far_from_zero() {
    let gate_up = [-200.0, -88.0, 0.0, 88.0, 200.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let (mut y, mut d) = (soiled::<f32>(5), soiled::<f32>(10));
    swiglu(&gate_up, 5, &mut y);
    swiglu_backward(&gate_up, 5, &[1.0; 5], &mut d);
    for (got, expected) in y.iter().zip([0.0, 0.0, 0.0, 88.0, 200.0]) {
        assert!((got - expected).abs() < 1e-5, "{y:?}");
    }
    for (got, expected) in d.iter().zip([0.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 88.0, 200.0]) {
        assert!((got - expected).abs() < 1e-5, "{d:?}");
    }
}

/// Heads of 8 in rows that hold three numbers more.
struct Rope {
    table: RopeTable,
    heads: usize,
}

const BESIDE: usize = 3;

impl Rope {
    fn new(positions: &[u32], heads: usize) -> Self {
        Self { table: RopeTable::new(positions, &[1.0, 0.3, 0.05, 0.01], 1.0), heads }
    }

    fn width(&self) -> usize {
        8 * self.heads
    }
}

impl Operation for Rope {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let stride = self.width() + BESIDE;
        let mut x = rounded::<E>(&inputs[0]);
        self.table.rotate(&mut x, stride, self.width());
        widened(&x)
    }

    fn backward<E: Element>(&self, _inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut dx = dy.to_vec();
        for (token, row) in dx.chunks_exact_mut(self.width() + BESIDE).enumerate() {
            self.table.rotate_back(token, &mut row[..self.width()]);
        }
        vec![dx]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let rows = inputs[0].reshape(((), self.width() + BESIDE)).unwrap();
        let t = rows.dim(0).unwrap();
        let (cos, sin) = self.table.tensors(1, t, &Device::Cpu).unwrap();
        let x = rows.narrow(1, 0, self.width()).unwrap().unsqueeze(0).unwrap();
        let rotated = composed::rope(&x, &cos, &sin, 8).unwrap().squeeze(0).unwrap();
        Tensor::cat(&[rotated, rows.narrow(1, self.width(), BESIDE).unwrap()], 1).unwrap()
    }
}

#[test]
fn rope_is_right_forward_and_backward() {
    for (positions, heads) in [(&[0, 1, 2, 0, 1, 7][..], 3), (&[5; 40], 1), (&[1000, 1], 4)] {
        let rope = Rope::new(positions, heads);
        let x = random(positions.len() * (rope.width() + BESIDE), 8);
        check(&format!("rope {positions:?}"), &rope, &[x]);
    }
}
