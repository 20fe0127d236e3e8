//! A whole model as a Hugging Face folder: weights in shards, configuration, tokenizer and chat template.

use super::gguf::norms_include_one;
use super::tokenizer_files::{CONFIG, TEMPLATE};
use super::{FloatType, Job, MergedWeights, Output, tokenizer_files};
use crate::error::{Error, Result};
use crate::fs::file_inside;
use crate::models::rope_frequencies;
use crate::weight_type::WeightType;
use crate::weights::gguf::NORMS_INCLUDE_ONE;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::{Base, CHAT_TEMPLATES_FOLDER, TensorInfo, safetensors_header};
use serde_json::{Map, Value, json};

/// The most bytes of a shard, as transformers has had it for years.
const SHARD: usize = 5_000_000_000;

/// Where older processors of multimodal models have the chat template.
const PROCESSOR_TEMPLATE: &str = "chat_template.json";

/// The files of a tokenizer, an image processor, and the licence. The weights and `config.json` are written anew.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    TEMPLATE,
    PROCESSOR_TEMPLATE,
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
];

pub(super) fn export(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let mut weights = job.merged()?;
    if norms_include_one(job.base) {
        // Hugging Face's files have the norms of these families less 1.
        weights.shift_norms(-1.0);
    }
    let dtype = job.options.dtype.map_or_else(|| stored_type(&weights), FloatType::weight_type);
    let mut tensors = weights.tensors();
    // llama.cpp's factors of the rotary frequencies, which Hugging Face has in config.json, and what it has no name for.
    tensors.retain(|tensor| {
        !job.base.is_gguf() || tensor.name.starts_with("model.") || tensor.name.starts_with("lm_head.")
    });
    for tensor in &mut tensors {
        tensor.dtype = dtype;
    }
    // Of a multimodal model all of it: the other parts as they are.
    let whole = job.base.multimodal_config();
    if let Some(why) = whole.and_then(|_| job.base.first_unread()) {
        let message =
            format!("`--to merged` copies every tensor of the multimodal model, and one cannot be read: {why}");
        return Err(Error::file(job.base.path(), message)
            .with_help("use `--to peft`, or merge into a model in F32, F16 or BF16"));
    }
    let mut config = whole.unwrap_or_else(|| job.base.config()).clone();
    if job.base.is_gguf() {
        complete_config(job.base, &mut config)?;
    }
    config.remove(NORMS_INCLUDE_ONE);
    plain_weights(&mut config, dtype, true);
    for (_, part) in config.iter_mut().filter(|(key, _)| key.ends_with("_config")) {
        if let Value::Object(part) = part {
            plain_weights(part, dtype, false);
        }
    }
    write_shards(&weights, &tensors, out)?;
    out.small("config.json", &pretty(&Value::Object(config)))?;
    if job.base.is_gguf() { write_tokenizer(job, out) } else { copy_companions(job, out) }
}

/// Makes a configuration say that the weights are floats of this type; `demanded`: also where it named no type.
fn plain_weights(config: &mut Map<String, Value>, dtype: WeightType, demanded: bool) {
    config.remove("quantization_config");
    repeat_rope(config);
    for key in ["torch_dtype", "dtype"] {
        if config.contains_key(key) || (demanded && key == "torch_dtype") {
            config.insert(key.into(), json!(name_of(dtype)));
        }
    }
}

/// The files of a folder that go along, with the template that the adapter was trained on in the place of the base's.
fn copy_companions(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let folder = job.base.path();
    let replaced = [CONFIG, TEMPLATE, PROCESSOR_TEMPLATE];
    for name in COMPANIONS.iter().filter(|name| job.chat_template.is_none() || !replaced.contains(name)) {
        out.copy_if_there(folder, name)?;
    }
    let Some(template) = job.chat_template else { return write_templates(job.base, out) };
    if let Some(path) = file_inside(folder, CONFIG)? {
        let config = std::fs::read(&path).map_err(Error::io("read", path))?;
        out.small(CONFIG, &tokenizer_files::without_template(config))?;
    }
    out.small(TEMPLATE, template.as_bytes())
}

/// The base's chat templates with names, as files. Where a folder has them in `tokenizer_config.json`, that goes along: a file
/// beside it would hide its default one from transformers.
fn write_templates(base: &Base, out: &mut Output<'_>) -> Result<()> {
    if !base.is_gguf() && !base.path().join(CHAT_TEMPLATES_FOLDER).is_dir() {
        return Ok(());
    }
    for (name, template) in tokenizer_files::named_templates(base) {
        out.small(&name, &template)?;
    }
    Ok(())
}

/// The type of the base's largest tensor, where that is f32 or f16; else bf16.
fn stored_type(weights: &MergedWeights<'_>) -> WeightType {
    let tensors = weights.tensors();
    let largest = tensors.iter().filter(|tensor| tensor.shape.len() > 1).max_by_key(|tensor| tensor.bytes());
    match largest.map(|tensor| tensor.dtype) {
        Some(dtype @ (WeightType::F32 | WeightType::F16)) => dtype,
        _ => WeightType::BF16,
    }
}

const fn name_of(dtype: WeightType) -> &'static str {
    match dtype {
        WeightType::F32 => "float32",
        WeightType::F16 => "float16",
        _ => "bfloat16",
    }
}

pub(super) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text.into_bytes()
}

