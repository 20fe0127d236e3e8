//! Facts from the disk: a PEFT folder, an mlx-lm folder, or a GGUF adapter. Headers are read, tensors are not.

use super::facts::{AdapterFacts, Layout, TensorFact};
use super::header::read_header;
use crate::error::{Error, Result};
use crate::weights::gguf;
use candle_core::quantized::gguf_file;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// PEFT's configuration; mlx-lm's has the same name.
const CONFIG: &str = "adapter_config.json";
/// PEFT's tensors.
pub(super) const TENSORS: &str = "adapter_model.safetensors";
/// mlx-lm's tensors.
const MLX_TENSORS: &str = "adapters.safetensors";
/// The longest JSON file that is read.
const JSON_LIMIT: u64 = 16 << 20;
/// The most files of a folder.
const FILE_LIMIT: usize = 10_000;

impl AdapterFacts {
    /// Reads what an adapter is, without its tensors: a folder of PEFT's or mlx-lm's, or a `.gguf` file.
    ///
    /// # Errors
    /// When nothing of the kind is there, a file is damaged, or its header claims more than it holds.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_file() {
            return read_file(path);
        }
        if !path.is_dir() {
            return Err(Error::file(path, "no such folder or file")
                .with_help("name an adapter's folder, such as `train` writes it, or a .gguf adapter"));
        }
        let files = list(path)?;
        if !files.contains(CONFIG) {
            let gguf =
                files.iter().find(|name| Path::new(name).extension().is_some_and(|extension| extension == "gguf"));
            let help = match gguf {
                Some(name) => format!("name the file itself: {}", path.join(name).display()),
                None => "name a folder that `train` wrote (a run that was interrupted has none yet), or a PEFT folder"
                    .to_owned(),
            };
            return Err(
                Error::file(path, format!("is not an adapter's folder: there is no {CONFIG} in it")).with_help(help)
            );
        }
        let config = read_object(&path.join(CONFIG))?;
        let mlx = config.contains_key("lora_parameters") || config.contains_key("fine_tune_type");
        let layout = if mlx { Layout::Mlx } else { Layout::Peft };
        let weight_files = weight_files(layout, &files);
        let mut tensors = Vec::new();
        for name in weight_files.iter().filter(|name| name.ends_with(".safetensors")) {
            tensors.extend(read_header(&path.join(name))?);
        }
        let added = "added_tokens.json";
        let added_tokens = if files.contains(added) { added_tokens(&path.join(added))? } else { BTreeMap::new() };
        Ok(Self { config, tensors, files, weight_files, added_tokens, ..Self::new(layout) })
    }
}

/// The names of a folder's files, those that only link to one included.
fn list(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut files = BTreeSet::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        if entry.path().is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned());
        }
        if files.len() > FILE_LIMIT {
            return Err(Error::file(folder, format!("holds more than {FILE_LIMIT} files; no adapter has as many"))
                .with_help("name the adapter's own folder"));
        }
    }
    Ok(files)
}

/// The adapter's own files: one, or the parts of one, or pickles where there is nothing better.
fn weight_files(layout: Layout, files: &BTreeSet<String>) -> Vec<String> {
    let own = if layout == Layout::Mlx { MLX_TENSORS } else { TENSORS };
    if files.contains(own) {
        return vec![own.to_owned()];
    }
    let part = |name: &&String| name.starts_with("adapter_model-") && name.ends_with(".safetensors");
    let parts: Vec<String> = files.iter().filter(part).cloned().collect();
    if !parts.is_empty() {
        return parts;
    }
    let pickle = |name: &&String| matches!(name.as_str(), "adapter_model.bin" | "adapter_model.pt" | "adapters.npz");
    files.iter().filter(pickle).cloned().collect()
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > JSON_LIMIT {
        return Err(Error::file(path, format!("has {length} bytes; a file of this name has some hundred")));
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, format!("is not a JSON object: {error}")))
}

fn added_tokens(path: &Path) -> Result<BTreeMap<String, u64>> {
    read_object(path)?
        .into_iter()
        .map(|(token, id)| {
            let number = id.as_u64();
            let wrong = || Error::file(path, format!("`{token}`: expected a token's number, got {id}"));
            number.map(|id| (token.clone(), id)).ok_or_else(wrong)
        })
        .collect()
}

fn read_file(path: &Path) -> Result<AdapterFacts> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if path.extension().is_none_or(|extension| extension != "gguf") {
        return Err(Error::file(path, "is not an adapter: one is a folder, or a .gguf file")
            .with_help("name the folder that the file lies in"));
    }
    let header = gguf::header(path)?;
    let mut config = Map::new();
    for (key, value) in header.metadata.values() {
        let value = match value {
            gguf_file::Value::String(text) => json!(text),
            gguf_file::Value::F32(number) => json!(number),
            gguf_file::Value::U32(number) => json!(number),
            _ => continue,
        };
        config.insert(key.clone(), value);
    }
    let tensors = header
        .tensors
        .into_iter()
        .map(|tensor| TensorFact::new(tensor.name, tensor.shape, format!("{:?}", tensor.dtype)))
        .collect();
    let files = BTreeSet::from([name.clone()]);
    Ok(AdapterFacts { config, tensors, files, weight_files: vec![name], ..AdapterFacts::new(Layout::Gguf) })
}
