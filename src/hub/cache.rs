//! The Hub's cache on this disk, in the layout that all Hugging Face libraries share:
//! `models--org--name/{refs/<revision>, snapshots/<commit>/<file>}`, and `datasets--org--name` likewise.

use super::Reference;
use crate::error::{Error, Result};
use crate::fs::write_atomic;
use std::path::{Path, PathBuf};

/// The most files of a snapshot that are listed, and how deep.
const MOST_FILES: usize = 200_000;
const DEEPEST: usize = 32;

/// One repository's part of the cache.
pub(super) struct Cache {
    reference: Reference,
    /// The whole cache.
    pub root: PathBuf,
    /// The repository's folder in it.
    folder: PathBuf,
}

impl Cache {
    pub fn of(reference: &Reference, root: PathBuf) -> Self {
        let id = reference.to_string().replace('/', "--");
        let folder = root.join(format!("{}--{id}", reference.kind.plural()));
        Self { reference: reference.clone(), root, folder }
    }

    /// The revision that was asked for.
    pub fn revision(&self) -> &str {
        &self.reference.revision
    }

    /// The snapshot of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The snapshot of a revision, where the cache has one.
    pub fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        self.commit(revision).map(|commit| self.snapshot(&commit)).filter(|path| path.is_dir())
    }

    /// Notes which commit a revision is, once its snapshot is whole: the next lookup without network finds it.
    pub fn note_revision(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        write_atomic(&path, commit.as_bytes())
    }

    fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        let commit = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    /// The error for what is not here, while the network is not used.
    pub fn missing(&self, why: &str) -> Error {
        let (reference, revision) = (&self.reference, &self.reference.revision);
        let (flag, instead) = (reference.kind.download_flag(), reference.kind.instead());
        Error::Invalid {
            message: format!("{reference}@{revision}: {why} ({}), and the network is not used", self.folder.display()),
            help: Some(format!(
                "fetch it once without --offline and HF_HUB_OFFLINE (or with `hf download {reference}{flag}`), point \
                 HF_HOME to the cache that has it, or {instead}"
            )),
        }
    }
}

/// Whether a revision is a full commit hash.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The files of a snapshot, by their names in the repository. The files are links to blobs; a link to nothing is no file.
pub(super) fn list(snapshot: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    let mut folders = vec![(snapshot.to_path_buf(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{name}");
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < DEEPEST {
                    folders.push((entry.path(), name + "/", depth + 1));
                }
            } else if entry.path().is_file() && files.len() < MOST_FILES {
                files.push(name);
            }
        }
    }
    files.sort();
    Ok(files)
}
