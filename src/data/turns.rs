//! Where the assistant's turns lie in a rendered conversation. It does not tokenize.
//!
//! A template with `{% generation %}` blocks says it itself. Otherwise a turn is found by rendering what comes before it,
//! with the generation prompt, and what goes up to its end, without: both must be beginnings of the whole rendering. Where
//! the template renders what came before in another way once more follows (Qwen3 leaves out what earlier answers thought),
//! the same two are held against the whole from the end of a message on, and where that is tells a change of the message:
//! what is the same behind the change lies behind the message. Text is never searched for, so an answer that quotes the
//! template's own marks cannot shift a border.

use super::example::{Message, Role};
use super::template::ChatTemplate;
use crate::error::{Error, Result};
use minijinja::Value;
use serde_json::Value as Json;
use std::ops::Range;

/// A conversation as text, and the bytes of it that are learnt: what the assistant wrote, and what the template puts after.
#[derive(Debug)]
pub struct Rendering {
    /// The whole conversation.
    pub text: String,
    /// The turns that are learnt, in order. A turn may be in several pieces where the template marks answers.
    pub turns: Vec<Range<usize>>,
    /// Whether the template itself marks the answers.
    pub marked: bool,
    /// Whether the last message is an answer that is learnt, so that the text ends with it.
    pub ends_with_answer: bool,
}

impl Rendering {
    /// Renders and finds the turns of which `learnt`, as long as `messages`, is true.
    ///
    /// # Errors
    /// When the template refuses the conversation, or renders a turn in a way that does not tell where it lies.
    pub fn new(
        template: &ChatTemplate,
        messages: &[Message],
        tools: &[Json],
        eos: Option<&str>,
        learnt: &[bool],
    ) -> Result<Self> {
        let values: Vec<Value> = messages.iter().map(ChatTemplate::value).collect();
        let tools = ChatTemplate::tools(tools);
        let text = template.render_values(&values, &tools, false)?;
        let finder = Finder { template, messages, values, tools, eos, text };
        let ends_with_answer = learnt.last().is_some_and(|learnt| *learnt);
        let wanted: Vec<usize> = (0..messages.len()).filter(|&i| learnt[i]).collect();
        if let Some(turns) = finder.marked(&wanted)? {
            return Ok(Self { text: finder.text, turns, marked: true, ends_with_answer });
        }
        let mut turns: Vec<Range<usize>> = Vec::with_capacity(wanted.len());
        for i in wanted {
            let turn = finder.turn(i)?;
            if turns.last().is_some_and(|last| last.end > turn.start) {
                return Err(rewritten(i));
            }
            turns.push(turn);
        }
        Ok(Self { text: finder.text, turns, marked: false, ends_with_answer })
    }
}

/// A conversation, and what it takes to render parts of it.
struct Finder<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    values: Vec<Value>,
    tools: Value,
    eos: Option<&'a str>,
    text: String,
}

