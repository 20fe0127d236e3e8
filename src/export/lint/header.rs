//! The header of a safetensors file, of any type of tensor: what is there, not what it holds.

use super::facts::TensorFact;
use crate::error::{Error, Result};
use safetensors::tensor::Metadata;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The longest header that the format allows.
const HEADER_LIMIT: u64 = 100_000_000;
const REFETCH: &str = "the file was not written or fetched whole; write or fetch it again";

/// The tensors of a safetensors file, by name. Claimed lengths are compared with the file's before anything is read.
pub(super) fn read_header(path: &Path) -> Result<Vec<TensorFact>> {
    let error = |message: String| Error::file(path, message).with_help(REFETCH);
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    if length < 8 {
        return Err(error(format!("is no safetensors file: it has {length} bytes")));
    }
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).map_err(Error::io("read", path))?;
    let claimed = u64::from_le_bytes(prefix);
    if claimed > HEADER_LIMIT || claimed > length - 8 {
        return Err(error(format!(
            "is no safetensors file, or is cut short: its header claims {claimed} bytes, the file has {length}"
        )));
    }
    let mut header = vec![0; claimed as usize];
    file.read_exact(&mut header).map_err(Error::io("read", path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|why| error(format!("its header contradicts itself: {why}")))?;
    let (expected, got) = (metadata.data_len() as u64, length - 8 - claimed);
    if expected != got {
        return Err(error(format!(
            "the file is cut short or too long: its tensors take {expected} bytes, it holds {got}"
        )));
    }
    let mut tensors: Vec<TensorFact> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| TensorFact::new(name, info.shape.clone(), format!("{:?}", info.dtype)))
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
