//! What runs on a GPU, on kernels that are compiled for the CPU: against the CPU's own operations.

use crate::support::gpu_comparisons::{Both, Comparison, Event, Extent, Theme, compare};
use crate::support::host_gpu::host_gpu;
use crate::support::{ALL_LINEAR, TINY, batch, eight_rows, engine, lora, relative_distance, rows};
use clap::ValueEnum as _;
use equipoise::device::Device;
use equipoise::models::{Continuations, Generator, Model, Sampling};
use equipoise::nn::{Gradients, LoraConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::{Engine, GradientSums};
use equipoise::train::{AdamW, TrainingConfig};
use std::sync::atomic::Ordering;

/// A model on the CPU and on a GPU that is none.
fn both(kind: QuantizationType, lora: &LoraConfig) -> Option<Both> {
    Some(Both::new(kind, TINY, lora, &host_gpu()?.0))
}

#[test]
fn what_a_gpu_computes_is_what_the_cpu_computes() {
    let Some((device, limits)) = host_gpu() else { return };
    let mut all: Vec<Comparison> = Vec::new();
    let mut on_event = |event| match event {
        Event::Ended(each) => all.push(each),
        Event::Begin(..) => {}
    };
    assert!(compare(&device, Theme::value_variants(), &mut on_event, Extent::Small));
    assert!(limits.launches.load(Ordering::Relaxed) > 1000, "it was the GPU that computed");
    let wrong: Vec<_> = all.iter().filter(|each| !each.passed()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let names = |dtype: &str| all.iter().filter(|each| each.dtype == dtype).map(|each| &*each.name).collect::<Vec<_>>();
    assert_eq!(names("f32").len(), names("bf16").len());
    for operation in [
        "dequantize",
        "rms_norm",
        "rms_norm backward",
        "swiglu",
        "swiglu backward",
        "geglu",
        "geglu backward",
        "rope",
        "rope backward",
        "head norm",
        "head norm backward",
        "add_normalized",
        "add_normalized backward",
        "add_scaled",
        "add_to",
        "embed with a factor",
        "dropout",
        "attention",
        "attention backward: queries",
        "attention backward: keys",
        "attention with a cache",
        "attention beside what it does not see",
        "attention backward beside what it does not see",
        "linear",
        "linear backward: input",
        "linear backward: A",
        "linear_cross_entropy",
        "linear_cross_entropy: gradient",
        "logits",
        "adamw: values",
        "adamw: moments",
        "gradient norm",
        "linear_cross_entropy: entropy of the largest logits",
        "step bft",
        "step asft",
        "step eaft",
        "step in Q4K",
        "step under dropout",
        "step on long rows",
    ] {
        for dtype in ["f32", "bf16"] {
            assert!(names(dtype).iter().any(|name| name.starts_with(operation)), "{operation} in {dtype}");
        }
    }
}

/// Neither keeping activations, nor where inputs wait, nor buffers with room to spare change a bit.
#[test]
fn what_is_kept_on_a_gpu_does_not_change_a_bit() {
    let Some(both) = both(QuantizationType::Q8_0, &lora(4, &ALL_LINEAR)) else { return };
    let (objective, pool) = (objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft)), Pool::default());
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
    let Some(both) = both(QuantizationType::Q8_0, &lora(4, &ALL_LINEAR)) else { return };
    let (objective, pool) = (objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft)), Pool::default());
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
    let Some(both) = both(QuantizationType::Q8_0, &lora(3, &ALL_LINEAR)) else { return };
    let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
    let (objective, pool) = (objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft)), Pool::default());
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

/// Continuations that share a context, whose keys the sequences then have several times: on the CPU and on a GPU, with the adapter
/// and without, against the logits of each text by itself.
#[test]
fn scores_of_continuations_are_those_of_whole_texts() {
    let Some(both) = both(QuantizationType::Q8_0, &lora(3, &ALL_LINEAR)) else { return };
    let ids = |seed: u32, n: u32| (0..n).map(|i| (i * 37 + seed * 11) % TINY.vocabulary as u32).collect::<Vec<u32>>();
    let item = |seed, context, lengths: &[u32]| Continuations {
        context: ids(seed, context),
        continuations: lengths.iter().map(|&n| ids(seed + n, n)).collect(),
    };
    let items = [item(1, 70, &[1, 3, 2, 5]), item(2, 1, &[4]), item(3, 9, &[1, 1]), item(4, 33, &[2, 2, 1])];
    let items: Vec<&Continuations> = items.iter().collect();
    for adapter in [true, false] {
        let expected = |item: &Continuations, tokens: &[u32]| {
            let whole = [&item.context[..], tokens].concat();
            let logits = both.cpu.lm.logits(&whole, adapter, &Device::Cpu).unwrap();
            let rows = logits.chunks(TINY.vocabulary).skip(item.context.len() - 1);
            rows.zip(tokens).fold((0.0, true), |(sum, greedy), (row, &token)| {
                let log_sum = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                let is_largest = (0..row.len()).all(|i| i == token as usize || row[i] < row[token as usize]);
                (sum + f64::from(row[token as usize]) - log_sum, greedy && is_largest)
            })
        };
        for (model, device, limit) in [(&both.cpu, &Device::Cpu, 1e-4), (&both.gpu, &both.device, 1e-3)] {
            let runner = model.lm.runner(device, adapter);
            let scores = model.lm.score(&items, runner, Compute::F32, (&Pool::default(), 0)).unwrap();
            for (item, scores) in items.iter().zip(scores) {
                for (tokens, score) in item.continuations.iter().zip(scores) {
                    let (log_p, greedy) = expected(item, tokens);
                    assert!((score.log_probability - log_p).abs() < limit, "{score:?} is not {log_p}");
                    assert_eq!(score.is_greedy, greedy);
                }
            }
        }
    }
}

#[test]
fn a_text_on_a_gpu_is_that_on_the_cpu() {
    let Some(both) = both(QuantizationType::Q4_0, &lora(3, &ALL_LINEAR)) else { return };
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
