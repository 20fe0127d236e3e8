//! The Hub's cache on this disk, in the layout that all Hugging Face libraries share:
//! `models--org--name/{refs/<revision>, snapshots/<commit>/<file>}`.

use super::Reference;
use crate::error::{Error, Result};
use crate::fs::write_atomic;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The index over several safetensors files.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// One model's part of the cache.
pub(super) struct Cache {
    reference: Reference,
    /// The whole cache.
    pub root: PathBuf,
    /// The model's folder in it.
    folder: PathBuf,
}

impl Cache {
    pub fn of(reference: &Reference, root: PathBuf) -> Self {
        let folder = root.join(format!("models--{}--{}", reference.owner, reference.name));
        Self { reference: reference.clone(), root, folder }
    }

    /// The snapshot of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Notes which commit the revision is, once its snapshot is whole: the next lookup without network finds it.
    pub fn note_revision(&self, commit: &str) -> Result<()> {
        if is_commit(&self.reference.revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(&self.reference.revision);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        write_atomic(&path, commit.as_bytes())
    }

    /// What the cache holds of the revision: the snapshot's folder, or `file` in it.
    pub fn find(&self, file: Option<&str>) -> Result<PathBuf> {
        let snapshot = self.commit().map(|commit| self.snapshot(&commit)).filter(|path| path.is_dir());
        let Some(snapshot) = snapshot else {
            return Err(self.missing("it is not in the cache"));
        };
        if let Some(file) = file {
            let path = snapshot.join(file);
            return if path.is_file() { Ok(path) } else { Err(self.missing(&format!("`{file}` is not in the cache"))) };
        }
        match incomplete(&snapshot) {
            None => Ok(snapshot),
            Some(what) => Err(self.missing(&format!("its copy in the cache lacks {what}"))),
        }
    }

    fn commit(&self) -> Option<String> {
        let revision = &self.reference.revision;
        if is_commit(revision) {
            return Some(revision.clone());
        }
        let commit = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    fn missing(&self, why: &str) -> Error {
        let (reference, revision) = (&self.reference, &self.reference.revision);
        Error::Invalid {
            message: format!("{reference}@{revision}: {why} ({}), and the network is not used", self.folder.display()),
            help: Some(format!(
                "fetch it once without --offline and HF_HUB_OFFLINE (or with `hf download {reference}`), point HF_HOME to \
                 the cache that has it, or name a local folder"
            )),
        }
    }
}

/// Whether a revision is a full commit hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
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
pub(super) fn shards(index: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(index).map_err(Error::io("read", index))?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(index, format!("cannot be read as JSON: {error}")))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(index, "has no `weight_map`, which says what shard holds what tensor"));
    };
    let shards: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(shards.into_iter().map(String::from).collect())
}
