//! Chat templates: a conversation as text, rendered as transformers renders it (Jinja2, its sandbox and its extensions).
//!
//! It does not tokenize. What is set up as in transformers' `apply_chat_template`: `trim_blocks` and `lstrip_blocks`, one
//! trailing newline of the template left out, loop controls, `raise_exception`, `strftime_now`, `tojson` without HTML
//! escapes, Python's methods on text, lists and maps, values printed as Python does, a message's keys in the row's order,
//! and thoughts under each of the names that templates read.
//! Not as there: a loop over `none`, comparing values of different types, and JSON of what `map` or `select` give, do not fail;
//! filters for web pages, `kwargs` of a macro and `%` behind a variable do (`tests/jinja.rs` has the list); `escape` and `safe` leave
//! other text as it is. And what only a hostile template has: values of more than 127 bits, 4 Mi items or 200 lists in one another,
//! and a namespace inside of another value.

mod clock;
mod document;
mod environment;
mod expressions;
mod filters;
mod format;
pub(super) mod functions;
#[cfg(test)]
mod hostile_tests;
pub(super) mod json;
mod measure;
pub mod named;
mod numbers;
mod percent;
pub(super) mod python;
mod text;
mod translate;

pub(crate) use document::python_regex;
pub use document::{DocumentTemplate, python_text};

use super::example::{Message, Role};
use super::forms::Takes;
use crate::error::{Error, Result};
use environment::{MARKS, NAME, environment};
use minijinja::{Environment, ErrorKind, Value};
use serde_json::Map;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// The names under which messages have thoughts. The first is the one that templates read.
pub(super) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The same template, which puts [`MARKS`] around answers; where it has `{% generation %}` blocks.
    marking: Option<Environment<'static>>,
    /// What templates read besides the conversation: the texts of special tokens.
    variables: Vec<(String, Value)>,
    identity: String,
    /// The names that its expressions read: see [`ChatTemplate::reads`].
    names: BTreeSet<String>,
    /// Whether it prints a turn whole; found when it is first asked for.
    prints_turns: OnceLock<bool>,
    /// What it takes of each role; found when it is first asked for.
    takes: OnceLock<[Takes; Role::ALL.len()]>,
}

/// What a conversation gives its template besides the messages: the tools, and the variables of its row.
#[derive(Debug, Clone)]
pub(super) struct Scope {
    tools: Value,
    variables: Vec<(String, Value)>,
}

impl Scope {
    /// No tools are `None` to the template.
    pub fn new(tools: &[serde_json::Value], template_kwargs: &Map<String, serde_json::Value>) -> Self {
        let tools = if tools.is_empty() { Value::from(()) } else { tools.iter().map(functions::from_json).collect() };
        Self { tools, variables: bound(template_kwargs) }
    }
}

/// Variables as a template sees them.
fn bound(variables: &Map<String, serde_json::Value>) -> Vec<(String, Value)> {
    variables.iter().map(|(name, value)| (name.clone(), functions::from_json(value))).collect()
}

