//! Every adapter tensor gets a gradient, and it is the slope of the loss; each operation against finite differences and
//! against its composition out of candle's own differentiable operations.

use crate::support::{ALL_LINEAR, batch, lora, quantization_types, rows};
use candle_core::{DType, Device, Tensor, Var};
use equipoise::models::Model;
use equipoise::nn::{LoraConfig, QuantizationType, TargetKeyword, TargetModules};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{
    AttentionShape, Dropout, FrozenWeight, LoraScale, RopeTable, causal_attention, frozen_matmul, lora_linear,
    rms_norm, rope, swiglu,
};
use equipoise::rng::Rng;
use equipoise::train::GradientCheckpointing;
use equipoise::train::backward::{Engine, dropout_keys};
use std::sync::Arc;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = Rng::new(seed);
    let numbers: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| (rng.uniform() * 2.0 - 1.0) as f32).collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// `Σ a·b` in `f64`.
fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    (wide(a) * wide(b)).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
}

/// Holds the gradient of `Σ f(x)·probe` with respect to each input against central differences, along a random direction.
fn check_slopes(name: &str, inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor) {
    let variables: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let leaves: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let out = f(&leaves);
    let probe = random(out.dims(), 99);
    let store = (&out * &probe).unwrap().sum_all().unwrap().backward().unwrap();
    for (i, variable) in variables.iter().enumerate() {
        let gradient = store.get(variable).unwrap_or_else(|| panic!("{name}: input {i} got no gradient"));
        let direction = random(variable.dims(), 7 + i as u64);
        let loss_at = |step: f64| {
            let mut moved = inputs.to_vec();
            moved[i] = (&moved[i] + (&direction * step).unwrap()).unwrap();
            dot(&f(&moved), &probe)
        };
        let step = 1e-2;
        let slope =
            (8.0 * (loss_at(step) - loss_at(-step)) - (loss_at(2.0 * step) - loss_at(-2.0 * step))) / (12.0 * step);
        let got = dot(gradient, &direction);
        let scale = slope.abs().max(0.1);
        assert!((got - slope).abs() < 1e-3 * scale, "{name}: input {i} has the gradient {got}, the slope is {slope}");
    }
}

fn weight(rows: usize, columns: usize, kind: candle_core::quantized::GgmlDType) -> FrozenWeight {
    let tensor = candle_core::quantized::QTensor::quantize(&random(&[rows, columns], 3), kind).unwrap();
    FrozenWeight::new(Arc::new(tensor)).unwrap()
}

#[test]
fn each_operation_has_the_gradient_of_its_finite_differences() {
    let q8 = weight(48, 64, candle_core::quantized::GgmlDType::Q8_0);
    check_slopes("frozen_matmul", &[random(&[2, 5, 64], 1)], &|x| frozen_matmul(&x[0], &q8).unwrap());

    let (a, b) = (random(&[4, 64], 2), random(&[48, 4], 3));
    let keys: Arc<[u64]> = (0..10).collect();
    let inputs = [random(&[2, 5, 64], 1), a, b];
    for dropout in [None, Some(Dropout { probability: 0.3, row_keys: keys, layer_key: 5 })] {
        check_slopes("lora_linear", &inputs, &|x| {
            lora_linear(&x[0], &q8, &x[1], &x[2], LoraScale(2.0), dropout.clone()).unwrap()
        });
    }

    let norm = random(&[32], 4);
    check_slopes("rms_norm", &[random(&[3, 4, 32], 5)], &|x| rms_norm(&x[0], &norm, 1e-5).unwrap());
    check_slopes("swiglu", &[random(&[7, 9], 6), random(&[7, 9], 7)], &|x| swiglu(&x[0], &x[1]).unwrap());

    let table = RopeTable::new(&[0, 1, 2, 0, 1, 7], &[1.0, 0.3, 0.05, 0.01], 1.0);
    check_slopes("rope", &[random(&[2, 3, 24], 8)], &|x| rope(&x[0], &table).unwrap());

    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8 };
    let tokens = 70; // More than one block of queries.
    let segments: Arc<[u32]> = (0..2 * tokens).map(|i| u32::from(i % tokens > 40) + 1).collect();
    let inputs = [random(&[2, tokens, 32], 9), random(&[2, tokens, 16], 10), random(&[2, tokens, 16], 11)];
    check_slopes("causal_attention", &inputs, &|x| causal_attention(&x[0], &x[1], &x[2], shape, &segments).unwrap());
}

