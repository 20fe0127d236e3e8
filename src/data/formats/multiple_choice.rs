//! `multiple_choice`: a question, the choices, and which of them is right.

use super::fields::{self, Row, RowError, Step};
use super::{Format, TemplateUse, rendering};
use crate::data::example::{Example, Message};
use minijinja::Value as Variable;
use serde_json::{Map, Value};

/// `{"question": …, "choices": […], "answer": …}`, through the chat template.
///
/// - `choices` (or `options`): a list of texts, an object of letter and text, or an object of the two lists `label` and `text`.
/// - `answer`: the place in the list from 0, a letter, or the text of a choice.
///
/// What is asked: the question, an empty line, a line `A. …` for each choice, an empty line, and "Answer with the letter of the
/// right choice and its text." What is learnt: `B. text`; the letter comes first, so that it can be read from the first token.
///
/// The recipe's `template` replaces any of the parts. Its variables are the row's fields and `question`, `choices` (a list of
/// objects with `letter` and `text`), `letter`, `answer_text` and `index` (from 0).
pub struct MultipleChoice;

const CHOICES: [&str; 2] = ["choices", "options"];
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const INSTRUCTION: &str = "Answer with the letter of the right choice and its text.";

struct Choice<'a> {
    letter: &'a str,
    text: &'a str,
}

impl Format for MultipleChoice {
    fn name(&self) -> &'static str {
        "multiple_choice"
    }

    fn required(&self) -> &'static [&'static [&'static str]] {
        &[&["question"], &CHOICES, &["answer"]]
    }

    fn template(&self) -> TemplateUse {
        TemplateUse::Optional
    }

    fn read(&self, row: Row<'_>) -> Result<Example, RowError> {
        let question = row.some_text("question")?;
        let choices = choices(row)?;
        let right = right(row, &choices)?;
        let Choice { letter, text } = choices[right];
        let lines: Vec<_> = choices.iter().map(|choice| format!("{}. {}", choice.letter, choice.text)).collect();
        let user = || format!("{}\n\n{}\n\n{INSTRUCTION}", question.trim_end(), lines.join("\n"));
        let assistant = || format!("{letter}. {text}");
        let Some(templates) = row.templates() else {
            return Ok(Example::chat(vec![Message::user(user()), Message::assistant(assistant())]));
        };
        let choice = |choice: &Choice| Variable::from_pairs([("letter", choice.letter), ("text", choice.text)]);
        let more = [
            ("question", Variable::from(question)),
            ("choices", choices.iter().map(choice).collect()),
            ("letter", Variable::from(letter)),
            ("answer_text", Variable::from(text)),
            ("index", Variable::from(right)),
        ];
        let variables = rendering::variables(row, more);
        if templates.is_plain() {
            return templates.completion(row, &variables);
        }
        let mut messages: Vec<_> = templates.system(row, &variables)?.into_iter().collect();
        messages.push(Message::user(templates.render_some("user", row, &variables)?.unwrap_or_else(user)));
        messages
            .push(Message::assistant(templates.render_some("assistant", row, &variables)?.unwrap_or_else(assistant)));
        Ok(Example::chat(messages))
    }
}

fn choices(row: Row<'_>) -> Result<Vec<Choice<'_>>, RowError> {
    let Some((field, value)) = row.first_given(&CHOICES) else { return Err(row.missing(CHOICES[0])) };
    let at = |error: RowError| error.inside(Step::Key(row.column(field)));
    let choices = match value {
        Value::Array(texts) => from_list(texts).map_err(at)?,
        Value::Object(object) => from_object(object).map_err(at)?,
        other => return Err(row.wrong_type(field, "a list of texts, or an object of letters and texts", other)),
    };
    if choices.len() < 2 {
        return Err(row.error(field, format!("must hold at least two choices, got {}", choices.len())));
    }
    let twice = |i: usize| choices[..i].iter().any(|other| other.letter.eq_ignore_ascii_case(choices[i].letter));
    if let Some(i) = (0..choices.len().min(1000)).find(|&i| twice(i)) {
        return Err(row.error(field, format!("has the letter `{}` twice", fields::shown(choices[i].letter))));
    }
    Ok(choices)
}

fn from_list(texts: &[Value]) -> Result<Vec<Choice<'_>>, RowError> {
    if texts.len() > LETTERS.len() {
        let message = format!("there are {} choices, and {} letters", texts.len(), LETTERS.len());
        return Err(RowError::new([], message).with_help("an object gives each choice a letter or number of its own"));
    }
    let read = |(i, value)| match text(value) {
        Some(text) => Ok(Choice { letter: &LETTERS[i..=i], text }),
        None => Err(not_text(value).inside(i)),
    };
    texts.iter().enumerate().map(read).collect()
}

