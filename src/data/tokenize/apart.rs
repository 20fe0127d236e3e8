//! What is said in a row, apart from what the chat template puts around it.

use super::Encoder;
use crate::data::example::Message;
use crate::data::forms;
use crate::error::Result;

/// Stands for a special token, where a text is taken apart.
const MARK: char = '\u{1}';

/// What a chat template writes around what is said: before the first question, between questions and answers, and at the end.
#[derive(Debug, Default)]
pub struct Scaffold {
    /// The longest first, since one may be a part of another.
    pieces: Vec<String>,
}

impl Scaffold {
    fn new(mut pieces: Vec<String>) -> Self {
        // A piece without words keeps nothing apart.
        pieces.retain(|piece| piece.chars().any(char::is_alphanumeric));
        pieces.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        pieces.dedup();
        Self { pieces }
    }
}

impl Encoder {
    /// The text of a row without its scaffold and its special tokens; line breaks stand for them.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn said(&self, ids: &[u32], scaffold: &Scaffold) -> Result<String> {
        let marked = self.marked(ids)?;
        let said = scaffold.pieces.iter().fold(marked, |text, piece| text.replace(piece, "\n"));
        Ok(said.replace(MARK, "\n"))
    }

    /// Text of tokens, with a mark for each special one.
    fn marked(&self, ids: &[u32]) -> Result<String> {
        let parts = ids.split(|id| self.special.contains(id)).map(|part| self.decode(part, false));
        Ok(parts.collect::<Result<Vec<String>>>()?.join(&MARK.to_string()))
    }

    /// The scaffold of the chat template; `None` where there is no template, or it wants more than questions and answers.
    pub fn scaffold(&self) -> Option<Scaffold> {
        // What is written around an answer may differ where others follow.
        [2, 1].into_iter().find_map(|exchanges| self.pieces(exchanges)).map(Scaffold::new)
    }

    /// What stands around so many questions and answers.
    fn pieces(&self, exchanges: usize) -> Option<Vec<String>> {
        let template = self.need_template().ok()?;
        let said: Vec<String> = (0..2 * exchanges).map(|i| format!("zqxj{i}wvk")).collect();
        let turn = |(i, text): (usize, &String)| {
            if i % 2 == 0 { Message::user(text.as_str()) } else { Message::assistant(text.as_str()) }
        };
        let turns: Vec<Message> = said.iter().enumerate().map(turn).collect();
        let text = template.render(&forms::for_prompt(template, &turns), &[], false).ok()?;
        let mut rest = text.as_str();
        let mut pieces = Vec::new();
        for said in &said {
            let (before, behind) = rest.split_once(said.as_str())?;
            pieces.push(before);
            rest = behind;
        }
        if said
            .iter()
            .any(|said| rest.contains(said.as_str()) || pieces.iter().any(|piece| piece.contains(said.as_str())))
        {
            return None;
        }
        // A text may end where its last line does.
        pieces.push(rest.trim_end());
        let of_tokens = |piece: &str| self.marked(&self.tokenize(piece).ok()?.ids).ok();
        // Tokenizers that put a space before each text do so here too.
        pieces.into_iter().map(|piece| Some(of_tokens(piece)?.trim_matches(' ').to_owned())).collect()
    }
}
