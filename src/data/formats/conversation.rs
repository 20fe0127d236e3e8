//! Conversations, as `chat`, `sharegpt` and `completion` read them: a list of turns, and what stands beside it. A turn is
//! read in `turn`, tools in `tools`.

use super::fields::Step;
use super::{Row, RowError, nulls, tools, turn};
use crate::data::example::{Example, Message, Role};
use serde_json::{Map, Value};

/// The most turns of a conversation. Finding the answers renders every beginning of it, so the work grows with the square.
const MAX_TURNS: usize = 2048;

/// Reads the conversation in `field`, with the `tools` and the `system` text beside it.
pub fn read(row: Row<'_>, field: &'static str) -> Result<Example, RowError> {
    let messages = turns(row, field)?;
    finish(row, field, messages)
}

/// A conversation of these turns, with the `tools` and the `system` text beside it. `field` has the turns that are learnt.
pub fn finish(row: Row<'_>, field: &'static str, mut messages: Vec<Message>) -> Result<Example, RowError> {
    let answers: Vec<_> = messages.iter().filter(|message| message.role == Role::Assistant).collect();
    if answers.is_empty() {
        return Err(row
            .error(field, "holds no turn of the assistant")
            .with_help("only the assistant's turns are learnt: add one, or remove the row"));
    }
    if answers.iter().all(|message| message.train == Some(false)) {
        let (why, help) = if answers.iter().any(|message| message.is_silent()) {
            (
                "holds no turn of the assistant that says anything",
                "an empty answer is not learnt; fill it in, or remove the row",
            )
        } else {
            (
                "holds no turn of the assistant that is to be learnt",
                "all of them say that they are not (`train: false`)",
            )
        };
        return Err(row.error(field, why).with_help(help).of_nothing());
    }
    add_system(row, &mut messages)?;
    Ok(Example::Chat { messages, tools: tools::descriptions(row)?, template_kwargs: template_kwargs(row)? })
}

/// The field with more variables for the chat template, as TRL has it.
const KWARGS: &str = "chat_template_kwargs";

/// The variables that a row sets: an object, or the JSON text of one. What is null is not set: tables have it so.
fn template_kwargs(row: Row<'_>) -> Result<Map<String, Value>, RowError> {
    let wrong = |found: &Value| row.wrong_type(KWARGS, "an object, or the JSON text of one", found);
    match row.given(KWARGS) {
        None => Ok(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(Map::new()),
        Some(text @ Value::String(json)) => serde_json::from_str(json).map_err(|_| wrong(text)),
        Some(given) => nulls::without(given).as_object().cloned().ok_or_else(|| wrong(given)),
    }
}

/// The turns in `field`. An answer that is empty is not learnt, unless it says that it is: it would teach to say nothing.
pub fn turns(row: Row<'_>, field: &'static str) -> Result<Vec<Message>, RowError> {
    let (turns, _) = match row.get(field) {
        Some(Value::Array(_)) => tools::list(row, field)?,
        // Tables have no lists: the JSON text of one.
        Some(Value::String(text)) if text.trim_start().starts_with('[') => tools::list(row, field)?,
        Some(other) => return Err(row.wrong_type(field, "a list of turns, or the JSON text of one", other)),
        None => return Err(row.missing(field)),
    };
    if turns.len() > MAX_TURNS {
        let message = format!("holds {} turns; at most {MAX_TURNS} are read", turns.len());
        return Err(row.error(field, message).with_help("split the conversation into several rows"));
    }
    let names = turn::names(row, turns.first());
    let mut messages: Vec<Message> = Vec::with_capacity(turns.len());
    let mut called = false;
    for (index, value) in turns.iter().enumerate() {
        let at = |error: RowError| error.inside(index).inside(Step::Key(row.column(field)));
        let (mut message, calls) = turn::read(row, value, names).map_err(at)?;
        if message.is_silent() && message.train.is_none() {
            message.train = Some(false);
        }
        match messages.last_mut() {
            // Calls that follow one another are one turn's: no template has an assistant that answers itself.
            Some(last) if calls && called && last.train == message.train => {
                let apart = turn::add_calls(last, message);
                messages.extend(apart);
            }
            _ => messages.push(message),
        }
        called = calls;
    }
    Ok(messages)
}

fn add_system(row: Row<'_>, messages: &mut Vec<Message>) -> Result<(), RowError> {
    let system = row.optional_text("system")?;
    if system.trim().is_empty() {
        return Ok(());
    }
    match messages.first() {
        Some(first) if first.role == Role::System && first.content == system => Ok(()),
        Some(first) if first.role == Role::System => Err(row
            .error("system", "is not what the first turn says, which is a system turn too")
            .with_help("keep one of the two")),
        _ => {
            messages.insert(0, Message::new(Role::System, system));
            Ok(())
        }
    }
}
