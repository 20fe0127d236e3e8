//! What Python and Jinja2 make of text and values where minijinja makes something else.

use super::functions::MAX_TEXT;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// A method of Python's `str`, `list` or `dict`. Those that can make much of little are measured first: fuel counts what is
/// done, not how long it gets.
pub fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return pycompat::unknown_method_callback(state, value, name, arguments) };
    let length = match (name, arguments) {
        ("replace", [old, new, ..]) => {
            let (old, new) = (old.as_str().unwrap_or_default(), new.as_str().unwrap_or_default());
            text.matches(old).count().saturating_mul(new.len())
        }
        ("join", [parts]) => parts.try_iter().map_or(0, |parts| {
            parts.fold(0usize, |sum, part| sum.saturating_add(part.as_str().map_or(0, str::len) + text.len()))
        }),
        _ => 0,
    };
    if length > MAX_TEXT {
        return Err(Error::new(ErrorKind::OutOfFuel, format!("`{name}` would make a text of {length} bytes")));
    }
    let affix = arguments.first().and_then(Value::as_str);
    let changed = match (name, arguments.len(), affix) {
        ("strip", 0, _) => text.trim_matches(is_space),
        ("lstrip", 0, _) => text.trim_start_matches(is_space),
        ("rstrip", 0, _) => text.trim_end_matches(is_space),
        ("removeprefix", 1, Some(affix)) => text.strip_prefix(affix).unwrap_or(text),
        ("removesuffix", 1, Some(affix)) => text.strip_suffix(affix).unwrap_or(text),
        _ => return pycompat::unknown_method_callback(state, value, name, arguments),
    };
    Ok(Value::from(changed))
}

/// The filter `trim`, of the text that the value prints.
pub fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = value.to_string();
    match characters {
        Some(characters) => text.trim_matches(|character| characters.contains(character)),
        None => text.trim_matches(is_space),
    }
    .to_string()
}

/// The test `iterable`: nothing is not.
pub fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// The test `sequence`: whatever has a length and can be indexed, text and maps too.
pub fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// Whether Python's `str.isspace` holds.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// A float as `repr` writes it: the shortest digits, an exponent of two digits at least.
pub fn float(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && size.is_finite() && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
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
        ] {
            assert_eq!(float(number), text);
        }
    }
}
