//! Where the assistant's turns lie in a rendered conversation. It does not tokenize.
//!
//! A template with `{% generation %}` blocks says it itself. Otherwise a turn is found by rendering what comes before it,
//! with the generation prompt, and what goes up to its end, without: both must be beginnings of the whole rendering. Where
//! the template renders what came before in another way once more follows (Qwen3 leaves out what earlier answers thought),
//! the same two are held against the whole from the end of a message on, and where that is tells a change of the message:
//! what is the same behind the change lies behind the message. Where nothing comes before the answer, or the template does
//! not render it, or it asks with an opened thought that the answer does not have, a change of the answer tells where the
//! answer's own text begins, and the generation prompt of another place what belongs to the header before it. Text is never
//! searched for alone, so an answer that quotes the template's own marks cannot shift a border.

mod changes;
mod opening;

use super::example::{Message, Role};
use super::forms;
use super::template::{ChatTemplate, Scope};
use crate::error::{Error, Result};
use changes::{all_beginning_with, beginning_with, calls, ending_with, is_left_out};
use minijinja::Value;
use opening::Start;
use serde_json::{Map, Value as Json};
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
    /// What the generation prompt has behind the header of an answer that is learnt, where the answer does not begin with it:
    /// mostly an opened thought, `<think>\n`.
    pub asked_otherwise: Option<String>,
    /// Whether the last answer has thoughts, and the template leaves them out.
    pub thoughts_left_out: bool,
    /// The messages as the template takes them.
    values: Vec<Value>,
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
        template_kwargs: &Map<String, Json>,
        eos: Option<&str>,
        learnt: &[bool],
    ) -> Result<Self> {
        let scope = Scope::new(tools, template_kwargs);
        let (messages, text) = forms::fitting(template, messages, &scope)?;
        let messages = messages.as_ref();
        let values: Vec<Value> = messages.iter().map(ChatTemplate::value).collect();
        let finder = Finder { template, messages, values, scope, eos, text };
        let ends_with_answer = learnt.last().is_some_and(|learnt| *learnt);
        let thoughts = messages.last().filter(|_| ends_with_answer).and_then(changes::thoughts);
        let thoughts_left_out = thoughts.is_some_and(|thoughts| !finder.text.contains(thoughts));
        let wanted: Vec<usize> = (0..messages.len()).filter(|&i| learnt[i]).collect();
        if let Some(turns) = finder.marked(&wanted)? {
            let Finder { text, values, .. } = finder;
            let asked_otherwise = None;
            return Ok(Self {
                text,
                turns,
                marked: true,
                ends_with_answer,
                asked_otherwise,
                thoughts_left_out,
                values,
            });
        }
        let mut turns: Vec<Range<usize>> = Vec::with_capacity(wanted.len());
        let mut asked_otherwise = None;
        for i in wanted {
            let (turn, more) = finder.turn(i)?;
            if turns.last().is_some_and(|last| last.end > turn.start) {
                return Err(rewritten(i));
            }
            turns.push(turn);
            // Answers in the history may be without thoughts by the template's design: the last one decides.
            asked_otherwise = more;
        }
        let Finder { text, values, .. } = finder;
        Ok(Self { text, turns, marked: false, ends_with_answer, asked_otherwise, thoughts_left_out, values })
    }

    /// The same conversation without tools; `None` where the template refuses it.
    pub fn without_tools(&self, template: &ChatTemplate, template_kwargs: &Map<String, Json>) -> Option<String> {
        template.render_values(&self.values, &Scope::new(&[], template_kwargs), false).ok()
    }
}

/// A conversation, and what it takes to render parts of it.
struct Finder<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Message],
    values: Vec<Value>,
    scope: Scope,
    eos: Option<&'a str>,
    text: String,
}

