//! What runs on a GPU, on kernels that are compiled for the CPU: against the CPU's own operations.

use crate::support::host_gpu::{Limits, host_gpu};
use crate::support::{
    ALL_LINEAR, ODD, TINY, Tiny, WIDE, batch, eight_rows, engine, lora, objective_kinds, pack, quantization_types,
    relative_distance, rows,
};
use equipoise::data::Batch;
use equipoise::device::Device;
use equipoise::models::{Generator, Model, Sampling};
use equipoise::nn::{Gradients, LoraConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::{Engine, GradientSums, StepGradients, dropout_keys};
use equipoise::train::{AdamW, TrainingConfig};
use std::sync::atomic::Ordering;

/// The same model on the CPU and on a GPU.
struct Both {
    cpu: Model,
    gpu: Model,
    device: Device,
    limits: Limits,
}

impl Both {
    fn new(kind: QuantizationType, tiny: Tiny, lora: &LoraConfig) -> Option<Self> {
        let (device, limits) = host_gpu()?;
        Some(Self { cpu: tiny.model(kind, lora), gpu: tiny.model_on(kind, lora, &device), device, limits })
    }

    /// A step of both.
    fn step(&self, config: &ObjectiveConfig, compute: Compute, batches: &[Batch], dropout: f64) -> [StepGradients; 2] {
        let (objective, pool) = (objectives::build(config), Pool::default());
        let keys = |i: usize| {
            let places: Vec<u64> = (0..batches[i].rows as u64).collect();
            (dropout > 0.0).then(|| dropout_keys(&batches[i], 1, &places))
        };
        let cpu = engine(&self.cpu, &*objective, &pool).step(batches, keys).unwrap();
        let gpu = Engine { device: &self.device, compute, ..engine(&self.gpu, &*objective, &pool) };
        [cpu, gpu.step(batches, keys).unwrap()]
    }
}

fn sft() -> ObjectiveConfig {
    ObjectiveConfig { kind: ObjectiveKind::Sft, ..ObjectiveConfig::default() }
}

fn assert_close(what: &str, [expected, got]: &[StepGradients; 2], limit: f64) {
    assert_eq!(got.loss.supervised, expected.loss.supervised, "{what}");
    for (got, expected) in [(got.loss.sum, expected.loss.sum), (got.loss.cross_entropy, expected.loss.cross_entropy)] {
        assert!((got / expected - 1.0).abs() < limit, "{what}: losses {got} and {expected}");
    }
    assert_eq!(got.gradients.len(), expected.gradients.len(), "{what}");
    for (name, gradient) in &got.gradients {
        let distance = relative_distance(gradient, &expected.gradients[name]);
        assert!(distance < limit, "{what}: {name} is {distance} apart");
    }
}

/// Ragged rows, one of which has nothing supervised; packed; in one piece and in several.
fn steps() -> [(&'static str, Vec<Batch>); 2] {
    let rows = eight_rows();
    [("ragged", vec![batch(&rows)]), ("several", vec![batch(&rows[..3]), pack(&rows[3..7]), batch(&rows[7..])])]
}

#[test]
fn a_step_on_a_gpu_is_the_step_on_the_cpu_for_each_objective() {
    let Some(both) = Both::new(QuantizationType::Q8_0, TINY, &lora(3, &ALL_LINEAR)) else { return };
    for config in objective_kinds() {
        for (name, batches) in steps() {
            let taken = both.step(&config, Compute::F32, &batches, 0.0);
            assert_close(&format!("{:?}, {name}", config.kind), &taken, 1e-4);
            assert_eq!(taken[0].loss.top1, taken[1].loss.top1);
        }
    }
    assert!(both.limits.launches.load(Ordering::Relaxed) > 100, "it was the GPU that computed");
}

#[test]
fn a_step_on_a_gpu_is_the_step_on_the_cpu_for_each_quantization_type() {
    for (kind, tiny, dtype) in quantization_types() {
        let Some(both) = Both::new(kind, tiny, &lora(4, &ALL_LINEAR)) else { return };
        let batches = [batch(&rows(&[13, 21], tiny.vocabulary))];
        assert_close(&format!("{dtype:?}"), &both.step(&sft(), Compute::F32, &batches, 0.0), 1e-4);
        assert_close(&format!("{dtype:?}, bf16"), &both.step(&sft(), Compute::Bf16, &batches, 0.0), 4e-2);
    }
}

#[test]
fn a_step_on_a_gpu_drops_what_the_cpu_drops() {
    let lora = LoraConfig { lora_dropout: 0.3, use_rslora: true, ..lora(5, &ALL_LINEAR) };
    for tiny in [TINY, ODD] {
        let Some(both) = Both::new(QuantizationType::None, tiny, &lora) else { return };
        for (name, batches) in steps() {
            assert_close(name, &both.step(&sft(), Compute::F32, &batches, 0.3), 1e-4);
            assert_close(&format!("{name}, bf16"), &both.step(&sft(), Compute::Bf16, &batches, 0.3), 4e-2);
        }
    }
}

/// Longer than the tiles of attention; some modules have no adapter; heads of odd widths.
#[test]
fn long_rows_are_as_right_on_a_gpu_as_short_ones() {
    let lora = lora(4, &["q_proj", "v_proj", "down_proj"]);
    for tiny in [Tiny { layers: 1, ..TINY }, Tiny { layers: 1, ..ODD }, WIDE] {
        let Some(both) = Both::new(QuantizationType::None, tiny, &lora) else { return };
        let batches = [pack(&rows(&[130, 77, 9], tiny.vocabulary)), batch(&rows(&[200], tiny.vocabulary))];
        assert_close("long", &both.step(&sft(), Compute::F32, &batches, 0.0), 1e-4);
        assert_close("long, bf16", &both.step(&sft(), Compute::Bf16, &batches, 0.0), 4e-2);
    }
}

/// Neither keeping activations, nor where inputs wait, nor buffers with room to spare change a bit.
#[test]
fn what_is_kept_on_a_gpu_does_not_change_a_bit() {
    let Some(both) = Both::new(QuantizationType::Q8_0, TINY, &lora(4, &ALL_LINEAR)) else { return };
    let (objective, pool) = (objectives::build(&ObjectiveConfig::default()), Pool::default());
    let batches = [batch(&rows(&[30, 11], TINY.vocabulary))];
    for compute in [Compute::F32, Compute::Bf16] {
        let plain = Engine { device: &both.device, compute, ..engine(&both.gpu, &*objective, &pool) };
        let expected = plain.step(&batches, |_| None).unwrap();
        for (kept_layers, offload, capacity) in [(0, false, 0), (1, true, 0), (0, true, 100), (2, false, 64)] {
            let other = Engine { kept_layers, offload, capacity, ..plain };
            let got = other.step(&batches, |_| None).unwrap();
            assert_eq!(got.loss.sum.to_bits(), expected.loss.sum.to_bits());
            for (name, gradient) in &got.gradients {
                assert_eq!(relative_distance(gradient, &expected.gradients[name]), 0.0, "{name}");
            }
        }
    }
}

#[test]
fn a_validation_on_a_gpu_is_that_on_the_cpu() {
    let Some(both) = Both::new(QuantizationType::Q8_0, TINY, &lora(4, &ALL_LINEAR)) else { return };
    let (objective, pool) = (objectives::build(&ObjectiveConfig::default()), Pool::default());
    let batch = batch(&eight_rows());
    let expected = engine(&both.cpu, &*objective, &pool).evaluate(&batch).unwrap();
    let on_gpu = Engine { device: &both.device, ..engine(&both.gpu, &*objective, &pool) };
    let got = on_gpu.evaluate(&batch).unwrap();
    assert!((got.cross_entropy / expected.cross_entropy - 1.0).abs() < 1e-5);
    assert_eq!((got.top1, got.supervised), (expected.top1, expected.supervised));
    let rounded = Engine { compute: Compute::Bf16, ..on_gpu }.evaluate(&batch).unwrap();
    assert!((rounded.cross_entropy / expected.cross_entropy - 1.0).abs() < 1e-2);
}

/// The same gradients give the same bits on both, update after update; what is saved on one goes on on the other.
#[test]
fn the_optimizer_on_a_gpu_is_that_of_the_cpu_to_the_bit() {
    let Some(both) = Both::new(QuantizationType::Q8_0, TINY, &lora(3, &ALL_LINEAR)) else { return };
    let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
    let (objective, pool) = (objectives::build(&ObjectiveConfig::default()), Pool::default());
    let on_gpu = Engine { device: &both.device, compute: Compute::Bf16, ..engine(&both.gpu, &*objective, &pool) };
    let (mut cpu, mut gpu) = (AdamW::new(&config, &both.cpu.params), AdamW::new(&config, &both.gpu.params));
    for step in 0..4 {
        let taken = on_gpu.sums(&[batch(&rows(&[20, 9 + step], TINY.vocabulary))], |_| None).unwrap();
        let mut same = Gradients::default();
        let GradientSums::Gpu(memory) = &taken.gradients else { panic!("the step was made on the GPU") };
        for (name, numbers) in memory.gradients().unwrap() {
            same.put(&name, numbers);
        }
        let (norm, expected) = (taken.gradients.norm().unwrap(), same.norm());
        assert!((norm / expected - 1.0).abs() < 1e-9, "norms {norm} and {expected}");
        gpu.update(&both.gpu.params, &taken.gradients, 0.5, 1e-2).unwrap();
        cpu.update(&both.cpu.params, &GradientSums::Cpu(same), 0.5, 1e-2).unwrap();
        assert_same_bits(&both);
        if step == 1 {
            let (state, path) = (gpu.state().unwrap(), std::path::Path::new("x"));
            for (name, moments) in cpu.state().unwrap() {
                assert_eq!(relative_distance(&state[&name], &moments), 0.0, "{name}");
            }
            // Each goes on with what the other saved.
            let other = cpu.state().unwrap();
            (cpu, gpu) = (AdamW::new(&config, &both.cpu.params), AdamW::new(&config, &both.gpu.params));
            cpu.restore(&state, 2, path).unwrap();
            gpu.restore(&other, 2, path).unwrap();
        }
    }
}

fn assert_same_bits(both: &Both) {
    let bits = |model: &Model, name: &str| -> Vec<u32> {
        let tensors = model.params.to_tensors().unwrap();
        tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    for (name, _) in both.cpu.params.iter() {
        assert_eq!(bits(&both.gpu, name), bits(&both.cpu, name), "{name}");
    }
}

#[test]
fn a_text_on_a_gpu_is_that_on_the_cpu() {
    let Some(both) = Both::new(QuantizationType::Q4_0, TINY, &lora(3, &ALL_LINEAR)) else { return };
    let prompt: Vec<u32> = (0..70).map(|i| i * 37 % TINY.vocabulary as u32).collect();
    for adapter in [true, false] {
        let expected = both.cpu.lm.logits(&prompt, adapter, &Device::Cpu).unwrap();
        let got = both.gpu.lm.logits(&prompt, adapter, &both.device).unwrap();
        assert_close_logits(&got, &expected);
        for pieces in [&[70][..], &[1, 68, 1], &[30, 5, 35]] {
            let mut generator = Generator::new(&both.gpu.lm, &both.device, adapter, Sampling::default());
            let (mut rest, mut logits) = (&prompt[..], Vec::new());
            for &piece in pieces {
                let (now, later) = rest.split_at(piece);
                logits = generator.feed(now).unwrap();
                rest = later;
            }
            assert_close_logits(&logits, &expected[expected.len() - TINY.vocabulary..]);
        }
        let write = |model: &Model, device: &Device| {
            let mut tokens = Vec::new();
            let mut generator = Generator::new(&model.lm, device, adapter, Sampling::default());
            generator.run(&prompt, 12, &[], |token| {
                tokens.push(token);
                true
            })?;
            Ok::<_, candle_core::Error>(tokens)
        };
        assert_eq!(write(&both.gpu, &both.device).unwrap(), write(&both.cpu, &Device::Cpu).unwrap());
    }
}

fn assert_close_logits(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 1e-4, "a logit is {got}, not {expected}");
    }
}
