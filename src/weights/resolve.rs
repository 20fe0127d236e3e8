//! What a folder's `config.json` says twice, and what counts then: what transformers 5 takes. Everything behind reads the
//! resolved configuration, so that training, merging and export agree; each decision is a note for the user.

use super::table::Table;
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::path::Path;

const LENGTH: &str = "original_max_position_embeddings";

/// Makes a configuration say one thing only. Of one that does so already nothing changes.
///
/// # Errors
/// When embeddings and head must be compared and cannot be read.
pub(super) fn resolve(config: &mut Map<String, Value>, table: &Table, base: &Path) -> Result<Vec<String>> {
    let mut notes = rope(config);
    notes.extend(tying(config, table, base)?);
    Ok(notes)
}

fn known<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// `rope_scaling` goes before `rope_parameters`, the `rope_theta` in them before the one at the top, `rope_type` before `type`,
/// and the top's `original_max_position_embeddings` before theirs. Without it, all positions are the original ones.
fn rope(config: &mut Map<String, Value>) -> Vec<String> {
    for key in ["rope_scaling", "rope_parameters"] {
        // An empty object says nothing, and would hide the other one.
        if config.get(key).and_then(Value::as_object).is_some_and(Map::is_empty) {
            config.remove(key);
        }
    }
    let object = |key: &str| known(config, key).and_then(Value::as_object).cloned();
    if let Some(parameters) = object("rope_parameters").filter(|map| map.values().any(Value::is_object)) {
        // An object for each type of layer: the family knows what else counts.
        return by_layer(config, &parameters);
    }
    let (scaling, parameters) = (object("rope_scaling"), object("rope_parameters"));
    let (key, Some(mut chosen)) = (match scaling {
        Some(_) => ("rope_scaling", scaling.clone()),
        None => ("rope_parameters", parameters.clone()),
    }) else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    let theta = known(&chosen, "rope_theta").or_else(|| known(config, "rope_theta")).cloned();
    if let (Some(top), Some(theta)) = (known(config, "rope_theta"), &theta)
        && top.as_f64() != theta.as_f64()
    {
        notes.push(differs("rope_theta", top, theta, &format!("in {key}")));
    }
    if let (Some(old), Some(new)) = (known(&chosen, "type"), known(&chosen, "rope_type"))
        && old != new
    {
        notes.push(differs(&format!("{key}.type"), old, new, "as rope_type"));
    }
    let kind = known(&chosen, "rope_type").or_else(|| known(&chosen, "type")).cloned().unwrap_or(json!("default"));
    let completed = kind == "llama3" && (known(&chosen, LENGTH).is_none() || known(config, LENGTH).is_some());
    if completed {
        notes.extend(original_length(config, &mut chosen, key));
    }
    if let Some(theta) = &theta {
        chosen.insert("rope_theta".into(), theta.clone());
    }
    chosen.remove("type");
    chosen.insert("rope_type".into(), kind.clone());
    if let (Some(_), Some(mut other)) = (&scaling, parameters) {
        // What is said of neither is the class's own.
        for (key, value) in [("rope_theta", theta.as_ref()), ("rope_type", Some(&kind))] {
            if let Some(value) = value {
                other.entry(key).or_insert_with(|| value.clone());
            }
        }
        other.remove("type");
        if other != chosen {
            let (other, chosen) = (Value::Object(other), Value::Object(chosen.clone()));
            notes.push(differs("rope_parameters", &other, &chosen, "as rope_scaling"));
        }
    }
    if !notes.is_empty() || completed {
        settle(config, chosen, theta, &kind);
    }
    notes
}

/// The bases of the frequencies that older versions had at the top, beside those of each type of layer, which count.
fn by_layer(config: &Map<String, Value>, parameters: &Map<String, Value>) -> Vec<String> {
    let pairs = [("rope_theta", "full_attention"), ("rope_local_base_freq", "sliding_attention")];
    let note = |(key, kind): (&str, &str)| {
        let (top, inner) = (known(config, key)?, known(parameters.get(kind)?.as_object()?, "rope_theta")?);
        let differ = top.as_f64() != inner.as_f64();
        differ.then(|| differs(key, top, inner, &format!("in rope_parameters.{kind}")))
    };
    pairs.into_iter().filter_map(note).collect()
}