impl Finder<'_> {
    /// The first `count` messages as text.
    fn first(&self, count: usize, prompt: bool) -> Result<String> {
        self.template.render_values(&self.values[..count], &self.scope, prompt)
    }

    /// The pieces that the template marks as the answers `wanted`.
    fn marked(&self, wanted: &[usize]) -> Result<Option<Vec<Range<usize>>>> {
        let Some(pieces) = self.template.answers(&self.values, &self.scope, &self.text)? else { return Ok(None) };
        let answers: Vec<usize> =
            (0..self.messages.len()).filter(|&i| self.messages[i].role == Role::Assistant).collect();
        if answers.len() == wanted.len() {
            return Ok(Some(pieces));
        }
        // Whose pieces they are is told by how many there are when the conversation stops at an answer.
        let (mut kept, mut done) = (Vec::new(), 0);
        for &i in &answers {
            let text = self.first(i + 1, false)?;
            let through = self.template.answers(&self.values[..=i], &self.scope, &text)?.map_or(0, |found| found.len());
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

    /// Where the answer `i` lies, and what the generation prompt has more.
    fn turn(&self, i: usize) -> Result<(Range<usize>, Option<String>)> {
        let is_last = i + 1 == self.messages.len();
        let Start { at: start, more } = self.start(i)?;
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
        Ok((start..end, more))
    }

    /// Where what the template puts after the answer `i` ends.
    fn end(&self, i: usize) -> Result<usize> {
        let through = self.first(i + 1, false);
        if let Ok(through) = &through {
            if let Some(end) = end_of_turn(&self.text, through, self.eos) {
                return Ok(end);
            }
            if let Some(whole) = self.tail(i, self.values.len(), false, &self.text)
                && let Some(alone) = self.tail(i, i + 1, false, through)
                && let Some(end) = end_of_turn(whole, alone, self.eos)
            {
                return Ok(self.text.len() - whole.len() + end);
            }
        }
        // As the last answer ends, where the conversation cannot be cut here.
        if let Some(last) = self.values.len().checked_sub(1).filter(|&last| self.messages[last].role == Role::Assistant)
            && let Some(whole) = self.tail(i, self.values.len(), false, &self.text)
            && let Some(closing) = self.tail(last, self.values.len(), false, &self.text)
            && let Some(end) = end_of_turn(whole, closing, self.eos).filter(|&end| end > 0)
        {
            return Ok(self.text.len() - whole.len() + end);
        }
        // Before the mark that begins the next turn's header, where the last turn ends in another way than earlier ones.
        if let Some(end) = self.next_header(i) {
            return Ok(end);
        }
        through.and_then(|_| Err(rewritten(i)))
    }

    /// Where the header of the turn after the answer `i` begins: of what the template writes between the two turns' own texts,
    /// the only place with the mark that headers begin with.
    fn next_header(&self, i: usize) -> Option<usize> {
        let prompt = self.prompt(i)?;
        let asked = prompt.starts_with('<').then(|| prompt.find('>').map(|end| &prompt[..=end])).flatten();
        let mark = asked.or_else(|| self.mark(i))?;
        let from = self.text.len() - self.tail(i, self.values.len(), false, &self.text)?.len();
        let to = self.front(i + 1, all_beginning_with).filter(|&to| to >= from)?;
        let between = self.text.get(from..to)?;
        let at = between.find(mark)?;
        (between.matches(mark).count() == 1 && at > 0).then_some(from + at)
    }

    /// What follows message `i` in `rendered`, which is the first `count` messages: what is the same however it ends.
    fn tail<'t>(&self, i: usize, count: usize, prompt: bool, rendered: &'t str) -> Option<&'t str> {
        let [one, other] = self.variants(i, count, prompt, ending_with)?;
        let same = one.bytes().rev().zip(other.bytes().rev()).take_while(|(a, b)| a == b).count();
        let tail = one.get(one.len() - same..).filter(|_| one != other)?;
        rendered.ends_with(tail).then(|| &rendered[rendered.len() - tail.len()..])
    }

    /// Where what `change` changes of message `i` begins: what is the same however that begins.
    fn front(&self, i: usize, change: fn(&Message, char) -> Message) -> Option<usize> {
        let [one, other] = self.variants(i, self.values.len(), false, change)?;
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
            *text = self.template.render_values(&values, &self.scope, prompt).ok()?;
        }
        Some(rendered)
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

fn left_out(i: usize, what: &str) -> Error {
    Error::invalid(format!("the chat template leaves out {what} in turn {}: nothing of it would be learnt", i + 1))
        .with_help("name a template that writes it: `data.chat_template` takes a name or a Jinja file")
}

fn rewritten(i: usize) -> Error {
    Error::invalid(format!(
        "the chat template rewrites history: it renders the conversation up to turn {} in another way when more follows, \
         so where that answer lies cannot be told",
        i + 1
    ))
    .with_help(
        "make one row of each answer: the turns before it, and the answer last; or put `{% generation %}` marks around \
         answers in a copy of the template, and name it by `data.chat_template`",
    )
}
