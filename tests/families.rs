//! Each family on a tiny random model against transformers and PEFT in float64: logits, greedy text, and the gradient of each adapter
//! tensor. `tests/parity/families.py` made the files.

use crate::support::host_gpu::host_gpu;
use crate::support::{assert_rehearsed, batch, engine, floats, golden, json, pack, relative_distance, tensors};
use candle_core::Tensor;
use equipoise::adapter::AdapterBundle;
use equipoise::data::{IGNORED, Sequence};
use equipoise::device::Device;
use equipoise::models::{self, Generator, Model, Sampling};
use equipoise::nn::{LoraConfig, QuantizationConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::{Engine, StepGradients};
use equipoise::weights::Base;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folders of the families.
fn families() -> Vec<PathBuf> {
    let mut folders: Vec<_> =
        std::fs::read_dir(golden("families")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("expected.json").is_file());
    folders.sort();
    assert!(folders.len() >= 18, "{folders:?}");
    folders
}

/// Tries each family, and fails with all that went wrong.
pub fn each_family(each: impl Fn(&Path)) {
    let failed: Vec<String> = families()
        .iter()
        .filter_map(|folder| {
            let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| each(folder))).err()?;
            Some(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| format!("{} panics", folder.display())))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

pub fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

fn load(path: &Path, lora: Option<&LoraConfig>, device: &Device) -> Model {
    let base = Base::open(path).unwrap();
    let kind = if base.is_gguf() { QuantizationType::Auto } else { QuantizationType::None };
    models::load(&base, QuantizationConfig { kind }, lora, 0, device, false)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn load_with_adapter(folder: &Path) -> Model {
    load_with_adapter_on(folder, &Device::Cpu)
}

fn load_with_adapter_on(folder: &Path, device: &Device) -> Model {
    let base = Base::open(folder).unwrap();
    let adapter = AdapterBundle::load(&folder.join("adapter"), &base)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let model = load(folder, Some(&adapter.config.lora), device);
    model.params.assign(&adapter.tensors, folder).unwrap();
    model.params.upload().unwrap();
    model
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The largest difference, as a share of the largest number.
fn difference(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
    got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / largest
}

/// The samples of a family as rows of a step.
fn rows(expected: &Value) -> Vec<Sequence> {
    let row = |prompt: &Value| {
        let (input_ids, masked) = (ids(&prompt["input_ids"]), prompt["masked_tokens"].as_u64().unwrap() as usize);
        let labels = input_ids.iter().enumerate();
        let labels = labels.map(|(i, &id)| if i < masked { IGNORED } else { i64::from(id) }).collect();
        Sequence::new(input_ids, labels)
    };
    expected["prompts"].as_array().unwrap().iter().map(row).collect()
}

fn objective(expected: &Value, kind: ObjectiveKind) -> ObjectiveConfig {
    let bft = &expected["bft"];
    let (group_size, gamma) = (bft["group_size"].as_u64().unwrap() as usize, bft["gamma"].as_f64().unwrap());
    ObjectiveConfig { kind, group_size, gamma, ..ObjectiveConfig::default() }
}

/// Logits and greedy text of a model without adapter.
fn compare_texts(folder: &Path, model: &Model, expected: &Value) {
    for prompt in expected["prompts"].as_array().unwrap() {
        let input = ids(&prompt["input_ids"]);
        let mut generator = Generator::new(&model.lm, &Device::Cpu, true, Sampling::default());
        let got = difference(&generator.feed(&input).unwrap(), &floats(&prompt["last_logits"]));
        assert!(got < 1e-4, "{}, {}: logits are off by {got}", name(folder), prompt["prompt"]);
        let greedy = ids(&prompt["greedy"]);
        let mut tokens = Vec::new();
        let mut take = |token| {
            tokens.push(token);
            true
        };
        let mut generator = Generator::new(&model.lm, &Device::Cpu, true, Sampling::default());
        generator.run(&input, greedy.len(), &[], &mut take).unwrap();
        assert_eq!(tokens, greedy, "{}, {}", name(folder), prompt["prompt"]);
    }
}

#[test]
fn logits_and_texts_are_those_of_transformers() {
    each_family(|folder| {
        let expected = json(&folder.join("expected.json"));
        compare_texts(folder, &load(folder, None, &Device::Cpu), &expected);
        let model = load_with_adapter(folder);
        for prompt in expected["prompts"].as_array().unwrap() {
            let mut generator = Generator::new(&model.lm, &Device::Cpu, true, Sampling::default());
            let logits = generator.feed(&ids(&prompt["input_ids"])).unwrap();
            let got = difference(&logits, &floats(&prompt["adapter_last_logits"]));
            assert!(got < 1e-4, "{} with an adapter, {}: off by {got}", name(folder), prompt["prompt"]);
        }
    });
}

/// What llama.cpp's converter makes of a family is read as what it was made of.
#[test]
fn gguf_files_give_the_logits_and_texts_of_transformers() {
    each_family(|folder| {
        let expected = json(&folder.join("expected.json"));
        let model = load(&folder.join("model.gguf"), None, &Device::Cpu);
        // Where the file says less than the configuration, its own logits are known.
        let own = |prompt: &Value| !prompt["gguf_last_logits"].is_null();
        if !expected["prompts"].as_array().unwrap().iter().any(own) {
            return compare_texts(folder, &model, &expected);
        }
        for prompt in expected["prompts"].as_array().unwrap() {
            let mut generator = Generator::new(&model.lm, &Device::Cpu, true, Sampling::default());
            let logits = generator.feed(&ids(&prompt["input_ids"])).unwrap();
            let got = difference(&logits, &floats(&prompt["gguf_last_logits"]));
            assert!(got < 1e-4, "{}, {}: logits are off by {got}", name(folder), prompt["prompt"]);
        }
    });
}

fn step(engine: &Engine<'_>, rows: &[Sequence]) -> StepGradients {
    engine.step(&[batch(rows)], |_| None).unwrap()
}

#[test]
fn gradients_are_those_of_peft_in_float64() {
    each_family(|folder| {
        let expected = json(&folder.join("expected.json"));
        compare_gradients(folder, &load_with_adapter(folder), &expected, "");
    });
}

/// Where texts are longer than the original context, all of a run take other rotations.
#[test]
fn long_texts_take_rotations_of_their_own() {
    let folder = golden("families/phi3_longrope");
    let expected = json(&folder.join("expected_long.json"));
    let longest = rows(&expected).iter().map(Sequence::len).max().unwrap();
    let (mut bare, mut model) = (load(&folder, None, &Device::Cpu), load_with_adapter(&folder));
    for model in [&mut bare, &mut model] {
        assert!(!model.lm.fit_rotations(64), "64 tokens are the original context");
        assert!(model.lm.fit_rotations(longest));
    }
    compare_texts(&folder, &bare, &expected);
    compare_gradients(&folder, &model, &expected, "_long");
}

/// Losses and gradients of a step under SFT and under BFT.
fn compare_gradients(folder: &Path, model: &Model, expected: &Value, of: &str) {
    let rows = rows(expected);
    for (kind, word) in [(ObjectiveKind::Sft, "sft"), (ObjectiveKind::Bft, "bft")] {
        let (objective, pool) = (objectives::build(&objective(expected, kind)), Pool::default());
        let taken = step(&engine(model, &*objective, &pool), &rows);
        let (loss, wanted) = (taken.loss.sum / taken.denominator, expected[word]["loss"].as_f64().unwrap());
        assert!((loss / wanted - 1.0).abs() < 1e-4, "{} {word}: a loss of {loss}, not {wanted}", name(folder));
        let golden = tensors(&folder.join(format!("gradients_{word}{of}.safetensors")));
        assert_eq!(golden.len(), taken.gradients.len(), "{}", name(folder));
        for (tensor, gradient) in &golden {
            let got = &taken.gradients[&text_name(tensor)];
            let distance = relative_distance(&(got / taken.denominator).unwrap(), gradient);
            assert!(distance < 1e-3, "{} {word}: the gradient of {tensor} is {distance} away", name(folder));
        }
    }
}

/// The name of a text decoder's tensor in a text-only model.
fn text_name(name: &str) -> String {
    name.replace("model.language_model.", "model.").replace("language_model.model.", "model.")
}

/// Packing, recomputing and candle's graph change nothing.
#[test]
fn how_a_step_is_made_does_not_matter() {
    each_family(|folder| {
        let expected = json(&folder.join("expected.json"));
        let (model, rows) = (load_with_adapter(folder), rows(&expected));
        let (objective, pool) = (objectives::build(&objective(&expected, ObjectiveKind::Bft)), Pool::default());
        let plain = engine(&model, &*objective, &pool);
        let kept = step(&plain, &rows);
        let recomputed = step(&Engine { kept_layers: 0, ..plain }, &rows);
        let packed = plain.step(&[pack(&rows)], |_| None).unwrap();
        let on_tape = plain.step_on_tape(&[batch(&rows)], |_| None).unwrap();
        assert_eq!(recomputed.loss.sum.to_bits(), kept.loss.sum.to_bits(), "{}", name(folder));
        for (tensor, gradient) in &kept.gradients {
            let distance = |other: &StepGradients| relative_distance(&other.gradients[tensor], gradient);
            let named = format!("{} {tensor}", name(folder));
            assert_eq!(distance(&recomputed), 0.0, "{named}");
            assert!(distance(&packed) < 1e-5, "{named}: packed, {} away", distance(&packed));
            assert!(distance(&on_tape) < 1e-3, "{named}: on candle's graph, {} away", distance(&on_tape));
        }
    });
}

/// The planner knows what each family's steps hold.
#[test]
fn a_rehearsal_of_a_family_takes_what_its_steps_take() {
    each_family(|folder| {
        let expected = json(&folder.join("expected.json"));
        let (model, rows) = (load_with_adapter(folder), rows(&expected));
        let base = Base::open(folder).unwrap();
        let lora = AdapterBundle::load(&folder.join("adapter"), &base).unwrap().config.lora;
        let none = QuantizationConfig { kind: QuantizationType::None };
        let plan = models::load(&base, none, Some(&lora), 0, &Device::Cpu, true).unwrap();
        for compute in [Compute::F32, Compute::Bf16] {
            for kept_layers in [2, 0] {
                let what = format!("{}, {compute:?}, {kept_layers} layers kept", name(folder));
                let settings = (compute, kept_layers, ObjectiveKind::Bft);
                assert_rehearsed(&what, [&model, &plan], &lora, &[batch(&rows), pack(&rows)], settings);
            }
        }
    });
}

/// How far one step's gradients are from another's: as a whole, and the worst tensor.
fn distances(got: &StepGradients, wanted: &StepGradients) -> [f64; 2] {
    let square = |tensor: &Tensor| f64::from(tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
    let (mut apart, mut size, mut worst) = (0.0, 0.0, 0f64);
    for (tensor, gradient) in &wanted.gradients {
        apart += square(&(&got.gradients[tensor] - gradient).unwrap());
        size += square(gradient);
        worst = worst.max(relative_distance(&got.gradients[tensor], gradient));
    }
    [(apart / size).sqrt(), worst]
}

/// Under SFT: the weights of other objectives depend on probabilities that are rounded themselves.
#[test]
fn a_step_in_bf16_is_near_the_step_in_f32() {
    each_family(|folder| {
        let expected = json(&folder.join("expected.json"));
        let (model, rows) = (load_with_adapter(folder), rows(&expected));
        let (objective, pool) = (objectives::build(&objective(&expected, ObjectiveKind::Sft)), Pool::default());
        let exact = engine(&model, &*objective, &pool);
        let wanted = step(&exact, &rows);
        let got = step(&Engine { compute: Compute::Bf16, ..exact }, &rows);
        let loss = (got.loss.sum / wanted.loss.sum - 1.0).abs();
        let [whole, worst] = distances(&got, &wanted);
        assert!(
            loss < 1e-2 && whole < 6e-2 && worst < 0.1,
            "{}: loss {loss}, gradient {whole}, worst tensor {worst}",
            name(folder)
        );
    });
}

/// Families that together use every optional part.
const ON_A_GPU: [&str; 11] =
    ["exaone4", "gemma2", "gemma3_text", "glm4", "granite", "ministral3", "olmo3", "phi3", "qwen2", "qwen3", "smollm3"];

/// On kernels that are compiled for the CPU: the same step, and the same logits.
#[test]
fn what_a_gpu_makes_of_a_family_is_what_the_cpu_makes() {
    let Some((device, _)) = host_gpu() else { return };
    each_family(|folder| {
        if !ON_A_GPU.contains(&name(folder)) {
            return;
        }
        let expected = json(&folder.join("expected.json"));
        let (cpu, gpu, rows) = (load_with_adapter(folder), load_with_adapter_on(folder, &device), rows(&expected));
        let pool = Pool::default();
        for (kind, compute) in [(ObjectiveKind::Bft, Compute::F32), (ObjectiveKind::Sft, Compute::Bf16)] {
            let objective = objectives::build(&objective(&expected, kind));
            let on_cpu = engine(&cpu, &*objective, &pool);
            let wanted = step(&on_cpu, &rows);
            // What rounding costs depends on the model: the CPU's own step is the measure.
            let most = match compute {
                Compute::F32 => [1e-3, 1e-3],
                Compute::Bf16 => {
                    distances(&step(&Engine { compute, ..on_cpu }, &rows), &wanted).map(|cpu| (2.0 * cpu).max(2.5e-2))
                }
            };
            let on_gpu = Engine { device: &device, compute, kept_layers: 1, ..engine(&gpu, &*objective, &pool) };
            let got = distances(&step(&on_gpu, &rows), &wanted);
            assert!(
                got[0] < most[0] && got[1] < most[1],
                "{} in {compute:?}: {got:?} away, at most {most:?}",
                name(folder)
            );
        }
        let ids = &rows[0].input_ids;
        let wanted: Vec<f64> = cpu.lm.logits(ids, true, &Device::Cpu).unwrap().into_iter().map(f64::from).collect();
        let got = difference(&gpu.lm.logits(ids, true, &device).unwrap(), &wanted);
        assert!(got < 1e-4, "{}: logits on a GPU are off by {got}", name(folder));
    });
}
