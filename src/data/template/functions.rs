//! What transformers gives to chat templates besides Jinja2 itself.

use super::python;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use std::fmt::Write as _;

/// How the detail of an error begins that `raise_exception` made.
pub const REFUSED: &str = "raise_exception: ";

/// A JSON value as a template sees it, keys in their order.
pub fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value))).collect::<Vec<_>>())
        }
    }
}

/// The most bytes of a text that a template makes.
pub const MAX_TEXT: usize = 64 << 20;

/// The longest template; published ones have some thousand bytes.
const MAX_SOURCE: usize = 128 << 10;
/// Room for a parser that calls itself for each operator of the longest template. What is not used takes no memory.
const STACK: usize = 256 << 20;

/// Adds a template to an environment. The parser follows some chains of operators without a bound, so it gets a stack that the
/// longest of them does not fill: a base's template must not end the process.
///
/// # Errors
/// When the template is no valid Jinja2, or too long.
pub fn add(environment: &mut Environment<'static>, name: &'static str, source: String) -> Result<(), Error> {
    if source.len() > MAX_SOURCE {
        return Err(Error::new(
            ErrorKind::SyntaxError,
            format!("it has {} bytes; at most {MAX_SOURCE} are read", source.len()),
        ));
    }
    let mut outcome = None;
    std::thread::scope(|scope| {
        let work = || environment.add_template_owned(name, source.clone());
        if let Ok(thread) = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work) {
            let failed = || Error::new(ErrorKind::SyntaxError, "its parser fails");
            outcome = Some(thread.join().unwrap_or_else(|_| Err(failed())));
        }
    });
    // Where there is no room for such a stack, any template but a hostile one does with less.
    outcome.unwrap_or_else(|| environment.add_template_owned(name, source))
}

/// A rendered text, if it is not over [`MAX_TEXT`].
///
/// # Errors
/// When it is.
pub fn bounded(text: String) -> Result<String, Error> {
    if text.len() <= MAX_TEXT {
        return Ok(text);
    }
    Err(Error::new(ErrorKind::OutOfFuel, format!("it makes a text of {} bytes", text.len())))
}

/// `raise_exception(message)`.
pub fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{message}")))
}

/// Prints a value as Python does where the two differ.
pub fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        ValueKind::Number if !value.is_integer() => &number(value),
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(text).map_err(Error::from)
}

/// A number as Python writes it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => python::float(float),
        _ => value.to_string(),
    }
}

/// The filter `string`.
pub fn string(value: &Value) -> Value {
    match value.kind() {
        ValueKind::String => value.clone(),
        ValueKind::Number => Value::from(number(value)),
        _ => Value::from(value.to_string()),
    }
}

/// `tojson`, as Python's `json.dumps(value, ensure_ascii=False)`: no HTML escapes.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands over arguments by value")]
pub fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let mut writer = Json {
        out: String::new(),
        indent,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        comma: if indent.is_some() { "," } else { ", " }.to_string(),
        colon: ": ".to_string(),
    };
    if let Some(separators) = separators {
        let [comma, colon] = <[String; 2]>::try_from(separators)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: `separators` takes two texts"))?;
        (writer.comma, writer.colon) = (comma, colon);
    }
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(Value::from(writer.out))
}

struct Json {
    out: String,
    indent: Option<usize>,
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
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = value.try_iter()?.collect();
                self.items('[', ']', items.len(), depth, |json, i| json.value(&items[i], depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<_> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort_by_key(ToString::to_string);
                }
                self.items('{', '}', keys.len(), depth, |json, i| {
                    json.text(&keys[i].to_string());
                    let colon = json.colon.clone();
                    json.out.push_str(&colon);
                    json.value(&value.get_item(&keys[i])?, depth + 1)
                })?;
            }
            _ => self.text(&value.to_string()),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        count: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for i in 0..count {
            if i > 0 {
                let comma = self.comma.clone();
                self.out.push_str(&comma);
            }
            self.new_line(depth + 1);
            item(self, i)?;
        }
        if count > 0 {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
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
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `strftime_now(format)`: C's `strftime` in the C locale, for `seconds` since 1970 in UTC.
pub fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = DAYS[((days + 4) % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = characters.next().unwrap_or('%');
        let (directive, pad) = match directive {
            '-' => (characters.next().unwrap_or('%'), 0),
            other => (other, 2),
        };
        let _ = match directive {
            'Y' => write!(out, "{year}"),
            'y' => write!(out, "{:02}", year % 100),
            'm' => write!(out, "{month:0pad$}"),
            'd' => write!(out, "{day:0pad$}"),
            'e' => write!(out, "{day:2}"),
            'B' => write!(out, "{month_name}"),
            'b' | 'h' => write!(out, "{}", &month_name[..3]),
            'A' => write!(out, "{weekday}"),
            'a' => write!(out, "{}", &weekday[..3]),
            'H' => write!(out, "{hour:0pad$}"),
            'I' => write!(out, "{:0pad$}", (hour + 11) % 12 + 1),
            'p' => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            'M' => write!(out, "{minute:0pad$}"),
            'S' => write!(out, "{second:0pad$}"),
            'F' => write!(out, "{year}-{month:02}-{day:02}"),
            'T' => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            'Z' => write!(out, "UTC"),
            'z' => write!(out, "+0000"),
            '%' => write!(out, "%"),
            other => {
                let message = format!("strftime_now: the directive %{other} is not supported");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01 (Hinnant's `civil_from_days`).
const fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + (month <= 2) as i64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a %-d", 951_782_400).unwrap(), "2000-02-29 00:00:00 Tue 29");
        assert_eq!(strftime("%d %B %Y, %I %p", 1_709_251_199).unwrap(), "29 February 2024, 11 PM");
        assert_eq!(strftime("%F %A", 0).unwrap(), "1970-01-01 Thursday");
        assert!(strftime("%Q", 0).is_err());
    }
}
