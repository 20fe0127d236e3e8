//! A Hugging Face folder: its JSON files and tokenizer. Safetensors are [`super::shards`]'s.

use super::added_tokens::TokenFiles;
use super::chat_templates::ChatTemplates;
use super::special_tokens::Sources;
use super::{Contents, resolve, shards, wrapper};
use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tokenizers::Tokenizer;

/// Reads and checks what a folder holds.
pub(super) fn open(folder: &Path) -> Result<Contents> {
    let Some(said) = read_json::<Map<String, Value>>(&folder.join("config.json"))? else {
        return Err(no_config(folder));
    };
    let table = shards::open(folder)?;
    let mut config = said.clone();
    let wrapper = wrapper::unwrap(&mut config, folder)?;
    let mut notes = resolve::resolve(&mut config, &table, folder)?;
    notes.extend(wrapper.as_ref().map(|whole| {
        format!("`{}` is multimodal: its text decoder is trained, the rest stays frozen", whole.model_type)
    }));
    notes.extend(shards::left_out(folder));
    let tokenizer_config: Map<String, Value> = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    let chat_templates = ChatTemplates::of_folder(folder, &tokenizer_config)?;
    let sources = Sources {
        config: &config,
        generation: read_json(&folder.join("generation_config.json"))?.unwrap_or_default(),
        files: token_files(folder, tokenizer_config)?,
        tokenizer: read_json(&folder.join("tokenizer.json"))?.unwrap_or_default(),
    };
    let special_tokens = sources.special_tokens(folder);
    let said = Some(said).filter(|said| *said != config);
    Ok(Contents { config, said, notes, table, special_tokens, chat_templates, wrapper })
}

fn token_files(folder: &Path, tokenizer_config: Map<String, Value>) -> Result<TokenFiles> {
    let read = |name: &str| read_json::<Map<String, Value>>(&folder.join(name)).map(Option::unwrap_or_default);
    Ok(TokenFiles {
        tokenizer_config,
        special_tokens_map: read("special_tokens_map.json")?,
        added_tokens: read("added_tokens.json")?,
    })
}

/// A JSON object; `None` when there is no such file.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let parsed = serde_json::from_slice(&bytes)
        .or_else(|error| serde_json::from_str(&quoted(&String::from_utf8_lossy(&bytes))).map_err(|_| error));
    parsed.map(Some).map_err(|error| {
        Error::file(path, format!("cannot be read as JSON: {error}")).with_help("fetch the file again")
    })
}

/// JSON with the numbers that Python writes and JSON does not have as texts: whoever reads one of them names its key.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Parts between quotes are within a string, or not, by turns.
    let (mut rest, mut within) = (text, false);
    while !rest.is_empty() {
        let mut escaped = false;
        let quote = rest.find(|letter: char| {
            let found = letter == '"' && !escaped;
            escaped = within && letter == '\\' && !escaped;
            found
        });
        let (part, next) = rest.split_at(quote.map_or(rest.len(), |at| at + 1));
        if within {
            out.push_str(part);
        } else {
            out.push_str(
                &part.replace("-Infinity", "\"-inf\"").replace("Infinity", "\"inf\"").replace("NaN", "\"nan\""),
            );
        }
        (rest, within) = (next, !within);
    }
    out
}

fn no_config(folder: &Path) -> Error {
    if folder.join("adapter_config.json").is_file() {
        return Error::file(folder, "is a LoRA adapter, not a base model")
            .with_help("name the model that it was trained on: `base_model_name_or_path` in its adapter_config.json");
    }
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    if let Some(gguf) = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "gguf")) {
        return Error::file(folder, "has no config.json, but holds GGUF")
            .with_help(format!("name the file itself: {}", gguf.display()));
    }
    Error::file(folder, "has no config.json")
        .with_help("a base model is a folder with config.json and model.safetensors, or a .gguf file")
}

/// The tokenizer of `tokenizer.json`, with the tokens that other files name, and with truncation and padding off, whatever was
/// saved.
pub(super) fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    if !path.is_file() {
        let why = if folder.join("tokenizer.model").is_file() {
            "has no tokenizer.json, only a SentencePiece tokenizer.model, which is not read"
        } else {
            "has no tokenizer.json"
        };
        return Err(Error::file(folder, why)
            .with_help("write one with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"));
    }
    let failed = |why: String| {
        Error::file(&path, format!("the tokenizer cannot be read: {why}")).with_help("fetch the file again")
    };
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    // The tokenizers crate panics at merges that make something longer than every token.
    let read = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(&bytes)));
    let mut tokenizer = read
        .map_err(|_| failed("its vocabulary and merges contradict each other".into()))?
        .map_err(|error| failed(error.to_string()))?;
    tokenizer.with_truncation(None).map_err(|error| failed(error.to_string()))?;
    tokenizer.with_padding(None);
    let tokenizer_config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
    token_files(folder, tokenizer_config)?.complete(&mut tokenizer, folder)?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn numbers_of_pythons_become_texts_outside_of_texts_alone() {
        let json = r#"{"a \" Infinity": [0.0, Infinity, -Infinity], "b": "NaN\\", "c": NaN}"#;
        let wanted = r#"{"a \" Infinity": [0.0, "inf", "-inf"], "b": "NaN\\", "c": "nan"}"#;
        assert_eq!(quoted(json), wanted);
    }
}
