//! `sharegpt`: a list of `conversations`, each with a `from` and a `value`.

use super::{Format, Row, RowError, conversation, turn};
use crate::data::example::Example;

/// `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]}`, as `ShareGPT` has it.
///
/// - `from`: `human` or `user`; `gpt`, `assistant`, `chatgpt`, `model` or `bot`; `system`; `tool`, `observation`,
///   `function_response` or `function` for what a tool found; `function_call` or `tool_call` for the assistant's call of one,
///   whose `value` is the JSON text of `{"name": …, "arguments": {…}}`, or of a list of these; and the other names of
///   [`Roles`](super::Roles). Calls that follow one another are one turn.
/// - Turns with `role` and `content` are read too; which of the two, the row's first turn says.
/// - All else is as in [`Chat`](super::chat::Chat).
pub struct ShareGpt;

impl Format for ShareGpt {
    fn name(&self) -> &'static str {
        "sharegpt"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["conversations"]]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["tools", "system", "chat_template_kwargs"]
    }

    fn turn_fields(&self) -> &'static [&'static str] {
        turn::FIELDS
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        conversation::read(row, "conversations")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::Step;
    use serde_json::json;

    fn read(text: &str) -> Result<Example, RowError> {
        ShareGpt.read(Row::new(&serde_json::from_str(text).unwrap()))
    }

    #[test]
    fn speakers_become_roles_and_calls_are_parsed() {
        let example = read(
            r#"{"system": "s", "tools": [{"type": "function", "function": {"name": "look"}}], "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "{\"name\": \"look\", \"arguments\": {\"gene\": \"TP53\"}}"},
                {"from": "observation", "value": "found"}, {"from": "gpt", "value": "a", "weight": 0},
                {"from": "function_call", "value": "[{\"name\": \"look\"}, {\"name\": \"see\"}]"}]}"#,
        );
        let Example::Chat { messages, tools, .. } = example.unwrap() else { panic!("a conversation") };
        let turns: Vec<_> = messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
        let expected = [
            ("system", "s"),
            ("user", "q"),
            ("assistant", ""),
            ("tool", "found"),
            ("assistant", "a"),
            ("assistant", ""),
        ];
        assert_eq!(turns, expected);
        assert_eq!(messages[4].train, Some(false));
        assert_eq!(
            messages[2].extra["tool_calls"],
            json!([{"type": "function", "function": {"name": "look", "arguments": {"gene": "TP53"}}}])
        );
        assert_eq!(messages[5].extra["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(tools, [json!({"type": "function", "function": {"name": "look"}})]);
    }

    #[test]
    fn the_first_turn_says_which_names_a_row_has() {
        let plain = read(r#"{"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]}"#);
        let both = r#"{"conversations": [{"from": "user", "value": "q", "role": null, "content": null},
            {"from": "assistant", "value": "a", "role": null, "content": null}]}"#;
        assert_eq!(plain, read(both), "as a table has them that holds turns of both kinds");
        let open =
            read(r#"{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#);
        assert_eq!(plain.unwrap(), open.unwrap());
        let mixed =
            read(r#"{"conversations": [{"from": "user", "value": "q"}, {"role": "assistant", "content": "a"}]}"#);
        assert!(mixed.unwrap_err().message.starts_with("`from` is missing; the fields here: `role`, `content`"));
    }

    #[test]
    fn errors_point_at_the_turn() {
        for (turn, message) in [
            (r#"{"from": "narrator", "value": "a"}"#, "unknown role `narrator`"),
            (r#"{"from": "gpt", "value": 3}"#, "`value` must be text"),
            (r#"{"from": "function_call", "value": "look(TP53)"}"#, "JSON"),
            (r#"{"from": "function_call", "value": "{}"}"#, "`name` is missing"),
            (r#"{"from": "function_call", "value": "[]"}"#, "holds no call"),
        ] {
            let error =
                read(&format!(r#"{{"conversations": [{{"from": "human", "value": "q"}}, {turn}]}}"#)).unwrap_err();
            assert_eq!(error.path[..2], [Step::from("conversations"), Step::Index(1)]);
            assert!(error.message.contains(message), "{error:?}");
        }
    }
}
