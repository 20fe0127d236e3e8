//! Tools and their calls, brought into the shape that chat templates take them in.
//!
//! Templates are written against what Hugging Face documents: a tool is `{"type": "function", "function": {"name", …}}`, a
//! call `{"type": "function", "function": {"name", "arguments"}}` with `arguments` an object. Data files have the inner
//! object alone as often, and `arguments`, or the whole, as JSON text. Whether a template gets text or an object is decided
//! where it is rendered ([`forms`](crate::data::forms)).

use super::fields;
use super::{Row, RowError, nulls};
use crate::data::example::Role;
use serde_json::{Map, Value};
use std::borrow::Cow;

/// The row's `tools`: a list, or the JSON text of one.
pub fn descriptions(row: Row<'_>) -> Result<Vec<Value>, RowError> {
    let (tools, is_text) = list(row, "tools")?;
    // Nulls that a table put in; those of a text are its own.
    let tools: Vec<_> =
        tools.iter().map(|tool| if is_text { Cow::Borrowed(tool) } else { nulls::without(tool) }).collect();
    let read = |(index, tool): (usize, &Value)| match tool {
        Value::Object(tool) if tool.contains_key("name") && !tool.contains_key("function") => {
            Ok(wrap(Map::new(), tool.clone()))
        }
        Value::Object(_) => Ok(tool.clone()),
        other => Err(RowError::new([index.into()], format!("a tool must be an object, got {}", fields::kind(other)))),
    };
    let read: Result<Vec<_>, _> = tools.iter().map(AsRef::as_ref).enumerate().map(read).collect();
    read.map_err(|error| placed(error, row, "tools", is_text))
}

/// The `tool_calls` of a turn, or the one `function_call` that came before these.
pub fn calls(turn: Row<'_>, role: Role) -> Result<Vec<Value>, RowError> {
    let (mut key, (mut calls, mut is_text)) = ("tool_calls", list(turn, "tool_calls")?);
    if let Some(call) = turn.given("function_call").filter(|_| calls.is_empty()) {
        (key, calls, is_text) = ("function_call", Cow::Owned(vec![call.clone()]), true);
    }
    if !calls.is_empty() && role != Role::Assistant {
        return Err(turn.error(key, "stands in a turn of another role, and only the assistant calls tools"));
    }
    let read = |(index, value)| call(value).map_err(|error| error.inside(index));
    let read: Result<Vec<_>, _> = calls.iter().enumerate().map(read).collect();
    read.map_err(|error| placed(error, turn, key, is_text))
}

/// The calls that a turn's text is: the JSON text of a call, or of a list of calls.
pub fn calls_in_text(turn: Row<'_>, key: &'static str) -> Result<Vec<Value>, RowError> {
    let at = |error| placed(error, turn, key, true);
    let calls = match parse(turn, key, turn.some_text(key)?, "a call of a tool, `{\"name\": …, \"arguments\": {…}}`")?
    {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    if calls.is_empty() {
        return Err(turn.error(key, "holds no call of a tool"));
    }
    calls.iter().map(|value| call(value).map_err(at)).collect()
}

/// A call in the shape of the templates.
fn call(value: &Value) -> Result<Value, RowError> {
    let Value::Object(object) = value else {
        return Err(RowError::new([], format!("a call of a tool must be an object, got {}", fields::kind(value))));
    };
    let (outer, inner, nested) = if let Some(Value::Object(inner)) = object.get("function") {
        (object.clone(), inner, true)
    } else {
        let id = object.get("id").map(|id| ("id".to_string(), id.clone()));
        (id.into_iter().collect(), object, false)
    };
    let at = |error: RowError| if nested { error.inside("function") } else { error };
    Row::new(inner).some_text("name").map_err(at)?;
    let arguments = arguments(Row::new(inner)).map_err(at)?;
    let mut inner = inner.clone();
    if !nested {
        inner.shift_remove("id");
        inner.shift_remove("type");
    }
    if !object_has_arguments(&inner) {
        // Under the other name a template would not find them.
        inner.shift_remove("parameters");
    }
    inner.insert("arguments".to_string(), arguments);
    Ok(wrap(outer, inner))
}

fn object_has_arguments(function: &Map<String, Value>) -> bool {
    function.get("arguments").is_some_and(|arguments| !arguments.is_null())
}

/// A call's `arguments` as the row has them, an object or text; an empty object where there are none. Llama 3 writes calls with
/// `parameters`.
fn arguments(function: Row<'_>) -> Result<Value, RowError> {
    let key = if function.given("arguments").is_some() { "arguments" } else { "parameters" };
    match function.given(key) {
        None => Ok(Value::Object(Map::new())),
        Some(given @ (Value::String(_) | Value::Object(_))) => Ok(given.clone()),
        Some(other) => Err(function.wrong_type(key, "an object, or the JSON text of one", other)),
    }
}

/// `function` inside what surrounds it, `type` first unless it is there already.
fn wrap(mut outer: Map<String, Value>, function: Map<String, Value>) -> Value {
    outer.retain(|_, value| !value.is_null());
    if !outer.contains_key("type") {
        outer.insert("type".to_string(), Value::from("function"));
    }
    outer.insert("function".to_string(), Value::Object(function));
    Value::Object(outer)
}

/// A list, maybe as JSON text, and whether it is text; empty where there is none.
pub(super) fn list<'a>(row: Row<'a>, key: &'static str) -> Result<(Cow<'a, [Value]>, bool), RowError> {
    let expected = "a list, or the JSON text of one";
    match row.given(key) {
        None => Ok((Cow::Owned(Vec::new()), false)),
        Some(Value::Array(list)) => Ok((Cow::Borrowed(list), false)),
        Some(Value::Object(none)) if none.is_empty() => Ok((Cow::Owned(Vec::new()), false)),
        Some(Value::String(text)) if text.trim().is_empty() => Ok((Cow::Owned(Vec::new()), true)),
        Some(Value::String(text)) => match parse(row, key, text, "a list")? {
            Value::Array(list) => Ok((Cow::Owned(list), true)),
            Value::Null => Ok((Cow::Owned(Vec::new()), true)),
            other => Err(row.wrong_type(key, expected, &other)),
        },
        Some(other) => Err(row.wrong_type(key, expected, other)),
    }
}

fn parse(row: Row<'_>, key: &'static str, text: &str, expected: &str) -> Result<Value, RowError> {
    serde_json::from_str(text).map_err(|error| {
        row.error(key, format!("must be {expected}, and its text is not JSON: {error}"))
            .with_help("text of Python's (`{'a': None}`) is not JSON; `json.dumps` writes it")
    })
}

/// An error inside the value at `key`: within JSON text there is no place to point at.
fn placed(mut error: RowError, row: Row<'_>, key: &'static str, is_text: bool) -> RowError {
    if is_text {
        error.path.clear();
    }
    error.inside(fields::Step::Key(row.column(key)))
}
