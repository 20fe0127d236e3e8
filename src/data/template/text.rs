//! The methods of Python's `str`, where minijinja's lack something.

use super::format::{self, Given};
use super::functions::{MAX_TEXT, push, too_long};
use super::python;
use minijinja::value::Tuple;
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt::Write as _;

/// A method of `str`; `None` for one that is left to minijinja. Those that can make much of little are measured first: fuel
/// counts what is done, not how long it gets.
pub fn method(state: &State, text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    let (given, kwargs) = python::split_named(arguments);
    let named = |key: &str| kwargs.as_ref().and_then(|named| named.get::<Value>(key).ok());
    let first = given.first().and_then(Value::as_str);
    let filled = |left: bool, right: bool| fill(text, given, left, right);
    Ok(Some(match (name, given.len()) {
        ("replace", 2 | 3) => replace(text, given, named("count").as_ref())?,
        ("join", 1) => join(state, text, &given[0])?,
        ("format", _) => Value::from(format::format(text, &mut Given::arguments(given, kwargs.as_ref()))?),
        ("format_map", 1) => Value::from(format::format(text, &mut Given::mapping(&given[0]))?),
        ("strip", 0 | 1) => Value::from(strip(text, given, true, true)?),
        ("lstrip", 0 | 1) => Value::from(strip(text, given, true, false)?),
        ("rstrip", 0 | 1) => Value::from(strip(text, given, false, true)?),
        ("removeprefix", 1) if first.is_some() => {
            Value::from(text.strip_prefix(first.unwrap_or_default()).unwrap_or(text))
        }
        ("removesuffix", 1) if first.is_some() => {
            Value::from(text.strip_suffix(first.unwrap_or_default()).unwrap_or(text))
        }
        ("split" | "rsplit", 0..=2) => {
            let separator = given.first().cloned().or_else(|| named("sep"));
            let most = given.get(1).cloned().or_else(|| named("maxsplit"));
            split(state, text, separator, most, name == "rsplit")?
        }
        ("splitlines", 0 | 1) => {
            let keep = given.first().cloned().or_else(|| named("keepends")).is_some_and(|keep| keep.is_true());
            python::collected(state, lines(text, keep).map(Value::from))?.into()
        }
        ("partition" | "rpartition", 1) => partition(text, some(first)?, name == "rpartition")?,
        ("find" | "rfind" | "index" | "rindex" | "count", 1..=3) => search(text, name, some(first)?, &given[1..])?,
        ("startswith" | "endswith", 1..=3) => affix(text, name == "startswith", given)?,
        ("center", 1 | 2) => filled(true, true)?,
        ("ljust", 1 | 2) => filled(false, true)?,
        ("rjust", 1 | 2) => filled(true, false)?,
        ("zfill", 1) => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            let width = width(&given[0])?.saturating_sub(sign.len());
            let missing = width.saturating_sub(digits.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(missing)))
        }
        ("expandtabs", 0 | 1) => Value::from(expand_tabs(text, given.first().or(named("tabsize").as_ref()))?),
        ("swapcase", 0) => {
            let swap = |c: char| {
                if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect::<String>() }
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        ("casefold", 0) => Value::from(text.replace(['ß', 'ẞ'], "ss").to_lowercase()),
        ("title", 0) => Value::from(title(text)),
        ("capitalize", 0) => Value::from(capitalize(text)),
        _ => match predicate(text, name).filter(|_| given.is_empty()) {
            Some(holds) => Value::from(holds),
            None => return Ok(None),
        },
    }))
}

/// The methods that ask what a text is made of, where minijinja's answer is another one.
fn predicate(text: &str, name: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    Some(match name {
        "isspace" => all(is_space),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(|c| is_decimal(c) || "¹²³⁰⁴⁵⁶⁷⁸⁹₀₁₂₃₄₅₆₇₈₉".contains(c)),
        "istitle" => text.chars().any(char::is_alphabetic) && title(text) == text,
        "isidentifier" => {
            let begins = text.starts_with(|c: char| c == '_' || c.is_alphabetic());
            begins && text.chars().all(|c| c == '_' || c.is_alphanumeric())
        }
        "isprintable" => text.chars().all(is_printable),
        _ => return None,
    })
}

fn some(text: Option<&str>) -> Result<&str, Error> {
    text.ok_or_else(|| wrong("a text is expected"))
}

