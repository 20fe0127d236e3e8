//! `text`: plain text, all of which is learnt.

use super::{Format, Row, RowError};
use crate::data::example::Example;

/// `{"text": …}`: no chat template is involved, and every token is learnt. For a model to take up a body of text.
pub struct Text;

impl Format for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["text"]]
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        Ok(Example::Completion { prompt: String::new(), completion: row.answer("text")?.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_of_the_text_is_learnt_as_it_is() {
        let row = json!({"text": " TP53: tumour protein.\n", "id": 1});
        let example = Text.read(Row::new(row.as_object().unwrap())).unwrap();
        assert_eq!(
            example,
            Example::Completion { prompt: String::new(), completion: " TP53: tumour protein.\n".into() }
        );
        for (row, message) in [
            (json!({"text": " "}), "`text` is empty"),
            (json!({"text": 3}), "`text` must be text, got the integer 3"),
            (json!({"body": "x"}), "`text` is missing; the fields here: `body`"),
        ] {
            assert_eq!(Text.read(Row::new(row.as_object().unwrap())).unwrap_err().message, message);
        }
    }
}
