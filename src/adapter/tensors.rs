//! Named tensors as a safetensors file, in memory and on the disk.

use crate::error::{Error, Result};
use crate::weights::{TensorInfo, safetensors_header};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The bytes of a safetensors file; the same tensors give the same bytes. `path` is where they will stand, for messages.
///
/// # Errors
/// When a tensor cannot be written as it is.
pub fn serialize_tensors(
    tensors: &BTreeMap<String, Tensor>,
    metadata: &[(&str, &str)],
    path: &Path,
) -> Result<Vec<u8>> {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    safetensors::serialize(tensors, Some(metadata)).map_err(|error| Error::file(path, error.to_string()))
}

/// Reads a safetensors file whole, with the texts of its header.
///
/// # Errors
/// When it is missing, cut short, or otherwise no safetensors file.
pub fn read_tensors(path: &Path) -> Result<(BTreeMap<String, Tensor>, HashMap<String, String>)> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::file(path, format!("is no readable safetensors file: {error}"))
            .with_help("it was cut short, or is damaged; copy or fetch it again")
    };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| unreadable(&error))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| unreadable(&error))?;
    Ok((tensors.into_iter().collect(), metadata.metadata().clone().unwrap_or_default()))
}

/// The bytes of an adapter's file: floating tensors, in the order of their names, with texts in the header.
///
/// # Errors
/// For tensors of other types.
pub(super) fn serialize_adapter(tensors: &BTreeMap<String, Tensor>, metadata: &[(&str, &str)]) -> Result<Vec<u8>> {
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for (name, tensor) in tensors {
        let dtype = match tensor.dtype() {
            DType::F32 => GgmlDType::F32,
            DType::F16 => GgmlDType::F16,
            DType::BF16 => GgmlDType::BF16,
            other => {
                return Err(Error::invalid(format!("internal: an adapter's tensor `{name}` is of type {other:?}")));
            }
        };
        infos.push(TensorInfo { name: name.clone(), shape: tensor.dims().to_vec(), dtype });
        let tensor = tensor.flatten_all()?;
        match dtype {
            GgmlDType::F32 => data.extend(tensor.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes())),
            GgmlDType::F16 => data.extend(tensor.to_vec1::<f16>()?.iter().flat_map(|x| x.to_le_bytes())),
            _ => data.extend(tensor.to_vec1::<bf16>()?.iter().flat_map(|x| x.to_le_bytes())),
        }
    }
    let mut bytes = safetensors_header(&infos, metadata);
    bytes.extend(data);
    Ok(bytes)
}
