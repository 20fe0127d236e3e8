//! Exports: what is written means what base and adapter mean, comes back as it was, and nothing half-written is left.

use crate::parity::compare_with_transformers;
use crate::support::workplace::{Refusal, Workplace, embedded_base, refusal, snapshot};
use crate::support::{ALL_LINEAR, TINY, Tiny, golden, json, lora, stir};
use equipoise::adapter::{AdapterBundle, AdapterConfig};
use equipoise::device::Device;
use equipoise::export::{self, ExportOptions, FloatType, GgufType, Job, Manifest, Reference, Target, open_export};
use equipoise::models;
use equipoise::nn::{QuantizationConfig, QuantizationType};
use equipoise::weights::Base;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Runs `export` on a copy of PEFT's golden adapter, with the embedded base.
fn exporting(place: &Workplace, arguments: &[&str]) -> Command {
    let base = embedded_base();
    let mut all = vec!["export", "adapter", "--json", "--base", base.to_str().unwrap()];
    all.extend(arguments);
    place.command(&all)
}

fn with_adapter() -> Workplace {
    let place = Workplace::new();
    std::fs::create_dir(place.path("adapter")).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(golden("peft_adapter").join(name), place.path("adapter").join(name)).unwrap();
    }
    place
}

/// The summary of a successful run.
#[track_caller]
fn summary(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let line = stdout.lines().rfind(|line| line.contains("\"event\":\"summary\"")).unwrap();
    serde_json::from_str(line).unwrap()
}

#[track_caller]
fn refused(place: &Workplace, command: &mut Command) -> Refusal {
    let before = snapshot(&place.path(""));
    let refusal = refusal(&command.output().unwrap());
    assert!(before == snapshot(&place.path("")), "something was written or removed");
    refusal
}

fn mean_kl(export: &Value) -> f64 {
    export["verified"]["difference"]["mean_kl"].as_f64().unwrap()
}

