//! The tokenizer inside a GGUF file: `gpt2` (byte-level byte-pair encoding) or `llama` (`SentencePiece`'s), from the base's
//! `tokenizer.json`.
//!
//! A tokenizer that llama.cpp would follow otherwise than transformers is refused: wrong token ids make no noise.

use super::metadata::read_json;
use super::tokenizer_kind::{Kind, REFUSED_HELP};
use crate::error::{Error, Result};
use crate::weights::Base;
use crate::weights::gguf::is_known_end;
use candle_core::quantized::gguf_file::Value;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use tokenizers::{Model, Tokenizer};

/// ggml's types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// The score of a piece that no merge makes and that text does not hold either.
const NO_SCORE: f32 = -1000.0;

/// `tokenizer.json`, as the tokenizers crate writes it.
#[derive(Debug, Deserialize)]
pub(super) struct TokenizerJson {
    pub added_tokens: Vec<AddedToken>,
    pub normalizer: Json,
    pub pre_tokenizer: Json,
    post_processor: Json,
    pub model: ModelJson,
}

#[derive(Debug, Deserialize)]
pub(super) struct AddedToken {
    id: u32,
    content: String,
    special: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ModelJson {
    pub r#type: String,
    pub byte_fallback: bool,
    pub ignore_merges: bool,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    pub merges: Vec<(String, String)>,
}

/// What the base has of tokens.
struct Tokens<'a> {
    base: &'a Base,
    tokenizer: Tokenizer,
    json: TokenizerJson,
    /// The texts, padded to the number of embeddings.
    texts: Vec<String>,
    types: Vec<i32>,
}

/// All keys under `tokenizer.ggml`.
///
/// # Errors
/// When llama.cpp has no such tokenizer; the message says what to do instead.
pub(super) fn keys(base: &Base) -> Result<Vec<(String, Value)>> {
    let tokenizer = base.tokenizer()?;
    let refused = |what: String| Error::file(base.path().join("tokenizer.json"), what).with_help(REFUSED_HELP);
    let text = tokenizer.to_string(false).map_err(|error| refused(format!("cannot be written: {error}")))?;
    let json: TokenizerJson = serde_json::from_str(&text)
        .map_err(|error| refused(format!("is of a kind that llama.cpp does not know ({error})")))?;
    let kind = Kind::of(&json).map_err(refused)?;
    let tokens = Tokens::new(base, tokenizer, json, matches!(kind, Kind::SentencePiece { .. }))?;
    let strings = |texts: Vec<String>| Value::Array(texts.into_iter().map(Value::String).collect());
    let name = |text: &str| Value::String(text.into());
    let mut keys: Vec<(&str, Value)> = Vec::new();
    match kind {
        Kind::ByteLevel { pre } => {
            keys.extend([("model", name("gpt2")), ("pre", name(pre))]);
            keys.push(("tokens", strings(tokens.texts.clone())));
            keys.push(("token_type", Value::Array(tokens.types.iter().map(|kind| Value::I32(*kind)).collect())));
            keys.push(("merges", strings(tokens.merges().map_err(refused)?)));
        }
        Kind::SentencePiece { space_prefix } => {
            let scores = tokens.scores().map_err(refused)?;
            keys.extend([("model", name("llama")), ("pre", name("default"))]);
            keys.push(("tokens", strings(tokens.texts.clone())));
            keys.push(("scores", Value::Array(scores.into_iter().map(Value::F32).collect())));
            keys.push(("token_type", Value::Array(tokens.types.iter().map(|kind| Value::I32(*kind)).collect())));
            keys.push(("add_space_prefix", Value::Bool(space_prefix)));
        }
    }
    keys.extend(tokens.special()?);
    Ok(keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect())
}

