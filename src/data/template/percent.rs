//! Python's `%` between a text and values.

use super::functions::{MAX_WIDTH, push};
use super::python;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// One `%…` of a format.
#[derive(Default)]
struct Directive<'f> {
    key: Option<&'f str>,
    flags: &'f str,
    width: usize,
    precision: Option<usize>,
}

/// `left % right` where a template writes it behind a text: formats a text; of numbers the remainder.
pub fn percent(left: &Value, right: &Value) -> Result<Value, Error> {
    match left.as_str() {
        Some(format) => self::format(format, right).map(Value::from),
        None => Err(wrong("`%` formats a text")),
    }
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

/// The values of a format, taken one by one.
struct Given<'v> {
    mapping: Option<&'v Value>,
    values: std::vec::IntoIter<Value>,
}

impl Given<'_> {
    fn next(&mut self, key: Option<&str>) -> Result<Value, Error> {
        match (key, self.mapping) {
            (Some(key), Some(mapping)) => match mapping.get_attr(key)? {
                value if value.is_undefined() => Err(wrong(&format!("there is no `{key}` for the format"))),
                value => Ok(value),
            },
            (Some(_), None) => Err(wrong("the format requires a mapping")),
            (None, _) => self.values.next().ok_or_else(|| wrong("not enough arguments for format string")),
        }
    }
}

fn format(format: &str, right: &Value) -> Result<String, Error> {
    let is_mapping = right.kind() == ValueKind::Map;
    let values: Vec<Value> = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right.clone()] };
    let mut given = Given { mapping: is_mapping.then_some(right), values: values.into_iter() };
    let (mut out, mut rest, mut named) = (String::new(), format, false);
    while let Some(at) = rest.find('%') {
        push(&mut out, &rest[..at], "%")?;
        rest = &rest[at + 1..];
        let directive = Directive::read(&mut rest, &mut given)?;
        let letter = rest.chars().next().ok_or_else(|| wrong("incomplete format"))?;
        rest = &rest[letter.len_utf8()..];
        named |= directive.key.is_some();
        if letter == '%' {
            push(&mut out, "%", "%")?;
        } else {
            let value = given.next(directive.key)?;
            push(&mut out, &directive.write(letter, &value)?, "%")?;
        }
    }
    if given.values.next().is_some() && !named && !is_mapping {
        return Err(wrong("not all arguments converted during string formatting"));
    }
    push(&mut out, rest, "%")?;
    Ok(out)
}

impl<'f> Directive<'f> {
    fn read(rest: &mut &'f str, given: &mut Given<'_>) -> Result<Self, Error> {
        let mut directive = Self::default();
        if let Some(inner) = rest.strip_prefix('(') {
            let end = inner.find(')').ok_or_else(|| wrong("incomplete format key"))?;
            directive.key = Some(&inner[..end]);
            *rest = &inner[end + 1..];
        }
        let flags = rest.len() - rest.trim_start_matches(['-', '+', ' ', '#', '0']).len();
        directive.flags = &rest[..flags];
        *rest = &rest[flags..];
        directive.width = number(rest, given)?.unwrap_or(0);
        if let Some(behind) = rest.strip_prefix('.') {
            *rest = behind;
            directive.precision = Some(number(rest, given)?.unwrap_or(0));
        }
        *rest = rest.trim_start_matches(['h', 'l', 'L']);
        Ok(directive)
    }

