//! Reading mlx-lm's folder: `adapter_config.json` and `adapters.safetensors`.

use super::halves::Halves;
use super::peft::{CONFIG, read_config};
use super::read::RawAdapter;
use super::tensors::{TensorFile, read_tensor_file, unread};
use crate::error::{Error, Result};
use crate::nn::{LoraConfig, peft_name};
use crate::weights::Base;
use crate::weights::gguf::architecture::Architecture;
use serde_json::Value;
use std::path::Path;

pub(super) const TENSORS: &str = "adapters.safetensors";

/// Reads what the folder holds. Its matrices are the transposed ones of PEFT's: `lora_a` `[in, r]`, `lora_b` `[r, out]`. With the base,
/// modules that it has as one and mlx-lm as two are put together.
pub(super) fn read(folder: &Path, base: Option<&Base>) -> Result<RawAdapter> {
    let path = folder.join(CONFIG);
    let config = read_config(&path)?;
    let mut adapter = from_json(&config, &path)?;
    adapter.file = folder.join(TENSORS);
    let TensorFile { tensors, unread: others, .. } = read_tensor_file(&adapter.file)?;
    if let Some((name, dtype)) = others.iter().find(|(name, _)| name.contains(".lora_")) {
        return Err(unread(&adapter.file, name, dtype));
    }
    let mut halves = Halves::default();
    for (name, tensor) in tensors {
        let part = [(".lora_a", "lora_A"), (".lora_b", "lora_B")];
        let found = part.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)));
        let (Some((module, part)), 2) = (found, tensor.dims().len()) else {
            return Err(Error::file(&adapter.file, format!("holds the tensor `{name}`, which is not a LoRA matrix"))
                .with_help("adapters of plain LoRA are read (mlx-lm's `--fine-tune-type lora`)"));
        };
        // The text decoder of a multimodal model.
        let module = module.strip_prefix("language_model.").unwrap_or(module);
        let tensor = tensor.t()?.contiguous()?;
        match own(base, module) {
            Some(Own::Half(module, half)) => halves.add(&module, half, part, tensor),
            Some(Own::Whole(module)) => drop(adapter.tensors.insert(peft_name(&module, part), tensor)),
            None => drop(adapter.tensors.insert(peft_name(module, part), tensor)),
        }
    }
    // mlx-lm has one scale for all modules, whatever their ranks.
    let (file, r, scale) = (adapter.file.clone(), adapter.r, adapter.lora_alpha / adapter.r as f64);
    halves.join(&file, None, &mut adapter)?;
    adapter.r = r;
    adapter.alpha_pattern.iter_mut().for_each(|(_, alpha)| *alpha *= scale);
    if adapter.rank_pattern.iter().all(|(_, own)| *own == r) {
        adapter.rank_pattern.clear();
        adapter.alpha_pattern.clear();
    }
    Ok(adapter)
}

/// What one of mlx-lm's modules is in a base that has others.
enum Own {
    Whole(String),
    Half(String, usize),
}

fn own(base: Option<&Base>, module: &str) -> Option<Own> {
    let row = base.and_then(Architecture::of_base)?;
    let [gguf] = row.split()?.gguf_names(&format!("{module}.weight")).try_into().ok()?;
    let plain = |name: String| name.strip_suffix(".weight").map(str::to_owned);
    match row.half_of(&gguf) {
        Some((module, half)) => Some(Own::Half(plain(module)?, half)),
        None => Some(Own::Whole(plain(row.hugging_face_name(&gguf)?)?)),
    }
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
