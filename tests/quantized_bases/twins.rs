//! A base whose weights are kept in their blocks computes what the same base computes dequantized: on the CPU to the bit, and
//! on a GPU (kernels compiled for the CPU).

use super::numbers;
use crate::support::host_gpu::host_gpu;
use crate::support::stored_tensors::{Stored, read_tensors, stored, write_tensors};
use crate::support::{ALL_LINEAR, TINY, batch, engine, golden, lora, rows, stir};
use equipoise::device::Device;
use equipoise::models::{self, Model};
use equipoise::nn::{QuantizationConfig, QuantizationType};
use equipoise::objectives::{self, ObjectiveConfig, ObjectiveKind};
use equipoise::ops::{Compute, Pool};
use equipoise::train::backward::Engine;
use equipoise::train::{AdamW, TrainingConfig};
use equipoise::weights::Base;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// The same model with all matrices in f32.
fn twin(base: &Base) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = base.config().clone();
    config.remove("quantization_config");
    std::fs::write(folder.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    let tensor = |name: &str| -> Stored {
        let raw = base.read(name).unwrap();
        let bytes: Vec<u8> = numbers(&raw).iter().flat_map(|x| x.to_le_bytes()).collect();
        stored(name, "F32", &raw.shape, &bytes)
    };
    let tensors: Vec<Stored> = base.tensor_names().map(tensor).collect();
    write_tensors(&folder.path().join("model.safetensors"), &tensors, &json!({ "format": "pt" }));
    folder
}

fn load(base: &Base, kind: QuantizationType, device: &Device) -> Model {
    let lora = lora(3, &ALL_LINEAR);
    let model = models::load(base, QuantizationConfig { kind }, Some(&lora), 3, device, false).unwrap();
    stir(&model);
    model.params.upload().unwrap();
    model
}

/// The losses of some steps, each after an update, and of a text that few rows go through.
fn losses(model: &Model, device: &Device, compute: Compute) -> Vec<f64> {
    let (objective, pool) = (objectives::build(&ObjectiveConfig::of(ObjectiveKind::Bft)), Pool::default());
    let engine = Engine { device, compute, ..engine(model, &*objective, &pool) };
    let mut optimizer = AdamW::new(&TrainingConfig::default(), &model.params);
    let step = |length: usize| {
        let taken = engine.sums(&[batch(&rows(&[length, 9], TINY.vocabulary))], |_| None).unwrap();
        optimizer.update(&model.params, &taken.gradients, 0.5, 1e-2).unwrap();
        taken.loss.sum
    };
    [30, 21, 3, 17].map(step).into()
}

#[track_caller]
fn assert_twins(path: &Path, kind: QuantizationType, held: &[(&str, usize)]) {
    let base = Base::open(path).unwrap();
    let model = load(&base, kind, &Device::Cpu);
    for (name, count) in held {
        assert_eq!(model.report.types.get(*name), Some(count), "{:?}", model.report.types);
    }
    let folder = twin(&base);
    let dense = Base::open(folder.path()).unwrap();
    let on_gpu = host_gpu();
    for compute in [Compute::F32, Compute::Bf16] {
        let model = load(&base, kind, &Device::Cpu);
        let expected = losses(&load(&dense, QuantizationType::None, &Device::Cpu), &Device::Cpu, compute);
        assert_eq!(losses(&model, &Device::Cpu, compute), expected, "{compute:?}");
        assert!(expected.iter().all(|loss| loss.is_finite()) && expected[0] != expected[1]);
        let Some((gpu, _)) = &on_gpu else { continue };
        let dense = losses(&load(&dense, QuantizationType::None, gpu), gpu, compute);
        assert_eq!(losses(&load(&base, kind, gpu), gpu, compute), dense, "{compute:?} on a GPU");
        let near = if compute == Compute::F32 { 1e-4 } else { 3e-2 };
        for (got, expected) in dense.iter().zip(&expected) {
            // A loss near zero is a difference of large numbers.
            assert!(
                (got - expected).abs() < near * expected.abs().max(1.0),
                "{compute:?}: {got} on a GPU, {expected} on the CPU"
            );
        }
    }
}

/// Double quantization or none, blocks of 128, blocks that cross rows, and a matrix in bf16: all in one folder.
#[test]
fn nf4_trains_as_its_dequantized_twin() {
    let types = [("NF4", 5), ("BF16", 3)];
    assert_twins(&golden("quantized/nf4"), QuantizationType::None, &types);
}

#[test]
fn iq4_trains_as_its_dequantized_twin() {
    assert_twins(&golden("quantized/iq4.gguf"), QuantizationType::Auto, &[("IQ4_NL", 6), ("IQ4_XS", 1)]);
}

