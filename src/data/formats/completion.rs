//! `completion`: `prompt` and `completion`, plain text on both sides.

use super::{Format, Row, RowError};
use crate::data::example::Example;

/// `{"prompt": …, "completion": …}`, joined as they are; the prompt may be empty.
pub struct Completion;

impl Format for Completion {
    fn name(&self) -> &'static str {
        "completion"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["prompt"], &["completion"]]
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        let prompt = row.text("prompt").map_err(lists_are_chat)?.to_string();
        let completion = row.some_text("completion").map_err(lists_are_chat)?.to_string();
        Ok(Example::Completion { prompt, completion })
    }
}

fn lists_are_chat(error: RowError) -> RowError {
    if error.message.ends_with("got a list") {
        return error.with_help("conversations belong into one `messages` list (format `chat`)");
    }
    error
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
    fn what_is_no_text_is_named() {
        let error = read(r#"{"prompt": "a", "completion": 4}"#).unwrap_err();
        assert_eq!(
            (error.path, error.message.as_str()),
            (vec![Step::from("completion")], "`completion` must be text, got the integer 4")
        );
        assert!(read(r#"{"prompt": "a", "completion": " \n"}"#).unwrap_err().message.contains("empty"));
        assert!(read(r#"{"prompt": "a"}"#).unwrap_err().message.contains("`completion` is missing"));
        let list = read(r#"{"prompt": [{"role": "user", "content": "a"}], "completion": "b"}"#).unwrap_err();
        assert!(list.help.unwrap().contains("messages"));
    }
}
