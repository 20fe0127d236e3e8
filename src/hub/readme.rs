//! A card that is there already: whether the Hub would take its front matter, and what options put into it.

use super::card::front_matter;
use crate::adapter::{CardKind, base_model_tag, hub_id};
use crate::error::{Error, Result};
use serde_yaml::{Mapping, Value};
use std::path::Path;

/// Notes on what the front matter lacks.
///
/// # Errors
/// For what the Hub would refuse: YAML that cannot be read, keys of a wrong kind, a base that is no Hub id.
pub(super) fn check(text: &str, path: &Path) -> Result<Option<String>> {
    const HELP: &str = "fix the lines between the two `---` at its top; see huggingface.co/docs/hub/model-cards";
    let refused = |message: String| Err(Error::file(path, format!("front matter: {message}")).with_help(HELP));
    let Some(matter) = front_matter(text) else {
        if text.trim_start().starts_with("---") {
            return refused("the closing `---` is missing".into());
        }
        return Ok(Some("README.md has no front matter, so the Hub will not know base, library and licence".into()));
    };
    let matter: Value = match serde_yaml::from_str(matter) {
        Ok(matter) => matter,
        Err(error) => return refused(format!("cannot be read as YAML: {error}")),
    };
    let map = match matter {
        Value::Mapping(map) => map,
        Value::Null => Mapping::new(),
        _ => return refused("expected keys and values".into()),
    };
    for key in ["library_name", "pipeline_tag", "license"] {
        if map.get(key).is_some_and(|value| !value.is_string()) {
            return refused(format!("`{key}` must be text"));
        }
    }
    for key in ["tags", "datasets"] {
        let texts = |value: &Value| value.as_sequence().is_some_and(|list| list.iter().all(Value::is_string));
        if map.get(key).is_some_and(|value| !texts(value)) {
            return refused(format!("`{key}` must be a list of texts"));
        }
    }
    for base in map.get("base_model").map(list).unwrap_or_default() {
        if base.as_str().and_then(hub_id).is_none() {
            return Err(Error::file(
                path,
                format!("front matter: `base_model` must be a Hub id, org/name; it is {}", show(base)),
            )
            .with_help("--base-model ORG/NAME (in a recipe `hub.base`) puts the id there for the upload"));
        }
    }
    if let Some(wrong) = map.get("model-index").and_then(model_index) {
        return refused(format!("`model-index`: {wrong}"));
    }
    let missing: Vec<&str> =
        ["base_model", "library_name", "license"].into_iter().filter(|key| !map.contains_key(*key)).collect();
    let note = || format!("README.md: its front matter has no {}", missing.join(", no "));
    Ok((!missing.is_empty()).then(note))
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_sequence().map_or_else(|| vec![value], |list| list.iter().collect())
}

fn show(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default().chars().take(200).collect()
}

/// What the Hub would refuse of results.
fn model_index(value: &Value) -> Option<&'static str> {
    let each = |value: Option<&Value>| value.and_then(Value::as_sequence).cloned();
    let Some(models) = each(Some(value)) else { return Some("must be a list") };
    for model in &models {
        if !model.get("name").is_some_and(Value::is_string) {
            return Some("each entry needs a `name`");
        }
        let Some(results) = each(model.get("results")) else { return Some("each entry needs a list of `results`") };
        for result in &results {
            let text =
                |section: &str, key: &str| result.get(section).and_then(|s| s.get(key)).is_some_and(Value::is_string);
            if !text("task", "type") || !text("dataset", "type") || !text("dataset", "name") {
                return Some("each result needs `task.type`, `dataset.type` and `dataset.name`");
            }
            let Some(metrics) = each(result.get("metrics")) else {
                return Some("each result needs a list of `metrics`");
            };
            if !metrics
                .iter()
                .all(|metric| metric.get("type").is_some_and(Value::is_string) && metric.get("value").is_some())
            {
                return Some("each metric needs `type` and `value`");
            }
        }
    }
    None
}

/// The card with this base and this licence in its front matter; `None` where that cannot be read.
pub(super) fn with(text: &str, kind: CardKind, base_model: Option<&str>, license: Option<&str>) -> Option<String> {
    let (matter, body) = match front_matter(text) {
        Some(matter) => {
            let end = matter.as_ptr() as usize - text.as_ptr() as usize + matter.len();
            (matter, text[end..].split_once('\n').map_or("", |(_, body)| body))
        }
        None if text.trim_start().starts_with("---") => return None,
        None => ("", text),
    };
    let mut map = match serde_yaml::from_str::<Value>(matter).ok()? {
        Value::Mapping(map) => map,
        Value::Null => Mapping::new(),
        _ => return None,
    };
    if let Some(license) = license {
        map.insert("license".into(), license.into());
    }
    if let Some(id) = base_model {
        map.insert("base_model".into(), id.into());
        let tags = map.entry("tags".into()).or_insert_with(|| Value::Sequence(Vec::new()));
        if let Value::Sequence(tags) = tags {
            tags.retain(|tag| !tag.as_str().is_some_and(|tag| tag.starts_with("base_model:")));
            tags.push(base_model_tag(kind, id).into());
        }
    }
    Some(format!("---\n{}---\n{body}", serde_yaml::to_string(&map).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(matter: &str) -> String {
        match check(&format!("---\n{matter}---\n# Title\n"), Path::new("x/README.md")) {
            Ok(note) => note.unwrap_or_default(),
            Err(error) => format!("refused: {error}; {}", error.help().unwrap_or_default()),
        }
    }

    #[test]
    fn what_the_hub_would_refuse_is_refused_before() {
        assert_eq!(told("base_model: org/base\nlibrary_name: peft\nlicense: mit\ntags: [lora]\n"), "");
        assert_eq!(told("base_model: [org/base]\n"), "README.md: its front matter has no library_name, no license");
        for (matter, phrase) in [
            ("tags: [a\n", "cannot be read as YAML"),
            ("- a\n", "keys and values"),
            ("tags: lora\n", "`tags` must be a list"),
            ("license: [mit]\n", "`license` must be text"),
            ("base_model: /data/llama\n", "--base-model"),
            ("base_model: 7\n", "--base-model"),
            ("model-index: {}\n", "`model-index`: must be a list"),
            ("model-index:\n- name: a\n  results:\n  - task: {type: text-generation}\n", "dataset.type"),
        ] {
            let told = told(matter);
            assert!(told.starts_with("refused: x/README.md") && told.contains(phrase), "{matter}: {told}");
        }
        let check = |text| check(text, Path::new("README.md"));
        assert!(check("# Title\n").unwrap().unwrap().contains("no front matter"));
        assert!(check("---\nlicense: mit\n# Title\n").unwrap_err().to_string().contains("closing"));
    }

    #[test]
    fn base_and_licence_are_put_in_and_the_rest_is_kept() {
        let text =
            "---\nlicense: mit\ncustom: 1\ntags:\n- mine\n- base_model:adapter:old/base\n---\n\n# Title\n---\nText\n";
        let with = |text| with(text, CardKind::Adapter, Some("org/base"), Some("apache-2.0"));
        let new = with(text).unwrap();
        assert_eq!(
            new,
            "---\nlicense: apache-2.0\ncustom: 1\ntags:\n- mine\n- base_model:adapter:org/base\nbase_model: org/base\n---\n\n\
             # Title\n---\nText\n"
        );
        assert_eq!(with(&new).unwrap(), new);
        assert!(with("# Title\n").unwrap().ends_with("---\n# Title\n"));
        assert_eq!(with("---\nopen"), None);
    }
}
