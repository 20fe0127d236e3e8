//! Reading the header of a safetensors file: what is there, and where. It owns checking what the header claims; which
//! tensors are needed, and in what types, is for others to say.

use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The longest header that the format allows.
const HEADER_LIMIT: u64 = 100_000_000;
const REFETCH: &str =
    "the download or copy is not complete, the disk was full, or the file is damaged; fetch the file again";

/// The header of a safetensors file. Types are texts: a file may hold tensors of types that nobody here knows.
#[derive(Debug, Default)]
pub(crate) struct SafetensorsHeader {
    /// The tensors, in the order of their bytes.
    pub tensors: Vec<StoredTensor>,
    /// The texts in the header.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    /// Its name.
    pub name: String,
    /// The type, as the file writes it: `F32`, `BF16`, `I64`.
    pub dtype: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where its bytes begin, from the beginning of the file.
    pub offset: u64,
    /// How many they are.
    pub len: usize,
}

#[derive(Deserialize)]
struct Claim {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl SafetensorsHeader {
    /// Reads the header of an open file of `length` bytes. Claimed lengths are compared with the file's before anything is
    /// read, and the tensors' bytes must follow each other without gap or overlap to the end of the file.
    ///
    /// # Errors
    /// When the file is cut short or is not a safetensors file.
    pub fn read(path: &Path, file: &File, length: u64) -> Result<Self> {
        let error = |message: String| Error::file(path, message).with_help(REFETCH);
        if length < 8 {
            return Err(error(format!("is not a safetensors file: it has {length} bytes")));
        }
        let mut prefix = [0; 8];
        file.read_exact_at(&mut prefix, 0).map_err(Error::io("read", path))?;
        let claimed = u64::from_le_bytes(prefix);
        if claimed > HEADER_LIMIT || claimed > length - 8 {
            return Err(error(format!(
                "is not a safetensors file, or is cut short: its header claims {claimed} bytes, the file has {length}"
            )));
        }
        let mut text = vec![0; claimed as usize];
        file.read_exact_at(&mut text, 8).map_err(Error::io("read", path))?;
        let contradicts = |why: String| error(format!("its header contradicts itself: {why}"));
        let mut entries: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|why| contradicts(why.to_string()))?;
        let metadata = entries.remove("__metadata__").map(texts).unwrap_or_default();
        let mut claims = Vec::with_capacity(entries.len());
        for (name, value) in entries {
            let claim: Claim =
                serde_json::from_value(value).map_err(|why| contradicts(format!("tensor `{name}`: {why}")))?;
            claims.push((name, claim));
        }
        claims.sort_by(|a, b| (a.1.data_offsets, &a.0).cmp(&(b.1.data_offsets, &b.0)));
        let data = 8 + claimed;
        let mut end = 0;
        let mut tensors = Vec::with_capacity(claims.len());
        for (name, Claim { dtype, shape, data_offsets: (from, to) }) in claims {
            if from != end || to < from {
                return Err(contradicts(format!(
                    "tensor `{name}` is at bytes {from} to {to}, after one that ends at {end}"
                )));
            }
            end = to;
            tensors.push(StoredTensor {
                name,
                dtype,
                shape,
                offset: data.saturating_add(from),
                len: (to - from) as usize,
            });
        }
        if end != length - data {
            return Err(error(format!(
                "the file is cut short or too long: its tensors take {end} bytes, it holds {}",
                length - data
            )));
        }
        if let Some(StoredTensor { name, dtype, shape, len, .. }) = tensors.iter().find(|tensor| !tensor.fits()) {
            return Err(contradicts(format!("tensor `{name}`: {len} bytes do not hold {shape:?} of {dtype}")));
        }
        Ok(Self { tensors, metadata })
    }
}

impl StoredTensor {
    /// Whether its bytes hold its shape, where its type is one that is read.
    fn fits(&self) -> bool {
        let each: usize = match self.dtype.as_str() {
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => return true,
        };
        let bytes = self.shape.iter().try_fold(each, |bytes, &dimension| bytes.checked_mul(dimension));
        bytes == Some(self.len)
    }
}

/// The texts of `__metadata__`. Some programs write numbers there, which the format does not have.
fn texts(value: Value) -> BTreeMap<String, String> {
    let Value::Object(map) = value else { return BTreeMap::new() };
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    map.into_iter().map(|(key, value)| (key, text(value))).collect()
}