impl<'a> Tokens<'a> {
    fn new(base: &'a Base, tokenizer: Tokenizer, json: TokenizerJson, has_bytes: bool) -> Result<Self> {
        let embeddings = base.tensor("model.embed_tokens.weight").and_then(|(shape, _)| shape.first().copied());
        let size = embeddings.or_else(|| Some(base.config().get("vocab_size")?.as_u64()? as usize)).unwrap_or(0);
        let mut texts: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; size];
        let too_large = |text: &str, id: u32| {
            let message = format!("the token `{text}` has the id {id}, but the model has {size} embeddings");
            Error::file(base.path().join("tokenizer.json"), message)
        };
        for (text, id) in tokenizer.get_vocab(false) {
            let place = texts.get_mut(id as usize).ok_or_else(|| too_large(&text, id))?;
            types[id as usize] = if has_bytes && is_byte(&text) { BYTE } else { NORMAL };
            *place = text;
        }
        for AddedToken { id, content, special } in &json.added_tokens {
            let place = texts.get_mut(*id as usize).ok_or_else(|| too_large(content, *id))?;
            let control = *special || looks_special(content);
            types[*id as usize] = if control { CONTROL } else { USER_DEFINED };
            // llama.cpp looks for such tokens in the text itself, where a space is a space.
            *place = if control { content.clone() } else { content.replace('▁', " ") };
        }
        let mut seen = HashSet::with_capacity(size);
        if let Some(twice) = texts.iter().find(|text| !seen.insert(text.as_str())) {
            let message = format!("would have the token `{twice}` twice, at which llama.cpp ends");
            return Err(Error::file(base.path().join("tokenizer.json"), message).with_help(REFUSED_HELP));
        }
        Ok(Self { base, tokenizer, json, texts, types })
    }

    fn merges(&self) -> Result<Vec<String>, String> {
        let merge = |(left, right): &(String, String)| {
            if left.contains(' ') || right.contains(' ') {
                return Err(format!("has a merge of `{left}` and `{right}`: GGUF cannot hold merges with spaces"));
            }
            Ok(format!("{left} {right}"))
        };
        self.json.model.merges.iter().map(merge).collect()
    }

    /// What `SentencePiece` would score the pieces, from the order of the merges: a piece that is merged earlier scores better.
    ///
    /// llama.cpp merges whatever two pieces make the piece that scores best. transformers merges in the list's order, and
    /// only what is in the list. Both come to the same where all merges of a piece stand together, and where no way to make
    /// a piece is left out that its own text would ask for.
    fn scores(&self) -> Result<Vec<f32>, String> {
        let ids: HashMap<&str, usize> = self.texts.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
        let mut ranks: HashMap<String, usize> = HashMap::new();
        let mut listed: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut last = String::new();
        for (left, right) in &self.json.model.merges {
            let piece = format!("{left}{right}");
            listed.entry(left).or_default().push(right);
            if piece != last {
                let rank = ranks.len();
                if ranks.insert(piece.clone(), rank).is_some() {
                    return Err(format!("merges `{piece}` at two ranks, which SentencePiece's scores cannot say"));
                }
                last = piece;
            }
        }
        let mut scores = vec![NO_SCORE; self.texts.len()];
        let mut next = ranks.len();
        for (id, piece) in self.texts.iter().enumerate() {
            scores[id] = match (self.types[id], ranks.get(piece)) {
                (NORMAL | USER_DEFINED, Some(rank)) => -(*rank as f32),
                (NORMAL, None) => {
                    next += 1;
                    -((next - 1) as f32)
                }
                (BYTE, _) => 0.0,
                _ => NO_SCORE,
            };
            let is_listed = |left: &str, right: &str| listed.get(left).is_some_and(|rights| rights.contains(&right));
            let left_out = self.types[id] == NORMAL
                && piece.char_indices().skip(1).any(|(middle, _)| {
                    let (left, right) = piece.split_at(middle);
                    ids.contains_key(left) && ids.contains_key(right) && !is_listed(left, right)
                });
            if left_out && !self.is_made_of_its_text(piece) {
                return Err(format!("never makes the piece `{piece}` of its own text, where llama.cpp would"));
            }
        }
        if !self.types.contains(&BYTE) {
            tracing::warn!(
                "{}: the vocabulary has no tokens for bytes; llama.cpp ends at a character that it has no piece for",
                self.base.path().display()
            );
        }
        Ok(scores)
    }

    fn is_made_of_its_text(&self, piece: &str) -> bool {
        self.tokenizer.get_model().tokenize(piece).is_ok_and(|tokens| tokens.len() == 1)
    }

    /// The ids of special tokens, and which of them begin and end every text.
    fn special(&self) -> Result<Vec<(&'static str, Value)>> {
        let special = self.base.special_tokens();
        let config = read_json(&self.base.path().join("tokenizer_config.json"))?;
        let unknown =
            config.get("unk_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let unknown = unknown.and_then(|token| self.tokenizer.token_to_id(token));
        let id = |token: &Option<(String, u32)>| token.as_ref().map(|(_, id)| *id);
        // `config.json` speaks where the tokenizer does not.
        let configured = |key: &str| {
            let id = self.base.config().get(key)?.as_u64()?;
            u32::try_from(id).ok().filter(|&id| (id as usize) < self.texts.len())
        };
        let eos = id(&special.eos).or_else(|| special.eos_ids.first().copied());
        let is_new =
            |id: &&u32| Some(**id) != eos && self.texts.get(**id as usize).is_some_and(|text| !is_known_end(text));
        let mut keys = Vec::new();
        for (key, id) in [
            ("bos_token_id", id(&special.bos).or_else(|| configured("bos_token_id"))),
            ("eos_token_id", eos),
            ("eot_token_id", special.eos_ids.iter().find(is_new).copied()),
            ("unknown_token_id", unknown),
            ("padding_token_id", id(&special.pad).or_else(|| configured("pad_token_id"))),
        ] {
            keys.extend(id.map(|id| (key, Value::U32(id))));
        }
        let eos = eos.and_then(|eos| self.texts.get(eos as usize));
        let add_eos = eos.is_some_and(|eos| ends_with(&self.json.post_processor, eos));
        keys.push(("add_bos_token", Value::Bool(special.add_bos)));
        keys.push(("add_eos_token", Value::Bool(add_eos)));
        Ok(keys)
    }
}