/// A note of two values, the latter of which counts.
fn differs(what: &str, left: &Value, counts: &Value, place: &str) -> String {
    format!("config.json says {what} {left}, and {counts} {place}: the latter counts, as in transformers")
}

/// Completes `chosen` by the length of the original context; a note where there are two.
fn original_length(config: &Map<String, Value>, chosen: &mut Map<String, Value>, key: &str) -> Option<String> {
    let (top, inner) = (known(config, LENGTH), known(chosen, LENGTH));
    let note = match (top, inner) {
        (Some(top), Some(inner)) if top != inner => Some(differs(&format!("{key}.{LENGTH}"), inner, top, "at the top")),
        _ => None,
    };
    if let Some(length) = top.or(inner).or_else(|| known(config, "max_position_embeddings")).cloned() {
        chosen.insert(LENGTH.into(), length);
    }
    note
}

/// Writes what counts under each of its names.
fn settle(config: &mut Map<String, Value>, chosen: Map<String, Value>, theta: Option<Value>, kind: &Value) {
    if let Some(theta) = theta {
        config.insert("rope_theta".into(), theta);
    }
    config.remove("rope_scaling");
    if kind != "default" {
        config.insert("rope_scaling".into(), Value::Object(chosen.clone()));
    }
    config.insert("rope_parameters".into(), Value::Object(chosen));
    config.remove(LENGTH);
}

/// transformers ties nothing where the file holds both embeddings and head, and they differ.
fn tying(config: &mut Map<String, Value>, table: &Table, base: &Path) -> Result<Option<String>> {
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let says = config.get("tie_word_embeddings").and_then(Value::as_bool) == Some(true);
    if let Some(error) = table.unread(head).filter(|_| says) {
        // The embeddings in its place would be another model.
        return Err(error);
    }
    if !says || table.get(embedding).is_none() || table.get(head).is_none() || table.are_equal(embedding, head, base)? {
        return Ok(None);
    }
    config.insert("tie_word_embeddings".into(), json!(false));
    Ok(Some(format!(
        "config.json says `tie_word_embeddings: true`, but {head} is there and is not {embedding}: both are used, as in transformers"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(json: &Value) -> (Map<String, Value>, Vec<String>) {
        let mut config = json.as_object().unwrap().clone();
        let notes = rope(&mut config);
        (config, notes)
    }

    #[test]
    fn what_says_one_thing_stays_as_it_is() {
        for config in [
            json!({ "rope_theta": 5e5 }),
            json!({ "rope_theta": 5e5, "rope_scaling": null, "rope_parameters": null }),
            json!({ "rope_parameters": { "rope_theta": 500.0, "rope_type": "default" } }),
            json!({ "rope_theta": 500.0, "rope_parameters": { "rope_theta": 500, "rope_type": "default" } }),
            json!({ "rope_theta": 500.0, "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            json!({ "rope_scaling": { "rope_type": "llama3", "factor": 8.0, LENGTH: 8192 } }),
        ] {
            assert_eq!(resolved(&config), (config.as_object().unwrap().clone(), Vec::new()));
        }
    }

    #[test]
    fn both_values_are_said() {
        let (config, notes) = resolved(&json!({ "rope_theta": 1e4, "rope_parameters": { "rope_theta": 500.0 } }));
        assert_eq!((&config["rope_theta"], &config["rope_parameters"]["rope_theta"]), (&json!(500.0), &json!(500.0)));
        assert!(notes[0].contains("10000.0") && notes[0].contains("500.0 in rope_parameters"), "{notes:?}");
        let twice = json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 },
            "rope_parameters": { "rope_type": "default", "rope_theta": 5e6 } });
        let (config, notes) = resolved(&twice);
        assert!(!config.contains_key("rope_theta") && notes.len() == 1, "the class's own counts: {config:?} {notes:?}");
        let (config, notes) = resolved(&json!({ "max_position_embeddings": 64, "rope_scaling": { "type": "llama3" } }));
        assert_eq!((&config["rope_scaling"][LENGTH], notes.len()), (&json!(64), 0));
    }
}
