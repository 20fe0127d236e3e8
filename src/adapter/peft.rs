//! Reading PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`.

use super::patterns::{Pattern, TargetRule};
use super::read::RawAdapter;
use super::tensors::{TensorFile, read_tensor_file, unread};
use crate::error::{Error, Result};
use crate::fs::read_within;
use crate::nn::LoraConfig;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file of an adapter's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file of its tensors.
pub const TENSORS: &str = "adapter_model.safetensors";
/// Where the file of tensors keeps the base's fingerprint, among its metadata.
pub(super) const BASE_SHA256: &str = "base_sha256";

/// The most bytes of a configuration.
const MOST_CONFIG: u64 = 16 << 20;

/// Settings of other kinds of adapters, whose tensors look like plain LoRA's.
const UNSUPPORTED: &[&str] = &[
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
];

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
    let TensorFile { tensors, metadata, unread: others } = read_tensor_file(&adapter.file)?;
    if let Some((name, dtype)) = others.iter().find(|(name, _)| is_lora(name)) {
        return Err(unread(&adapter.file, name, dtype));
    }
    // Some programs write the adapter's name, which PEFT itself leaves out.
    for (name, tensor) in tensors {
        if !is_lora(&name) && (is_buffer(&name) || tensor.elem_count() == 0) {
            tracing::warn!("{}: `{name}` is left out, as PEFT leaves it out", adapter.file.display());
            continue;
        }
        let plain = name.replace(".default.weight", ".weight");
        if adapter.tensors.insert(plain, tensor).is_some() {
            return Err(Error::file(&adapter.file, format!("holds `{name}` twice, with `.default` and without")));
        }
    }
    adapter.base_sha256 = metadata.get(BASE_SHA256).cloned();
    adapter.keep_targets()?;
    Ok(adapter)
}

/// Whether a tensor belongs to the adapter, and must be read. Those of other kinds of adapters are refused later, by name.
fn is_lora(name: &str) -> bool {
    name.contains(".lora_")
}

/// Whether a tensor is a model's buffer, which a loaded model has of its own.
fn is_buffer(name: &str) -> bool {
    const BUFFERS: &[&str] =
        &["inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "position_ids", "masked_bias", "causal_mask"];
    BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name))
}

/// What it says without its tensors.
pub(super) fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_within(path, MOST_CONFIG)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, format!("is not an adapter's: {error}")))
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
    let r = map.get("r").and_then(rank).ok_or_else(|| wrong("r", "a whole number from 1 to 65536"))?;
    let lora_alpha = map.get("lora_alpha").and_then(alpha).ok_or_else(|| wrong("lora_alpha", "a number above 0"))?;
    let use_rslora = match map.get("use_rslora") {
        None | Some(Value::Null) => false,
        Some(value) => value.as_bool().ok_or_else(|| wrong("use_rslora", "true or false"))?,
    };
    for key in ["rank_pattern", "alpha_pattern"] {
        if map.get(key).is_some_and(|value| !value.is_object() && !value.is_null()) {
            return Err(wrong(key, "an object of module and number"));
        }
    }
    let patterns = |key: &str| map.get(key).and_then(Value::as_object).into_iter().flatten();
    let mut adapter = RawAdapter { r, lora_alpha, use_rslora, ..RawAdapter::default() };
    for (module, value) in patterns("rank_pattern") {
        let r = rank(value).ok_or_else(|| wrong("rank_pattern", "ranks of at least 1"))?;
        adapter.rank_pattern.push((Pattern::of_key("rank_pattern", module, path)?, r));
    }
    for (module, value) in patterns("alpha_pattern") {
        let alpha = alpha(value).ok_or_else(|| wrong("alpha_pattern", "numbers above 0"))?;
        adapter.alpha_pattern.push((Pattern::of_key("alpha_pattern", module, path)?, alpha));
    }
    adapter.targets = TargetRule::read(map, path)?;
    adapter.lora_dropout =
        map.get("lora_dropout").and_then(Value::as_f64).filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0);
    let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
    adapter.base_model = match (text("base_model_name_or_path"), text("revision")) {
        (base, "") | (base @ "", _) => base.to_owned(),
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
    let nothing = [Value::Null, json!({}), json!([]), json!(false)];
    let unused = |value: &Value| nothing.contains(value);
    for key in UNSUPPORTED {
        if !map.get(*key).is_none_or(unused) {
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