fn wrong(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

fn width(value: &Value) -> Result<usize, Error> {
    let width = i64::try_from(value.clone()).map_err(|_| wrong("a width must be a whole number"))?;
    let width = usize::try_from(width).unwrap_or(0);
    if width > MAX_TEXT { Err(too_long("a width")) } else { Ok(width) }
}

fn strip<'t>(text: &'t str, given: &[Value], left: bool, right: bool) -> Result<&'t str, Error> {
    let set = match given.first().filter(|set| !set.is_none()) {
        Some(set) => Some(set.as_str().ok_or_else(|| wrong("strip: a text is expected"))?),
        None => None,
    };
    let matches = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if left { text.trim_start_matches(matches) } else { text };
    Ok(if right { text.trim_end_matches(matches) } else { text })
}

fn replace(text: &str, given: &[Value], named: Option<&Value>) -> Result<Value, Error> {
    let (old, new) = (some(given[0].as_str())?, some(given[1].as_str())?);
    let most = match given.get(2).or(named) {
        Some(most) => i64::try_from(most.clone()).map_err(|_| wrong("replace: the count must be a whole number"))?,
        None => -1,
    };
    let times = text.matches(old).count().min(usize::try_from(most).unwrap_or(usize::MAX));
    let length = text.len().saturating_add(times.saturating_mul(new.len()));
    if length > MAX_TEXT {
        return Err(too_long("replace"));
    }
    Ok(Value::from(text.replacen(old, new, times)))
}

fn join(state: &State, separator: &str, parts: &Value) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, part) in parts.try_iter()?.enumerate() {
        state.consume_fuel(1)?;
        if i > 0 {
            push(&mut out, separator, "join")?;
        }
        push(&mut out, part.as_str().ok_or_else(|| wrong("join: every part must be a text"))?, "join")?;
    }
    Ok(Value::from(out))
}

fn split(
    state: &State,
    text: &str,
    separator: Option<Value>,
    most: Option<Value>,
    from_right: bool,
) -> Result<Value, Error> {
    let most = match most {
        Some(most) => i64::try_from(most).map_err(|_| wrong("split: `maxsplit` must be a whole number"))?,
        None => -1,
    };
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let limit = most.saturating_add(1);
    let mut parts: Vec<&str> = match separator.filter(|separator| !separator.is_none()) {
        Some(separator) => {
            let separator = some(separator.as_str())?;
            if separator.is_empty() {
                return Err(wrong("split: the separator is empty"));
            }
            if from_right {
                python::collected(state, text.rsplitn(limit, separator))?
            } else {
                python::collected(state, text.splitn(limit, separator))?
            }
        }
        None => words(state, text, most, from_right)?,
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// The words of a text, the last of them with all that is left; from the right in reverse.
fn words<'t>(state: &State, text: &'t str, most: usize, from_right: bool) -> Result<Vec<&'t str>, Error> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        python::count(state, parts.len())?;
        rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            return Ok(parts);
        }
        let end = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = end.filter(|_| parts.len() < most) else {
            parts.push(if from_right { rest.trim_start_matches(is_space) } else { rest.trim_end_matches(is_space) });
            if parts.len() > most {
                // With a bound, white space at the other end stays.
                let last = parts.len() - 1;
                parts[last] = rest;
            }
            return Ok(parts);
        };
        if from_right {
            let begin = at + rest[at..].chars().next().map_or(1, char::len_utf8);
            parts.push(&rest[begin..]);
            rest = &rest[..at];
        } else {
            parts.push(&rest[..at]);
            rest = &rest[at..];
        }
    }
}

/// Where Python's `splitlines` cuts.
fn lines(text: &str, keep: bool) -> impl Iterator<Item = &str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(ENDS).unwrap_or(rest.len());
        let ending =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        let line = &rest[..if keep { at + ending } else { at }];
        rest = &rest[at + ending..];
        Some(line)
    })
}

