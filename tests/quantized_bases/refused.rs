//! States and scales that do not fit their weight.

use crate::support::golden;
use crate::support::stored_tensors::{Stored, read_tensors, stored, write_tensors};
use equipoise::weights::Base;
use serde_json::json;
use tempfile::TempDir;

/// Why `weight` cannot be read of a golden folder that was changed.
fn why(folder: &str, weight: &str, change: impl FnOnce(&mut Vec<Stored>)) -> String {
    let copy: TempDir = tempfile::tempdir().unwrap();
    let from = golden("quantized").join(folder);
    std::fs::copy(from.join("config.json"), copy.path().join("config.json")).unwrap();
    let mut tensors = read_tensors(&from.join("model.safetensors"));
    change(&mut tensors);
    write_tensors(&copy.path().join("model.safetensors"), &tensors, &json!({}));
    // Nobody asks for it here, so the folder opens.
    let base = Base::open(copy.path()).unwrap();
    assert!(base.tensor(weight).is_none(), "{weight} can be read");
    let error = base.unread(weight).unwrap();
    assert_eq!(base.read(weight).unwrap_err().to_string(), error.to_string());
    let text = error.to_string();
    assert!(text.contains("model.safetensors") && error.help().is_some(), "{text}");
    text
}

const UP: &str = "model.layers.0.mlp.up_proj.weight";

fn tensor<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|(each, ..)| each == name).unwrap()
}

/// Why `UP` cannot be read when its part is another tensor, or none.
fn without(part: &str, instead: Option<(&str, Vec<usize>, Vec<u8>)>) -> String {
    why("nf4", UP, |tensors| {
        let name = format!("{UP}{part}");
        tensors.retain(|(each, ..)| *each != name);
        if let Some((dtype, shape, bytes)) = instead {
            tensors.push(stored(&name, dtype, &shape, &bytes));
        }
    })
}

#[test]
fn nf4_states_of_the_wrong_size() {
    let wrong = |part: &str, dtype: &str, shape: &[usize], size: usize, expected: &str| {
        let text = without(part, Some((dtype, shape.to_vec(), vec![0; size])));
        assert!(text.contains("NF4 states of the wrong size"), "{text}");
        assert!(text.contains(&format!("`{UP}{part}` is")) && text.contains(expected), "{text}");
    };
    wrong(".absmax", "U8", &[271], 271, "U8 [271], expected U8 [272]");
    wrong(".absmax", "F32", &[4], 16, "F32 [4], expected F32 [272]");
    wrong(".absmax", "BF16", &[272], 544, "BF16 [272], expected F32 [272]");
    // A header may claim what its bytes do not hold.
    wrong(".absmax", "U8", &[272], 3, "expected U8 [272]");
    wrong(".nested_absmax", "F32", &[1], 4, "F32 [1], expected F32 [2]");
    wrong(".nested_quant_map", "F32", &[255], 1020, "F32 [255], expected F32 [256]");
    wrong(".quant_map", "F32", &[8], 32, "F32 [8], expected F32 [16]");
    wrong("", "U8", &[8703, 1], 8703, "8703 bytes, expected 8704 for [272, 64]");
}

#[test]
fn nf4_states_that_are_missing_or_say_something_else() {
    assert!(without(".nested_quant_map", None).contains("nested_quant_map` is missing"));
    assert!(without(".nested_absmax", None).contains("nested_absmax` is missing"));
    assert!(without(".quant_map", None).contains("quant_map` is missing"));
    assert!(without(".absmax", None).contains("absmax` is missing"));
    assert!(without("", None).contains("up_proj.weight` is missing"));
    let state = ".quant_state.bitsandbytes__nf4";
    assert!(without(state, None).contains("quant_state.bitsandbytes__nf4` is missing"));
    let says = |text: &str| without(state, Some(("U8", vec![text.len()], text.as_bytes().to_vec())));
    assert!(says("{").contains("quant_state.bitsandbytes__nf4`: EOF"));
    let with = |blocksize: u64, shape: &str| {
        says(&format!(
            "{{\"quant_type\": \"nf4\", \"blocksize\": {blocksize}, \"dtype\": \"bfloat16\", \"shape\": {shape}, \
             \"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": 0.1}}"
        ))
    };
    assert!(with(64, "[272, 128]").contains("8704 bytes, expected 17408 for [272, 128]"));
    assert!(with(64, "[4294967296, 4294967296]").contains("no matrix"));
    assert!(with(64, "[]").contains("no matrix"));
    assert!(with(0, "[272, 64]").contains("a blocksize of 0"));
    assert!(with(32, "[272, 64]").contains("a blocksize of 32"));
    let plain = "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", \"shape\": [272, 64]}";
    assert!(says(plain).contains("no nested_blocksize"));
    let fp4 = plain.replace("nf4", "fp4");
    let text = why("nf4", UP, |tensors| {
        let old = tensor(tensors, &format!("{UP}{state}"));
        *old = stored(&format!("{UP}.quant_state.bitsandbytes__fp4"), "U8", &[fp4.len()], fp4.as_bytes());
    });
    assert!(text.contains("quant_type fp4: of bitsandbytes' 4-bit types nf4 is read"), "{text}");
    let text = why("nf4", UP, |tensors| tensor(tensors, &format!("{UP}.quant_map")).3[4..8].fill(0));
    assert!(text.contains("does not hold NF4's levels: number 1 is 0, expected -0.6961928"), "{text}");
    let text = why("nf4", UP, |tensors| {
        tensor(tensors, &format!("{UP}.quant_map")).3[60..64].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(text.contains("number 15 is NaN"), "{text}");
}

#[test]
fn fp8_scales_that_do_not_fit() {
    let scale = |dtype: &str, shape: &[usize], size: usize| {
        why("fp8", "block.weight", |tensors| {
            *tensor(tensors, "block.weight_scale_inv") = stored("block.weight_scale_inv", dtype, shape, &vec![0; size]);
        })
    };
    let expected = "for a weight of [130, 136] expected one number, [130, 1], or [2, 2]";
    for shape in [&[2, 1][..], &[1, 2], &[3, 2], &[4], &[136, 1], &[1, 1, 1]] {
        let text = scale("F32", shape, 4 * shape.iter().product::<usize>());
        assert!(text.contains(&format!("`block.weight_scale_inv` is of shape {shape:?}; {expected}")), "{text}");
    }
    assert!(scale("F8_E8M0", &[2, 2], 4).contains("is of type F8_E8M0; scales in F32"));
    let text = why("fp8", "block.weight", |tensors| tensors.retain(|(name, ..)| name != "block.weight_scale_inv"));
    assert!(text.contains("neither `block.weight_scale_inv` nor `block.weight_scale` is there"), "{text}");
    let text = why("fp8", "block.weight", |tensors| tensor(tensors, "block.weight").2 = vec![130, 137]);
    assert!(text.contains("17680 bytes do not hold [130, 137]"), "{text}");
    let text = why("fp8", "block.weight", |tensors| tensor(tensors, "block.weight").2 = vec![10, 13, 136]);
    assert!(text.contains("shape [10, 13, 136]; of FP8, matrices are read"), "{text}");
}
