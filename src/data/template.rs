//! Chat templates: a conversation as text, rendered as transformers renders it (Jinja2, its sandbox and its extensions).
//!
//! It does not tokenize. What is set up as in transformers' `apply_chat_template`: `trim_blocks` and `lstrip_blocks`, one
//! trailing newline of the template left out, loop controls, `raise_exception`, `strftime_now`, `tojson` without HTML
//! escapes, Python's methods on text, lists and maps, and `True`, `False` and `None` printed as Python does.
//! Not as there: `{% generation %}` marks nothing, and lists and maps are printed in minijinja's way.

pub(super) mod functions;

use super::example::Message;
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bounds a rendering's time and memory: steps, and 64 bytes each of what is made on the way.
const FUEL: u64 = 20_000_000;

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: Value,
    eos: Value,
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
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(functions::print);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", functions::tojson);
        environment.add_function("raise_exception", functions::raise_exception);
        environment.add_function("strftime_now", move |format: &str| functions::strftime(format, now));
        environment
            .add_template_owned(NAME, translate(source))
            .map_err(|error| Error::invalid(format!("the chat template is not valid: {error}")))?;
        let text = |token: Option<&str>| token.map_or(Value::UNDEFINED, Value::from);
        Ok(Self { environment, bos: text(bos), eos: text(eos) })
    }

    /// A conversation as text; with `add_generation_prompt` up to where the assistant's next answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation (`raise_exception`), fails, or does not come to an end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_values(&Self::values(messages), add_generation_prompt)
    }

    /// Turns as the template sees them, for [`ChatTemplate::render_values`].
    pub(super) fn values(messages: &[Message]) -> Vec<Value> {
        let value = |message: &Message| {
            let fields = [("role", message.role.as_str()), ("content", message.content.as_str())];
            Value::from_pairs(fields.map(|(name, text)| (name, Value::from(text))))
        };
        messages.iter().map(value).collect()
    }

    pub(super) fn render_values(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).expect("`at` added the template");
        let context = Value::from_pairs([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", self.bos.clone()),
            ("eos_token", self.eos.clone()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        template.render(context).map_err(|error| describe(&error))
    }
}

fn describe(error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    match error.kind() {
        ErrorKind::OutOfFuel => Error::invalid(format!("the chat template does not come to an end{line}"))
            .with_help("the template loops, or the conversation is far too long for it"),
        ErrorKind::InvalidOperation if error.detail().is_some_and(|detail| detail.starts_with(functions::REFUSED)) => {
            let reason = error.detail().unwrap_or_default().trim_start_matches(functions::REFUSED);
            Error::invalid(format!("the chat template refuses the conversation: {reason}"))
                .with_help("bring the roles into the order that the model's template asks for")
        }
        _ => Error::invalid(format!("the chat template fails: {error}")),
    }
}

/// The template in minijinja's dialect of Jinja2.
///
/// transformers' `{% generation %}` blocks, which mark the answers for its own training masks, become blocks that do nothing,
/// so that the white space around them is treated as around any other block. A backslash at a line's end inside a tag
/// continues a string, in Jinja2 as in Python.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%").into_iter().chain(rest.find("{{")).min() {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let close = if tag.starts_with("{%") { "%}" } else { "}}" };
        let Some(length) = tag[2..].find(close).map(|at| at + 4) else {
            rest = tag;
            break;
        };
        let inner = &tag[2..length - 2];
        match inner.trim_matches(['-', '+']).trim() {
            "generation" if close == "%}" => out.extend(["{%", &inner.replace("generation", "if true"), close]),
            "endgeneration" if close == "%}" => out.extend(["{%", &inner.replace("endgeneration", "endif"), close]),
            _ => out.push_str(&tag[..length].replace("\\\n", "")),
        }
        rest = &tag[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::Role;

    fn render(source: &str, messages: &[Message], prompt: bool) -> Result<String> {
        ChatTemplate::at(source, Some("<s>"), Some("</s>"), 1_700_000_000)?.render(messages, prompt)
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
        let nested = format!("{}1{}", "{{ (".repeat(5000), ") }}".repeat(5000));
        assert!(render(&nested, &[], false).is_err());
    }
}
