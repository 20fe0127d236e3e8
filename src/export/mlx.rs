//! mlx-lm's adapter: the matrices turned, under its names, and its own configuration.
//!
//! Source: `mlx_lm/tuner/utils.py` (`load_adapters`, `linear_to_lora_layers`) and `tuner/lora.py`; `models/*.py` for what modules are
//! called. All have Hugging Face's names but for Granite 4, whose `shared_mlp` becomes `mlp` with a gate of its own, and for multimodal
//! models, whose decoder is under `language_model`.

use super::merged_weights::{check_range, encode};
use super::{FloatType, Job, Output};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::{Base, TensorInfo, safetensors_header};
use serde_json::json;
use std::collections::BTreeSet;
use std::ops::Range;

pub(super) fn export(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let dtype = job.options.dtype.unwrap_or(FloatType::F32).weight_type();
    // mlx-lm keeps the decoder of a multimodal model under `language_model`.
    let wrapped = job.base.wrapper().is_some();
    let (mut infos, mut data, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (name, tensor) in &job.adapter.tensors {
        let module = name.strip_prefix("base_model.model.").unwrap_or(name);
        let ends = [(".lora_A.weight", ".lora_a"), (".lora_B.weight", ".lora_b")];
        let (module, end) =
            ends.iter().find_map(|(from, to)| Some((module.strip_suffix(from)?, *to))).unwrap_or((module, ""));
        for (module, rows) in modules(job.base, module, tensor.dim(0)?) {
            let part = if end == ".lora_b" { tensor.narrow(0, rows.start, rows.len())? } else { tensor.clone() };
            let turned = part.t()?.contiguous()?;
            let module = place(&module, wrapped);
            infos.push(TensorInfo { name: format!("{module}{end}"), shape: turned.dims().to_vec(), dtype });
            let columns = turned.dim(1)?;
            let bytes = encode(&turned.flatten_all()?.to_vec1::<f32>()?, columns, dtype)?;
            check_range(&bytes, dtype, name)?;
            data.push(bytes);
            out.count(dtype);
            names.insert(module);
        }
    }
    out.file("adapters.safetensors", |write| {
        write(&safetensors_header(&infos, &[("format", "mlx")]))?;
        data.iter().try_for_each(|bytes| write(bytes))
    })?;
    let lora = &job.adapter.config.lora;
    let plan = models::load(job.base, job.quantization, Some(lora), 0, &Device::Cpu, true)?;
    let (base, _) = job.adapter.config.base_and_revision();
    let config = json!({
        "fine_tune_type": "lora",
        "lora_parameters": {
            "dropout": lora.lora_dropout,
            "keys": keys(&names)?,
            "rank": lora.r,
            "scale": lora.scale(),
        },
        "model": base,
        // Layers are counted from the last. Modules of theirs without tensors begin with a B of zeros: they do nothing.
        "num_layers": plan.lm.dimensions.layers,
    });
    let mut text = serde_json::to_string_pretty(&config).unwrap_or_default();
    text.push('\n');
    out.small("adapter_config.json", text.as_bytes())?;
    if let Some(template) = job.chat_template {
        out.small("chat_template.jinja", template.as_bytes())?;
    }
    Ok(())
}

/// mlx-lm's modules for one of the base's, with the rows of its B: it may have two, as GGUF has two tensors.
fn modules(base: &Base, module: &str, rows: usize) -> Vec<(String, Range<usize>)> {
    let whole = || vec![(module.to_owned(), 0..rows)];
    let Some((row, split)) = Architecture::of_base(base).and_then(|row| Some((row, row.split()?))) else {
        return whole();
    };
    let names = row.gguf_names(&format!("{module}.weight"));
    let own = |name: &String| split.hugging_face_name(name)?.strip_suffix(".weight").map(str::to_owned);
    let names: Option<Vec<String>> = names.iter().map(own).collect();
    match names {
        Some(names) if !names.is_empty() => {
            let part = rows / names.len();
            names.into_iter().enumerate().map(|(i, name)| (name, i * part..(i + 1) * part)).collect()
        }
        _ => whole(),
    }
}

/// The path of a module in mlx-lm's model.
fn place(module: &str, wrapped: bool) -> String {
    match module.strip_prefix("model.language_model.") {
        Some(rest) => format!("language_model.model.{rest}"),
        None if wrapped && !module.starts_with("language_model.") => format!("language_model.{module}"),
        None => module.to_owned(),
    }
}

/// The modules' names within a layer, such as `self_attn.q_proj`.
fn keys(modules: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let key = |module: &String| {
        let within = module.split_once(".layers.").and_then(|(_, rest)| Some(rest.split_once('.')?.1.to_owned()));
        within.ok_or_else(|| Error::invalid(format!("`{module}` is in no layer, and mlx-lm adapts only layers")))
    };
    modules.iter().map(key).collect()
}