/// What is stored as floats is quantized as ever, and what was, is not again.
#[test]
fn only_floats_are_quantized_and_notes_say_what_is_not() {
    let base = Base::open(&golden("quantized/nf4")).unwrap();
    let plan = |kind| models::load(&base, QuantizationConfig { kind }, None, 0, &Device::Cpu, true).unwrap().report;
    let auto = plan(QuantizationType::Auto);
    assert_eq!((auto.types["NF4"], auto.types["Q8_0"]), (5, 2), "{:?}", auto.types);
    // 272 columns are not whole blocks of 32.
    assert_eq!(auto.types["BF16"], 1);
    let notes: Vec<_> = auto.notes.iter().map(String::as_str).collect();
    assert!(notes.iter().any(|note| note.contains("NF4 in blocks that cross rows are held as BF16")), "{notes:?}");
    assert!(!notes.iter().any(|note| note.contains("are kept")), "{notes:?}");
    let q4 = plan(QuantizationType::Q4_0);
    assert_eq!((q4.types["NF4"], q4.types["Q4_0"]), (5, 1), "{:?}", q4.types);
    assert!(q4.notes.iter().any(|note| note.contains("stored as NF4 are kept")), "{:?}", q4.notes);
    // 4.5 bits a weight, and what was counted is what is held.
    let numbers: usize = 64 * 64 + 2 * 32 * 64 + 2 * 272 * 64;
    let others = plan(QuantizationType::None);
    let floats = 2 * (96 * 64 + 64 * 64 + 64 * 272) + 4 * 3 * 64;
    assert_eq!(others.bytes as usize, numbers / 64 * 36 + floats);
}

/// FP8 is dequantized to bf16 as it is read, and held in the recipe's type: as the same numbers in bf16 are.
#[test]
fn fp8_is_held_as_its_numbers_in_bf16_are() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [fp8, plain] = folders.each_ref().map(TempDir::path);
    TINY.write(fp8);
    std::fs::copy(fp8.join("config.json"), plain.join("config.json")).unwrap();
    let path = fp8.join("model.safetensors");
    let mut tensors = Vec::new();
    for (index, (name, dtype, shape, bytes)) in read_tensors(&path).into_iter().enumerate() {
        if !name.contains("proj") {
            tensors.push((name, dtype, shape, bytes));
            continue;
        }
        // Codes around 1, of both signs.
        let code = |i: usize| ((i * 7919) % 41 + 24) as u8 | if i.is_multiple_of(2) { 0x80 } else { 0 };
        let codes: Vec<u8> = (0..shape[0] * shape[1]).map(|i| code(i + index)).collect();
        tensors.push(stored(&name, "F8_E4M3", &shape, &codes));
        let scale = 0.05f32 + index as f32 / 1000.0;
        tensors.push(stored(&format!("{name}_scale_inv"), "F32", &[1, 1], &scale.to_le_bytes()));
        let input = name.replace("weight", "input_scale");
        tensors.push(stored(&input, "F32", &[], &1f32.to_le_bytes()));
    }
    write_tensors(&path, &tensors, &json!({}));
    let base = Base::open(fp8).unwrap();
    let kinds = |raw: equipoise::weights::RawTensor| (format!("{:?}", raw.dtype), raw.shape, raw.bytes);
    let as_bf16 = |name: &str| {
        let (dtype, shape, bytes) = kinds(base.read(name).unwrap());
        stored(name, &dtype, &shape, &bytes)
    };
    let dense: Vec<Stored> = base.tensor_names().map(as_bf16).collect();
    assert_eq!(dense.iter().filter(|(_, dtype, ..)| dtype == "BF16").count(), 14);
    write_tensors(&plain.join("model.safetensors"), &dense, &json!({}));
    let plain = Base::open(plain).unwrap();
    for (kind, held) in
        [(QuantizationType::Auto, "Q8_0"), (QuantizationType::Q4_0, "Q4_0"), (QuantizationType::None, "BF16")]
    {
        let [one, other] = [&base, &plain].map(|base| load(base, kind, &Device::Cpu));
        assert!(one.report.types[held] >= 14, "{:?}", one.report.types);
        assert_eq!(one.report.types, other.report.types);
        let note = format!("stored as FP8 are held as {held}");
        assert!(one.report.notes.iter().any(|each| each.contains(&note)), "{:?}", one.report.notes);
        assert_eq!(losses(&one, &Device::Cpu, Compute::F32), losses(&other, &Device::Cpu, Compute::F32));
    }
}
