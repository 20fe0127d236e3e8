use crate::weight_type::WeightType;
use crate::weights::Base;
use crate::weights::gguf::rows;
use crate::weights::test_support::{quantized, shared, write_gguf};
use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use std::fs;
use std::path::Path;

fn metadata(extra: &[(&'static str, Value)]) -> Vec<(&'static str, Value)> {
    let mut all = vec![
        ("general.architecture", Value::String("llama".into())),
        ("llama.block_count", Value::U32(1)),
        ("llama.embedding_length", Value::U32(32)),
        ("llama.feed_forward_length", Value::U32(64)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.head_count_kv", Value::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.context_length", Value::U64(512)),
    ];
    all.retain(|(key, _)| extra.iter().all(|(other, _)| other != key));
    all.extend_from_slice(extra);
    all
}

fn counting(count: usize) -> Vec<f32> {
    (0..count).map(|value| (value % 251) as f32 - 100.0).collect()
}

fn tensors() -> Vec<(&'static str, QTensor)> {
    vec![
        ("token_embd.weight", quantized(&[40, 32], &counting(1280), GgmlDType::Q8_0)),
        ("blk.0.attn_q.weight", quantized(&[32, 32], &counting(1024), GgmlDType::Q4_0)),
        ("blk.0.attn_k.weight", quantized(&[16, 32], &counting(512), GgmlDType::F32)),
        ("rope_freqs.weight", quantized(&[8], &counting(8), GgmlDType::F32)),
    ]
}

fn refused(path: &Path) -> String {
    let error = Base::open(path).expect_err("the base must be refused");
    format!("{error} | {}", error.help().unwrap_or_default())
}

#[test]
fn tensors_have_hugging_faces_names_and_row_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let tensors = tensors();
    write_gguf(&path, &metadata(&[]), &tensors);
    let base = Base::open(&path).unwrap();
    assert!(base.is_gguf());
    let q = base.read("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!((q.shape.as_slice(), q.dtype), ([32, 32].as_slice(), WeightType::Q4_0));
    assert_eq!(rows::to_gguf(&q.bytes, 32, 2).unwrap(), tensors[1].1.data().unwrap().as_ref());
    // One k head of 16 rows: Hugging Face's second row is GGUF's third.
    let k = base.read("model.layers.0.self_attn.k_proj.weight").unwrap();
    let first = |row: usize| f32::from_le_bytes(k.bytes[row * 128..][..4].try_into().unwrap());
    assert_eq!((first(0), first(1), first(8)), (counting(512)[0], counting(512)[64], counting(512)[32]));
    assert_eq!(base.read("model.embed_tokens.weight").unwrap().bytes, tensors[0].1.data().unwrap().as_ref());
    assert_eq!(base.tensor("rope_freqs.weight"), Some(([8].as_slice(), WeightType::F32)));
    assert_eq!(base.stored_name("model.embed_tokens.weight"), Some("token_embd.weight"));
}

#[test]
fn metadata_become_a_config() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let scaling = [
        ("llama.rope.scaling.type", Value::String("linear".into())),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
    ];
    write_gguf(&path, &metadata(&scaling), &tensors());
    let base = Base::open(&path).unwrap();
    let expected = serde_json::json!({
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": { "rope_type": "linear", "factor": 4.0 }, "tie_word_embeddings": true, "attention_bias": false,
        "hidden_act": "silu", "eos_token_id": 2
    });
    assert_eq!(serde_json::Value::Object(base.config().clone()), expected);

    let other = [("general.architecture", Value::String("mamba".into()))];
    write_gguf(&path, &metadata(&other), &tensors());
    let base = Base::open(&path).unwrap();
    assert_eq!(base.model_type(), "mamba");
    assert!(base.tensor("blk.0.attn_q.weight").is_some());
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write_gguf(&path, &metadata(&[]), &tensors());
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len() - 32).step_by(7) {
        fs::write(&path, &whole[..length]).unwrap();
        refused(&path);
    }
    fs::write(&path, &whole[..whole.len() - 64]).unwrap();
    let message = refused(&path);
    assert!(
        message.contains("`rope_freqs.weight` needs 32 bytes") || message.contains("`blk.0.attn_k.weight`"),
        "{message}"
    );
    assert!(message.contains(&format!("the file has {} bytes", whole.len() - 64)), "{message}");
}

