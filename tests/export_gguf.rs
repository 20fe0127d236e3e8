//! GGUF files as Equipoise writes them against those of llama.cpp's own converters. `tests/parity/gguf_convert.py` made the
//! golden descriptions.

use crate::support::{golden, json, shared};
use candle_core::Device;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{Content, Value};
use equipoise::adapter::AdapterBundle;
use equipoise::export::gguf::{
    AdapterFacts, GgufWriter, ModelFacts, TensorInfo, file_size, metadata, placements, rope_freqs, write_adapter,
};
use equipoise::models::Defaults;
use equipoise::weight_type::WeightType;
use equipoise::weights::Base;
use equipoise::weights::gguf::open_adapter;
use half::f16;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

fn embedded() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gene_ontology/base"))
}

/// The whole base in F16, norms in F32, as the converter writes it under `--outtype f16`.
fn write_f16(base: &Base, path: &Path) {
    let facts = ModelFacts {
        name: "Gene Ontology",
        dtype: WeightType::F16,
        base_model: None,
        license: None,
        chat_template: None,
    };
    let metadata = metadata(base, &facts).unwrap();
    let names: Vec<String> = base.tensor_names().map(String::from).collect();
    let info = |name: &String| {
        let name = name.as_str();
        let shape = base.tensor(name).unwrap().0.to_vec();
        let dtype = if shape.len() == 1 { WeightType::F32 } else { WeightType::F16 };
        TensorInfo { name: placements(base, name).unwrap()[0].name.clone(), shape, dtype }
    };
    let tensors: Vec<TensorInfo> = names.iter().map(info).collect();
    let size = file_size(path, &metadata, &tensors).unwrap();
    let out = BufWriter::new(File::create(path).unwrap());
    let mut writer = GgufWriter::new(out, path, &metadata, tensors.clone()).unwrap();
    for (name, info) in names.iter().zip(&tensors) {
        let raw = base.read(name).unwrap();
        let rows = raw.shape[0];
        let tensor = qtensor_from_ggml(raw.dtype.candle().unwrap(), &raw.bytes, raw.shape, &Device::Cpu).unwrap();
        let values = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes: Vec<u8> = match info.dtype {
            WeightType::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        writer.begin(&info.name).unwrap();
        let ordered = placements(base, name).unwrap()[0].order(bytes, rows).unwrap();
        ordered.chunks(1000).for_each(|piece| writer.write(piece).unwrap());
    }
    writer.finish().unwrap();
    assert_eq!(std::fs::metadata(path).unwrap().len(), size);
}

/// A value as the golden files describe it.
fn described(value: &Value) -> serde_json::Value {
    let scalar = |kind: &str, value: serde_json::Value| json!({"type": kind, "value": value});
    match value {
        Value::U32(number) => scalar("UINT32", json!(number)),
        Value::I32(number) => scalar("INT32", json!(number)),
        Value::F32(number) => scalar("FLOAT32", json!(f64::from(*number))),
        Value::Bool(flag) => scalar("BOOL", json!(flag)),
        Value::String(text) => scalar("STRING", json!(text)),
        Value::Array(values) => {
            let (mut hash, mut kind) = (Sha256::new(), "");
            for value in values {
                kind = match value {
                    Value::String(text) => {
                        hash.update(text);
                        hash.update([0]);
                        "ARRAY of STRING"
                    }
                    Value::I32(number) => {
                        hash.update(number.to_le_bytes());
                        "ARRAY of INT32"
                    }
                    Value::F32(number) => {
                        hash.update(number.to_le_bytes());
                        "ARRAY of FLOAT32"
                    }
                    other => panic!("{other:?}"),
                };
            }
            json!({"type": kind, "length": values.len(), "sha256": format!("{:x}", hash.finalize())})
        }
        other => panic!("{other:?}"),
    }
}

/// Holds a file against a golden description. `ours` are keys that only our files have, `theirs` those that only theirs have,
/// `other` those whose values differ.
fn compare(path: &Path, golden: &serde_json::Value, ours: &[&str], theirs: &[&str], other: &[&str]) {
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let expected = golden["metadata"].as_object().unwrap();
    let (mut only_ours, mut differ) = (BTreeSet::new(), BTreeSet::new());
    for (key, value) in &content.metadata {
        match expected.get(key) {
            None => drop(only_ours.insert(key.as_str())),
            Some(expected) if *expected != described(value) => drop(differ.insert(key.as_str())),
            Some(_) => {}
        }
    }
    let only_theirs: BTreeSet<&str> =
        expected.keys().map(String::as_str).filter(|key| !content.metadata.contains_key(*key)).collect();
    assert_eq!(only_ours, ours.iter().copied().collect(), "keys that llama.cpp's converter does not write");
    assert_eq!(only_theirs, theirs.iter().copied().collect(), "keys that we do not write");
    assert_eq!(differ, other.iter().copied().collect(), "keys with other values");
    let got: BTreeMap<&String, serde_json::Value> = content
        .tensor_infos
        .iter()
        .map(|(name, info)| {
            let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
            let sha256 = format!("{:x}", Sha256::digest(tensor.data().unwrap()));
            let kind = format!("{:?}", info.ggml_dtype);
            (name, json!({"shape": info.shape.dims(), "type": kind, "sha256": sha256}))
        })
        .collect();
    let expected = golden["tensors"].as_object().unwrap();
    assert_eq!(
        got.keys().map(|name| name.as_str()).collect::<BTreeSet<_>>(),
        expected.keys().map(String::as_str).collect()
    );
    for (name, tensor) in got {
        assert_eq!(tensor, expected[name.as_str()], "{name}");
    }
}

#[test]
fn the_embedded_base_is_the_file_that_llama_cpps_converter_makes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.gguf");
    let base = Base::open(&embedded()).unwrap();
    write_f16(&base, &path);
    compare(&path, &json(&golden("export/base.json")), &[], &[], &[]);

    // And it is the same model when it is read again.
    let again = Base::open(&path).unwrap();
    assert_eq!(again.special_tokens().eos_ids, base.special_tokens().eos_ids);
    assert_eq!(again.chat_template(), base.chat_template());
    for key in ["num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings"] {
        assert_eq!(again.config()[key], base.config()[key], "{key}");
    }
    // Exported once more, now from GGUF, it is that file still.
    let second = folder.path().join("second.gguf");
    write_f16(&again, &second);
    compare(&second, &json(&golden("export/base.json")), &[], &[], &[]);
    let text = "<|im_start|>user\nDNA repair 2024: TP53's rôle<|im_end|>\n  and so  on";
    let ids = |base: &Base| base.tokenizer().unwrap().encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(ids(&again), ids(&base));
}

