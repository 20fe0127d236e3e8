//! Tokens that a tokenizer gets besides those in `tokenizer.json`, as transformers adds them when it loads it.
//!
//! `added_tokens_decoder` in `tokenizer_config.json`; where there is none, `added_tokens.json` and `special_tokens_map.json`;
//! then each named token (`eos_token`, …, and a model's own `*_token`), and `extra_special_tokens`, before transformers 5
//! `additional_special_tokens`. A token that the vocabulary has keeps its id; another one gets the next.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// The names of special tokens that every tokenizer may have.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The JSON files that name tokens; empty where there is none.
pub(super) struct TokenFiles {
    pub tokenizer_config: Map<String, Value>,
    pub special_tokens_map: Map<String, Value>,
    pub added_tokens: Map<String, Value>,
}

/// A token's text: a string, or an object with `content`.
pub(super) fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

impl TokenFiles {
    /// What is said under `key`. Files of transformers 4 without `added_tokens_decoder` say it in `special_tokens_map.json`
    /// first.
    fn said(&self, key: &str) -> Option<&Value> {
        let (config, map) = (self.tokenizer_config.get(key), self.special_tokens_map.get(key));
        let order = if self.has_decoder() { [config, map] } else { [map, config] };
        order.into_iter().flatten().find(|value| !value.is_null())
    }

    fn has_decoder(&self) -> bool {
        self.tokenizer_config.contains_key("added_tokens_decoder")
    }

    /// The named tokens: the standard ones, and a model's own, with their texts.
    pub fn named(&self) -> Vec<(String, String)> {
        let own = self
            .tokenizer_config
            .iter()
            .filter(|(key, value)| key.ends_with("_token") && !NAMED.contains(&key.as_str()) && value.is_string());
        let mut named: Vec<(String, String)> = Vec::new();
        let standard = NAMED.iter().filter_map(|key| Some(((*key).to_owned(), content(self.said(key)?)?.to_owned())));
        named.extend(standard);
        named.extend(own.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))));
        if let Some(Value::Object(extra)) = self.extra() {
            let extra = extra.iter().filter_map(|(key, value)| Some((key.clone(), content(value)?.to_owned())));
            named.extend(extra);
        }
        named
    }

    fn extra(&self) -> Option<&Value> {
        self.said("extra_special_tokens").or_else(|| self.said("additional_special_tokens"))
    }

    /// The tokens with their ids, where a file says ids.
    fn numbered(&self) -> BTreeMap<u32, AddedToken> {
        let mut tokens = BTreeMap::new();
        if let Some(decoder) = self.tokenizer_config.get("added_tokens_decoder").and_then(Value::as_object) {
            for (id, token) in decoder {
                if let (Ok(id), Some(text)) = (id.parse(), content(token)) {
                    tokens.insert(id, added(text, token));
                }
            }
        } else {
            let named = self.named();
            let extra = self.extra_list();
            for (text, id) in &self.added_tokens {
                let special =
                    named.iter().any(|(_, known)| known == text) || extra.iter().any(|known| known.content == *text);
                if let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                    tokens.insert(id, AddedToken::from(text.clone(), special));
                }
            }
        }
        tokens
    }

    fn extra_list(&self) -> Vec<AddedToken> {
        let list = self.extra().and_then(Value::as_array).into_iter().flatten();
        list.filter_map(|token| Some(special(content(token)?, token))).collect()
    }

    /// Adds what `tokenizer` lacks of these tokens.
    ///
    /// # Errors
    /// When the tokenizer refuses one.
    pub fn complete(&self, tokenizer: &mut Tokenizer, folder: &Path) -> Result<()> {
        let known = tokenizer.get_added_tokens_decoder();
        let numbered = self.numbered();
        let mut missing: Vec<AddedToken> =
            numbered.values().filter(|token| !known.values().any(|known| known == *token)).cloned().collect();
        let has = |missing: &[AddedToken], text: &str| known.values().chain(missing).any(|token| token.content == text);
        let named: Vec<String> = self.named().into_iter().map(|(_, text)| text).collect();
        for key in NAMED {
            if let Some(value) = self.said(key)
                && let Some(text) = content(value)
                && !has(&missing, text)
            {
                missing.push(special(text, value));
            }
        }
        for text in &named {
            if !has(&missing, text) {
                missing.push(AddedToken::from(text.clone(), true));
            }
        }
        for token in self.extra_list() {
            if !has(&missing, &token.content) {
                missing.push(token);
            }
        }
        for token in &mut missing {
            token.special |= named.contains(&token.content);
        }
        if missing.is_empty() {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| {
            Error::file(folder, format!("its special tokens cannot be added to the tokenizer: {error}"))
        };
        tokenizer.add_tokens(missing).map_err(|error| failed(&error))?;
        for (id, token) in &numbered {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(*id) {
                tracing::warn!(
                    "{}: the token `{}` has the id {id} by the files beside tokenizer.json, and {} in the tokenizer; the latter \
                     is used, as transformers does",
                    folder.display(),
                    token.content,
                    found.map_or_else(|| "none".to_owned(), |id| id.to_string())
                );
            }
        }
        Ok(())
    }
}

/// A token as a file describes it; what is not said is as the tokenizers library has it.
fn added(text: &str, value: &Value) -> AddedToken {
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    AddedToken::from(text.to_owned(), special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special))
}

/// As [`added`], of a token that is special by where it stands.
fn special(text: &str, value: &Value) -> AddedToken {
    let normalized = value.get("normalized").and_then(Value::as_bool).unwrap_or(false);
    added(text, value).special(true).normalized(normalized)
}