fn partition(text: &str, separator: &str, from_right: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(wrong("partition: the separator is empty"));
    }
    let cut = if from_right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match cut {
        Some((before, behind)) => [before, separator, behind],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

/// `start` and `end` of a slice of `length`, as Python's methods take them.
pub fn bounds(given: &[Value], length: usize) -> Result<(usize, usize), Error> {
    let bound = |at: usize, default: usize| -> Result<usize, Error> {
        match given.get(at).filter(|bound| !bound.is_none()) {
            Some(bound) => {
                let bound = i64::try_from(bound.clone()).map_err(|_| wrong("a bound must be a whole number"))?;
                let from_end = (length as i64).saturating_add(bound);
                let at = if bound < 0 { from_end } else { bound };
                Ok(usize::try_from(at).unwrap_or(0).min(length))
            }
            None => Ok(default),
        }
    };
    Ok((bound(0, 0)?, bound(1, length)?))
}

/// The part of a text between two characters, and where it begins.
fn part<'t>(text: &'t str, given: &[Value]) -> Result<Option<(&'t str, usize)>, Error> {
    if given.is_empty() {
        return Ok(Some((text, 0)));
    }
    let length = text.chars().count();
    let (from, to) = bounds(given, length)?;
    if from > to || given.first().and_then(Value::as_i64).is_some_and(|from| from > length as i64) {
        return Ok(None);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok(Some((&text[byte(from)..byte(to)], from)))
}

fn search(text: &str, name: &str, what: &str, given: &[Value]) -> Result<Value, Error> {
    let part = part(text, given)?;
    if name == "count" {
        return Ok(Value::from(part.map_or(0, |(part, _)| part.matches(what).count())));
    }
    let found = part.and_then(|(part, from)| {
        let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) }?;
        Some(from + part[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(wrong("substring not found")),
    }
}

fn affix(text: &str, at_start: bool, given: &[Value]) -> Result<Value, Error> {
    let part = part(text, &given[1..])?;
    let has = |affix: &str| {
        part.is_some_and(|(part, _)| if at_start { part.starts_with(affix) } else { part.ends_with(affix) })
    };
    if let Some(affix) = given[0].as_str() {
        return Ok(Value::from(has(affix)));
    }
    if !given[0].is_tuple() {
        return Err(wrong("startswith and endswith take a text, or a tuple of texts"));
    }
    for affix in given[0].try_iter()? {
        if has(some(affix.as_str())?) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn fill(text: &str, given: &[Value], left: bool, right: bool) -> Result<Value, Error> {
    let width = width(&given[0])?;
    let with = match given.get(1) {
        Some(with) => some(with.as_str())?.chars().next().unwrap_or(' '),
        None => ' ',
    };
    let missing = width.saturating_sub(text.chars().count());
    // Python puts the odd one on the left where the width is odd too.
    let before = match (left, right) {
        (true, true) => missing / 2 + (missing & width & 1),
        (true, false) => missing,
        _ => 0,
    };
    if text.len().saturating_add(missing.saturating_mul(with.len_utf8())) > MAX_TEXT {
        return Err(too_long("a width"));
    }
    let fill = |count: usize| std::iter::repeat_n(with, count);
    Ok(Value::from(fill(before).chain(text.chars()).chain(fill(missing - before)).collect::<String>()))
}

fn expand_tabs(text: &str, size: Option<&Value>) -> Result<String, Error> {
    let size = size.map_or(Ok(8), width)?;
    let (mut out, mut column) = (String::new(), 0);
    for character in text.chars() {
        match character {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                if out.len() + spaces > MAX_TEXT {
                    return Err(too_long("expandtabs"));
                }
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(character);
                column = 0;
            }
            _ => {
                out.push(character);
                column += 1;
            }
        }
    }
    Ok(out)
}

/// Each run of letters with a capital first.
pub fn title(text: &str) -> String {
    let (mut out, mut inside) = (String::with_capacity(text.len()), false);
    for character in text.chars() {
        if inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        inside = character.is_alphabetic();
    }
    out
}

/// The first character as a capital, the others small.
pub fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &characters.as_str().to_lowercase()
}

/// Whether Python's `str.isspace` holds.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// The value of a digit, of ASCII or of some other scripts: Arabic, Devanagari, Bengali, full width.
pub fn decimal(character: char) -> Option<u32> {
    let zeros = [0x30, 0x660, 0x6f0, 0x966, 0x9e6, 0xff10];
    zeros.into_iter().find_map(|zero| (character as u32).checked_sub(zero).filter(|digit| *digit < 10))
}

fn is_decimal(character: char) -> bool {
    decimal(character).is_some()
}

/// Whether `repr` leaves a character as it is: no control, no format character, no space but the plain one.
fn is_printable(character: char) -> bool {
    let is_format = matches!(character as u32,
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff
        | 0xfff9..=0xfffb | 0xe000..=0xf8ff | 0xe0000..=0xe007f | 0xf0000..);
    character == ' ' || !(character.is_control() || character.is_whitespace() || is_format)
}

/// A text as `repr` writes it; in ASCII alone where that is wanted.
///
/// # Errors
/// When what is written gets too long.
pub fn write_quoted(out: &mut String, text: &str, ascii: bool) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    if out.len().saturating_add(text.len()) > MAX_TEXT {
        return Err(too_long("str"));
    }
    out.push(quote);
    for character in text.chars() {
        if out.len() > MAX_TEXT {
            return Err(too_long("str"));
        }
        let _ = match character {
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            _ if character == quote => write!(out, "\\{quote}"),
            _ if is_printable(character) && (character.is_ascii() || !ascii) => write!(out, "{character}"),
            _ => match character as u32 {
                code @ 0..=0xff => write!(out, "\\x{code:02x}"),
                code @ 0x100..=0xffff => write!(out, "\\u{code:04x}"),
                code => write!(out, "\\U{code:08x}"),
            },
        };
    }
    out.push(quote);
    Ok(())
}
