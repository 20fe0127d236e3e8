//! The container: header, metadata, tensor table and aligned data of GGUF version 3, written from front to back.
//!
//! Tensor data are streamed in, in pieces, tensor after tensor: no tensor is ever held whole.

use crate::error::{Error, Result};
use crate::weights::TensorInfo;
use crate::weights::gguf::{tensor_bytes, type_number};
use candle_core::quantized::gguf_file::Value;
use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where nothing else is said, each tensor begins at a multiple of this.
const ALIGNMENT: u32 = 32;
/// ggml keeps a tensor's name in 64 bytes, the last of them zero.
const NAME_LIMIT: usize = 63;
/// GGUF's number of arrays and of strings among the types of values.
const ARRAY: u32 = 9;
const STRING: u32 = 8;

/// Writes one GGUF file: [`Self::new`] the header, then [`Self::begin`] and [`Self::write`] for each tensor in the table's
/// order, then [`Self::finish`].
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    path: PathBuf,
    alignment: u64,
    tensors: Vec<(TensorInfo, u64)>,
    /// How many tensors were begun.
    begun: usize,
    /// What the tensor in progress still lacks, in bytes.
    missing: u64,
}

/// The length of the file that a [`GgufWriter`] will write, in bytes.
///
/// # Errors
/// As [`GgufWriter::new`], for what cannot be written.
pub fn file_size(path: &Path, metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<u64> {
    let header = Header::build(path, metadata, tensors)?;
    let aligned = |bytes: u64| bytes.checked_next_multiple_of(header.alignment);
    let size =
        header.lengths.iter().try_fold(header.bytes.len() as u64, |at, &length| at.checked_add(aligned(length)?));
    size.ok_or_else(|| Error::file(path, "the file would be longer than a file can be"))
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header. `path` is what errors name. The alignment is `general.alignment` of the metadata, or 32.
    ///
    /// # Errors
    /// When a name is there twice or too long, a shape does not suit its type, an array mixes types, or the system refuses.
    pub fn new(mut out: W, path: &Path, metadata: &[(String, Value)], tensors: Vec<TensorInfo>) -> Result<Self> {
        let header = Header::build(path, metadata, &tensors)?;
        out.write_all(&header.bytes).map_err(Error::io("write", path))?;
        let tensors = tensors.into_iter().zip(header.lengths).collect();
        Ok(Self { out, path: path.to_path_buf(), alignment: header.alignment, tensors, begun: 0, missing: 0 })
    }

    /// Begins the next tensor of the table, after closing the one before.
    ///
    /// # Errors
    /// When the one before lacks bytes, or the next tensor of the table is another.
    pub fn begin(&mut self, name: &str) -> Result<()> {
        self.close()?;
        match self.tensors.get(self.begun) {
            Some((info, length)) if info.name == name => {
                self.missing = *length;
                self.begun += 1;
                Ok(())
            }
            Some((info, _)) => Err(self.wrong(format!("tensor `{}` was to be written next, not `{name}`", info.name))),
            None => Err(self.wrong(format!("tensor `{name}` is not in the table: all its tensors are written"))),
        }
    }

    /// Writes a piece of the tensor in progress.
    ///
    /// # Errors
    /// When the tensor would get more bytes than its shape and type ask for, or the system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        if length > self.missing {
            let name = self.current();
            return Err(self.wrong(format!("tensor `{name}` would get {} bytes too many", length - self.missing)));
        }
        self.out.write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.missing -= length;
        Ok(())
    }

    /// Closes the last tensor and gives the output back, flushed.
    ///
    /// # Errors
    /// When a tensor lacks bytes or was never begun, or the system refuses.
    pub fn finish(mut self) -> Result<W> {
        self.close()?;
        if let Some((info, _)) = self.tensors.get(self.begun) {
            return Err(self.wrong(format!("tensor `{}` was never written", info.name)));
        }
        self.out.flush().map_err(Error::io("write", &self.path))?;
        Ok(self.out)
    }

    /// Pads the tensor in progress; every tensor is padded, the last one too, as llama.cpp does it.
    fn close(&mut self) -> Result<()> {
        if self.missing > 0 {
            let name = self.current();
            return Err(self.wrong(format!("tensor `{name}` lacks {} bytes", self.missing)));
        }
        if let Some((_, length)) = self.begun.checked_sub(1).and_then(|last| self.tensors.get(last)) {
            let padding = length.next_multiple_of(self.alignment) - length;
            self.out.write_all(&vec![0; padding as usize]).map_err(Error::io("write", &self.path))?;
        }
        Ok(())
    }

    fn current(&self) -> &str {
        self.begun.checked_sub(1).map_or("", |last| &self.tensors[last].0.name)
    }

    fn wrong(&self, message: String) -> Error {
        Error::file(&self.path, message)
    }
}

