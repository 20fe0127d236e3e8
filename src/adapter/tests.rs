use super::*;
use crate::nn::{LoraConfig, TargetModules};
use crate::weights::Base;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The embedded base: 64-bit rows are not what is tested here, only names and shapes.
fn base() -> Base {
    Base::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gene_ontology/base")).unwrap()
}

fn tensor(rows: usize, columns: usize, seed: usize) -> Tensor {
    let numbers: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
}

fn name(module: &str, part: &str) -> String {
    crate::nn::peft_name(module, part)
}

const MODULES: [&str; 2] = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"];

fn bundle(base: &Base, use_rslora: bool) -> AdapterBundle {
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, use_rslora, ..LoraConfig::default() };
    let config = AdapterConfig { base_model_name_or_path: "org/base".into(), base_sha256: None, nested: false, lora };
    let mut tensors = BTreeMap::new();
    for (seed, module) in MODULES.iter().enumerate() {
        let (shape, _) = base.tensor(&format!("{module}.weight")).unwrap();
        tensors.insert(name(module, "lora_A"), tensor(4, shape[1], seed));
        tensors.insert(name(module, "lora_B"), tensor(shape[0], 4, seed + 7));
    }
    AdapterBundle { config, tensors }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("adapter_config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
}

/// A folder with the adapter, whose configuration or tensors were changed; what loading it says.
fn refused(change: impl FnOnce(&Path, &mut AdapterBundle)) -> String {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let mut bundle = bundle(&base, false);
    bundle.save(folder.path(), DType::F32).unwrap();
    change(folder.path(), &mut bundle);
    let error = AdapterBundle::load(folder.path(), &base).expect_err("it must be refused");
    format!("{error} | {}", error.help().unwrap_or_default())
}

#[test]
fn what_is_saved_loads_again_and_rank_stabilised_scaling_is_folded() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    for (use_rslora, alpha) in [(false, 8.0), (true, 16.0)] {
        let saved = bundle(&base, use_rslora);
        saved.save(folder.path(), DType::F32).unwrap();
        let loaded = AdapterBundle::load(folder.path(), &base).unwrap();
        assert_eq!(loaded.config.lora.lora_alpha, alpha);
        assert!((loaded.config.lora.scale() - saved.config.lora.scale()).abs() < 1e-12, "the same mathematics");
        assert_eq!(loaded.config.lora.target_modules, TargetModules::Names(MODULES.map(String::from).to_vec()));
        for (name, tensor) in &saved.tensors {
            assert_eq!(numbers(tensor), numbers(&loaded.tensors[name]));
        }
    }
}

#[test]
fn the_same_adapter_gives_the_same_bytes_again() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let mut first = bundle(&base, false);
    first.config.base_sha256 = Some(base.fingerprint().unwrap());
    first.save(folder.path(), DType::F32).unwrap();
    let file = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let again = AdapterBundle::load(folder.path(), &base).unwrap();
    assert_eq!(again.config.base_sha256, first.config.base_sha256);
    again.save(folder.path(), DType::F32).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

#[test]
fn a_revision_of_the_hub_stands_in_a_key_of_its_own_as_peft_wants_it() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let mut saved = bundle(&base, false);
    saved.config.base_model_name_or_path = "org/base@v1".into();
    saved.save(folder.path(), DType::F32).unwrap();
    let text = std::fs::read_to_string(folder.path().join("adapter_config.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["base_model_name_or_path"], &json["revision"]), (&json!("org/base"), &json!("v1")));
    assert_eq!(AdapterSummary::read(folder.path()).unwrap().base_model, "org/base@v1");
}

/// PEFT scales each module by its own alpha over its own rank.
#[test]
fn ranks_and_alphas_of_single_modules_are_folded_into_the_matrices() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let mut saved = bundle(&base, false);
    let down = MODULES[1];
    let (shape, _) = base.tensor(&format!("{down}.weight")).unwrap();
    let (a, b) = (tensor(2, shape[1], 3), tensor(shape[0], 2, 5));
    saved.tensors.insert(name(down, "lora_A"), a.clone());
    saved.tensors.insert(name(down, "lora_B"), b.clone());
    saved.save(folder.path(), DType::F32).unwrap();
    edit(folder.path(), |json| {
        json["rank_pattern"] = json!({ "down_proj": 2 });
        json["alpha_pattern"] = json!({ down: 6 });
    });
    let loaded = AdapterBundle::load(folder.path(), &base).unwrap();
    let update = |a: &Tensor, b: &Tensor, scale: f64| numbers(&(b.matmul(a).unwrap() * scale).unwrap());
    let scale = loaded.config.lora.scale();
    let of = |module: &str| {
        update(&loaded.tensors[&name(module, "lora_A")], &loaded.tensors[&name(module, "lora_B")], scale)
    };
    for (got, expected) in [
        (of(down), update(&a, &b, 6.0 / 2.0)),
        (
            of(MODULES[0]),
            update(&saved.tensors[&name(MODULES[0], "lora_A")], &saved.tensors[&name(MODULES[0], "lora_B")], 2.0),
        ),
    ] {
        assert!(got.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-5));
        assert!(expected.iter().any(|x| x.abs() > 0.1));
    }
}

