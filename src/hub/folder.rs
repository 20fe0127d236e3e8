//! What of a folder is sent: regular files inside it, and no data. It reads names and sizes, and follows no link out.

use crate::error::{Error, Result};
use serde::Serialize;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most files of one upload.
const MOST_FILES: usize = 10_000;
/// The deepest folder.
const DEEPEST: usize = 16;
/// The largest file that the Hub takes over LFS.
const LARGEST: u64 = 50 << 30;
/// The manifest of an export.
const EXPORT: &str = "equipoise-export.json";
/// What holds rows rather than weights. Data stays where it is.
const DATA: &[&str] =
    &["jsonl", "ndjson", "csv", "tsv", "parquet", "arrow", "gz", "zst", "zip", "tar", "xz", "bz2", "xlsx"];

/// Where a file's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// On the disk, with all links followed.
    File(PathBuf),
    /// Here: a card that the folder has not, or a file that is sent with something replaced.
    Bytes(Arc<[u8]>),
}

impl Content {
    /// Opens it for reading from a place on.
    pub fn open(&self, offset: u64) -> std::io::Result<Box<dyn Read + Send>> {
        use std::io::{Cursor, Seek, SeekFrom};
        match self {
            Self::File(path) => {
                let mut file = std::fs::File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Ok(Box::new(file))
            }
            Self::Bytes(bytes) => {
                let mut cursor = Cursor::new(bytes.clone());
                cursor.set_position(offset);
                Ok(Box::new(cursor))
            }
        }
    }
}

/// A file or folder that stays here.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    /// Its place in the folder.
    pub path: String,
    /// Why: `hidden`, `data`, `the run's state`.
    pub why: &'static str,
}

/// A file to be sent.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its name in the repository, with `/` between folders.
    pub path: String,
    pub size: u64,
    pub content: Content,
}