/// What of the time a template may print: nothing, the day, or all of it.
fn moment(source: &str, now: u64) -> u64 {
    if !source.contains("strftime_now") {
        return 0;
    }
    // Behind a percent sign: a block's end, or a directive, which may have a hyphen before its letter.
    let is_of_the_day = |rest: &str| {
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        rest.starts_with(|c: char| c.is_whitespace() || "}aAbBCdDeFgGhjmuUVwWxyY".contains(c))
    };
    if source.split('%').skip(1).all(is_of_the_day) { now / 86_400 } else { now }
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are what `bos_token` and `eos_token` print; undefined where there is none.
    ///
    /// `strftime_now` gives the time of this call, in UTC.
    ///
    /// # Errors
    /// When the template is no valid Jinja2: says where.
    pub fn new(source: &str, bos: Option<&str>, eos: Option<&str>) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::at(source, bos, eos, now)
    }

    /// As [`ChatTemplate::new`], with the time that `strftime_now` gives, in seconds since 1970 (UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn at(source: &str, bos: Option<&str>, eos: Option<&str>, now: u64) -> Result<Self> {
        let (translated, has_generation) = translate::translate(source);
        let names = translate::names(source);
        let environment = |marks| {
            let made = environment(translated.clone(), now, marks);
            made.map_err(|error| Error::invalid(format!("the chat template is not valid: {error}")))
        };
        let marking = has_generation.then(|| environment(true)).transpose()?;
        let identity = format!("{source}\u{0}{}", moment(source, now));
        let environment = environment(false)?;
        let tokens = [("bos_token", bos), ("eos_token", eos)];
        let variables = tokens.into_iter().filter_map(|(name, text)| Some((name.to_string(), text?.into()))).collect();
        let (variables_of, takes, prints_turns) = (Vec::new(), OnceLock::new(), OnceLock::new());
        let template = Self { environment, marking, variables: variables_of, identity, names, prints_turns, takes };
        Ok(template.with_variables(&variables))
    }

    /// The same template with more variables, in place of those of the same names: the texts of other special tokens, by their
    /// names in `tokenizer_config.json`.
    #[must_use]
    pub fn with_variables(mut self, variables: &Map<String, serde_json::Value>) -> Self {
        self.variables.extend(bound(variables));
        let written = serde_json::to_string(variables).unwrap_or_default();
        self.identity.extend(["\u{0}", &written]);
        self
    }

    /// What it takes of each role, as `probe` finds it.
    pub(super) fn takes(&self, probe: fn(&Self) -> [Takes; Role::ALL.len()]) -> &[Takes; Role::ALL.len()] {
        self.takes.get_or_init(|| probe(self))
    }

    /// Whether it reads this field of a turn: by its name, `turn.field` or `turn['field']`, or since it prints turns whole.
    pub(super) fn reads(&self, field: &str) -> bool {
        self.names.contains(field) || *self.prints_turns.get_or_init(|| self.prints_turns())
    }

    /// Whether it has this text in quotes, as it must where it asks for a role.
    pub(super) fn quotes(&self, text: &str) -> bool {
        self.names.contains(text)
    }

    /// Whether it writes a field of a turn that no template can know of.
    fn prints_turns(&self) -> bool {
        const UNHEARD: &str = "field-unheard-of";
        let turns = [Message::user("x"), Message::assistant("x")].map(|turn| turn.with(UNHEARD, UNHEARD.into()));
        self.render(&turns, &[], false).is_ok_and(|text| text.contains(UNHEARD))
    }

    /// All that decides what it renders.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// A conversation as text; with `add_generation_prompt` up to where the assistant's next answer begins. `tools` are the
    /// tools' JSON schemas; none are `None` to the template.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`), fails, or does not come to an end.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(Self::value).collect();
        self.render_values(&messages, &Scope::new(tools, &Map::new()), add_generation_prompt)
    }

    /// A turn as the template sees it. What is null is not there: few templates look for that.
    pub(super) fn value(message: &Message) -> Value {
        let of = |key: &str| message.extra.get(key).filter(|value| !value.is_null());
        let reasoning = REASONING.iter().find_map(|key| of(key)).map(functions::from_json);
        let mut pairs: Vec<(&str, Value)> = Vec::with_capacity(message.extra.len() + 4);
        // In transformers' order, so that a template that prints a whole message prints the same.
        if let Some(reasoning) = &reasoning {
            pairs.push(("thinking", of("thinking").map_or(reasoning.clone(), functions::from_json)));
        }
        pairs.push(("role", of("role").map_or_else(|| Value::from(message.role.as_str()), functions::from_json)));
        match message.extra.get("content") {
            None => pairs.push(("content", Value::from(message.content.as_str()))),
            Some(content) => pairs.extend(of("content").map(|_| ("content", functions::from_json(content)))),
        }
        for (key, value) in message.extra.iter().filter(|(_, value)| !value.is_null()) {
            match (key.as_str(), &reasoning) {
                ("role" | "content" | "thinking", _) => {}
                ("reasoning_content", Some(reasoning)) => pairs.push((key.as_str(), reasoning.clone())),
                _ => pairs.push((key.as_str(), functions::from_json(value))),
            }
        }
        if let Some(reasoning) = reasoning.filter(|_| of("reasoning_content").is_none()) {
            pairs.push(("reasoning_content", reasoning));
        }
        Value::from_pairs(pairs)
    }

    pub(super) fn render_values(&self, messages: &[Value], scope: &Scope, prompt: bool) -> Result<String> {
        self.render_in(&self.environment, messages, scope, prompt)
    }

    /// What `{% generation %}` blocks wrote: bytes of `text`, the rendering of the same conversation without generation
    /// prompt. `None` where the template has none, or makes another text of what they wrote.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], and when the text holds the characters that mark the answers.
    pub(super) fn answers(&self, messages: &[Value], scope: &Scope, text: &str) -> Result<Option<Vec<Range<usize>>>> {
        let Some(marking) = &self.marking else { return Ok(None) };
        if let Some(mark) = text.chars().find(|character| MARKS.contains(character)) {
            let message = format!("the text holds the character U+{:04X}, which is no character", mark as u32);
            return Err(Error::invalid(message).with_help("take it out of the row: answers are marked with it"));
        }
        let (plain, answers) = unmark(&self.render_in(marking, messages, scope, false)?);
        Ok((plain == text).then_some(answers))
    }

    fn render_in(
        &self,
        environment: &Environment<'_>,
        messages: &[Value],
        scope: &Scope,
        prompt: bool,
    ) -> Result<String> {
        let template = environment.get_template(NAME).expect("`environment` added the template");
        // A later pair hides an earlier one.
        let mut context = vec![("documents".to_string(), Value::from(()))];
        context.extend(self.variables.iter().chain(&scope.variables).cloned());
        context.push(("messages".to_string(), Value::from(messages)));
        context.push(("add_generation_prompt".to_string(), Value::from(prompt)));
        context.push(("tools".to_string(), scope.tools.clone()));
        let context = Value::from_pairs(context);
        template.render(context).and_then(functions::bounded).map_err(|error| describe(&error))
    }
}

