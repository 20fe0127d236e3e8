//! `completion`: `prompt` and `completion`, plain text on both sides, or turns.

use super::{Format, Row, RowError, conversation, turn};
use crate::data::example::{Example, Message, Role};
use serde_json::Value;

/// `{"prompt": …, "completion": …}`, joined as they are; the prompt may be empty.
///
/// Where one of the two is a list of turns (TRL's conversational form), or the JSON text of one, the row is a conversation
/// through the chat template, and the assistant's turns in `completion` are learnt, those in `prompt` not. A text beside a
/// list is a turn: of the user in `prompt`, of the assistant in `completion`. Turns, `tools` and `system` are as in [`Chat`](super::chat::Chat).
pub struct Completion;

impl Format for Completion {
    fn name(&self) -> &'static str {
        "completion"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["prompt"], &["completion"]]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["tools", "system", "chat_template_kwargs"]
    }

    fn turn_fields(&self) -> &'static [&'static str] {
        turn::FIELDS
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        if ["prompt", "completion"].into_iter().any(|field| row.get(field).is_some_and(are_turns)) {
            return read_turns(row);
        }
        let prompt = row.text("prompt")?.to_string();
        let completion = row.answer("completion")?.to_string();
        Ok(Example::Completion { prompt, completion })
    }
}

/// Whether these are turns: a list, or the JSON text of one, whose entries say who speaks.
fn are_turns(value: &Value) -> bool {
    let speaks = |turn: &Value| ["role", "from"].iter().any(|key| turn.get(key).is_some_and(Value::is_string));
    match value {
        Value::Array(_) => true,
        Value::String(text) if text.trim_start().starts_with('[') => match serde_json::from_str(text) {
            Ok(Value::Array(turns)) => !turns.is_empty() && turns.iter().all(speaks),
            _ => false,
        },
        _ => false,
    }
}

fn read_turns(row: Row<'_>) -> Result<Example, RowError> {
    let mut messages = match row.get("prompt") {
        Some(Value::String(text)) if text.trim().is_empty() => Vec::new(),
        Some(turns) if are_turns(turns) => conversation::turns(row, "prompt")?,
        Some(Value::String(text)) => vec![Message::user(text)],
        _ => conversation::turns(row, "prompt")?,
    };
    for message in &mut messages {
        if message.role == Role::Assistant {
            message.train = Some(false);
        }
    }
    if let Some(Value::String(_)) = row.get("completion").filter(|value| !are_turns(value)) {
        messages.push(Message::assistant(row.answer("completion")?));
    } else {
        let turns = conversation::turns(row, "completion")?;
        if turns.iter().all(|turn| turn.role != Role::Assistant) {
            return Err(row
                .error("completion", "holds no turn of the assistant")
                .with_help("the completion's turns are learnt: add one of the assistant, or remove the row"));
        }
        messages.extend(turns);
    }
    conversation::finish(row, "completion", messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::Step;

    fn read(text: &str) -> Result<Example, RowError> {
        Completion.read(Row::new(&serde_json::from_str(text).unwrap()))
    }

    #[test]
    fn text_is_taken_as_it_is() {
        let example = read(r#"{"prompt": " a\n", "completion": " b ", "id": 3}"#).unwrap();
        assert_eq!(example, Example::Completion { prompt: " a\n".into(), completion: " b ".into() });
        assert!(read(r#"{"prompt": "", "completion": "b"}"#).is_ok());
    }

    #[test]
    fn what_is_not_text_is_named() {
        let error = read(r#"{"prompt": "a", "completion": 4}"#).unwrap_err();
        assert_eq!(
            (error.path, error.message.as_str()),
            (vec![Step::from("completion")], "`completion` must be text, got the integer 4")
        );
        for empty in [r#"" \n""#, "null"] {
            let error = read(&format!(r#"{{"prompt": "a", "completion": {empty}}}"#)).unwrap_err();
            assert!(error.message.contains("empty") && error.teaches_nothing, "{error:?}");
        }
        assert!(read(r#"{"prompt": "a"}"#).unwrap_err().message.contains("`completion` is missing"));
    }

    #[test]
    fn turns_are_a_conversation_of_which_the_completion_is_learnt() {
        let list = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "r"}]"#;
        let answer = r#"[{"role": "assistant", "content": "a"}, {"role": "user", "content": "s"}, {"role": "assistant", "content": "b"}]"#;
        let learnt = |row: &str| {
            let Example::Chat { messages, .. } = read(row).unwrap() else { panic!("a conversation") };
            messages.into_iter().map(|message| (message.content, message.train)).collect::<Vec<_>>()
        };
        let all = |texts: &[(&str, Option<bool>)]| {
            texts.iter().map(|(text, train)| ((*text).to_string(), *train)).collect::<Vec<_>>()
        };
        assert_eq!(
            learnt(&format!(r#"{{"prompt": {list}, "completion": {answer}}}"#)),
            all(&[("q", None), ("no", Some(false)), ("r", None), ("a", None), ("s", None), ("b", None)])
        );
        assert_eq!(
            learnt(&format!(r#"{{"prompt": {list}, "completion": "a"}}"#)),
            all(&[("q", None), ("no", Some(false)), ("r", None), ("a", None)])
        );
        assert_eq!(
            learnt(&format!(r#"{{"prompt": "q", "completion": {answer}}}"#)),
            all(&[("q", None), ("a", None), ("s", None), ("b", None)])
        );
        let texts = serde_json::json!({"prompt": list, "completion": answer}).to_string();
        assert_eq!(learnt(&texts), learnt(&format!(r#"{{"prompt": {list}, "completion": {answer}}}"#)));
        let plain = r#"{"prompt": "[1, 2]", "completion": "[{\"gene\": \"TP53\"}]"}"#;
        assert!(matches!(read(plain), Ok(Example::Completion { .. })), "JSON that is no conversation is text");
        let none = read(&format!(r#"{{"prompt": {list}, "completion": [{{"role": "user", "content": "x"}}]}}"#));
        let none = none.unwrap_err();
        assert!(!none.teaches_nothing && none.message.starts_with("`completion`"), "{none:?}");
    }
}
