//! Adapters as others write them (case 18), against PEFT's logits: `tests/golden/peft_patterns`.

use crate::reported::Case;
use crate::support::stored_tensors::{read_tensors, stored, write_tensors};
use crate::support::{floats, golden, json};
use equipoise::adapter::AdapterBundle;
use equipoise::device::Device;
use equipoise::models::{self, Generator, Sampling};
use equipoise::nn::{QuantizationConfig, QuantizationType};
use equipoise::weights::Base;
use serde_json::{Value, json as object};
use std::path::Path;

const IDS: [u32; 8] = [10, 70, 33, 101, 5, 64, 250, 7];

fn logits(case: &Case, adapter: &Path) -> Vec<f32> {
    let base = Base::open(&case.path("../tiny-base")).unwrap();
    let bundle = AdapterBundle::load(adapter, &base).unwrap();
    let stored = QuantizationConfig { kind: QuantizationType::None };
    let model = models::load(&base, stored, Some(&bundle.config.lora), 0, &Device::Cpu, false).unwrap();
    model.params.assign(&bundle.tensors, adapter).unwrap();
    Generator::new(&model.lm, &Device::Cpu, true, Sampling::default()).feed(&IDS).unwrap()
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    for (got, expected) in got.iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() < 2e-4, "{what}: expected {expected}, got {got}");
    }
}

#[test]
fn the_reported_patterns_give_the_logits_of_peft() {
    let case = Case::new("18-rank-pattern-regex");
    // PEFT 0.21.2, as in tests/parity/peft_patterns.py; the first eight.
    let expected = [2.05348, -1.838_128, -1.006_405, -1.887_195, -1.155_519, -2.350_664, -1.45181, -0.009_466];
    assert_close(&logits(&case, &case.path("adapter")), &expected, "case 18");
    let export = ["export", "adapter", "--to", "merged", "--out", "merged", "--json"];
    let output = case.command(&export).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Patterns with anchors, lookahead, named groups, in the file's order, under rank-stabilised scaling; targets by expression,
/// by layer, with exclusions; tensors that the configuration does not name, which PEFT leaves out.
#[test]
fn what_peft_names_by_expressions_gives_its_logits() {
    let case = Case::new("18-rank-pattern-regex");
    let folder = golden("peft_patterns");
    let expected = json(&folder.join("expected.json"));
    for (name, values) in expected["last_logits"].as_object().unwrap() {
        assert_close(&logits(&case, &folder.join(name)), &floats(values), name);
    }
}

/// As in bases: what nobody needs does not refuse an adapter (case 21).
#[test]
fn tensors_that_are_no_part_of_the_adapter_are_left_out() {
    let case = Case::new("18-rank-pattern-regex");
    let file = case.path("adapter/adapter_model.safetensors");
    let before = logits(&case, &case.path("adapter"));
    let mut tensors = read_tensors(&file);
    let buffer = |name: &str| format!("base_model.model.model.{name}");
    tensors.push(stored(&buffer("rotary_emb.inv_freq"), "F32", &[4], &[0; 16]));
    tensors.push(stored(&buffer("position_ids"), "I64", &[1], &[0; 8]));
    tensors.push(stored(&buffer("layers.0.flag"), "BOOL", &[1], &[1]));
    tensors.push(stored(&buffer("layers.0.future"), "F4_FUTURE", &[1], &[1]));
    tensors.push(stored(&buffer("empty"), "F32", &[0], &[]));
    write_tensors(&file, &tensors, &object!({ "format": "pt", "step": 3 }));
    assert_eq!(logits(&case, &case.path("adapter")), before);

    let name = &tensors[0].0;
    let error = |dtype: &str| {
        let mut tensors = tensors.clone();
        (tensors[0].1, tensors[0].3) = (dtype.into(), vec![0; tensors[0].2.iter().product()]);
        write_tensors(&file, &tensors, &Value::Null);
        let base = Base::open(&case.path("../tiny-base")).unwrap();
        AdapterBundle::load(&case.path("adapter"), &base).unwrap_err().to_string()
    };
    for dtype in ["U8", "F8_E4M3", "F4_FUTURE"] {
        assert!(error(dtype).contains(&format!("`{name}` is of type {dtype}")), "{}", error(dtype));
    }
}
