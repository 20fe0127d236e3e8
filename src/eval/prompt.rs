//! Prompts: description, few-shot examples, question; as plain text or through a chat template.

use super::document::{Parts, Prepared};
use super::value;
use crate::data::{ChatTemplate, Message, Role};
use crate::error::{Error, Result};
use crate::text_scores::is_space;
use serde_json::{Map, Value};

/// How prompts are put together.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatSettings<'a> {
    /// Before the description, or the system's turn.
    pub system_instruction: Option<&'a str>,
    /// Prompts go through this chat template.
    pub template: Option<&'a ChatTemplate>,
    /// Under a chat template, whether each few-shot example is a turn of its own.
    pub multiturn: bool,
}

/// An example or the question: the user's text, the answer, and whether a prefix begins it.
struct Turn {
    text: String,
    answer: String,
}

fn ends_blank(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_space)
}

fn begins_blank(text: &str) -> bool {
    text.chars().next().is_some_and(is_space)
}

/// Two texts with `between`, unless one is empty or there is white space at the joint.
fn joined(first: &str, between: &str, second: &str) -> String {
    let needs = !first.is_empty() && !second.is_empty() && !ends_blank(first) && !begins_blank(second);
    format!("{first}{}{second}", if needs { between } else { "" })
}

impl Prepared {
    /// What stands before a document's continuations. `own`: the document as the task has it, which is no example for itself.
    pub(super) fn context(
        &self,
        (own, document): (&Map<String, Value>, &Map<String, Value>),
        parts: &Parts,
        chat: &ChatSettings<'_>,
    ) -> Result<String> {
        let delimiter = &self.config.fewshot_delimiter;
        let system = joined(chat.system_instruction.unwrap_or_default(), delimiter, &self.description(document)?);
        let examples: Vec<Turn> = self.examples(own).map(|example| self.example(example)).collect::<Result<_>>()?;
        let prefix = self.gen_prefix(document)?;
        match chat.template {
            None => Ok(self.plain(&system, &examples, &parts.text, prefix.as_deref())),
            Some(template) => {
                self.through(template, chat.multiturn, &system, &examples, (&parts.text, prefix.as_deref()))
            }
        }
    }

    /// What stands between a context and a continuation.
    pub(super) fn delimiter(&self, document: &Map<String, Value>, chat: &ChatSettings<'_>) -> Result<&str> {
        let prefix = self.gen_prefix(document)?.unwrap_or_default();
        let is_turn = chat.template.is_some() && (prefix.is_empty() || ends_blank(&prefix));
        Ok(if is_turn { "" } else { &self.config.target_delimiter })
    }

    fn example(&self, document: &Map<String, Value>) -> Result<Turn> {
        let parts = self.parts(document)?;
        let target = match &parts.target {
            Value::Array(targets) => targets.first().cloned().unwrap_or_default(),
            other => other.clone(),
        };
        let answer = match (&target, &parts.choices) {
            (Value::Number(index), Some(choices)) => {
                let choice = index.as_u64().and_then(|index| choices.get(index as usize));
                choice.cloned().ok_or_else(|| Error::invalid(format!("a few-shot example has no choice {index}")))?
            }
            (other, _) => value::text(other),
        };
        let prefix = self.gen_prefix(document)?.unwrap_or_default();
        Ok(Turn { text: parts.text, answer: joined(&prefix, " ", &answer) })
    }

    /// A document's question and its right answer as one text, as a few-shot example has them: without description and examples.
    ///
    /// # Errors
    /// Names the task and the document that cannot be asked about.
    pub fn question_and_answer(&self, id: usize) -> Result<String> {
        let document =
            self.documents.row(id).ok_or_else(|| Error::invalid("internal: a document that is not there"))?;
        let turn = self.example(document).map_err(|error| self.place(id, &error))?;
        Ok(self.plain("", &[turn], "", None))
    }

    fn plain(&self, system: &str, examples: &[Turn], text: &str, prefix: Option<&str>) -> String {
        let (delimiter, between) = (&self.config.target_delimiter, &self.config.fewshot_delimiter);
        let mut all = system.to_owned();
        for Turn { text, answer } in examples {
            all.push_str(text);
            if answer.is_empty() {
                continue;
            }
            // Before a prefix the delimiter is left out where there is white space already.
            let has_prefix = self.config.gen_prefix.is_some();
            if !has_prefix || (!text.is_empty() && !ends_blank(text) && !begins_blank(answer)) {
                all.push_str(delimiter);
            }
            all.push_str(answer);
            all.push_str(between);
        }
        all.push_str(&joined(text, delimiter, prefix.unwrap_or_default()));
        all
    }

    fn through(
        &self,
        template: &ChatTemplate,
        multiturn: bool,
        system: &str,
        examples: &[Turn],
        (text, prefix): (&str, Option<&str>),
    ) -> Result<String> {
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(Message::new(Role::System, system));
        }
        if multiturn {
            for Turn { text, answer } in examples {
                messages.extend([Message::user(text), Message::assistant(answer)]);
            }
            messages.push(Message::user(text));
        } else {
            messages.push(Message::user(self.plain("", examples, text, None)));
        }
        if let Some(prefix) = prefix {
            messages.push(Message::assistant(prefix));
        }
        let rendered = template.render(&messages, &[], prefix.is_none());
        let rendered = match rendered {
            Ok(rendered) => rendered,
            // Some templates know no system turn: lm-eval leaves it out then.
            Err(error) if system.is_empty() => return Err(error),
            Err(_) => template.render(&messages[1..], &[], prefix.is_none())?,
        };
        let Some(prefix) = prefix.map(str::trim).filter(|prefix| !prefix.is_empty()) else { return Ok(rendered) };
        // The assistant's turn goes on: what the template writes behind it is left out.
        match rendered.rfind(prefix) {
            Some(at) => Ok(rendered[..at + prefix.len()].to_owned()),
            None => Err(Error::invalid("the chat template leaves `gen_prefix` out")),
        }
    }
}
