//! Values as Python has them: literals that templates write, and `str` of what a document holds.

use crate::data::python_text;
use serde_json::{Number, Value};

/// Reads a Python literal: lists and tuples of texts, numbers, `True`, `False` and `None`, and dictionaries with texts as keys.
/// `None` where it is not one.
pub fn literal(text: &str) -> Option<Value> {
    let mut parser = Parser { rest: text.trim() };
    let value = parser.value(0)?;
    parser.skip();
    parser.rest.is_empty().then_some(value)
}

/// `str(value)`
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => python_text(other),
    }
}

/// The deepest nesting that is read.
const MAX_DEPTH: usize = 50;

struct Parser<'t> {
    rest: &'t str,
}

impl Parser<'_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, mark: char) -> bool {
        self.skip();
        let found = self.rest.strip_prefix(mark);
        if let Some(rest) = found {
            self.rest = rest;
        }
        found.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.skip();
        match self.rest.chars().next()? {
            '[' => self.items('[', ']', depth).map(|(items, _)| Value::Array(items)),
            '(' => {
                let (mut items, comma) = self.items('(', ')', depth)?;
                // Parentheses around one value without a comma are no tuple.
                if items.len() == 1 && !comma { items.pop() } else { Some(Value::Array(items)) }
            }
            '\'' | '"' => self.texts(),
            'r' | 'u' | 'b' if self.rest[1..].starts_with(['\'', '"']) => None,
            _ => self.word(),
        }
    }

    /// The items between two marks, and whether the last had a comma behind it.
    fn items(&mut self, open: char, close: char, depth: usize) -> Option<(Vec<Value>, bool)> {
        let (mut items, mut comma) = (Vec::new(), false);
        self.take(open).then_some(())?;
        while !self.take(close) {
            if !items.is_empty() && !comma {
                return None;
            }
            items.push(self.value(depth + 1)?);
            comma = self.take(',');
        }
        Some((items, comma))
    }

    /// Texts that follow each other are one.
    fn texts(&mut self) -> Option<Value> {
        let mut all = String::new();
        loop {
            self.skip();
            let Some(quote) = self.rest.chars().next().filter(|c| ['\'', '"'].contains(c)) else { break };
            self.rest = &self.rest[1..];
            self.quoted(quote, &mut all)?;
        }
        Some(Value::String(all))
    }

    fn quoted(&mut self, quote: char, out: &mut String) -> Option<()> {
        let mut chars = self.rest.chars();
        loop {
            match chars.next()? {
                '\n' => return None,
                '\\' => match chars.next()? {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    '\n' => {}
                    'x' => out.push(code(&mut chars, 2)?),
                    'u' => out.push(code(&mut chars, 4)?),
                    'U' => out.push(code(&mut chars, 8)?),
                    other if ['\\', '\'', '"'].contains(&other) => out.push(other),
                    'a' => out.push('\u{7}'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    'v' => out.push('\u{b}'),
                    '0' => out.push('\0'),
                    other => out.extend(['\\', other]),
                },
                other if other == quote => break,
                other => out.push(other),
            }
        }
        self.rest = chars.as_str();
        Some(())
    }

    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || "+-._".contains(c))).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            "None" => Some(Value::Null),
            _ => number(word),
        }
    }
}

fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let text: String = chars.by_ref().take(digits).collect();
    char::from_u32(u32::from_str_radix(&text, 16).ok()?)
}

fn number(word: &str) -> Option<Value> {
    let digits = word.trim_start_matches(['+', '-']);
    let is_whole = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
    if is_whole && (digits.len() == 1 || !digits.starts_with('0')) {
        return word.trim_start_matches('+').parse::<i64>().ok().map(Value::from);
    }
    if is_whole || !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    Number::from_f64(word.parse().ok()?).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_are_those_of_python() {
        for (text, expected) in [
            ("['a', \"it's\", 'x\\ny']", json!(["a", "it's", "x\ny"])),
            ("(\"a\",)", json!(["a"])),
            ("('a')", json!("a")),
            ("[1, -2, 2.5, True, None,]", json!([1, -2, 2.5, true, null])),
            ("'a' 'b'", json!("ab")),
            ("[]", json!([])),
            ("['\\u00e9\\x41']", json!(["éA"])),
        ] {
            assert_eq!(literal(text), Some(expected), "{text}");
        }
        for text in ["[true]", "['a' b]", "007", "[", "['a']x", "null", "²"] {
            assert_eq!(literal(text), None, "{text}");
        }
    }
}
