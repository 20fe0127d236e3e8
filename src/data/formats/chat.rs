//! `chat`: a list of `messages`, each with a `role` and a `content`.

use super::{Format, Row, RowError, conversation, turn};
use crate::data::example::Example;

/// `{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}`, as `OpenAI` has it.
///
/// - The list may be JSON text, as tables have it.
/// - Roles, in any case: `system` (or `developer`), `user`, `assistant`, `tool` (or `function`), `tool_call`, and the other
///   names of [`Roles`](super::Roles), with those that `data.roles` adds. A name that the chat template asks for stays.
/// - `content` is text, or a list of parts of the type `text`; a chat template that takes no list gets the texts, a line each.
/// - `tools` in the row, `tool_calls`, `tool_call_id` and `name` in a turn are for the chat template: see
///   [`conversation`](super::conversation). So is any other field of a turn, `reasoning_content` for one, as it stands.
/// - `train` (or `training`, `weight`, `loss`: see `learning`) in a turn of the assistant says whether it is learnt. An answer
///   that is empty is not, unless it says so.
/// - A member of an object that is null, in `tools` or anywhere in a turn, is taken out: tables put it there. JSON in a text
///   keeps it.
/// - `system` in the row, where it holds text, is the system turn.
pub struct Chat;

impl Format for Chat {
    fn name(&self) -> &'static str {
        "chat"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["messages"]]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["tools", "system", "chat_template_kwargs"]
    }

    fn turn_fields(&self) -> &'static [&'static str] {
        turn::FIELDS
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        conversation::read(row, "messages")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::Message;
    use crate::data::formats::Step;
    use serde_json::json;

    fn read(text: &str) -> Result<Example, RowError> {
        Chat.read(Row::new(&serde_json::from_str(text).unwrap()))
    }

    fn messages(text: &str) -> Vec<Message> {
        let Example::Chat { messages, .. } = read(text).unwrap() else { panic!("a conversation") };
        messages
    }

    #[test]
    fn turns_keep_their_order() {
        let messages = messages(
            r#"{"messages": [{"role": "developer", "content": ""}, {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "tool_calls": null}, {"role": "function", "content": "t"}]}"#,
        );
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert!(messages.iter().all(|message| message.extra.is_empty() && message.train.is_none()));
    }

    #[test]
    fn tools_and_calls_are_as_chat_templates_take_them() {
        let example = read(
            r#"{"tools": "[{\"name\": \"look\", \"parameters\": {}}]", "messages": [{"role": "user", "content": "q"},
                {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{\"gene\": \"TP53\"}"}},
                    {"name": "look", "arguments": {"gene": "A2M"}}, {"function": {"name": "look", "arguments": ""}}]},
                {"role": "tool", "tool_call_id": "1", "name": "look", "content": [{"type": "text", "text": "x"},
                    {"type": "text", "text": "y"}]},
                {"role": "assistant", "content": "a", "tool_calls": []}]}"#,
        );
        let Example::Chat { messages, tools, .. } = example.unwrap() else { panic!("a conversation") };
        assert_eq!(tools, [json!({"type": "function", "function": {"name": "look", "parameters": {}}})]);
        assert_eq!(messages[1].content, "");
        assert_eq!(messages[1].extra["reasoning_content"], "hm");
        assert_eq!(
            messages[1].extra["tool_calls"],
            json!([
                {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{\"gene\": \"TP53\"}"}},
                {"type": "function", "function": {"name": "look", "arguments": {"gene": "A2M"}}},
                {"function": {"name": "look", "arguments": ""}, "type": "function"},
            ])
        );
        assert_eq!(messages[2].content, "x\ny");
        let parts = json!([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]);
        assert_eq!(json!(messages[2].extra), json!({"tool_call_id": "1", "name": "look", "content": parts}));
        assert!(messages[3].extra.is_empty(), "an empty list of calls is not a call");
    }

    #[test]
    fn a_turn_may_say_whether_it_is_learnt() {
        let messages = messages(
            r#"{"messages": [{"role": "user", "content": "q", "weight": 1, "train": false},
                {"role": "assistant", "content": "a", "train": false}, {"role": "assistant", "content": "a", "weight": 1},
                {"role": "assistant", "content": "a", "training": true}, {"role": "assistant", "content": "a", "weight": 0.0},
                {"role": "assistant", "content": "a", "train": null}]}"#,
        );
        let train: Vec<_> = messages.iter().map(|message| message.train).collect();
        assert_eq!(train, [None, Some(false), Some(true), Some(true), Some(false), None]);
        assert!(messages.iter().all(|message| message.extra.is_empty()));
    }

    #[test]
    fn an_answer_that_says_nothing_is_not_learnt_unless_it_says_so() {
        let messages = messages(
            r#"{"messages": [{"role": "assistant", "content": " "}, {"role": "assistant", "content": null},
                {"role": "assistant", "content": "", "train": true}, {"role": "assistant", "content": "", "thinking": "hm"},
                {"role": "assistant", "content": "a"}]}"#,
        );
        let train: Vec<_> = messages.iter().map(|message| message.train).collect();
        assert_eq!(train, [Some(false), Some(false), Some(true), None, None]);
        let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]}"#;
        assert!(read(row).unwrap_err().teaches_nothing);
    }

    #[test]
    fn errors_point_at_the_turn() {
        let cases = [
            (r#"{"role": "narrator", "content": "a"}"#, "role", "unknown role `narrator`"),
            (r#"{"role": 1, "content": "a"}"#, "role", "`role` must be text"),
            (r#"{"role": "user", "content": null}"#, "content", "must be text"),
            (r#"{"role": "assistant"}"#, "content", "`content` is missing"),
            (r#"{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}"#, "content", "`image_url`"),
            (r#"{"role": "user", "content": ["text"]}"#, "content", "got text"),
            (r#"{"role": "user", "content": "q", "train": true}"#, "train", "only the assistant's"),
            (r#"{"role": "assistant", "content": "a", "train": "no"}"#, "train", "must be true or false"),
            (r#"{"role": "assistant", "content": "a", "weight": 0.5}"#, "weight", "or 0 or 1"),
            (r#"{"role": "assistant", "content": "a", "weight": 0, "train": true}"#, "weight", "contradicts `train`"),
            (r#"{"role": "user", "content": "q", "tool_calls": [{"name": "f"}]}"#, "tool_calls", "only the assistant"),
            (r#"{"role": "assistant", "content": "", "tool_calls": [1]}"#, "tool_calls", "got the integer 1"),
            (r#"{"role": "assistant", "tool_calls": [{"function": {}}]}"#, "tool_calls", "`name` is missing"),
            (
                r#"{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}"#,
                "tool_calls",
                "`arguments` must be an object",
            ),
            (r#"{"role": "assistant", "tool_calls": "f(1)"}"#, "tool_calls", "JSON"),
        ];
        for (turn, key, message) in cases {
            let error =
                read(&format!(r#"{{"messages": [{{"role": "assistant", "content": "q"}}, {turn}]}}"#)).unwrap_err();
            let expected = [Step::from("messages"), Step::Index(1), Step::from(key)];
            assert_eq!(error.path[..3], expected, "{error:?}");
            assert!(error.message.contains(message), "{error:?}");
        }
        for (text, message) in [
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no turn of the assistant"),
            (r#"{"messages": [{"role": "assistant", "content": "q", "weight": 0}]}"#, "is to be learnt"),
            (r#"{"messages": []}"#, "no turn of the assistant"),
            (r#"{"messages": ["hello"]}"#, "got text"),
            (r#"{"messages": "hello"}"#, "a list of turns"),
            (r#"{"messages": null}"#, "a list of turns"),
            (r#"{"messages": [{"author": "gpt"}]}"#, "`role` is missing; the fields here: `author`"),
            (r#"{"messages": [{"role": "assistant", "content": "q"}], "tools": "no"}"#, "`tools` must be a list"),
            (r#"{"messages": [{"role": "assistant", "content": "q"}], "tools": [1]}"#, "a tool must be an object"),
            (
                r#"{"messages": [{"role": "system", "content": "a"}, {"role": "assistant", "content": "q"}], "system": "b"}"#,
                "`system` is not what the first turn says",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message.contains(message), "{error:?}");
        }
    }

    #[test]
    fn turns_may_be_json_text_as_tables_have_them() {
        let turns = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
        let as_text = json!({ "messages": turns }).to_string();
        assert_eq!(messages(&as_text), messages(&format!(r#"{{"messages": {turns}}}"#)));
        let python = json!({"messages": "[{'role': 'user', 'content': 'q'}]"}).to_string();
        assert!(read(&python).unwrap_err().help.unwrap().contains("json.dumps"));
    }

    #[test]
    fn parts_of_other_interfaces_are_texts_and_thoughts_have_a_place() {
        let turn = |part: &str| format!(r#"{{"messages": [{{"role": "assistant", "content": [{part}]}}]}}"#);
        assert_eq!(messages(&turn(r#"{"type": "output_text", "text": "a"}"#))[0].content, "a");
        let error = read(&turn(r#"{"type": "thinking", "thinking": "hm"}"#)).unwrap_err();
        assert!(error.help.unwrap().contains("reasoning_content"));
    }

    #[test]
    fn a_system_text_beside_the_turns_is_a_turn() {
        let with = messages(r#"{"messages": [{"role": "assistant", "content": "q"}], "system": "s"}"#);
        assert_eq!((with.len(), with[0].role.as_str(), with[0].content.as_str()), (2, "system", "s"));
    }

    /// Llama 3 writes `parameters`; an empty list beside `function_call` is what some clients write.
    #[test]
    fn calls_are_found_under_either_name() {
        let calls = |turn: &str| {
            let row = format!(r#"{{"messages": [{{"role": "user", "content": "q"}}, {turn}]}}"#);
            let Example::Chat { messages, .. } = read(&row).unwrap() else { panic!("a conversation") };
            messages[1].extra["tool_calls"].clone()
        };
        let expected = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]);
        let named = r#"{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "parameters": {"x": 1}}]}"#;
        assert_eq!(calls(named), expected);
        let single = r#"{"role": "assistant", "content": "Let me look.", "tool_calls": [],
            "function_call": {"name": "f", "arguments": {"x": 1}}}"#;
        assert_eq!(calls(single), expected);
    }

    /// Of calls that follow one another each may have thoughts of its own; none is lost.
    #[test]
    fn calls_that_are_joined_keep_their_thoughts() {
        let call = |more: &str| {
            format!(r#"{{"role": "tool_call", "content": "{{\"name\": \"f\", \"arguments\": {{}}}}"{more}}}"#)
        };
        for (first, second, thoughts) in [
            (r#", "reasoning_content": "one""#, r#", "reasoning_content": "two""#, Some("one\n\ntwo")),
            (r#", "thinking": "one""#, r#", "reasoning_content": "two""#, Some("one\n\ntwo")),
            (r#", "reasoning_content": "one""#, "", Some("one")),
            ("", r#", "reasoning_content": "two""#, Some("two")),
            (r#", "reasoning": "one""#, r#", "reasoning": "one""#, Some("one")),
            (r#", "reasoning_content": """#, r#", "reasoning_content": "two""#, Some("two")),
            (r#", "reasoning_content": "one""#, r#", "reasoning_content": " ""#, Some("one")),
            ("", "", None),
        ] {
            let user = r#"{"role": "user", "content": "q"}"#;
            let row = format!(r#"{{"messages": [{user}, {}, {}]}}"#, call(first), call(second));
            let messages = messages(&row);
            assert_eq!(messages.len(), 2, "{row}");
            assert_eq!(messages[1].extra["tool_calls"].as_array().unwrap().len(), 2);
            let keys = ["reasoning_content", "thinking", "reasoning"];
            let found: Vec<_> = keys.iter().filter_map(|key| messages[1].extra.get(*key)?.as_str()).collect();
            assert_eq!(found, thoughts.into_iter().collect::<Vec<_>>(), "{row}");
        }
    }
}
