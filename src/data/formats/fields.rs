//! A row as its format sees it, and errors that know which value of it they speak of.

use super::rendering::Templates;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A step on the way to a value inside a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into an object.
    Key(Cow<'static, str>),
    /// Into a list.
    Index(usize),
}

impl From<&'static str> for Step {
    fn from(key: &'static str) -> Self {
        Self::Key(Cow::Borrowed(key))
    }
}

impl From<String> for Step {
    fn from(key: String) -> Self {
        Self::Key(Cow::Owned(key))
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
    /// The way to the offending value, by the row's own names; empty for the row itself. It may name a value that is missing.
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

static AS_NAMED: BTreeMap<String, String> = BTreeMap::new();

/// A row, or an object inside one: its fields under the format's names, whatever the file calls them.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    object: &'a Map<String, Value>,
    columns: &'a BTreeMap<String, String>,
    templates: Option<&'a Templates>,
}

impl<'a> Row<'a> {
    /// An object whose fields have the format's names.
    pub fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, columns: &AS_NAMED, templates: None }
    }

    /// A row under the recipe's `fields` (the format's name, the row's) and `template`.
    pub(super) const fn with(
        object: &'a Map<String, Value>,
        columns: &'a BTreeMap<String, String>,
        templates: Option<&'a Templates>,
    ) -> Self {
        Self { object, columns, templates }
    }

    /// All fields under the row's own names.
    pub const fn object(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// The recipe's `fields`.
    pub(super) const fn columns(&self) -> &'a BTreeMap<String, String> {
        self.columns
    }

    /// The recipe's `template`.
    pub(super) const fn templates(&self) -> Option<&'a Templates> {
        self.templates
    }

    /// The row's own name of a field.
    pub fn column(&self, field: &'static str) -> Cow<'static, str> {
        self.columns.get(field).map_or(Cow::Borrowed(field), |column| Cow::Owned(column.clone()))
    }

    /// The value of a field.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(self.columns.get(field).map_or(field, String::as_str))
    }

    /// The value of a field; `None` where it is `null` too.
    pub fn given(&self, field: &str) -> Option<&'a Value> {
        self.get(field).filter(|value| !value.is_null())
    }

    /// The first of these fields that is given.
    pub fn first_given(&self, fields: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        fields.iter().find_map(|&field| Some((field, self.given(field)?)))
    }

    /// The text of a field.
    ///
    /// # Errors
    /// When it is missing or no text.
    pub fn text(&self, field: &'static str) -> Result<&'a str, RowError> {
        match self.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(self.wrong_type(field, "text", other)),
            None => Err(self.missing(field)),
        }
    }

    /// The text of a field, which must hold more than white space.
    ///
    /// # Errors
    /// When it is missing, no text, or blank.
    pub fn some_text(&self, field: &'static str) -> Result<&'a str, RowError> {
        let text = self.text(field)?;
        if text.trim().is_empty() {
            return Err(self.empty(field));
        }
        Ok(text)
    }

    /// The text of a field; empty where it is missing or `null`.
    ///
    /// # Errors
    /// When it is no text.
    pub fn optional_text(&self, field: &'static str) -> Result<&'a str, RowError> {
        self.given(field).map_or(Ok(""), |_| self.text(field))
    }

    /// Something is wrong with a field; the message begins with its name.
    pub fn error(&self, field: &'static str, message: impl AsRef<str>) -> RowError {
        RowError::new([Step::Key(self.column(field))], format!("{} {}", self.named(field), message.as_ref()))
    }

    /// The field holds nothing but white space.
    pub fn empty(&self, field: &'static str) -> RowError {
        self.error(field, "is empty").with_help("fill it in, or remove the row")
    }

    /// The field is not there.
    pub fn missing(&self, field: &'static str) -> RowError {
        self.error(field, format!("is missing; the fields here: {}", names(self.object)))
            .with_help("all rows of a file must have the same format; mend this one, or remove it")
    }

    /// The field holds something of another kind.
    pub fn wrong_type(&self, field: &'static str, expected: &str, found: &Value) -> RowError {
        self.error(field, format!("must be {expected}, got {}", kind(found)))
    }

    fn named(&self, field: &str) -> String {
        match self.columns.get(field) {
            Some(column) if column != field => format!("`{}` (the format's `{field}`)", shown(column)),
            _ => format!("`{field}`"),
        }
    }
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

/// The first fields of an object, for people.
pub fn names(object: &Map<String, Value>) -> String {
    let found: Vec<_> = object.keys().take(20).map(|field| format!("`{}`", shown(field))).collect();
    if found.is_empty() { "none".to_string() } else { found.join(", ") }
}

/// A name from a data file, short enough for a message.
pub fn shown(name: &str) -> String {
    if name.chars().count() <= 60 { name.to_string() } else { name.chars().take(60).chain(['…']).collect() }
}

/// Names in backquotes, with a word before the last.
pub fn list(names: impl IntoIterator<Item: AsRef<str>>, word: &str) -> String {
    let mut quoted: Vec<_> = names.into_iter().map(|name| format!("`{}`", shown(name.as_ref()))).collect();
    match (quoted.pop(), quoted.is_empty()) {
        (Some(last), true) => last,
        (Some(last), false) => format!("{} {word} {last}", quoted.join(", ")),
        (None, _) => String::new(),
    }
}
