//! Small bases, written by tests that need one.

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use std::path::{Path, PathBuf};

/// The folder of models and golden values, where there is one.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("EQUIPOISE_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared")), PathBuf::from);
    let path = folder.join(path);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// Writes a safetensors file of f32 tensors: name, shape, values.
pub(crate) fn write_safetensors(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let tensors = tensors
        .iter()
        .map(|(name, shape, values)| ((*name).to_string(), Tensor::from_slice(values, *shape, &Device::Cpu).unwrap()));
    candle_core::safetensors::save(&tensors.collect(), path).unwrap();
}

/// A quantized tensor of these values.
pub(crate) fn quantized(shape: &[usize], values: &[f32], dtype: GgmlDType) -> QTensor {
    QTensor::quantize(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap(), dtype).unwrap()
}

/// Writes a GGUF file.
pub(crate) fn write_gguf(path: &Path, metadata: &[(&str, Value)], tensors: &[(&str, QTensor)]) {
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}
