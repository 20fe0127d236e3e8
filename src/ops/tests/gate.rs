//! The gate of an MLP with each activation.

use super::*;
use crate::ops::{Activation, composed, gate, gate_backward};

const ACTIVATIONS: [Activation; 2] = [Activation::Silu, Activation::GeluTanh];

struct Gate {
    activation: Activation,
    width: usize,
}

impl Operation for Gate {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = soiled::<E>(inputs[0].len() / 2);
        gate(self.activation, &rounded::<E>(&inputs[0]), self.width, &mut y);
        widened(&y)
    }

    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>> {
        let mut d = soiled::<E>(inputs[0].len());
        gate_backward(self.activation, &rounded::<E>(&inputs[0]), self.width, dy, &mut d);
        vec![widened(&d)]
    }

    fn composed(&self, inputs: &[Tensor]) -> Tensor {
        let both = inputs[0].reshape(((), 2 * self.width)).unwrap();
        let [gate, up] = [0, 1].map(|half| both.narrow(1, half * self.width, self.width).unwrap());
        composed::gate(self.activation, &gate, &up).unwrap()
    }
}

#[test]
fn the_gate_is_right_forward_and_backward() {
    for activation in ACTIVATIONS {
        for (rows, width, scale) in [(7, 9, 1.0), (33, 96, 3.0), (2, 160, 6.0)] {
            let inputs = random(rows * 2 * width, 6).into_iter().map(|x| x * scale).collect();
            check(&format!("{activation:?} {rows}×{width}"), &Gate { activation, width }, &[inputs]);
        }
    }
}

/// Number by number, in `f64`: neither small nor negative gates lose their digits.
#[test]
fn gelu_is_close_at_each_number() {
    let gates: Vec<f32> = (-2400..2400).map(|i| i as f32 * 0.0025).chain([1e-30, -1e-20, 1e-4, -9.0, 9.5]).collect();
    let n = gates.len();
    let gate_up: Vec<f32> = gates.iter().copied().chain(std::iter::repeat_n(1.0, n)).collect();
    let (mut y, mut d) = (soiled::<f32>(n), soiled::<f32>(2 * n));
    gate(Activation::GeluTanh, &gate_up, n, &mut y);
    gate_backward(Activation::GeluTanh, &gate_up, n, &vec![1.0; n], &mut d);
    for (i, &x) in gates.iter().enumerate() {
        let x = f64::from(x);
        let root = (2.0 / std::f64::consts::PI).sqrt();
        let z = root * (x + 0.044_715 * x.powi(3));
        let sigmoid = 1.0 / (1.0 + (-2.0 * z).exp());
        let slope = sigmoid + x * sigmoid * (1.0 - sigmoid) * 2.0 * root * (1.0 + 3.0 * 0.044_715 * x * x);
        let near = |got: f32, expected: f64, size: f64| (f64::from(got) - expected).abs() <= 1e-5 * size;
        assert!(near(y[i], x * sigmoid, (x * sigmoid).abs()), "gelu {x} is {}, not {}", y[i], x * sigmoid);
        assert_eq!(d[n + i], y[i], "the gradient of up is the gate's value");
        // The slope is zero at -0.75: there only the size of its parts can count.
        let size = sigmoid + (slope - sigmoid).abs();
        assert!(near(d[i], slope, size), "the slope at {x} is {}, not {slope}", d[i]);
    }
}

/// The formulas as they were before there was another activation, without vectors: the bits are the same.
#[test]
fn silu_has_the_bits_of_the_formula() {
    let (width, rows) = (37, 5);
    let gate_up: Vec<f32> = random(2 * width * rows, 6).into_iter().map(|x| x * 8.0).collect();
    let dy = random(width * rows, 7);
    let (mut y, mut d) = (soiled::<f32>(width * rows), soiled::<f32>(2 * width * rows));
    gate(Activation::Silu, &gate_up, width, &mut y);
    gate_backward(Activation::Silu, &gate_up, width, &dy, &mut d);
    let fused = crate::ops::simd::Level::detect() > crate::ops::simd::Level::Portable;
    for row in 0..rows {
        for i in 0..width {
            let at = 2 * width * row + i;
            let (g, up, dy) = (gate_up[at], gate_up[at + width], dy[row * width + i]);
            let s = if fused { crate::ops::simd::sigmoid::<true>(g) } else { crate::ops::simd::sigmoid::<false>(g) };
            assert_eq!(y[row * width + i], g * s * up);
            assert_eq!(d[at], dy * up * s * (1.0 + g * (1.0 - s)));
            assert_eq!(d[at + width], dy * g * s);
        }
    }
}

#[test]
fn the_gate_is_finite_far_from_zero() {
    for activation in ACTIVATIONS {
        let gate_up = [-200.0, -88.0, 0.0, 88.0, 200.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        let (mut y, mut d) = (soiled::<f32>(5), soiled::<f32>(10));
        gate(activation, &gate_up, 5, &mut y);
        gate_backward(activation, &gate_up, 5, &[1.0; 5], &mut d);
        for (got, expected) in y.iter().zip([0.0, 0.0, 0.0, 88.0, 200.0]) {
            assert!((got - expected).abs() < 1e-5, "{activation:?}: {y:?}");
        }
        for (got, expected) in d.iter().zip([0.0, 0.0, 0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 88.0, 200.0]) {
            assert!((got - expected).abs() < 1e-5, "{activation:?}: {d:?}");
        }
    }
    // Third powers beyond the largest number.
    let (mut y, mut d) = (soiled::<f32>(2), soiled::<f32>(4));
    gate(Activation::GeluTanh, &[-1e20, 1e20, 1.0, 1.0], 2, &mut y);
    gate_backward(Activation::GeluTanh, &[-1e20, 1e20, 1.0, 1.0], 2, &[1.0; 2], &mut d);
    assert!(y[0].abs() < 1e-17 && y[1] == 1e20, "{y:?}");
    assert!(d[0].abs() < 1e-14 && d[1] == 1.0, "{d:?}");
}