/// The files of a folder that are sent, sorted, and the names of those that are not, with the reason.
///
/// Hidden files, checkpoints and data files are left out. So nothing but what is inside of the folder can be sent.
///
/// # Errors
/// For a link that leads out of the folder or to a folder, a name that is no name in a repository, and a file or a number
/// of files that the Hub does not take.
pub(super) fn list(folder: &Path) -> Result<(Vec<Found>, Vec<LeftOut>)> {
    if !folder.exists() {
        return Err(Error::file(folder, "no such folder").with_help("name the folder that `train` or `export` wrote"));
    }
    let root = folder.canonicalize().map_err(Error::io("open", folder))?;
    if !root.is_dir() {
        return Err(Error::file(folder, "is not a folder").with_help("name the folder that `train` or `export` wrote"));
    }
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    let mut folders = vec![(root.clone(), String::new(), 0)];
    while let Some((path, prefix, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))? {
            let entry = entry.map_err(Error::io("read", &path))?;
            let name = name_of(&entry)?;
            let kind = entry.file_type().map_err(Error::io("read", entry.path()))?;
            let in_repo = format!("{prefix}{name}");
            if let Some(why) = excluded(&in_repo, kind.is_dir()) {
                left_out.push(LeftOut { path: in_repo, why });
            } else if kind.is_dir() && entry.path().join(EXPORT).is_file() {
                left_out.push(LeftOut { path: in_repo, why: "an export of its own" });
            } else if kind.is_dir() {
                if depth == DEEPEST {
                    return Err(Error::file(entry.path(), "lies too deep for an upload"));
                }
                folders.push((entry.path(), in_repo + "/", depth + 1));
            } else {
                found.push(file(&root, &entry.path(), in_repo)?);
            }
            if found.len() + left_out.len() > MOST_FILES {
                return Err(Error::file(folder, format!("holds more than {MOST_FILES} files"))
                    .with_help("is this the folder of an adapter or of a model?"));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    left_out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((found, left_out))
}

/// A name that the repository can have, and that means the same there.
fn name_of(entry: &std::fs::DirEntry) -> Result<String> {
    let refused = || {
        Err(Error::file(entry.path(), "has a name that a repository cannot have")
            .with_help("rename it: no backslash, no control characters, UTF-8"))
    };
    let Ok(name) = entry.file_name().into_string() else { return refused() };
    if name.contains(['\\', '/']) || name.chars().any(char::is_control) || name == ".." || name.len() > 255 {
        return refused();
    }
    Ok(name)
}

/// Why a file stays here.
fn excluded(path: &str, is_folder: bool) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if name.starts_with('.') {
        return Some("hidden");
    }
    if is_folder {
        return match path {
            "checkpoints" => Some("the run's state"),
            // Samples hold the tasks' documents, and results name paths of this machine.
            "eval" => Some("answers to tasks"),
            _ if name == "__pycache__" => Some("a cache"),
            _ => None,
        };
    }
    // An export's manifest names paths of this machine.
    if path == EXPORT {
        return Some("the export's manifest");
    }
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    (DATA.contains(&extension.as_str()) && path != "metrics.jsonl").then_some("data")
}

fn file(root: &Path, path: &Path, in_repo: String) -> Result<Found> {
    let real = path.canonicalize().map_err(Error::io("open", path))?;
    if !real.starts_with(root) {
        let message = format!("is a link to {}, outside of the folder", real.display());
        return Err(Error::file(path, message).with_help(
            "nothing but the folder's own files is sent: put a copy in the link's place (`cp -rL` copies a whole folder), or \
             remove it",
        ));
    }
    let metadata = real.metadata().map_err(Error::io("read", &real))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is neither a regular file nor a folder").with_help("remove it from the folder"));
    }
    if metadata.len() > LARGEST {
        return Err(Error::file(path, format!("has {} GiB; the Hub takes 50 at most", metadata.len() >> 30))
            .with_help("write the model in shards"));
    }
    // What is hidden is not sent under another name either.
    let hidden = |part: std::path::Component<'_>| part.as_os_str().to_string_lossy().starts_with('.');
    if real.strip_prefix(root).is_ok_and(|inside| inside.components().any(hidden)) {
        return Err(
            Error::file(path, "is a link to a hidden file").with_help("remove the link, or put a copy in its place")
        );
    }
    Ok(Found { path: in_repo, size: metadata.len(), content: Content::File(real) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn names(folder: &Path) -> Vec<String> {
        list(folder).unwrap().0.into_iter().map(|file| file.path).collect()
    }

    #[test]
    fn state_hidden_files_and_data_stay_here() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        for name in ["adapter_config.json", "README.md", "sub/a.safetensors", "merges.txt", "metrics.jsonl"] {
            write(name);
        }
        for name in
            [".lock", ".tmp-1", ".git/config", "checkpoints/step-1/a", "train.jsonl", "rows.CSV", "sub/metrics.jsonl"]
        {
            write(name);
        }
        assert_eq!(
            names(folder.path()),
            ["README.md", "adapter_config.json", "merges.txt", "metrics.jsonl", "sub/a.safetensors"]
        );
        let left: Vec<_> =
            list(folder.path()).unwrap().1.into_iter().map(|left| format!("{} {}", left.path, left.why)).collect();
        assert!(
            left.contains(&"train.jsonl data".into()) && left.contains(&"checkpoints the run's state".into()),
            "{left:?}"
        );
    }

    #[test]
    fn links_are_followed_inside_of_the_folder_only() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (inside, secret) = (folder.path().join("a.json"), outside.path().join("secret.json"));
        std::fs::write(&inside, "{}").unwrap();
        std::fs::write(&secret, "secret").unwrap();
        symlink(&inside, folder.path().join("b.json")).unwrap();
        assert_eq!(names(folder.path()), ["a.json", "b.json"]);
        let link = folder.path().join("c.json");
        for target in [secret.as_path(), outside.path(), Path::new("../../etc/passwd"), folder.path()] {
            symlink(target, &link).unwrap();
            assert!(list(folder.path()).is_err(), "{}", target.display());
            std::fs::remove_file(&link).unwrap();
        }
        std::fs::write(folder.path().join(".secret"), "x").unwrap();
        symlink(folder.path().join(".secret"), &link).unwrap();
        assert!(list(folder.path()).unwrap_err().to_string().contains("hidden"));
    }

    #[test]
    fn names_that_would_mean_something_else_are_refused() {
        for name in ["a\\..\\b", "a\nb", "a\u{7f}"] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(name), "x").unwrap();
            assert!(list(folder.path()).unwrap_err().to_string().contains("name"), "{name:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever the folder looks like: either it is refused, or all that is sent lies in it under its plain name.
        #[test]
        fn nothing_outside_is_ever_sent(
            entries in prop::collection::vec(("[a-c.]{1,3}", "[a-c.]{1,3}", 0u8..5), 1..8)
        ) {
            let place = tempfile::tempdir().unwrap();
            let (root, outside) = (place.path().join("root"), place.path().join("out"));
            std::fs::create_dir(&root).unwrap();
            std::fs::create_dir(&outside).unwrap();
            std::fs::write(outside.join("secret"), "SECRET").unwrap();
            for (folder, name, kind) in entries {
                let folder = root.join(folder);
                let _ = std::fs::create_dir_all(&folder);
                let path = folder.join(name);
                let _ = match kind {
                    0 => symlink(outside.join("secret"), &path),
                    1 => symlink("../../out/secret", &path),
                    2 => symlink(&outside, &path),
                    _ => std::fs::write(&path, "fine"),
                };
            }
            if let Ok((files, _)) = list(&root) {
                for file in files {
                    let mut bytes = Vec::new();
                    file.content.open(0).unwrap().read_to_end(&mut bytes).unwrap();
                    prop_assert_eq!(&bytes, b"fine", "{}", &file.path);
                    prop_assert!(!file.path.starts_with('/') && file.path.split('/').all(|part| !part.starts_with('.')));
                }
            }
        }
    }
}
