//! Options in another order: which fields of a document hold them, and the document with them moved on.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Where a document has its options, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fields {
    /// A field with a list.
    List(String),
    /// A field with a map, whose keys stay.
    Map(String),
    /// A field each: `opa`, `opb`, …; `ending0`, `ending1`, …
    Several(Vec<String>),
}

/// The fields of a document that hold its `count` options: a list of as many texts, a map of as many, or fields whose names are the
/// same but for a last letter or digit that counts up.
fn fields(document: &Map<String, Value>, count: usize) -> Option<Fields> {
    let texts = |mut values: Box<dyn Iterator<Item = &Value> + '_>| values.all(Value::is_string);
    for (name, value) in document {
        match value {
            Value::Array(items) if items.len() == count && texts(Box::new(items.iter())) => {
                return Some(Fields::List(name.clone()));
            }
            Value::Object(items) if items.len() == count && texts(Box::new(items.values())) => {
                return Some(Fields::Map(name.clone()));
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
    let counts_up = |names: &mut Vec<(char, &str)>| {
        names.sort_unstable();
        names.len() == count
            && "aA01".contains(names[0].0)
            && names.windows(2).all(|pair| pair[1].0 as u32 == pair[0].0 as u32 + 1)
    };
    let several = by_stem.into_values().find_map(|mut names| counts_up(&mut names).then_some(names))?;
    Some(Fields::Several(several.into_iter().map(|(_, name)| name.to_owned()).collect()))
}

/// A document with each of its `count` options `by` places further on, the last ones first; `None` where no field holds them.
pub(super) fn moved_on(document: &Map<String, Value>, count: usize, by: usize) -> Option<Map<String, Value>> {
    let mut moved = document.clone();
    match fields(document, count)? {
        Fields::List(name) => moved.get_mut(&name)?.as_array_mut()?.rotate_right(by % count),
        Fields::Map(name) => {
            let map = moved.get_mut(&name)?.as_object_mut()?;
            let mut values: Vec<Value> = map.values().cloned().collect();
            values.rotate_right(by % count);
            map.values_mut().zip(values).for_each(|(place, value)| *place = value);
        }
        Fields::Several(names) => {
            let mut values: Vec<Value> = names.iter().map(|name| document[name].clone()).collect();
            values.rotate_right(by % count);
            names.into_iter().zip(values).for_each(|(name, value)| {
                moved.insert(name, value);
            });
        }
    }
    Some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn after(document: &Value, count: usize, by: usize) -> Option<Value> {
        moved_on(document.as_object().unwrap(), count, by).map(Value::Object)
    }

    #[test]
    fn options_move_on_wherever_a_document_has_them() {
        let mmlu = json!({"question": "q", "choices": ["w", "x", "y", "z"], "answer": 1});
        assert_eq!(after(&mmlu, 4, 1).unwrap()["choices"], json!(["z", "w", "x", "y"]));
        assert_eq!(after(&mmlu, 4, 4).unwrap(), mmlu);
        let medqa = json!({"sent1": "q", "sent2": "", "ending0": "w", "ending1": "x", "ending2": "y", "label": 2});
        let moved = after(&medqa, 3, 2).unwrap();
        assert_eq!((&moved["ending0"], &moved["ending1"], &moved["ending2"]), (&json!("x"), &json!("y"), &json!("w")));
        let medmcqa = json!({"question": "q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 0, "exp": "e"});
        let moved = after(&medmcqa, 4, 1).unwrap();
        assert_eq!((&moved["opa"], &moved["opd"], &moved["exp"]), (&json!("z"), &json!("y"), &json!("e")));
        let map = json!({"options": {"A": "w", "B": "x"}});
        assert_eq!(after(&map, 2, 1).unwrap(), json!({"options": {"A": "x", "B": "w"}}));
        assert_eq!(after(&json!({"question": "yes or no?", "answer": "no"}), 2, 1), None);
    }
}
