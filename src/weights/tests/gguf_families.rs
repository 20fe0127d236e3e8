use crate::weights::Base;
use crate::weights::test_support::{quantized, write_gguf};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use serde_json::{Value as Json, json};
use std::fs;
use std::path::Path;

fn text(text: &str) -> Value {
    Value::String(text.into())
}

/// A file of this architecture with four layers of two heads of 16 numbers, and what is said besides, after its name.
fn file(path: &Path, architecture: &str, more: &[(&str, Value)], tensors: Vec<(&'static str, QTensor)>) {
    let mut keys: Vec<(String, Value)> = vec![
        ("block_count".into(), Value::U32(4)),
        ("embedding_length".into(), Value::U32(32)),
        ("feed_forward_length".into(), Value::U32(64)),
        ("attention.head_count".into(), Value::U32(2)),
        ("attention.head_count_kv".into(), Value::U32(1)),
        ("attention.layer_norm_rms_epsilon".into(), Value::F32(1e-6)),
        ("context_length".into(), Value::U32(512)),
    ];
    keys.retain(|(key, _)| more.iter().all(|(other, _)| other != key));
    keys.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let keys: Vec<(String, Value)> =
        keys.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)).collect();
    let mut all = vec![("general.architecture", text(architecture))];
    all.extend(keys.iter().map(|(key, value)| (key.as_str(), value.clone())));
    let mut tensors = tensors;
    tensors.push(("token_embd.weight", quantized(&[8, 32], &[0.5; 256], GgmlDType::F32)));
    write_gguf(path, &all, &tensors);
}

