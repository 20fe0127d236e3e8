//! GGUF metadata translated into the form of Hugging Face's `config.json`: what all architectures have.

use super::architecture::Architecture;
use super::header::Record;
use super::keys::{Keys, Tensors};
use super::{families, rope_keys};
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Says that the weights of norms are those that are multiplied by, where Hugging Face's files of this `model_type` have
/// them less 1. The one key that is ours.
pub const NORMS_INCLUDE_ONE: &str = "norms_include_one";

/// Translates. Of an architecture without a row in the table, what is there is taken and nothing is demanded: whoever
/// loads the model will say that it does not know it.
pub(super) fn translate(keys: &Keys<'_>, tensors: &Tensors<'_>) -> Result<Map<String, Value>> {
    if keys.metadata.string("general.type")?.is_some_and(|kind| kind == "adapter") {
        return Err(Error::file(keys.path, "is a LoRA adapter, not a base model")
            .with_help("name the model that it was trained on"));
    }
    let architecture = Architecture::of_gguf(keys.name);
    let experts = keys.number("expert_count")?.unwrap_or(0);
    let model_type = match architecture {
        Some(row) if row.gguf == "llama" && experts > 0 => "mixtral",
        Some(row) => row.model_type,
        None => keys.name,
    };
    let mut config = Map::new();
    config.insert("model_type".into(), model_type.into());
    if experts > 0 {
        config.insert("num_local_experts".into(), experts.into());
    }
    sizes(keys, tensors, architecture, &mut config)?;
    numerics(keys, tensors, &mut config)?;
    for (key, stored) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = keys.metadata.number(&format!("tokenizer.ggml.{stored}_token_id"))? {
            config.insert(key.into(), id.into());
        }
    }
    if let Some(row) = architecture {
        if row.norms_include_one {
            config.insert(NORMS_INCLUDE_ONE.into(), true.into());
        }
        families::complete(row, keys, tensors, &mut config)?;
    }
    Ok(config)
}

fn sizes(
    keys: &Keys<'_>,
    tensors: &Tensors<'_>,
    architecture: Option<&Architecture>,
    config: &mut Map<String, Value>,
) -> Result<()> {
    let hidden = keys.demanded("embedding_length")?;
    // Layers that predict further tokens are counted with the others.
    let further = keys.number("nextn_predict_layers")?.unwrap_or(0);
    let layers = keys.demanded("block_count")?.map(|layers| layers.saturating_sub(further));
    let heads = keys.demanded_of_layers("attention.head_count", layers)?;
    if heads == Some(0) {
        return Err(Error::file(keys.path, format!("metadata `{}.attention.head_count` is 0", keys.name)));
    }
    let head_dim = keys.number("attention.key_length")?.or_else(|| Some(hidden? / heads?));
    widths(keys, head_dim, architecture.is_some_and(|row| row.partial_rotary))?;
    let vocab = match tensors.record("token_embd.weight").and_then(|record| record.shape.first()) {
        Some(&rows) => Some(json!(rows)),
        None => keys.number("vocab_size")?.map(Value::from),
    };
    for (key, value) in [
        ("hidden_size", hidden.map(Value::from)),
        ("intermediate_size", keys.demanded_of_layers("feed_forward_length", layers)?.map(Value::from)),
        ("num_hidden_layers", layers.map(Value::from)),
        ("num_attention_heads", heads.map(Value::from)),
        ("num_key_value_heads", keys.of_layers("attention.head_count_kv", layers)?.or(heads).map(Value::from)),
        ("head_dim", head_dim.map(Value::from)),
        ("vocab_size", vocab),
        ("max_position_embeddings", keys.number("context_length")?.map(Value::from)),
        ("sliding_window", keys.window()?.map(Value::from)),
    ] {
        if let Some(value) = value {
            config.insert(key.into(), value);
        }
    }
    Ok(())
}

/// Refuses heads whose values are of another width than keys, and those that are rotated in part, where the family is not known
/// to be.
fn widths(keys: &Keys<'_>, head_dim: Option<u32>, partial: bool) -> Result<()> {
    for (key, what) in [("rope.dimension_count", "are rotated"), ("attention.value_length", "are those of a value")] {
        let (Some(said), Some(width), true) = (keys.number(key)?, head_dim, keys.strict) else { continue };
        let is_part = partial && key == "rope.dimension_count" && (2..=width).contains(&said) && said.is_multiple_of(2);
        if said != width && !is_part {
            let message =
                format!("a head has {width} numbers, of which by metadata `{}.{key}` {said} {what}", keys.name);
            return Err(Error::file(keys.path, format!("{message}; this is not supported"))
                .with_help("use the model's Hugging Face folder, or another file of it"));
        }
    }
    Ok(())
}

fn numerics(keys: &Keys<'_>, tensors: &Tensors<'_>, config: &mut Map<String, Value>) -> Result<()> {
    if let Some(epsilon) = keys.demanded_float("attention.layer_norm_rms_epsilon")? {
        config.insert("rms_norm_eps".into(), epsilon.into());
    }
    config.insert("rope_theta".into(), keys.float("rope.freq_base")?.unwrap_or(10000.0).into());
    if let Some(scaling) = rope_keys::scaling(keys)? {
        config.insert("rope_scaling".into(), scaling);
    }
    let has = |name: &str| tensors.record(name).is_some();
    config.insert("tie_word_embeddings".into(), (!has("output.weight")).into());
    config.insert("attention_bias".into(), (has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias")).into());
    config.insert("hidden_act".into(), "silu".into());
    Ok(())
}

/// The record of a name.
pub(super) fn find<'a>(records: &'a [Record], name: &str) -> Option<&'a Record> {
    records.iter().find(|record| record.name == name)
}
