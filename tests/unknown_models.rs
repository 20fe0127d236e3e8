//! Configurations that cannot be trained: refused before anything is allocated, with the key and what was expected.

use crate::support::golden;
use equipoise::device::Device;
use equipoise::models;
use equipoise::nn::QuantizationConfig;
use equipoise::weights::Base;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What is said of a family's folder whose configuration was changed, as an error with its help.
fn refusal(family: &str, change: impl FnOnce(&mut Map<String, Value>)) -> String {
    let (from, place) = (golden("families").join(family), tempfile::tempdir().unwrap());
    let read = |name: &str| std::fs::read(from.join(name)).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&read("config.json")).unwrap();
    change(&mut config);
    std::fs::write(place.path().join("config.json"), Value::Object(config).to_string()).unwrap();
    std::fs::write(place.path().join("model.safetensors"), read("model.safetensors")).unwrap();
    said_of(place.path())
}

fn said_of(path: &Path) -> String {
    let loaded = Base::open(path)
        .and_then(|base| models::load(&base, QuantizationConfig::default(), None, 0, &Device::Cpu, true).map(|_| ()));
    let error = loaded.expect_err("it must be refused");
    format!("{error} {}", error.help().unwrap_or_default())
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
fn keys_that_change_the_arithmetic_are_not_passed_over() {
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
    // What is switched off, and what describes the file, says nothing.
    let said = refusal("qwen3", |config| {
        config.insert("attn_scale".into(), json!(1.0));
        config.insert("router_aux_loss_coef".into(), json!(0.001));
        config.insert("torch_dtype".into(), json!("float16"));
        config.insert("hidden_size".into(), json!(0));
    });
    says(&said, &["hidden_size: expected 1 to", "got 0"]);
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
    says(&said, &["`gemma9_text`, the text part of a `gemma3`, is not supported"]);
    let said = refusal("gemma3", |config| {
        text(config).remove("model_type");
        config.insert("model_type".into(), json!("sees_all"));
    });
    says(&said, &["text_config has no `model_type`", "`sees_all`"]);
}