/// `<0x00>` and so on: a byte of what has no piece.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Added tokens that are meant as control tokens, though their models' files do not say so.
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| text.starts_with(open) && text.ends_with(close);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// Whether a post-processor, or one of a sequence of them, puts `token` behind a text.
fn ends_with(processor: &Json, token: &str) -> bool {
    let nested = processor.get("processors").and_then(Json::as_array).into_iter().flatten();
    let last = processor.get("single").and_then(Json::as_array).and_then(|single| single.last());
    last.and_then(|piece| piece.get("SpecialToken")?.get("id")?.as_str()) == Some(token)
        || nested.into_iter().any(|inner| ends_with(inner, token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::write_safetensors;
    use serde_json::{Map, json};
    use std::path::Path;

    const FIRST: &[(&str, &str)] = &[("a", "b"), ("ab", "c")];

    /// A folder of a model with ten embeddings, and this tokenizer.
    fn base(folder: &Path, json: &Json, config: &Json) -> Base {
        std::fs::write(folder.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
        std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
        std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
        write_safetensors(&folder.join("model.safetensors"), &[("model.embed_tokens.weight", &[10, 1], &[0.0; 10])]);
        Base::open(folder).unwrap()
    }

    fn tokenizer(tokens: &[&str], merges: &[(&str, &str)], added: &Json, sentence_piece: bool) -> Json {
        let vocab: Map<String, Json> =
            tokens.iter().enumerate().map(|(id, text)| ((*text).into(), json!(id))).collect();
        let pre = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        json!({
            "version": "1.0", "added_tokens": added, "post_processor": null, "decoder": null,
            "normalizer": if sentence_piece { space } else { Json::Null },
            "pre_tokenizer": if sentence_piece { Json::Null } else { pre },
            "model": {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": sentence_piece},
        })
    }

    fn added(id: u32, content: &str, special: bool) -> Json {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    }

    fn value(keys: &[(String, Value)], key: &str) -> String {
        let found = keys.iter().find(|(name, _)| name.strip_prefix("tokenizer.ggml.") == Some(key));
        found.map_or("none".into(), |(_, value)| match value {
            Value::Array(values) => values.iter().fold(String::new(), |all, value| format!("{all}{value:?} ")),
            value => format!("{value:?}"),
        })
    }

    #[test]
    fn a_byte_level_vocabulary_is_padded_and_typed() {
        let folder = tempfile::tempdir().unwrap();
        let more = json!([
            added(5, "<s>", true),
            added(6, "<|user|>", false),
            added(7, "▁think▁", false),
            added(8, "<end>", true)
        ]);
        let json = tokenizer(&["a", "b", "c", "ab", "abc"], FIRST, &more, false);
        let config = json!({"bos_token": "<s>", "unk_token": {"content": "a"}, "eos_token": "<end>"});
        std::fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [6, 8]}"#).unwrap();
        let keys = keys(&base(folder.path(), &json, &config)).unwrap();
        assert_eq!(value(&keys, "model"), "String(\"gpt2\")");
        assert_eq!(value(&keys, "merges"), "String(\"a b\") String(\"ab c\") ");
        let tokens = value(&keys, "tokens");
        assert!(
            tokens.ends_with("String(\"<|user|>\") String(\" think \") String(\"<end>\") String(\"[PAD9]\") "),
            "{tokens}"
        );
        assert_eq!(
            value(&keys, "token_type"),
            "I32(3) I32(1) I32(1) I32(1) I32(1) I32(3) I32(3) I32(4) I32(3) I32(5) "
        );
        for (key, id) in [("bos", 5), ("eos", 8), ("eot", 6), ("unknown", 0)] {
            assert_eq!(value(&keys, &format!("{key}_token_id")), format!("U32({id})"));
        }
        assert_eq!(value(&keys, "padding_token_id"), "none");
        assert_eq!((value(&keys, "add_bos_token"), value(&keys, "scores")), ("Bool(false)".into(), "none".into()));
    }

    #[test]
    fn pieces_of_sentencepiece_are_scored_by_their_merges() {
        let folder = tempfile::tempdir().unwrap();
        let json = tokenizer(&["<0x0A>", "a", "b", "c", "abc", "ab"], FIRST, &json!([added(6, "</s>", true)]), true);
        let keys = keys(&base(folder.path(), &json, &json!({"eos_token": "</s>"}))).unwrap();
        assert_eq!(value(&keys, "model"), "String(\"llama\")");
        assert_eq!(
            value(&keys, "scores"),
            "F32(0.0) F32(-2.0) F32(-3.0) F32(-4.0) F32(-1.0) F32(-0.0) F32(-1000.0) F32(-1000.0) F32(-1000.0) F32(-1000.0) "
        );
        assert_eq!(
            value(&keys, "token_type"),
            "I32(6) I32(1) I32(1) I32(1) I32(1) I32(1) I32(3) I32(5) I32(5) I32(5) "
        );
        assert_eq!(value(&keys, "add_space_prefix"), "Bool(false)");
        assert_eq!(value(&keys, "merges"), "none");
    }

    #[test]
    fn what_llama_cpp_would_follow_otherwise_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |json: &Json| {
            let error = keys(&base(folder.path(), json, &json!({}))).unwrap_err();
            format!("{error} | {}", error.help().unwrap_or_default())
        };
        let pieces = ["a", "b", "c", "ab", "bc", "abc"];
        // `bc` is merged first, so that `abc` never comes about: llama.cpp would make it of `a` and `bc`.
        let unreached = tokenizer(&pieces, &[("b", "c"), ("ab", "c"), ("a", "b")], &json!([]), true);
        let message = refused(&unreached);
        assert!(message.contains("never makes the piece `abc`") && message.contains("`--to merged`"), "{message}");
        let apart = tokenizer(&pieces, &[("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")], &json!([]), true);
        assert!(refused(&apart).contains("merges `abc` at two ranks"));
        let eleven = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k"];
        let message = refused(&tokenizer(&eleven, &[], &json!([]), false));
        assert!(message.contains("`k` has the id 10, but the model has 10 embeddings"), "{message}");
        let twice = tokenizer(&["a", "[PAD2]"], &[], &json!([]), false);
        assert!(refused(&twice).contains("`[PAD2]` twice"));
    }
}
