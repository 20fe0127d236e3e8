//! A turn of a conversation: who speaks, what is said and called, and whether it is learnt.

use super::fields;
use super::{Row, RowError, learning, nulls, tools};
use crate::data::example::{Message, Role};
use crate::data::template::REASONING;
use serde_json::{Map, Value};

/// Fields of a turn that the recipe's `data.fields` may name: speaker and text under two names each, then others.
pub const FIELDS: &[&str] =
    &["role", "content", "from", "value", "train", "tool_calls", "tool_call_id", "name", "reasoning_content"];

/// The call of a tool that a turn had before there were lists of them.
const CALL: &str = "function_call";

/// The names of a turn's fields: speaker and text.
pub(super) type Names = (&'static str, &'static str);

/// The names that the recipe's `fields` speak of, else those that the first turn has; they hold for all turns of the row.
pub(super) fn names(row: Row<'_>, first: Option<&Value>) -> Names {
    let named = |field: &str| row.columns().contains_key(field);
    let turn = first.and_then(Value::as_object);
    // A table with turns of both kinds has all four columns; those of the other kind are null.
    let has = |key| turn.and_then(|turn| turn.get(key)).is_some_and(|value| !value.is_null());
    let from = has("from") && !has("role");
    let speaker = if named("role") || !named("from") && !from { "role" } else { "from" };
    let value = if named("role") || named("from") { has("value") && !has("content") } else { from };
    let text = if named("content") || !named("value") && !value { "content" } else { "value" };
    (speaker, text)
}

/// Reads a turn; also whether its speaker's name says that it is a call.
pub(super) fn read(row: Row<'_>, turn: &Value, (speaker, text): Names) -> Result<(Message, bool), RowError> {
    let Value::Object(object) = turn else {
        let message = format!("a turn must be an object with `{speaker}` and `{text}`, got {}", fields::kind(turn));
        return Err(RowError::new([], message));
    };
    let object = nulls::within(object);
    let turn = row.inner(&object);
    let name = match turn.get(speaker) {
        None => return Err(nameless(turn, speaker)),
        Some(_) => turn.text(speaker)?,
    };
    let who = row.roles().speaker(name).map_err(|error| error.inside(fields::Step::Key(turn.column(speaker))))?;
    let calls = if who.calls { tools::calls_in_text(turn, text)? } else { tools::calls(turn, who.role)? };
    let content = match turn.given(text) {
        Some(_) if who.calls => String::new(),
        None if !calls.is_empty() => String::new(),
        // An answer that a table left out is an empty one.
        None if who.role == Role::Assistant && turn.get(text).is_some() => String::new(),
        Some(Value::Array(parts)) => join(parts).map_err(|error| error.inside(fields::Step::Key(turn.column(text))))?,
        _ => turn.text(text)?.to_string(),
    };
    let mut message = Message::new(who.role, content);
    message.train = learning::of(turn, who.role)?;
    message.extra = extra(turn, &[speaker, text])?;
    if let Some(parts @ Value::Array(_)) = turn.given(text) {
        // The list as it is, for templates that walk over it; the others get the text.
        message.extra.insert("content".to_string(), parts.clone());
    }
    if who.keeps_name {
        message.extra.insert("role".to_string(), Value::from(name));
    } else if name != who.role.as_str() && !who.calls {
        message.called = Some(name.to_string());
    }
    if !calls.is_empty() {
        if who.calls || turn.given(text).is_none() {
            // Some templates tell a turn without words from one with empty ones.
            message.extra.insert("content".to_string(), Value::Null);
        }
        message.extra.insert("tool_calls".to_string(), Value::Array(calls));
    }
    Ok((message, who.calls))
}

