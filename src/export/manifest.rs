//! What an export's folder says of itself: from what it was made, and the hash of every file.

use super::output::{FileEntry, sha256_of};
use crate::error::{Error, Result};
use crate::fs::read_within;
use crate::nn::QuantizationConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The most bytes of a manifest.
const MOST: u64 = 16 << 20;

/// The manifest's file.
pub const MANIFEST: &str = "equipoise-export.json";

/// From what an export was made, and what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of Equipoise.
    pub equipoise: String,
    /// `peft`, `merged` and so on.
    pub target: String,
    /// The adapter, as it was named.
    pub adapter: PathBuf,
    /// The base, as it was named.
    pub base: String,
    /// Whether somebody named that base, not the adapter.
    pub base_given: bool,
    /// Whether the weights are the unquantized ones, not those that the adapter was trained on.
    pub original: bool,
    /// How the base's weights were held for a merge.
    pub quantization: QuantizationConfig,
    /// The types of the weights that were written, with the number of tensors of each.
    pub types: Vec<(String, usize)>,
    /// The files, this one excepted.
    pub files: Vec<FileEntry>,
}

impl Manifest {
    /// Reads an export's manifest.
    ///
    /// # Errors
    /// When the folder is not an export's.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        if !path.is_file() {
            return Err(Error::file(folder, format!("is not an export's folder: there is no {MANIFEST} in it"))
                .with_help("name a folder that `equipoise export` wrote"));
        }
        let bytes = read_within(&path, MOST)?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Error::file(&path, format!("is not an export's manifest: {error}")).with_help("export the adapter again")
        })
    }

    /// The base of the unquantized weights, where somebody named it.
    pub fn original_base(&self) -> Option<String> {
        (self.original && self.base_given).then(|| self.base.clone())
    }

    /// The file's contents.
    pub(super) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Compares every file with its hash.
    ///
    /// # Errors
    /// For the first file that is missing or has changed.
    pub fn check_files(&self, folder: &Path) -> Result<()> {
        for file in &self.files {
            let path = folder.join(&file.name);
            if Path::new(&file.name).file_name() != Some(file.name.as_ref()) {
                return Err(Error::file(folder.join(MANIFEST), format!("`{}` is not a plain file name", file.name)));
            }
            let (bytes, sha256) = sha256_of(&path)?;
            if bytes != file.bytes || sha256 != file.sha256 {
                return Err(Error::file(&path, "is not as it was written: its SHA-256 differs from the manifest's")
                    .with_help("it was changed or damaged since; export the adapter again"));
            }
        }
        Ok(())
    }
}
