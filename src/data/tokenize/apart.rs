//! What is said in a row, apart from what the chat template puts around it.

use super::Encoder;
use crate::data::example::Message;
use crate::data::forms;
use crate::error::Result;

impl Encoder {
    /// Text of tokens, with a line break for special ones: what they keep apart stays apart.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode_apart(&self, ids: &[u32]) -> Result<String> {
        let parts = self.decode_parts(ids)?;
        Ok(parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("\n"))
    }

    fn decode_parts(&self, ids: &[u32]) -> Result<Vec<String>> {
        ids.split(|id| self.special.contains(id)).map(|part| self.decode(part, false)).collect()
    }

    /// What the chat template writes around a question and its answer, as [`Self::decode_apart`] has it: all before the question, what of
    /// it no special token separates from the question, and all between question and answer. Nothing where there is no template, or it
    /// wants more than that.
    pub fn scaffold(&self) -> Vec<String> {
        self.around().unwrap_or_default()
    }

    fn around(&self) -> Option<Vec<String>> {
        const QUESTION: &str = "a question";
        const ANSWER: &str = "its answer";
        let template = self.need_template().ok()?;
        let turns = [Message::user(QUESTION), Message::assistant(ANSWER)];
        let text = template.render(&forms::for_prompt(template, &turns), &[], false).ok()?;
        let (before, behind) = text.split_once(QUESTION)?;
        let (between, _) = behind.split_once(ANSWER)?;
        let parts = |text: &str| self.decode_parts(&self.tokenize(text).ok()?.ids).ok();
        let before = parts(before)?;
        Some(vec![before.join("\n"), before.last()?.clone(), parts(between)?.join("\n")])
    }
}
