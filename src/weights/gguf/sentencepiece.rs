//! The byte-pair encoding of `SentencePiece` from GGUF's pieces and scores, as transformers converts it: a merge for every way
//! to make a piece of two pieces, the best-scored pieces first.

use super::metadata::Metadata;
use super::tokenizer::Vocabulary;
use crate::error::{Error, Result};
use std::path::Path;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::{DecoderWrapper, ModelWrapper, Tokenizer};

/// ggml's token types of pieces that merges make: normal and user-defined.
const MERGED: [u32; 2] = [1, 4];
/// The longest piece that is looked at for merges, in bytes; a longer one would be no word.
const PIECE_LIMIT: usize = 256;

/// Builds the tokenizer, without special tokens.
pub(super) fn build(metadata: &Metadata, path: &Path, vocabulary: &Vocabulary) -> Result<Tokenizer> {
    let failed = |error: tokenizers::Error| Error::file(path, format!("its tokenizer cannot be built: {error}"));
    let scores = metadata.floats("tokenizer.ggml.scores")?.unwrap_or_default();
    if scores.len() != vocabulary.tokens.len() {
        return Err(Error::file(
            path,
            format!("metadata lists {} tokens, but {} scores", vocabulary.tokens.len(), scores.len()),
        ));
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(vocabulary.owned(), merges(vocabulary, &scores))
        .byte_fallback(true)
        .fuse_unk(true);
    let unknown = metadata.number("tokenizer.ggml.unknown_token_id")?.unwrap_or(0);
    if let Some(unknown) = vocabulary.tokens.get(unknown as usize) {
        builder = builder.unk_token((*unknown).to_string());
    }
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(builder.build().map_err(failed)?));
    let prefix = metadata.boolean("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> =
        vec![Replace::new("▁", " ").map_err(failed)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if prefix {
        normalizers.push(Prepend::new("▁".into()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", "▁").map_err(failed)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(failed)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Every split of a piece into two pieces, ordered by the score of the whole; ties as transformers breaks them.
fn merges(vocabulary: &Vocabulary, scores: &[f32]) -> Vec<(String, String)> {
    let mut found: Vec<(f32, &str, &str)> = Vec::new();
    for (id, piece) in vocabulary.tokens.iter().enumerate() {
        if !MERGED.contains(&vocabulary.types[id]) || piece.len() > PIECE_LIMIT {
            continue;
        }
        let begin = found.len();
        for (middle, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(middle);
            if vocabulary.ids.contains_key(left) && vocabulary.ids.contains_key(right) {
                found.push((scores[id], left, right));
            }
        }
        found[begin..].sort_by_key(|(_, left, right)| (vocabulary.ids[left], vocabulary.ids[right]));
    }
    let length = |text: &str| text.chars().count();
    found.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| length(b.1).cmp(&length(a.1))).then_with(|| length(b.2).cmp(&length(a.2)))
    });
    found.into_iter().map(|(_, left, right)| (left.to_string(), right.to_string())).collect()
}
