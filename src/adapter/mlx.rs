//! Reading mlx-lm's folder: `adapter_config.json` and `adapters.safetensors`.

use super::peft::{CONFIG, read_config};
use super::read::RawAdapter;
use super::tensors::{TensorFile, read_tensor_file, unread};
use crate::error::{Error, Result};
use crate::nn::{LoraConfig, peft_name};
use serde_json::Value;
use std::path::Path;

pub(super) const TENSORS: &str = "adapters.safetensors";

/// Reads what the folder holds. Its matrices are the transposed ones of PEFT's: `lora_a` `[in, r]`, `lora_b` `[r, out]`.
pub(super) fn read(folder: &Path) -> Result<RawAdapter> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let mut adapter = from_json(&config, &path)?;
    adapter.file = folder.join(TENSORS);
    let TensorFile { tensors, unread: others, .. } = read_tensor_file(&adapter.file)?;
    if let Some((name, dtype)) = others.iter().find(|(name, _)| name.contains(".lora_")) {
        return Err(unread(&adapter.file, name, dtype));
    }
    for (name, tensor) in tensors {
        let part = [(".lora_a", "lora_A"), (".lora_b", "lora_B")];
        let found = part.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)));
        let (Some((module, part)), 2) = (found, tensor.dims().len()) else {
            return Err(Error::file(&adapter.file, format!("holds the tensor `{name}`, which is not a LoRA matrix"))
                .with_help("adapters of plain LoRA are read (mlx-lm's `--fine-tune-type lora`)"));
        };
        adapter.tensors.insert(peft_name(module, part), tensor.t()?.contiguous()?);
    }
    Ok(adapter)
}

/// The configuration, without tensors and file.
pub(super) fn from_json(config: &serde_json::Map<String, Value>, path: &Path) -> Result<RawAdapter> {
    let kind = config.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
    if kind != "lora" {
        return Err(Error::file(path, format!("`fine_tune_type`: expected \"lora\", got \"{kind}\" (not supported)")));
    }
    let parameters = config.get("lora_parameters").and_then(Value::as_object);
    let number = |key: &str| parameters.and_then(|map| map.get(key)).and_then(Value::as_f64);
    let wrong = |key: &str, expected: &str| Error::file(path, format!("`lora_parameters.{key}`: expected {expected}"));
    let r = number("rank").filter(|r| r.fract() == 0.0 && (1.0..=LoraConfig::MAX_R as f64).contains(r));
    let r = r.ok_or_else(|| wrong("rank", "a whole number of at least 1"))? as usize;
    let scale = number("scale").filter(|scale| *scale > 0.0 && scale.is_finite());
    Ok(RawAdapter {
        r,
        // mlx-lm multiplies by `scale` itself.
        lora_alpha: scale.ok_or_else(|| wrong("scale", "a number above 0"))? * r as f64,
        lora_dropout: number("dropout").filter(|p| (0.0..1.0).contains(p)).unwrap_or(0.0),
        base_model: config.get("model").and_then(Value::as_str).unwrap_or_default().to_owned(),
        ..RawAdapter::default()
    })
}
