//! Filters of Jinja2 that minijinja lacks, or has in another way.

use super::functions::{MAX_TEXT, push};
use super::{numbers, percent, python, text};
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// Puts the filters into an environment.
pub fn add(environment: &mut Environment<'_>) {
    environment.add_filter("trim", trim);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("center", center);
    environment.add_filter("format", format);
    environment.add_filter("upper", |value: &Value| python::text(value).map(|text| text.to_uppercase()));
    environment.add_filter("lower", |value: &Value| python::text(value).map(|text| text.to_lowercase()));
    environment.add_filter("capitalize", |value: &Value| python::text(value).map(|value| text::capitalize(&value)));
    environment.add_filter("title", |value: &Value| python::text(value).map(|text| title(&text)));
    environment.add_filter("wordcount", |value: &Value| python::text(value).map(|text| words(&text)));
    environment.add_filter("truncate", truncate);
    environment.add_filter("filesizeformat", filesizeformat);
    environment.add_filter("striptags", |value: &Value| python::text(value).map(|text| striptags(&text)));
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("join", join);
    environment.add_filter("list", list);
    environment.add_filter("int", numbers::int);
    environment.add_filter("float", numbers::float);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("pprint", |_: &Value| Err::<Value, _>(wrong("the filter `pprint` is not supported")));
    environment.add_filter("attr", |value: &Value, name: &str| match value.kind() {
        // A mapping's entries are no attributes.
        ValueKind::Map => Ok(Value::UNDEFINED),
        _ => value.get_attr(name),
    });
}

pub fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// Arguments by place or name.
pub struct Arguments {
    given: Vec<Value>,
    pub named: Kwargs,
}

impl Arguments {
    pub fn new(given: Rest<Value>, named: Kwargs, most: usize) -> Result<Self, Error> {
        if given.len() > most {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        Ok(Self { given: given.0, named })
    }

    pub fn get(&self, at: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.given.get(at) {
            Some(value) => Ok(Some(value.clone())),
            None => self.named.get::<Option<Value>>(name),
        }
    }

    fn flag(&self, at: usize, name: &str, default: bool) -> Result<bool, Error> {
        Ok(self.get(at, name)?.map_or(default, |value| value.is_true()))
    }

    pub fn number(&self, at: usize, name: &str, default: usize) -> Result<usize, Error> {
        let Some(value) = self.get(at, name)? else { return Ok(default) };
        let number = usize::try_from(value).map_err(|_| wrong(format!("`{name}` must be a whole number")))?;
        if number > MAX_TEXT { Err(wrong(format!("`{name}` is too large"))) } else { Ok(number) }
    }
}

fn trim(value: &Value, characters: Option<&str>) -> Result<String, Error> {
    let value = python::text(value)?;
    let trimmed = match characters {
        Some(characters) => value.trim_matches(|character| characters.contains(character)),
        None => value.trim_matches(text::is_space),
    };
    Ok(trimmed.to_string())
}

fn default(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(given, named, 2)?;
    let other = arguments.get(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let if_false = arguments.flag(1, "boolean", false)?;
    arguments.named.assert_all_used()?;
    Ok(if value.is_undefined() || (if_false && !value.is_true()) { other } else { value.clone() })
}

fn center(state: &State, value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(given, named, 1)?;
    let width = arguments.number(0, "width", 80)?;
    arguments.named.assert_all_used()?;
    let text = python::text(value)?;
    text::method(state, &text, "center", &[Value::from(width)])
        .map(|result| result.unwrap_or_else(|| Value::from(text)))
}

fn replace(state: &State, value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(given, named, 3)?;
    let text_of = |at, name| arguments.get(at, name)?.map_or_else(|| Err(missing(name)), |value| python::text(&value));
    let (old, new) = (text_of(0, "old")?, text_of(1, "new")?);
    let count = arguments.get(2, "count")?.filter(|count| !count.is_none()).unwrap_or_else(|| Value::from(-1));
    arguments.named.assert_all_used()?;
    let text = python::text(value)?;
    let replaced = text::method(state, &text, "replace", &[Value::from(old), Value::from(new), count])?;
    Ok(replaced.unwrap_or_else(|| Value::from(text)))
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::MissingArgument, format!("`{name}` is missing"))
}

#[expect(clippy::needless_pass_by_value, reason = "minijinja hands over arguments by value")]
fn format(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let names: Vec<String> = named.args().map(String::from).collect();
    let format = Value::from(python::text(value)?);
    if names.is_empty() {
        return percent::percent(&format, &Value::from(Tuple::from(given.0)));
    }
    if !given.is_empty() {
        return Err(wrong("format: positional and named arguments at the same time"));
    }
    let pairs: Result<Vec<(String, Value)>, Error> =
        names.into_iter().map(|name| Ok((name.clone(), named.get::<Value>(&name)?))).collect();
    percent::percent(&format, &Value::from_pairs(pairs?))
}

/// Words behind white space, hyphens and brackets with a capital first.
fn title(text: &str) -> String {
    let (mut out, mut begins) = (String::with_capacity(text.len()), true);
    for character in text.chars() {
        let is_border = character.is_whitespace() || "-({[<".contains(character);
        if begins && !is_border {
            out.extend(character.to_uppercase());
        } else {
            out.extend(character.to_lowercase());
        }
        begins = is_border;
    }
    out
}

fn words(text: &str) -> usize {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    text.split(|character| !is_word(character)).filter(|word| !word.is_empty()).count()
}

fn truncate(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let arguments = Arguments::new(given, named, 4)?;
    let length = arguments.number(0, "length", 255)?;
    let killwords = arguments.flag(1, "killwords", false)?;
    let end = arguments.get(2, "end")?.map_or_else(|| Ok("...".to_string()), |end| python::text(&end))?;
    let leeway = arguments.number(3, "leeway", 5)?;
    arguments.named.assert_all_used()?;
    let text = python::text(value)?;
    if length < end.chars().count() {
        return Err(wrong("truncate: `length` is less than that of `end`"));
    }
    if text.chars().count() <= length + leeway {
        return Ok(text);
    }
    let cut: String = text.chars().take(length - end.chars().count()).collect();
    let cut = if killwords { cut.as_str() } else { cut.rsplit_once(' ').map_or(cut.as_str(), |(before, _)| before) };
    Ok(format!("{cut}{end}"))
}

fn filesizeformat(value: &Value, binary: Option<bool>) -> Result<String, Error> {
    let bytes = f64::try_from(value.clone()).map_err(|_| wrong("filesizeformat: a number is expected"))?;
    let binary = binary.unwrap_or(false);
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", bytes.trunc()));
    }
    let units = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut unit = base;
    for name in units {
        unit *= base;
        if bytes < unit || name == units[7] {
            return Ok(format!("{:.1} {name}", base * bytes / unit));
        }
    }
    Ok(String::new())
}

