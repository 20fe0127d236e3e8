//! The Hub id of a base that a recipe names by a path: others can load an adapter whose base they can load.

use super::card::hub_id;
use crate::weights::Base;
use serde_json::Value;
use std::path::{Component, Path};

const HUB: &str = "https://huggingface.co/";

/// The Hub id of a base, where it is known: the recipe's; that of the folder in a Hub cache; and what the base's own files name
/// as their source, if its name is that of the folder or model. A fine-tune names its parent there, which has the same shapes
/// and other weights: so the names must agree.
pub fn published_base(model: &str, base: &Base) -> Option<String> {
    if base.is_gguf() {
        return of_metadata(base).or_else(|| hub_id(model).map(|_| model.to_owned()));
    }
    if hub_id(model).is_some() {
        return Some(model.to_owned());
    }
    let path = std::path::absolute(base.path()).unwrap_or_else(|_| base.path().to_owned());
    of_cache(&path).or_else(|| {
        let id = base.config().get("_name_or_path").and_then(Value::as_str).filter(|id| is_id(id))?;
        let folder = path.file_name()?.to_str()?;
        (plain(folder) == plain(id.split('/').nth(1)?)).then(|| id.to_owned())
    })
}

fn is_id(text: &str) -> bool {
    !text.contains('@') && hub_id(text).is_some()
}

/// `…/models--org--name/snapshots/<commit>`.
fn of_cache(path: &Path) -> Option<String> {
    let mut parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    let (owner, name) = parts.find_map(|part| part.strip_prefix("models--"))?.split_once("--")?;
    let id = format!("{owner}/{name}");
    (parts.next() == Some("snapshots") && is_id(&id)).then_some(id)
}

/// What a GGUF file was converted from: its source, or a base model that has its own name.
fn of_metadata(base: &Base) -> Option<String> {
    let metadata = base.gguf_metadata()?;
    let text = |key: &str| metadata.string(key).ok().flatten();
    let id = |url: &str| {
        let id = url.trim_end_matches('/');
        let id = id.strip_prefix(HUB).unwrap_or(id);
        is_id(id).then(|| id.to_owned())
    };
    let source = ["general.source.huggingface.repository", "general.source.repo_url", "general.source.url"];
    if let Some(id) = source.iter().find_map(|key| id(text(key)?)) {
        return Some(id);
    }
    let url = id(text("general.base_model.0.repo_url")?)?;
    let own = plain(text("general.name")?);
    (plain(url.split('/').nth(1)?) == own).then_some(url)
}

/// A name without what differs between a title and an id.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::{quantized, write_gguf, write_safetensors};
    use candle_core::quantized::GgmlDType;
    use candle_core::quantized::gguf_file::Value as Metadatum;

    fn folder(path: &Path, config: &str) -> Base {
        std::fs::create_dir_all(path).unwrap();
        std::fs::write(path.join("config.json"), config).unwrap();
        write_safetensors(&path.join("model.safetensors"), &[("a", &[1], &[1.0])]);
        Base::open(path).unwrap()
    }

    #[test]
    fn a_folder_is_known_by_its_place_or_its_name() {
        let root = tempfile::tempdir().unwrap();
        let name = |place: &str, config: &str| {
            let path = root.path().join(place);
            published_base(path.to_str().unwrap(), &folder(&path, config))
        };
        let plain = r#"{"model_type": "llama"}"#;
        let named = r#"{"model_type": "llama", "_name_or_path": "org/Tiny-1B"}"#;
        assert_eq!(name("hub/models--org--tiny/snapshots/abc", plain).as_deref(), Some("org/tiny"));
        assert_eq!(name("models/tiny-1b", named).as_deref(), Some("org/Tiny-1B"));
        assert_eq!(name("models/my-fine-tune", named), None, "its parent is another model");
        assert_eq!(name("models/tiny", plain), None);
        let base = folder(&root.path().join("x"), plain);
        assert_eq!(published_base("org/name@v1", &base).as_deref(), Some("org/name@v1"));
    }

    #[test]
    fn a_gguf_file_names_what_it_was_made_of() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("x.gguf");
        let name = |keys: &[(&'static str, &str)]| {
            let mut metadata = vec![("general.architecture", Metadatum::String("unknown".into()))];
            metadata.extend(keys.iter().map(|(key, text)| (*key, Metadatum::String((*text).into()))));
            write_gguf(&path, &metadata, &[("a", quantized(&[1, 32], &[0.0; 32], GgmlDType::F32))]);
            published_base("org/quants-GGUF", &Base::open(&path).unwrap())
        };
        let parent = ("general.base_model.0.repo_url", "https://huggingface.co/org/Tiny-1B");
        assert_eq!(name(&[("general.source.url", "https://huggingface.co/org/tiny/")]).as_deref(), Some("org/tiny"));
        assert_eq!(name(&[parent, ("general.name", "Tiny 1B")]).as_deref(), Some("org/Tiny-1B"));
        let quants = Some("org/quants-GGUF");
        assert_eq!(
            name(&[parent, ("general.name", "Tiny 1B Instruct")]).as_deref(),
            quants,
            "its parent is another model"
        );
        assert_eq!(name(&[("general.source.url", "https://example.org/a/b")]).as_deref(), quants);
    }
}
