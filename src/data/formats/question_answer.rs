//! `question_answer`: a question, what it is asked about, and an answer.

use super::fields::{self, Step};
use super::{Format, Row, RowError};
use crate::data::example::{Example, Message};
use serde_json::Value;

/// `{"question": …, "answer": …}` and the like, through the chat template.
///
/// What is asked: the texts of `context`, `contexts` and `snippets`, where a row has them, and the `question`, with an empty
/// line between each. Each of the three may be a text, a list of texts, or a list of objects with `text` (as `BioASQ` has its
/// snippets); `context` may be an object with `contexts` (as `PubMedQA` has it on the Hub).
///
/// What is learnt: `long_answer` (`PubMedQA`), else `ideal_answer` (`BioASQ`; of a list the first, the others say the same),
/// else `answer`. Where a row has `answer` beside one of the first two, as `PubMedQA` has its yes, no or maybe, both are
/// learnt: the long answer, an empty line, and `Answer: yes`. So the model reasons before it decides, and what it decided
/// can be found at the end. To learn the decision alone, write a `template`.
pub struct QuestionAnswer;

const LONG: [&str; 2] = ["long_answer", "ideal_answer"];
const CONTEXT: [&str; 3] = ["context", "contexts", "snippets"];

impl Format for QuestionAnswer {
    fn name(&self) -> &'static str {
        "question_answer"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["question"], &["answer", "long_answer", "ideal_answer"]]
    }

    fn optional(&self) -> &'static [&'static str] {
        &CONTEXT
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        let question = row.some_text("question")?;
        let mut asked = Vec::new();
        for field in CONTEXT {
            contexts(row, field, &mut asked)?;
        }
        asked.push(question);
        Ok(Example::chat(vec![Message::user(asked.join("\n\n")), Message::assistant(answer(row)?)]))
    }
}

/// Adds the texts of a field that are not blank.
fn contexts<'a>(row: Row<'a>, field: &'static str, texts: &mut Vec<&'a str>) -> Result<(), RowError> {
    let Some(mut value) = row.given(field) else { return Ok(()) };
    let mut path = vec![Step::Key(row.column(field))];
    if let Some(inner) = value.as_object().and_then(|object| object.get("contexts")) {
        value = inner;
        path.push("contexts".into());
    }
    let wrong = |path: &[Step], found: &Value| {
        let message = format!("`{field}` must hold text or a list of texts, got {}", fields::kind(found));
        RowError::new(path.to_vec(), message)
    };
    let mut add = |text: &'a str| texts.extend(Some(text.trim()).filter(|text| !text.is_empty()));
    match value {
        Value::String(text) => add(text),
        Value::Array(list) => {
            for (index, part) in list.iter().enumerate() {
                let Some(text) = part.as_str().or_else(|| part.as_object()?.get("text")?.as_str()) else {
                    path.push(index.into());
                    return Err(wrong(&path, part));
                };
                add(text);
            }
        }
        other => return Err(wrong(&path, other)),
    }
    Ok(())
}

fn answer(row: Row<'_>) -> Result<String, RowError> {
    let long = match row.first_given(&LONG) {
        None => return row.answer("answer").map(str::to_string),
        Some((field, Value::Array(list))) if field == "ideal_answer" => match list.first() {
            Some(Value::String(text)) if !text.trim().is_empty() => text,
            Some(Value::String(_)) | None => return Err(row.empty(field).of_nothing()),
            Some(other) => return Err(row.wrong_type(field, "text or a list of texts", other)),
        },
        Some((field, _)) => row.answer(field)?,
    };
    let short = row.optional_text("answer")?.trim();
    Ok(if short.is_empty() { long.to_string() } else { format!("{}\n\nAnswer: {short}", long.trim_end()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(row: &Value) -> Result<Example, RowError> {
        QuestionAnswer.read(Row::new(row.as_object().unwrap()))
    }

    #[test]
    fn contexts_come_first_and_the_long_answer_before_the_short() {
        for (row, user, assistant) in [
            (json!({"question": "q?", "answer": "a"}), "q?", "a"),
            (json!({"question": "q?", "answer": "a", "context": "c", "qtype": 1}), "c\n\nq?", "a"),
            (
                json!({"question": "q?", "contexts": [" c ", "", "d"], "long_answer": "l", "answer": "yes"}),
                "c\n\nd\n\nq?",
                "l\n\nAnswer: yes",
            ),
            (
                json!({"question": "q?", "context": {"contexts": ["c"], "labels": ["x"]}, "long_answer": "l", "answer": null}),
                "c\n\nq?",
                "l",
            ),
            (
                json!({"question": "q?", "snippets": [{"text": "s"}, "t"], "ideal_answer": ["i", "j"], "long_answer": null}),
                "s\n\nt\n\nq?",
                "i",
            ),
            (json!({"question": "q?", "snippets": [], "ideal_answer": "i"}), "q?", "i"),
        ] {
            assert_eq!(read(&row).unwrap(), Example::chat(vec![Message::user(user), Message::assistant(assistant)]));
        }
    }

    #[test]
    fn wrong_rows_are_named() {
        for (row, message) in [
            (json!({"question": " ", "answer": "a"}), "`question` is empty"),
            (json!({"question": "q", "answer": ""}), "`answer` is empty"),
            (json!({"question": "q"}), "`answer` is missing"),
            (json!({"question": "q", "answer": 4}), "`answer` must be text, got the integer 4"),
            (json!({"question": "q", "long_answer": 4}), "`long_answer` must be text"),
            (json!({"question": "q", "long_answer": "l", "answer": true}), "`answer` must be text"),
            (json!({"question": "q", "ideal_answer": []}), "`ideal_answer` is empty"),
            (json!({"question": "q", "ideal_answer": [1]}), "`ideal_answer` must be text or a list"),
            (json!({"question": "q", "answer": "a", "context": 1}), "`context` must hold text"),
        ] {
            let error = read(&row).unwrap_err();
            assert!(error.message.contains(message), "{error:?}");
        }
        let error = read(&json!({"question": "q", "answer": "a", "contexts": ["x", 1]})).unwrap_err();
        assert_eq!(error.path, [Step::from("contexts"), Step::Index(1)]);
    }
}
