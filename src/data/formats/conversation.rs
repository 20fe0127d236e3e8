//! Turns of a conversation, as `chat` and `sharegpt` read them. Tools and their calls are in `tools`.

use super::fields::{self, Step};
use super::{Row, RowError, tools};
use crate::data::example::{Example, Message, Role};
use serde_json::{Map, Value};

/// The most turns of a conversation. Finding the answers renders every beginning of it, so the work grows with the square.
const MAX_TURNS: usize = 2048;

/// What a turn's speaker is called, and who it is.
const SPEAKERS: &[(&str, Role)] = &[
    ("system", Role::System),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
    ("developer", Role::System),
    ("human", Role::User),
    ("gpt", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("model", Role::Assistant),
    ("bot", Role::Assistant),
    (CALL, Role::Assistant),
    ("function", Role::Tool),
    ("function_response", Role::Tool),
    ("observation", Role::Tool),
];

/// The speaker of a turn that is a call of a tool, as JSON text.
const CALL: &str = "function_call";

/// Fields of a turn that say whether it is learnt.
const TRAIN: [&str; 3] = ["train", "training", "weight"];

/// The names of a turn's fields: speaker and text.
type Names = (&'static str, &'static str);

/// Reads the conversation in `field`, with the `tools` and the `system` text beside it.
pub fn read(row: Row<'_>, field: &'static str) -> Result<Example, RowError> {
    let turns = match row.get(field) {
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(row.wrong_type(field, "a list of turns", other)),
        None => return Err(row.missing(field)),
    };
    if turns.len() > MAX_TURNS {
        let message = format!("holds {} turns; at most {MAX_TURNS} are read", turns.len());
        return Err(row.error(field, message).with_help("split the conversation into several rows"));
    }
    let names = names(turns);
    let read = |(index, turn)| {
        read_turn(turn, names).map_err(|error| error.inside(index).inside(Step::Key(row.column(field))))
    };
    let mut messages = turns.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    let answers: Vec<_> = messages.iter().filter(|message| message.role == Role::Assistant).collect();
    if answers.is_empty() {
        return Err(row
            .error(field, "holds no turn of the assistant")
            .with_help("only the assistant's turns are learnt: add one, or remove the row"));
    }
    if answers.iter().all(|message| message.train == Some(false)) {
        return Err(row
            .error(field, "holds no turn of the assistant that is to be learnt")
            .with_help("all of them say `train: false` or `weight: 0`; remove the row"));
    }
    add_system(row, &mut messages)?;
    Ok(Example::Chat { messages, tools: tools::descriptions(row)?, template_kwargs: Map::new() })
}

/// The first turn says which names all turns of the row have.
fn names(turns: &[Value]) -> Names {
    let has = |key| turns.first().and_then(Value::as_object).is_some_and(|turn| turn.contains_key(key));
    if has("from") && !has("role") { ("from", "value") } else { ("role", "content") }
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

fn read_turn(turn: &Value, (speaker, text): Names) -> Result<Message, RowError> {
    let Value::Object(object) = turn else {
        let message = format!("a turn must be an object with `{speaker}` and `{text}`, got {}", fields::kind(turn));
        return Err(RowError::new([], message));
    };
    let turn = Row::new(object);
    let name = turn.text(speaker)?;
    let Some((name, role)) = SPEAKERS.iter().find(|(known, _)| *known == name) else {
        return Err(RowError::new([speaker.into()], format!("unknown role `{}`", fields::shown(name))).with_help(
            format!(
                "the roles are {}, and other names for them: {}",
                fields::list(SPEAKERS[..4].iter().map(|(name, _)| name), "and"),
                fields::list(SPEAKERS[4..].iter().map(|(name, _)| name), "and")
            ),
        ));
    };
    let calls = if *name == CALL { tools::calls_in_text(turn, text)? } else { tools::calls(turn, *role)? };
    let content = match turn.given(text) {
        Some(_) if *name == CALL => String::new(),
        None if !calls.is_empty() => String::new(),
        Some(Value::Array(parts)) => join(parts).map_err(|error| error.inside(text))?,
        _ => turn.text(text)?.to_string(),
    };
    if *role == Role::Assistant && calls.is_empty() && content.trim().is_empty() {
        return Err(turn.empty(text));
    }
    let mut message = Message::new(*role, content);
    message.train = train(turn, *role)?;
    message.extra = extra(object, &[speaker, text]);
    if let Some(parts @ Value::Array(_)) = turn.given(text) {
        // The list as it is, for templates that walk over it; the others get the text.
        message.extra.insert("content".to_string(), parts.clone());
    }
    if !calls.is_empty() {
        if *name == CALL || turn.given(text).is_none() {
            // Some templates tell a turn without words from one with empty ones.
            message.extra.insert("content".to_string(), Value::Null);
        }
        message.extra.insert("tool_calls".to_string(), Value::Array(calls));
    }
    Ok(message)
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
            "text" => part.text("text"),
            other => Err(part
                .error("type", format!("is `{}`, and only `text` is supported", fields::shown(other)))
                .with_help("models of images and sound are not trained; remove the row")),
        };
        joined.push(read().map_err(|error| error.inside(index))?);
    }
    Ok(joined.join("\n"))
}

/// Whether a turn says that it is learnt.
fn train(turn: Row<'_>, role: Role) -> Result<Option<bool>, RowError> {
    let mut said: Option<(&str, bool)> = None;
    for key in TRAIN {
        let Some(value) = turn.given(key) else { continue };
        let train = match value {
            Value::Bool(train) if key != "weight" => *train,
            Value::Number(weight) if key == "weight" && weight.as_f64() == Some(0.0) => false,
            Value::Number(weight) if key == "weight" && weight.as_f64() == Some(1.0) => true,
            other => return Err(turn.wrong_type(key, if key == "weight" { "0 or 1" } else { "true or false" }, other)),
        };
        if role != Role::Assistant {
            // A weight stands at every turn in some files; to other turns than the assistant's it says nothing.
            if train && key != "weight" {
                return Err(turn
                    .error(key, "is true, and only the assistant's turns are learnt")
                    .with_help("remove it here, or use the format `template` with `completion`"));
            }
            continue;
        }
        match said {
            Some((other, before)) if before != train => {
                return Err(turn.error(key, format!("contradicts `{other}`")).with_help("keep one of the two"));
            }
            _ => said = Some((key, train)),
        }
    }
    Ok(said.map(|(_, train)| train))
}

/// What else a turn holds, for the chat template. Templates ask whether a field is there, so what is null is left out.
fn extra(turn: &Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let known = |key: &str| {
        names.contains(&key) || TRAIN.contains(&key) || ["role", "content", "tool_calls", CALL].contains(&key)
    };
    let kept = turn.iter().filter(|(key, value)| !known(key) && !value.is_null());
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}
