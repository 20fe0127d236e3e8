//! What is said in a row, apart from what the chat template puts around it.

use super::Encoder;
use crate::data::example::{Example, Message};
use crate::error::Result;

impl Encoder {
    /// Text of tokens, with a line break for special ones: what they keep apart stays apart.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode_apart(&self, ids: &[u32]) -> Result<String> {
        Ok(self.decode_parts(ids)?.join("\n"))
    }

    fn decode_parts(&self, ids: &[u32]) -> Result<Vec<String>> {
        let parts = ids.split(|id| self.special.contains(id)).filter(|part| !part.is_empty());
        parts.map(|part| self.decode(part, false)).collect()
    }

    /// What the chat template writes around a question and its answer, as [`Self::decode_apart`] has it: all before the question, what of
    /// it no special token separates from the question, and all between question and answer. Nothing where there is no template, or it
    /// wants more than that.
    pub fn scaffold(&self) -> Vec<String> {
        const QUESTION: &str = "Qxq";
        const ANSWER: &str = "Axa";
        let probe = Example::chat(vec![Message::user(QUESTION), Message::assistant(ANSWER)]);
        let parts = self.encode(&probe).and_then(|probe| self.decode_parts(&probe.input_ids)).unwrap_or_default();
        let near = parts.iter().find_map(|part| Some(part.split_once(QUESTION)?.0.to_owned()));
        let text = parts.join("\n");
        let around = || {
            let (before, behind) = text.split_once(QUESTION)?;
            Some([before.to_owned(), near?, behind.split_once(ANSWER)?.0.to_owned()])
        };
        around().map(Vec::from).unwrap_or_default()
    }
}
