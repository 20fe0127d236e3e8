//! The filters `int` and `float`, which read numbers as Python's constructors do.

use super::filters::{Arguments, wrong};
use super::text::{decimal, is_space};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// `int(value, default=0, base=10)`: what is not a whole number is read as a float, and else is the default.
pub fn int(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(given, named, 2)?;
    let default = arguments.get(0, "default")?.unwrap_or_else(|| Value::from(0));
    let base = arguments.number(1, "base", 10)?;
    arguments.named.assert_all_used()?;
    match value.kind() {
        ValueKind::Undefined => Err(Error::new(ErrorKind::UndefinedError, "int: the value is not there")),
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.clone()),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(float) if float.is_infinite() => Err(wrong("int: infinity is no whole number")),
            Ok(float) if !float.is_nan() => truncated(float),
            _ => Ok(default),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            match (whole(text, base), real(text)) {
                (Some(number), _) => number,
                (None, Some(float)) if float.is_finite() => truncated(float),
                _ => Ok(default),
            }
        }
        _ => Ok(default),
    }
}

/// `float(value, default=0.0)`.
pub fn float(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(given, named, 1)?;
    let default = arguments.get(0, "default")?.unwrap_or_else(|| Value::from(0.0));
    arguments.named.assert_all_used()?;
    Ok(match value.kind() {
        ValueKind::Undefined => return Err(Error::new(ErrorKind::UndefinedError, "float: the value is not there")),
        ValueKind::Bool => Value::from(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).map_or(default, Value::from),
        ValueKind::String => real(value.as_str().unwrap_or_default()).map_or(default, Value::from),
        _ => default,
    })
}

fn too_large() -> Error {
    wrong("int: numbers of more than 127 bits are not supported")
}

fn truncated(float: f64) -> Result<Value, Error> {
    let whole = float.trunc();
    // The bound itself is one more than fits.
    if whole.abs() < 2f64.powi(127) { Ok(Value::from(whole as i128)) } else { Err(too_large()) }
}

/// The digits of a text with its sign, without white space around them.
fn signed(text: &str) -> (bool, &str) {
    let text = text.trim_matches(is_space);
    match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

/// A number's text in ASCII, without the single `_` that may stand between two digits; `None` where one stands elsewhere.
fn plain(text: &str, is_digit: impl Fn(char) -> bool) -> Option<String> {
    let parts: Vec<&str> = text.split('_').collect();
    let is_digit = |end: Option<char>| end.is_some_and(|c| decimal(c).is_some() || is_digit(c));
    let between = |pair: &[&str]| is_digit(pair[0].chars().next_back()) && is_digit(pair[1].chars().next());
    let ascii = |c: char| decimal(c).and_then(|digit| char::from_digit(digit, 10)).unwrap_or(c);
    parts.windows(2).all(between).then(|| parts.concat().chars().map(ascii).collect())
}

/// `int(text, base)`, if it is a number.
fn whole(text: &str, base: usize) -> Option<Result<Value, Error>> {
    let (negative, digits) = signed(text);
    let lower = digits.to_ascii_lowercase();
    let named = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find(|(prefix, _)| lower.starts_with(prefix));
    let named = named.filter(|(_, of)| base == *of || base == 0);
    // Behind a prefix one `_` may stand.
    let behind = named.map(|(prefix, _)| lower[prefix.len()..].strip_prefix('_').unwrap_or(&lower[prefix.len()..]));
    let digits = plain(behind.unwrap_or(&lower), |c| c.is_ascii_alphanumeric())?;
    let radix = match (base, named) {
        (0, Some((_, radix))) => radix,
        // Octal numbers were once written so.
        (0, None) if digits.starts_with('0') && digits.contains(|c| c != '0') => return None,
        (0, None) => 10,
        (2..=36, _) => base,
        _ => return None,
    };
    let radix = u32::try_from(radix).ok()?;
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(&digits, radix).map_err(|_| too_large());
    Some(number.map(|number| Value::from(if negative { -number } else { number })))
}

/// `float(text)`, if it is a number.
fn real(text: &str) -> Option<f64> {
    let (negative, digits) = signed(text);
    let number = plain(digits, |_| false).filter(|digits| !digits.starts_with(['+', '-']))?.parse::<f64>().ok()?;
    Some(if negative { -number } else { number })
}