#[test]
fn an_adapter_of_mlx_is_the_same_with_its_matrices_turned() {
    let (base, folder) = (base(), tempfile::tempdir().unwrap());
    let saved = bundle(&base, false);
    let mut turned = std::collections::HashMap::new();
    for (name, tensor) in &saved.tensors {
        let module = name.strip_prefix("base_model.model.").unwrap().rsplitn(3, '.').nth(2).unwrap();
        let part = if name.contains("lora_A") { "lora_a" } else { "lora_b" };
        turned.insert(format!("{module}.{part}"), tensor.t().unwrap().contiguous().unwrap());
    }
    candle_core::safetensors::save(&turned, folder.path().join("adapters.safetensors")).unwrap();
    let config = json!({ "fine_tune_type": "lora", "num_layers": 2, "model": "org/base",
        "lora_parameters": { "rank": 4, "scale": 2.0, "dropout": 0.0 } });
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let loaded = AdapterBundle::load(folder.path(), &base).unwrap();
    assert_eq!((loaded.config.lora.r, loaded.config.lora.lora_alpha), (4, 8.0));
    for (name, tensor) in &saved.tensors {
        assert_eq!(numbers(tensor), numbers(&loaded.tensors[name]), "{name}");
    }
    let summary = AdapterSummary::read(folder.path()).unwrap();
    assert_eq!((summary.base_model.as_str(), summary.lora.r), ("org/base", 4));
}

#[test]
fn an_adapter_of_another_base_is_refused_with_all_that_differs() {
    let error = refused(|folder, bundle| {
        for module in MODULES {
            bundle.tensors.insert(name(module, "lora_A"), tensor(4, 8, 1));
        }
        bundle.save(folder, DType::F32).unwrap();
    });
    assert!(error.contains("2 tensor(s)") && error.contains("q_proj") && error.contains("down_proj"), "{error}");
    let error = refused(|folder, bundle| {
        for part in ["lora_A", "lora_B"] {
            let tensor = bundle.tensors[&name(MODULES[0], part)].clone();
            bundle.tensors.insert(name("model.layers.77.self_attn.q_proj", part), tensor);
        }
        bundle.save(folder, DType::F32).unwrap();
    });
    assert!(error.contains("1 of its 3 modules") && error.contains("layers.77") && error.contains("--base"), "{error}");
}

#[test]
fn damaged_adapters_are_refused_with_what_is_wrong() {
    let error = refused(|folder, bundle| {
        bundle.tensors.remove(&name(MODULES[0], "lora_B"));
        bundle.save(folder, DType::F32).unwrap();
    });
    assert!(error.contains("q_proj.lora_B.weight") && error.contains("missing"), "{error}");
    let error = refused(|folder, bundle| {
        bundle.tensors.insert("base_model.model.lm_head.bias".into(), tensor(1, 4, 1));
        bundle.save(folder, DType::F32).unwrap();
    });
    assert!(error.contains("lm_head.bias") && error.contains("not supported"), "{error}");
    let error = refused(|folder, _| edit(folder, |json| json["r"] = json!(8)));
    assert!(error.contains("expected [8, ") && error.contains("got [4, "), "{error}");
    let error = refused(|folder, bundle| {
        let b = name(MODULES[0], "lora_B");
        let nan = (bundle.tensors[&b].clone() * f64::NAN).unwrap();
        bundle.tensors.insert(b, nan);
        bundle.save(folder, DType::F32).unwrap();
    });
    assert!(error.contains("q_proj.lora_B") && error.contains("not finite"), "{error}");
    let error = refused(|folder, _| {
        let path: PathBuf = folder.join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    });
    assert!(error.contains("adapter_model.safetensors") && error.contains("cut short"), "{error}");
    let error = refused(|folder, _| {
        std::fs::rename(folder.join("adapter_model.safetensors"), folder.join("adapter_model.bin")).unwrap();
    });
    assert!(error.contains("pickle"), "{error}");
}

#[test]
fn kinds_that_are_not_supported_are_refused_by_name() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("modules_to_save", json!(["lm_head"])),
        ("peft_type", json!("LOHA")),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("rank_pattern", json!({ "(down_proj": 2 })),
        ("target_modules", json!(7)),
        ("r", json!(0)),
        ("alora_invocation_tokens", json!([1, 2])),
        ("arrow_config", json!({ "top_k": 1 })),
        ("use_rslora", json!("yes")),
        ("alpha_pattern", json!([1])),
        ("lora_alpha", json!("8")),
    ] {
        let error = refused(|folder, _| edit(folder, |json| json[key] = value));
        assert!(error.contains(key), "{key}: {error}");
    }
}