/// Without tags, and white space as single spaces; entities become their characters.
fn striptags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find('<') {
        let Some(close) = rest[open..].find('>') else { break };
        out.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    let out = out.split_whitespace().collect::<Vec<_>>().join(" ");
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.iter().fold(out, |out, (entity, character)| out.replace(entity, character))
}

fn dictsort(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(given, named, 3)?;
    let case_sensitive = arguments.flag(0, "case_sensitive", false)?;
    let by = arguments.get(1, "by")?.map_or_else(|| "key".to_string(), |by| by.to_string());
    let reverse = arguments.flag(2, "reverse", false)?;
    arguments.named.assert_all_used()?;
    if !matches!(by.as_str(), "key" | "value") || value.kind() != ValueKind::Map {
        return Err(wrong("dictsort: a mapping, sorted by `key` or `value`"));
    }
    let mut pairs = Vec::new();
    for key in value.try_iter()? {
        pairs.push((key.clone(), value.get_item(&key)?));
    }
    let sorted_by = |(key, value): &(Value, Value)| {
        let what = if by == "key" { key } else { value };
        match what.as_str().filter(|_| !case_sensitive) {
            Some(text) => Value::from(text.to_lowercase()),
            None => what.clone(),
        }
    };
    let kinds = |value: &Value| if value.kind() == ValueKind::Bool { ValueKind::Number } else { value.kind() };
    let first = pairs.first().map(|pair| kinds(&sorted_by(pair)));
    if pairs.iter().any(|pair| Some(kinds(&sorted_by(pair))) != first) {
        return Err(wrong("dictsort: values of different types have no order"));
    }
    pairs.sort_by_key(sorted_by);
    if reverse {
        pairs.sort_by_key(|pair| std::cmp::Reverse(sorted_by(pair)));
    }
    Ok(pairs.into_iter().map(|(key, value)| python::pair(key, value)).collect())
}

fn join(state: &State, value: &Value, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let arguments = Arguments::new(given, named, 2)?;
    let separator = arguments.get(0, "d")?.map_or_else(|| Ok(String::new()), |separator| python::text(&separator))?;
    let attribute = arguments.get(1, "attribute")?;
    arguments.named.assert_all_used()?;
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut out = String::new();
    for (i, item) in value.try_iter()?.enumerate() {
        state.consume_fuel(1)?;
        if i > 0 {
            push(&mut out, &separator, "join")?;
        }
        let item = match &attribute {
            Some(attribute) => member(item, attribute)?,
            None => item,
        };
        push(&mut out, &python::text(&item)?, "join")?;
    }
    Ok(out)
}

/// What a path of names and numbers, `a.0.b`, leads to.
fn member(value: Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return value.get_item(path) };
    path.split('.').try_fold(value, |value, step| match step.parse::<usize>() {
        Ok(index) => value.get_item(&Value::from(index)),
        Err(_) => value.get_attr(step),
    })
}

fn list(state: &State, value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    if value.is_none() {
        return Err(wrong("None is not iterable"));
    }
    if let Some(text) = value.as_str() {
        return python::collected(state, text.chars().map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str)))
            .map(Value::from);
    }
    python::collected(state, value.try_iter()?).map(Value::from)
}

fn indent(value: &Value, given: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let arguments = Arguments::new(given, named, 3)?;
    let by = match arguments.get(0, "width")? {
        Some(width) if width.as_str().is_some() => width.to_string(),
        _ => " ".repeat(arguments.number(0, "width", 4)?.min(4096)),
    };
    let first = arguments.flag(1, "first", false)?;
    let blank = arguments.flag(2, "blank", false)?;
    arguments.named.assert_all_used()?;
    let text = python::text(value)?;
    let mut out = String::with_capacity(text.len());
    for (i, line) in (text + "\n").split_terminator('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i > 0 || first) && (blank || !line.is_empty() || (i == 0 && first)) {
            push(&mut out, &by, "indent")?;
        }
        push(&mut out, line, "indent")?;
    }
    Ok(out)
}
