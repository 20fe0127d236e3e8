//! GGUF metadata translated into the form of Hugging Face's `config.json`.

use super::architecture::Architecture;
use super::header::Record;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Translates. Of an architecture without a row in the table, what is there is taken and nothing is demanded: whoever
/// loads the model will say that it does not know it.
pub(super) fn translate(path: &Path, metadata: &Metadata, records: &[Record]) -> Result<Map<String, Value>> {
    let Some(name) = metadata.string("general.architecture")? else {
        return Err(Error::file(path, "metadata has no `general.architecture`")
            .with_help("take a GGUF file of a language model"));
    };
    if metadata.string("general.type")?.is_some_and(|kind| kind == "adapter") {
        return Err(
            Error::file(path, "is a LoRA adapter, not a base model").with_help("name the model that it was trained on")
        );
    }
    let architecture = Architecture::of_gguf(name);
    let keys = Keys { path, metadata, name, strict: architecture.is_some() };
    let experts = keys.number("expert_count")?.unwrap_or(0);
    let model_type = match architecture {
        Some(row) if row.gguf == "llama" && experts > 0 => "mixtral",
        Some(row) => row.model_type,
        None => name,
    };
    let mut config = Map::new();
    config.insert("model_type".into(), model_type.into());
    if experts > 0 {
        config.insert("num_local_experts".into(), experts.into());
    }
    sizes(&keys, records, &mut config)?;
    numerics(&keys, records, &mut config)?;
    for (key, stored) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = metadata.number(&format!("tokenizer.ggml.{stored}_token_id"))? {
            config.insert(key.into(), id.into());
        }
    }
    Ok(config)
}

/// Metadata under the architecture's name.
struct Keys<'a> {
    path: &'a Path,
    metadata: &'a Metadata,
    name: &'a str,
    /// Whether values of a wrong type are errors rather than absent.
    strict: bool,
}

impl Keys<'_> {
    fn number(&self, key: &str) -> Result<Option<u32>> {
        let value = self.metadata.number(&format!("{}.{key}", self.name));
        if self.strict { value } else { Ok(value.ok().flatten()) }
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let value = self.metadata.float(&format!("{}.{key}", self.name));
        if self.strict { value } else { Ok(value.ok().flatten()) }
    }

    fn demanded(&self, key: &str) -> Result<Option<u32>> {
        match self.number(key)? {
            None if self.strict => Err(Error::file(self.path, format!("metadata has no `{}.{key}`", self.name))
                .with_help("convert the model again with a current llama.cpp")),
            value => Ok(value),
        }
    }
}

fn record<'a>(records: &'a [Record], name: &str) -> Option<&'a Record> {
    records.iter().find(|record| record.name == name)
}

fn sizes(keys: &Keys, records: &[Record], config: &mut Map<String, Value>) -> Result<()> {
    let hidden = keys.demanded("embedding_length")?;
    let heads = keys.demanded("attention.head_count")?;
    if heads == Some(0) {
        return Err(Error::file(keys.path, format!("metadata `{}.attention.head_count` is 0", keys.name)));
    }
    let head_dim = keys.number("attention.key_length")?.or_else(|| Some(hidden? / heads?));
    for (key, what) in [("rope.dimension_count", "are rotated"), ("attention.value_length", "are those of a value")] {
        if let (Some(said), Some(width), true) = (keys.number(key)?, head_dim, keys.strict)
            && said != width
        {
            let message =
                format!("a head has {width} numbers, of which by metadata `{}.{key}` {said} {what}", keys.name);
            return Err(Error::file(keys.path, format!("{message}; this is not supported"))
                .with_help("use the model's Hugging Face folder, or another file of it"));
        }
    }
    let vocab = match record(records, "token_embd.weight").and_then(|record| record.shape.first()) {
        Some(&rows) => Some(json!(rows)),
        None => keys.number("vocab_size")?.map(Value::from),
    };
    for (key, value) in [
        ("hidden_size", hidden.map(Value::from)),
        ("intermediate_size", keys.demanded("feed_forward_length")?.map(Value::from)),
        ("num_hidden_layers", keys.demanded("block_count")?.map(Value::from)),
        ("num_attention_heads", heads.map(Value::from)),
        ("num_key_value_heads", keys.number("attention.head_count_kv")?.or(heads).map(Value::from)),
        ("head_dim", head_dim.map(Value::from)),
        ("vocab_size", vocab),
        ("max_position_embeddings", keys.number("context_length")?.map(Value::from)),
        ("sliding_window", keys.number("attention.sliding_window")?.map(Value::from)),
    ] {
        if let Some(value) = value {
            config.insert(key.into(), value);
        }
    }
    Ok(())
}

fn numerics(keys: &Keys, records: &[Record], config: &mut Map<String, Value>) -> Result<()> {
    if let Some(epsilon) = keys.float("attention.layer_norm_rms_epsilon")? {
        config.insert("rms_norm_eps".into(), epsilon.into());
    }
    config.insert("rope_theta".into(), keys.float("rope.freq_base")?.unwrap_or(10000.0).into());
    // As llama.cpp has it: a factor without a type is linear, and old files have it under another name.
    let scaling = keys.metadata.string(&format!("{}.rope.scaling.type", keys.name))?.unwrap_or("linear");
    let factor = match keys.float("rope.scaling.factor")? {
        None => keys.float("rope.scale_linear")?,
        factor => factor,
    };
    if let (kind, Some(factor)) =
        (scaling, factor.filter(|factor| scaling != "none" && *factor != 0.0 && *factor != 1.0))
    {
        let mut value = json!({ "rope_type": kind, "factor": factor });
        if let Some(length) = keys.number("rope.scaling.original_context_length")? {
            value["original_max_position_embeddings"] = length.into();
        }
        config.insert("rope_scaling".into(), value);
    }
    config.insert("tie_word_embeddings".into(), record(records, "output.weight").is_none().into());
    config.insert("attention_bias".into(), record(records, "blk.0.attn_q.bias").is_some().into());
    config.insert("hidden_act".into(), "silu".into());
    Ok(())
}
