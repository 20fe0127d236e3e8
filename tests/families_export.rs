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
    let chatml = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/template/named/chatml.jinja");
    std::fs::copy(chatml, place.path().join("base/chat_template.jinja")).unwrap();
    place
}

/// The line in which the program sums up an export to these targets, and whether all of them hold.
fn export(place: &Path, targets: &str) -> (Value, bool) {
    let arguments = ["export", "adapter", "--json", "--overwrite", "--base", "original:base", "--to", targets];
    let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
    command.args(arguments).current_dir(place).env("RAYON_NUM_THREADS", "1");
    if targets != "gguf" {
        command.args(["--dtype", "f32"]);
    }
    if targets == "gguf" || targets.contains("ollama") {
        command.args(["--quantize", "f32"]);
    }
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let summary = stdout.lines().find(|line| line.contains("\"event\":\"summary\""));
    let summary = summary.unwrap_or_else(|| panic!("no summary: {stdout}\n{stderr}"));
    (serde_json::from_str(summary).unwrap(), output.status.success())
}

/// Fails unless each of the targets was written and computes what base and adapter compute.
fn assert_equal(folder: &Path, place: &Path, targets: &[&str]) {
    let (summary, succeeds) = export(place, &targets.join(","));
    let exports = summary["exports"].as_array().unwrap();
    let written: Vec<&str> = exports.iter().map(|export| export["manifest"]["target"].as_str().unwrap()).collect();
    assert_eq!((succeeds, written.as_slice()), (true, targets), "{}: {summary}", name(folder));
    for export in exports {
        let kl = |what: &str| export["verified"][what]["mean_kl"].as_f64().unwrap();
        let (target, kl, alone) = (&export["manifest"]["target"], kl("difference"), kl("base_alone"));
        assert!(kl < 1e-8 && alone > 1e-3, "{}, {target}: {kl}; the base alone: {alone}", name(folder));
    }
}

/// Makes the configuration say what a GGUF file of the family can say.
fn within_gguf(config: &mut Value) {
    let text = if config["text_config"].is_null() { config } else { &mut config["text_config"] };
    if text["model_type"] == "mistral" {
        text["sliding_window"] = Value::Null;
    } else {
        text["query_pre_attn_scalar"] = text["head_dim"].clone();
    }
}

#[test]
fn every_export_of_a_family_means_what_base_and_adapter_mean() {
    each_family(|folder| {
        let place = place(folder);
        // GGUF has no key for these families' scale or window: a note says so, and the comparison shows it.
        if ["gemma2", "gemma3", "mistral_window"].contains(&name(folder)) {
            assert_equal(folder, place.path(), &["peft", "merged", "gguf-adapter", "mlx"]);
            let (summary, _) = export(place.path(), "gguf");
            let export = &summary["exports"][0];
            assert!(
                export["verified"]["difference"]["mean_kl"].as_f64().unwrap() > 1e-3,
                "{}: {summary}",
                name(folder)
            );
            assert!(export["notes"].to_string().contains("llama.cpp"), "{}: {summary}", name(folder));
            let config = place.path().join("base/config.json");
            let mut within = json(&config);
            within_gguf(&mut within);
            std::fs::write(&config, within.to_string()).unwrap();
            assert_equal(folder, place.path(), &["gguf"]);
        } else {
            assert_equal(folder, place.path(), &["peft", "merged", "ollama", "gguf-adapter", "mlx"]);
            let modelfile = std::fs::read_to_string(place.path().join("exports/adapter/ollama/Modelfile")).unwrap();
            assert!(
                modelfile.contains("TEMPLATE") && modelfile.contains("PARAMETER stop \"<|endoftext|>\""),
                "{modelfile}"
            );
        }
        multimodal_model_stays_whole(folder, place.path());
    });
}

/// What is merged into a multimodal model has its names and its configuration, and no key that says how weights were packed.
fn multimodal_model_stays_whole(folder: &Path, place: &Path) {
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
    // For a server that loads the text decoder by itself; others are warned.
    let equipoise = |arguments: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
        let output = command.args(arguments.split(' ')).current_dir(place).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = equipoise("export adapter --base base --to peft --prefix text --out text");
    assert_eq!(code, Some(0), "{said}");
    let adapter = names(&place.join("text/adapter_model.safetensors"));
    assert!(adapter.iter().all(|name| name.starts_with("base_model.model.model.layers.")), "{adapter:?}");
    for (folder, wrong) in [("exports/adapter/peft", false), ("text", true)] {
        let (_, said) = equipoise(&format!("lint {folder} --base base --for vllm"));
        assert_eq!(said.contains("names-of-text-alone"), wrong, "{folder}: {said}");
    }
}

/// The table of the documentation is what the program prints.
#[test]
fn the_documentation_lists_the_families_that_there_are() {
    let printed = Command::new(env!("CARGO_BIN_EXE_equipoise")).args(["models", "--markdown"]).output().unwrap();
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/models.md")).unwrap();
    assert!(printed.status.success());
    let table = String::from_utf8(printed.stdout).unwrap();
    assert!(table.lines().count() > 20);
    assert!(page.contains(&table), "docs/models.md does not hold what `equipoise models --markdown` prints:\n{table}");
}