fn engine<'a>(model: &'a Model, objective: &'a dyn objectives::Objective) -> Engine<'a> {
    let checkpointing = GradientCheckpointing::None;
    Engine { lm: &*model.lm, params: &model.params, objective, checkpointing, device: &Device::Cpu }
}

/// The slope of the loss along a random direction of each adapter tensor. Weights of tokens and samples carry no gradient, so
/// the slope is that of the cross-entropy: SFT.
fn adapter_slopes(kind: QuantizationType, tiny: crate::support::Tiny, lora: &LoraConfig) {
    let model = tiny.model(kind, lora);
    let sft = objectives::build(&ObjectiveConfig { kind: ObjectiveKind::Sft, ..ObjectiveConfig::default() });
    let engine = engine(&model, &*sft);
    let rows = batch(&rows(&[9, 14], tiny.vocabulary));
    let keys = (lora.lora_dropout > 0.0).then(|| dropout_keys(&rows, 1, &[0, 1]));
    let taken = engine.step(std::slice::from_ref(&rows), |_| keys.clone()).unwrap();
    assert_eq!(taken.gradients.len(), model.params.len(), "every adapter tensor has a gradient");
    for (i, (name, variable)) in model.params.iter().enumerate() {
        let before = variable.copy().unwrap();
        // Along the gradient, bent by noise: the slope is large, and a wrong gradient does not have it.
        let gradient = &taken.gradients[name];
        let size = dot(gradient, gradient).sqrt();
        assert!(size > 0.0, "{name} has a gradient of zero");
        let noise = random(variable.dims(), 20 + i as u64);
        let noise_size = dot(&noise, &noise).sqrt();
        let direction = ((gradient / size).unwrap() + (noise / (2.0 * noise_size)).unwrap()).unwrap();
        let loss_at = |step: f64| {
            variable.set(&(&before + (&direction * step).unwrap()).unwrap()).unwrap();
            engine.step(std::slice::from_ref(&rows), |_| keys.clone()).unwrap().loss.sum
        };
        let step = 3e-2;
        let slope =
            (8.0 * (loss_at(step) - loss_at(-step)) - (loss_at(2.0 * step) - loss_at(-2.0 * step))) / (12.0 * step);
        variable.set(&before).unwrap();
        let got = dot(gradient, &direction);
        assert!((got / slope - 1.0).abs() < 1e-2, "{kind:?} {name}: the gradient says {got}, the slope is {slope}");
    }
}

#[test]
fn adapter_gradients_are_the_slopes_of_the_loss_for_each_quantization_type() {
    let targets =
        LoraConfig { target_modules: TargetModules::Keyword(TargetKeyword::AllLinear), ..lora(4, &["q_proj"]) };
    for (kind, tiny, dtype) in quantization_types() {
        adapter_slopes(kind, tiny, &targets);
        let model = tiny.model(kind, &targets);
        let held = format!("{dtype:?}");
        assert!(model.report.types.contains_key(&held), "{held} is not among {:?}", model.report.types);
    }
}

#[test]
fn adapter_gradients_are_the_slopes_of_the_loss_for_each_target_alone_and_under_dropout() {
    for target in ALL_LINEAR {
        adapter_slopes(QuantizationType::Q8_0, crate::support::TINY, &lora(4, &[target]));
    }
    let dropped = LoraConfig { lora_dropout: 0.4, use_rslora: true, ..lora(4, &ALL_LINEAR) };
    adapter_slopes(QuantizationType::Q8_0, crate::support::TINY, &dropped);
}
