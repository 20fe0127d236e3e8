//! Multimodal models: their text decoder is what is trained. It owns where a configuration and tensors keep it; everything behind sees
//! the decoder alone, under the names that it has in a text-only model, with what its configuration leaves to the class.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The text decoder's `model_type`, where its configuration leaves it out, by the multimodal model's.
const TEXT_PARTS: [(&str, &str); 4] =
    [("gemma3", "gemma3_text"), ("llava", "llama"), ("mistral3", "mistral"), ("qwen3_vl", "qwen3_vl_text")];

/// Keys of the multimodal model that count for its text decoder, too.
const SHARED: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// What a class of text decoders takes where a nested configuration leaves a size out, as transformers does: hidden size,
/// intermediate size, layers, heads, heads of keys, vocabulary, positions.
const CLASS_DEFAULTS: [(&str, [u64; 7]); 5] = [
    ("gemma3_text", [2304, 9216, 26, 8, 4, 262_208, 131_072]),
    ("llama", [4096, 11008, 32, 32, 32, 32_000, 2048]),
    ("ministral3", [4096, 14336, 34, 32, 8, 131_072, 262_144]),
    ("mistral", [4096, 14336, 32, 32, 8, 32_000, 131_072]),
    ("qwen3_vl_text", [4096, 22016, 32, 32, 32, 151_936, 128_000]),
];

const SIZES: [&str; 7] = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
];

/// The names that the text decoder's tensors begin with, and how they begin in a text-only model.
const PREFIXES: [(&str, &str); 4] = [
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    // A model that was saved without its head.
    ("language_model.", "model."),
];

/// The multimodal model that a decoder belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapper {
    /// Its `model_type`.
    pub model_type: String,
    /// Its class in transformers, as `architectures` names it.
    pub architecture: Option<String>,
}

/// Makes `config` that of the text decoder, where it is a multimodal model's.
///
/// # Errors
/// When the text decoder is of no known kind.
pub(super) fn unwrap(config: &mut Map<String, Value>, folder: &Path) -> Result<Option<Wrapper>> {
    let Some(Value::Object(text)) = config.get("text_config") else { return Ok(None) };
    let text_of = |map: &Map<String, Value>| map.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let Some(model_type) = text_of(config) else { return Ok(None) };
    let mut inner = text.clone();
    if text_of(&inner).is_none() {
        let Some((_, kind)) = TEXT_PARTS.iter().find(|(whole, _)| *whole == model_type) else {
            let path = folder.join("config.json");
            return Err(Error::file(
                path,
                format!("text_config has no `model_type`, and that of a `{model_type}` is not known"),
            )
            .with_help("take a config.json that transformers 5 has written"));
        };
        inner.insert("model_type".into(), (*kind).into());
    }
    let kind = text_of(&inner).unwrap_or_default();
    if let Some((_, sizes)) = CLASS_DEFAULTS.iter().find(|(name, _)| *name == kind) {
        for (key, size) in SIZES.iter().zip(sizes) {
            inner.entry(*key).or_insert_with(|| (*size).into());
        }
    }
    // transformers 5 takes the outer one.
    if let Some(tied) = config.get("tie_word_embeddings").filter(|tied| !tied.is_null()) {
        inner.insert("tie_word_embeddings".into(), tied.clone());
    }
    for key in SHARED {
        if let Some(value) = config.get(key).filter(|value| !value.is_null()) {
            inner.entry(key).or_insert_with(|| value.clone());
        }
    }
    let architecture = config.get("architectures").and_then(|all| all.get(0)).and_then(Value::as_str);
    let wrapper = Wrapper { model_type, architecture: architecture.map(str::to_owned) };
    *config = inner;
    Ok(Some(wrapper))
}

/// The name that a tensor or a module of the decoder has in the multimodal model, under transformers 5; other names stay.
pub(crate) fn multimodal_name(name: &str) -> String {
    let rest = name.strip_prefix("model.").filter(|rest| is_of_decoder(rest));
    rest.map_or_else(|| name.to_owned(), |rest| format!("model.language_model.{rest}"))
}

/// The name that a tensor or a module of the decoder has in a text-only model, by its name in a multimodal one.
pub(crate) fn text_name(name: &str) -> Option<String> {
    PREFIXES.iter().find_map(|(long, short)| name.strip_prefix(long).map(|rest| format!("{short}{rest}")))
}

fn is_of_decoder(rest: &str) -> bool {
    ["layers.", "embed_tokens", "norm"].iter().any(|part| rest.starts_with(part))
}