/// All that stands before the first tensor.
struct Header {
    bytes: Vec<u8>,
    alignment: u64,
    /// The bytes of each tensor, without padding.
    lengths: Vec<u64>,
}

impl Header {
    fn build(path: &Path, metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<Self> {
        let alignment = alignment(path, metadata)?;
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((metadata.len() as u64).to_le_bytes());
        let mut keys = HashSet::new();
        for (key, value) in metadata {
            if !keys.insert(key) {
                return Err(Error::file(path, format!("metadata `{key}` would be written twice")));
            }
            string(&mut bytes, key);
            bytes.extend(type_of(value).to_le_bytes());
            write_value(&mut bytes, value)
                .ok_or_else(|| Error::file(path, format!("metadata `{key}`: an array of several types")))?;
        }
        let lengths = table(&mut bytes, path, tensors, alignment)?;
        bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        Ok(Self { bytes, alignment, lengths })
    }
}

/// Writes the tensor table; gives the bytes of each tensor.
fn table(bytes: &mut Vec<u8>, path: &Path, tensors: &[TensorInfo], alignment: u64) -> Result<Vec<u64>> {
    let (mut names, mut lengths, mut offset) = (HashSet::new(), Vec::with_capacity(tensors.len()), 0u64);
    for TensorInfo { name, shape, dtype } in tensors {
        let wrong = |message: &str| Error::file(path, format!("tensor `{name}` {message}"));
        if !names.insert(name) {
            return Err(wrong("would be written twice"));
        }
        if name.len() > NAME_LIMIT || shape.len() > 4 {
            return Err(wrong("cannot be written: llama.cpp takes names of 63 bytes and four dimensions at most"));
        }
        let kind = type_number(*dtype).ok_or_else(|| wrong(&format!("is of type {dtype:?}, which no file holds")))?;
        let length = tensor_bytes(shape, *dtype).ok_or_else(|| {
            wrong(&format!("of shape {shape:?} cannot be held as {dtype:?}, in blocks of {}", dtype.block_size()))
        })?;
        string(bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        for dimension in shape.iter().rev() {
            bytes.extend((*dimension as u64).to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        lengths.push(length as u64);
        offset = (length as u64)
            .checked_next_multiple_of(alignment)
            .and_then(|padded| offset.checked_add(padded))
            .ok_or_else(|| wrong("would lie beyond the end of any file"))?;
    }
    Ok(lengths)
}

fn alignment(path: &Path, metadata: &[(String, Value)]) -> Result<u64> {
    match metadata.iter().find(|(key, _)| key == "general.alignment").map(|(_, value)| value) {
        None => Ok(ALIGNMENT.into()),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() && (8..=1 << 16).contains(alignment) => {
            Ok((*alignment).into())
        }
        Some(other) => Err(Error::file(
            path,
            format!("metadata `general.alignment`: expected a u32 power of two from 8 to 65536, got {other:?}"),
        )),
    }
}

/// GGUF's number of a value's type.
fn type_of(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => STRING,
        Value::Array(_) => ARRAY,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// `None` for an array of several types. An array of nothing is written as one of strings, which the arrays are that llama.cpp
/// reads by type.
fn write_value(bytes: &mut Vec<u8>, value: &Value) -> Option<()> {
    match value {
        Value::U8(number) => bytes.push(*number),
        Value::I8(number) => bytes.extend(number.to_le_bytes()),
        Value::U16(number) => bytes.extend(number.to_le_bytes()),
        Value::I16(number) => bytes.extend(number.to_le_bytes()),
        Value::U32(number) => bytes.extend(number.to_le_bytes()),
        Value::I32(number) => bytes.extend(number.to_le_bytes()),
        Value::F32(number) => bytes.extend(number.to_le_bytes()),
        Value::Bool(flag) => bytes.push((*flag).into()),
        Value::String(text) => string(bytes, text),
        Value::U64(number) => bytes.extend(number.to_le_bytes()),
        Value::I64(number) => bytes.extend(number.to_le_bytes()),
        Value::F64(number) => bytes.extend(number.to_le_bytes()),
        Value::Array(values) => {
            let kind = values.first().map_or(STRING, type_of);
            if values.iter().any(|value| type_of(value) != kind) {
                return None;
            }
            bytes.extend(kind.to_le_bytes());
            bytes.extend((values.len() as u64).to_le_bytes());
            for value in values {
                write_value(bytes, value)?;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight_type::WeightType;
    use crate::weights::Base;
    use candle_core::Device;
    use candle_core::quantized::gguf_file::Content;
    use std::io::Cursor;

    fn info(name: &str, shape: &[usize], dtype: WeightType) -> TensorInfo {
        TensorInfo { name: name.into(), shape: shape.to_vec(), dtype }
    }

    fn every_kind() -> Vec<(String, Value)> {
        let text = |text: &str| Value::String(text.into());
        [
            ("general.architecture", text("any")),
            ("k.u8", Value::U8(200)),
            ("k.i8", Value::I8(-3)),
            ("k.u16", Value::U16(60000)),
            ("k.i16", Value::I16(-300)),
            ("k.u32", Value::U32(4_000_000_000)),
            ("k.i32", Value::I32(-70000)),
            ("k.u64", Value::U64(1 << 40)),
            ("k.i64", Value::I64(-(1 << 40))),
            ("k.f32", Value::F32(1e-5)),
            ("k.f64", Value::F64(0.1)),
            ("k.bool", Value::Bool(true)),
            ("k.text", text("é ▁\n\"")),
            ("k.texts", Value::Array(vec![text("a"), text("")])),
            ("k.none", Value::Array(Vec::new())),
            ("k.nested", Value::Array(vec![Value::Array(vec![Value::I32(1)]), Value::Array(vec![Value::I32(2)])])),
        ]
        .map(|(key, value)| (key.to_string(), value))
        .to_vec()
    }

    /// Tensors whose bytes are not a multiple of any alignment.
    fn odd_sized() -> Vec<TensorInfo> {
        vec![
            info("a", &[3, 5], WeightType::F32),
            info("b.weight", &[7], WeightType::F16),
            info("c.weight", &[3, 32], WeightType::Q4_0),
            info("d.weight", &[2, 2, 3], WeightType::BF16),
            info("e.weight", &[1, 256], WeightType::Q6K),
        ]
    }

    fn bytes_of(info: &TensorInfo, seed: usize) -> Vec<u8> {
        (0..tensor_bytes(&info.shape, info.dtype).unwrap()).map(|i| ((i * 7 + seed * 31) % 61) as u8).collect()
    }

    fn written(metadata: &[(String, Value)], tensors: &[TensorInfo], piece: usize) -> Vec<u8> {
        let mut writer = GgufWriter::new(Vec::new(), Path::new("x.gguf"), metadata, tensors.to_vec()).unwrap();
        for (seed, info) in tensors.iter().enumerate() {
            writer.begin(&info.name).unwrap();
            bytes_of(info, seed).chunks(piece).for_each(|piece| writer.write(piece).unwrap());
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_reads_back_with_our_reader_and_with_candles() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("any.gguf");
        let tensors = odd_sized();
        for alignment in [None, Some(8), Some(32), Some(64), Some(4096)] {
            let mut metadata = every_kind();
            metadata.extend(alignment.map(|number| ("general.alignment".to_string(), Value::U32(number))));
            let file = written(&metadata, &tensors, 11);
            assert_eq!(file, written(&metadata, &tensors, 1 << 20), "whatever the pieces");
            assert_eq!(file.len() as u64, file_size(&path, &metadata, &tensors).unwrap());
            std::fs::write(&path, &file).unwrap();
            let base = Base::open(&path).unwrap();
            let read = base.gguf_metadata().unwrap().values();
            assert_eq!(format!("{read:?}"), format!("{metadata:?}"), "all values, in order");
            let content = Content::read(&mut Cursor::new(&file)).unwrap();
            for (key, value) in &metadata {
                assert_eq!(format!("{:?}", content.metadata[key]), format!("{value:?}"));
            }
            for (seed, info) in tensors.iter().enumerate() {
                let raw = base.read(&info.name).unwrap();
                assert_eq!((&raw.shape, raw.dtype, raw.bytes), (&info.shape, info.dtype, bytes_of(info, seed)));
                let read = content.tensor(&mut Cursor::new(&file), &info.name, &Device::Cpu).unwrap();
                assert_eq!((read.shape().dims(), WeightType::from(read.dtype())), (info.shape.as_slice(), info.dtype));
                assert_eq!(read.data().unwrap().as_ref(), bytes_of(info, seed));
            }
        }
    }

    #[test]
    fn a_tensor_gets_exactly_its_bytes() {
        let path = Path::new("x.gguf");
        let start = || GgufWriter::new(Vec::new(), path, &every_kind(), odd_sized()).unwrap();
        let message = |result: Result<()>| result.unwrap_err().to_string();
        let mut writer = start();
        assert!(message(writer.begin("b.weight")).contains("`a` was to be written next, not `b.weight`"));
        writer.begin("a").unwrap();
        assert!(message(writer.write(&[0; 61])).contains("`a` would get 1 bytes too many"));
        writer.write(&[0; 59]).unwrap();
        assert!(message(writer.begin("b.weight")).contains("`a` lacks 1 bytes"));
        assert!(message(writer.finish().map(drop)).contains("`a` lacks 1 bytes"));
        let mut writer = start();
        writer.begin("a").unwrap();
        writer.write(&[0; 60]).unwrap();
        assert!(message(writer.finish().map(drop)).contains("`b.weight` was never written"));
        assert!(message(start().write(&[0])).contains("too many"));
    }

    #[test]
    fn what_no_reader_takes_is_refused() {
        let refused = |metadata: &[(&str, Value)], tensors: Vec<TensorInfo>| {
            let metadata: Vec<_> = metadata.iter().map(|(key, value)| ((*key).to_string(), value.clone())).collect();
            GgufWriter::new(Vec::new(), Path::new("x.gguf"), &metadata, tensors).unwrap_err().to_string()
        };
        let a = |dtype| info("a", &[3, 40], dtype);
        assert!(refused(&[], vec![a(WeightType::Q4_0)]).contains("[3, 40] cannot be held as Q4_0, in blocks of 32"));
        assert!(refused(&[], vec![a(WeightType::Q8K)]).contains("which no file holds"));
        assert!(refused(&[], vec![a(WeightType::F16), a(WeightType::F16)]).contains("`a` would be written twice"));
        assert!(refused(&[], vec![info(&"n".repeat(64), &[1], WeightType::F32)]).contains("63 bytes"));
        assert!(refused(&[], vec![info("a", &[usize::MAX, 4], WeightType::F32)]).contains("cannot be held"));
        assert!(refused(&[("general.alignment", Value::U32(33))], vec![]).contains("power of two"));
        let mixed = Value::Array(vec![Value::U8(1), Value::Bool(true)]);
        assert!(refused(&[("k", mixed)], vec![]).contains("an array of several types"));
        assert!(refused(&[("k", Value::U8(1)), ("k", Value::U8(1))], vec![]).contains("`k` would be written twice"));
    }
}
