//! Tensors that nobody needs (case 21): they never refuse the whole. Needed ones that cannot be read do.

use super::{assert_loss, loss, refused, tiny};
use crate::reported::Case;
use crate::support::stored_tensors::{read_tensors, stored, write_tensors};
use serde_json::{Map, json};

const AS_IT_IS: f64 = 6.796_592;

#[test]
fn buffers_of_other_types_are_left_alone() {
    assert_loss(&Case::new("21-unneeded-tensors"), AS_IT_IS, "the reported one");
}

/// Types of safetensors' own list and beyond it, tensors without numbers, scalars, and texts of the header that are none.
#[test]
fn no_tensor_that_nobody_needs_refuses_a_base() {
    let (case, base) = tiny();
    let path = base.join("model.safetensors");
    let mut tensors = read_tensors(&path);
    let sizes = [
        ("I64", 8),
        ("F64", 8),
        ("U64", 8),
        ("I32", 4),
        ("U32", 4),
        ("I16", 2),
        ("U16", 2),
        ("I8", 1),
        ("U8", 1),
        ("BOOL", 1),
        ("F8_E4M3", 1),
        ("F8_E5M2", 1),
        ("F8_E8M0", 1),
        ("C64", 8),
        ("F4_E2M1X2_FUTURE", 3),
    ];
    for (dtype, size) in sizes {
        tensors.push(stored(&format!("model.buffers.{dtype}"), dtype, &[2], &vec![7; 2 * size]));
    }
    tensors.push(stored("model.empty", "F32", &[0, 16], &[]));
    tensors.push(stored("model.empty_integers", "I64", &[0], &[]));
    tensors.push(stored("model.scalar", "BF16", &[], &[0, 0x3f]));
    tensors.push(stored("num_batches_tracked", "I64", &[], &[0; 8]));
    tensors.push(stored("model.layers.7.self_attn.rotary_emb.inv_freq", "F32", &[4], &[0; 16]));
    write_tensors(&path, &tensors, &json!({ "format": "pt", "step": 7, "nested": { "a": [1] } }));
    assert_loss(&case, AS_IT_IS, "many others");
}

#[test]
fn a_needed_tensor_of_another_type_is_named_with_its_type() {
    for dtype in ["F64", "I64", "F8_E4M3", "F9_UNKNOWN"] {
        let (case, base) = tiny();
        let path = base.join("model.safetensors");
        let mut tensors = read_tensors(&path);
        let tensor = tensors.iter_mut().find(|(name, ..)| name == "model.layers.1.mlp.up_proj.weight").unwrap();
        (tensor.1, tensor.3) = (dtype.into(), vec![0; 16 * 32 * if dtype.ends_with("64") { 8 } else { 1 }]);
        write_tensors(&path, &tensors, &json!({}));
        let error = refused(&case);
        assert!(error.contains("layers.1.mlp.up_proj.weight` is of type") && error.contains(dtype), "{error}");
    }
}

/// An index over shards: what it names and nobody needs may be missing; what is needed may not. A tensor that it does not
/// name is read from its shard all the same, as transformers does.
#[test]
fn an_index_may_name_shards_that_nobody_needs() {
    let (case, base) = tiny();
    let path = base.join("model.safetensors");
    let tensors = read_tensors(&path);
    std::fs::remove_file(&path).unwrap();
    let (first, second) = tensors.split_at(9);
    write_tensors(&base.join("a.safetensors"), first, &json!({}));
    write_tensors(&base.join("b.safetensors"), second, &json!({}));
    let index = |others: &[(&str, &str)]| {
        let mut map: Map<String, _> = Map::new();
        for (tensors, file) in [(first, "a.safetensors"), (second, "b.safetensors")] {
            // The last one is not named.
            map.extend(tensors.iter().skip(1).map(|(name, ..)| (name.clone(), json!(file))));
        }
        map.extend(others.iter().map(|(name, file)| ((*name).to_owned(), json!(file))));
        let index = json!({ "metadata": { "total_size": "19k", "total_parameters": 1 }, "weight_map": map });
        std::fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    index(&[("vision.proj.weight", "c.safetensors"), ("model.rotary.inv_freq", "a.safetensors")]);
    assert_loss(&case, AS_IT_IS, "a shard that is not there");
    index(&[("model.norm.weight", "c.safetensors")]);
    assert!(refused(&case).contains("c.safetensors"), "the index says where it is");
    std::fs::remove_file(base.join("b.safetensors")).unwrap();
    index(&[]);
    assert!(refused(&case).contains("`b.safetensors`, which is not in the folder"));
}

/// A tensor in two shards: the index says which counts.
#[test]
fn of_a_tensor_in_two_shards_the_index_names_one() {
    let (case, base) = tiny();
    let path = base.join("model.safetensors");
    let tensors = read_tensors(&path);
    let wrong: Vec<_> = tensors.iter().map(|(n, d, s, bytes)| stored(n, d, s, &vec![0; bytes.len()])).collect();
    std::fs::rename(&path, base.join("a.safetensors")).unwrap();
    write_tensors(&base.join("b.safetensors"), &wrong[..1], &json!({}));
    write_tensors(&base.join("0.safetensors"), &wrong[1..2], &json!({}));
    let mut map: Map<String, _> = tensors.iter().map(|(name, ..)| (name.clone(), json!("a.safetensors"))).collect();
    map.extend([("x".to_owned(), json!("b.safetensors")), ("y".to_owned(), json!("0.safetensors"))]);
    std::fs::write(base.join("model.safetensors.index.json"), json!({ "weight_map": map }).to_string()).unwrap();
    assert!((loss(&case) - AS_IT_IS).abs() < 2e-5);
}