/// The largest tensors of a model in each form, read by our own reader, say what base and adapter say.
#[test]
fn every_target_means_what_base_and_adapter_mean() {
    let place = with_adapter();
    let targets = "peft,merged,gguf,gguf-adapter,ollama,ollama-adapter,mlx";
    let summary = summary(&mut exporting(&place, &["--to", targets, "--dtype", "f32", "--quantize", "f32"]));
    let exports = summary["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 7);
    for export in exports {
        let target = export["manifest"]["target"].as_str().unwrap();
        assert!(mean_kl(export) < 1e-8, "{target}: {}", mean_kl(export));
        assert_eq!(export["verified"]["difference"]["top1_agreement"], 1.0, "{target}");
        let alone = export["verified"]["base_alone"]["mean_kl"].as_f64().unwrap();
        assert!(alone > 1e-2, "the adapter does something: {alone}");
        Manifest::read(&place.path(&format!("exports/adapter/{target}"))).unwrap();
    }
    place.assert_no_litter();
}

/// PEFT's own logits and tokens for this adapter (`peft_logits.py`), from each of its exports.
#[test]
fn every_target_gives_the_logits_of_peft() {
    let place = with_adapter();
    let base_folder = embedded_base();
    let original = format!("original:{}", base_folder.display());
    let targets = "peft,merged,gguf,gguf-adapter,mlx";
    let more = ["--to", targets, "--dtype", "f32", "--quantize", "f32", "--no-verify", "--base", &original];
    summary(&mut place.command(&[&["export", "adapter", "--json"][..], &more].concat()));
    let base = Base::open(&base_folder).unwrap();
    let stored = QuantizationConfig { kind: QuantizationType::None };
    for target in targets.split(',') {
        let folder = place.path(&format!("exports/adapter/{target}"));
        let manifest = Manifest::read(&folder).unwrap();
        let model = open_export(&folder, &manifest, &base, stored, &Device::Cpu).unwrap();
        compare_with_transformers(&model, &golden("peft_adapter").join("expected.json"));
    }
}

/// The nearer to f32, the nearer to base and adapter; and few bits lose what the adapter does.
#[test]
fn fewer_bits_are_further_away() {
    let place = with_adapter();
    let mut last = 0.0;
    for kind in ["f32", "bf16", "q8_0", "q4_0"] {
        let arguments = ["--to", "gguf", "--quantize", kind, "--overwrite"];
        let output = exporting(&place, &arguments).output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let summary: Value =
            serde_json::from_str(stdout.lines().find(|line| line.contains("\"event\":\"summary\"")).unwrap()).unwrap();
        let kl = mean_kl(&summary["exports"][0]);
        assert!(kl > last || kind == "f32", "{kind}: {kl} after {last}");
        last = kl;
    }
    assert!(last > 1e-3, "{last}");
}

/// Of a quantized base a merge takes the weights that were trained on, unless the original ones are asked for.
#[test]
fn a_merge_takes_the_weights_of_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let base_folder = folder.path().join("base");
    std::fs::create_dir(&base_folder).unwrap();
    TINY.write(&base_folder);
    let base = Base::open(&base_folder).unwrap();
    let q4 = QuantizationConfig { kind: QuantizationType::Q4_0 };
    let stored = QuantizationConfig { kind: QuantizationType::None };
    let lora = lora(3, &ALL_LINEAR);
    let model = models::load(&base, q4, Some(&lora), 3, &Device::Cpu, false).unwrap();
    stir(&model);
    let config = AdapterConfig { base_model_name_or_path: "base".into(), base_sha256: None, nested: false, lora };
    let adapter = AdapterBundle { config, tensors: model.params.to_tensors().unwrap() };
    let texts = vec![(0..40).map(|i| i * 37 % TINY.vocabulary as u32).collect()];
    let reference = Reference::new(&model.lm, texts, &Device::Cpu).unwrap();
    assert!(reference.base_alone.mean_kl > 1e-2);
    for (quantization, near) in [(q4, true), (stored, false)] {
        let job = Job {
            name: "tiny",
            path: folder.path(),
            adapter: &adapter,
            base_name: "base",
            base_given: false,
            original: !near,
            quantization,
            base: &base,
            chat_template: None,
            stop: &[],
            options: ExportOptions {
                dtype: Some(FloatType::F32),
                quantize: Some(GgufType::Float(FloatType::F32)),
                prefix: None,
            },
        };
        let out = folder.path().join(format!("merged-{near}"));
        let target = Target::find("merged").unwrap();
        let exported = export::export(target, &job, &out, false, &mut |_, _| true).unwrap();
        let merged = open_export(&out, &exported.manifest, &base, q4, &Device::Cpu).unwrap();
        let difference = reference.compare(&merged.lm, &Device::Cpu).unwrap();
        assert_eq!(difference.max_logit_difference < 1e-4, near, "{difference:?}");
    }
}

