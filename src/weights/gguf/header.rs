//! The header of a GGUF file: metadata and tensor table, every claim checked against the file's length.
//!
//! Our own reader rather than candle's, which divides by the file's alignment unchecked, does not say which tensor has a
//! type that it cannot read, and lets a small file of many tiny values take thirty times its size.

use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use crate::weights::table::Unread;
use candle_core::quantized::gguf_file::Value;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// The most array elements of a whole header. The largest vocabularies have some hundred thousand tokens and merges.
const ELEMENT_LIMIT: u64 = 1 << 23;
/// The longest string.
const STRING_LIMIT: u64 = 64 << 20;
/// The most metadata entries, and the most tensors.
const COUNT_LIMIT: u64 = 1 << 20;
/// How deep arrays of arrays may go.
const DEPTH_LIMIT: usize = 4;
const REFETCH: &str = "the download is not complete, or the file is damaged; fetch it again";
const TYPES_READ: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS";

/// One row of the tensor table.
#[derive(Debug)]
pub(super) struct Record {
    pub name: String,
    /// Outermost dimension first, as Hugging Face has it.
    pub shape: Vec<usize>,
    /// ggml's number of a type that is not read: an error only where the tensor is needed.
    pub dtype: Result<WeightType, u32>,
    /// Where it begins, from the beginning of the file.
    pub offset: u64,
}

/// Reads the header of an open file of `length` bytes.
pub(super) fn read(path: &Path, file: &File, length: u64) -> Result<(Metadata, Vec<Record>)> {
    let mut reader = Reader { inner: BufReader::new(file), path, position: 0, length, elements: 0 };
    reader.magic()?;
    let (tensors, entries) = (reader.count("tensors")?, reader.count("metadata entries")?);
    let mut values = Vec::new();
    for _ in 0..entries {
        let key = reader.string()?;
        let kind = reader.u32()?;
        values.push((key, reader.value(kind, 0)?));
    }
    let metadata = Metadata::new(path, values);
    let mut records = Vec::new();
    for _ in 0..tensors {
        records.push(reader.record()?);
    }
    let alignment = u64::from(metadata.number("general.alignment")?.unwrap_or(32));
    if alignment == 0 {
        return Err(Error::file(path, "general.alignment is 0; expected a power of two, such as 32"));
    }
    let data = reader.position.div_ceil(alignment) * alignment;
    for record in &mut records {
        record.offset = record.offset.checked_add(data).ok_or_else(|| {
            Error::file(path, format!("tensor `{}` begins beyond the end of the file", record.name)).with_help(REFETCH)
        })?;
    }
    Ok((metadata, records))
}

struct Reader<'a> {
    inner: BufReader<&'a File>,
    path: &'a Path,
    position: u64,
    length: u64,
    /// Array elements so far.
    elements: u64,
}

