//! Where an answer begins: behind the generation prompt, or behind what header and generation prompt have in common.

use super::changes::all_beginning_with;
use super::{Finder, beginning_with, rewritten};
use crate::data::example::{Message, Role};
use crate::data::template::ChatTemplate;
use crate::error::{Error, Result};

/// The most bytes that are taken for literals between a header and the answer's own text, where nothing else tells.
const MOST_LITERALS: usize = 64;

/// The beginning of an answer.
pub(super) struct Start {
    /// The byte of the text.
    pub at: usize,
    /// What the generation prompt has behind the header that the answer does not begin with.
    pub more: Option<String>,
}

impl From<usize> for Start {
    fn from(at: usize) -> Self {
        Self { at, more: None }
    }
}

impl Finder<'_> {
    /// Where the generation prompt for the answer `i` ends.
    pub(super) fn start(&self, i: usize) -> Result<Start> {
        // Nobody renders a conversation of no messages: templates look at the first one.
        let before = (i > 0).then(|| self.first(i, true)).transpose();
        if let Ok(Some(before)) = &before {
            if self.text.starts_with(before) {
                return Ok(before.len().into());
            }
            if let Some(whole) = self.tail(i - 1, self.values.len(), false, &self.text)
                && let Some(asked) = self.tail(i - 1, i, true, before)
                && whole.starts_with(asked)
            {
                return Ok((self.text.len() - whole.len() + asked.len()).into());
            }
        }
        let found = self.behind_header(i).or_else(|| {
            let alone = self.first(i + 1, false).ok()?;
            let begins = before.as_ref().ok()?.as_ref().is_some_and(|before| alone.starts_with(before));
            self.front(i, beginning_with).filter(|_| begins).map(Start::from)
        });
        match (found, before) {
            (Some(start), _) => Ok(start),
            (None, Err(refused)) => Err(refused),
            (None, Ok(Some(before))) => match self.first(i + 1, false) {
                Ok(alone) if !alone.starts_with(&before) => Err(other_opening(&alone, &before, i)),
                _ => Err(rewritten(i)),
            },
            (None, Ok(None)) => Err(rewritten(i)),
        }
    }

    /// The answer's beginning by its own text and a generation prompt that is rendered elsewhere: the answer's own text begins
    /// where changes of it show, and what stands right before that must be the prompt, or a beginning of it.
    fn behind_header(&self, i: usize) -> Option<Start> {
        let own = self.front(i, all_beginning_with)?;
        let prompt = self.prompt(i)?;
        let header = &self.text[..own];
        if prompt.is_empty() {
            // The answer follows on what came before it; a space before it is the template's, and learnt.
            let turned = self.turned(i).unwrap_or(own);
            return Some(turned.min(own).into());
        }
        // Behind it there may be literals of the template before the answer's own text: an empty thought, the mark of a call.
        let turned = self.turned(i);
        let find = |asked: &str| {
            let at = header.rfind(asked).filter(|_| !asked.is_empty())?;
            let end = at + asked.len();
            // Where another speaker changes what is before, nothing but the distance tells.
            let is_header = turned.is_some_and(|turned| (at..end).contains(&turned));
            let is_near = turned.is_none_or(|turned| turned < at) && own - end <= MOST_LITERALS;
            (is_header || is_near).then_some(end)
        };
        // At the text's beginning a template may leave out the line ends that it puts between turns.
        if let Some(end) = find(&prompt).or_else(|| find(prompt.trim_start()).filter(|_| i == 0)) {
            return Some(end.into());
        }
        // A beginning of the prompt: it opens a thought that the answer does not have, or ends with white space.
        let thought = opened_thought(&prompt);
        if thought == Some(0) {
            // The header is the end of the turn before.
            let before = self.first(i, false).ok().filter(|before| i > 0 && self.text.starts_with(before))?;
            return (before.len() <= own).then_some(Start { at: before.len(), more: Some(prompt) });
        }
        let beginnings = [thought, Some(prompt.trim_end().len())];
        beginnings.into_iter().flatten().find_map(|length| {
            let at = find(&prompt[..length])?;
            Some(Start { at, more: Some(prompt[length..].to_string()) })
        })
    }

    /// The generation prompt, from wherever the template adds one.
    pub(super) fn prompt(&self, i: usize) -> Option<String> {
        let added = |values: &[minijinja::Value]| {
            let without = self.template.render_values(values, &self.scope, false).ok()?;
            let with = self.template.render_values(values, &self.scope, true).ok()?;
            // Some templates put EOS in the prompt's place.
            let open = self.eos.filter(|eos| !eos.is_empty()).and_then(|eos| without.strip_suffix(eos));
            with.strip_prefix(&without).or_else(|| with.strip_prefix(open?)).map(str::to_string)
        };
        let asks = |count: &usize| *count > 0 && self.messages[count - 1].role != Role::Assistant;
        let own = std::iter::once(i).chain((i + 1..=self.values.len()).rev()).filter(asks);
        own.map(|count| self.values[..count].to_vec())
            .chain(std::iter::once_with(|| {
                let mut values = self.values[..=i].to_vec();
                values.push(ChatTemplate::value(&Message::user("?")));
                values
            }))
            .find_map(|values| added(&values))
    }

    /// The mark that the header of turn `i` begins with: what stands in `<` and `>` right before who speaks.
    pub(super) fn mark(&self, i: usize) -> Option<&str> {
        let header = &self.text.get(..self.turned(i)?)?;
        let open = header.rfind('<')?;
        // The name of who speaks may be in a mark of its own.
        let header = if header[open..].contains('>') { header } else { &header[..open] };
        let open = header.rfind('<').filter(|_| header.ends_with('>'))?;
        Some(&header[open..])
    }

    /// The first byte that depends on who speaks in turn `i`; `None` where the template does not let another speak.
    fn turned(&self, i: usize) -> Option<usize> {
        let mut message = Message::user("?");
        message.content.clone_from(&self.messages[i].content);
        let mut values = self.values.clone();
        values[i] = ChatTemplate::value(&message);
        let other = self.template.render_values(&values, &self.scope, false).ok()?;
        let same = self.text.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        (same < self.text.len()).then_some(same)
    }
}

/// Where a thought is opened at the end of a generation prompt, and maybe closed again.
fn opened_thought(prompt: &str) -> Option<usize> {
    const OPENINGS: [&str; 8] = [
        "<think>",
        "</think>",
        "<thinking>",
        "<thought>",
        "<|channel>thought",
        "<|start_thinking|>",
        "<reasoning>",
        "[THINK]",
    ];
    let lower = prompt.to_ascii_lowercase();
    OPENINGS.iter().filter_map(|opening| lower.find(&opening.to_ascii_lowercase())).min()
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
    .with_help(
        "name another template by `data.chat_template`, or a copy of this one with `{% generation %}` marks around answers",
    )
}

#[cfg(test)]
mod tests {
    use super::opened_thought;

    #[test]
    fn a_thought_begins_at_its_mark() {
        assert_eq!(opened_thought("<|im_start|>assistant\n<think>\n"), Some(22));
        assert_eq!(opened_thought("<｜Assistant｜></think>"), Some("<｜Assistant｜>".len()));
        assert_eq!(opened_thought("<|im_start|>assistant\n"), None);
    }
}