impl Finder<'_> {
    /// The first `count` messages as text.
    fn first(&self, count: usize, prompt: bool) -> Result<String> {
        self.template.render_values(&self.values[..count], &self.tools, prompt)
    }

    /// The pieces that the template marks as the answers `wanted`.
    fn marked(&self, wanted: &[usize]) -> Result<Option<Vec<Range<usize>>>> {
        let Some(pieces) = self.template.answers(&self.values, &self.tools, &self.text)? else { return Ok(None) };
        let answers: Vec<usize> =
            (0..self.messages.len()).filter(|&i| self.messages[i].role == Role::Assistant).collect();
        if answers.len() == wanted.len() {
            return Ok(Some(pieces));
        }
        // Whose pieces they are is told by how many there are when the conversation stops at an answer.
        let (mut kept, mut done) = (Vec::new(), 0);
        for &i in &answers {
            let text = self.first(i + 1, false)?;
            let through = self.template.answers(&self.values[..=i], &self.tools, &text)?.map_or(0, |found| found.len());
            let own = pieces.get(done..through).ok_or_else(|| rewritten(i))?;
            if wanted.contains(&i) {
                kept.extend_from_slice(own);
            }
            done = through;
        }
        match answers.last() {
            Some(&last) if done != pieces.len() => Err(rewritten(last)),
            _ => Ok(Some(kept)),
        }
    }

    /// Where the answer `i` lies.
    fn turn(&self, i: usize) -> Result<Range<usize>> {
        let is_last = i + 1 == self.messages.len();
        let start = self.start(i)?;
        let end = if is_last { self.text.len() } else { self.end(i)? };
        if end < start || !self.text.is_char_boundary(start) || !self.text.is_char_boundary(end) {
            return Err(rewritten(i));
        }
        let (message, turn) = (&self.messages[i], &self.text[start..end]);
        if calls(message).any(|call| call["name"].as_str().is_some_and(|name| !turn.contains(name))) {
            return Err(left_out(i, "the call of a tool"));
        }
        // In full only the last answer is sure to be there: some templates leave out what earlier ones thought.
        if is_last && calls(message).next().is_none() && is_left_out(message, turn) {
            return Err(left_out(i, "the answer"));
        }
        Ok(start..end)
    }

    /// Where the generation prompt for the answer `i` ends.
    fn start(&self, i: usize) -> Result<usize> {
        let before = self.first(i, true)?;
        if self.text.starts_with(&before) {
            return Ok(before.len());
        }
        if let Some(last) = i.checked_sub(1)
            && let Some(whole) = self.tail(last, self.values.len(), false, &self.text)
            && let Some(asked) = self.tail(last, i, true, &before)
            && whole.starts_with(asked)
        {
            return Ok(self.text.len() - whole.len() + asked.len());
        }
        let alone = self.first(i + 1, false)?;
        if !alone.starts_with(&before) {
            return Err(other_opening(&alone, &before, i));
        }
        self.front(i).ok_or_else(|| rewritten(i))
    }

    /// Where what the template puts after the answer `i` ends.
    fn end(&self, i: usize) -> Result<usize> {
        let through = self.first(i + 1, false)?;
        if let Some(end) = end_of_turn(&self.text, &through, self.eos) {
            return Ok(end);
        }
        if let Some(whole) = self.tail(i, self.values.len(), false, &self.text)
            && let Some(alone) = self.tail(i, i + 1, false, &through)
            && let Some(end) = end_of_turn(whole, alone, self.eos)
        {
            return Ok(self.text.len() - whole.len() + end);
        }
        Err(rewritten(i))
    }

    /// What follows message `i` in `rendered`, which is the first `count` messages: what is the same however it ends.
    fn tail<'t>(&self, i: usize, count: usize, prompt: bool, rendered: &'t str) -> Option<&'t str> {
        let [one, other] = self.variants(i, count, prompt, ending_with)?;
        let same = one.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
        let tail = one.get(one.len() - same..).filter(|_| one != other)?;
        rendered.ends_with(tail).then(|| &rendered[rendered.len() - tail.len()..])
    }

    /// Where the content of message `i` begins: what is the same however it begins.
    fn front(&self, i: usize) -> Option<usize> {
        let [one, other] = self.variants(i, self.values.len(), false, beginning_with)?;
        let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        (one != other && one.get(..same).is_some_and(|front| self.text.starts_with(front))).then_some(same)
    }

    /// The first `count` messages as text, the one at `i` changed in two ways. `None` where the template refuses it.
    fn variants(
        &self,
        i: usize,
        count: usize,
        prompt: bool,
        change: fn(&Message, char) -> Message,
    ) -> Option<[String; 2]> {
        let mut values = self.values[..count].to_vec();
        let mut rendered = [String::new(), String::new()];
        for (text, letter) in rendered.iter_mut().zip(['a', 'b']) {
            values[i] = ChatTemplate::value(&change(&self.messages[i], letter));
            *text = self.template.render_values(&values, &self.tools, prompt).ok()?;
        }
        Some(rendered)
    }
}

/// The message with another end: of its content, and of its last call of a tool.
fn ending_with(message: &Message, letter: char) -> Message {
    let mut message = message.clone();
    let calls = message.extra.get_mut("tool_calls").and_then(Json::as_array_mut);
    let has_call = calls.and_then(|calls| calls.last_mut()).is_some_and(|call| {
        let call = if call.get("function").is_some() { &mut call["function"] } else { call };
        for key in ["name", "arguments"] {
            if let Some(value) = call.get_mut(key) {
                lengthen(value, letter);
            }
        }
        true
    });
    if let Some(content) = message.extra.get_mut("content").filter(|content| !content.is_null()) {
        lengthen(content, letter);
    } else if !(has_call && message.content.trim().is_empty()) {
        message.extra.shift_remove("content");
        message.content = format!("{}{letter}", message.content.trim_end());
    }
    message
}

/// Puts a letter at the end of every text in it but the kinds of a content's parts.
fn lengthen(value: &mut Json, letter: char) {
    match value {
        Json::String(text) => text.push(letter),
        Json::Array(items) => items.iter_mut().for_each(|item| lengthen(item, letter)),
        Json::Object(fields) => {
            fields.iter_mut().filter(|(key, _)| *key != "type").for_each(|(_, field)| lengthen(field, letter));
        }
        _ => {}
    }
}

/// The message with another beginning of its content, behind what it thinks.
fn beginning_with(message: &Message, letter: char) -> Message {
    let mut message = message.clone();
    message.extra.shift_remove("content");
    let (thoughts, answer) = message.content.split_at(message.content.rfind("</think>").map_or(0, |at| at + 8));
    message.content = format!("{thoughts}{letter}{}", answer.trim_start());
    message
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

/// The tools that a message calls: their names and arguments.
fn calls(message: &Message) -> impl Iterator<Item = &Json> {
    let calls = message.extra.get("tool_calls").and_then(Json::as_array);
    calls.into_iter().flatten().map(|call| call.get("function").unwrap_or(call))
}

/// Whether no word of an answer is in what the template made of it.
fn is_left_out(answer: &Message, rendered: &str) -> bool {
    let parts = answer.extra.get("content").and_then(Json::as_array).into_iter().flatten();
    let parts = parts.filter_map(|part| part["text"].as_str());
    let mut words = parts.chain([answer.content.as_str()]).flat_map(str::split_whitespace).peekable();
    words.peek().is_some() && !words.any(|word| rendered.contains(word))
}

fn left_out(i: usize, what: &str) -> Error {
    Error::invalid(format!("the chat template leaves out {what} in turn {}: nothing of it would be learnt", i + 1))
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