/// Letter and text, or the lists `label` and `text`. A choice that is null is none: tables have them where rows differ.
fn from_object(object: &Map<String, Value>) -> Result<Vec<Choice<'_>>, RowError> {
    if let (Some(Value::Array(labels)), Some(Value::Array(texts))) = (object.get("label"), object.get("text")) {
        if labels.len() != texts.len() {
            let message = format!("there are {} labels and {} texts", labels.len(), texts.len());
            return Err(RowError::new([], message));
        }
        let read = |(i, (label, value))| match (text(label), text(value)) {
            (Some(letter), Some(text)) => Ok(Choice { letter, text }),
            (None, _) => Err(not_text(label).inside(i).inside("label")),
            (_, None) => Err(not_text(value).inside(i).inside("text")),
        };
        return labels.iter().zip(texts).enumerate().map(read).collect();
    }
    let given = object.iter().filter(|(_, value)| !value.is_null());
    let read = |(letter, value): (&'_ String, _)| match text(value) {
        Some(_) if letter.trim().is_empty() => Err(RowError::new([], "a choice has no letter")),
        Some(_) => Ok(()),
        None => Err(not_text(value).inside(letter.clone())),
    };
    given.clone().try_for_each(read)?;
    Ok(given.filter_map(|(letter, value)| Some(Choice { letter: letter.trim(), text: text(value)? })).collect())
}

/// Text that is not blank, without white space around it.
fn text(value: &Value) -> Option<&str> {
    value.as_str().map(str::trim).filter(|text| !text.is_empty())
}

fn not_text(value: &Value) -> RowError {
    RowError::new(
        [],
        match value {
            Value::String(_) => "a choice is empty".to_string(),
            other => format!("a choice must be text, got {}", fields::kind(other)),
        },
    )
}

