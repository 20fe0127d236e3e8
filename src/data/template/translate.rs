//! A template in minijinja's dialect of Jinja2.
//!
//! - `{% generation %}` blocks become filter blocks, so that white space around them is treated as around any other block.
//! - A backslash at a line's end inside a tag continues a string, in Jinja2 as in Python. Every end of a line becomes `\n`.
//! - `'…' % values` becomes a filter: minijinja's `%` knows numbers only.
//! - What lists, maps, `+`, `*` and `set` make is [measured](super::measure).
//! - A macro that reads `varargs` gets arguments that collect them; a default that reads another argument is set behind the
//!   macro's tag, where minijinja knows the other.

use super::expressions::{closing, formatted, set_tag, tag};
use super::functions::MAX_SOURCE;
use std::collections::BTreeSet;

/// What a `{% generation %}` block becomes.
pub const GENERATION: &str = "generation_block";
/// What collects a macro's further arguments.
pub const VARARGS: &str = "macro_varargs";

/// Is not there: the default of an argument that is set behind the macro's tag.
const MISSING: &str = "macro_argument_missing";

/// How many further arguments a macro that reads `varargs` may be given.
const MOST_VARARGS: usize = 16;

/// A part of a template.
#[derive(Debug)]
enum Part<'s> {
    /// Text, comments and raw blocks, as they are.
    Plain(&'s str),
    /// A tag: its kind, and what stands between the marks with `-` and `+`.
    Tag { is_block: bool, inner: Vec<Token<'s>> },
}

/// A piece of a tag.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'s> {
    Text(&'s str),
    Name(&'s str),
    /// A name behind a dot: never one of the language's words.
    Member(&'s str),
    Other(&'s str),
}

impl<'s> Token<'s> {
    pub const fn source(self) -> &'s str {
        match self {
            Self::Text(source) | Self::Name(source) | Self::Member(source) | Self::Other(source) => source,
        }
    }

    pub fn is_blank(self) -> bool {
        self.source().trim().is_empty()
    }

    pub fn is(self, source: &str) -> bool {
        self.source() == source && !matches!(self, Self::Text(_))
    }
}

/// The template, and whether it has `{% generation %}` blocks.
pub fn translate(source: &str) -> (String, bool) {
    if source.len() > MAX_SOURCE {
        // It is refused for that.
        return (source.to_owned(), false);
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut parts = split(&source);
    let varargs = macros_with_varargs(&parts);
    let mut out = String::with_capacity(source.len());
    let mut has_generation = false;
    for (i, part) in parts.iter_mut().enumerate() {
        match part {
            Part::Plain(text) => out.push_str(text),
            Part::Tag { is_block, inner } => {
                let (open, close) = if *is_block { ("{%", "%}") } else { ("{{", "}}") };
                out.push_str(open);
                match word(inner).filter(|_| *is_block) {
                    Some("generation") => {
                        has_generation = true;
                        out.push_str(&joined(inner).replace("generation", &format!("filter {GENERATION}")));
                    }
                    Some("endgeneration") => out.push_str(&joined(inner).replace("endgeneration", "endfilter")),
                    Some("set") => out.push_str(&set_tag(inner)),
                    Some("macro") => out.push_str(&macro_tag(inner, varargs.contains(&i))),
                    _ => out.push_str(&tag(inner)),
                }
                out.push_str(close);
            }
        }
    }
    (out, has_generation)
}

/// The names that a template's expressions take something by: those behind a dot, and texts. Comments and text outside of tags
/// hold none.
pub fn names(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for part in split(source) {
        let Part::Tag { inner, .. } = part else { continue };
        for token in inner {
            match token {
                Token::Member(name) => _ = names.insert(name.to_owned()),
                Token::Text(text) => _ = names.insert(text[1..text.len() - 1].to_owned()),
                _ => {}
            }
        }
    }
    names
}

/// The parts of a template. What comes behind a tag that is not closed stays as it is.
fn split(source: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let (mut plain, mut at) = (0, 0);
    while let Some(found) = source[at..].find('{') {
        let open = at + found;
        let behind = open + 2;
        match source.as_bytes().get(open + 1) {
            Some(b'#') => at = source[behind..].find("#}").map_or(source.len(), |end| behind + end + 2),
            Some(b'%' | b'{') => {
                let is_block = source.as_bytes()[open + 1] == b'%';
                let Some((inner, end)) = tokens(source, behind, is_block) else { break };
                if is_block && word(&inner) == Some("raw") {
                    at = end_of_raw(source, end);
                    continue;
                }
                parts.push(Part::Plain(&source[plain..open]));
                parts.push(Part::Tag { is_block, inner });
                (plain, at) = (end, end);
            }
            _ => at = open + 1,
        }
    }
    parts.push(Part::Plain(&source[plain..]));
    parts
}

/// Where a raw block that begins at `at` ends.
fn end_of_raw(source: &str, mut at: usize) -> usize {
    while let Some(found) = source[at..].find("{%") {
        let open = at + found;
        let inner = source[open + 2..].trim_start_matches(['-', '+']).trim_start();
        if inner.starts_with("endraw") {
            return source[open..].find("%}").map_or(source.len(), |end| open + end + 2);
        }
        at = open + 2;
    }
    source.len()
}

/// The tokens of the tag whose inside begins at `at`, and where the tag ends. The end's marks do not count inside brackets.
fn tokens<'s>(source: &'s str, mut at: usize, is_block: bool) -> Option<(Vec<Token<'s>>, usize)> {
    let close = if is_block { "%}" } else { "}}" };
    let (mut tokens, mut depth) = (Vec::new(), 0usize);
    loop {
        let rest = &source[at..];
        if depth == 0 && rest.starts_with(close) {
            return Some((tokens, at + 2));
        }
        let first = rest.chars().next()?;
        let (length, token): (usize, fn(&'s str) -> Token<'s>) = match first {
            '\'' | '"' => (end_of_text(rest)?, Token::Text),
            _ if first.is_alphabetic() || first == '_' => {
                let is_member =
                    tokens.iter().rfind(|token: &&Token<'_>| !token.is_blank()).is_some_and(|it| it.is("."));
                let token = if is_member { Token::Member } else { Token::Name };
                (rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()), token)
            }
            _ if first.is_whitespace() => (rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len()), Token::Other),
            _ if first.is_ascii_digit() => {
                (rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len()), Token::Other)
            }
            _ => {
                match first {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
                (first.len_utf8(), Token::Other)
            }
        };
        tokens.push(token(&rest[..length]));
        at += length;
    }
}

/// The length of the text literal that a source begins with.
fn end_of_text(source: &str) -> Option<usize> {
    let quote = source.chars().next()?;
    let mut escaped = false;
    for (at, character) in source.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The word that a block begins with.
pub(super) fn word<'s>(inner: &[Token<'s>]) -> Option<&'s str> {
    let mut tokens = inner.iter().filter(|token| !token.is_blank() && !token.is("-") && !token.is("+"));
    match tokens.next() {
        Some(Token::Name(word)) => Some(word),
        _ => None,
    }
}

pub(super) fn joined(inner: &[Token<'_>]) -> String {
    inner.iter().map(|token| token.source()).collect()
}

/// The macros, by the number of their part, whose bodies read `varargs`.
fn macros_with_varargs(parts: &[Part<'_>]) -> Vec<usize> {
    let (mut found, mut open) = (Vec::new(), Vec::new());
    for (i, part) in parts.iter().enumerate() {
        let Part::Tag { is_block, inner } = part else { continue };
        match word(inner).filter(|_| *is_block) {
            Some("macro") => open.push(i),
            Some("endmacro") => _ = open.pop(),
            _ => {
                if inner.contains(&Token::Name("varargs")) {
                    found.extend(open.last());
                }
            }
        }
    }
    found
}

/// The inside of a macro's tag, and maybe further tags behind it: one that makes a tuple of further arguments, and one for each
/// default that reads another argument.
fn macro_tag(inner: &[Token<'_>], reads_varargs: bool) -> String {
    let whole = || tag(inner);
    let Some(open) = inner.iter().position(|token| token.is("(")) else { return whole() };
    let Some(close) = closing(inner, open).map(|behind| behind - 1) else { return whole() };
    let arguments = arguments(&inner[open + 1..close]);
    let names: Vec<&str> = arguments.iter().filter_map(|argument| word(argument)).collect();
    let (mut written, mut tags) = (Vec::new(), Vec::new());
    for argument in &arguments {
        let default = argument.iter().position(|token| token.is("="));
        let reads = |token: &Token<'_>| matches!(token, Token::Name(name) if names.contains(name));
        match (word(argument), default) {
            (Some(name), Some(equals)) if argument[equals..].iter().any(reads) => {
                written.push(format!("{name}={MISSING}"));
                let value = formatted(&argument[equals + 1..]);
                tags.push(format!("if {name} is undefined %}}{{% set {name} = {} %}}{{% endif", value.trim()));
            }
            _ => written.push(formatted(argument).trim().to_owned()),
        }
    }
    if reads_varargs {
        let more: Vec<String> = (0..MOST_VARARGS).map(|i| format!("macro_vararg{i}")).collect();
        written.extend(more.iter().map(|name| format!("{name}={MISSING}")));
        tags.push(format!("set varargs = {VARARGS}({})", more.join(", ")));
    }
    if tags.is_empty() {
        return whole();
    }
    // White space behind the macro's tag is treated by the marks of its end, which move to the last tag.
    let end = joined(&inner[close + 1..]);
    format!("{}({}) %}}{{% {}{end}", joined(&inner[..open]), written.join(", "), tags.join(" %}{% "))
}

/// The arguments between a macro's brackets.
fn arguments<'t, 's>(inner: &'t [Token<'s>]) -> Vec<&'t [Token<'s>]> {
    let (mut found, mut begin, mut depth) = (Vec::new(), 0, 0usize);
    for (i, token) in inner.iter().enumerate() {
        match token {
            Token::Other("(" | "[" | "{") => depth += 1,
            Token::Other(")" | "]" | "}") => depth = depth.saturating_sub(1),
            Token::Other(",") if depth == 0 => {
                found.push(&inner[begin..i]);
                begin = i + 1;
            }
            _ => {}
        }
    }
    found.push(&inner[begin..]);
    found.retain(|argument| argument.iter().any(|token| !token.is_blank()));
    found
}

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn only_what_is_a_tag_is_translated() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "{% filter generation_block %}a{% endfilter %}"),
            (
                "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}",
                "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}",
            ),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{{ '%s' % a.b[1](2) | f ~ c }}", "{{ '%s' | percent_format(a.b[1](2) | f) ~ c }}"),
            ("{{ a % 2 }}{{ {'a': {}} }}", "{{ a % 2 }}{{ {'a': {}} }}"),
            ("{{ 'a\\\nb' }}", "{{ 'ab' }}"),
        ] {
            assert_eq!(translate(source).0, expected);
        }
    }
}