impl Reader<'_> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::file(self.path, message).with_help(REFETCH)
    }

    /// Refuses to go on when fewer than `wanted` bytes are left.
    fn expect(&self, wanted: u64, what: &str) -> Result<()> {
        let left = self.length - self.position;
        if wanted > left {
            return Err(self.error(format!(
                "its header is cut short: {what} at byte {} needs {wanted} bytes, {left} are left of {}",
                self.position, self.length
            )));
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.expect(N as u64, "a number")?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(Error::io("read", self.path))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn magic(&mut self) -> Result<()> {
        if self.length < 24 || &self.bytes::<4>()? != b"GGUF" {
            let help = "a base model is a folder with config.json and model.safetensors, or a .gguf file";
            return Err(self.error("is not a GGUF file").with_help(help));
        }
        match self.u32()? {
            2 | 3 => Ok(()),
            version if version.swap_bytes() <= 3 => Err(self
                .error("is a big-endian GGUF file; little-endian ones are read")
                .with_help("convert it with llama.cpp's gguf_convert_endian.py")),
            version => Err(self
                .error(format!("is of GGUF version {version}; versions 2 and 3 are read"))
                .with_help("convert the model again with a current llama.cpp")),
        }
    }

    fn count(&mut self, what: &str) -> Result<u64> {
        let count = self.u64()?;
        // The shortest entry takes 13 bytes: a count that cannot fit is refused before anything is read.
        if count > COUNT_LIMIT || count.saturating_mul(13) > self.length {
            return Err(self.error(format!("its header claims {count} {what}, more than the file can hold")));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<String> {
        let length = self.u64()?;
        if length > STRING_LIMIT {
            return Err(self.error(format!("its header holds a string of {length} bytes; at most {STRING_LIMIT}")));
        }
        self.expect(length, "a string")?;
        let mut bytes = vec![0; length as usize];
        self.inner.read_exact(&mut bytes).map_err(Error::io("read", self.path))?;
        self.position += length;
        // The format asks for UTF-8; some converters have written other bytes into descriptions.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(self.bytes::<1>()?[0]),
            1 => Value::I8(i8::from_le_bytes(self.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array(depth)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(self.error(format!("its header holds a value of unknown type {kind}"))),
        })
    }

    fn array(&mut self, depth: usize) -> Result<Vec<Value>> {
        let kind = self.u32()?;
        let length = self.u64()?;
        self.elements = self.elements.saturating_add(length);
        if self.elements > ELEMENT_LIMIT || depth == DEPTH_LIMIT {
            return Err(self.error(format!(
                "its header holds arrays of more than {ELEMENT_LIMIT} elements, or more than {DEPTH_LIMIT} levels deep"
            )));
        }
        self.expect(length, "an array")?;
        let mut values = Vec::new();
        for _ in 0..length {
            values.push(self.value(kind, depth + 1)?);
        }
        Ok(values)
    }

    fn record(&mut self) -> Result<Record> {
        let name = self.string()?;
        let dimensions = self.u32()?;
        if dimensions > 4 {
            return Err(self.error(format!("tensor `{name}` has {dimensions} dimensions; at most 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(usize::try_from(self.u64()?).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let kind = self.u32()?;
        Ok(Record { name, shape, dtype: dtype(kind).ok_or(kind), offset: self.u64()? })
    }
}

/// Why a tensor of this type is not read.
pub(super) fn unread(path: &Path, name: &str, kind: u32) -> Unread {
    Unread {
        path: path.to_owned(),
        message: format!("tensor `{name}` is of type {}, which is not read", type_name(kind)),
        help: format!("take a file of another quantization; these are read: {TYPES_READ}"),
        is_buffer: false,
    }
}

/// ggml's number of a type. `Q8_1` and `Q8_K` are left out: they are formats of activations, never of weights.
fn dtype(kind: u32) -> Option<WeightType> {
    Some(match kind {
        0 => WeightType::F32,
        1 => WeightType::F16,
        2 => WeightType::Q4_0,
        3 => WeightType::Q4_1,
        6 => WeightType::Q5_0,
        7 => WeightType::Q5_1,
        8 => WeightType::Q8_0,
        10 => WeightType::Q2K,
        11 => WeightType::Q3K,
        12 => WeightType::Q4K,
        13 => WeightType::Q5K,
        14 => WeightType::Q6K,
        20 => WeightType::Iq4Nl,
        23 => WeightType::Iq4Xs,
        30 => WeightType::BF16,
        _ => return None,
    })
}

/// ggml's number of a type, for what is written; `None` for formats of activations, and bitsandbytes'.
pub(crate) fn type_number(dtype: WeightType) -> Option<u32> {
    Some(match dtype {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::Q4_0 => 2,
        WeightType::Q4_1 => 3,
        WeightType::Q5_0 => 6,
        WeightType::Q5_1 => 7,
        WeightType::Q8_0 => 8,
        WeightType::Q2K => 10,
        WeightType::Q3K => 11,
        WeightType::Q4K => 12,
        WeightType::Q5K => 13,
        WeightType::Q6K => 14,
        WeightType::Iq4Nl => 20,
        WeightType::Iq4Xs => 23,
        WeightType::BF16 => 30,
        WeightType::Q8_1 | WeightType::Q8K | WeightType::Nf4 => return None,
    })
}

fn type_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24..=27 => "integer",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return format!("{kind} (unknown)"),
    };
    name.into()
}
