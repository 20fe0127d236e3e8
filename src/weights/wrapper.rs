//! Models of several parts, such as those that see: their text part is the decoder. It owns where a configuration and tensors keep
//! it; everything behind sees the decoder alone, under the names that it has by itself.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The text part's `model_type`, where its configuration leaves it out, by the whole's.
const TEXT_PARTS: [(&str, &str); 4] =
    [("gemma3", "gemma3_text"), ("llava", "llama"), ("mistral3", "mistral"), ("qwen3_vl", "qwen3_vl_text")];

/// Keys of the whole that say something of the text part, too.
const SHARED: [&str; 5] = ["bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "torch_dtype"];

/// The names that the text part's tensors begin with, and how they begin by themselves.
const PREFIXES: [(&str, &str); 3] =
    [("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head.")];

/// The whole that a decoder is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapper {
    /// Its `model_type`.
    pub model_type: String,
    /// Its class in transformers, as `architectures` names it.
    pub architecture: Option<String>,
}

/// Makes `config` that of the text part, where it has one.
///
/// # Errors
/// When the text part is of no known kind.
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
    // transformers 5 goes by the whole's word.
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

/// The name that a tensor or a module of a model of text alone has as part of a whole, under transformers 5.
pub(crate) fn name_in_whole(name: &str) -> String {
    name.strip_prefix("model.").map_or_else(|| name.to_owned(), |rest| format!("model.language_model.{rest}"))
}

/// The name that a tensor of the text part has in a model of text alone.
pub(crate) fn text_name(name: &str) -> Option<String> {
    PREFIXES.iter().find_map(|(long, short)| name.strip_prefix(long).map(|rest| format!("{short}{rest}")))
}
