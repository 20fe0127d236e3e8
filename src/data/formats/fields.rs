//! Reading the fields of a row, with errors that know which field they speak of.

use serde_json::{Map, Value};

/// A step on the way to a value inside a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into an object.
    Key(&'static str),
    /// Into a list.
    Index(usize),
}

impl From<&'static str> for Step {
    fn from(key: &'static str) -> Self {
        Self::Key(key)
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// What is wrong with a row, and at which of its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// The way to the offending value; empty for the row itself. It may name a value that is missing.
    pub path: Vec<Step>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl RowError {
    /// An error at `path`.
    pub fn new(path: impl IntoIterator<Item = Step>, message: impl Into<String>) -> Self {
        Self { path: path.into_iter().collect(), message: message.into(), help: None }
    }

    /// The same error with a line of help.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same error, its path seen from one step further out.
    #[must_use]
    pub fn inside(mut self, step: impl Into<Step>) -> Self {
        self.path.insert(0, step.into());
        self
    }
}

/// The text at `key`.
pub fn text<'a>(row: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, RowError> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong_type(key, "text", other)),
        None => Err(missing(row, key)),
    }
}

/// The text at `key`, which must hold more than white space.
pub fn some_text<'a>(row: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, RowError> {
    let text = text(row, key)?;
    if text.trim().is_empty() {
        return Err(RowError::new([key.into()], format!("`{key}` is empty")).with_help("fill it in, or remove the row"));
    }
    Ok(text)
}

/// The field is not there.
pub fn missing(row: &Map<String, Value>, key: &'static str) -> RowError {
    let found: Vec<_> = row.keys().take(20).map(|field| format!("`{}`", shown(field))).collect();
    let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
    RowError::new([key.into()], format!("`{key}` is missing; the fields here: {found}"))
        .with_help("all rows of a file must have the same format; mend this one, or remove it")
}

/// The field holds something of another kind.
pub fn wrong_type(key: &'static str, expected: &str, found: &Value) -> RowError {
    RowError::new([key.into()], format!("`{key}` must be {expected}, got {}", kind(found)))
}

/// A value's kind, for people.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) if number.is_f64() => format!("the number {number}"),
        Value::Number(number) => format!("the integer {number}"),
        Value::String(_) => "text".to_string(),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    }
}

/// A name from a data file, short enough for a message.
pub fn shown(name: &str) -> String {
    if name.chars().count() <= 60 { name.to_string() } else { name.chars().take(60).chain(['…']).collect() }
}
