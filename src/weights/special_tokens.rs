//! The tokens that begin, end and pad a text, and what a Hugging Face folder says of them.

use super::added_tokens::TokenFiles;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The tokens that begin, end and pad a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token that begins a text, and its id.
    pub bos: Option<(String, u32)>,
    /// The token that ends a text.
    pub eos: Option<(String, u32)>,
    /// The token that fills up a batch.
    pub pad: Option<(String, u32)>,
    /// All ids that end a generation, each once: an instruct model ends turns otherwise than texts.
    pub eos_ids: Vec<u32>,
    /// Whether the model's own tokenizer begins every text with [`Self::bos`].
    pub add_bos: bool,
    /// The texts of all tokens with a name (`unk_token`, …, a model's own too), which chat templates may read.
    pub named: Vec<(String, String)>,
}

/// The JSON files of a folder that say something of special tokens; empty where there is none.
pub(super) struct Sources<'a> {
    pub config: &'a Map<String, Value>,
    pub generation: Map<String, Value>,
    pub files: TokenFiles,
    pub tokenizer: TokenizerFile,
}

/// What `tokenizer.json` says of special tokens, without the vocabulary, which is large.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TokenizerFile {
    added_tokens: Vec<AddedToken>,
    post_processor: Value,
}

#[derive(Debug, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// Tokenizer classes of transformers that rebuild the post-processor from `add_bos_token`.
const REBUILDING: &[&str] = &["LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer", "CohereTokenizer"];

impl Sources<'_> {
    pub fn special_tokens(&self, folder: &Path) -> SpecialTokens {
        let mut named = self.files.named();
        named.sort();
        let token = |key: &str| {
            let (_, text) = named.iter().find(|(name, _)| name == key)?;
            Some((text.clone(), self.id(text, folder)?))
        };
        let (bos, eos) = (token("bos_token"), token("eos_token"));
        let mut eos_ids = Vec::new();
        let nested = self.config.get("text_config").and_then(|inner| inner.get("eos_token_id"));
        // transformers generates by generation_config.json, and by config.json only where that says nothing.
        let known = |value: &&Value| !value.is_null();
        let generation = self.generation.get("eos_token_id").filter(known);
        let config = [self.config.get("eos_token_id"), nested].into_iter().filter(|_| generation.is_none()).flatten();
        for ids in generation.into_iter().chain(config) {
            let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
            eos_ids.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
        }
        eos_ids.extend(eos.as_ref().map(|(_, id)| *id));
        let mut unique = Vec::new();
        for id in eos_ids {
            if !unique.contains(&id) {
                unique.push(id);
            }
        }
        if eos.is_none() && unique.is_empty() {
            tracing::warn!("{}: no token is named that ends a text (eos_token)", folder.display());
        }
        let add_bos = bos.as_ref().is_some_and(|(text, _)| self.adds_bos(text));
        let pad = token("pad_token");
        SpecialTokens { bos, eos, pad, eos_ids: unique, add_bos, named }
    }

    /// A token's id: among the added tokens, as nearly always, or in the vocabulary, for which the whole file is read.
    fn id(&self, token: &str, folder: &Path) -> Option<u32> {
        let added = self.tokenizer.added_tokens.iter().find(|entry| entry.content == token);
        added.map(|entry| entry.id).or_else(|| super::folder::tokenizer(folder).ok()?.token_to_id(token))
    }

    fn adds_bos(&self, bos: &str) -> bool {
        let class = self.files.tokenizer_config.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let rebuilds = REBUILDING.contains(&class.strip_suffix("Fast").unwrap_or(class));
        match self.files.tokenizer_config.get("add_bos_token").and_then(Value::as_bool) {
            Some(flag) if rebuilds => flag,
            _ => begins_with(&self.tokenizer.post_processor, bos),
        }
    }
}

/// Whether a post-processor, or one of a sequence of them, puts `token` before a text.
fn begins_with(processor: &Value, token: &str) -> bool {
    let nested = processor.get("processors").and_then(Value::as_array).into_iter().flatten();
    let first = processor.get("single").and_then(|single| single.get(0));
    first.and_then(|piece| piece.get("SpecialToken")?.get("id")?.as_str()) == Some(token)
        || nested.into_iter().any(|inner| begins_with(inner, token))
}
