//! The recipe's `template`, compiled: what makes text of a row's fields.

use super::fields::{self, Row, RowError};
use crate::data::config::RowTemplate;
use crate::data::example::{Example, Message, Role};
use crate::data::template::{functions, json, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, Output, State, UndefinedBehavior, Value};

/// Bounds the time and memory of one row's text: steps, and 64 bytes each of what is made on the way.
const FUEL: u64 = 4_000_000;

/// What of a [`RowTemplate`] is a turn, and what is plain text.
const TURNS: [&str; 3] = ["system", "user", "assistant"];
const PLAIN: [&str; 2] = ["prompt", "completion"];

/// A recipe's `template`, compiled.
///
/// The language is Jinja's (minijinja), set up as for chat templates: a block on a line of its own leaves no line, one newline
/// at the end is left out, `tojson` writes JSON as Python does, Python's methods of text work. What a row does not have is an
/// error where it is used, also as a condition: `is defined` and `default` are for fields that may be missing.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
    keys: Vec<&'static str>,
}

impl Templates {
    /// Compiles.
    ///
    /// # Errors
    /// The key (`user`, …; empty for the whole) and what is wrong with it.
    pub fn new(template: &RowTemplate) -> Result<Self, (&'static str, String)> {
        let mut environment = environment();
        let mut keys = Vec::new();
        for (key, source) in sources(template) {
            let Some(source) = source else { continue };
            functions::add(&mut environment, key, source.clone()).map_err(|error| {
                let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
                (key, format!("{line}{}", reason(&error)))
            })?;
            keys.push(key);
        }
        let has = |key| keys.contains(&key);
        if let (Some(turn), Some(plain)) =
            (TURNS.into_iter().find(|key| has(key)), PLAIN.into_iter().find(|key| has(key)))
        {
            let message =
                format!("`{turn}` is for a conversation and `{plain}` for plain text; a row becomes one of the two");
            return Err(("", message));
        }
        Ok(Self { environment, keys })
    }

    /// Whether there is a template for `key`.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(&key)
    }

    /// Whether a template reads this field of a row.
    pub fn reads(&self, field: &str) -> bool {
        let templates = self.keys.iter().filter_map(|key| self.environment.get_template(key).ok());
        let variables: Vec<_> = templates.map(|template| template.undeclared_variables(false)).collect();
        // `row` is all of them.
        variables.iter().any(|names| names.contains(field) || names.contains("row"))
    }

    /// Whether rows become plain text, not conversations.
    pub fn is_plain(&self) -> bool {
        PLAIN.iter().any(|key| self.has(key))
    }

    /// The text for `key`; `None` where it has no template.
    ///
    /// # Errors
    /// Names the key, its line, and the variable that the row does not have.
    pub fn render(&self, key: &'static str, row: Row<'_>, variables: &Value) -> Result<Option<String>, RowError> {
        if !self.has(key) {
            return Ok(None);
        }
        let template = self.environment.get_template(key).expect("`keys` holds the names of templates that were added");
        let text = template.render(variables).and_then(functions::bounded);
        text.map(Some).map_err(|error| describe(key, row, &error))
    }

    /// As [`Templates::render`]; the text must hold more than white space.
    ///
    /// # Errors
    /// As [`Templates::render`], and when the text is blank.
    pub fn render_some(&self, key: &'static str, row: Row<'_>, variables: &Value) -> Result<Option<String>, RowError> {
        let text = self.render(key, row, variables)?;
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            let error = RowError::new([], format!("`template.{key}` makes nothing of this row but white space"))
                .with_help("fix the row, remove it, or change the template");
            return Err(if ["assistant", "completion"].contains(&key) { error.of_nothing() } else { error });
        }
        Ok(text)
    }

    /// The plain text that a row becomes.
    ///
    /// # Errors
    /// As [`Templates::render_some`]; the prompt alone may be blank.
    pub fn completion(&self, row: Row<'_>, variables: &Value) -> Result<Example, RowError> {
        let prompt = self.render("prompt", row, variables)?.unwrap_or_default();
        let completion = self.render_some("completion", row, variables)?.unwrap_or_default();
        Ok(Example::Completion { prompt, completion })
    }

    /// The system turn, where it is not blank.
    ///
    /// # Errors
    /// As [`Templates::render`].
    pub fn system(&self, row: Row<'_>, variables: &Value) -> Result<Option<Message>, RowError> {
        let text = self.render("system", row, variables)?.filter(|text| !text.trim().is_empty());
        Ok(text.map(|text| Message::new(Role::System, text)))
    }
}

fn sources(template: &RowTemplate) -> [(&'static str, &Option<String>); 5] {
    [
        ("system", &template.system),
        ("user", &template.user),
        ("assistant", &template.assistant),
        ("prompt", &template.prompt),
        ("completion", &template.completion),
    ]
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the marks are Jinja's own"));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(print);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", json::tojson);
    // So that errors name the variable that is not there.
    environment.set_debug(true);
    environment
}

/// Prints a value as Python does; but what is null is not text, and would be learnt as the word `None`.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    if value.is_none() {
        let message = "a value that it prints is null; where one may be missing, write `{{ name or '' }}`";
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
    }
    functions::print(out, state, value)
}

/// A row's fields as a template's variables: under the row's names, under those of the recipe's `fields`, and all of them
/// in `row`, for names that are not words. `more` comes last and hides what has the same name.
pub fn variables(row: Row<'_>, more: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let own: Vec<(String, Value)> =
        row.object().iter().map(|(name, json)| (name.clone(), functions::from_json(json))).collect();
    let all = ("row".to_string(), Value::from_pairs(own.clone()));
    let named = row.columns().keys().filter_map(|field| Some((field.clone(), functions::from_json(row.get(field)?))));
    let more = more.into_iter().map(|(name, value)| (name.to_string(), value));
    Value::from_pairs(std::iter::once(all).chain(own).chain(named).chain(more))
}

fn reason(error: &minijinja::Error) -> String {
    error.detail().map_or_else(
        || error.kind().to_string(),
        |detail| match error.kind() {
            ErrorKind::UndefinedError | ErrorKind::SyntaxError => detail.to_string(),
            kind => format!("{kind}: {detail}"),
        },
    )
}

fn describe(key: &str, row: Row<'_>, error: &minijinja::Error) -> RowError {
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let reason = reason(error);
    match error.kind() {
        ErrorKind::OutOfFuel => {
            RowError::new([], format!("`template.{key}`{line}: the template does not come to an end with this row"))
                .with_help("the template loops, or the row is far too long for it")
        }
        _ if error.kind() == ErrorKind::UndefinedError || reason.contains("is undefined") => {
            let found = fields::names(row.object());
            RowError::new([], format!("`template.{key}`{line}: {reason}; the fields here: {found}")).with_help(
                "for what a row may lack: `{% if x is defined %}`, or `{{ x | default('') }}`; a name with spaces is \
                 `row['the name']`",
            )
        }
        _ => RowError::new([], format!("`template.{key}`{line}: {reason}")),
    }
}
