//! A model's files: those that a model in safetensors needs, or one GGUF file.

use super::cache::Cache;
use super::remote::{Remote, is_transient};
use super::{FetchProgress, Reference};
use crate::error::{Error, Result};
use crate::weights::CHAT_TEMPLATES_FOLDER;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The index over several safetensors files.
const INDEX: &str = "model.safetensors.index.json";
/// What is fetched besides weights, where the repository has it.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    // Of multimodal models.
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
];

/// Fetches a model's files, or one GGUF file, and returns the snapshot's folder, or that file.
pub(super) fn fetch(
    reference: &Reference,
    file: Option<&str>,
    cache: &Cache,
    endpoint: Option<&str>,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<PathBuf> {
    let remote = Remote::open(reference, &cache.root, endpoint)?;
    let (commit, files) = match remote.describe(&reference.revision) {
        Ok(described) => described,
        Err(error) if is_transient(&error) => {
            // The Hub is down, but the model may be here.
            let error = remote.explain(error);
            return match find(cache, file) {
                Ok(path) => {
                    tracing::warn!("{error}; the cached copy is used");
                    Ok(path)
                }
                Err(_) => Err(error),
            };
        }
        Err(error) => return Err(remote.explain(error)),
    };
    let wanted = choose(reference, file, &files)?;
    let mut path = PathBuf::new();
    for name in &wanted {
        path = remote.download(&commit, name, progress)?;
        if name == INDEX {
            for shard in shards(&path)? {
                // Only what the repository lists: an index must not send us anywhere else.
                if !files.contains(&shard) {
                    return Err(Error::Hub {
                        message: format!("{reference}: {INDEX} names `{shard}`, which the repository does not have"),
                        help: Some("the repository is incomplete; tell its owner, or take another one".into()),
                    });
                }
                remote.download(&commit, &shard, progress)?;
            }
        }
    }
    cache.note_revision(&reference.revision, &commit)?;
    Ok(if file.is_some() { path } else { cache.snapshot(&commit) })
}

/// What the cache holds of the revision: the snapshot's folder, or `file` in it.
pub(super) fn find(cache: &Cache, file: Option<&str>) -> Result<PathBuf> {
    let Some(snapshot) = cache.snapshot_of(cache.revision()) else {
        return Err(cache.missing("it is not in the cache"));
    };
    if let Some(file) = file {
        let path = snapshot.join(file);
        return if path.is_file() { Ok(path) } else { Err(cache.missing(&format!("`{file}` is not in the cache"))) };
    }
    match incomplete(&snapshot) {
        None => Ok(snapshot),
        Some(what) => Err(cache.missing(&format!("its copy in the cache lacks {what}"))),
    }
}

/// The files to fetch; shards come with their index.
fn choose(reference: &Reference, file: Option<&str>, files: &[String]) -> Result<Vec<String>> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let is_gguf = |name: &&String| name.to_ascii_lowercase().ends_with(".gguf");
    let ggufs: Vec<&str> = files.iter().filter(is_gguf).map(String::as_str).collect();
    let listed = if ggufs.is_empty() { "none".to_string() } else { ggufs.join(", ") };
    let error = |message: String, help: String| Error::Hub { message, help: Some(help) };
    if let Some(file) = file {
        return if has(file) {
            Ok(vec![file.to_string()])
        } else {
            let message = format!("base.file: {reference} has no `{file}`");
            Err(error(message, format!("its GGUF files are: {listed}")))
        };
    }
    let weights = ["model.safetensors", INDEX].into_iter().find(|name| has(name));
    let (Some(weights), true) = (weights, has("config.json")) else {
        if !ggufs.is_empty() {
            let message = format!("{reference} holds GGUF files; `base.file` must say which one to take");
            return Err(error(message, format!("its GGUF files are: {listed}")));
        }
        let message = format!("{reference} holds no model in safetensors (config.json and model.safetensors)");
        return Err(error(message, "take a repository that has them; pickle files (.bin) are not read".into()));
    };
    let side = SIDE_FILES.iter().filter(|name| has(name)).map(|name| (*name).to_string());
    let is_template = |name: &&String| {
        let file = name.strip_prefix(CHAT_TEMPLATES_FOLDER).and_then(|rest| rest.strip_prefix('/'));
        file.is_some_and(|file| Path::new(file).extension().is_some_and(|end| end == "jinja"))
    };
    let templates = files.iter().filter(is_template).cloned();
    Ok(side.chain(templates).chain([weights.to_string()]).collect())
}

/// The first thing that a snapshot lacks to be a model.
fn incomplete(snapshot: &Path) -> Option<String> {
    if !snapshot.join("config.json").is_file() {
        return Some("config.json".into());
    }
    if snapshot.join("model.safetensors").is_file() {
        return None;
    }
    let Ok(shards) = shards(&snapshot.join(INDEX)) else {
        return Some(format!("model.safetensors or {INDEX}"));
    };
    shards.into_iter().find(|shard| !snapshot.join(shard).is_file())
}

/// The file names that an index lists.
fn shards(index: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(index).map_err(Error::io("read", index))?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(index, format!("cannot be read as JSON: {error}")))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(index, "has no `weight_map`, which says what shard holds what tensor"));
    };
    let shards: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(shards.into_iter().map(String::from).collect())
}
