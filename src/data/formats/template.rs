//! `template`: any row, by the recipe's own template.

use super::{Format, Row, RowError, TemplateUse, rendering};
use crate::data::example::{Example, Message};

/// Any fields; `data.template` says how they become text, in Jinja's language. Taken wherever a recipe has a template and
/// names no format.
///
/// - `user` and `assistant`, and maybe `system`, make a conversation; `assistant` alone makes one that begins with the answer.
/// - `prompt` and `completion`, or `completion` alone, make plain text.
/// - The variables are the row's fields, those that the recipe's `fields` name anew, and `row`, which holds all of them.
pub struct Template;

impl Format for Template {
    fn name(&self) -> &'static str {
        "template"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[]
    }

    fn template(&self) -> TemplateUse {
        TemplateUse::Required
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        let Some(templates) = row.templates() else {
            return Err(RowError::new([], "the format `template` needs `data.template` in the recipe"));
        };
        let variables = rendering::variables(row, []);
        if templates.is_plain() {
            return templates.completion(row, &variables);
        }
        let mut messages: Vec<_> = templates.system(row, &variables)?.into_iter().collect();
        messages.extend(templates.render_some("user", row, &variables)?.map(Message::user));
        messages.extend(templates.render_some("assistant", row, &variables)?.map(Message::assistant));
        Ok(Example::chat(messages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::config::RowTemplate;
    use crate::data::formats::{FormatName, RowFormat};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn chat(user: &str, assistant: &str) -> RowTemplate {
        RowTemplate { user: Some(user.into()), assistant: Some(assistant.into()), ..RowTemplate::default() }
    }

    fn read(template: &RowTemplate, row: &Value) -> Result<Example, RowError> {
        let row = row.as_object().unwrap();
        RowFormat::new(FormatName::Auto, &BTreeMap::new(), Some(template), row)?.read(row)
    }

    fn text(completion: &str, row: &Value) -> Result<String, RowError> {
        let template = RowTemplate { completion: Some(completion.into()), ..RowTemplate::default() };
        read(&template, row).map(|example| match example {
            Example::Completion { prompt, completion } if prompt.is_empty() => completion,
            other => panic!("plain text without a prompt, got {other:?}"),
        })
    }

    #[test]
    fn fields_become_turns() {
        let row = json!({"genes": ["AKT3", "LONP1"], "term": "mitochondrial genome maintenance", "id": null});
        let mut template = chat("Genes: {{ genes | join(', ') }}\n", "{{ term }}");
        let turns = vec![Message::user("Genes: AKT3, LONP1"), Message::assistant("mitochondrial genome maintenance")];
        assert_eq!(read(&template, &row).unwrap(), Example::chat(turns.clone()));
        template.system = Some("{% if id %}{{ id }}{% endif %}".into());
        assert_eq!(read(&template, &row).unwrap(), Example::chat(turns), "a blank system turn is left out");
        template.system = Some("{{ genes | length }} genes".into());
        let Example::Chat { messages, .. } = read(&template, &row).unwrap() else { panic!("a conversation") };
        assert_eq!(messages[0].content, "2 genes");
        let alone = RowTemplate { assistant: Some("{{ term }}".into()), ..RowTemplate::default() };
        assert!(matches!(read(&alone, &row).unwrap(), Example::Chat { messages, .. } if messages.len() == 1));
    }

    #[test]
    fn values_print_as_in_python() {
        let row = json!({"a": true, "b": null, "c": 3, "d": 0.5, "e": ["x", {"y": "é"}], "Gene Count": 4, "f": "<é>"});
        for (template, expected) in [
            ("{{ a }} {{ b or '-' }} {{ c }} {{ d }}", "True - 3 0.5"),
            ("{{ e | tojson }}", r#"["x", {"y": "é"}]"#),
            ("{{ row['Gene Count'] + 1 }}", "5"),
            ("{{ f.upper() }}|{{ e[1].y }}", "<É>|é"),
            ("{{ missing | default('-') }}{% if missing is defined %}x{% endif %}", "-"),
            ("a\n{% for x in e %}\n  {% if loop.first %}\n{{ x }}\n  {% endif %}\n{% endfor %}\n", "a\nx\n"),
        ] {
            assert_eq!(text(template, &row).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn prompt_and_completion_make_plain_text() {
        let template = RowTemplate {
            prompt: Some("{{ a }} -> ".into()),
            completion: Some("{{ b }}".into()),
            ..RowTemplate::default()
        };
        let example = read(&template, &json!({"a": "x", "b": "y"})).unwrap();
        assert_eq!(example, Example::Completion { prompt: "x -> ".into(), completion: "y".into() });
    }

    #[test]
    fn what_a_row_lacks_is_named() {
        let row = json!({"gene": {"name": "A2M"}, "term": "x"});
        let missing = read(&chat("a\n{{ genes }}", "{{ term }}"), &row).unwrap_err();
        assert_eq!(missing.message, "`template.user`, line 2: `genes` is undefined; the fields here: `gene`, `term`");
        assert!(missing.help.unwrap().contains("default"));
        for (template, name) in [
            ("{{ gene.symbol }}", "`gene.symbol` is undefined"),
            ("{% if genes %}x{% endif %}", "`genes` is undefined"),
            ("{% for x in genes %}x{% endfor %}", "`genes` is undefined"),
            ("{{ genes | join(', ') }}", "`genes` is undefined"),
            ("{{ genes.a.b }}", "`genes` is undefined"),
        ] {
            let error = text(template, &row).unwrap_err();
            assert!(error.message.contains(name), "{error:?}");
        }
    }

    #[test]
    fn blank_answers_loops_and_failures_are_errors_of_the_row() {
        let row = json!({"a": " ", "n": 3});
        assert!(
            read(&chat("q", "{{ a }}\n"), &row).unwrap_err().message.contains("`template.assistant` makes nothing")
        );
        assert!(read(&chat("{{ a }}", "b"), &row).unwrap_err().message.contains("`template.user` makes nothing"));
        assert!(text("{{ a }}", &row).unwrap_err().message.contains("`template.completion`"));
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}";
        assert!(text(endless, &row).unwrap_err().message.contains("does not come to an end"));
        let doubling =
            "{% set x = namespace(s='ab') %}{% for i in range(60) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s }}";
        assert!(text(doubling, &row).unwrap_err().message.contains("does not come to an end"));
        let null = json!({"a": null});
        assert!(text("{{ a }}", &null).unwrap_err().message.contains("is null"));
        assert_eq!(text("{{ a or 'b' }}", &null).unwrap(), "b");
        for deep in [format!("{{{{ {}1 }}}}", "-".repeat(130_000)), format!("{{{{ 1{} }}}}", "+1".repeat(65_000))] {
            let _ = text(&deep, &row); // It may fail, but not end the process.
        }
        for much in [
            "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
            "{{ 'x'.join(['y' * 1000000] * 1000) }}",
            "{{ 'a' * 100000000 }}",
        ] {
            assert!(text(much, &row).unwrap_err().message.contains("does not come to an end"), "{much}");
        }
        let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        assert!(text(deep, &row).is_err());
        assert!(text("{{ n | join }}", &row).unwrap_err().message.starts_with("`template.completion`, line 1: "));
    }
}
