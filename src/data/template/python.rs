//! Values as Python prints them, and the methods of its lists and dictionaries.

use super::functions::MAX_TEXT;
use super::text;
use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use std::fmt::Write as _;

/// The deepest nesting that is printed.
const MAX_DEPTH: usize = 100;

/// The most items of a list that a method or a filter makes.
const MAX_ITEMS: usize = 4 << 20;

/// Methods that change a value: transformers' sandbox refuses them.
const CHANGING: &[&str] =
    &["append", "clear", "extend", "insert", "pop", "popitem", "remove", "reverse", "setdefault", "sort", "update"];

/// A method of Python's `str`, `list`, `tuple` or `dict`.
pub fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return match text::method(state, text, name, arguments)? {
            Some(result) => Ok(result),
            None => pycompat::unknown_method_callback(state, value, name, arguments),
        };
    }
    if CHANGING.contains(&name) && matches!(value.kind(), ValueKind::Seq | ValueKind::Map) {
        let message = format!("`{name}` changes a value, which a chat template may not");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    match (value.kind(), name, arguments) {
        // What repeating, joining and slicing lists makes is an iterable here.
        (ValueKind::Seq | ValueKind::Iterable, "index", [what, bounds @ ..]) => {
            let items: Vec<Value> = collected(state, value.try_iter()?)?;
            let (from, to) = text::bounds(bounds, items.len())?;
            let found = (from..to.max(from)).find(|&i| items[i] == *what);
            found.map(Value::from).ok_or_else(|| {
                let message = format!("{} is not in list", repr(what).unwrap_or_default());
                Error::new(ErrorKind::InvalidOperation, message)
            })
        }
        (ValueKind::Seq | ValueKind::Iterable, "count", [what]) => {
            let items = collected(state, value.try_iter()?)?;
            Ok(Value::from(items.iter().filter(|item| *item == what).count()))
        }
        (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map, "copy", []) => Ok(value.clone()),
        _ => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

/// A value as `str` makes it.
///
/// # Errors
/// When it is nested too deeply, or too long.
pub fn text(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_string()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// A value as `repr` makes it.
///
/// # Errors
/// As [`text`].
pub fn repr(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    Repr { out: &mut out, ascii: false }.value(value, 0)?;
    Ok(out)
}

/// A value as `ascii` makes it.
///
/// # Errors
/// As [`text`].
pub fn ascii(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    Repr { out: &mut out, ascii: true }.value(value, 0)?;
    Ok(out)
}

/// Items in a list of their own, each of which costs fuel before there is room for it.
///
/// # Errors
/// When the fuel is at its end, or there are too many.
pub fn collected<T>(state: &State, items: impl Iterator<Item = T>) -> Result<Vec<T>, Error> {
    let mut list = Vec::new();
    for item in items {
        count(state, list.len())?;
        list.push(item);
    }
    Ok(list)
}

/// Counts one more item of a list that has so many.
///
/// # Errors
/// As [`collected`].
pub fn count(state: &State, length: usize) -> Result<(), Error> {
    if length >= MAX_ITEMS {
        return Err(Error::new(ErrorKind::OutOfFuel, format!("a list would have more than {MAX_ITEMS} items")));
    }
    state.consume_fuel(1)
}

struct Repr<'o> {
    out: &'o mut String,
    ascii: bool,
}

impl Repr<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH || self.out.len() > MAX_TEXT {
            return Err(Error::new(ErrorKind::OutOfFuel, "a value is too long, or nested too deeply, to be printed"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("None"),
            ValueKind::Undefined => self.out.push_str("Undefined"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "True" } else { "False" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => text::write_quoted(self.out, value.as_str().unwrap_or_default(), self.ascii)?,
            ValueKind::Seq | ValueKind::Iterable => {
                let is_tuple = value.is_tuple();
                self.out.push(if is_tuple { '(' } else { '[' });
                let mut count = 0;
                for item in value.try_iter()? {
                    if count > 0 {
                        self.out.push_str(", ");
                    }
                    self.value(&item, depth + 1)?;
                    count += 1;
                }
                if is_tuple && count == 1 {
                    self.out.push(',');
                }
                self.out.push(if is_tuple { ')' } else { ']' });
            }
            // A namespace is no mapping in Python; nobody prints one.
            ValueKind::Map => {
                self.out.push('{');
                for (i, key) in value.try_iter()?.enumerate() {
                    if i > 0 {
                        self.out.push_str(", ");
                    }
                    self.value(&key, depth + 1)?;
                    self.out.push_str(": ");
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
                self.out.push('}');
            }
            _ => write!(self.out, "{value}").map_err(Error::from)?,
        }
        Ok(())
    }
}

/// A number as Python writes it.
pub fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => self::float(float),
        _ => value.to_string(),
    }
}

/// The test `iterable`: nothing is not, and what is not there is empty.
pub fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || (!value.is_none() && value.try_iter().is_ok())
}

/// The test `sequence`: whatever has a length and can be indexed, text and maps too. Slices of lists are iterables here.
pub fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined | ValueKind::Seq | ValueKind::Iterable | ValueKind::String | ValueKind::Map
    )
}

/// The test `callable`.
pub fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

/// A float as `repr` writes it: the shortest digits, an exponent of two digits at least.
pub fn float(number: f64) -> String {
    let size = number.abs();
    if number.is_nan() || number.is_infinite() {
        return if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_string();
    }
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

/// The last argument where it holds those that are named, and the others.
pub fn split_named(arguments: &[Value]) -> (&[Value], Option<Kwargs>) {
    match arguments.split_last() {
        Some((last, others)) => match Kwargs::try_from(last.clone()) {
            Ok(named) if last.is_kwargs() => (others, Some(named)),
            _ => (arguments, None),
        },
        None => (arguments, None),
    }
}

/// A pair.
pub fn pair(first: impl Into<Value>, second: impl Into<Value>) -> Value {
    Value::from(Tuple::from([first.into(), second.into()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `repr` of Python 3.11 has them.
    #[test]
    fn floats_are_written_as_python_does() {
        for (number, text) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-0.1, "-0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e16, "1e+16"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (-1.25e300, "-1.25e+300"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(float(number), text);
        }
    }
}
