//! Python's `str.format`.
//!
//! Fields, conversions and texts are read and written here; numbers are minijinja's, once their widths are known to be small.

use super::functions::{MAX_WIDTH, push};
use super::python;
use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The values that fields name.
pub struct Given<'v> {
    values: &'v [Value],
    named: Option<&'v Kwargs>,
    mapping: Option<&'v Value>,
    /// The next field without a number; `None` once a field has one.
    next: Option<usize>,
}

impl<'v> Given<'v> {
    /// The arguments of `format`.
    pub const fn arguments(values: &'v [Value], named: Option<&'v Kwargs>) -> Self {
        Self { values, named, mapping: None, next: Some(0) }
    }

    /// The argument of `format_map`.
    pub const fn mapping(mapping: &'v Value) -> Self {
        Self { values: &[], named: None, mapping: Some(mapping), next: Some(0) }
    }

    /// The value that a field begins with.
    fn first(&mut self, name: &str) -> Result<Value, Error> {
        let number = match (name.is_empty(), name.parse::<usize>(), self.next) {
            (true, _, Some(next)) => {
                self.next = Some(next + 1);
                next
            }
            (false, Ok(number), None | Some(0)) => {
                self.next = None;
                number
            }
            (true, ..) | (false, Ok(_), _) => {
                return Err(wrong("fields with numbers and fields without them are mixed"));
            }
            (false, Err(_), _) => {
                let named = self.named.filter(|named| named.has(name)).map(|named| named.get::<Value>(name));
                let found = named.transpose()?.or_else(|| self.mapping?.get_attr(name).ok());
                let found = found.filter(|value| !value.is_undefined());
                return found.ok_or_else(|| wrong(format!("there is no `{name}` for the format")));
            }
        };
        self.values.get(number).cloned().ok_or_else(|| wrong(format!("there is no value {number} for the format")))
    }
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("format: {}", what.into()))
}

/// `format.format(…)`.
///
/// # Errors
/// When the format is not valid, does not fit its values, or makes too long a text.
pub fn format(format: &str, given: &mut Given<'_>) -> Result<String, Error> {
    expand(format, given, 0)
}

/// `depth` is 1 inside of a field's directives, which may have fields themselves.
fn expand(format: &str, given: &mut Given<'_>, depth: usize) -> Result<String, Error> {
    let (mut out, mut rest) = (String::new(), format);
    while let Some(at) = rest.find(['{', '}']) {
        push(&mut out, &rest[..at], "format")?;
        let (mark, behind) = rest[at..].split_at(1);
        rest = match (mark, behind.strip_prefix(mark)) {
            (_, Some(behind)) => {
                push(&mut out, mark, "format")?;
                behind
            }
            ("{", None) if depth < 2 => {
                let end = end_of_field(behind).ok_or_else(|| wrong("a `{` is not closed"))?;
                push(&mut out, &field(&behind[..end], given, depth)?, "format")?;
                &behind[end + 1..]
            }
            ("{", None) => return Err(wrong("fields are nested too deeply")),
            _ => return Err(wrong("a `}` is not opened; write `}}`")),
        };
    }
    push(&mut out, rest, "format")?;
    Ok(out)
}

/// Where the brace is that closes a field.
fn end_of_field(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// `name.attribute[key]!conversion:directives`.
fn field(field: &str, given: &mut Given<'_>, depth: usize) -> Result<String, Error> {
    let mut in_key = false;
    let ends = |character: char| {
        in_key = (in_key || character == '[') && character != ']';
        !in_key && (character == '!' || character == ':')
    };
    let end = field.find(ends).unwrap_or(field.len());
    let (name, behind) = field.split_at(end);
    let (conversion, directives) = match behind.strip_prefix('!') {
        Some(behind) => match behind.split_once(':') {
            Some((conversion, directives)) => (Some(conversion), directives),
            None => (Some(behind), ""),
        },
        None => (None, behind.strip_prefix(':').unwrap_or("")),
    };
    let value = lookup(name, given)?;
    let value = match conversion {
        None => value,
        Some("s") => Value::from(python::text(&value)?),
        Some("r") => Value::from(python::repr(&value)?),
        Some("a") => Value::from(python::ascii(&value)?),
        Some(other) => return Err(wrong(format!("`!{other}` is no conversion; there are `!s`, `!r` and `!a`"))),
    };
    write(&value, &expand(directives, given, depth + 1)?)
}

fn lookup(name: &str, given: &mut Given<'_>) -> Result<Value, Error> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (mut value, mut rest) = (given.first(&name[..end])?, &name[end..]);
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix('[') {
            let (key, behind) = behind.split_once(']').ok_or_else(|| wrong("a `[` is not closed"))?;
            let key = key.parse::<usize>().map_or_else(|_| Value::from(key), Value::from);
            (value, rest) = (value.get_item(&key)?, behind);
        } else {
            let behind = rest.strip_prefix('.').ok_or_else(|| wrong("`.` or `[` is expected behind `]`"))?;
            let end = behind.find(['.', '[']).unwrap_or(behind.len());
            (value, rest) = (value.get_attr(&behind[..end])?, &behind[end..]);
        }
    }
    Ok(value)
}