/// Consecutive tensors up to [`SHARD`] bytes each.
fn shards(tensors: &[TensorInfo], most: usize) -> Vec<&[TensorInfo]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if index > start && bytes + tensor.bytes() > most {
            shards.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += tensor.bytes();
    }
    shards.push(&tensors[start..]);
    shards
}

fn write_shards(weights: &MergedWeights<'_>, tensors: &[TensorInfo], out: &mut Output<'_>) -> Result<()> {
    let total: usize = tensors.iter().map(TensorInfo::bytes).sum();
    out.expect(total as u64)?;
    let shards = shards(tensors, SHARD);
    let count = shards.len();
    let mut map = Map::new();
    let base = weights.base();
    // The tensors of a multimodal model keep their names.
    let placed = |tensor: &TensorInfo| match base.stored_name(&tensor.name).filter(|_| base.wrapper().is_some()) {
        Some(stored) => TensorInfo { name: stored.to_owned(), ..tensor.clone() },
        None => tensor.clone(),
    };
    for (number, shard) in shards.into_iter().enumerate() {
        let placed: Vec<TensorInfo> = shard.iter().map(placed).collect();
        let name = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        out.file(&name, |write| {
            write(&safetensors_header(&placed, &[("format", "pt")]))?;
            shard.iter().try_for_each(|tensor| {
                let (_, stored) = base.tensor(&tensor.name).expect("the list is the base's");
                let source = TensorInfo { dtype: stored, ..tensor.clone() };
                let rows = tensor.shape.split_last().map_or(1, |(_, outer)| outer.iter().product());
                weights.stream(&source, 0..rows, tensor.dtype, 1, &|bytes, _| Ok(bytes), write)
            })
        })?;
        for tensor in &placed {
            map.insert(tensor.name.clone(), json!(name));
            out.count(tensor.dtype);
        }
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        out.small("model.safetensors.index.json", &pretty(&index))?;
    }
    Ok(())
}

/// What `config.json` says besides what GGUF's metadata give.
fn complete_config(base: &Base, config: &mut Map<String, Value>) -> Result<()> {
    let Some(row) = Architecture::of_model_type(base.model_type()) else {
        let message = format!("the architecture `{}` cannot be written as a folder yet", base.model_type());
        return Err(Error::invalid(message));
    };
    config.insert("architectures".into(), json!([row.class]));
    for (key, token) in [("bos_token_id", &base.special_tokens().bos), ("pad_token_id", &base.special_tokens().pad)] {
        if let Some((_, id)) = token {
            config.insert(key.into(), json!(id));
        }
    }
    if base.tensor("rope_freqs.weight").is_some() {
        config.insert("rope_scaling".into(), rope_scaling(base, config)?);
    }
    Ok(())
}

/// transformers 5 writes `rope_parameters` alone, which mlx-lm and others do not read: they would silently rotate by 10000.
fn repeat_rope(config: &mut Map<String, Value>) {
    let Some(Value::Object(parameters)) = config.get("rope_parameters").cloned() else { return };
    let has = |config: &Map<String, Value>, key: &str| config.get(key).is_some_and(|value| !value.is_null());
    if let Some(theta) = parameters.get("rope_theta").filter(|_| !has(config, "rope_theta")) {
        config.insert("rope_theta".into(), theta.clone());
    }
    let kind = parameters.get("rope_type").and_then(Value::as_str).unwrap_or("default");
    if kind != "default" && !has(config, "rope_scaling") {
        config.insert("rope_scaling".into(), Value::Object(parameters));
    }
}

/// The parameters of Llama 3's scaling that give the factors of the file.
fn rope_scaling(base: &Base, config: &Map<String, Value>) -> Result<Value> {
    let head_dim = config.get("head_dim").and_then(Value::as_u64).unwrap_or(0) as usize;
    let raw = base.read("rope_freqs.weight")?;
    let factors: Vec<f32> = raw.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let wanted = rope_frequencies(config, head_dim, Some(&factors))?;
    for factor in [8.0, 32.0, 16.0, 4.0, 2.0, 64.0] {
        let scaling = json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192 });
        let mut config = config.clone();
        config.insert("rope_scaling".into(), scaling.clone());
        let got = rope_frequencies(&config, head_dim, None)?;
        if got.iter().zip(&wanted).all(|(x, y)| (x - y).abs() <= 1e-5 * y.abs()) {
            return Ok(scaling);
        }
    }
    Err(Error::file(
        base.path(),
        "its rotary factors (rope_freqs.weight) are none of Llama 3's, and config.json has no place for others",
    )
    .with_help("merge into the unquantized model: --base original:MODEL"))
}

/// The tokenizer of a GGUF file as the files that transformers reads.
fn write_tokenizer(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    for (name, bytes) in tokenizer_files::of_metadata(job.base)? {
        out.small(&name, &bytes)?;
    }
    let special = job.base.special_tokens();
    let mut generation = Map::new();
    for (key, token) in [("bos_token_id", &special.bos), ("pad_token_id", &special.pad)] {
        if let Some((_, id)) = token {
            generation.insert(key.into(), json!(id));
        }
    }
    let ends = match special.eos_ids.as_slice() {
        [one] => json!(one),
        ids => json!(ids),
    };
    generation.insert("eos_token_id".into(), ends);
    out.small("generation_config.json", &pretty(&Value::Object(generation)))?;
    if let Some(template) = job.chat_template() {
        out.small(TEMPLATE, template.as_bytes())?;
    }
    if job.chat_template.is_none() { write_templates(job.base, out) } else { Ok(()) }
}
