//! `alpaca`: `instruction`, `input` and `output`.

use super::{Format, Row, RowError, fields};
use crate::data::example::{Example, Message, Role};
use serde_json::Value;

/// The most earlier rounds of a row: as long a conversation as the chat formats read.
const MAX_HISTORY: usize = 1000;

/// `{"instruction": …, "input": …, "output": …}`: one question and one answer, through the chat template. Recipes may call
/// it `instruct` too.
///
/// - `input` may be empty or missing; otherwise it follows the instruction after an empty line.
/// - `system`, where it holds text, is the system turn.
/// - `history`, as LLaMA-Factory has it, is a list of `[question, answer]`: earlier rounds, which become turns before these.
///   Their answers are answers like the last, but for empty ones; `data.train_on_turns: last` leaves them unlearnt.
pub struct Alpaca;

impl Format for Alpaca {
    fn name(&self) -> &'static str {
        "alpaca"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["instruction"], &["output"]]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["input", "system", "history"]
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        let input = row.optional_text("input")?;
        let instruction = match row.get("instruction") {
            Some(_) if !input.trim().is_empty() => row.optional_text("instruction")?,
            _ => row.some_text("instruction")?,
        };
        let output = row.answer("output")?;
        let system = row.optional_text("system")?;
        let mut messages = Vec::new();
        if !system.trim().is_empty() {
            messages.push(Message::new(Role::System, system));
        }
        history(row, &mut messages)?;
        let question = match (instruction, input) {
            (instruction, "") => instruction.to_string(),
            (instruction, input) if instruction.trim().is_empty() => input.to_string(),
            (instruction, input) => format!("{instruction}\n\n{input}"),
        };
        messages.extend([Message::user(question), Message::assistant(output)]);
        Ok(Example::chat(messages))
    }
}

fn history(row: Row<'_>, messages: &mut Vec<Message>) -> Result<(), RowError> {
    let Some(history) = row.given("history") else { return Ok(()) };
    if history.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Ok(()); // as a table writes none
    }
    let Value::Array(rounds) = history else {
        return Err(row.wrong_type("history", "a list of [question, answer]", history));
    };
    if rounds.len() > MAX_HISTORY {
        let message = format!("holds {} rounds; at most {MAX_HISTORY} are read", rounds.len());
        return Err(row.error("history", message).with_help("split the conversation into several rows"));
    }
    for (i, round) in rounds.iter().enumerate() {
        let at = |message: String| RowError::new([i.into()], message).inside(fields::Step::Key(row.column("history")));
        let Some([Value::String(question), Value::String(answer)]) = round.as_array().map(Vec::as_slice) else {
            return Err(at("a round of `history` must be a list of two texts, [question, answer]".to_string()));
        };
        let mut answer = Message::assistant(answer);
        answer.train = answer.is_silent().then_some(false);
        messages.extend([Message::user(question), answer]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::Step;

    fn read(text: &str) -> Result<Example, RowError> {
        Alpaca.read(Row::new(&serde_json::from_str(text).unwrap()))
    }

    #[test]
    fn input_is_optional_and_may_be_empty() {
        let plain = Example::chat(vec![Message::user("do"), Message::assistant("done")]);
        for input in ["", r#""input": "","#, r#""input": null, "system": " ", "history": [],"#] {
            assert_eq!(read(&format!(r#"{{"instruction": "do", {input} "output": "done"}}"#)).unwrap(), plain);
        }
        let with = read(r#"{"instruction": "do", "input": "this", "output": "done"}"#).unwrap();
        assert_eq!(with, Example::chat(vec![Message::user("do\n\nthis"), Message::assistant("done")]));
    }

    #[test]
    fn system_and_history_come_first() {
        let row =
            r#"{"instruction": "do", "output": "done", "system": "be brief", "history": [["q", "a"], ["r", "b"]]}"#;
        let Example::Chat { messages, .. } = read(row).unwrap() else { panic!("a conversation") };
        let turns: Vec<_> = messages.iter().map(|message| (message.role.as_str(), message.content.as_str())).collect();
        let expected = [
            ("system", "be brief"),
            ("user", "q"),
            ("assistant", "a"),
            ("user", "r"),
            ("assistant", "b"),
            ("user", "do"),
            ("assistant", "done"),
        ];
        assert_eq!(turns, expected);
    }

    #[test]
    fn wrong_rows_are_named() {
        assert!(read(r#"{"instruction": "do", "input": 3, "output": "x"}"#).unwrap_err().message.contains("`input`"));
        assert!(read(r#"{"instruction": "do", "output": ""}"#).unwrap_err().message.contains("`output` is empty"));
        assert!(read(r#"{"output": "x"}"#).unwrap_err().message.contains("`instruction` is missing"));
        for round in [r#"["q"]"#, r#"["q", 1]"#, r#""q""#] {
            let row = format!(r#"{{"instruction": "do", "output": "x", "history": [["q", "a"], {round}]}}"#);
            let error = read(&row).unwrap_err();
            assert_eq!(error.path, [Step::from("history"), Step::Index(1)], "{error:?}");
        }
    }
}