/// A value by its directives.
fn write(value: &Value, directives: &str) -> Result<String, Error> {
    if directives.is_empty() {
        return python::text(value);
    }
    let directives = Directives::read(directives)?;
    match value.kind() {
        ValueKind::String => directives.text(value.as_str().unwrap_or_default()),
        ValueKind::Bool | ValueKind::Number => directives.number(value),
        kind => Err(wrong(format!("a {kind} takes no directives; `!s` makes a text of it"))),
    }
}

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Debug, Default)]
struct Directives<'d> {
    fill: Option<char>,
    align: Option<char>,
    /// Sign and `#`.
    flags: &'d str,
    zeros: bool,
    width: usize,
    grouping: &'d str,
    precision: Option<usize>,
    kind: &'d str,
}

impl<'d> Directives<'d> {
    fn read(text: &'d str) -> Result<Self, Error> {
        let mut directives = Self::default();
        let mut characters = text.chars();
        let (first, second) = (characters.next(), characters.next());
        let is_align = |character: &char| "<>^=".contains(*character);
        let mut rest = text;
        if let (Some(fill), Some(align)) = (first, second.filter(is_align)) {
            (directives.fill, directives.align) = (Some(fill), Some(align));
            rest = &text[fill.len_utf8() + 1..];
        } else if let Some(align) = first.filter(is_align) {
            directives.align = Some(align);
            rest = &text[1..];
        }
        directives.flags = taken(&mut rest, |c| "+- #".contains(c));
        directives.zeros = rest.starts_with('0');
        directives.width = number(taken(&mut rest, |c| c.is_ascii_digit()))?.unwrap_or(0);
        directives.grouping = taken(&mut rest, |c| ",_".contains(c));
        if let Some(behind) = rest.strip_prefix('.') {
            rest = behind;
            let precision = number(taken(&mut rest, |c| c.is_ascii_digit()))?;
            directives.precision = Some(precision.ok_or_else(|| wrong("there is no number behind the `.`"))?);
        }
        directives.kind = rest;
        Ok(directives)
    }

    fn text(&self, text: &str) -> Result<String, Error> {
        if !matches!(self.kind, "" | "s") || !self.flags.is_empty() || !self.grouping.is_empty() {
            return Err(wrong("a text takes fill, alignment, width and `.precision` alone"));
        }
        if self.align == Some('=') {
            return Err(wrong("`=` aligns numbers, and no text"));
        }
        let text: String = text.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
        Ok(self.padded("", &text, '<'))
    }

    fn number(&self, value: &Value) -> Result<String, Error> {
        let is_whole = value.is_integer() || value.kind() == ValueKind::Bool;
        let (value, kind, end) = match self.kind {
            "n" => (value.clone(), if is_whole { "d" } else { "g" }, ""),
            "%" => (
                Value::from(
                    f64::try_from(value.clone()).unwrap_or_else(|_| f64::from(u8::from(value.is_true()))) * 100.0,
                ),
                "f",
                "%",
            ),
            kind => (value.clone(), kind, ""),
        };
        // A boolean with directives is a number.
        let value = if value.kind() == ValueKind::Bool { Value::from(i64::from(value.is_true())) } else { value };
        let precision = self.precision.map(|digits| format!(".{digits}")).unwrap_or_default();
        // Zeros in front are grouped too.
        let zeros = if self.zeros && !self.grouping.is_empty() { format!("0{}", self.width) } else { String::new() };
        let directives = format!("{{:{}{zeros}{}{precision}{kind}}}", self.flags, self.grouping);
        let written = formatting::format(FormatStyle::StrFormat, &directives, &[value])? + end;
        let signs = written.len() - written.trim_start_matches(['+', '-', ' ']).len();
        let prefix = if self.flags.contains('#') && "xXob".contains(kind) && !kind.is_empty() { 2 } else { 0 };
        let (sign, digits) = written.split_at((signs + prefix).min(written.len()));
        Ok(self.padded(sign, digits, '>'))
    }

    /// A text in its field. What is filled with `=` goes between sign and digits.
    fn padded(&self, sign: &str, digits: &str, default: char) -> String {
        let missing = self.width.saturating_sub(sign.chars().count() + digits.chars().count());
        let (fill, align) = match (self.fill, self.align) {
            (fill, Some(align)) => (fill.unwrap_or(if self.zeros { '0' } else { ' ' }), align),
            (_, None) if self.zeros => ('0', if default == '>' { '=' } else { default }),
            (_, None) => (' ', default),
        };
        let fill = |count: usize| fill.to_string().repeat(count);
        match align {
            '<' => format!("{sign}{digits}{}", fill(missing)),
            '^' => format!("{}{sign}{digits}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{sign}{}{digits}", fill(missing)),
            _ => format!("{}{sign}{digits}", fill(missing)),
        }
    }
}

/// Takes the characters that a text begins with.
fn taken<'t>(rest: &mut &'t str, wanted: impl Fn(char) -> bool) -> &'t str {
    let (taken, behind) = rest.split_at(rest.find(|c| !wanted(c)).unwrap_or(rest.len()));
    *rest = behind;
    taken
}

/// A width or a precision, which must be small before anything is written.
fn number(digits: &str) -> Result<Option<usize>, Error> {
    match digits.parse::<usize>() {
        _ if digits.is_empty() => Ok(None),
        Ok(number) if number <= MAX_WIDTH => Ok(Some(number)),
        _ => Err(wrong("a field is too wide")),
    }
}
