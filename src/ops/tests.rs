//! Each operation, forward and backward: against candle's differentiable ones, against its own finite differences, and in
//! `bf16` against `f32`.

mod attention;
mod branch;
mod gate;
mod head;
mod kernels;
mod linear;
mod rows;

use super::element::Element;
use super::frozen_weight::FrozenWeight;
use crate::rng::Rng;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor, Var};
use half::bf16;

/// An operation and its backward pass on plain numbers, whatever type it works in.
trait Operation {
    fn forward<E: Element>(&self, inputs: &[Vec<f32>]) -> Vec<f32>;
    /// The gradient of each input for that of the output.
    fn backward<E: Element>(&self, inputs: &[Vec<f32>], dy: &[f32]) -> Vec<Vec<f32>>;
    /// The same out of candle's operations, on the same inputs, each as a flat tensor.
    fn composed(&self, inputs: &[Tensor]) -> Tensor;
}

/// How far one may be from the other: `‖a - b‖ / ‖b‖`.
const COMPOSED: f64 = 1e-5;
const ROUNDED: f64 = 2e-2;
const SLOPE: f64 = 1e-4;

/// All three comparisons.
fn check(name: &str, operation: &impl Operation, inputs: &[Vec<f32>]) {
    let y = operation.forward::<f32>(inputs);
    let dy = random(y.len(), 99);
    let gradients = operation.backward::<f32>(inputs, &dy);
    assert_eq!(gradients.len(), inputs.len());
    against_candle(name, operation, inputs, (&y, &dy, &gradients));
    against_bf16(name, operation, inputs, (&y, &dy, &gradients));
    for (i, gradient) in gradients.iter().enumerate() {
        against_slope(&format!("{name}: the gradient of input {i}"), operation, inputs, (i, &dy, gradient));
    }
}

/// The comparisons but for that with slopes: for functions too bent for differences.
fn check_bent(name: &str, operation: &impl Operation, inputs: &[Vec<f32>]) {
    let y = operation.forward::<f32>(inputs);
    let dy = random(y.len(), 99);
    let gradients = operation.backward::<f32>(inputs, &dy);
    against_candle(name, operation, inputs, (&y, &dy, &gradients));
    against_bf16(name, operation, inputs, (&y, &dy, &gradients));
}

type Results<'a> = (&'a [f32], &'a [f32], &'a [Vec<f32>]);

fn against_candle(name: &str, operation: &impl Operation, inputs: &[Vec<f32>], (y, dy, gradients): Results<'_>) {
    let tensor = |numbers: &[f32]| Tensor::from_slice(numbers, numbers.len(), &Device::Cpu).unwrap();
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(&tensor(input)).unwrap()).collect();
    let leaves: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let out = operation.composed(&leaves).flatten_all().unwrap();
    close(&format!("{name}: the value, against candle's"), y, &out.to_vec1::<f32>().unwrap(), COMPOSED);
    let store = (&out * tensor(dy)).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, (variable, gradient)) in variables.iter().zip(gradients).enumerate() {
        let expected = store.get(variable).unwrap().to_vec1::<f32>().unwrap();
        close(&format!("{name}: the gradient of input {i}, against candle's"), gradient, &expected, COMPOSED);
    }
}

fn against_bf16(name: &str, operation: &impl Operation, inputs: &[Vec<f32>], (y, dy, gradients): Results<'_>) {
    close(&format!("{name}: the value in bf16"), &operation.forward::<bf16>(inputs), y, ROUNDED);
    for (i, (rounded, gradient)) in operation.backward::<bf16>(inputs, dy).iter().zip(gradients).enumerate() {
        close(&format!("{name}: the gradient of input {i} in bf16"), rounded, gradient, ROUNDED);
    }
}

/// The slope of `Σ y·dy` along a direction, by central differences of fourth order.
fn against_slope(
    name: &str,
    operation: &impl Operation,
    inputs: &[Vec<f32>],
    (i, dy, gradient): (usize, &[f32], &[f32]),
) {
    // Along the gradient, bent by noise: the slope is large, and a wrong gradient does not have it.
    let (size, noise) = (norm(gradient), random(gradient.len(), 7 + i as u64));
    let noise_size = norm(&noise);
    assert!(size > 0.0, "{name} is zero");
    let direction: Vec<f64> =
        gradient.iter().zip(&noise).map(|(g, n)| f64::from(*g) / size + f64::from(*n) / (2.0 * noise_size)).collect();
    let step = 1e-2 * norm(&inputs[i]);
    let at = |factor: f64| {
        let mut moved = inputs.to_vec();
        moved[i].iter_mut().zip(&direction).for_each(|(x, d)| *x = (f64::from(*x) + factor * step * d) as f32);
        operation.forward::<f32>(&moved).iter().zip(dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum::<f64>()
    };
    let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * step);
    let got: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum();
    let apart = (got / slope - 1.0).abs();
    assert!(apart < SLOPE, "{name} says {got}, the slope is {slope}");
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Asserts `‖a - b‖ < limit·‖b‖`; numbers that are not finite are never close.
#[track_caller]
fn close(what: &str, a: &[f32], b: &[f32], limit: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    let difference: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let apart = norm(&difference) / norm(b).max(1e-30);
    assert!(apart < limit, "{what}: {apart} apart");
}

/// Uniform in `[-1, 1)`.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| (rng.uniform() * 2.0 - 1.0) as f32).collect()
}

fn rounded<E: Element>(x: &[f32]) -> Vec<E> {
    x.iter().map(|&x| E::from_f32(x)).collect()
}

fn widened<E: Element>(x: &[E]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// A buffer as it comes from a pool, with what a former user may have left in it.
fn soiled<E: Element>(count: usize) -> Vec<E> {
    vec![E::from_f32(f32::NAN); count]
}

fn weight(rows: usize, columns: usize, kind: GgmlDType, seed: u64) -> FrozenWeight {
    let numbers = Tensor::from_vec(random(rows * columns, seed), (rows, columns), &Device::Cpu).unwrap();
    FrozenWeight::quantized(&QTensor::quantize(&numbers, kind).unwrap()).unwrap()
}

/// A pool whose first buffers hold no number: what is read before it is written shows.
fn soiled_pool(sizes: &[usize]) -> super::Pool {
    fn leave<E: Element>(pool: &super::Pool, sizes: &[usize]) {
        let buffers: Vec<_> =
            sizes.iter().cycle().take(3 * sizes.len()).map(|&size| pool.take::<E>(1, size, 1)).collect();
        for mut buffer in buffers {
            buffer.fill(E::from_f32(f32::NAN));
        }
    }
    let pool = super::Pool::default();
    leave::<f32>(&pool, sizes);
    leave::<bf16>(&pool, sizes);
    pool
}
