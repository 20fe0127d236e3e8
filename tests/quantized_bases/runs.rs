//! Whole runs on a base in NF4: checked, trained, exported and compared by the program.

use crate::support::stored_tensors::{Stored, read_tensors, stored, write_tensors};
use crate::support::workplace::Workplace;
use equipoise::weight_type::NF4_LEVELS;
use half::bf16;
use serde_json::{Value, json};

/// A weight in NF4 as bitsandbytes stores it without double quantization; bf16 numbers in.
fn nf4((name, _, shape, bytes): &Stored) -> Vec<Stored> {
    let numbers: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect();
    let (mut codes, mut magnitudes) = (Vec::new(), Vec::new());
    for block in numbers.chunks(64) {
        let magnitude = block.iter().fold(0f32, |most, x| most.max(x.abs()));
        let near = |x: f32| {
            let distance = |level: &f32| (level * magnitude - x).abs();
            let levels = (0..16u8).min_by(|a, b| {
                distance(&NF4_LEVELS[usize::from(*a)]).total_cmp(&distance(&NF4_LEVELS[usize::from(*b)]))
            });
            levels.unwrap()
        };
        codes.extend(block.chunks(2).map(|pair| near(pair[0]) << 4 | near(pair[1])));
        magnitudes.extend(magnitude.to_le_bytes());
    }
    let state = json!({ "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape }).to_string();
    let map: Vec<u8> = NF4_LEVELS.iter().flat_map(|level| level.to_le_bytes()).collect();
    vec![
        stored(name, "U8", &[codes.len(), 1], &codes),
        stored(&format!("{name}.absmax"), "F32", &[magnitudes.len() / 4], &magnitudes),
        stored(&format!("{name}.quant_map"), "F32", &[16], &map),
        stored(&format!("{name}.quant_state.bitsandbytes__nf4"), "U8", &[state.len()], state.as_bytes()),
    ]
}

/// The program's last line of JSON.
#[track_caller]
fn said(place: &Workplace, arguments: &[&str]) -> Value {
    let output = place.command(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().last().unwrap()).unwrap()
}

#[test]
fn a_folder_in_nf4_is_trained_and_exported() {
    let place = Workplace::new();
    let path = place.copy_base().join("model.safetensors");
    let tensors = read_tensors(&path);
    let small = std::fs::metadata(&path).unwrap().len();
    let packed = |tensor: &Stored| if tensor.0.contains("_proj.") { nf4(tensor) } else { vec![tensor.clone()] };
    let tensors: Vec<Stored> = tensors.iter().flat_map(packed).collect();
    write_tensors(&path, &tensors, &json!({ "format": "pt" }));
    assert!(std::fs::metadata(&path).unwrap().len() < small);

    let report = said(&place, &["check", "trial.yaml", "--json", "--set", "base.model=base"]);
    let types = report["base"]["quantization"].to_string();
    // Seven layers: down_proj is of 352 columns, which are no whole blocks.
    assert!(types.contains(r#"["NF4",42]"#) && types.contains(r#"["Q8_0",8]"#), "{types}");
    let notes = report["base"]["notes"].to_string();
    assert!(notes.contains("NF4 in blocks that cross rows are held as Q8_0"), "{notes}");

    place.train(&["base.model=base"]);
    let losses: Vec<f64> = place
        .metrics("out")
        .iter()
        .filter_map(|line| line["objective_loss"].as_f64().or(line["loss"].as_f64()))
        .collect();
    assert!(!losses.is_empty() && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");

    let arguments = ["export", "out", "--json", "--to", "peft,merged,gguf,gguf-adapter", "--base", "base"];
    let summary = said(&place, &arguments);
    let exports = summary["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 4);
    for export in exports {
        let (target, kl) = (&export["manifest"]["target"], &export["verified"]["difference"]["mean_kl"]);
        assert!(kl.as_f64().unwrap() < 1e-2, "{target}: {kl}");
        assert!(!export["manifest"]["types"].to_string().contains("nf4"), "{export}");
    }
    place.assert_no_litter();
}