fn config(architecture: &str, more: &[(&str, Value)], tensors: Vec<(&'static str, QTensor)>) -> Json {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    file(&path, architecture, more, tensors);
    Json::Object(Base::open(&path).unwrap().config().clone())
}

fn refused(architecture: &str, more: &[(&str, Value)], tensors: Vec<(&'static str, QTensor)>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    file(&path, architecture, more, tensors);
    let error = Base::open(&path).expect_err("the base must be refused");
    format!("{error} | {}", error.help().unwrap_or_default())
}

#[test]
fn sizes_may_be_given_for_each_layer_if_they_are_alike() {
    let each = |numbers: &[u32]| Value::Array(numbers.iter().map(|number| Value::U32(*number)).collect());
    let same = config("granite", &[("attention.head_count_kv", each(&[2, 2, 2, 2]))], vec![]);
    assert_eq!(same["num_key_value_heads"], json!(2));
    let message = refused("granite", &[("feed_forward_length", each(&[64, 32, 64, 64]))], vec![]);
    assert!(
        message.contains("`granite.feed_forward_length` differs from layer to layer ([64, 32, 64, 64])"),
        "{message}"
    );
    // Layers that predict further tokens are none of the decoder's.
    let further = [("block_count", Value::U32(5)), ("nextn_predict_layers", Value::U32(1))];
    assert_eq!(config("exaone4", &further, vec![])["num_hidden_layers"], json!(4));
}

/// What the runtime has built in stands in no file.
#[test]
fn what_a_file_leaves_unsaid_is_what_the_runtime_takes() {
    let gemma = config("gemma2", &[("attention.key_length", Value::U32(8))], vec![]);
    assert_eq!(gemma["query_pre_attn_scalar"], json!(8));
    assert_eq!((&gemma["sliding_window"], &gemma["attn_logit_softcapping"]), (&json!(4096), &json!(50.0)));
    assert_eq!(
        gemma["layer_types"],
        json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention"])
    );
    assert_eq!((&gemma["norms_include_one"], gemma.get("hidden_act")), (&json!(true), None));
    let of_27b = [("block_count", Value::U32(46)), ("attention.key_length", Value::U32(8))];
    assert_eq!(config("gemma2", &of_27b, vec![])["query_pre_attn_scalar"], json!(16));
    let gemma = config("gemma3", &[("attention.sliding_window", Value::U32(8))], vec![]);
    assert_eq!((&gemma["rope_local_base_freq"], &gemma["layer_types"][3]), (&json!(1e4), &json!("sliding_attention")));
    let gemma = config("gemma3", &[], vec![]);
    assert_eq!((&gemma["sliding_window"], &gemma["layer_types"][0]), (&Json::Null, &json!("full_attention")));
    assert_eq!(config("smollm3", &[], vec![])["no_rope_layers"], json!([1, 1, 1, 0]));
    let granite = config("granite", &[("logit_scale", Value::F32(8.0))], vec![]);
    assert_eq!((&granite["attention_multiplier"], &granite["residual_multiplier"]), (&json!(0.25), &json!(1.0)));
    assert_eq!(granite["logits_scaling"], json!(8.0));
}

#[test]
fn metadata_tell_families_of_one_architecture_apart() {
    let pattern = Value::Array([false, true, true, true].map(Value::Bool).to_vec());
    let window = [("attention.sliding_window", Value::U32(8)), ("attention.sliding_window_pattern", pattern)];
    let olmo = config("olmo2", &window, vec![]);
    assert_eq!((&olmo["model_type"], &olmo["layer_types"][0]), (&json!("olmo3"), &json!("full_attention")));
    assert_eq!(config("olmo2", &[], vec![])["model_type"], json!("olmo2"));
    let few = [
        ("attention.sliding_window", Value::U32(8)),
        ("attention.sliding_window_pattern", Value::Array(vec![Value::Bool(true)])),
    ];
    assert!(refused("olmo2", &few, vec![]).contains("for each of 4 layers"));
    assert_eq!(config("mistral3", &[], vec![])["model_type"], json!("mistral"));
    let yarn = [
        ("attention.temperature_scale", Value::F32(0.1)),
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", Value::F32(16.0)),
        ("rope.scaling.original_context_length", Value::U32(32)),
        ("rope.scaling.yarn_log_multiplier", Value::F32(1.0)),
        ("rope.scaling.yarn_beta_fast", Value::F32(32.0)),
    ];
    let ministral = config("mistral3", &yarn, vec![]);
    assert_eq!(ministral["model_type"], json!("ministral3"));
    let expected = json!({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
        "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1});
    assert_eq!(ministral["rope_parameters"], expected);
}

#[test]
fn the_factor_of_yarn_is_said_whole_or_besides_the_usual() {
    let scaling = |more: &[(&'static str, Value)]| {
        let mut keys = vec![("rope.scaling.type", text("yarn")), ("rope.scaling.factor", Value::F32(4.0))];
        keys.extend_from_slice(more);
        config("qwen3", &keys, vec![])["rope_scaling"]["attention_factor"].as_f64()
    };
    assert_eq!(scaling(&[]), None);
    assert_eq!(scaling(&[("rope.scaling.yarn_attn_factor", Value::F32(1.5))]), Some(1.5));
    let besides = scaling(&[("rope.scaling.attn_factor", Value::F32(2.0))]).unwrap();
    assert!((besides - 2.0 * (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12, "{besides}");
    let both = [("rope.scaling.yarn_attn_factor", Value::F32(1.5)), ("rope.scaling.attn_factor", Value::F32(2.0))];
    assert_eq!(scaling(&both), Some(1.5));
    let keys = [
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", Value::F32(4.0)),
        ("rope.scaling.yarn_ext_factor", Value::F32(0.0)),
    ];
    assert!(refused("qwen3", &keys, vec![]).contains("yarn_ext_factor` is 0"));
}

#[test]
fn longrope_is_in_tensors_and_parts_of_heads_may_rotate() {
    let factors = |first: f32| quantized(&[6], &[first, 1.1, 1.2, 1.3, 1.4, 1.5], GgmlDType::F32);
    let tensors = || vec![("rope_factors_long.weight", factors(2.0)), ("rope_factors_short.weight", factors(1.0))];
    let usual = (1.0 + 8f32.ln() / 64f32.ln()).sqrt();
    let keys = |factor: f32| {
        [
            ("rope.dimension_count", Value::U32(12)),
            ("rope.scaling.original_context_length", Value::U32(64)),
            ("rope.scaling.attn_factor", Value::F32(factor)),
            ("attention.sliding_window", Value::U32(0)),
        ]
    };
    let phi = config("phi3", &keys(usual), tensors());
    assert_eq!((&phi["partial_rotary_factor"], &phi["sliding_window"]), (&json!(0.75), &Json::Null));
    assert_eq!(phi["original_max_position_embeddings"], json!(64));
    let expected = json!({"type": "longrope", "long_factor": [2.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]});
    assert_eq!(phi["rope_scaling"], expected);
    assert_eq!(config("phi3", &keys(1.5), tensors())["rope_scaling"]["attention_factor"], json!(1.5));
    let half = vec![
        ("rope_factors_long.weight", quantized(&[6], &[1.0; 6], GgmlDType::F16)),
        ("rope_factors_short.weight", factors(1.0)),
    ];
    assert!(refused("phi3", &keys(usual), half).contains("expected a vector of F32"));
    for architecture in ["gemma3", "granite"] {
        assert!(refused(architecture, &[("rope.dimension_count", Value::U32(12))], vec![]).contains("12 are rotated"));
    }
    assert!(refused("glm4", &[("rope.dimension_count", Value::U32(7))], vec![]).contains("7 are rotated"));
    let sections = Value::Array([2, 3, 3, 0].map(Value::I32).to_vec());
    assert!(refused("glm4", &[("rope.dimension_sections", sections)], vec![]).contains("[2, 3, 3, 0]"));
    assert!(
        refused("granite", &[("rope.scaling.finetuned", Value::Bool(false))], vec![]).contains("finetuned` is false")
    );
}

#[test]
fn metadata_that_is_not_finite_and_half_of_longropes_factors_are_refused() {
    for number in [f32::NAN, f32::INFINITY] {
        for (architecture, key) in [("granite", "embedding_scale"), ("llama", "rope.freq_base")] {
            let said = refused(architecture, &[(key, Value::F32(number))], Vec::new());
            assert!(said.contains(&format!("`{architecture}.{key}`: expected a finite number")), "{said}");
        }
    }
    let said = refused("phi3", &[], vec![("rope_factors_short.weight", quantized(&[8], &[1.5; 8], GgmlDType::F32))]);
    assert!(said.contains("has no tensor `rope_factors_long.weight`"), "{said}");
}

#[test]
fn q_k_and_v_in_one_tensor_must_be_of_all_heads() {
    let fused =
        |rows: usize| vec![("blk.0.attn_qkv.weight", quantized(&[rows, 32], &vec![1.0; rows * 32], GgmlDType::Q8_0))];
    assert!(refused("qwen2", &[], fused(60)).contains("expected 32 + 16 + 16 rows of q, k and v, got 60"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    file(&path, "phi3", &[], fused(60));
    // Phi's is one in Hugging Face's form too; whoever builds the model finds that it does not fit.
    assert!(Base::open(&path).unwrap().tensor("model.layers.0.self_attn.qkv_proj.weight").is_some());
}

#[test]
fn changed_bytes_never_panic_in_any_family() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.gguf");
    let tensors = || {
        vec![
            ("rope_factors_long.weight", quantized(&[8], &[1.0; 8], GgmlDType::F32)),
            ("rope_factors_short.weight", quantized(&[8], &[1.0; 8], GgmlDType::F32)),
            ("blk.0.attn_qkv.weight", quantized(&[64, 32], &[1.0; 2048], GgmlDType::Q8_0)),
        ]
    };
    let pattern = Value::Array([false, true, true, true].map(Value::Bool).to_vec());
    let keys = [
        ("attention.sliding_window", Value::U32(8)),
        ("attention.sliding_window_pattern", pattern),
        ("attention.temperature_scale", Value::F32(0.1)),
        ("rope.scaling.type", text("yarn")),
        ("rope.scaling.factor", Value::F32(16.0)),
        ("rope.scaling.original_context_length", Value::U32(32)),
        ("rope.dimension_count", Value::U32(16)),
    ];
    for architecture in ["gemma2", "gemma3", "mistral3", "olmo2", "exaone4", "phi3", "glm4", "granite", "smollm3"] {
        file(&path, architecture, &keys, tensors());
        let whole = fs::read(&path).unwrap();
        for position in (0..1200).step_by(3) {
            let mut bytes = whole.clone();
            bytes[position] ^= [0xff, 0x80, 0x01][position / 3 % 3];
            fs::write(&path, &bytes).unwrap();
            if let Ok(base) = Base::open(&path) {
                let names: Vec<String> = base.tensor_names().map(String::from).collect();
                assert!(names.iter().all(|name| base.read(name).is_ok()));
            }
        }
    }
}
