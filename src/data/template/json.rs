//! JSON as Python's `json.dumps` writes it.

use super::functions::{MAX_TEXT, push, too_long};
use super::python::number;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write as _;

/// The filter `tojson`, as transformers has it: `json.dumps(value, ensure_ascii=False)` with the arguments `ensure_ascii`,
/// `indent`, `separators` and `sort_keys`, in this order. No HTML escapes.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands over arguments by value")]
pub fn tojson(value: &Value, arguments: Rest<Value>, options: Kwargs) -> Result<Value, Error> {
    let option = |at: usize, name: &str| match arguments.get(at) {
        Some(value) => Ok(Some(value.clone())),
        None => options.get::<Option<Value>>(name),
    };
    let flag = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ascii = flag(option(0, "ensure_ascii")?);
    let indent = match option(1, "indent")?.filter(|indent| !indent.is_none()) {
        Some(indent) => Some(match (indent.as_str(), i64::try_from(indent.clone())) {
            (Some(text), _) => text.to_string(),
            (None, Ok(width)) => " ".repeat(usize::try_from(width).unwrap_or(0).min(64)),
            _ => return Err(wrong("`indent` takes a number or a text")),
        }),
        None => None,
    };
    let comma = if indent.is_some() { "," } else { ", " }.to_string();
    let mut writer = Json { out: String::new(), indent, ascii, sort: false, comma, colon: ": ".to_string() };
    if let Some(separators) = option(2, "separators")?.filter(|separators| !separators.is_none()) {
        let texts: Option<Vec<String>> =
            separators.try_iter()?.map(|separator| separator.as_str().map(String::from)).collect();
        let Some([comma, colon]) = texts.and_then(|texts| <[String; 2]>::try_from(texts).ok()) else {
            return Err(wrong("`separators` takes two texts"));
        };
        (writer.comma, writer.colon) = (comma, colon);
    }
    writer.sort = flag(option(3, "sort_keys")?);
    options.assert_all_used()?;
    if arguments.len() > 4 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}

/// A value as `json.dumps(value, ensure_ascii=False)` writes it.
///
/// # Errors
/// When it is nested too deeply, or holds what is no JSON.
pub fn dump(value: &Value) -> Result<String, Error> {
    let (comma, colon) = (", ".to_string(), ": ".to_string());
    let mut writer = Json { out: String::new(), indent: None, ascii: false, sort: false, comma, colon };
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct Json {
    out: String,
    indent: Option<String>,
    ascii: bool,
    sort: bool,
    comma: String,
    colon: String,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 100 {
            return Err(Error::new(ErrorKind::BadSerialization, "tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Undefined => {
                return Err(Error::new(ErrorKind::UndefinedError, "tojson: the value is not there"));
            }
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&match f64::try_from(value.clone()) {
                Ok(float) if float.is_nan() => "NaN".to_string(),
                Ok(float) if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_string(),
                _ => number(value),
            }),
            ValueKind::Seq | ValueKind::Iterable => {
                self.items('[', ']', value.try_iter()?, depth, |json, item| json.value(&item, depth + 1))?;
            }
            ValueKind::Map => {
                let entry = |json: &mut Self, key: Value| {
                    json.key(&key)?;
                    push(&mut json.out, &json.colon, "tojson")?;
                    json.value(&value.get_item(&key)?, depth + 1)
                };
                if self.sort {
                    let mut keys: Vec<Value> = value.try_iter()?.collect();
                    keys.sort_by_key(ToString::to_string);
                    self.items('{', '}', keys.into_iter(), depth, entry)?;
                } else {
                    self.items('{', '}', value.try_iter()?, depth, entry)?;
                }
            }
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            _ => return Err(wrong("it is no JSON")),
        }
        if self.out.len() > MAX_TEXT { Err(too_long("tojson")) } else { Ok(()) }
    }

    /// A key: a text, or what Python makes one of.
    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.text(key.as_str().unwrap_or_default())?,
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
            }
            _ => return Err(wrong("a key must be a text or a number")),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                push(&mut self.out, &self.comma, "tojson")?;
            }
            is_empty = false;
            self.new_line(depth + 1)?;
            write(self, item)?;
        }
        if !is_empty {
            self.new_line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        self.out.push('\n');
        (0..depth).try_for_each(|_| push(&mut self.out, indent, "tojson"))
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        if self.out.len().saturating_add(text.len()) > MAX_TEXT {
            return Err(too_long("tojson"));
        }
        self.out.push('"');
        for character in text.chars() {
            if self.out.len() > MAX_TEXT {
                return Err(too_long("tojson"));
            }
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                _ if character < ' ' || (self.ascii && !character.is_ascii()) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
        Ok(())
    }
}
