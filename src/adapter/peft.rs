//! Reading PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`.

use super::read::{Pattern, RawAdapter};
use super::tensors::read_tensors;
use crate::error::{Error, Result};
use crate::nn::LoraConfig;
use serde_json::{Map, Value, json};
use std::path::Path;

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";
/// Where the file of tensors keeps the base's fingerprint, among its metadata.
pub(super) const BASE_SHA256: &str = "base_sha256";

/// Initialisations that change the base's weights: such an adapter does not fit the base that it names.
const CHANGES_BASE: &[&str] = &["pissa", "olora", "loftq", "corda", "lora_ga"];

/// Reads what the folder holds, in whatever types.
pub(super) fn read(folder: &Path) -> Result<RawAdapter> {
    let path = folder.join(CONFIG);
    let mut adapter = from_json(&read_config(&path)?, &path)?;
    adapter.file = folder.join(TENSORS);
    if !adapter.file.is_file() {
        return Err(no_tensors(folder));
    }
    let (tensors, metadata) = read_tensors(&adapter.file)?;
    // Some programs write the adapter's name, which PEFT itself leaves out.
    adapter.tensors =
        tensors.into_iter().map(|(name, tensor)| (name.replace(".default.weight", ".weight"), tensor)).collect();
    adapter.base_sha256 = metadata.get(BASE_SHA256).cloned();
    Ok(adapter)
}

/// What it says without its tensors.
pub(super) fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, format!("is no adapter's: {error}")))
}

fn no_tensors(folder: &Path) -> Error {
    let pickle = ["adapter_model.bin", "adapter_model.pt"].iter().find(|name| folder.join(name).is_file());
    match pickle {
        Some(name) => Error::file(folder.join(name), "is pickle, which is not read: it can run code").with_help(
            "save it as safetensors once, on a machine that you do not mind: \
             PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)",
        ),
        None => {
            Error::file(folder, format!("has no {TENSORS}")).with_help("the adapter is not complete; fetch it again")
        }
    }
}

/// The configuration, without tensors and file.
pub(super) fn from_json(map: &Map<String, Value>, path: &Path) -> Result<RawAdapter> {
    let wrong = |key: &str, expected: &str| {
        let got = map.get(key).map_or("nothing".to_owned(), Value::to_string);
        Error::file(path, format!("`{key}`: expected {expected}, got {got}"))
    };
    refuse_other_kinds(map, &wrong)?;
    let rank =
        |value: &Value| value.as_u64().filter(|r| (1..=LoraConfig::MAX_R as u64).contains(r)).map(|r| r as usize);
    let alpha = |value: &Value| value.as_f64().filter(|alpha| *alpha > 0.0 && alpha.is_finite());
    let r = map.get("r").and_then(rank).ok_or_else(|| wrong("r", "a whole number of at least 1"))?;
    let lora_alpha = map.get("lora_alpha").and_then(alpha).ok_or_else(|| wrong("lora_alpha", "a number above 0"))?;
    let use_rslora = map.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
    let patterns = |key: &str| map.get(key).and_then(Value::as_object).into_iter().flatten();
    let mut adapter = RawAdapter { r, lora_alpha, use_rslora, ..RawAdapter::default() };
    for (module, value) in patterns("rank_pattern") {
        let r = rank(value).ok_or_else(|| wrong("rank_pattern", "ranks of at least 1"))?;
        adapter.rank_pattern.push((Pattern::new(module, path)?, r));
    }
    for (module, value) in patterns("alpha_pattern") {
        let alpha = alpha(value).ok_or_else(|| wrong("alpha_pattern", "numbers above 0"))?;
        adapter.alpha_pattern.push((Pattern::new(module, path)?, alpha));
    }
    adapter.lora_dropout =
        map.get("lora_dropout").and_then(Value::as_f64).filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0);
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
    adapter.base_model = match (text("base_model_name_or_path"), text("revision")) {
        (base, "") => base.to_owned(),
        (base, revision) => format!("{base}@{revision}"),
    };
    Ok(adapter)
}

fn refuse_other_kinds(map: &Map<String, Value>, wrong: &impl Fn(&str, &str) -> Error) -> Result<()> {
    if map.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err(wrong("peft_type", "\"LORA\""));
    }
    for key in ["use_dora", "lora_bias", "fan_in_fan_out", "use_qalora"] {
        if map.get(key).is_some_and(|value| value == &json!(true)) {
            return Err(wrong(key, "false (it is not supported)"));
        }
    }
    let unused = |value: &Value| value.is_null() || value == &json!({}) || value == &json!([]);
    for key in ["modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"] {
        if !map.get(key).is_none_or(unused) {
            return Err(wrong(key, "nothing (it is not supported)"));
        }
    }
    if map.get("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none") {
        return Err(wrong("bias", "\"none\""));
    }
    let init = map.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    if CHANGES_BASE.iter().any(|name| init.starts_with(name)) {
        return Err(wrong("init_lora_weights", "an initialisation that leaves the base as it is").with_help(
            "let PEFT convert it into a plain LoRA adapter: save_pretrained with path_initial_model_for_weight_conversion",
        ));
    }
    Ok(())
}