/// The place of the right choice.
fn right(row: Row<'_>, choices: &[Choice]) -> Result<usize, RowError> {
    let help = format!(
        "the answer is the letter of a choice ({}), its place from 0 to {}, or its text",
        fields::list(choices.iter().take(30).map(|choice| choice.letter), "or"),
        choices.len() - 1
    );
    // Where the letters are numbers, a number is one of them, not a place.
    let numbered = choices.iter().any(|choice| choice.letter.parse::<u64>().is_ok());
    let in_range = |index: u64| {
        let labelled = choices.iter().position(|choice| choice.letter == index.to_string());
        if numbered { labelled } else { usize::try_from(index).ok().filter(|&index| index < choices.len()) }
    };
    match row.get("answer") {
        Some(Value::Number(number)) => number.as_u64().and_then(in_range).ok_or_else(|| {
            row.error("answer", format!("is {number}, and there are {} choices", choices.len())).with_help(help)
        }),
        Some(Value::String(_)) => {
            let answer = row.some_text("answer")?.trim();
            // Tables give numbers as text.
            let index = answer.parse().ok().and_then(in_range);
            let meant = |(i, choice): (usize, &Choice)| {
                let fits = choice.letter.eq_ignore_ascii_case(answer) || choice.text == answer || index == Some(i);
                fits.then_some(i)
            };
            match choices.iter().enumerate().filter_map(meant).collect::<Vec<_>>()[..] {
                [one] => Ok(one),
                [] => Err(row
                    .error("answer", format!("is `{}`, which is not a choice", fields::shown(answer)))
                    .with_help(help)),
                _ => Err(row
                    .error("answer", format!("is `{}`, which may mean more than one choice", fields::shown(answer)))
                    .with_help(help)),
            }
        }
        Some(other) => {
            Err(row.wrong_type("answer", "a letter, a place or the text of a choice", other).with_help(help))
        }
        None => Err(row.missing("answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::config::RowTemplate;
    use crate::data::formats::{FormatName, RowFormat};
    use serde_json::json;
    use std::collections::BTreeMap;

    fn read(row: &Value) -> Result<Example, RowError> {
        MultipleChoice.read(Row::new(row.as_object().unwrap()))
    }

    fn answer(choices: &Value, answer: &Value) -> Result<String, RowError> {
        match read(&json!({"question": "q", "choices": choices, "answer": answer}))? {
            Example::Chat { messages, .. } => Ok(messages[1].content.clone()),
            other @ Example::Completion { .. } => panic!("a conversation, got {other:?}"),
        }
    }

    #[test]
    fn choices_are_lettered_and_the_right_one_is_learnt() {
        let user = "Which?\n\nA. one\nB. two\n\nAnswer with the letter of the right choice and its text.";
        let expected = Example::chat(vec![Message::user(user), Message::assistant("B. two")]);
        for row in [
            json!({"question": "Which? ", "choices": ["one", " two"], "answer": 1}),
            json!({"question": "Which?", "options": {"A": "one", "B": "two", "C": null}, "answer": "b"}),
            json!({"question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answer": "two"}),
            json!({"question": "Which?", "choices": null, "options": ["one", "two"], "answer": "1"}),
        ] {
            assert_eq!(read(&row).unwrap(), expected, "{row}");
        }
        assert_eq!(answer(&json!({"1": "x", "2": "y"}), &json!("x")).unwrap(), "1. x");
    }

    #[test]
    fn an_answer_must_mean_one_choice() {
        let choices = json!(["one", "two", "two"]);
        for (given, message) in [
            (json!(3), "`answer` is 3, and there are 3 choices"),
            (json!(-1), "`answer` is -1"),
            (json!(1.5), "`answer` is 1.5"),
            (json!("D"), "`answer` is `D`, which is not a choice"),
            (json!("3"), "which is not a choice"),
            (json!("two"), "more than one choice"),
            (json!(""), "`answer` is empty"),
            (json!([0]), "must be a letter"),
            (json!(null), "must be a letter"),
        ] {
            let error = answer(&choices, &given).unwrap_err();
            assert!(error.message.contains(message), "{error:?}");
            assert_eq!(error.path, [Step::from("answer")]);
        }
        for (choices, given) in [(json!(["B", "A"]), json!("A")), (json!(["1", "2", "3"]), json!("1"))] {
            assert!(answer(&choices, &given).unwrap_err().message.contains("more than one"), "{choices}");
        }
        assert_eq!(answer(&json!(["A", "B"]), &json!("A")).unwrap(), "A. A");
        // As in some rows of ARC: where letters are numbers, numbers are letters.
        for given in [json!("1"), json!(1)] {
            assert_eq!(answer(&json!({"text": ["x", "y"], "label": ["1", "2"]}), &given).unwrap(), "1. x");
        }
        assert!(answer(&json!({"1": "x", "2": "y"}), &json!(0)).is_err());
    }

    #[test]
    fn wrong_choices_are_named() {
        for (choices, message) in [
            (json!("a, b"), "`choices` must be a list of texts"),
            (json!(["a"]), "at least two choices, got 1"),
            (json!({"A": "a", "B": null}), "at least two choices, got 1"),
            (json!(["a", 1]), "a choice must be text, got the integer 1"),
            (json!({"A": "a", "B": " "}), "a choice is empty"),
            (json!({"A": "a", "a": "b"}), "the letter `a` twice"),
            (json!({"text": ["a", "b"], "label": ["A"]}), "1 labels and 2 texts"),
            (json!(vec!["a"; 27]), "27 choices"),
        ] {
            let error = answer(&choices, &json!(0)).unwrap_err();
            assert!(error.message.contains(message), "{error:?}");
            assert_eq!(error.path[0], Step::from("choices"));
        }
        assert!(read(&json!({"question": "q", "answer": 0})).unwrap_err().message.contains("`choices` is missing"));
    }

    #[test]
    fn a_template_replaces_parts() {
        let row = json!({"question": "q", "choices": ["x", "y"], "answer": 1, "subject": "s"});
        let row = row.as_object().unwrap();
        let read = |template: &RowTemplate| {
            let format = RowFormat::new(FormatName::MultipleChoice, &BTreeMap::new(), Some(template), row).unwrap();
            format.read(row).unwrap()
        };
        let letter = RowTemplate { assistant: Some("{{ letter }}".into()), ..RowTemplate::default() };
        let Example::Chat { messages, .. } = read(&letter) else { panic!("a conversation") };
        assert!(messages[0].content.starts_with("q\n\nA. x\nB. y\n\n"));
        assert_eq!(messages[1].content, "B");
        let plain = RowTemplate {
            prompt: Some(
                "{{ subject }}: {{ question }}{% for c in choices %} {{ c.letter }}={{ c.text }}{% endfor %}".into(),
            ),
            completion: Some(" {{ answer_text }} {{ index }} {{ answer }}".into()),
            ..RowTemplate::default()
        };
        assert_eq!(read(&plain), Example::Completion { prompt: "s: q A=x B=y".into(), completion: " y 1 1".into() });
    }
}
