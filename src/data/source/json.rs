//! A row of JSON, as text: an object, and where its values lie. Where the text comes from is not known here.

use super::place::{ENCODING_HELP, Place, text};
use super::python;
use crate::data::formats::{RowError, Step};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The text of a row: a line, or an element of an array, which may span lines.
pub(super) struct JsonText {
    pub place: Place,
    pub bytes: Vec<u8>,
    /// Whether it is an element of an array.
    pub in_array: bool,
}

impl JsonText {
    /// The object.
    ///
    /// # Errors
    /// When the text is not UTF-8, holds a NUL, or is not a JSON object: names the line and the column.
    pub fn parse(&self, path: &Path) -> Result<Map<String, Value>> {
        let text = text(&self.bytes)
            .map_err(|(at, message)| self.place.error(path, &self.bytes, at, 1, message).with_help(ENCODING_HELP))?;
        match python::from_str(text, !self.in_array) {
            Ok(Value::Object(row)) => Ok(row),
            Ok(other) => {
                let message = format!("a row must be a JSON object, got {}", kind_of_row(&other));
                let help = if self.in_array {
                    "each element of the array is a row, with its fields by name"
                } else {
                    "JSON Lines has one object a line; an array of rows is read from a file named `.json`"
                };
                Err(self.place.error(path, &self.bytes, skip_space(text.as_bytes(), 0), 1, message).with_help(help))
            }
            Err((at, reason)) => {
                let report = self.place.error(path, &self.bytes, at, 1, format!("not valid JSON: {reason}"));
                Err(report.with_help(help_for(text.trim(), &reason)))
            }
        }
    }

    /// The error of a row, at the value that it names or, where that is missing, at the object that lacks it.
    pub fn row_error(&self, path: &Path, error: RowError) -> Error {
        let (at, width) = locate(&self.bytes, &error.path);
        let width = String::from_utf8_lossy(&self.bytes[at..at + width]).lines().next().unwrap_or("").chars().count();
        let report = self.place.error(path, &self.bytes, at, width, error.message);
        report.with_help(error.help.as_deref().unwrap_or("fix the row, or remove it"))
    }
}

/// What to do about a text that is not JSON.
fn help_for(text: &str, reason: &str) -> &'static str {
    match text {
        "{" => "one row must stand on one line: `jq -c . rows.json > rows.jsonl` makes it so",
        _ if reason.contains("key must be a string") && text.contains('\'') => {
            "text of Python's (`{'a': None}`) is not JSON; `json.dumps(row)` writes it"
        }
        _ if reason.contains("key must be a string") => "names stand in double quotes",
        _ if reason.contains("trailing characters") && text.contains("}{") | text.contains("}\r{") => {
            "each row stands on a line of its own, with a line feed behind it"
        }
        _ if reason.contains("trailing comma") => "take out the comma before the `}` or `]`",
        _ if reason.contains("control character") => "a line end inside of a text is written as `\\n`",
        _ => "fix the row, or remove it",
    }
}

fn kind_of_row(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Where a value of a JSON text lies: first byte and length. Follows `path` as far as it goes; the last object or list on
/// the way stands for what is missing in it. The text must be valid JSON, or the answer is merely somewhere within it.
fn locate(text: &[u8], path: &[Step]) -> (usize, usize) {
    let start = skip_space(text, 0);
    let mut at = start;
    for step in path {
        match enter(text, at, step) {
            Some(next) => at = next,
            None => return (at.min(text.len()), usize::from(at < text.len())),
        }
    }
    let end = if path.is_empty() { at + 1 } else { skip_value(text, at) };
    (at.min(text.len()), end.min(text.len()).saturating_sub(at))
}

/// The place of the value that `step` leads to, from the object or list at `at`.
fn enter(text: &[u8], at: usize, step: &Step) -> Option<usize> {
    let mut at = skip_space(text, at + 1);
    let mut index = 0;
    while at < text.len() && !matches!(text[at], b'}' | b']') {
        let fits = if let Step::Key(key) = step {
            let end = skip_value(text, at);
            let fits = text.get(at + 1..end.saturating_sub(1)) == Some(key.as_bytes());
            at = skip_space(text, skip_space(text, end) + 1); // past the colon
            fits
        } else {
            *step == Step::Index(index)
        };
        if fits {
            return Some(at);
        }
        index += 1;
        at = skip_space(text, skip_value(text, at));
        if text.get(at) == Some(&b',') {
            at = skip_space(text, at + 1);
        }
    }
    None
}

fn skip_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The place behind the value at `at`; always further on.
fn skip_value(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at < text.len() {
        match text[at] {
            b'"' => {
                at += 1;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            byte if depth == 0 => {
                let plain = |byte: &u8| !matches!(byte, b',' | b'}' | b']' | b':') && !byte.is_ascii_whitespace();
                let more = text[at..].iter().take_while(|byte| plain(byte)).count();
                return at + more.max(usize::from(byte != 0)).max(1);
            }
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn locating_stays_within_the_text(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            for path in [vec![], vec!["a".into()], vec![Step::Index(1), "a".into()]] {
                let (at, width) = locate(&bytes, &path);
                prop_assert!(at + width <= bytes.len());
            }
        }
    }
}
