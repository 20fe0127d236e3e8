//! Bases that are stored quantized: bitsandbytes' NF4, FP8 with scales, GGUF's IQ4. What is decoded is what others decode
//! (`tests/parity/quantized_bases.py`), such bases train, and what contradicts itself is refused.

use crate::support::{golden, json};
use equipoise::ops::dequantize::dequantize;
use equipoise::weight_type::WeightType;
use equipoise::weights::gguf::rows;
use equipoise::weights::{Base, RawTensor};
use half::{bf16, f16};
use serde_json::Value;
use sha2::{Digest, Sha256};

mod exports;
mod refused;
mod runs;
mod twins;

fn numbers(raw: &RawTensor) -> Vec<f32> {
    let mut numbers = vec![0f32; raw.shape.iter().product()];
    dequantize(raw.dtype, &raw.bytes, &mut numbers);
    numbers
}

/// That numbers are to the bit those of a golden entry.
#[track_caller]
fn assert_golden(name: &str, numbers: &[f32], expected: &Value) {
    let bytes: Vec<u8> = match expected["dtype"].as_str().unwrap() {
        "f32" => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        "f16" => numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
    };
    let first: Vec<f32> = expected["first"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    assert_eq!(numbers[..first.len()], first, "{name}");
    assert_eq!(format!("{:x}", Sha256::digest(bytes)), expected["sha256"].as_str().unwrap(), "{name}");
}

/// Of bitsandbytes' `dequantize_4bit`, and of torch's `float8_e4m3fn` times the scale.
#[test]
fn folders_decode_as_their_own_programs_do() {
    for folder in ["nf4", "nf4_rows", "fp8"] {
        let folder = golden("quantized").join(folder);
        let base = Base::open(&folder).unwrap();
        let expected = json(&folder.join("expected.json"));
        for (name, expected) in expected.as_object().unwrap() {
            let raw = base.read(name).unwrap();
            let (shape, dtype) = base.tensor(name).unwrap();
            assert_eq!((raw.shape.as_slice(), raw.dtype), (shape, dtype));
            let columns = shape[1];
            let kept = folder.ends_with("nf4") && columns == 64 || name == "stored_bf16.weight";
            let rounded = match expected["dtype"].as_str().unwrap() {
                "f32" => WeightType::F32,
                "f16" => WeightType::F16,
                _ => WeightType::BF16,
            };
            assert_eq!(dtype, if kept { WeightType::Nf4 } else { rounded }, "{name}");
            assert_golden(name, &numbers(&raw), expected);
            // Rows by themselves, whatever blocks and scales they cross.
            let row_bytes = raw.bytes.len() / shape[0];
            for range in [0..1, 1..4, 2..shape[0], 3..3] {
                let some = base.read_rows(name, range.clone()).unwrap();
                assert!(some == raw.bytes[range.start * row_bytes..range.end * row_bytes], "{name}, rows {range:?}");
            }
        }
        // States and scales are no tensors of the base.
        let others: Vec<_> =
            base.tensor_names().filter(|name| name.contains("weight_") || name.contains("_scale")).collect();
        let states = base.tensor_names().filter(|name| name.contains(".weight.")).count();
        assert!(others.is_empty() && states == 0, "{others:?}");
    }
}

/// Of gguf-py's `dequantize`.
#[test]
fn iq4_decodes_as_gguf_py_does() {
    let base = Base::open(&golden("quantized/iq4.gguf")).unwrap();
    let expected = json(&golden("quantized/iq4.json"));
    for (part, stored) in [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ] {
        let mut raw = base.read(&format!("model.layers.0.{part}.weight")).unwrap();
        assert_eq!(raw.dtype, if stored == "ffn_down" { WeightType::Iq4Xs } else { WeightType::Iq4Nl });
        if ["attn_q", "attn_k"].contains(&stored) {
            raw.bytes = rows::to_gguf(&raw.bytes, 32, 2).unwrap();
        }
        assert_golden(stored, &numbers(&raw), &expected[format!("blk.0.{stored}.weight")]);
    }
}
