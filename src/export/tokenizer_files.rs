//! The tokenizer as files of a Hugging Face folder, to stand beside an adapter: of a folder its own, of a GGUF file made from its
//! metadata.

use super::merged::pretty;
use crate::error::{Error, Result};
use crate::weights::{Base, CHAT_TEMPLATES_FOLDER};
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::PostProcessorWrapper;

pub(super) const CONFIG: &str = "tokenizer_config.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";
const OF_FOLDER: &[&str] = &["tokenizer.json", "special_tokens_map.json", "added_tokens.json"];
/// All names that such files have, but those in the folder of further templates.
pub const TOKENIZER_FILES: &[&str] =
    &["tokenizer.json", CONFIG, "special_tokens_map.json", "added_tokens.json", TEMPLATE];

/// The files by which `AutoTokenizer.from_pretrained` loads a base's tokenizer, with their names. `template` takes precedence over
/// the base's chat template, and over those that it has by name.
///
/// # Errors
/// When a file cannot be read, or a GGUF file's tokenizer cannot be built.
pub fn tokenizer_files(base: &Base, template: Option<&str>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = if base.is_gguf() { of_metadata(base)? } else { of_folder(base.path(), template)? };
    let own = if base.is_gguf() { base.chat_template() } else { None };
    if let Some(template) = template.or(own) {
        files.push((TEMPLATE.into(), template.as_bytes().to_vec()));
    }
    if base.is_gguf() && template.is_none() {
        files.extend(named_templates(base));
    }
    Ok(files)
}

/// The base's chat templates with names, as the files that transformers reads.
pub(super) fn named_templates(base: &Base) -> impl Iterator<Item = (String, Vec<u8>)> {
    let named = base.chat_templates().named().filter(|(name, _)| is_file_name(name));
    named.map(|(name, template)| (format!("{CHAT_TEMPLATES_FOLDER}/{name}.jinja"), template.as_bytes().to_vec()))
}

/// Whether a template's name may be that of a file: it comes from the base's own files.
fn is_file_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(is_plain)
}

fn of_folder(folder: &Path, template: Option<&str>) -> Result<Vec<(String, Vec<u8>)>> {
    let read = |name: &str| -> Result<Option<Vec<u8>>> {
        let path = folder.join(name);
        if path.is_file() { std::fs::read(&path).map(Some).map_err(Error::io("read", path)) } else { Ok(None) }
    };
    let mut files = Vec::new();
    for name in OF_FOLDER {
        files.extend(read(name)?.map(|bytes| ((*name).to_owned(), bytes)));
    }
    if let Some(bytes) = read(CONFIG)? {
        files.push((CONFIG.into(), with_template(bytes, template)));
    }
    if template.is_some() {
        return Ok(files);
    }
    files.extend(read(TEMPLATE)?.map(|bytes| (TEMPLATE.to_owned(), bytes)));
    let further = std::fs::read_dir(folder.join(CHAT_TEMPLATES_FOLDER)).into_iter().flatten().flatten();
    let mut names: Vec<String> = further.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    for name in names.iter().filter(|name| Path::new(name).extension().is_some_and(|end| end == "jinja")) {
        let name = format!("{CHAT_TEMPLATES_FOLDER}/{name}");
        files.extend(read(&name)?.map(|bytes| (name, bytes)));
    }
    Ok(files)
}

/// A tokenizer's configuration that names another template than this one would be read by older programs.
fn with_template(bytes: Vec<u8>, template: Option<&str>) -> Vec<u8> {
    let Some(template) = template else { return bytes };
    match serde_json::from_slice::<Map<String, Value>>(&bytes) {
        Ok(mut config) if config.contains_key("chat_template") => {
            config.insert("chat_template".into(), json!(template));
            pretty(&Value::Object(config))
        }
        _ => bytes,
    }
}

/// A tokenizer's configuration without a chat template, for a folder that has one in a file: programs differ in which of the two
/// they read.
pub(super) fn without_template(bytes: Vec<u8>) -> Vec<u8> {
    match serde_json::from_slice::<Map<String, Value>>(&bytes) {
        Ok(mut config) if config.contains_key("chat_template") => {
            config.shift_remove("chat_template");
            pretty(&Value::Object(config))
        }
        _ => bytes,
    }
}

/// The tokenizer of a GGUF file; its chat template is not among them.
///
/// # Errors
/// When it cannot be built.
pub(super) fn of_metadata(base: &Base) -> Result<Vec<(String, Vec<u8>)>> {
    let special = base.special_tokens();
    let mut tokenizer = base.tokenizer()?;
    let failed = |error: &dyn std::fmt::Display| Error::invalid(format!("the tokenizer: {error}"));
    if let Some((text, id)) = special.bos.as_ref().filter(|_| special.add_bos) {
        let processor: PostProcessorWrapper =
            serde_json::from_value(begins_with(text, *id)).map_err(|error| failed(&error))?;
        tokenizer.with_post_processor(Some(processor));
    }
    // Written straight to text: as a tree of values a large vocabulary takes ten times as much.
    let mut json = tokenizer.to_string(true).map_err(|error| failed(&error))?;
    drop(tokenizer);
    json.push('\n');
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".into(), json!(false));
    config.insert("add_bos_token".into(), json!(special.add_bos));
    let mut map = Map::new();
    for (key, token) in [("bos_token", &special.bos), ("eos_token", &special.eos), ("pad_token", &special.pad)] {
        if let Some((text, _)) = token {
            config.insert(key.into(), json!(text));
            map.insert(key.into(), json!(text));
        }
    }
    if let Some(length) = base.config().get("max_position_embeddings") {
        config.insert("model_max_length".into(), length.clone());
    }
    Ok(vec![
        ("tokenizer.json".into(), json.into_bytes()),
        (CONFIG.into(), pretty(&Value::Object(config))),
        ("special_tokens_map.json".into(), pretty(&Value::Object(map))),
    ])
}

/// What puts a token before each text.
fn begins_with(text: &str, id: u32) -> Value {
    let token = json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let sequence = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
    let special = Map::from_iter([(text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }))]);
    json!({
        "type": "TemplateProcessing",
        "single": [token, sequence("A")],
        "pair": [token, sequence("A"), sequence("B")],
        "special_tokens": special,
    })
}
