//! Tests of the table of other trainers' keys.

use super::*;
use crate::recipe::keys::keys_of;
use std::collections::HashSet;

#[test]
fn every_answer_is_a_key_of_ours_and_no_key_stands_twice() {
    let mut seen = HashSet::new();
    for (keys, answer) in TABLE {
        for key in keys.split_whitespace() {
            assert!(seen.insert(key), "`{key}` stands twice");
        }
        match answer {
            Ours(path) => assert!(kind_at(path).is_some(), "{path}"),
            IfTrue(path, word) => {
                assert!(matches!(kind_at(path), Some(Kind::OneOf(w)) if w.contains(word)), "{path}");
            }
            No(why) => {
                for path in why.split('`').filter(|part| part.contains('.') && !part.contains([' ', ':', '/'])) {
                    assert!(kind_at(path).is_some(), "{path} in: {why}");
                }
            }
        }
    }
    assert!(seen.len() > 200);
    for (path, _, ours) in VALUES {
        match kind_at(path) {
            Some(Kind::OneOf(words)) => assert!(words.contains(ours), "{path}: {ours}"),
            other => assert!(other.is_some(), "{path}"),
        }
    }
}

#[test]
fn a_key_of_ours_is_never_answered_as_someone_elses_in_its_own_section() {
    for section in keys_of("").iter().filter(|section| !keys_of(section).is_empty()) {
        for key in keys_of(section) {
            // Elsewhere `alpha` is LoRA's, as others write it; under `objective` it is a key of ours, which the table does not answer.
            let is_short = (*section, *key) == ("objective", "alpha");
            if let Some(Ours(path)) = answer(key).filter(|_| !is_short) {
                assert_eq!(path, format!("{section}.{key}"));
            }
        }
    }
}

#[test]
fn values_are_carried_over_only_where_they_fit() {
    let convert = |path, yaml: &str| {
        convert(path, &serde_yaml::from_str(yaml).unwrap()).map(|value| serde_json::to_string(&value).unwrap())
    };
    assert_eq!(convert("lora.r", "8").as_deref(), Some("8"));
    assert_eq!(convert("lora.r", "-8"), None);
    assert_eq!(convert("lora.target_modules", "all").as_deref(), Some("\"all-linear\""));
    assert_eq!(convert("lora.target_modules", "q_proj, v_proj").as_deref(), Some("[\"q_proj\",\"v_proj\"]"));
    assert_eq!(convert("training.gradient_checkpointing", "true").as_deref(), Some("\"layer\""));
    assert_eq!(convert("training.lr_scheduler", "inverse_sqrt"), None);
    assert_eq!(convert("quantization.type", "4").as_deref(), Some("\"q4_k\""));
    let source = |yaml| convert("data.train", yaml).unwrap();
    assert_eq!(source("a.jsonl"), "\"a.jsonl\"");
    assert_eq!(source("[{path: a.jsonl, type: alpaca}]"), r#"{"path":"a.jsonl","format":"alpaca"}"#);
    assert_eq!(source("[{path: a, type: sharegpt.simple}]"), r#"{"path":"a","format":"sharegpt"}"#);
    assert_eq!(source("[{path: json, data_files: b.jsonl, type: new}, c.jsonl]"), r#"["b.jsonl","c.jsonl"]"#);
    assert_eq!(source("[{path: tatsu-lab/alpaca, type: alpaca}]"), r#"{"hub":"tatsu-lab/alpaca","format":"alpaca"}"#);
    assert_eq!(source("[{path: tatsu-lab/alpaca}]"), r#"{"hub":"tatsu-lab/alpaca"}"#);
    assert_eq!(convert("data.train", "[3]"), None);
}
