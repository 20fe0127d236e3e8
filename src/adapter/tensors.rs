//! Named tensors as a safetensors file, in memory and on the disk.

use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use crate::weights::{SafetensorsHeader, TensorInfo, safetensors_header};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a safetensors file holds.
#[derive(Debug, Default)]
pub(super) struct TensorFile {
    pub tensors: BTreeMap<String, Tensor>,
    /// The texts of its header.
    pub metadata: BTreeMap<String, String>,
    /// Tensors of types that are not read, by name.
    pub unread: BTreeMap<String, String>,
}

/// Reads a safetensors file, tensor by tensor. What the header claims is held against the file's length before anything is
/// read.
///
/// # Errors
/// When it is missing, cut short, or otherwise not a safetensors file, or a tensor is of a type that is not read.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = read_tensor_file(path)?;
    match file.unread.first_key_value() {
        Some((name, dtype)) => Err(unread(path, name, dtype)),
        None => Ok(file.tensors),
    }
}

/// The error for a needed tensor of a type that is not read.
pub(super) fn unread(path: &Path, name: &str, dtype: &str) -> Error {
    Error::file(path, format!("tensor `{name}` is of type {dtype}, which is not read"))
        .with_help("save it as F32, F16 or BF16")
}

/// As [`read_tensors`], but tensors of types that are not read are named, not refused.
pub(super) fn read_tensor_file(path: &Path) -> Result<TensorFile> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let header = SafetensorsHeader::read(path, &file, length)?;
    let mut read = TensorFile { metadata: header.metadata, ..TensorFile::default() };
    for tensor in header.tensors {
        let Some(dtype) = dtype(&tensor.dtype) else {
            read.unread.insert(tensor.name, tensor.dtype);
            continue;
        };
        let count = tensor.shape.iter().try_fold(dtype.size_in_bytes(), |bytes, &size| bytes.checked_mul(size));
        if count != Some(tensor.len) {
            let message = format!("tensor `{}`: {} bytes do not hold {:?}", tensor.name, tensor.len, tensor.shape);
            return Err(Error::file(path, message).with_help("the file is damaged; copy or fetch it again"));
        }
        let mut bytes = vec![0; tensor.len];
        file.read_exact_at(&mut bytes, tensor.offset).map_err(Error::io("read", path))?;
        read.tensors.insert(tensor.name, Tensor::from_raw_buffer(&bytes, dtype, &tensor.shape, &Device::Cpu)?);
    }
    Ok(read)
}

fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        _ => return None,
    })
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
        DType::F16 => WeightType::F16,
        DType::BF16 => WeightType::BF16,
        _ => WeightType::F32,
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
            WeightType::F16 => {
                let numbers = tensor.to_vec1::<f16>()?;
                if numbers.iter().any(|x| !x.is_finite()) {
                    return Err(overflows());
                }
                numbers.into_iter().flat_map(f16::to_le_bytes).collect()
            }
            WeightType::BF16 => {
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
