//! Each family's adapter in every form: the program exports it, loads what it wrote, and compares it with base and adapter.

use crate::families::{each_family, name};
use crate::support::workplace::Workplace;
use crate::support::{golden, json};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A family's folder with a tokenizer that all of them share, and its adapter.
fn place(folder: &Path) -> Workplace {
    let place = Workplace::new();
    place.copy_family(name(folder));
    std::fs::create_dir(place.path("adapter")).unwrap();
    for entry in std::fs::read_dir(folder.join("adapter")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), place.path("adapter").join(entry.file_name())).unwrap();
    }
    let chatml = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/template/named/chatml.jinja");
    std::fs::copy(chatml, place.path("base/chat_template.jinja")).unwrap();
    let path = place.path("base/config.json");
    let mut config = json(&path);
    if !config["text_config"].is_null() {
        // As files of multimodal models have them.
        for part in ["", "/text_config", "/vision_config"] {
            if let Some(part) = config.pointer_mut(part) {
                part["quantization_config"] =
                    serde_json::json!({ "quant_method": "bitsandbytes", "load_in_4bit": true });
                part["torch_dtype"] = "bfloat16".into();
            }
        }
        std::fs::write(path, config.to_string()).unwrap();
        std::fs::write(place.path("base/preprocessor_config.json"), "{}").unwrap();
    }
    place
}

/// The line in which the program sums up an export to these targets, and whether all of them hold.
fn export(place: &Workplace, targets: &str) -> (Value, bool) {
    let arguments = ["export", "adapter", "--json", "--overwrite", "--base", "original:base", "--to", targets];
    let mut command = place.command(&arguments);
    command.env("RAYON_NUM_THREADS", "1");
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
fn assert_equal(folder: &Path, place: &Workplace, targets: &[&str]) {
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
            assert_equal(folder, &place, &["peft", "merged", "gguf-adapter", "mlx"]);
            let (summary, _) = export(&place, "gguf");
            let export = &summary["exports"][0];
            assert!(
                export["verified"]["difference"]["mean_kl"].as_f64().unwrap() > 1e-3,
                "{}: {summary}",
                name(folder)
            );
            assert!(export["notes"].to_string().contains("llama.cpp"), "{}: {summary}", name(folder));
            let config = place.path("base/config.json");
            let mut within = json(&config);
            within_gguf(&mut within);
            std::fs::write(&config, within.to_string()).unwrap();
            assert_equal(folder, &place, &["gguf"]);
        } else {
            assert_equal(folder, &place, &["peft", "merged", "ollama", "gguf-adapter", "mlx"]);
            let modelfile = std::fs::read_to_string(place.path("exports/adapter/ollama/Modelfile")).unwrap();
            assert!(
                modelfile.contains("TEMPLATE") && modelfile.contains("PARAMETER stop \"<|endoftext|>\""),
                "{modelfile}"
            );
        }
        multimodal_model_stays_whole(folder, &place);
    });
}

/// What is merged into a multimodal model has its names and its configuration, and no key that says how weights were packed.
fn multimodal_model_stays_whole(folder: &Path, place: &Workplace) {
    let before = json(&folder.join("config.json"));
    if before["text_config"].is_null() {
        return;
    }
    let after = json(&place.path("exports/adapter/merged/config.json"));
    assert_eq!(
        (&after["model_type"], &after["architectures"], &after["text_config"]["hidden_size"]),
        (&before["model_type"], &before["architectures"], &before["text_config"]["hidden_size"])
    );
    for part in ["", "/text_config", "/vision_config"].iter().filter_map(|part| after.pointer(part)) {
        assert!(part.get("quantization_config").is_none() && part["torch_dtype"] == "float32", "{part}");
    }
    assert!(place.path("exports/adapter/merged/preprocessor_config.json").is_file());
    let names = |path: &Path| {
        let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        tensors.into_keys().collect::<std::collections::BTreeSet<_>>()
    };
    let (before, after) = (folder.join("model.safetensors"), place.path("exports/adapter/merged/model.safetensors"));
    assert_eq!(names(&after), names(&before), "{}", name(folder));
    let adapter = names(&place.path("exports/adapter/peft/adapter_model.safetensors"));
    assert!(
        adapter.iter().all(|name| name.starts_with("base_model.model.model.language_model.layers.")),
        "{adapter:?}"
    );
    // For a server that loads the text-only class; lint warns for vLLM.
    let equipoise = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = place.command(&arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = equipoise("export adapter --base base --to peft --prefix text --out text");
    assert_eq!(code, Some(0), "{said}");
    let (code, _) = equipoise("export adapter --base base --to mlx --prefix text --out none");
    assert!(code == Some(2) && !place.path("none").exists(), "{code:?}");
    let adapter = names(&place.path("text/adapter_model.safetensors"));
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

/// An adapter that reaches into the image tower is refused: only the text decoder is here.
#[test]
fn adapters_of_other_parts_are_refused() {
    let place = place(&golden("families/gemma3"));
    let path = place.path("adapter/adapter_model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let base = candle_core::safetensors::load(place.path("base/model.safetensors"), &candle_core::Device::Cpu).unwrap();
    let (name, weight) =
        base.iter().find(|(name, _)| name.contains("vision") && name.ends_with("k_proj.weight")).unwrap();
    let (out, width) = weight.dims2().unwrap();
    for (part, shape) in [("lora_A", (2, width)), ("lora_B", (out, 2))] {
        let module = name.strip_suffix(".weight").unwrap();
        let tensor = candle_core::Tensor::zeros(shape, candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        tensors.insert(format!("base_model.model.{module}.{part}.weight"), tensor);
    }
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let path = place.path("adapter/adapter_config.json");
    let mut config = json(&path);
    config["target_modules"] =
        serde_json::json!(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    std::fs::write(path, config.to_string()).unwrap();
    let output =
        place.command(&["export", "adapter", "--base", "base", "--to", "gguf", "--out", "none"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("vision") && said.contains("which is not a layer"), "{said}");
    assert!(!place.path("none").exists());
}

/// transformers recreates buffers of integers; a weight that cannot be read would be missing.
#[test]
fn a_merged_multimodal_model_lacks_no_weight() {
    use candle_core::{DType, Device, Tensor, safetensors};
    let place = place(&golden("families/gemma3"));
    let path = place.path("base/model.safetensors");
    let mut tensors = safetensors::load(&path, &Device::Cpu).unwrap();
    let export = || {
        let arguments = ["export", "adapter", "--base", "base", "--to", "merged", "--overwrite", "--no-verify"];
        place.command(&arguments).output().unwrap()
    };
    let mut add = |name: &str, dtype| {
        tensors.insert(name.into(), Tensor::zeros(4, dtype, &Device::Cpu).unwrap());
        safetensors::save(&tensors, &path).unwrap();
    };
    add("vision_tower.embeddings.position_ids", DType::I64);
    let output = export();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    add("vision_tower.scale", DType::F64);
    let output = export();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("vision_tower.scale") && said.contains("--to peft"), "{said}");
}