    fn write(&self, letter: char, value: &Value) -> Result<String, Error> {
        let cut = |text: String| match self.precision {
            Some(most) => text.chars().take(most).collect(),
            None => text,
        };
        let whole = |text: String| {
            let missing = self.precision.unwrap_or(0).saturating_sub(text.len());
            "0".repeat(missing) + &text
        };
        let float = || real(value).ok_or_else(|| wrong(&format!("%{letter}: a real number is required")));
        let digits = self.precision.unwrap_or(6);
        let (negative, body) = match letter {
            's' => (false, cut(python::text(value)?)),
            'r' | 'a' => (false, cut(python::repr(value)?)),
            'c' => (
                false,
                match value.as_str() {
                    Some(text) if text.chars().count() == 1 => text.to_string(),
                    _ => {
                        let code = u32::try_from(value.clone()).ok().and_then(char::from_u32);
                        code.ok_or_else(|| wrong("%c requires a number or a character"))?.to_string()
                    }
                },
            ),
            'd' | 'i' | 'u' => {
                let number = integer(value).ok_or_else(|| wrong("%d: a number is required"))?;
                (number < 0, whole(number.unsigned_abs().to_string()))
            }
            'x' | 'X' | 'o' => {
                let number = integer(value).filter(|_| value.is_integer() || value.kind() == ValueKind::Bool);
                let number = number.ok_or_else(|| wrong(&format!("%{letter}: a whole number is required")))?;
                let size = number.unsigned_abs();
                let (text, prefix) = match letter {
                    'x' => (format!("{size:x}"), "0x"),
                    'X' => (format!("{size:X}"), "0X"),
                    _ => (format!("{size:o}"), "0o"),
                };
                (number < 0, if self.flags.contains('#') { prefix.to_string() } else { String::new() } + &whole(text))
            }
            'f' | 'F' => (float()?.is_sign_negative(), format!("{:.digits$}", float()?.abs())),
            'e' | 'E' => (float()?.is_sign_negative(), exponential(float()?.abs(), digits, letter == 'E')),
            'g' | 'G' => (float()?.is_sign_negative(), general(float()?.abs(), digits, letter == 'G')),
            other => return Err(wrong(&format!("unsupported format character `{other}`"))),
        };
        let is_number = !"sracu".contains(letter) || letter == 'u';
        let sign = match (is_number, negative) {
            (true, true) => "-",
            (true, false) if self.flags.contains('+') => "+",
            (true, false) if self.flags.contains(' ') => " ",
            _ => "",
        };
        let missing = self.width.saturating_sub(sign.len() + body.chars().count());
        Ok(if self.flags.contains('-') {
            format!("{sign}{body}{}", " ".repeat(missing))
        } else if is_number && self.flags.contains('0') {
            format!("{sign}{}{body}", "0".repeat(missing))
        } else {
            format!("{}{sign}{body}", " ".repeat(missing))
        })
    }
}

/// A width or a precision: digits, or `*` for the next value.
fn number(rest: &mut &str, given: &mut Given<'_>) -> Result<Option<usize>, Error> {
    let number = if let Some(behind) = rest.strip_prefix('*') {
        *rest = behind;
        let value = given.next(None)?;
        Some(usize::try_from(value).map_err(|_| wrong("* wants a whole number"))?)
    } else {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number = (digits > 0).then(|| rest[..digits].parse().unwrap_or(usize::MAX));
        *rest = &rest[digits..];
        number
    };
    if number.is_some_and(|number| number > MAX_WIDTH) {
        return Err(wrong("a field is too wide"));
    }
    Ok(number)
}

fn real(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => None,
    }
}

fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => real(value).filter(|number| number.is_finite()).map(|number| number.trunc() as i128),
    }
}

fn exponential(number: f64, digits: usize, upper: bool) -> String {
    let text = format!("{number:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{mantissa}{}{sign}{exponent:0>2}", if upper { 'E' } else { 'e' })
}

fn general(number: f64, digits: usize, upper: bool) -> String {
    let digits = digits.max(1);
    let exponent = if number == 0.0 {
        0
    } else {
        format!("{number:.*e}", digits - 1).split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0)
    };
    let trim = |text: String| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
    };
    if exponent < -4 || exponent >= digits as i32 {
        let text = exponential(number, digits - 1, upper);
        let at = text.find(['e', 'E']).unwrap_or(text.len());
        return trim(text[..at].to_string()) + &text[at..];
    }
    trim(format!("{number:.*}", usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0)))
}
