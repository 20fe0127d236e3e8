//! Named tensors as a safetensors file, in memory and on the disk.

use crate::error::{Error, Result};
use crate::weights::{TensorInfo, safetensors_header};
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::tensor::Metadata;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The longest header that the format allows.
const MOST_HEADER: u64 = 100_000_000;

/// The bytes of a safetensors file; the same tensors give the same bytes. `path` is where they will stand, for messages.
///
/// # Errors
/// When a tensor cannot be written as it is.
pub fn serialize_tensors(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<Vec<u8>> {
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize(tensors, metadata).map_err(|error| Error::file(path, error.to_string()))
}

/// Reads a safetensors file, tensor by tensor, with the texts of its header. What the header claims is held against the file's
/// length before anything is read.
///
/// # Errors
/// When it is missing, cut short, or otherwise no safetensors file.
pub fn read_tensors(path: &Path) -> Result<(BTreeMap<String, Tensor>, HashMap<String, String>)> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::file(path, format!("is no readable safetensors file: {error}"))
            .with_help("it was cut short, or is damaged; copy or fetch it again")
    };
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let read = |offset: u64, length: usize| -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).map_err(Error::io("read", path))?;
        Ok(bytes)
    };
    if length < 8 {
        return Err(unreadable(&format!("it has {length} bytes")));
    }
    let mut header = [0; 8];
    file.read_exact_at(&mut header, 0).map_err(Error::io("read", path))?;
    let header = u64::from_le_bytes(header);
    if header > (length - 8).min(MOST_HEADER) {
        return Err(unreadable(&format!("its header claims {header} bytes, the file has {length}")));
    }
    // Reading it also checks that tensors follow each other without gap or overlap, and that sizes fit shapes.
    let metadata: Metadata = serde_json::from_slice(&read(8, header as usize)?).map_err(|error| unreadable(&error))?;
    if metadata.data_len() as u64 != length - 8 - header {
        return Err(unreadable(&format!(
            "its tensors take {} bytes, the file holds {}",
            metadata.data_len(),
            length - 8 - header
        )));
    }
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let dtype = candle_core::DType::try_from(info.dtype).map_err(|error| unreadable(&error))?;
        let bytes = read(8 + header + info.data_offsets.0 as u64, info.data_offsets.1 - info.data_offsets.0)?;
        tensors.insert(name, Tensor::from_raw_buffer(&bytes, dtype, &info.shape, &Device::Cpu)?);
    }
    Ok((tensors, metadata.metadata().clone().unwrap_or_default()))
}

/// Writes an adapter's file: floating tensors in `dtype`, in the order of their names, with texts in the header. One tensor at a
/// time is converted.
///
/// # Errors
/// When a number does not fit the type, or the disk refuses; `path` is what errors name.
pub(super) fn write_adapter(
    file: &mut impl Write,
    tensors: &BTreeMap<String, Tensor>,
    dtype: DType,
    metadata: &[(&str, &str)],
    path: &Path,
) -> Result<()> {
    let held = match dtype {
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        _ => GgmlDType::F32,
    };
    let info = |(name, tensor): (&String, &Tensor)| TensorInfo {
        name: name.clone(),
        shape: tensor.dims().to_vec(),
        dtype: held,
    };
    let infos: Vec<TensorInfo> = tensors.iter().map(info).collect();
    file.write_all(&safetensors_header(&infos, metadata)).map_err(Error::io("write", path))?;
    for (name, tensor) in tensors {
        let tensor = tensor.to_dtype(dtype)?.flatten_all()?;
        let overflows = || {
            let message = format!("the tensor `{name}` holds numbers beyond what {dtype:?} can hold");
            Error::invalid(message).with_help("take f32, or bf16 for f16")
        };
        let bytes: Vec<u8> = match held {
            GgmlDType::F16 => {
                let numbers = tensor.to_vec1::<f16>()?;
                if numbers.iter().any(|x| !x.is_finite()) {
                    return Err(overflows());
                }
                numbers.into_iter().flat_map(f16::to_le_bytes).collect()
            }
            GgmlDType::BF16 => {
                let numbers = tensor.to_vec1::<bf16>()?;
                if numbers.iter().any(|x| !x.is_finite()) {
                    return Err(overflows());
                }
                numbers.into_iter().flat_map(bf16::to_le_bytes).collect()
            }
            _ => tensor.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect(),
        };
        file.write_all(&bytes).map_err(Error::io("write", path))?;
    }
    Ok(())
}
