//! The operation against a plain product with the dequantized weight, and against its own finite differences.

use super::*;
use crate::ops::composed;
use crate::rng::Rng;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Var};
use half::bf16;
use std::sync::Arc;

const TYPES: [GgmlDType; 13] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Of a panel, in rows of 512 numbers: one; some that do not divide the rows; as many as there are; more.
const PANEL_ROWS: [usize; 4] = [1, 7, 45, 1000];
const ROWS: usize = 45;
const COLUMNS: usize = 512;

fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let (shape, mut rng) = (shape.into(), Rng::new(seed));
    let numbers = (0..shape.elem_count()).map(|_| (rng.uniform() * 2.0 - 1.0) as f32).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn weight(dtype: GgmlDType) -> FrozenWeight {
    FrozenWeight::new(Arc::new(QTensor::quantize(&random((ROWS, COLUMNS), 1), dtype).unwrap())).unwrap()
}

fn norm(x: &Tensor) -> f64 {
    f64::from(x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt()
}

#[track_caller]
fn close(what: &str, a: &Tensor, b: &Tensor, limit: f64) {
    assert_eq!(a.dims(), b.dims(), "{what}");
    let apart = norm(&(a - b).unwrap()) / norm(b);
    assert!(apart < limit, "{what}: {apart} apart");
}

/// The value of `f` at `x`, and the gradient of `Σ f(x)·dy`.
fn value_and_gradient(x: &Tensor, dy: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> (Tensor, Tensor) {
    let x = Var::from_tensor(x).unwrap();
    let y = f(x.as_tensor()).unwrap();
    let store = (&y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    (y.detach(), store.get(&x).unwrap().clone())
}

fn of_panels(weight: &FrozenWeight, compute: Compute, rows: usize) -> FrozenMatmul {
    let panel_bytes = rows * COLUMNS * compute.bytes();
    FrozenMatmul { panel_bytes, ..FrozenMatmul::new(weight, compute, Direction::Forward) }
}

#[test]
fn value_and_gradient_are_those_of_a_plain_product_for_every_type() {
    let (x, dy) = (random((2, 3, COLUMNS), 2), random((2, 3, ROWS), 3));
    for dtype in TYPES {
        let weight = weight(dtype);
        let (y, dx) = value_and_gradient(&x, &dy, |x| composed::linear(x, &weight));
        for rows in PANEL_ROWS {
            let op = of_panels(&weight, Compute::F32, rows);
            let (got, gradient) = value_and_gradient(&x, &dy, |x| op.clone().apply(x));
            let what = format!("{dtype:?}, panels of {rows} rows");
            close(&format!("{what}: value"), &got, &y, 1e-6);
            close(&format!("{what}: gradient"), &gradient, &dx, 1e-6);
        }
        // What callers use.
        close("frozen_matmul", &frozen_matmul(&x, &weight, Compute::F32).unwrap(), &y, 1e-6);
        close("backward", &frozen_matmul_backward(&dy, &weight, Compute::F32).unwrap(), &dx, 1e-6);
    }
}

/// In bf16 the factors are rounded, and nothing else: sums, outputs and what is added to is `f32`.
#[test]
fn in_bf16_factors_alone_are_rounded() {
    let rounded = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    let (x, dy) = (random((6, COLUMNS), 2), random((6, ROWS), 3));
    for dtype in TYPES {
        let weight = weight(dtype);
        let dense = rounded(&weight.dequantize(&Device::Cpu).unwrap());
        let y = rounded(&x).matmul(&dense.t().unwrap()).unwrap();
        let dx = rounded(&dy).matmul(&dense).unwrap();
        for rows in PANEL_ROWS {
            let op = of_panels(&weight, Compute::Bf16, rows);
            let (got, gradient) = value_and_gradient(&x, &dy, |x| op.clone().apply(x));
            close(&format!("{dtype:?}: value"), &got, &y, 1e-6);
            close(&format!("{dtype:?}: gradient"), &gradient, &dx, 1e-6);
            close(&format!("{dtype:?}: value, against f32"), &got, &composed::linear(&x, &weight).unwrap(), 1e-2);
        }
    }
    assert_eq!(bf16::from_f32(0.1).to_f32(), 0.100_097_656);
}

#[test]
fn the_gradient_is_the_slope() {
    let (x, dy) = (random((3, COLUMNS), 2), random((3, ROWS), 3));
    let weight = weight(GgmlDType::Q4K);
    let op = of_panels(&weight, Compute::F32, 7);
    let (_, dx) = value_and_gradient(&x, &dy, |x| op.clone().apply(x));
    // Along the gradient, bent by noise: the slope is large, and a wrong gradient does not have it.
    let noise = random((3, COLUMNS), 4);
    let direction = ((&dx / norm(&dx)).unwrap() + (&noise / (2.0 * norm(&noise))).unwrap()).unwrap();
    let at = |step: f64| {
        let y = op.clone().apply(&(&x + (&direction * step).unwrap()).unwrap()).unwrap();
        f64::from((y * &dy).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap())
    };
    let slope = (at(2.0) - at(-2.0)) / 4.0;
    let got = f64::from((dx * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    assert!((got / slope - 1.0).abs() < 1e-4, "the gradient says {got}, the slope is {slope}");
}

/// Inputs that are a view into others, or transposed, and no input at all.
#[test]
fn inputs_of_any_layout_will_do() {
    let weight = weight(GgmlDType::Q8_0);
    let x = random((4, COLUMNS), 2);
    let expected = composed::linear(&x, &weight).unwrap();
    let narrow = frozen_matmul(&x.narrow(0, 1, 2).unwrap(), &weight, Compute::F32).unwrap();
    close("narrow", &narrow, &expected.narrow(0, 1, 2).unwrap(), 1e-6);
    let turned = x.t().unwrap().contiguous().unwrap();
    close("turned", &frozen_matmul(&turned.t().unwrap(), &weight, Compute::F32).unwrap(), &expected, 1e-6);
    let none = Tensor::zeros((0, COLUMNS), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(frozen_matmul(&none, &weight, Compute::F32).unwrap().dims(), [0, ROWS]);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let weight = weight(GgmlDType::Q8_0);
    let error = frozen_matmul(&random((4, 64), 2), &weight, Compute::F32).unwrap_err().to_string();
    assert!(error.contains("frozen_matmul: expected a contiguous [.., 512]"), "{error}");
    let half = random((4, COLUMNS), 2).to_dtype(DType::BF16).unwrap();
    assert!(frozen_matmul(&half, &weight, Compute::F32).is_err());
}

/// Products go to cuBLAS as they are told here: each of the weight's rows once, and within what there is.
#[test]
fn panels_cover_the_weight_and_stay_within_it() {
    struct Record(Vec<Range<usize>>, Vec<Product>);
    impl PanelProduct for Record {
        fn dequantize(&mut self, rows: Range<usize>) -> Result<()> {
            self.0.push(rows);
            Ok(())
        }

        fn multiply(&mut self, product: Product) -> Result<()> {
            self.1.push(product);
            Ok(())
        }
    }
    let sizes = Sizes { tokens: 5, rows: 45, columns: 32, panel_rows: 20 };
    for direction in [Direction::Forward, Direction::Backward] {
        let mut record = Record(Vec::new(), Vec::new());
        multiply(direction, sizes, &mut record).unwrap();
        assert_eq!(record.0, [0..20, 20..40, 40..45]);
        for (rows, p) in record.0.iter().zip(&record.1) {
            let (inputs, outputs) = if p.transpose { (32, 45) } else { (45, 32) };
            assert!(p.input_offset + (p.n - 1) * p.input_stride + p.k <= 5 * inputs);
            assert!(p.output_offset + (p.n - 1) * p.output_stride + p.m <= 5 * outputs);
            assert_eq!(p.panel_stride * rows.len(), p.m * p.k);
            assert_eq!(p.add, !p.transpose && rows.start > 0);
        }
    }
}
