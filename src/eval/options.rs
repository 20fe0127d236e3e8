//! Options in another order: which fields of a document hold them, and the document with them shifted.

use super::document::Parts;
use crate::error::Result;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where a document may have its options, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fields {
    /// A field with a list.
    List(String),
    /// A field with a map, whose keys stay.
    Map(String, Vec<String>),
    /// A field each: `opa`, `opb`, …; `ending0`, `ending1`, …
    Several(Vec<String>),
}

/// The fields of a document that may hold these options: a list of as many texts, a map of as many, or fields whose names are the same
/// but for a last letter or digit that counts up from `a`, `A`, 0 or 1.
fn candidates(document: &Map<String, Value>, choices: &[String]) -> Vec<Fields> {
    let count = choices.len();
    let mut found = Vec::new();
    for (name, value) in document {
        match value {
            Value::Array(items) if items.len() == count && items.iter().all(Value::is_string) => {
                found.push(Fields::List(name.clone()));
            }
            Value::Object(items) if items.len() == count && items.values().all(Value::is_string) => {
                // In the order of the choices where these are the keys, not in that of the file.
                let labels: Vec<String> = choices.iter().map(|choice| choice.trim().to_owned()).collect();
                let are_keys = labels.iter().all(|label| items.contains_key(label));
                let keys = if are_keys { labels } else { items.keys().cloned().collect() };
                found.push(Fields::Map(name.clone(), keys));
            }
            _ => {}
        }
    }
    let mut by_stem: BTreeMap<&str, Vec<(char, &str)>> = BTreeMap::new();
    for (name, _) in document.iter().filter(|(_, value)| value.is_string()) {
        if let Some((at, last)) = name.char_indices().next_back().filter(|(_, last)| last.is_ascii_alphanumeric()) {
            by_stem.entry(&name[..at]).or_default().push((last, name));
        }
    }
    for mut names in by_stem.into_values().filter(|names| names.len() == count) {
        names.sort_unstable();
        let counts_up = names.windows(2).all(|pair| pair[1].0 as u32 == pair[0].0 as u32 + 1);
        if counts_up && "aA01".contains(names[0].0) {
            found.push(Fields::Several(names.into_iter().map(|(_, name)| name.to_owned()).collect()));
        }
    }
    found
}

impl Fields {
    /// The options.
    fn options(&self, document: &Map<String, Value>) -> Option<Vec<Value>> {
        match self {
            Self::List(name) => document.get(name)?.as_array().cloned(),
            Self::Map(name, keys) => {
                let map = document.get(name)?.as_object()?;
                keys.iter().map(|key| map.get(key).cloned()).collect()
            }
            Self::Several(names) => names.iter().map(|name| document.get(name).cloned()).collect(),
        }
    }

    /// The document with other options.
    fn with(&self, document: &Map<String, Value>, options: Vec<Value>) -> Map<String, Value> {
        let mut changed = document.clone();
        match self {
            Self::List(name) => {
                changed.insert(name.clone(), Value::Array(options));
            }
            Self::Map(name, keys) => {
                if let Some(map) = changed.get_mut(name).and_then(Value::as_object_mut) {
                    keys.iter().zip(options).for_each(|(key, option)| {
                        map.insert(key.clone(), option);
                    });
                }
            }
            Self::Several(names) => names.iter().zip(options).for_each(|(name, option)| {
                changed.insert(name.clone(), option);
            }),
        }
        changed
    }
}

/// Whether choices are mere labels of options that the prompt has: `A`, `B`, …; `1`, `2`, …
fn are_labels(choices: &[String]) -> bool {
    let label = |choice: &String| {
        let mut letters = choice.trim_matches(|c: char| c.is_whitespace() || "().:".contains(c)).chars();
        letters.next().filter(|c| c.is_ascii_alphanumeric() && letters.next().is_none())
    };
    let labels: Option<Vec<char>> = choices.iter().map(label).collect();
    labels.is_some_and(|labels| {
        "aA01".contains(labels[0]) && labels.windows(2).all(|pair| pair[1] as u32 == pair[0] as u32 + 1)
    })
}

