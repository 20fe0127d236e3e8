//! Where the assistant's turns lie in a rendered conversation. It does not tokenize.
//!
//! A turn is found by rendering what comes before it, with the generation prompt, and what goes up to its end, without:
//! both must be beginnings of the whole rendering. Text is never searched for, so an answer that quotes the template's own
//! marks cannot shift a border.

use super::example::{Message, Role};
use super::template::ChatTemplate;
use crate::error::{Error, Result};
use std::ops::Range;

/// A conversation as text, and the bytes of it that the assistant wrote: content, and what the template puts after it.
#[derive(Debug)]
pub struct Rendering {
    /// The whole conversation.
    pub text: String,
    /// The assistant's turns, in order.
    pub turns: Vec<Range<usize>>,
    /// Whether the last message is the assistant's, so that the text ends with an answer.
    pub ends_with_answer: bool,
}

impl Rendering {
    /// Renders and finds the turns.
    ///
    /// # Errors
    /// When the template refuses the conversation, or renders a turn in another way once others follow it.
    pub fn new(template: &ChatTemplate, messages: &[Message], eos: Option<&str>) -> Result<Self> {
        let values = ChatTemplate::values(messages);
        let text = template.render_values(&values, false)?;
        let mut turns = Vec::new();
        for (i, message) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let before = template.render_values(&values[..i], true)?;
            if !text.starts_with(&before) {
                let alone = template.render_values(&values[..=i], false)?;
                return Err(if alone.starts_with(&before) { rewritten(i) } else { other_opening(&alone, &before, i) });
            }
            let end = if i + 1 == messages.len() {
                text.len()
            } else {
                end_of_turn(&text, &template.render_values(&values[..=i], false)?, eos).ok_or_else(|| rewritten(i))?
            };
            if end < before.len() || turns.last().is_some_and(|turn: &Range<usize>| turn.end > before.len()) {
                return Err(rewritten(i));
            }
            // In full only the last answer is sure to be there: some templates leave out what earlier ones thought.
            if i + 1 == messages.len() && is_left_out(&message.content, &text[before.len()..end]) {
                return Err(left_out(i));
            }
            turns.push(before.len()..end);
        }
        let ends_with_answer = messages.last().is_some_and(|message| message.role == Role::Assistant);
        Ok(Self { text, turns, ends_with_answer })
    }
}

/// Where a turn ends in `text`, given the rendering that stops after it. Some templates close a whole conversation with the
/// EOS token, which is not there when more turns follow.
fn end_of_turn(text: &str, through: &str, eos: Option<&str>) -> Option<usize> {
    if text.starts_with(through) {
        return Some(through.len());
    }
    let open = through.strip_suffix(eos.filter(|eos| !eos.is_empty())?)?;
    text.starts_with(open).then_some(open.len())
}

/// Whether no word of an answer is in what the template made of it.
fn is_left_out(answer: &str, rendered: &str) -> bool {
    let mut words = answer.split_whitespace().peekable();
    words.peek().is_some() && !words.any(|word| rendered.contains(word))
}

fn left_out(i: usize) -> Error {
    Error::invalid(format!("the chat template leaves out the answer in turn {}: nothing of it would be learnt", i + 1))
        .with_help(
            "look at the base's chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json)",
        )
}

fn rewritten(i: usize) -> Error {
    Error::invalid(format!(
        "the chat template rewrites history: it renders the conversation up to turn {} in another way when more follows, \
         so where that answer lies cannot be told",
        i + 1
    ))
    .with_help("make one row of each answer: the turns before it, and the answer last")
}

fn other_opening(text: &str, before: &str, i: usize) -> Error {
    let same = text.bytes().zip(before.bytes()).take_while(|(a, b)| a == b).count();
    let same = before.floor_char_boundary(same);
    let show = |text: &str| format!("{:?}", text[same..].chars().take(40).collect::<String>());
    Error::invalid(format!(
        "the chat template's generation prompt is not how it begins the answer in turn {}: it asks with {}, the \
         conversation has {}",
        i + 1,
        show(before),
        show(text)
    ))
    .with_help("begin the answer's `content` with what the generation prompt opens, for example `<think>`")
}