#[test]
fn changed_bytes_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let vocabulary = [
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.tokens", Value::Array(["a", "b", "ab"].map(|token| Value::String(token.into())).to_vec())),
        ("tokenizer.ggml.merges", Value::Array(vec![Value::String("a b".into())])),
    ];
    write_gguf(&path, &metadata(&vocabulary), &tensors());
    let whole = fs::read(&path).unwrap();
    for position in 0..1100 {
        let mut bytes = whole.clone();
        bytes[position] ^= [0xff, 0x80, 0x01][position % 3];
        fs::write(&path, &bytes).unwrap();
        if let Ok(base) = Base::open(&path) {
            let _ = base.tokenizer();
            let names: Vec<String> = base.tensor_names().map(String::from).collect();
            assert!(names.iter().all(|name| base.read(name).is_ok()));
        }
    }
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let with = |extra: &[(&'static str, Value)]| {
        write_gguf(&path, &metadata(extra), &tensors());
        refused(&path)
    };
    assert!(with(&[("general.alignment", Value::U32(0))]).contains("general.alignment is 0"));
    assert!(with(&[("split.count", Value::U16(3))]).contains("one of 3 parts"));
    assert!(with(&[("llama.rope.dimension_count", Value::U32(2))]).contains("rope.dimension_count"));
    assert!(with(&[("llama.attention.head_count", Value::U32(0))]).contains("head_count` is 0"));
    assert!(with(&[("llama.attention.head_count_kv", Value::U32(3))]).contains("16 rows are not 3 heads"));
    assert!(with(&[("llama.block_count", Value::String("x".into()))]).contains("got String"));
    assert!(with(&[("general.type", Value::String("adapter".into()))]).contains("is a LoRA adapter"));

    write_gguf(&path, &metadata(&[]), &tensors());
    let mut bytes = fs::read(&path).unwrap();
    let name = b"blk.0.attn_q.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16;
    bytes[at] = 18;
    fs::write(&path, &bytes).unwrap();
    let error = Base::open(&path).unwrap().read("model.layers.0.self_attn.q_proj.weight").unwrap_err();
    let message = format!("{error} | {}", error.help().unwrap());
    assert!(
        message.contains("`blk.0.attn_q.weight` is of type IQ3_XXS") && message.contains("Q4_K, Q5_K, Q6_K, IQ4_NL"),
        "{message}"
    );
    bytes[4..8].copy_from_slice(&[0, 0, 0, 3]);
    fs::write(&path, &bytes).unwrap();
    assert!(refused(&path).contains("big-endian"));
    fs::write(&path, b"PK\x03\x04 and so on, for more than a header").unwrap();
    assert!(refused(&path).contains("is not a GGUF file"));
}

#[test]
fn smollm2_opens_whole() {
    let Some(path) = shared("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf") else { return };
    let base = Base::open(&path).unwrap();
    assert_eq!(base.tensor_names().count(), 272);
    for (key, value) in [("vocab_size", 49152), ("head_dim", 64), ("num_key_value_heads", 3), ("eos_token_id", 2)] {
        assert_eq!(base.config()[key], value);
    }
    assert_eq!(base.config()["rms_norm_eps"], 1e-5);
    assert_eq!(base.config()["rope_theta"], 100_000.0);
    assert_eq!(base.config()["tie_word_embeddings"], true);
    let name = "model.layers.29.self_attn.q_proj.weight";
    assert_eq!(base.tensor(name), Some(([576, 576].as_slice(), WeightType::Q4_1)));
    assert_eq!(base.read(name).unwrap().bytes.len(), 576 * 576 / 32 * 20);
    let tokens = base.special_tokens();
    assert_eq!(tokens.bos, Some(("<|im_start|>".into(), 1)));
    assert_eq!(tokens.eos, Some(("<|im_end|>".into(), 2)));
    assert_eq!((tokens.add_bos, tokens.eos_ids.as_slice()), (false, [2, 0].as_slice()));
    assert!(base.chat_template().unwrap().contains("<|im_start|>system"));
}
