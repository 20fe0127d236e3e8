//! Tokens that an earlier run made, found again by what they were made of.
//!
//! A file's name is the hash of everything that decides about its contents: the data, the format and its templates, the
//! tokenizer, the settings. So a file never goes out of date, two runs at once write the same bytes, and to remove any is
//! always safe.

use super::config::CacheConfig;
use super::store::TokenStore;
use super::tokenize::Encoder;
use super::tokenized::{Source, tokenize, tokenize_into};
use crate::error::{Error, Result};
use crate::fs;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Below so many bytes, `auto` keeps no file: they are tokenized in a moment.
const WORTH_KEEPING: u64 = 8 << 20;
/// Changes when the same settings would give other tokens than before.
const VERSION: &str = concat!("5 of ", env!("CARGO_PKG_VERSION"));
/// How long nobody must have written to an unfinished file, so that no run can be at work on it; and how long where the
/// process that wrote it is gone from this machine.
const ABANDONED: Duration = Duration::from_hours(48);
const ORPHANED: Duration = Duration::from_mins(10);

/// A folder of token files.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
    /// Whether the recipe names the folder: then that it cannot be written is an error.
    named: bool,
    /// The tokenizer's and the chat template's hash, which is a moment's work.
    encoder: String,
}

impl Cache {
    /// The folder that the setting means for `bytes` of data; `None` where no file is to be kept.
    pub fn new(setting: &CacheConfig, bytes: u64, encoder: &Encoder) -> Result<Option<Self>> {
        let (folder, named) = match setting {
            CacheConfig::Off => return Ok(None),
            CacheConfig::Auto if bytes < WORTH_KEEPING => return Ok(None),
            CacheConfig::Auto => match default_folder() {
                Some(folder) => (folder, false),
                None => return Ok(None),
            },
            CacheConfig::Folder(folder) => (folder.clone(), true),
        };
        match std::fs::create_dir_all(&folder) {
            Ok(()) => Ok(Some(Self { folder, named, encoder: encoder.identity()? })),
            Err(error) if named => Err(Error::file(&folder, format!("cannot be a folder of tokens: {error}"))
                .with_help("set another `data.cache`, or `off`")),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "tokens are not kept");
                Ok(None)
            }
        }
    }

    /// The source's tokens: those that are here, or made now and kept.
    pub fn load_or_make(&self, source: &Source<'_>, progress: &mut dyn FnMut(u64)) -> Result<TokenStore> {
        let before = stamps(source)?;
        let path = self.folder.join(format!("{}.tokens", key(source, &self.encoder)?));
        self.sweep();
        if path.exists() {
            match TokenStore::open(&path) {
                Ok(store) => {
                    tracing::info!(path = %path.display(), rows = store.len(), "tokens of an earlier run");
                    return Ok(store);
                }
                Err(error) => tracing::warn!(%error, "the tokens are made anew"),
            }
        }
        let made = fs::write_atomic_with(&path, |temporary| {
            tokenize_into(temporary, source, progress)?;
            // Else the new tokens would stand under the old contents' name.
            if stamps(source)? == before { Ok(()) } else { Err(changed(source)) }
        });
        match made.and_then(|()| TokenStore::open(&path)) {
            // The data's own faults are reported as such; that a folder nobody asked for cannot be written is none.
            Err(error) if self.is_about(&error) && !self.named => {
                tracing::warn!(folder = %self.folder.display(), %error, "tokens are held in memory");
                tokenize(source, progress)
            }
            Err(Error::Io { action, source, path: at }) if at.starts_with(&self.folder) => {
                // The file's name would be that of a temporary one.
                let error = Error::Io { action, source, path: self.folder.clone() };
                Err(Error::file(&self.folder, format!("no tokens can be kept here: {error}"))
                    .with_help("set another `data.cache`, or `off`"))
            }
            outcome => outcome,
        }
    }

    /// Whether an error is one of this folder's files.
    fn is_about(&self, error: &Error) -> bool {
        matches!(error, Error::Io { path, .. } | Error::File { path, .. } if path.starts_with(&self.folder))
    }

    /// Removes what runs left that were killed while they wrote.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(writer) = name.to_str().and_then(|name| name.strip_prefix(fs::TEMPORARY_PREFIX)) else { continue };
            let age = entry.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|at| at.elapsed().ok());
            let process = writer.split('-').next().unwrap_or_default();
            let gone = Path::new("/proc/self").exists() && !Path::new("/proc").join(process).exists();
            if age.is_some_and(|age| age > if gone { ORPHANED } else { ABANDONED }) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn default_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("EQUIPOISE_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("equipoise")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache").join("equipoise")))
        .map(|folder| folder.join("tokens"))
}

/// The hash of everything that decides about a source's tokens.
fn key(source: &Source<'_>, encoder: &str) -> Result<String> {
    let (config, own) = (source.config, source.own);
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(VERSION.as_bytes());
    add(encoder.as_bytes());
    let settings = serde_json::json!({
        "rows": own.rows(config),
        "columns": own.columns,
        "delimiter": own.delimiter,
        "limit": own.limit,
        "max_seq_len": config.max_seq_len(),
        "overlong": config.overlong,
        "on_bad_row": config.on_bad_row,
    });
    add(settings.to_string().as_bytes());
    for path in source.files {
        // The name tells what kind of file it is.
        add(path.file_name().unwrap_or_default().as_encoded_bytes());
        add(&content(path)?);
    }
    let mut hex = format!("{:x}", hash.finalize());
    hex.truncate(40);
    Ok(hex)
}

/// What changes when a file does: its length and when it was written.
fn stamps(source: &Source<'_>) -> Result<Vec<(u64, Option<std::time::SystemTime>)>> {
    let stamp = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
        Ok((metadata.len(), metadata.modified().ok()))
    };
    source.files.iter().map(stamp).collect()
}

fn changed(source: &Source<'_>) -> Error {
    let name = source.files.first().cloned().unwrap_or_default();
    Error::file(name, "was written to while it was read").with_help("begin again once it is whole")
}

fn content(path: &Path) -> Result<[u8; 32]> {
    let metadata = std::fs::metadata(path).map_err(Error::io("read", path))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "is not a regular file").with_help("name a file that can be read twice"));
    }
    fs::fingerprint(path)
}
