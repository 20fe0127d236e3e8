//! Writing safetensors: the header, before tensors are there. Reading is [`super::shards`]'s.

use super::table::byte_len;
use crate::weight_type::WeightType;
use serde_json::{Map, Value, json};

/// A tensor that a file will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The type of its elements, or of the blocks that hold them.
    pub dtype: WeightType,
}

impl TensorInfo {
    /// The bytes that it takes.
    ///
    /// # Panics
    /// When its rows are no whole blocks.
    pub fn bytes(&self) -> usize {
        byte_len(&self.shape, self.dtype).expect("the type was chosen to fit the rows")
    }
}

/// The beginning of a safetensors file; the tensors' bytes follow without gaps, in the order given. Texts in `metadata` are
/// written in their order: the same header each time, which the safetensors crate does not promise.
///
/// # Panics
/// For types of blocks, which the format does not have.
pub fn safetensors_header(tensors: &[TensorInfo], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = Map::new();
    let texts: Map<String, Value> = metadata.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    header.insert("__metadata__".into(), Value::Object(texts));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        let dtype = match tensor.dtype {
            WeightType::F32 => "F32",
            WeightType::F16 => "F16",
            WeightType::BF16 => "BF16",
            other => panic!("safetensors has no {other:?}"),
        };
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // Data begins at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn the_crate_reads_what_is_written() {
        let info = |name: &str, shape: &[usize], dtype| TensorInfo { name: name.into(), shape: shape.to_vec(), dtype };
        let tensors = [info("b", &[2, 3], WeightType::BF16), info("a", &[1], WeightType::F32)];
        let mut bytes = safetensors_header(&tensors, &[("format", "pt"), ("base", "x\"y")]);
        bytes.extend((0..16).collect::<Vec<u8>>());
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("b").unwrap().data(), (0..12).collect::<Vec<u8>>());
        assert_eq!(read.tensor("a").unwrap().data(), [12, 13, 14, 15]);
        assert_eq!(read.tensor("b").unwrap().shape(), [2, 3]);
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["base"], "x\"y");
    }
}
