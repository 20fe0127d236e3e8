//! Named tensors as a safetensors file, in memory and on the disk.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// The bytes of a safetensors file; the same tensors give the same bytes. `path` is where they will stand, for messages.
///
/// # Errors
/// When a tensor cannot be written as it is.
pub fn serialize_tensors(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<Vec<u8>> {
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize(tensors, metadata).map_err(|error| Error::file(path, error.to_string()))
}

/// Reads a safetensors file whole.
///
/// # Errors
/// When it is missing, cut short, or otherwise no safetensors file.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|error| Error::file(path, format!("is no readable safetensors file: {error}")))?;
    Ok(tensors.into_iter().collect())
}
