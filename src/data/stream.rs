//! Text of tokens that come one by one, in pieces that can be printed.

use super::tokenize::Encoder;
use crate::error::Result;

/// Decodes tokens as they come. A piece is held back while it may still change: half a character, or white space that the
/// decoder sets by what follows.
#[derive(Debug)]
pub struct TextStream<'a> {
    encoder: &'a Encoder,
    skip_special_tokens: bool,
    ids: Vec<u32>,
    /// Tokens before this one are forgotten; the next few are only context.
    context: usize,
    /// Tokens before this one are printed.
    printed: usize,
}

impl<'a> TextStream<'a> {
    pub(super) const fn new(encoder: &'a Encoder, skip_special_tokens: bool) -> Self {
        Self { encoder, skip_special_tokens, ids: Vec::new(), context: 0, printed: 0 }
    }

    /// Takes a token; returns the text that has become certain, maybe empty.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.piece(false)
    }

    /// The text that was still held back, with U+FFFD for half characters.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn finish(mut self) -> Result<String> {
        self.piece(true)
    }

    fn piece(&mut self, last: bool) -> Result<String> {
        let before = self.encoder.decode(&self.ids[self.context..self.printed], self.skip_special_tokens)?;
        let now = self.encoder.decode(&self.ids[self.context..], self.skip_special_tokens)?;
        let Some(piece) = now.strip_prefix(before.as_str()).filter(|piece| !piece.is_empty()) else {
            return Ok(String::new());
        };
        if piece.ends_with('\u{FFFD}') && !last {
            return Ok(String::new());
        }
        self.context = self.printed;
        self.printed = self.ids.len();
        Ok(piece.to_string())
    }
}
