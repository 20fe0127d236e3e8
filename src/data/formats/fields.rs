//! A row as its format sees it, and errors that know which value of it they speak of.

use super::rendering::Templates;
use super::roles::Roles;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

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
    /// Whether nothing is wrong with the row but that there is nothing in it to learn.
    pub teaches_nothing: bool,
}

impl RowError {
    /// An error at `path`.
    pub fn new(path: impl IntoIterator<Item = Step>, message: impl Into<String>) -> Self {
        Self { path: path.into_iter().collect(), message: message.into(), help: None, teaches_nothing: false }
    }

    /// The same error, of a row that is read, and in which there is nothing to learn.
    #[must_use]
    pub const fn of_nothing(mut self) -> Self {
        self.teaches_nothing = true;
        self
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

/// What to do about a file of columns in place of rows.
pub(super) const PANDAS_HELP: &str = "write rows: `DataFrame.to_json(\"rows.jsonl\", orient=\"records\", lines=True)`";

static AS_NAMED: BTreeMap<String, String> = BTreeMap::new();
static AS_KNOWN: LazyLock<Roles> = LazyLock::new(Roles::default);

/// A row, or an object inside one: its fields under the format's names, whatever the file calls them.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    object: &'a Map<String, Value>,
    columns: &'a BTreeMap<String, String>,
    templates: Option<&'a Templates>,
    roles: &'a Roles,
}

impl<'a> Row<'a> {
    /// An object whose fields have the format's names.
    pub fn new(object: &'a Map<String, Value>) -> Self {
        Self { object, columns: &AS_NAMED, templates: None, roles: &AS_KNOWN }
    }

    /// A row under the recipe's `fields` (the format's name, the row's), `template` and `roles`.
    pub(super) const fn with(
        object: &'a Map<String, Value>,
        columns: &'a BTreeMap<String, String>,
        templates: Option<&'a Templates>,
        roles: &'a Roles,
    ) -> Self {
        Self { object, columns, templates, roles }
    }

    /// An object inside of this row, whose fields may have other names too.
    pub(super) const fn inner<'b>(&self, object: &'b Map<String, Value>) -> Row<'b>
    where
        'a: 'b,
    {
        Row { object, columns: self.columns, templates: None, roles: self.roles }
    }

    /// The recipe's `roles`.
    pub(super) const fn roles(&self) -> &'a Roles {
        self.roles
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

    /// The text of a field that is to be learnt: a row without any teaches nothing.
    ///
    /// # Errors
    /// When it is missing, no text, or blank.
    pub fn answer(&self, field: &'static str) -> Result<&'a str, RowError> {
        if self.get(field).is_some_and(Value::is_null) {
            return Err(self.empty(field).of_nothing());
        }
        let text = self.text(field)?;
        if text.trim().is_empty() { Err(self.empty(field).of_nothing()) } else { Ok(text) }
    }

    /// The text of a field; empty where it is missing or `null`.
    ///
    /// # Errors
    /// When it is not text.
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
            .with_help("all rows of a file must have the same format: fix this one, or remove it")
    }

    /// The field holds something of another kind.
    pub fn wrong_type(&self, field: &'static str, expected: &str, found: &Value) -> RowError {
        let error = self.error(field, format!("must be {expected}, got {}", kind(found)));
        if found.get("0").is_some() { error.with_help(PANDAS_HELP) } else { error }
    }

    fn named(&self, field: &str) -> String {
        match self.columns.get(field) {
            Some(column) if column != field => format!("`{}` (the format's `{field}`)", shown(column)),
            _ => format!("`{field}`"),
        }
    }
}

/// A number in a value that is a whole one past 64 bits, and so is not held exactly.
pub(super) fn inexact(value: &Value) -> Option<&serde_json::Number> {
    match value {
        Value::Number(number) => {
            let past = |value: f64| value.fract() == 0.0 && value.abs() >= 2f64.powi(63);
            number.as_f64().filter(|value| number.is_f64() && past(*value)).map(|_| number)
        }
        Value::Array(list) => list.iter().find_map(inexact),
        Value::Object(object) => object.values().find_map(inexact),
        _ => None,
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