/// Adds the calls of a turn to those of the one before, and its thoughts to that one's. What cannot be joined comes back, and is
/// a turn of its own.
pub(super) fn add_calls(message: &mut Message, mut next: Message) -> Option<Message> {
    // Tables have an empty text where a turn has none.
    let is_said = |value: &Value| value.as_str().is_none_or(|text| !text.trim().is_empty());
    let thoughts = |message: &Message| REASONING.into_iter().find(|key| message.extra.get(*key).is_some_and(is_said));
    match (thoughts(message), thoughts(&next)) {
        (Some(own), Some(key)) => match (message.extra.get_mut(own), next.extra.get(key)) {
            (Some(Value::String(own)), Some(Value::String(more))) if own != more => {
                *own += "\n\n";
                *own += more;
            }
            (Some(own), Some(more)) if own == more => {}
            _ => return Some(next),
        },
        (None, Some(key)) => message.extra.extend(next.extra.shift_remove_entry(key)),
        (_, None) => {}
    }
    if thoughts(message).is_some() {
        next.extra.retain(|key, _| !REASONING.contains(&key.as_str()));
    }
    let more = next.extra.shift_remove("tool_calls");
    if let (Some(Value::Array(calls)), Some(Value::Array(more))) = (message.extra.get_mut("tool_calls"), more) {
        calls.extend(more);
    }
    // Of other fields, those that the first turn does not have.
    for (key, value) in next.extra {
        message.extra.entry(key).or_insert(value);
    }
    None
}

/// The error of a turn without a speaker.
fn nameless(turn: Row<'_>, speaker: &'static str) -> RowError {
    let error = turn.missing(speaker);
    if turn.columns().contains_key(speaker) {
        return error;
    }
    let found = turn.object().iter().find(|(_, value)| value.is_string()).map_or("NAME", |(key, _)| key);
    error.with_help(format!(
        "where turns have other names for `role` and `content`, say so: `data.fields: {{role: {}, content: …}}`",
        fields::shown(found)
    ))
}

/// The texts of a `content` that is a list of parts, a line each, as vLLM joins them.
fn join(parts: &[Value]) -> Result<String, RowError> {
    let mut joined = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let Value::Object(object) = part else {
            let message =
                format!("a part of a turn must be an object with `type` and `text`, got {}", fields::kind(part));
            return Err(RowError::new([index.into()], message));
        };
        let part = Row::new(object);
        let read = || match part.text("type")? {
            // The last two are those of OpenAI's Responses.
            "text" | "input_text" | "output_text" => part.text("text"),
            other => {
                let help = match other {
                    "thinking" | "reasoning" => "thoughts stand beside `content`: `\"reasoning_content\": \"…\"`",
                    _ => "models of images and sound are not trained; remove the row",
                };
                let message = format!("is `{}`, and only `text` is supported", fields::shown(other));
                Err(part.error("type", message).with_help(help))
            }
        };
        joined.push(read().map_err(|error| error.inside(index))?);
    }
    Ok(joined.join("\n"))
}

/// What else a turn holds, for the chat template, under the names that templates have. Templates ask whether a field is
/// there, so what is null is left out.
fn extra(turn: Row<'_>, names: &[&str]) -> Result<Map<String, Value>, RowError> {
    let known = |key: &str| {
        names.contains(&key) || learning::is_known(key) || ["role", "content", "tool_calls", CALL].contains(&key)
    };
    let field = |key: &String| {
        let named = turn.columns().iter().find(|(field, column)| *column == key && FIELDS.contains(&field.as_str()));
        named.map_or_else(|| key.clone(), |(field, _)| field.clone())
    };
    learning::refuse_unknown(turn.object(), |key| known(&field(&key.to_string())))?;
    let all = turn.object().iter().map(|(key, value)| (field(key), value));
    if let Some((key, number)) = turn.object().iter().find_map(|(key, value)| Some((key, fields::inexact(value)?))) {
        let message = format!("`{}` holds {number}, which is past 64 bits and not read exactly", fields::shown(key));
        return Err(RowError::new([key.clone().into()], message).with_help("write it as text, in quotes"));
    }
    let kept = all.filter(|(key, value)| !known(key) && !value.is_null());
    Ok(kept.map(|(key, value)| (key, value.clone())).collect())
}
