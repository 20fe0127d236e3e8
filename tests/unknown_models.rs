//! Configurations that cannot be trained: refused before anything is allocated, with the key and what was expected.

use crate::support::golden;
use equipoise::device::Device;
use equipoise::models;
use equipoise::nn::QuantizationConfig;
use equipoise::weights::Base;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What is said of a family's folder whose configuration was changed, as an error with its help.
#[track_caller]
fn refusal(family: &str, change: impl FnOnce(&mut Map<String, Value>)) -> String {
    let place = changed(family, change);
    let error = loaded(place.path()).expect_err("it must be refused");
    format!("{error} {}", error.help().unwrap_or_default())
}

fn changed(family: &str, change: impl FnOnce(&mut Map<String, Value>)) -> tempfile::TempDir {
    let (from, place) = (golden("families").join(family), tempfile::tempdir().unwrap());
    let read = |name: &str| std::fs::read(from.join(name)).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&read("config.json")).unwrap();
    change(&mut config);
    std::fs::write(place.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    std::fs::write(place.path().join("model.safetensors"), read("model.safetensors")).unwrap();
    place
}

fn loaded(path: &Path) -> equipoise::error::Result<()> {
    let base = Base::open(path)?;
    models::load(&base, QuantizationConfig::default(), None, 0, &Device::Cpu, true).map(drop)
}

#[track_caller]
fn says(said: &str, phrases: &[&str]) {
    for phrase in phrases {
        assert!(said.contains(phrase), "no `{phrase}` in: {said}");
    }
}

fn text(config: &mut Map<String, Value>) -> &mut Map<String, Value> {
    config["text_config"].as_object_mut().unwrap()
}

#[test]
fn keys_that_change_the_arithmetic_stop_the_load() {
    for (family, key, value) in [
        ("qwen3", "final_logit_softcapping", json!(30.0)),
        ("qwen2", "attention_multiplier", json!(0.5)),
        ("mistral_window", "partial_rotary_factor", json!(0.5)),
        ("granite", "use_new_gate", json!(true)),
        ("gemma2", "num_experts", json!(8)),
    ] {
        let said = refusal(family, |config| drop(config.insert(key.into(), value.clone())));
        says(&said, &[key, &value.to_string(), "may change what the model computes", "remove it from config.json"]);
    }
    let said = refusal("gemma3", |config| drop(text(config).insert("hidden_softcap".into(), json!(2.0))));
    says(&said, &["hidden_softcap"]);
}

/// What is switched off, and what describes the file, changes nothing; published files have such keys.
#[test]
fn keys_that_change_nothing_are_ignored() {
    for (family, key, value) in [
        ("qwen3", "attn_scale", json!(1.0)),
        ("qwen3", "router_aux_loss_coef", json!(0.001)),
        ("qwen3", "torch_dtype", json!("float16")),
        ("gemma2", "sliding_window_size", json!(4096)),
        ("granitemoehybrid", "normalization_function", json!("rmsnorm")),
        ("phi3_longrope", "full_attn_mod", json!(1)),
    ] {
        let place = changed(family, |config| drop(config.insert(key.into(), value.clone())));
        loaded(place.path()).unwrap_or_else(|error| panic!("{family} with {key}: {error}"));
    }
    for (family, key, value) in [
        ("granitemoehybrid", "normalization_function", json!("layernorm")),
        ("phi3_longrope", "full_attn_mod", json!(2)),
    ] {
        let said = refusal(family, |config| drop(config.insert(key.into(), value)));
        says(&said, &[key]);
    }
    says(
        &refusal("qwen3", |config| drop(config.insert("hidden_size".into(), json!(0)))),
        &["hidden_size: expected 1 to", "got 0"],
    );
}