/// The text without its marks, and what lay between them, in the order of their beginnings.
fn unmark(marked: &str) -> (String, Vec<Range<usize>>) {
    let (mut text, mut spans, mut open) = (String::with_capacity(marked.len()), Vec::new(), Vec::new());
    for piece in marked.split_inclusive(MARKS) {
        let written = piece.trim_end_matches(MARKS);
        text.push_str(written);
        match piece[written.len()..].chars().next() {
            Some(mark) if mark == MARKS[0] => {
                open.push(spans.len());
                spans.push(text.len()..text.len());
            }
            Some(_) => {
                if let Some(span) = open.pop() {
                    let span: &mut Range<usize> = &mut spans[span];
                    span.end = text.len();
                }
            }
            None => {}
        }
    }
    (text, spans)
}

fn describe(error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => Error::invalid(format!("the chat template does not come to an end{line}"))
            .with_help("the template loops, or the conversation is far too long for it"),
        ErrorKind::InvalidOperation if error.detail().is_some_and(|detail| detail.starts_with(functions::REFUSED)) => {
            let reason = error.detail().unwrap_or_default().trim_start_matches(functions::REFUSED);
            Error::invalid(format!("the chat template refuses the conversation: {reason}")).with_help(
                if reason.to_lowercase().contains("tool") {
                    "take a chat template that knows tools, or write the calls into the turns' `content`"
                } else {
                    "bring the roles into the order that the model's template asks for"
                },
            )
        }
        _ => Error::invalid(format!("the chat template fails: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message], prompt: bool) -> Result<String> {
        ChatTemplate::at(source, Some("<s>"), Some("</s>"), 1_700_000_000)?.render(messages, &[], prompt)
    }

    /// What transformers makes of these was found with Jinja2 3.1.6 under transformers' settings.
    #[test]
    fn renders_as_jinja2_under_transformers_settings() {
        let messages = [Message::new(Role::System, "é <b>"), Message::user(" hi "), Message::assistant("a\n")];
        let cases = [
            (
                "{% for m in messages %}\n  {% if m.role != 'x' %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n",
                "system\nuser\nassistant\n",
            ),
            ("{{ bos_token }}{{ messages[0]['content'] | tojson }}{{ eos_token }}\n\n", "<s>\"é <b>\"</s>\n"),
            (
                "{{ messages[:2] | tojson(indent=2) }}",
                "[\n  {\n    \"role\": \"system\",\n    \"content\": \"é <b>\"\n  },\n  {\n    \"role\": \"user\",\n    \"content\": \" hi \"\n  }\n]",
            ),
            ("{{ messages[1] | tojson }}", "{\"role\": \"user\", \"content\": \" hi \"}"),
            ("{{ messages[1].content.strip() }}{{ messages[-1]['content'].rstrip('\\n') }}|", "hia|"),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% if m.role == 'user' %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "1",
            ),
            ("{{ none }} {{ true }} {{ nothing }}|{{ tools is none }}|{{ x is defined }}", "None True |True|False"),
            ("{% for m in messages %}{{ loop.index0 }}{% if not loop.last %},{% endif %}{% endfor %}", "0,1,2"),
            ("{{ 'a,b'.split(',')[-1] }}{{ 'thing'.startswith('th') }}{{ messages | length }}", "bTrue3"),
            ("{{ strftime_now('%d %b %Y') }}", "14 Nov 2023"),
            ("a\\\n{{ 'b\\\nc' }}|", "a\\\nbc|"),
            ("{{ {'a': [1, 2.5, none, true]} | tojson }}", "{\"a\": [1, 2.5, null, true]}"),
            (
                "{%- for m in messages -%}{%- if m.role == 'assistant' -%}\n{% generation %}\n{{ m.content }}x\n{%- endgeneration %}\n{% endif %}{% endfor %}",
                "a\nx",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source, &messages, false).unwrap(), expected, "{source}");
        }
        assert_eq!(render("{% if add_generation_prompt %}go{% endif %}", &messages, true).unwrap(), "go");
    }

    /// Expectations found with transformers 5.23.
    #[test]
    fn messages_have_all_that_the_row_says() {
        let call =
            serde_json::json!({"function": {"name": "f", "arguments": {"b": [1.0, true], "c": 1e-7, "a": "it's"}}});
        let messages = [
            Message::user(" \u{1f}q\u{a0}").with("name", "n".into()),
            Message::calls(vec![call]).with("reasoning", "hm".into()),
        ];
        for (source, expected) in [
            (
                "{{ messages[1] | tojson }}",
                "{\"thinking\": \"hm\", \"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \
                 \"arguments\": {\"b\": [1.0, true], \"c\": 1e-07, \"a\": \"it's\"}}}], \"reasoning\": \"hm\", \"reasoning_content\": \"hm\"}",
            ),
            ("{{ messages[0].keys() | list }}", "['role', 'content', 'name']"),
            ("{{ messages[1].tool_calls[0].function.arguments.a ~ none }}", "it'sNone"),
            ("{{ [1, none, 'a', \"it's\", true, {'k': 2}] }}", "[1, None, 'a', \"it's\", True, {'k': 2}]"),
            ("{{ messages[1].content is defined }}{{ none is iterable }}", "FalseFalse"),
            ("{{ messages[0].content is iterable }}{{ 'a' is sequence }}{{ {} is sequence }}", "TrueTrueTrue"),
            ("{{ messages[0].content.strip() }}|{{ messages[0].content | trim }}|", "q|q|"),
            ("{{ 'a.b'.removesuffix('.b') }}{{ 'a.b'.removeprefix('a.') }}", "ab"),
            (
                "{% for k, v in messages[1].tool_calls[0].function.arguments | items %}{{ k }}={{ v }};{% endfor %}",
                "b=[1.0, True];c=1e-07;a=it's;",
            ),
            ("{{ 1e-7 }} {{ 1e-7 | string }} {{ 2.0 }} {{ 7 // 2 }} {{ 7 / 2 }}", "1e-07 1e-07 2.0 3 3.5"),
            ("{% if true %}\r\na\rb{{ 'c\r\nd' }}{% endif %}", "a\nbc\nd"),
            ("{{ 'héé'[1:] }}{{ 'abc'[::-1] }}{{ [1, 2, 3][-1] }}", "éécba3"),
        ] {
            assert_eq!(render(source, &messages, false).unwrap(), expected, "{source}");
        }
        let template = ChatTemplate::at("{{ tools }}|{{ tools is not none }}", None, None, 0).unwrap();
        assert_eq!(template.render(&messages, &[], false).unwrap(), "None|False");
        let tools = [serde_json::json!({"type": "function"})];
        assert_eq!(template.render(&messages, &tools, false).unwrap(), "[{'type': 'function'}]|True");
    }

    #[test]
    fn a_row_binds_variables_over_those_of_recipe_and_tokens() {
        let map = |value: serde_json::Value| value.as_object().unwrap().clone();
        let source =
            "{{ bos_token }}{{ pad_token }}{{ think }}{{ deep }}{{ messages | length }}{{ documents }}{{ tools }}";
        let template = ChatTemplate::at(source, Some("<s>"), None, 0).unwrap();
        let plain = template.identity().to_owned();
        let template = template.with_variables(&map(serde_json::json!({"pad_token": "<p>", "think": false})));
        assert_ne!(template.identity(), plain);
        let render = |kwargs| template.render_values(&[], &Scope::new(&[], &map(kwargs)), false).unwrap();
        assert_eq!(render(serde_json::json!({})), "<s><p>False0NoneNone");
        let kwargs =
            serde_json::json!({"think": true, "deep": [1], "bos_token": "<b>", "messages": [1, 2], "documents": []});
        assert_eq!(render(kwargs), "<b><p>True[1]0[]None");
    }

    #[test]
    fn a_template_that_prints_the_hour_is_another_one_in_each_second() {
        let identity = |source: &str, now| ChatTemplate::at(source, None, None, now).unwrap().identity().to_owned();
        for (source, changes) in [
            ("{% if true %}{{ messages }}{%- endif -%}", false),
            ("{%- if true -%}{{ strftime_now('%d %b %-d %Y') }}{% endif %}", false),
            ("{{ strftime_now('%-I:%-M') }}", true),
            ("{{ strftime_now('%' ~ 'H') }}", true),
        ] {
            assert_eq!(identity(source, 86_400) != identity(source, 86_401), changes, "{source}");
            assert_eq!(identity(source, 86_400) != identity(source, 172_800), source.contains("now"), "{source}");
        }
    }

    #[test]
    fn refusals_loops_and_mistakes_are_told() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &[], false).unwrap_err();
        assert_eq!(refused.to_string(), "the chat template refuses the conversation: roles must alternate");
        let many = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(render(many, &[], false).unwrap_err().to_string().contains("does not come to an end"));
        let doubling =
            "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}";
        assert!(render(doubling, &[], false).unwrap_err().to_string().contains("does not come to an end"));
        assert!(render("{% if %}", &[], false).unwrap_err().to_string().contains("not valid"));
        assert!(render("{{ nothing.more }}", &[], false).unwrap_err().to_string().contains("fails"));
        let torn = "{% for m in [1, 2] %}{% generation %}a{% if m == 1 %}{% continue %}{% endif %}{% break %}{% endgeneration %}{% endfor %}";
        assert!(render(torn, &[], false).is_ok());
        let nested = format!("{}1{}", "{{ (".repeat(5000), ") }}".repeat(5000));
        assert!(render(&nested, &[], false).is_err());
    }
}
