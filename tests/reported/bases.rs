//! Bases: what their files say, twice or beside what is needed.

use super::{Case, copy};
use crate::support::workplace::refusal;
use serde_json::{Map, Value};
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

/// A case of the tiny base as it is, in the case's folder, to be changed.
fn tiny() -> (Case, PathBuf) {
    let case = Case::new("10-rope-theta-twice");
    let base = case.path("base");
    std::fs::remove_dir_all(&base).unwrap();
    copy(&case.path("../tiny-base"), &base);
    (case, base)
}
