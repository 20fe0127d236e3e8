//! Whole models against numbers of other implementations: transformers and PEFT. The scripts that made them are in
//! `tests/parity`.

use crate::support::{ALL_LINEAR, TINY, engine, floats, golden, json, lora, relative_distance, shared, tensors};
use candle_core::{DType, Device as Place, Tensor};
use equipoise::adapter::AdapterBundle;
use equipoise::data::{Batch, Sequence};
use equipoise::device::Device;
use equipoise::models::{self, Generator, Model, Sampling, TapeContext};
use equipoise::nn::{Gradients, LoraConfig, QuantizationConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::simd::Level;
use equipoise::ops::{Compute, Pool, composed};
use equipoise::train::backward::{Engine, GradientSums};
use equipoise::train::{AdamW, TrainingConfig};
use equipoise::weights::Base;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

fn load(path: &Path, lora: Option<&LoraConfig>) -> Model {
    let base = Base::open(path).unwrap();
    let kind = if base.is_gguf() { QuantizationType::Auto } else { QuantizationType::None };
    models::load(&base, QuantizationConfig { kind }, lora, 0, &Device::Cpu, false).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn greedy(model: &Model, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut generator = Generator::new(&model.lm, &Device::Cpu, true, Sampling::default());
    let mut tokens = Vec::new();
    let mut take = |token| {
        tokens.push(token);
        true
    };
    generator.run(prompt, count, &[], &mut take).unwrap();
    tokens
}

fn last_logits(model: &Model, prompt: &[u32]) -> Vec<f32> {
    Generator::new(&model.lm, &Device::Cpu, true, Sampling::default()).feed(prompt).unwrap()
}

fn largest_difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

#[test]
fn smollm2_as_gguf_gives_the_logits_and_tokens_of_transformers() {
    let Some(path) = shared("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let Some(forward) = shared("golden/smollm2-forward/forward.json") else { return };
    let model = load(&path, None);
    for case in json(&forward)["cases"].as_array().unwrap() {
        let prompt = ids(&case["prompt_ids"]);
        let logits = last_logits(&model, &prompt);
        for (id, expected) in ids(&case["last_top10_ids"]).iter().zip(floats(&case["last_top10_logits"])) {
            let got = f64::from(logits[*id as usize]);
            assert!((got - expected).abs() < 1e-2, "{}: logit {id} is {got}, not {expected}", case["name"]);
        }
        let expected = ids(&case["greedy_ids"]);
        assert_eq!(greedy(&model, &prompt, expected.len()), expected, "{}", case["name"]);
    }
}

#[test]
fn the_embedded_base_gives_the_logits_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gene_ontology/base");
    compare_with_transformers(&load(&folder, None), &golden("quickstart_base_logits.json"));
}

#[test]
fn an_adapter_of_ours_gives_the_same_logits_under_peft() {
    let (base, folder) =
        (Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gene_ontology/base"), golden("peft_adapter"));
    let adapter = AdapterBundle::load(&folder, &Base::open(&base).unwrap()).unwrap();
    let model = load(&base, Some(&adapter.config.lora));
    model.params.assign(&adapter.tensors, &folder).unwrap();
    compare_with_transformers(&model, &folder.join("expected.json"));
    // The adapter does something: without it the logits are others.
    let prompt = ids(&json(&folder.join("expected.json"))["prompts"][0]["input_ids"]);
    let bare = last_logits(&load(&base, None), &prompt);
    let bare: Vec<f64> = bare.into_iter().map(f64::from).collect();
    assert!(largest_difference(&last_logits(&model, &prompt), &bare) > 0.5);
}

#[test]
fn llama3_rope_scaling_gives_the_logits_of_transformers() {
    let folder = golden("tiny_llama3_rope");
    let expected = json(&folder.join("expected.json"));
    let model = load(&folder, None);
    let prompt = ids(&expected["input_ids"]);
    let difference = largest_difference(&last_logits(&model, &prompt), &floats(&expected["last_logits"]));
    assert!(difference < 1e-4, "a logit is off by {difference}");
}

/// The cache, many tokens and few, and candle's graph: the same logits.
#[test]
fn a_text_fed_in_pieces_gives_the_logits_of_all_at_once() {
    let model = TINY.model(QuantizationType::Q8_0, &lora(3, &ALL_LINEAR));
    let prompt: Vec<u32> = (0..40).map(|i| i * 37 % TINY.vocabulary as u32).collect();
    for adapter in [true, false] {
        let on_tape = logits_on_tape(&model, &prompt, adapter);
        for pieces in [&[40][..], &[1; 40], &[30, 4, 5, 1], &[2, 38]] {
            let mut generator = Generator::new(&model.lm, &Device::Cpu, adapter, Sampling::default());
            let (mut rest, mut logits) = (&prompt[..], Vec::new());
            for &piece in pieces {
                let (now, later) = rest.split_at(piece);
                logits = generator.feed(now).unwrap();
                rest = later;
            }
            let difference = largest_difference(&logits, &on_tape);
            assert!(difference < 1e-4, "{pieces:?}: a logit is off by {difference}");
        }
    }
}

fn logits_on_tape(model: &Model, prompt: &[u32], adapter: bool) -> Vec<f64> {
    let (lm, n) = (&model.lm, prompt.len());
    let positions: Vec<u32> = (0..n as u32).collect();
    let context = TapeContext::new(lm, (1, n), &positions, &vec![1; n], None, adapter).unwrap();
    let ids = Tensor::new(prompt, &Place::Cpu).unwrap().unsqueeze(0).unwrap();
    let mut hidden = lm.tape_embed(&ids).unwrap();
    for index in 0..lm.dimensions.layers {
        hidden = lm.tape_layer(index, &hidden, &context).unwrap();
    }
    let last = lm.tape_norm(&hidden).unwrap().get(0).unwrap().narrow(0, n - 1, 1).unwrap();
    let logits = composed::linear(&last, &lm.lm_head).unwrap().flatten_all().unwrap();
    logits.to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

/// Logits and greedy tokens against a golden file of `peft_logits.py`.
pub fn compare_with_transformers(model: &Model, path: &Path) {
    let expected = json(path);
    let prompts = expected["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for prompt in prompts {
        let input = ids(&prompt["input_ids"]);
        let difference = largest_difference(&last_logits(model, &input), &floats(&prompt["last_logits"]));
        assert!(difference < 1e-2, "{}: a logit is off by {difference}", prompt["prompt"]);
        let greedy_ids = ids(&prompt["greedy"]);
        assert_eq!(greedy(model, &input, greedy_ids.len()), greedy_ids, "{}", prompt["prompt"]);
    }
}

/// Ten steps of PEFT in float64 on the dequantized SmolLM2.
fn ten_steps(name: &str, kind: ObjectiveKind) {
    let Some(path) = shared("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let Some(folder) = shared("golden/peft-smollm2") else { return };
    let start = AdapterBundle::load(&folder.join("init_adapter"), &Base::open(&path).unwrap()).unwrap();
    let model = load(&path, Some(&start.config.lora));
    model.params.assign(&start.tensors, &folder).unwrap();

    let expected = json(&folder.join(format!("{name}.json")));
    let config = ObjectiveConfig { kind, group_size: 64, ..ObjectiveConfig::default() };
    let objective = objectives::build(&config);
    let pool = Pool::default();
    let engine = engine(&model, &*objective, &pool);
    let mut adamw = AdamW::new(&TrainingConfig::default(), &model.params);
    let batches = tensors(&folder.join("batches.safetensors"));
    for (step, golden) in expected["steps"].as_array().unwrap().iter().enumerate() {
        let batch = peft_batch(&batches, step);
        let taken = engine.sums(&[batch], |_| None).unwrap();
        let loss = taken.loss.sum / taken.denominator;
        let (golden_loss, golden_norm) = (golden["loss"].as_f64().unwrap(), golden["grad_norm"].as_f64().unwrap());
        assert!((loss / golden_loss - 1.0).abs() < 1e-3, "step {step}: loss {loss} is not {golden_loss}");
        let norm = taken.gradients.norm().unwrap() / taken.denominator;
        assert!((norm / golden_norm - 1.0).abs() < 1e-2, "step {step}: norm {norm} is not {golden_norm}");
        if let Some(by_tensor) = golden["grad_norm_by_tensor"].as_object() {
            for (name, golden) in by_tensor {
                let gradient = sums(&taken.gradients).get(name).unwrap();
                let squares = gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
                let norm = squares.sqrt() / taken.denominator;
                let golden = golden.as_f64().unwrap();
                assert!((norm / golden - 1.0).abs() < 2e-2, "{name}: gradient norm {norm} is not {golden}");
            }
        }
        adamw.update(&model.params, &taken.gradients, 1.0 / taken.denominator, 1e-4).unwrap();
    }
    let end: BTreeMap<String, Tensor> =
        tensors(&folder.join(format!("final_{name}.safetensors"))).into_iter().collect();
    for (name, variable) in model.params.iter() {
        let distance = relative_distance(variable, &end[name]);
        assert!(distance < 2e-2, "{name} ends {distance} away");
    }
}

fn peft_batch(batches: &HashMap<String, Tensor>, step: usize) -> Batch {
    let sequences: Vec<Sequence> =
        (0..batches["input_ids"].dim(1).unwrap()).map(|row| peft_row(batches, step, row)).collect();
    Batch::collate(&sequences.iter().collect::<Vec<_>>(), 0)
}

fn peft_row(batches: &HashMap<String, Tensor>, step: usize, row: usize) -> Sequence {
    let numbers = |name: &str| {
        let row = batches[name].get(step).unwrap().get(row).unwrap();
        row.to_dtype(DType::I64).unwrap().to_vec1::<i64>().unwrap()
    };
    let length = numbers("attention_mask").iter().filter(|&&mask| mask == 1).count();
    let input_ids = numbers("input_ids")[..length].iter().map(|&id| id as u32).collect();
    Sequence::new(input_ids, numbers("labels")[..length].to_vec())
}

#[test]
fn ten_sft_steps_match_peft() {
    ten_steps("sft", ObjectiveKind::Sft);
}

#[test]
fn ten_dft_steps_match_peft() {
    ten_steps("dft", ObjectiveKind::Dft);
}

#[test]
fn ten_bft_steps_match_peft() {
    ten_steps("bft", ObjectiveKind::Bft);
}

/// The losses of fifty steps of one row each, real text on a real model.
fn fifty_losses(compute: Compute) -> Option<Vec<f64>> {
    let path = shared("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf")?;
    let batches = tensors(&shared("golden/peft-smollm2/batches.safetensors")?);
    let config = LoraConfig { r: 8, lora_alpha: 16.0, ..LoraConfig::default() };
    let model = load(&path, Some(&config));
    let objective = objectives::build(&ObjectiveConfig { kind: ObjectiveKind::Sft, ..ObjectiveConfig::default() });
    let pool = Pool::default();
    let engine = Engine { compute, ..engine(&model, &*objective, &pool) };
    let mut adamw = AdamW::new(&TrainingConfig::default(), &model.params);
    let losses = (0..50).map(|step| {
        let row = peft_row(&batches, step % 10, step / 10 % 4);
        let taken = engine.sums(&[Batch::collate(&[&row], 0)], |_| None).unwrap();
        adamw.update(&model.params, &taken.gradients, 1.0 / taken.denominator, 2e-4).unwrap();
        taken.loss.sum / taken.denominator
    });
    Some(losses.collect())
}

#[test]
fn fifty_steps_in_bf16_stay_within_a_hundredth_of_f32() {
    if Level::detect() != Level::Avx512Bf16 {
        eprintln!(
            "skipped: bf16 takes minutes here; run it on a CPU with AVX-512 BF16 (see /proc/cpuinfo: avx512_bf16)"
        );
        return;
    }
    let (Some(exact), Some(rounded)) = (fifty_losses(Compute::F32), fifty_losses(Compute::Bf16)) else { return };
    assert!(exact[40..].iter().sum::<f64>() < 0.9 * exact[..10].iter().sum::<f64>(), "it learns: {exact:?}");
    for (step, (exact, rounded)) in exact.iter().zip(&rounded).enumerate() {
        assert!((rounded / exact - 1.0).abs() < 1e-2, "step {step}: {rounded} in bf16 is not {exact}");
    }
}

fn sums<'a>(gradients: &'a GradientSums<'_>) -> &'a Gradients {
    match gradients {
        GradientSums::Cpu(gradients) => gradients,
        GradientSums::Gpu(_) => panic!("these are steps on the CPU"),
    }
}
