//! Bases that say two things (case 10). What transformers makes of each is in `tests/golden/base_contradictions.json`.

use super::{assert_loss, configure, refused, tiny, train};
use crate::reported::Case;
use crate::support::stored_tensors::{read_tensors, stored, write_tensors};
use serde_json::{Value, json};
use std::path::Path;

#[test]
fn a_theta_in_rope_parameters_counts_and_both_values_are_said() {
    let case = Case::new("10-rope-theta-twice");
    assert_loss(&case, 6.513_015, "theta 500");
    let output = case.command(&["train", "recipe.yaml", "--overwrite"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("rope_theta 10000") && said.contains("500.0 in rope_parameters"), "{said}");
}

/// Each variant of the golden file: the loss of transformers, or an error where it has none.
///
/// Besides the reported one: rope in the old form, in both forms, without the original length (vLLM PR 44158), tying against
/// the file (transformers 5's own warning), `num_key_value_heads`, `head_dim`, dtype, positions.
#[test]
fn what_is_said_twice_counts_as_transformers_takes_it() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/base_contradictions.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    for variant in golden["variants"].as_array().unwrap() {
        let name = variant["name"].as_str().unwrap();
        let (case, base) = tiny();
        let remove: Vec<&str> = variant["remove"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        configure(&base, &variant["set"], &remove);
        add(&base, variant["tensors"].as_str());
        match (variant["loss"].as_f64(), name) {
            // Others than transformers add these biases: whoever exports to them would get another model.
            (_, "biases that the configuration denies") => {
                let error = refused(&case);
                assert!(error.contains("attention_bias") && error.contains("q_proj.bias"), "{error}");
            }
            // Its author means what `type` says; transformers fails for want of a name.
            (_, "rope_type is null beside a type") => assert_loss(&case, 6.555_935, name),
            (Some(expected), _) => assert_loss(&case, expected, name),
            (None, _) => assert!(!train(&case).status.success(), "{name}"),
        }
    }
}

fn add(base: &Path, kind: Option<&str>) {
    let path = base.join("model.safetensors");
    let mut tensors = read_tensors(&path);
    let embedding = tensors.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap().3.clone();
    match kind {
        Some("same head") => tensors.push(stored("lm_head.weight", "BF16", &[264, 16], &embedding)),
        Some("other head") => {
            let rows: Vec<u8> = embedding.chunks(32).rev().flatten().copied().collect();
            tensors.push(stored("lm_head.weight", "BF16", &[264, 16], &rows));
        }
        Some("biases") => {
            for (layer, (name, size)) in
                (0..2).flat_map(|layer| [("q", 16), ("k", 8), ("v", 8), ("o", 16)].map(|part| (layer, part)))
            {
                let name = format!("model.layers.{layer}.self_attn.{name}_proj.bias");
                tensors.push(stored(&name, "BF16", &[size], &[0x00, 0x3f].repeat(size)));
            }
        }
        _ => return,
    }
    write_tensors(&path, &tensors, &json!({ "format": "pt" }));
}

/// What is exported says one thing: the merged model's configuration has the theta and the tying that counted.
#[test]
fn a_merged_model_says_it_once() {
    let (case, base) = tiny();
    configure(&base, &json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 500.0 } }), &[]);
    add(&base, Some("other head"));
    assert!(train(&case).status.success());
    let export = ["export", "out", "--to", "merged,gguf", "--quantize", "f32", "--out", "exported", "--json"];
    let output = case.command(&export).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let config = std::fs::read(case.path("exported/merged/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["rope_theta"], &config["rope_parameters"]["rope_theta"]), (&json!(500.0), &json!(500.0)));
    assert_eq!(config["tie_word_embeddings"], false);
}

/// Two downloads in one folder: transformers reads `model.safetensors` where there is one, whatever lies beside it.
#[test]
fn of_two_weight_files_the_single_one_counts() {
    let (case, base) = tiny();
    std::fs::write(base.join("model.safetensors.index.json"), r#"{"weight_map": {"x": "other.safetensors"}}"#).unwrap();
    std::fs::write(base.join("other.safetensors"), "damaged").unwrap();
    std::fs::write(base.join("consolidated.safetensors"), "damaged").unwrap();
    std::fs::write(base.join("pytorch_model.bin"), "damaged").unwrap();
    assert_loss(&case, 6.796_592, "as it is");
    let output = case.command(&["check", "recipe.yaml"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("the first is read"), "{said}");
}

/// `generation_config.json` decides what ends a generation, as in transformers' `generate`.
#[test]
fn the_end_is_that_of_the_generation_config() {
    let (_case, base) = tiny();
    configure(&base, &json!({ "eos_token_id": 70 }), &[]);
    let ends = |base: &Path| equipoise::weights::Base::open(base).unwrap().special_tokens().eos_ids.clone();
    assert_eq!(ends(&base)[0], 70);
    std::fs::write(base.join("generation_config.json"), r#"{"eos_token_id": [2, 1]}"#).unwrap();
    assert_eq!(ends(&base), [2, 1]);
}
