//! The header of a safetensors file, of any type of tensor: what is there, not what it holds.

use super::facts::TensorFact;
use crate::error::{Error, Result};
use crate::weights::SafetensorsHeader;
use std::fs::File;
use std::path::Path;

/// The tensors of a safetensors file, by name. Claimed lengths are compared with the file's before anything is read.
pub(super) fn read_header(path: &Path) -> Result<Vec<TensorFact>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let header = SafetensorsHeader::read(path, &file, length)?;
    let fact = |tensor: crate::weights::StoredTensor| TensorFact::new(tensor.name, tensor.shape, tensor.dtype);
    let mut tensors: Vec<TensorFact> = header.tensors.into_iter().map(fact).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
