//! The table of tensors: which file holds which tensor where. It owns reading bytes; not what headers look like.

use super::RawTensor;
use super::gguf::rows;
use super::packed::Packed;
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How much of each end of a file the fingerprint covers.
const FINGERPRINT_END: u64 = 64 << 10;
/// How much of each tensor the fingerprint covers.
const FINGERPRINT_SAMPLE: usize = 4 << 10;

/// Bytes that are compared at a time.
const EQUAL_PIECE: usize = 4 << 20;

/// An open file and how long it was then.
#[derive(Debug)]
pub(super) struct WeightFile {
    pub path: PathBuf,
    pub file: File,
    pub len: u64,
}

impl WeightFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let len = file.metadata().map_err(Error::io("read", path))?.len();
        Ok(Self { path: path.to_path_buf(), file, len })
    }

    /// Reads a range that lies within the file. Not through a memory map: its pages would count as memory held.
    pub fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }
}

/// One tensor: what it is and where it lies.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its name in the file.
    pub stored: String,
    pub shape: Vec<usize>,
    pub dtype: WeightType,
    /// Which of the table's files holds it.
    pub file: usize,
    /// Where it begins in that file.
    pub offset: u64,
    /// Its bytes.
    pub len: usize,
    /// Where the rows are in llama.cpp's order: of how many heads.
    pub permuted_heads: Option<usize>,
    /// Where it is made of several stored tensors: of which, and how. `offset` and `len` are those of its codes.
    pub packed: Option<Packed>,
}

impl Entry {
    /// What can be read by itself: the rows of a matrix, the numbers of a permuted vector, any other tensor as a whole.
    fn rows(&self) -> usize {
        match (self.shape.as_slice(), self.permuted_heads) {
            ([numbers], Some(_)) => *numbers,
            (shape, _) => shape.split_last().map_or(1, |(_, outer)| outer.iter().product()),
        }
    }
}

/// All tensors, under Hugging Face's names.
#[derive(Debug, Default)]
pub(super) struct Table {
    files: Vec<WeightFile>,
    entries: BTreeMap<String, Entry>,
    /// Tensors that cannot be read: an error only where one is asked for.
    unread: BTreeMap<String, Unread>,
}

/// Why a tensor cannot be read.
#[derive(Debug, Clone)]
pub(super) struct Unread {
    /// The file that is to blame.
    pub path: PathBuf,
    pub message: String,
    pub help: String,
    /// Whether it is of integers: a buffer, such as position ids, which transformers recreates.
    pub is_buffer: bool,
}

impl Unread {
    pub fn error(&self) -> Error {
        Error::file(&self.path, self.message.clone()).with_help(self.help.clone())
    }
}

/// The bytes of a tensor; `None` when its rows are no whole blocks or the number does not fit.
pub(super) fn byte_len(shape: &[usize], dtype: WeightType) -> Option<usize> {
    let (row, rows) = shape.split_last().unwrap_or((&1, &[]));
    if !row.is_multiple_of(dtype.block_size()) {
        return None;
    }
    let row_bytes = (row / dtype.block_size()).checked_mul(dtype.type_size())?;
    rows.iter().try_fold(row_bytes, |bytes, &dimension| bytes.checked_mul(dimension))
}

impl Table {
    /// Adds a file and returns its number.
    pub fn add_file(&mut self, file: WeightFile) -> usize {
        self.files.push(file);
        self.files.len() - 1
    }

    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// Takes a tensor out, whether it can be read or not.
    pub fn remove(&mut self, name: &str) {
        self.entries.remove(name);
        self.unread.remove(name);
    }

    /// Why a tensor that is there, or should be, cannot be read.
    pub fn why_unread(&self, name: &str) -> Option<&Unread> {
        self.unread.get(name).filter(|_| !self.entries.contains_key(name))
    }

    /// Adds a tensor after checking that it is new and lies within its file.
    pub fn insert(&mut self, name: String, entry: Entry) -> Result<()> {
        let file = &self.files[entry.file];
        let end = entry.offset.checked_add(entry.len as u64);
        if end.is_none_or(|end| end > file.len) {
            return Err(Error::file(
                &file.path,
                format!(
                    "the file is cut short: tensor `{}` needs {} bytes from byte {}, but the file has {} bytes",
                    entry.stored, entry.len, entry.offset, file.len
                ),
            )
            .with_help("the download is not complete, or the disk was full; fetch the file again"));
        }
        if self.entries.contains_key(&name) {
            return Err(Error::file(&file.path, format!("tensor `{}` is there twice", entry.stored)));
        }
        self.entries.insert(name, entry);
        Ok(())
    }

    /// Keeps a tensor that cannot be read, with the reason.
    pub fn leave(&mut self, name: String, unread: Unread) {
        self.unread.insert(name, unread);
    }

    /// The error for a tensor that is there, or should be, and cannot be read.
    pub fn unread(&self, name: &str) -> Option<Error> {
        self.why_unread(name).map(Unread::error)
    }

