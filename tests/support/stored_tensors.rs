//! Safetensors files as they are stored: tensors of any type, whether it is read or not.

use serde_json::{Map, Value, json};
use std::path::Path;

/// A tensor of a file: name, type, shape, bytes.
pub type Stored = (String, String, Vec<usize>, Vec<u8>);

pub fn stored(name: &str, dtype: &str, shape: &[usize], bytes: &[u8]) -> Stored {
    (name.into(), dtype.into(), shape.to_vec(), bytes.to_vec())
}

/// All tensors of a safetensors file.
pub fn read_tensors(path: &Path) -> Vec<Stored> {
    let file = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let entries: Map<String, Value> = serde_json::from_slice(&file[8..8 + header]).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let tensor = |(name, entry): (&String, &Value)| {
        let shape: Vec<usize> = entry["shape"].as_array().unwrap().iter().map(number).collect();
        let [from, to] = [0, 1].map(|end| 8 + header + number(&entry["data_offsets"][end]));
        stored(name, entry["dtype"].as_str().unwrap(), &shape, &file[from..to])
    };
    entries.iter().filter(|(name, _)| *name != "__metadata__").map(tensor).collect()
}

/// Writes a safetensors file with these tensors, whatever they are.
pub fn write_tensors(path: &Path, tensors: &[Stored], metadata: &Value) {
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.clone());
    let (mut offset, mut data) = (0, Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes.len()] });
        header.insert(name.clone(), entry);
        offset += bytes.len();
        data.extend(bytes);
    }
    let text = Value::Object(header).to_string();
    std::fs::write(path, [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes(), &data].concat()).unwrap();
}
