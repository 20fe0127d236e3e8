//! Jinja as published chat templates use it, compared with what Jinja2 makes of it under transformers' settings.
//!
//! `tests/parity/jinja_expressions.py` writes the golden file.

use crate::support::{golden, json};
use equipoise::data::{ChatTemplate, Message, Role};
use serde_json::Value;

/// What is refused here and not there: each with the reason.
const REFUSED: &[&str] = &[
    // Bytes, tables of characters, and methods of the type itself.
    "{{ 'abc'.encode('utf-8') }}",
    "{{ 'abc'.translate({97: 'x'}) }}",
    "{{ dict.fromkeys(['a', 'b'], 1) }}",
    // Filters for web pages.
    "{{ 'one two three four five' | wordwrap(10) | replace('\\n', '/') }}",
    "{{ 'a b/c?é' | urlencode }}",
    "{{ {'a': 'b c'} | urlencode }}",
    "{{ dict_ | xmlattr }}",
    "{{ 'http://a.b c' | urlize }}",
    "{{ ['a', 'A'] | unique(true) | list }}",
    // What minijinja's parser and objects do not have.
    "{{ +one }}",
    "{% set fmt = '%s!' %}{{ fmt % 'a' }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{% macro v(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ v(1, b=2) }}",
];

/// What fails there and not here.
const LENIENT: &[&str] = &[
    "{{ list_ | map('string') | tojson }}",
    "{{ dict_.items() | tojson }}",
    "{{ 'a' < 1 }}",
    "{{ [3, 'a'] | sort }}",
    "{% for i in none_ %}x{% else %}none{% endfor %}",
];

#[test]
fn expressions_are_those_of_jinja2() {
    let golden = json(&golden("jinja.json"));
    let messages: Vec<Message> = golden["messages"].as_array().unwrap().iter().map(message).collect();
    let variables = golden["variables"].as_object().unwrap();
    let now = golden["now"].as_u64().unwrap();
    let mut differing = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let source = case["source"].as_str().unwrap();
        let rendered = ChatTemplate::at(source, None, None, now)
            .map(|template| template.with_variables(variables))
            .and_then(|template| template.render(&messages, &[], false));
        let agrees = match (case["text"].as_str(), &rendered) {
            (Some(text), Ok(rendered)) => text == rendered,
            (Some(_), Err(_)) => REFUSED.contains(&source),
            (None, Ok(_)) => LENIENT.contains(&source),
            (None, Err(_)) => true,
        };
        if !agrees {
            let expected = case["text"].as_str().or(case["fails"].as_str()).unwrap();
            differing.push(format!("{source}\n  Jinja2: {expected:?}\n  here: {rendered:?}"));
        }
    }
    assert!(differing.is_empty(), "{} of them:\n{}", differing.len(), differing.join("\n"));
}

fn message(json: &Value) -> Message {
    let role = Role::from_name(json["role"].as_str().unwrap()).unwrap();
    let mut message = Message::new(role, json["content"].as_str().unwrap_or_default());
    for (key, value) in json.as_object().unwrap() {
        if key != "role" && key != "content" {
            message = message.with(key, value.clone());
        }
    }
    message
}
