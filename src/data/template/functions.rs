//! What transformers gives to chat templates besides Jinja2 itself.

use super::{json, measure, python};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

/// How the detail of an error begins that `raise_exception` made.
pub const REFUSED: &str = "raise_exception: ";

/// A JSON value as a template sees it, keys in their order.
pub fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value))).collect::<Vec<_>>())
        }
    }
}

/// The most bytes of a text that a template makes.
pub const MAX_TEXT: usize = 64 << 20;

/// The widest field of a format, and the most digits behind its point.
pub const MAX_WIDTH: usize = 4096;

/// The longest template; published ones have some thousand bytes.
pub const MAX_SOURCE: usize = 128 << 10;
/// Room for a parser that calls itself for each operator of the longest template. What is not used takes no memory.
const STACK: usize = 256 << 20;

/// Adds a template to an environment. The parser follows some chains of operators without a bound, so it gets a stack that the
/// longest of them does not fill: a base's template must not end the process.
///
/// # Errors
/// When the template is no valid Jinja2, or too long.
pub fn add(environment: &mut Environment<'static>, name: &'static str, source: String) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(Error::new(
            ErrorKind::SyntaxError,
            format!("it has {} bytes; at most {MAX_SOURCE} are read", source.len()),
        ));
    }
    let mut outcome = None;
    std::thread::scope(|scope| {
        let work = || environment.add_template_owned(name, source.clone());
        if let Ok(thread) = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work) {
            let failed = || Error::new(ErrorKind::SyntaxError, "its parser fails");
            outcome = Some(thread.join().unwrap_or_else(|_| Err(failed())));
        }
    });
    // Where there is no room for such a stack, any template but a hostile one does with less.
    outcome.unwrap_or_else(|| environment.add_template_owned(name, source))
}

/// A rendered text, if it is not over [`MAX_TEXT`].
///
/// # Errors
/// When it is.
pub fn bounded(text: String) -> Result<String, Error> {
    if text.len() <= MAX_TEXT {
        return Ok(text);
    }
    Err(Error::new(ErrorKind::OutOfFuel, format!("it makes a text of {} bytes", text.len())))
}

/// `raise_exception(message)`.
pub fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
}

/// Prints a value as Python does.
pub fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if matches!(value.kind(), ValueKind::String | ValueKind::Undefined | ValueKind::Invalid) {
        return minijinja::escape_formatter(out, state, value);
    }
    out.write_str(&python::text(value)?).map_err(Error::from)
}

/// The error of what would make too long a text.
pub fn too_long(name: &str) -> Error {
    Error::new(ErrorKind::OutOfFuel, format!("`{name}` makes a text of more than {} MiB", MAX_TEXT >> 20))
}

/// Adds to a text, unless it gets longer than [`MAX_TEXT`].
///
/// # Errors
/// When it would.
pub fn push(out: &mut String, more: &str, name: &str) -> Result<(), Error> {
    if out.len().saturating_add(more.len()) > MAX_TEXT {
        return Err(too_long(name));
    }
    out.push_str(more);
    Ok(())
}

/// A value as `json.dumps(value, ensure_ascii=False)` writes it; nothing of what is no JSON.
pub fn json(value: &Value) -> String {
    json::dump(value).unwrap_or_default()
}

/// A value as Python's `repr` writes it.
pub fn repr(value: &Value) -> String {
    python::repr(value).unwrap_or_default()
}

/// The filter `string`.
pub fn string(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { python::text(value).map(Value::from) }
}

/// `dict(pairs or mapping, **more)`.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands over arguments by value")]
pub fn dict(state: &State, first: Option<Value>, more: Kwargs) -> Result<Value, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, "dict() takes a mapping, or pairs");
    // Of two pairs with one key the later one counts, in the earlier one's place.
    let mut pairs: Vec<(Value, Value)> = Vec::new();
    let mut insert = |key: Value, value: Value| python::count(state, pairs.len()).map(|()| pairs.push((key, value)));
    if let Some(first) = first {
        let is_mapping = first.kind() == ValueKind::Map;
        for entry in first.try_iter().map_err(|_| wrong())? {
            if is_mapping {
                let value = first.get_item(&entry)?;
                insert(entry, value)?;
                continue;
            }
            let pair: Vec<Value> = entry.try_iter().map_err(|_| wrong())?.collect();
            let [key, value] = <[Value; 2]>::try_from(pair).map_err(|_| wrong())?;
            insert(key, value)?;
        }
    }
    for name in more.args() {
        insert(Value::from(name), more.get::<Value>(name)?)?;
    }
    measure::measured(state, Value::from_pairs(pairs))
}

/// What a translated macro has behind its own arguments.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands over arguments by value")]
pub fn varargs(values: Rest<Value>) -> Value {
    let given = values.iter().rposition(|value| !value.is_undefined()).map_or(0, |last| last + 1);
    Value::from(Tuple::from(values[..given].to_vec()))
}
