//! Each family's adapter in every form: the program exports it, loads what it wrote, and compares it with base and adapter.

use crate::families::{each_family, name};
use crate::support::{golden, json};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A family's folder with a tokenizer that all of them share, and its adapter.
fn place(folder: &Path) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &str| {
        std::fs::create_dir_all(place.path().join(to)).unwrap();
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), place.path().join(to).join(entry.file_name())).unwrap();
        }
    };
    copy(folder, "base");
    copy(&golden("families/tokenizers/byte_level"), "base");
    copy(&folder.join("adapter"), "adapter");
    place
}

#[test]
fn every_export_of_a_family_means_what_base_and_adapter_mean() {
    each_family(|folder| {
        let place = place(folder);
        let targets = "peft,merged,gguf,gguf-adapter,mlx";
        let arguments = [
            "export",
            "adapter",
            "--json",
            "--base",
            "original:base",
            "--to",
            targets,
            "--dtype",
            "f32",
            "--quantize",
            "f32",
        ];
        let output = Command::new(env!("CARGO_BIN_EXE_equipoise"))
            .args(arguments)
            .current_dir(place.path())
            .env("RAYON_NUM_THREADS", "1")
            .output()
            .unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // A GGUF file says nothing of these families' scale or window, and the comparison tells.
        let says_less = ["gemma2", "gemma3", "mistral_window"].contains(&name(folder));
        assert!(output.status.success() || says_less, "{}: {stdout}\n{stderr}", name(folder));
        let line = stdout.lines().find(|line| line.contains("\"event\":\"summary\"")).unwrap();
        let summary: Value = serde_json::from_str(line).unwrap();
        let exports = summary["exports"].as_array().unwrap();
        assert_eq!(exports.len(), 5, "{}", name(folder));
        for export in exports {
            let target = export["manifest"]["target"].as_str().unwrap();
            let kl = export["verified"]["difference"]["mean_kl"].as_f64().unwrap();
            assert!(kl < 1e-8 || says_less && target == "gguf", "{}, {target}: {kl}", name(folder));
        }
        whole_model_stays_whole(folder, place.path());
    });
}

/// What is merged into a model of several parts has its names and its configuration.
fn whole_model_stays_whole(folder: &Path, place: &Path) {
    let before = json(&folder.join("config.json"));
    if before["text_config"].is_null() {
        return;
    }
    let after = json(&place.join("exports/adapter/merged/config.json"));
    assert_eq!(
        (&after["model_type"], &after["architectures"], &after["text_config"]["hidden_size"]),
        (&before["model_type"], &before["architectures"], &before["text_config"]["hidden_size"])
    );
    let names = |path: &Path| {
        let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        tensors.into_keys().collect::<std::collections::BTreeSet<_>>()
    };
    let (before, after) = (folder.join("model.safetensors"), place.join("exports/adapter/merged/model.safetensors"));
    assert_eq!(names(&after), names(&before), "{}", name(folder));
    let adapter = names(&place.join("exports/adapter/peft/adapter_model.safetensors"));
    assert!(
        adapter.iter().all(|name| name.starts_with("base_model.model.model.language_model.layers.")),
        "{adapter:?}"
    );
}

/// The table of the documentation is what the program prints.
#[test]
fn the_documentation_lists_the_families_that_there_are() {
    let printed = Command::new(env!("CARGO_BIN_EXE_equipoise")).args(["models", "--markdown"]).output().unwrap();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md")).unwrap();
    let table = String::from_utf8(printed.stdout).unwrap();
    assert!(page.contains(&table), "docs/models.md does not hold what `equipoise models --markdown` prints:\n{table}");
}
