//! A short text of everyday English, on which forgetting shows: weather, history, a recipe, speech, law and a proof, in some four
//! hundred words. It was written for this purpose.

use super::request::{Tokens, grouped};
use crate::error::Result;
use crate::models::Continuations;

const TEXT: &str = include_str!("general_text.txt");

/// The text in windows of the model's length, each token predicted once; nothing for a tokenizer that makes no token of it.
///
/// # Errors
/// When the tokenizer fails.
pub fn general_text(tokens: &Tokens<'_>) -> Result<Vec<Continuations>> {
    Ok(grouped(tokens.windows(TEXT.trim_end())?).0)
}
