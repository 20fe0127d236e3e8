//! Expressions of a template in minijinja's dialect: `%` behind a text as a filter, and what may get large measured.

use super::translate::{Token, joined, word};
use std::ops::Range;

/// What `%` behind a text becomes.
pub const PERCENT: &str = "percent_format";
/// Measures what a list, a map, `+`, `*` or `set` makes: see [`measure`](super::measure).
pub const MEASURED: &str = "measured_value";
/// The same of what goes into a namespace.
pub const OF_NAMESPACE: &str = "measured_for_namespace";

/// The deepest brackets that are looked into; minijinja's parser refuses deeper ones.
const MAX_DEPTH: usize = 200;

/// Words behind which an expression begins, and before which one ends.
const KEYWORDS: [&str; 19] = [
    "and",
    "or",
    "not",
    "in",
    "is",
    "if",
    "else",
    "elif",
    "for",
    "set",
    "recursive",
    "with",
    "filter",
    "call",
    "macro",
    "import",
    "include",
    "from",
    "extends",
];

/// The inside of a `set` tag; what is set is measured.
pub fn set_tag(inner: &[Token<'_>]) -> String {
    let Some(equals) = outside(inner).find(|&i| inner[i].is("=")) else { return tag(inner) };
    // The mark of white space at the tag's end is no part of it.
    let filled = inner.iter().rposition(|token| !token.is_blank() && !token.is("-") && !token.is("+"));
    let end = filled.map_or(inner.len(), |last| last + 1).max(equals + 1);
    let (target, value) = (&inner[..equals], &inner[equals + 1..end]);
    let is_attribute = target.iter().any(|token| token.is("."));
    let is_constant = !value.iter().any(|token| matches!(token, Token::Name(_)) || token.is("*"));
    // A part of a value that is there: no call, no filter, no slice, no literal.
    let makes = |token: &Token<'_>| matches!(token, Token::Other("(" | "|" | "+" | "*" | ":" | "," | "{" | "~"));
    let is_path = !value.iter().any(makes) && !value.iter().find(|token| !token.is_blank()).is_some_and(|t| t.is("["));
    let value = formatted(value);
    let value = match (is_constant || (is_path && !is_attribute), is_attribute) {
        (true, _) => value,
        (false, true) => format!(" ({}) | {OF_NAMESPACE}", value.trim()),
        (false, false) => format!(" ({}) | {MEASURED}", value.trim()),
    };
    format!("{}={value}{}", joined(target), joined(&inner[end..]))
}

/// The inside of a tag, with its marks of white space.
pub fn tag(inner: &[Token<'_>]) -> String {
    let is_mark = |token: &Token<'_>| token.is("-") || token.is("+");
    let begin = usize::from(inner.first().is_some_and(is_mark));
    let end = inner.len() - usize::from(inner[begin..].last().is_some_and(is_mark));
    // The names of a loop may stand in brackets, and are no value.
    let is_loop = word(inner) == Some("for");
    let names = outside(inner).find(|&i| is_loop && inner[i].is("in")).unwrap_or(begin).min(end);
    format!("{}{}{}", joined(&inner[..names]), formatted(&inner[names..end]), joined(&inner[end..]))
}

/// An expression, or several.
pub fn formatted(inner: &[Token<'_>]) -> String {
    formatted_at(inner, 0)
}

/// An operand of an expression while it is written: where it begins, and whether it is to be measured.
#[derive(Default)]
struct Operand {
    begin: usize,
    grows: bool,
}

impl Operand {
    /// Ends it, and begins the next one.
    fn end(&mut self, out: &mut String) {
        if std::mem::take(&mut self.grows) {
            let begin = self.begin + out[self.begin..].len() - out[self.begin..].trim_start().len();
            let end = out.trim_end().len();
            if begin < end {
                out.insert_str(end, &format!(") | {MEASURED})"));
                out.insert_str(begin, "((");
            }
        }
        self.begin = out.len();
    }

    fn is_empty(&self, out: &str) -> bool {
        out[self.begin..].trim().is_empty()
    }
}

fn formatted_at(inner: &[Token<'_>], depth: usize) -> String {
    if depth > MAX_DEPTH {
        return joined(inner);
    }
    let mut out = String::new();
    let (mut sum, mut product) = (Operand::default(), Operand::default());
    let mut before: Option<Token<'_>> = None;
    let mut at = 0;
    while at < inner.len() {
        let token = inner[at];
        match token {
            Token::Text(text) => out.push_str(&text.replace("\\\n", "")),
            Token::Other("(" | "[" | "{") => {
                let end = closing(inner, at).unwrap_or(inner.len());
                out.push_str(&brackets(&inner[at..end], before, depth));
                before = Some(inner[end - 1]);
                at = end;
                continue;
            }
            _ if ends_sum(token) => {
                product.end(&mut out);
                sum.end(&mut out);
                out.push_str(token.source());
                (sum.begin, product.begin) = (out.len(), out.len());
            }
            Token::Other("+" | "-" | "~") if !is_unary(before) => {
                product.end(&mut out);
                sum.grows |= token.is("+") && !sum.is_empty(&out);
                out.push_str(token.source());
                product.begin = out.len();
            }
            Token::Other("*") => {
                product.grows |= !product.is_empty(&out);
                out.push('*');
            }
            _ => out.push_str(token.source()),
        }
        before = if token.is_blank() { before } else { Some(token) };
        at += 1;
        if matches!(token, Token::Text(_)) {
            let operator = next(inner, at).filter(|&i| inner[i].is("%"));
            if let Some(operand) = operator.and_then(|operator| operand(inner, operator + 1)) {
                out.extend([" | ", PERCENT, "(", &formatted_at(&inner[operand.clone()], depth + 1), ")"]);
                at = operand.end;
            }
        }
    }
    product.end(&mut out);
    sum.end(&mut out);
    out
}

/// Whether a token ends the operand of a comparison.
fn ends_sum(token: Token<'_>) -> bool {
    match token {
        Token::Name(name) => KEYWORDS.contains(&name),
        Token::Other(source) => [",", "=", ":", "<", ">", "!", "\\"].contains(&source),
        Token::Text(_) | Token::Member(_) => false,
    }
}

/// Whether `-` or `+` behind this is a sign: nothing stands there that it could be taken from.
fn is_unary(before: Option<Token<'_>>) -> bool {
    match before {
        None => true,
        Some(Token::Text(_) | Token::Member(_)) => false,
        Some(Token::Name(name)) => KEYWORDS.contains(&name),
        Some(Token::Other(source)) => !source.starts_with(|c: char| c.is_ascii_digit() || ")]}".contains(c)),
    }
}

/// Brackets with what is in them; those of a list, a map or a tuple, whose parts have names, are measured.
fn brackets(whole: &[Token<'_>], before: Option<Token<'_>>, depth: usize) -> String {
    let inside = &whole[1..whole.len().saturating_sub(1).max(1)];
    let text = format!("{}{}", whole[0].source(), formatted_at(inside, depth + 1));
    let text = if whole.len() > 1 { text + whole[whole.len() - 1].source() } else { text };
    let is_literal = whole[0].is("{")
        || match before {
            Some(Token::Name(name)) => {
                KEYWORDS.contains(&name) && !["for", "set", "call", "macro", "with"].contains(&name)
            }
            Some(Token::Text(_) | Token::Member(_)) => false,
            Some(Token::Other(source)) => ![")", "]", "}"].contains(&source),
            None => true,
        };
    let is_tuple = outside(inside).any(|i| inside[i].is(","));
    let has_names = inside.iter().any(|token| matches!(token, Token::Name(_)));
    if is_literal && has_names && (is_tuple || !whole[0].is("(")) { format!("({text} | {MEASURED})") } else { text }
}

/// The places of the tokens that stand in no brackets.
fn outside<'t>(inner: &'t [Token<'_>]) -> impl Iterator<Item = usize> + 't {
    let mut depth = 0usize;
    (0..inner.len()).filter(move |&i| {
        match inner[i] {
            Token::Other("(" | "[" | "{") => depth += 1,
            Token::Other(")" | "]" | "}") => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0
    })
}

/// The next token that is not white space.
fn next(inner: &[Token<'_>], from: usize) -> Option<usize> {
    (from..inner.len()).find(|&i| !inner[i].is_blank())
}

/// The operand that begins at a token: a name, a literal or brackets, what is called and taken of it, and its filters.
fn operand(inner: &[Token<'_>], from: usize) -> Option<Range<usize>> {
    let first = next(inner, from)?;
    let mut end = primary(inner, first)?;
    while let Some(at) = next(inner, end) {
        end = match inner[at].source() {
            "(" | "[" if !matches!(inner[at], Token::Text(_)) => closing(inner, at)?,
            "." | "|" => next(inner, at + 1)? + 1,
            _ => break,
        };
    }
    Some(first..end)
}

fn primary(inner: &[Token<'_>], mut at: usize) -> Option<usize> {
    while matches!(inner[at], Token::Other("-" | "+")) {
        at = next(inner, at + 1)?;
    }
    match inner[at] {
        Token::Other("(" | "[" | "{") => closing(inner, at),
        Token::Other(source) if !source.starts_with(|c: char| c.is_ascii_digit()) => None,
        _ => Some(at + 1),
    }
}

/// Behind the bracket that closes the one at a token.
pub fn closing(inner: &[Token<'_>], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, token) in inner.iter().enumerate().skip(at) {
        match token {
            Token::Other("(" | "[" | "{") => depth += 1,
            Token::Other(")" | "]" | "}") => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Some(i + 1);
                }
            }
            _ => {}
        }
    }
    None
}
