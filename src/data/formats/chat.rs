//! `chat`: a list of `messages`, each with a `role` and a `content`.

use super::{Format, RowError, fields};
use crate::data::example::{Example, Message, Role};
use serde_json::{Map, Value};

/// The most turns of a conversation. Finding the answers renders every beginning of it, so the work grows with the square.
const MAX_MESSAGES: usize = 2048;

/// `{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}`.
pub struct Chat;

impl Format for Chat {
    fn name(&self) -> &'static str {
        "chat"
    }

    fn required(&self) -> &'static [&'static str] {
        &["messages"]
    }

    fn read(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        refuse_tools(row, "tools")?;
        let turns = match row.get("messages") {
            Some(Value::Array(turns)) => turns,
            Some(other) => return Err(fields::wrong_type("messages", "a list of objects", other)),
            None => return Err(fields::missing(row, "messages")),
        };
        if turns.len() > MAX_MESSAGES {
            let message = format!("`messages` holds {} turns; at most {MAX_MESSAGES} are read", turns.len());
            return Err(
                RowError::new(["messages".into()], message).with_help("split the conversation into several rows")
            );
        }
        let read = |(index, turn)| read_turn(turn).map_err(|error| error.inside(index).inside("messages"));
        let messages = turns.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        if !messages.iter().any(|message| message.role == Role::Assistant) {
            return Err(RowError::new(["messages".into()], "`messages` holds no turn of the role `assistant`")
                .with_help("only the assistant's turns are learnt: add one, or remove the row"));
        }
        Ok(Example::chat(messages))
    }
}

fn read_turn(turn: &Value) -> Result<Message, RowError> {
    let Value::Object(turn) = turn else {
        let message = format!("a turn must be an object with `role` and `content`, got {}", fields::kind(turn));
        return Err(RowError::new([], message));
    };
    let name = fields::text(turn, "role")?;
    let Some(role) = Role::from_name(name) else {
        return Err(RowError::new(["role".into()], format!("unknown role `{}`", fields::shown(name)))
            .with_help("the roles are `system`, `user`, `assistant` and `tool`"));
    };
    refuse_tools(turn, "tool_calls")?;
    let content =
        if role == Role::Assistant { fields::some_text(turn, "content") } else { fields::text(turn, "content") };
    Ok(Message::new(role, content?))
}

/// Tool descriptions and calls are not rendered; to leave them out silently would teach something else than the row says.
fn refuse_tools(object: &Map<String, Value>, key: &'static str) -> Result<(), RowError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(_) => Err(RowError::new([key.into()], format!("`{key}` is not supported")).with_help(
            "write the tools and their calls into the turns' `content`, as the model is to read and write them",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::Step;

    fn read(text: &str) -> Result<Example, RowError> {
        Chat.read(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn turns_keep_their_order() {
        let example = read(
            r#"{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "tool_calls": null}, {"role": "tool", "content": "t"}]}"#,
        );
        let Example::Chat { messages, .. } = example.unwrap() else { panic!("a conversation") };
        let roles: Vec<_> = messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
    }

    #[test]
    fn errors_point_at_the_turn() {
        let cases = [
            (
                r#"{"messages": [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]}"#,
                "unknown role `bot`",
            ),
            (r#"{"messages": [{"role": "user", "content": "q"}, {"role": 1, "content": "a"}]}"#, "`role` must be text"),
        ];
        for (text, message) in cases {
            let error = read(text).unwrap_err();
            assert_eq!(error.path, [Step::Key("messages"), Step::Index(1), Step::Key("role")]);
            assert!(error.message.contains(message), "{error:?}");
        }
        for (text, message) in [
            (r#"{"messages": [{"role": "assistant", "content": " "}]}"#, "`content` is empty"),
            (r#"{"messages": [{"role": "assistant", "content": null}]}"#, "must be text, got null"),
            (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "no turn of the role `assistant`"),
            (r#"{"messages": []}"#, "no turn of the role `assistant`"),
            (r#"{"messages": ["hello"]}"#, "got text"),
            (r#"{"messages": "hello"}"#, "a list of objects"),
            (r#"{"messages": [{"from": "gpt", "value": "q"}]}"#, "`role` is missing; the fields here: `from`, `value`"),
            (r#"{"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}"#, "`tool_calls` is not"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.message.contains(message), "{error:?}");
        }
    }
}