    /// The names of the tensors that cannot be read.
    pub fn unread_names(&self) -> impl Iterator<Item = &str> {
        self.unread.keys().map(String::as_str)
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Renames all tensors.
    ///
    /// # Errors
    /// When two tensors would have one name.
    pub fn rename(&mut self, rename: impl Fn(String) -> String) -> Result<()> {
        for (name, entry) in std::mem::take(&mut self.entries) {
            let (path, stored) = (self.files[entry.file].path.clone(), entry.stored.clone());
            if let Some(other) = self.entries.insert(rename(name), entry) {
                let beside = match &self.files[other.file].path {
                    same if *same == path => String::new(),
                    another => format!(" (in {})", another.display()),
                };
                let message = format!("`{stored}` and `{}`{beside} are two names of one tensor", other.stored);
                return Err(
                    Error::file(path, message).with_help("save the model again with transformers' save_pretrained")
                );
            }
        }
        self.unread = std::mem::take(&mut self.unread).into_iter().map(|(name, why)| (rename(name), why)).collect();
        Ok(())
    }

    /// The first weight that cannot be read, and why.
    pub fn first_unread(&self) -> Option<&Unread> {
        self.unread.values().find(|unread| !unread.is_buffer)
    }

    /// Reads a tensor; `base` is what errors name.
    pub fn read(&self, name: &str, base: &Path) -> Result<RawTensor> {
        let entry = self.find(name, base)?;
        let bytes = self.read_range(entry, 0..entry.rows(), base)?;
        Ok(RawTensor { shape: entry.shape.clone(), dtype: entry.dtype, bytes })
    }

    /// Reads some rows of a matrix; a vector is one row.
    pub fn read_rows(&self, name: &str, rows: Range<usize>, base: &Path) -> Result<Vec<u8>> {
        let entry = self.find(name, base)?;
        let rows = if entry.shape.len() > 1 { rows } else { rows.start * entry.rows()..rows.end * entry.rows() };
        self.read_range(entry, rows, base)
    }

    /// Whether two tensors hold the same bytes, in the same type and shape. They are read in pieces, up to the first difference.
    pub fn are_equal(&self, a: &str, b: &str, base: &Path) -> Result<bool> {
        let (first, second) = (self.find(a, base)?, self.find(b, base)?);
        if (&first.shape, first.dtype) != (&second.shape, second.dtype) {
            return Ok(false);
        }
        let rows = first.rows();
        let step = (EQUAL_PIECE / (first.len / rows.max(1)).max(1)).max(1);
        for start in (0..rows).step_by(step) {
            let range = start..(start + step).min(rows);
            if self.read_range(first, range.clone(), base)? != self.read_range(second, range, base)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Of a tensor in llama.cpp's order whole heads are read.
    fn read_range(&self, entry: &Entry, rows: Range<usize>, base: &Path) -> Result<Vec<u8>> {
        let all = entry.rows();
        if rows.end > all || rows.start > rows.end {
            return Err(Error::file(base, format!("tensor `{}` has {all} rows, and none at {rows:?}", entry.stored)));
        }
        if let Some(packed) = &entry.packed {
            return packed.read(&self.files, entry, rows);
        }
        let row_bytes = entry.len / all.max(1);
        let read = |rows: &Range<usize>| {
            let offset = entry.offset + (rows.start * row_bytes) as u64;
            self.files[entry.file].read_at(offset, rows.len() * row_bytes)
        };
        let Some(heads) = entry.permuted_heads.filter(|_| !rows.is_empty()) else { return read(&rows) };
        let misfit = || Error::file(base, rows::misfit(&entry.stored, all, heads));
        let height = all.checked_div(heads).filter(|&height| height > 0).ok_or_else(misfit)?;
        let whole = rows.start / height * height..rows.end.next_multiple_of(height);
        let bytes = rows::to_hugging_face(&read(&whole)?, whole.len(), whole.len() / height).ok_or_else(misfit)?;
        Ok(bytes[(rows.start - whole.start) * row_bytes..][..rows.len() * row_bytes].to_vec())
    }

    fn find(&self, name: &str, base: &Path) -> Result<&Entry> {
        let missing = || Error::file(base, format!("there is no tensor `{name}`"));
        self.get(name).ok_or_else(|| self.unread(name).unwrap_or_else(missing))
    }

    /// What [`super::Base::fingerprint`] says about files and tensors.
    pub fn hash(&self, hasher: &mut Sha256) -> Result<()> {
        for file in &self.files {
            hasher.update(file.len.to_le_bytes());
            let len = file.len.min(FINGERPRINT_END);
            hasher.update(file.read_at(0, len as usize)?);
            hasher.update(file.read_at(file.len - len, len as usize)?);
        }
        for (name, entry) in self.entries() {
            hasher.update(format!("{name} {:?} {:?} {} {}\n", entry.shape, entry.dtype, entry.file, entry.offset));
            let len = entry.len.min(FINGERPRINT_SAMPLE);
            let middle = entry.offset + (entry.len - len) as u64 / 2;
            hasher.update(self.files[entry.file].read_at(middle, len)?);
            entry.packed.iter().try_for_each(|packed| packed.hash(&self.files, hasher))?;
        }
        Ok(())
    }
}
