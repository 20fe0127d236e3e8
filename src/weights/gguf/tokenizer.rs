//! A tokenizer from GGUF metadata: `gpt2` (byte-level byte-pair encoding) and `llama` (`SentencePiece`).
//!
//! candle has a reader too; it knows few ways of splitting, falls back to GPT-2's in silence, and adds BOS by itself.

use super::metadata::Metadata;
use super::special_tokens::CONTROL;
use super::{pre_tokenizer, sentencepiece};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, Tokenizer};

const ELSEWHERE: &str = "use the model's Hugging Face folder as base instead; `quantization` can quantize it";
/// ggml's token types, besides [`CONTROL`].
const UNKNOWN: u32 = 2;
const USER_DEFINED: u32 = 4;

/// The vocabulary as GGUF lists it.
pub(super) struct Vocabulary<'a> {
    pub tokens: Vec<&'a str>,
    /// ggml's type of each token.
    pub types: Vec<u32>,
    pub ids: HashMap<&'a str, u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata, path: &Path) -> Result<Self> {
        let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? else {
            return Err(Error::file(path, "metadata has no `tokenizer.ggml.tokens`").with_help(ELSEWHERE));
        };
        let types = metadata.numbers("tokenizer.ggml.token_type")?.unwrap_or_else(|| vec![1; tokens.len()]);
        if types.len() != tokens.len() {
            return Err(Error::file(
                path,
                format!("metadata lists {} tokens, but {} token types", tokens.len(), types.len()),
            ));
        }
        let ids = tokens.iter().enumerate().map(|(id, token)| (*token, id as u32)).collect();
        Ok(Self { tokens, types, ids })
    }

    /// The vocabulary as the tokenizers crate wants it.
    pub fn owned(&self) -> Vocab {
        self.ids.iter().map(|(token, id)| ((*token).to_string(), *id)).collect()
    }
}

/// Builds the tokenizer.
pub(in crate::weights) fn tokenizer(metadata: &Metadata, path: &Path) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| Error::file(path, format!("its tokenizer cannot be built: {error}"));
    let vocabulary = Vocabulary::read(metadata, path)?;
    let mut tokenizer = match metadata.string("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level(metadata, path, &vocabulary)?,
        Some("llama") => sentencepiece::build(metadata, path, &vocabulary)?,
        other => {
            let other = other.unwrap_or("none");
            return Err(Error::file(path, format!("its tokenizer is of kind `{other}`; `gpt2` and `llama` are read"))
                .with_help(ELSEWHERE));
        }
    };
    let mut added = Vec::new();
    for (token, kind) in vocabulary.tokens.iter().zip(&vocabulary.types) {
        match *kind {
            CONTROL | UNKNOWN => added.push(AddedToken::from(*token, true)),
            // Runs of `▁` are written in the pieces' alphabet, which text never is; their merges find them.
            USER_DEFINED if !token.contains('▁') => added.push(AddedToken::from(*token, false).normalized(false)),
            _ => {}
        }
    }
    tokenizer.add_tokens(added).map_err(failed)?;
    Ok(tokenizer)
}

/// GPT-2's kind: bytes written as characters, split by patterns, merged in the listed order.
fn byte_level(metadata: &Metadata, path: &Path, vocabulary: &Vocabulary) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| Error::file(path, format!("its tokenizer cannot be built: {error}"));
    let name = metadata.string("tokenizer.ggml.pre")?.unwrap_or_else(|| {
        tracing::warn!("{}: metadata has no `tokenizer.ggml.pre`; text is split as by `default`", path.display());
        "default"
    });
    let Some(pre) = pre_tokenizer::find(name) else {
        return Err(Error::file(
            path,
            format!("its tokenizer splits text as `{name}`, which is not known; known are {}", pre_tokenizer::names()),
        )
        .with_help(ELSEWHERE));
    };
    let merges = merges(metadata, path, vocabulary)?;
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.owned(), merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(failed)?;
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(model));
    if pre.nfc {
        tokenizer.with_normalizer(Some(NormalizerWrapper::NFC(NFC))).map_err(failed)?;
    }
    tokenizer.with_pre_tokenizer(Some(pre.build().map_err(failed)?));
    tokenizer.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(false, true, false))));
    Ok(tokenizer)
}

/// The merges, each checked to make a token of two tokens: the tokenizers crate panics at some that do not.
fn merges(metadata: &Metadata, path: &Path, vocabulary: &Vocabulary) -> Result<Vec<(String, String)>> {
    let Some(merges) = metadata.strings("tokenizer.ggml.merges")? else {
        return Err(Error::file(path, "metadata has no `tokenizer.ggml.merges`").with_help(ELSEWHERE));
    };
    let check = |merge: &str| {
        let (left, right) = merge.split_once(' ')?;
        let known = |token: &str| vocabulary.ids.contains_key(token);
        (known(left) && known(right) && known(&format!("{left}{right}"))).then(|| (left.to_string(), right.to_string()))
    };
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        pairs.push(check(merge).ok_or_else(|| {
            Error::file(
                path,
                format!("metadata `tokenizer.ggml.merges`: `{merge}` does not make a token of two tokens"),
            )
        })?);
    }
    Ok(pairs)
}