#[test]
fn what_a_configuration_must_say_is_asked_for() {
    says(&refusal("qwen3", |config| drop(config.remove("hidden_size"))), &["missing field `hidden_size`", "qwen3"]);
    says(
        &refusal("qwen3", |config| drop(config.insert("head_dim".into(), json!(24)))),
        &["q_proj", "expected [96, 32]"],
    );
    says(
        &refusal("qwen3", |config| drop(config.insert("head_dim".into(), json!(15)))),
        &["head_dim: expected an even number"],
    );
    let said = refusal("smollm3", |config| drop(config.insert("no_rope_layers".into(), json!([1, 0]))));
    says(&said, &["no_rope_layers: expected 4 numbers"]);
    let said = refusal("gemma2", |config| drop(config.insert("layer_types".into(), json!(["full_attention"]))));
    says(&said, &["layer_types: expected 4 types, got 1"]);
    let said = refusal("gemma2", |config| {
        config.insert("layer_types".into(), json!(["full_attention", "linear_attention", "full_attention", "conv"]));
    });
    says(&said, &["linear_attention", "full_attention, sliding_attention"]);
    let said = refusal("gemma2", |config| drop(config.insert("hidden_activation".into(), json!("gelu"))));
    says(&said, &["hidden_activation `gelu` is not supported", "gelu_pytorch_tanh"]);
    let said = refusal("granitemoehybrid", |config| drop(config.insert("num_local_experts".into(), json!(4))));
    says(&said, &["num_local_experts", "expected 0"]);
}

#[test]
fn rotations_that_are_not_known_are_refused() {
    let said = refusal("qwen2", |config| {
        config.remove("rope_parameters");
        config.insert("rope_scaling".into(), json!({ "rope_type": "spiral", "factor": 4.0 }));
    });
    says(&said, &["rope_scaling of type `spiral`", "default, linear, dynamic, llama3, yarn, longrope, proportional"]);
    let said =
        refusal("phi3_longrope", |config| drop(config["rope_scaling"].as_object_mut().unwrap().remove("long_factor")));
    says(&said, &["rope_scaling.long_factor: expected 9 numbers above 0"]);
    let said = refusal("qwen2", |config| {
        config.insert("rope_parameters".into(), json!({ "full_attention": { "rope_theta": 1e4 } }));
    });
    says(&said, &["rope_parameters has an object for each type of layer"]);
    let said = refusal("gemma3_text", |config| {
        config.remove("rope_scaling");
        config.insert("rope_parameters".into(), json!({ "rope_type": "linear", "factor": 8.0 }));
    });
    says(&said, &["rope_parameters: expected an object for each type of layer", "sliding_attention"]);
    let said = refusal("qwen2", |config| {
        config.remove("rope_parameters");
        config.insert("rope_theta".into(), json!(1e-60));
    });
    says(&said, &["rope_theta (", "frequencies are not finite"]);
}

#[test]
fn families_that_are_not_known_are_told_the_nearest() {
    let named = |name: &'static str| {
        move |config: &mut Map<String, Value>| drop(config.insert("model_type".into(), json!(name)))
    };
    says(
        &refusal("qwen3", named("qwen3_moe")),
        &["`qwen3_moe` is not supported: experts are missing", "nearest family is `qwen3`"],
    );
    says(&refusal("qwen3", named("quen3")), &["`quen3` is not supported", "nearest family by name is `qwen3`"]);
    says(&refusal("qwen3", named("zzz")), &["`zzz` is not supported", "supported are: exaone4, gemma2"]);
    let said = refusal("gemma3", |config| drop(text(config).insert("model_type".into(), json!("gemma9_text"))));
    says(&said, &["`gemma9_text`, the text decoder of a `gemma3`, is not supported"]);
    let said = refusal("gemma3", |config| {
        text(config).remove("model_type");
        config.insert("model_type".into(), json!("sees_all"));
    });
    says(&said, &["text_config has no `model_type`", "`sees_all`"]);
}

/// A GGUF file that lacks a tensor: its header names another one in the place.
#[test]
fn a_gguf_file_without_a_tensor_is_refused_by_its_name() {
    for (family, stored, name) in [
        ("qwen3", "blk.1.attn_q_norm.weight", "model.layers.1.self_attn.q_norm.weight"),
        ("gemma2", "blk.0.post_ffw_norm.weight", "model.layers.0.post_feedforward_layernorm.weight"),
        ("phi3", "blk.1.ffn_up.weight", "model.layers.1.mlp.gate_up_proj.weight"),
    ] {
        let mut file = std::fs::read(golden("families").join(family).join("model.gguf")).unwrap();
        let at = file.windows(stored.len()).position(|bytes| bytes == stored.as_bytes()).unwrap();
        file[at + 6..at + 9].copy_from_slice(b"xyz");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, file).unwrap();
        let error = loaded(&path).expect_err("a tensor is missing");
        says(&format!("{error} {}", error.help().unwrap_or_default()), &[name, "model.gguf"]);
    }
}
