//! Every adapter tensor gets a gradient, and it is the slope of the loss.

use crate::support::{ALL_LINEAR, TINY, Tiny, batch, engine, lora, quantization_types, rows};
use candle_core::{DType, Device, Tensor};
use equipoise::nn::{LoraConfig, QuantizationType, TargetKeyword, TargetModules};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::Pool;
use equipoise::rng::Rng;
use equipoise::train::backward::dropout_keys;

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

/// The slope of the loss along a random direction of each adapter tensor. Weights of tokens and samples carry no gradient, so
/// the slope is that of the cross-entropy: SFT.
fn adapter_slopes(kind: QuantizationType, tiny: Tiny, lora: &LoraConfig) {
    adapter_slopes_of(&ObjectiveConfig::of(ObjectiveKind::Sft), kind, tiny, lora);
}

/// As [`adapter_slopes`], of an objective whose loss has no weight to speak of that is held constant.
fn adapter_slopes_of(objective: &ObjectiveConfig, kind: QuantizationType, tiny: Tiny, lora: &LoraConfig) {
    let model = tiny.model(kind, lora);
    let objective = objectives::build(objective);
    let pool = Pool::default();
    let engine = engine(&model, &*objective, &pool);
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

/// `(1 - p^q)/q` has no weight that is held constant; beside a divergence of so large a factor, ASFT's has no weight to speak of.
#[test]
fn the_gradients_of_powers_and_of_divergences_are_the_slopes_of_the_loss() {
    let (lora, kind) = (lora(4, &ALL_LINEAR), QuantizationType::Q8_0);
    adapter_slopes_of(&ObjectiveConfig::of(ObjectiveKind::Prob), kind, TINY, &lora);
    let anchored = ObjectiveConfig { alpha: Some(1e4), ..ObjectiveConfig::of(ObjectiveKind::Asft) };
    adapter_slopes_of(&anchored, kind, TINY, &lora);
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
