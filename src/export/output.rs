//! The files of an export: written into a folder that is not in place yet, hashed as they go.

use super::{Types, type_name};
use crate::error::{Error, Result};
use crate::fs::{file_inside, free_space};
use crate::weight_type::WeightType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// The most bytes of a file that is copied: tokenizers have some ten millions.
const MOST_COPIED: u64 = 1 << 30;

/// A file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its contents, in hexadecimal.
    pub sha256: String,
}

/// How far an export has come: bytes done and in all. It goes on while the answer is `true`.
pub type Watch<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// The folder that an exporter writes to.
pub struct Output<'a> {
    folder: PathBuf,
    /// Where the folder will be, for messages.
    shown: PathBuf,
    watch: &'a mut Watch<'a>,
    done: u64,
    total: u64,
    /// The files so far.
    pub(super) files: Vec<FileEntry>,
    /// The types of the weights that were written.
    pub(super) types: Types,
    /// What a user should know.
    pub(super) notes: Vec<String>,
}

impl<'a> Output<'a> {
    pub(super) fn new(folder: &Path, shown: &Path, watch: &'a mut Watch<'a>) -> Self {
        let (folder, shown) = (folder.to_owned(), shown.to_owned());
        Self { folder, shown, watch, done: 0, total: 0, files: Vec::new(), types: Types::new(), notes: Vec::new() }
    }

    /// The folder, for writers that want a path; [`Self::adopt`] takes up what they wrote.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Says how much there is to write.
    ///
    /// # Errors
    /// When the disk has no room for it.
    pub fn expect(&mut self, bytes: u64) -> Result<()> {
        self.total += bytes;
        match free_space(&self.folder).filter(|free| *free < bytes) {
            Some(free) => {
                let [bytes, free] = [bytes, free].map(|bytes| bytes as f64 / 1e6);
                let message = format!("needs {bytes:.1} MB, and its disk has {free:.1} MB free");
                Err(Error::file(&self.shown, message).with_help("free some space, or name another folder with `--out`"))
            }
            None => Ok(()),
        }
    }

    /// Counts a tensor of this type.
    pub fn count(&mut self, dtype: WeightType) {
        *self.types.entry(type_name(dtype)).or_default() += 1;
    }

    /// Keeps a remark for the user.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    /// Writes a file; `fill` is given the way to write its bytes.
    ///
    /// # Errors
    /// What `fill` answers; when the disk refuses; [`Error::Interrupted`] when nobody wants it any more.
    pub fn file(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let shown = self.shown.join(name);
        if let Some((inner, _)) = name.rsplit_once('/') {
            let inner = self.folder.join(inner);
            std::fs::create_dir_all(&inner).map_err(Error::io("create", &inner))?;
        }
        let file = File::create_new(self.folder.join(name)).map_err(Error::io("create", &shown))?;
        let (mut file, mut hasher, mut bytes) = (BufWriter::with_capacity(1 << 20, file), Sha256::new(), 0u64);
        fill(&mut |piece| {
            file.write_all(piece).map_err(Error::io("write", &shown))?;
            hasher.update(piece);
            bytes += piece.len() as u64;
            self.done += piece.len() as u64;
            if (self.watch)(self.done, self.total.max(self.done)) { Ok(()) } else { Err(Error::Interrupted) }
        })?;
        file.into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("write", &shown))?;
        self.files.push(FileEntry { name: name.to_owned(), bytes, sha256: format!("{:x}", hasher.finalize()) });
        Ok(())
    }

    /// Writes a text or other small contents.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn small(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.file(name, |write| write(contents))
    }

    /// Copies a file of a folder, if it is there; nothing from outside of the folder.
    ///
    /// # Errors
    /// As [`Self::file`], and when the source cannot be read.
    pub fn copy_if_there(&mut self, folder: &Path, name: &str) -> Result<bool> {
        let Some(from) = file_inside(folder, name)? else { return Ok(false) };
        let from = from.as_path();
        let mut source = File::open(from).map_err(Error::io("open", from))?.take(MOST_COPIED);
        let mut piece = vec![0; 1 << 20];
        self.file(name, |write| {
            loop {
                match source.read(&mut piece).map_err(Error::io("read", from))? {
                    0 => return Ok(()),
                    count => write(&piece[..count])?,
                }
            }
        })?;
        Ok(true)
    }

    /// Takes up a file that another writer has put into [`Self::folder`].
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn adopt(&mut self, name: &str) -> Result<()> {
        let (bytes, sha256) = sha256_of(&self.folder.join(name))?;
        self.files.push(FileEntry { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }
}

/// Length and SHA-256 of a file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn sha256_of(path: &Path) -> Result<(u64, String)> {
    if !path.is_file() {
        return Err(Error::file(path, "is missing, or no regular file").with_help("export the adapter again"));
    }
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut hasher, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece).map_err(Error::io("read", path))? {
            0 => return Ok((bytes, format!("{:x}", hasher.finalize()))),
            count => {
                hasher.update(&piece[..count]);
                bytes += count as u64;
            }
        }
    }
}
