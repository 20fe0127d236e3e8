//! `instruct`: Alpaca's `instruction`, `input` and `output`.

use super::{Format, RowError, fields};
use crate::data::example::{Example, Message};
use serde_json::{Map, Value};

/// `{"instruction": …, "input": …, "output": …}`: one question and one answer. `input` may be empty or missing;
/// otherwise it follows the instruction after an empty line.
pub struct Instruct;

impl Format for Instruct {
    fn name(&self) -> &'static str {
        "instruct"
    }

    fn required(&self) -> &'static [&'static str] {
        &["instruction", "output"]
    }

    fn read(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        let instruction = fields::some_text(row, "instruction")?;
        let input = match row.get("input") {
            None | Some(Value::Null) => "",
            Some(_) => fields::text(row, "input")?,
        };
        let output = fields::some_text(row, "output")?;
        let question = if input.is_empty() { instruction.to_string() } else { format!("{instruction}\n\n{input}") };
        Ok(Example::chat(vec![Message::user(question), Message::assistant(output)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Example, RowError> {
        Instruct.read(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn input_is_optional_and_may_be_empty() {
        let plain = Example::chat(vec![Message::user("do"), Message::assistant("done")]);
        for input in ["", r#""input": "","#, r#""input": null,"#] {
            assert_eq!(read(&format!(r#"{{"instruction": "do", {input} "output": "done"}}"#)).unwrap(), plain);
        }
        let with = read(r#"{"instruction": "do", "input": "this", "output": "done"}"#).unwrap();
        assert_eq!(with, Example::chat(vec![Message::user("do\n\nthis"), Message::assistant("done")]));
    }

    #[test]
    fn wrong_rows_are_named() {
        assert!(read(r#"{"instruction": "do", "input": 3, "output": "x"}"#).unwrap_err().message.contains("`input`"));
        assert!(read(r#"{"instruction": "do", "output": ""}"#).unwrap_err().message.contains("`output` is empty"));
        assert!(read(r#"{"output": "x"}"#).unwrap_err().message.contains("`instruction` is missing"));
    }
}
