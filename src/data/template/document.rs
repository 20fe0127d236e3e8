//! Templates of evaluation tasks: text from a document's fields, as lm-evaluation-harness renders it.
//!
//! Jinja2 with `StrictUndefined` and `keep_trailing_newline`, without trimmed blocks, and with the filter `regex_replace`.

use super::{filters, functions, json, python, translate};
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use onig::{Captures, Regex, RegexOptions, Syntax};
use serde_json::Map;

/// Bounds the time and memory of one document's text: steps, and 64 bytes each of what is made on the way.
const FUEL: u64 = 4_000_000;

/// The template's name in its environment.
const NAME: &str = "document";

/// A task's template, compiled.
#[derive(Debug)]
pub struct DocumentTemplate {
    environment: Environment<'static>,
}

impl DocumentTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is no valid Jinja2.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::invalid(format!("internal: {error}")))?);
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(python::method);
        environment.set_formatter(functions::print);
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        filters::add(&mut environment);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter("string", functions::string);
        environment.add_filter(super::expressions::PERCENT, super::percent::percent);
        environment.add_filter(super::expressions::MEASURED, super::measure::measured);
        environment.add_filter(super::expressions::OF_NAMESPACE, super::measure::of_namespace);
        environment.add_filter("regex_replace", regex_replace);
        environment.add_function("dict", functions::dict);
        environment.add_function("namespace", super::measure::namespace);
        let (translated, _) = translate::translate(source);
        functions::add(&mut environment, NAME, translated)
            .map_err(|error| Error::invalid(format!("is not a valid template: {}", reason(&error))))?;
        Ok(Self { environment })
    }

    /// The text of a document.
    ///
    /// # Errors
    /// Names the variable that the document does not have, or what else went wrong.
    pub fn render(&self, document: &Map<String, serde_json::Value>) -> Result<String> {
        let fields = document.iter().map(|(name, value)| (name.clone(), functions::from_json(value)));
        let variables: Value = Value::from_pairs(fields);
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(variables)).and_then(functions::bounded).map_err(|error| {
            let names: Vec<_> = document.keys().map(|name| format!("`{name}`")).collect();
            let what = reason(&error);
            let fields = if error.kind() == ErrorKind::UndefinedError || what.contains("undefined") {
                format!("; its fields are {}", names.join(", "))
            } else {
                String::new()
            };
            Error::invalid(format!("{what}{fields}"))
        })
    }
}

/// A value as Python's `str` writes it.
pub fn python_text(value: &serde_json::Value) -> String {
    python::text(&functions::from_json(value)).unwrap_or_default()
}

fn reason(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// Python's `re.sub(pattern, replacement, text, count)`, with `\1` and `\g<1>` in the replacement.
fn regex_replace(
    text: &str,
    pattern: &str,
    replacement: &str,
    count: Option<usize>,
) -> Result<String, minijinja::Error> {
    let regex = python_regex(pattern)
        .map_err(|what| minijinja::Error::new(ErrorKind::InvalidOperation, format!("regex_replace: {what}")))?;
    let mut left = count.filter(|&count| count > 0).unwrap_or(usize::MAX);
    let replaced = regex.replace_all(text, |found: &Captures<'_>| {
        if left == 0 {
            return found.at(0).unwrap_or_default().to_owned();
        }
        left -= 1;
        expand(replacement, found)
    });
    functions::bounded(replaced)
}

/// A pattern in the language of Python's `re`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn python_regex(pattern: &str) -> Result<Regex, String> {
    Regex::with_options(pattern, RegexOptions::REGEX_OPTION_NONE, Syntax::python())
        .map_err(|error| format!("`{pattern}` is not a valid pattern: {}", error.description()))
}

fn expand(replacement: &str, found: &Captures<'_>) -> String {
    let mut out = String::new();
    let mut rest = replacement;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let named = behind.strip_prefix("g<").and_then(|name| name.split_once('>'));
        if let Some((Ok(group), left)) = named.map(|(name, left)| (name.parse::<usize>(), left)) {
            out.push_str(found.at(group).unwrap_or_default());
            rest = left;
            continue;
        }
        let digits = behind.chars().take_while(char::is_ascii_digit).take(2).count();
        if digits > 0 {
            out.push_str(found.at(behind[..digits].parse().unwrap_or(0)).unwrap_or_default());
            rest = &behind[digits..];
            continue;
        }
        match behind.chars().next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some(other) => out.push(other),
            None => out.push('\\'),
        }
        rest = behind.chars().next().map_or("", |first| &behind[first.len_utf8()..]);
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, document: &serde_json::Value) -> Result<String> {
        DocumentTemplate::new(source)?.render(document.as_object().unwrap())
    }

    #[test]
    fn lines_and_ends_stay_and_lists_are_printed_as_python_does() {
        let document = serde_json::json!({"question": " Why? ", "choices": ["a", "it's"], "n": 3});
        assert_eq!(render("{{question.strip()}}\n", &document).unwrap(), "Why?\n");
        assert_eq!(render("{% if n %}\nx\n{% endif %}\n", &document).unwrap(), "\nx\n\n");
        assert_eq!(render("{{choices}}", &document).unwrap(), "['a', \"it's\"]");
        assert_eq!(render(r"{{ question | regex_replace('(W)h', '\\1H\g<1>') }}", &document).unwrap(), " WHWy? ");
    }

    #[test]
    fn what_a_document_lacks_is_named() {
        let error = render("{{answer}}", &serde_json::json!({"question": ""})).unwrap_err().to_string();
        assert!(error.contains("answer") && error.contains("`question`"), "{error}");
    }
}
