//! Bases: what their files say, twice or beside what is needed.

use super::{Case, copy};
use crate::support::workplace::refusal;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::Output;

mod adapters;
mod contradictions;
mod unneeded;

/// The validation before training, as case 10 measures it: mean cross-entropy of the completions, in nats.
fn loss(case: &Case) -> f64 {
    let output = train(case);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metrics = std::fs::read_to_string(case.path("out/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let validation = lines.into_iter().find(|line| line["type"] == "validation").unwrap();
    validation.get("cross_entropy").unwrap_or(&validation["loss"]).as_f64().unwrap()
}

fn train(case: &Case) -> Output {
    case.command(&["train", "recipe.yaml", "--overwrite", "--json"]).output().unwrap()
}

#[track_caller]
fn assert_loss(case: &Case, expected: f64, what: &str) {
    let got = loss(case);
    assert!((got - expected).abs() < 2e-5, "{what}: expected {expected}, got {got}");
}

/// What training says no to.
#[track_caller]
fn refused(case: &Case) -> String {
    refusal(&train(case)).text
}

/// Changes a base's configuration.
fn configure(base: &Path, set: &Value, remove: &[&str]) {
    let path = base.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.extend(set.as_object().unwrap().clone());
    config.retain(|key, _| !remove.contains(&key.as_str()));
    std::fs::write(path, Value::Object(config).to_string()).unwrap();
}

/// A tensor of a file: name, type, shape, bytes.
type Stored = (String, String, Vec<usize>, Vec<u8>);

fn stored(name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Stored {
    (name.into(), dtype.into(), shape.to_vec(), bytes.to_vec())
}

fn read_tensors(path: &Path) -> Vec<Stored> {
    let file = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let entries: Map<String, Value> = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let tensor = |(name, entry): (&String, &Value)| {
        let shape: Vec<usize> = entry["shape"].as_array().unwrap().iter().map(number).collect();
        let [from, to] = [0, 1].map(|end| 8 + header + number(&entry["data_offsets"][end]));
        stored(name, entry["dtype"].as_str().unwrap(), &shape, &file[from..to])
    };
    entries.iter().filter(|(name, _)| *name != "__metadata__").map(tensor).collect()
}

fn write_tensors(path: &Path, tensors: &[Stored], metadata: &Value) {
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.clone());
    let (mut offset, mut data) = (0, Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes.len()] });
        header.insert(name.clone(), entry);
        offset += bytes.len();
        data.extend(bytes);
    }
    let text = Value::Object(header).to_string();
    std::fs::write(path, [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes(), &data].concat()).unwrap();
}

/// A case of the tiny base as it is, in the case's folder, to be changed.
fn tiny() -> (Case, PathBuf) {
    let case = Case::new("10-rope-theta-twice");
    let base = case.path("base");
    std::fs::remove_dir_all(&base).unwrap();
    copy(&case.path("../tiny-base"), &base);
    (case, base)
}