/// A document with each of its options `by` places further on, the last ones first, and what it says then; `None` where no field is
/// seen to hold them. One is seen to hold them if the choices move with it, or if they are labels and the prompt has its texts.
pub(super) fn shifted_by(
    document: &Map<String, Value>,
    before: &Parts,
    by: usize,
    parts: impl Fn(&Map<String, Value>) -> Result<Parts>,
) -> Option<(Map<String, Value>, Parts)> {
    let choices = before.choices.as_deref()?;
    let by = by % choices.len().max(1);
    for fields in candidates(document, choices) {
        let Some(mut options) = fields.options(document) else { continue };
        let texts: Vec<String> = options.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        options.rotate_right(by);
        let moved = fields.with(document, options);
        let Ok(after) = parts(&moved) else { continue };
        let mut rotated = choices.to_vec();
        rotated.rotate_right(by);
        let choices_move = texts.iter().zip(choices).all(|(text, choice)| choice.contains(text.as_str()))
            && after.choices.as_deref() == Some(&rotated[..]);
        let stands = |text: &String| !text.is_empty() && before.text.contains(text.as_str());
        let prompt_moves = are_labels(choices)
            && after.choices == before.choices
            && texts.iter().all(stands)
            && (by == 0 || after.text != before.text);
        if choices_move || prompt_moves {
            return Some((moved, after));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What a document becomes; `text` writes the prompt, `choices` the choices.
    fn after(
        document: &Value,
        by: usize,
        text: fn(&Map<String, Value>) -> String,
        choices: fn(&Map<String, Value>) -> Vec<String>,
    ) -> Option<Value> {
        let parts = |document: &Map<String, Value>| {
            Ok(Parts { text: text(document), target: Value::Null, choices: Some(choices(document)) })
        };
        let document = document.as_object().unwrap();
        shifted_by(document, &parts(document).unwrap(), by, parts).map(|(moved, _)| Value::Object(moved))
    }

    fn all(document: &Map<String, Value>) -> String {
        Value::Object(document.clone()).to_string()
    }

    fn letters(_: &Map<String, Value>) -> Vec<String> {
        ["A", "B", "C"].map(str::to_owned).to_vec()
    }

    fn own(document: &Map<String, Value>) -> Vec<String> {
        document["choices"].as_array().unwrap().iter().map(|choice| format!(" {}", choice.as_str().unwrap())).collect()
    }

    #[test]
    fn options_move_on_wherever_a_document_has_them() {
        let mmlu = json!({"tags": ["p", "q", "r"], "question": "q", "choices": ["x", "y", "z"], "answer": 1});
        assert_eq!(after(&mmlu, 1, all, own).unwrap()["choices"], json!(["z", "x", "y"]), "not the tags");
        assert_eq!(after(&mmlu, 3, all, own).unwrap(), mmlu);
        let medqa = json!({"sent1": "q", "sent2": "", "ending0": "w", "ending1": "x", "ending2": "y", "label": 2});
        let moved = after(&medqa, 2, all, letters).unwrap();
        assert_eq!((&moved["ending0"], &moved["ending1"], &moved["ending2"]), (&json!("x"), &json!("y"), &json!("w")));
        // In the order of the labels, whatever the file's.
        let map = json!({"options": {"B": "x", "A": "w", "C": "y"}});
        assert_eq!(after(&map, 1, all, letters).unwrap(), json!({"options": {"B": "w", "A": "y", "C": "x"}}));
    }

    #[test]
    fn what_is_no_option_does_not_move() {
        let pair = json!({"sentence0": "It rains.", "sentence1": "It is wet.", "answer": 1});
        let answers = |_: &Map<String, Value>| [" True", " False"].map(str::to_owned).to_vec();
        assert_eq!(after(&pair, 1, all, answers), None, "the sentences are what is asked about");
        let letters = |_: &Map<String, Value>| ["A", "B"].map(str::to_owned).to_vec();
        let question = |document: &Map<String, Value>| document["answer"].to_string();
        assert_eq!(after(&pair, 1, question, letters), None, "the prompt does not have them");
        let contexts = json!({"contexts": ["one", "two", "three"], "question": "Is it?", "answer": "no"});
        let answers = |_: &Map<String, Value>| ["yes", "no", "maybe"].map(str::to_owned).to_vec();
        assert_eq!(after(&contexts, 1, all, answers), None);
    }
}