#[test]
fn an_adapter_is_the_file_that_llama_cpps_converter_makes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    let base = Base::open(&embedded()).unwrap();
    let bundle = AdapterBundle::load(&golden("peft_adapter"), &base).unwrap();
    for (dtype, name) in [(WeightType::F16, "f16"), (WeightType::F32, "f32")] {
        let facts = AdapterFacts { name: "Peft_Adapter", dtype };
        write_adapter(&path, &base, &bundle, &facts).unwrap();
        // The converter leaves out which type the numbers are of; tools that list files show it.
        compare(&path, &json(&golden(&format!("export/adapter_{name}.json"))), &["general.file_type"], &[], &[]);
        assert_eq!(open_adapter(&path).unwrap().tensor_names().count(), bundle.tensors.len());
        let AdapterBundle { config, tensors } = AdapterBundle::load(&path, &base).unwrap();
        assert_eq!((config.lora.r, config.lora.lora_alpha), (4, 16.0));
        for (name, tensor) in &bundle.tensors {
            let expected = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter();
            let expected: Vec<f32> = match dtype {
                WeightType::F16 => expected.map(|value| f16::from_f32(value).to_f32()).collect(),
                _ => expected.collect(),
            };
            assert_eq!(tensors[name].flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected, "{name}");
        }
    }
}

#[test]
fn factors_of_llama3s_scaling_are_those_of_llama_cpps_converter() {
    let golden = json(&golden("export/rope_freqs.json"));
    for case in golden["cases"].as_array().unwrap() {
        let config = json!({"rope_scaling": case["rope_scaling"]});
        let head_dim = case["head_dim"].as_u64().unwrap() as usize;
        let factors = rope_freqs(config.as_object().unwrap(), head_dim, &Defaults::LLAMA).unwrap().unwrap();
        let expected = case["factors"].as_array().unwrap();
        assert_eq!(factors.len(), expected.len());
        for (got, expected) in factors.iter().zip(expected) {
            let expected = expected.as_f64().unwrap() as f32;
            // A power of f32 may be off by the last bit, and the blend by a few.
            assert!((got - expected).abs() <= 1e-5 * expected, "{got} {expected}");
        }
    }
}

/// The vocabulary of `TinyStories` is `SentencePiece`'s. llama.cpp's converter, given no `tokenizer.model`, scores all pieces alike,
/// and llama.cpp then makes other ids than transformers of most texts; we score them by their merges.
#[test]
fn a_sentencepiece_vocabulary_keeps_its_ids() {
    let Some(folder) = shared("models/tinystories-656k-bf16") else { return };
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("tiny.gguf");
    let base = Base::open(&folder).unwrap();
    write_f16(&base, &path);
    let again = Base::open(&path).unwrap();
    assert_eq!(again.special_tokens(), base.special_tokens());
    let (ours, reference) = (again.tokenizer().unwrap(), base.tokenizer().unwrap());
    for text in
        ["Once upon a time, there was a little girl named Lily.", "\"Wow!\" said Tom.\n\nThe end.", " two  spaces "]
    {
        let ids = |of: &tokenizers::Tokenizer| of.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids(&ours), ids(&reference), "{text:?}");
    }
}

#[test]
fn a_gguf_bases_metadata_are_carried_over() {
    let Some(path) = shared("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let base = Base::open(&path).unwrap();
    let facts = ModelFacts {
        name: "new",
        dtype: WeightType::Q8_0,
        base_model: Some("HuggingFaceTB/SmolLM2-135M-Instruct"),
        license: None,
        chat_template: None,
    };
    let new = metadata(&base, &facts).unwrap();
    let old = base.gguf_metadata().unwrap();
    let changed = ["general.name", "general.file_type", "general.quantization_version"];
    for (key, value) in old.values().iter().filter(|(key, _)| !changed.contains(&key.as_str())) {
        let kept = new.iter().find(|(name, _)| name == key).map(|(_, value)| format!("{value:?}"));
        assert_eq!(kept, Some(format!("{value:?}")), "{key}");
    }
    let text = |key: &str| new.iter().find(|(name, _)| name == key).map(|(_, value)| format!("{value:?}")).unwrap();
    assert_eq!(text("general.file_type"), "U32(7)");
    assert_eq!(text("general.base_model.0.name"), "String(\"SmolLM2 135M Instruct\")");
    assert_eq!(text("general.base_model.0.organization"), "String(\"HuggingFaceTB\")");
}
