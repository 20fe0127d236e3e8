//! The special tokens of a GGUF file's tokenizer.

use super::metadata::Metadata;
use super::pre_tokenizer;
use crate::error::Result;
use crate::weights::SpecialTokens;

/// Control tokens that end a turn or a text. Many files name one of them as the end and mean the others too.
const ENDS: &[&str] = &[
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
    "<EOT>",
];
/// Whether llama.cpp too knows by its text that a control token ends a generation.
pub(crate) fn is_known_end(token: &str) -> bool {
    ENDS.contains(&token)
}

/// ggml's token type of control tokens.
pub(super) const CONTROL: u32 = 3;

pub(super) fn read(metadata: &Metadata) -> Result<SpecialTokens> {
    let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")? else { return Ok(SpecialTokens::default()) };
    let types = metadata.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let id = |name: &str| -> Result<Option<(String, u32)>> {
        let id = metadata.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(id.and_then(|id| Some((tokens.get(id as usize)?.to_string(), id))))
    };
    let (bos, eos) = (id("bos")?, id("eos")?);
    let mut eos_ids: Vec<u32> = [&eos, &id("eot")?, &id("eom")?].into_iter().flatten().map(|(_, id)| *id).collect();
    for (index, token) in tokens.iter().enumerate() {
        if types.get(index) == Some(&CONTROL) && ENDS.contains(token) {
            eos_ids.push(index as u32);
        }
    }
    let mut seen = Vec::new();
    eos_ids.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    let add_bos = match metadata.boolean("tokenizer.ggml.add_bos_token")? {
        Some(flag) => flag,
        None if metadata.string("tokenizer.ggml.model")? == Some("llama") => true,
        None => metadata.string("tokenizer.ggml.pre")?.and_then(pre_tokenizer::find).is_some_and(|row| row.add_bos),
    };
    let add_bos = add_bos && bos.is_some();
    let pad = id("padding")?;
    let others = [("unk_token", id("unknown")?), ("sep_token", id("seperator")?), ("mask_token", id("mask")?)];
    let mut named = Vec::new();
    for (name, token) in [("bos_token", &bos), ("eos_token", &eos), ("pad_token", &pad)] {
        named.extend(token.as_ref().map(|(text, _)| (name.to_owned(), text.clone())));
    }
    named.extend(others.into_iter().filter_map(|(name, token)| Some((name.to_owned(), token?.0))));
    named.sort();
    Ok(SpecialTokens { bos, eos, pad, eos_ids, add_bos, named })
}