#[test]
fn an_adapter_comes_back_as_it_was() {
    let place = with_adapter();
    // Through training that takes no step.
    place.train(&["training.max_steps=0", "lora={init_from: adapter}", "output_dir=same"]);
    assert_same_tensors(&place.path("same"), &place.path("adapter"));
    let config = json(&place.path("same/adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &16.into()));
    // Through each form that is read, and back into PEFT's.
    for (target, file) in [("gguf-adapter", "adapter-lora.gguf"), ("mlx", ""), ("peft", "")] {
        summary(&mut exporting(&place, &["--to", target, "--out", target, "--no-verify"]));
        let path = place.path(target).join(file);
        let (base, back) = (embedded_base(), format!("{target}-back"));
        let arguments = ["export", path.to_str().unwrap(), "--json", "--base", base.to_str().unwrap()];
        let more = ["--to", "peft", "--no-verify", "--out", &back];
        summary(&mut place.command(&[&arguments[..], &more].concat()));
        assert_same_tensors(&place.path(&back), &place.path("adapter"));
        // And forth again, to the same bytes.
        if target == "gguf-adapter" {
            let arguments =
                ["export", &back, "--json", "--base", base.to_str().unwrap(), "--to", target, "--no-verify"];
            summary(&mut place.command(&[&arguments[..], &["--out", "forth"]].concat()));
            let again = Base::open(&place.path("forth/gguf-adapter-back-lora.gguf")).unwrap_err();
            assert!(again.to_string().contains("is a LoRA adapter"), "{again}");
            let [first, second] = ["gguf-adapter/adapter-lora.gguf", "forth/gguf-adapter-back-lora.gguf"];
            assert!(gguf_data(&place.path(first)) == gguf_data(&place.path(second)), "the bytes differ");
        }
    }
}

#[track_caller]
fn assert_same_tensors(one: &Path, other: &Path) {
    assert!(
        tensor_bytes(one) == tensor_bytes(other),
        "the tensors of {} and {} differ",
        one.display(),
        other.display()
    );
}

/// name → bytes of a folder's tensors.
fn tensor_bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> = tensors.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    all
}

/// name → bytes of a GGUF adapter's tensors.
fn gguf_data(path: &Path) -> Vec<(String, Vec<u8>)> {
    let file = equipoise::weights::gguf::open_adapter(path).unwrap();
    file.tensor_names().map(|name| (name.to_owned(), file.read(name).unwrap().bytes)).collect()
}

#[test]
fn training_goes_on_from_an_adapter() {
    let place = with_adapter();
    let events = |arguments: &[&str]| {
        let stdout = String::from_utf8(place.train(arguments).stdout).unwrap();
        let first = stdout.lines().find(|line| line.contains("\"event\":\"validation\"")).unwrap().to_owned();
        serde_json::from_str::<Value>(&first).unwrap()["cross_entropy"].as_f64().unwrap()
    };
    // The validation before the first step is that of the adapter, not of the base.
    let base = events(&["training.max_steps=1", "output_dir=anew"]);
    let from = events(&["training.max_steps=1", "lora={init_from: adapter}", "output_dir=on"]);
    assert!((base - from).abs() > 1e-3, "{base} and {from}");
    let refusal = place.refused(&["lora={init_from: adapter, r: 8}"]);
    refusal.says(2, &["lora.r: is 8, but the adapter of `lora.init_from` has 4"]);
    place.refused(&["lora={init_from: nowhere}"]).says(2, &["lora.init_from", "nowhere", "no such folder"]);
    std::fs::rename(place.path("adapter"), place.path("moved")).unwrap();
    // A run that began with an adapter can do without it, once it is resolved.
    let refusal = place
        .refused(&["lora={init_from: adapter, r: 4, lora_alpha: 16, use_rslora: false, target_modules: all-linear}"]);
    refusal.says(2, &["adapter", "no such folder"]);
}

#[test]
fn folders_in_use_are_left_alone() {
    let place = with_adapter();
    summary(&mut exporting(&place, &["--to", "peft", "--out", "out", "--no-verify"]));
    let again = ["--to", "merged", "--out", "out", "--no-verify"];
    refused(&place, &mut exporting(&place, &again)).says(2, &["holds an earlier export", "--overwrite"]);
    std::fs::create_dir(place.path("mine")).unwrap();
    place.write("mine/notes.txt", "x");
    let mine = ["--to", "peft", "--out", "mine", "--overwrite"];
    refused(&place, &mut exporting(&place, &mine)).says(2, &["is not empty, and holds no export"]);
    let file = ["--to", "peft", "--out", "trial.yaml"];
    refused(&place, &mut exporting(&place, &file)).says(2, &["is not a folder"]);
    summary(&mut exporting(&place, &[&again[..], &["--overwrite"]].concat()));
    assert!(place.path("out/model.safetensors").is_file() && !place.path("out/adapter_config.json").exists());
    place.assert_no_litter();
}

#[test]
fn what_cannot_be_exported_is_refused_before_anything_is_written() {
    let place = with_adapter();
    let base = embedded_base();
    let export = |adapter: &str, more: &[&str]| {
        let mut command =
            place.command(&[&["export", adapter, "--json", "--to", "merged", "--out", "out"], more].concat());
        refused(&place, &mut command)
    };
    export("nowhere", &[]).says(2, &["nowhere", "no such folder or file"]);
    export("adapter", &[]).says(2, &["examples/gene_ontology/base", "`--base MODEL`"]);
    // Of another base: all that differs, at once.
    let other = place.path("other");
    std::fs::create_dir(&other).unwrap();
    Tiny { layers: 7, ..TINY }.write(&other);
    export("adapter", &["--base", "other"])
        .says(2, &["tensor(s) do not fit", "q_proj.lora_A.weight", "expected [4, 64]"]);
    // The base has changed since the training.
    place.train(&["training.max_steps=1", "output_dir=trained"]);
    let changed = place.copy_base();
    let recipe = std::fs::read_to_string(place.path("trained/recipe.yaml")).unwrap();
    place.write("trained/recipe.yaml", recipe.replace(base.to_str().unwrap(), changed.to_str().unwrap()));
    let config = std::fs::read_to_string(changed.join("config.json")).unwrap();
    std::fs::write(changed.join("config.json"), config.replace("1e-05", "2e-05").replace("1e-5", "2e-5")).unwrap();
    export("trained", &[]).says(2, &["is not the base that trained was trained on", "--base"]);
    let output = place.command(&["export", "trained", "--to", "peft", "--base", "original"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    // An index that leads out of the folder.
    let index = r#"{"weight_map": {"model.norm.weight": "../../model.safetensors"}}"#;
    std::fs::remove_file(changed.join("model.safetensors")).unwrap();
    std::fs::write(changed.join("model.safetensors.index.json"), index).unwrap();
    export("adapter", &["--base", "base"]).says(2, &["`../../model.safetensors` is not a plain file name"]);
}

/// The disk is full in the middle: a limit on the length of files stands for it.
#[test]
fn a_full_disk_leaves_nothing_behind() {
    let place = with_adapter();
    let (base, program) = (embedded_base(), env!("CARGO_BIN_EXE_equipoise"));
    let script = format!(
        "ulimit -f 64; trap '' XFSZ; exec {program} export adapter --json --base {} --to merged --out out",
        base.display()
    );
    let mut command = Command::new("bash");
    command.current_dir(place.path("")).args(["-c", &script]).env("HF_HUB_OFFLINE", "1");
    refused(&place, &mut command).says(2, &["cannot write out/model.safetensors"]);
}

#[test]
fn an_export_that_nobody_wants_any_more_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let base = Base::open(&embedded_base()).unwrap();
    let adapter = AdapterBundle::load(&golden("peft_adapter"), &base).unwrap();
    let job = Job {
        name: "golden",
        path: &golden("peft_adapter"),
        adapter: &adapter,
        base_name: "base",
        base_given: false,
        original: false,
        quantization: QuantizationConfig::default(),
        base: &base,
        chat_template: None,
        stop: &[],
        options: ExportOptions::default(),
    };
    for target in ["merged", "gguf"] {
        let out = folder.path().join(target);
        let mut pieces = 0;
        let outcome = export::export(Target::find(target).unwrap(), &job, &out, false, &mut |_, _| {
            pieces += 1;
            pieces < 3
        });
        assert!(matches!(outcome, Err(equipoise::Error::Interrupted)), "{target}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "{target}");
    }
}

#[test]
fn verify_finds_what_has_changed() {
    let place = with_adapter();
    summary(&mut exporting(&place, &["--to", "merged", "--out", "out", "--no-verify"]));
    let verify = |more: &[&str]| place.command(&[&["verify", "out", "--json"], more].concat()).output().unwrap();
    let output = verify(&[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(verify(&["--max-kl", "0"]).status.code(), Some(1), "bf16 is not without loss");
    place.write("prompts.txt", "DNA repair\nThe process of\n");
    let output = String::from_utf8(verify(&["--prompts", "prompts.txt"]).stdout).unwrap();
    let verified: Value =
        serde_json::from_str(output.lines().rfind(|line| line.contains("\"verified\"")).unwrap()).unwrap();
    assert!(verified["difference"]["tokens"].as_u64().unwrap() < 60, "{verified}");
    let file = place.path("out/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    refusal(&verify(&[])).says(2, &["model.safetensors", "is not as it was written"]);
    refusal(&place.command(&["verify", "adapter", "--json"]).output().unwrap()).says(2, &["is not an export's folder"]);
}

/// What an export replaces must not be what it is made from, nor hold what it did not write.
#[test]
fn an_export_takes_nothing_that_is_not_its_own() {
    let place = with_adapter();
    summary(&mut exporting(&place, &["--to", "peft", "--out", "made/peft", "--no-verify"]));
    let base = embedded_base();
    let again = |out: &str| {
        let arguments =
            ["export", "made/peft", "--json", "--base", base.to_str().unwrap(), "--to", "mlx", "--overwrite"];
        place.command(&[&arguments[..], &["--out", out]].concat())
    };
    refused(&place, &mut again("made/peft")).says(2, &["holds made/peft, which is exported from"]);
    std::fs::write(place.path("made/peft/notes.txt"), "x").unwrap();
    let out = ["--to", "mlx", "--out", "made/peft", "--overwrite"];
    refused(&place, &mut exporting(&place, &out)).says(2, &["holds `notes.txt` too"]);
    // A file from outside of the adapter's folder is not taken along.
    place.write("secret", "a key");
    std::os::unix::fs::symlink(place.path("secret"), place.path("adapter/README.md")).unwrap();
    let linked = ["--to", "peft", "--out", "linked", "--no-verify"];
    refused(&place, &mut exporting(&place, &linked)).says(2, &["README.md", "outside of the folder"]);
}

/// An update that the rounding of the weights takes back is not an export, however near the base is.
#[test]
fn an_adapter_that_is_lost_is_told() {
    let place = with_adapter();
    // A light adapter: a hundredth of the golden one.
    let config = place.path("adapter/adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"lora_alpha\": 16", "\"lora_alpha\": 0.5")).unwrap();
    let output = exporting(&place, &["--to", "gguf", "--quantize", "q4_0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(stderr.contains("what the adapter does is lost in the rounding"), "{stderr}");
    assert!(stdout.contains("\"lost\":true") && stdout.contains("\"passed\":false"), "{stdout}");
    summary(&mut exporting(&place, &["--to", "gguf", "--quantize", "f16", "--overwrite"]));
}

#[test]
fn options_that_nothing_takes_are_refused() {
    let place = with_adapter();
    let told = |arguments: &[&str]| refused(&place, &mut exporting(&place, arguments));
    told(&["--to", "peft", "--quantize", "q8_0"]).says(2, &["--quantize is for merged GGUF files"]);
    told(&["--to", "gguf", "--dtype", "bf16"]).says(2, &["--quantize bf16"]);
    told(&["--to", "merged,gguf-adapter", "--dtype", "bf16"]).says(2, &["f32 or f16, not bf16"]);
}

/// Tied weights are one tensor in a GGUF file, whichever name they were stored under.
#[test]
fn a_tied_head_is_written_once() {
    let place = with_adapter();
    let folder = place.copy_base();
    let file = folder.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&file, &candle_core::Device::Cpu).unwrap();
    let head = (tensors["model.embed_tokens.weight"].clone() * 3.0).unwrap();
    tensors.insert("lm_head.weight".into(), head);
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let export = |arguments: &[&str]| {
        let all = ["export", "adapter", "--json", "--base", "base", "--overwrite"];
        summary(&mut place.command(&[&all[..], arguments].concat()))
    };
    let written = export(&["--to", "gguf", "--quantize", "f32"]);
    assert!(mean_kl(&written["exports"][0]) < 1e-8, "{written}");
    // Under the head's name alone.
    let tied = tensors.remove("model.embed_tokens.weight").unwrap();
    tensors.insert("lm_head.weight".into(), tied);
    candle_core::safetensors::save(&tensors, &file).unwrap();
    let written = export(&["--to", "gguf", "--quantize", "f32"]);
    assert!(mean_kl(&written["exports"][0]) < 1e-8, "{written}");
    let gguf = Base::open(&place.path("exports/adapter/gguf/adapter-f32.gguf")).unwrap();
    assert_eq!(gguf.stored_name("model.embed_tokens.weight"), Some("token_embd.weight"));
    assert!(gguf.tensor("lm_head.weight").is_none());
}
