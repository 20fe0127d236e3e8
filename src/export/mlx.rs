//! mlx-lm's adapter: the matrices turned, under its names, and its own configuration.
//!
//! Source: `mlx_lm/tuner/utils.py` (`load_adapters`, `linear_to_lora_layers`) and `tuner/lora.py`.

use super::merged_weights::{check_range, encode};
use super::{FloatType, Job, Output};
use crate::adapter::AdapterBundle;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models;
use crate::weights::{TensorInfo, safetensors_header};
use serde_json::json;
use std::collections::BTreeSet;

pub(super) fn export(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let dtype = job.options.dtype.unwrap_or(FloatType::F32).weight_type();
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for (name, tensor) in &job.adapter.tensors {
        let module = name.strip_prefix("base_model.model.").unwrap_or(name);
        let turned_name = module.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b");
        let turned = tensor.t()?.contiguous()?;
        infos.push(TensorInfo { name: turned_name, shape: turned.dims().to_vec(), dtype });
        let columns = turned.dim(1)?;
        let bytes = encode(&turned.flatten_all()?.to_vec1::<f32>()?, columns, dtype)?;
        check_range(&bytes, dtype, name)?;
        data.push(bytes);
        out.count(dtype);
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
            "keys": keys(job.adapter)?,
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

/// The modules' names within a layer, such as `self_attn.q_proj`.
fn keys(adapter: &AdapterBundle) -> Result<BTreeSet<String>> {
    let key = |module: &String| {
        let within = module.split_once(".layers.").and_then(|(_, rest)| Some(rest.split_once('.')?.1.to_owned()));
        within.ok_or_else(|| Error::invalid(format!("`{module}` is in no layer, and mlx-lm adapts only layers")))
    };
    adapter.modules().iter().map(key).collect()
}
