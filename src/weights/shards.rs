//! Safetensors files: the header of each, and the index over several. It owns checking them; not reading tensors.

use super::table::{Entry, Table, WeightFile, byte_len};
use crate::error::{Error, Result};
use candle_core::quantized::GgmlDType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The longest header that the format allows.
const HEADER_LIMIT: u64 = 100_000_000;
const INDEX: &str = "model.safetensors.index.json";
const REFETCH: &str = "the download is not complete, or the disk was full; fetch the file again";

/// Reads the headers of a folder's weights: `model.safetensors`, or the shards that its index names.
pub(super) fn open(folder: &Path) -> Result<Table> {
    let mut table = Table::default();
    let single = folder.join("model.safetensors");
    let index = folder.join(INDEX);
    if single.is_file() {
        add_file(&mut table, &single, None)?;
    } else if index.is_file() {
        for (file, tensors) in read_index(&index)? {
            let path = folder.join(&file);
            if !path.is_file() {
                return Err(Error::file(&index, format!("names the shard `{file}`, which is not in the folder"))
                    .with_help("fetch that file too, next to the others"));
            }
            add_file(&mut table, &path, Some(&tensors))?;
        }
    } else {
        return Err(no_weights(folder));
    }
    complete_names(&mut table);
    Ok(table)
}

/// shard → tensors, from the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let index: Value =
        serde_json::from_slice(&text).map_err(|error| Error::file(path, format!("is no valid JSON: {error}")))?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(path, "has no `weight_map`, which says what shard holds what tensor"));
    };
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str() else {
            return Err(Error::file(path, format!("weight_map.{tensor}: expected a file name, got {file}")));
        };
        if Path::new(file).file_name() != Some(file.as_ref()) || file.contains('\\') {
            return Err(Error::file(path, format!("weight_map.{tensor}: `{file}` is no plain file name"))
                .with_help("shards lie in the same folder as the index; names with folders in them are not read"));
        }
        shards.entry(file.to_string()).or_default().push(tensor.clone());
    }
    Ok(shards)
}

/// Adds one file's tensors: those of `wanted`, or all.
fn add_file(table: &mut Table, path: &Path, wanted: Option<&[String]>) -> Result<()> {
    let file = WeightFile::open(path)?;
    let (metadata, data_offset) = read_header(&file)?;
    let number = table.add_file(file);
    let names = match wanted {
        Some(names) => names.to_vec(),
        None => metadata.offset_keys(),
    };
    for name in names {
        let Some(info) = metadata.info(&name) else {
            return Err(Error::file(path, format!("tensor `{name}` is missing, though {INDEX} says that it is here"))
                .with_help("index and shards are of different downloads; fetch them again"));
        };
        let dtype = ggml_dtype(info.dtype).ok_or_else(|| unsupported(path, &name, info.dtype))?;
        let (start, end) = info.data_offsets;
        let (shape, len) = (info.shape.clone(), end - start);
        if byte_len(&shape, dtype) != Some(len) {
            return Err(Error::file(path, format!("tensor `{name}`: {len} bytes do not hold {shape:?} of {dtype:?}")));
        }
        let offset = data_offset + start as u64;
        let entry = Entry { stored: name.clone(), shape, dtype, file: number, offset, len, permuted_heads: None };
        table.insert(name, entry)?;
    }
    Ok(())
}

/// The checked header, and where the data begins. Claimed lengths are compared with the file's before anything is read.
fn read_header(file: &WeightFile) -> Result<(Metadata, u64)> {
    let error = |message: String| Error::file(&file.path, message);
    if file.len < 8 {
        return Err(error(format!("is no safetensors file: it has {} bytes", file.len)).with_help(REFETCH));
    }
    let length = file.read_at(0, 8)?;
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes were read"));
    if length > HEADER_LIMIT || length > file.len - 8 {
        return Err(error(format!(
            "is no safetensors file, or is cut short: its header claims {length} bytes, the file has {}",
            file.len
        ))
        .with_help(REFETCH));
    }
    let header = file.read_at(8, length as usize)?;
    // Reading it also checks that the tensors follow each other without gap or overlap, and that sizes fit shapes.
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|why| error(format!("its header contradicts itself: {why}")).with_help(REFETCH))?;
    let (expected, got) = (metadata.data_len() as u64, file.len - 8 - length);
    if expected != got {
        return Err(error(format!(
            "the file is cut short or too long: its tensors take {expected} bytes, it holds {got}"
        ))
        .with_help(REFETCH));
    }
    Ok((metadata, 8 + length))
}

fn ggml_dtype(dtype: Dtype) -> Option<GgmlDType> {
    match dtype {
        Dtype::F32 => Some(GgmlDType::F32),
        Dtype::F16 => Some(GgmlDType::F16),
        Dtype::BF16 => Some(GgmlDType::BF16),
        _ => None,
    }
}

fn unsupported(path: &Path, name: &str, dtype: Dtype) -> Error {
    Error::file(path, format!("tensor `{name}` is of type {dtype:?}; F32, F16 and BF16 are read"))
        .with_help("take the unquantized model (Equipoise quantizes a base by itself), or a GGUF file of it")
}

/// Some base models are saved without the `model.` that a causal language model's names begin with.
fn complete_names(table: &mut Table) {
    let bare = |name: &str| name.starts_with("layers.") || name == "embed_tokens.weight" || name == "norm.weight";
    if table.entries().all(|(name, _)| !name.starts_with("model.")) && table.entries().any(|(name, _)| bare(name)) {
        table.rename(|name| if name.starts_with("lm_head.") { name } else { format!("model.{name}") });
    }
}

/// Says what is there instead of safetensors.
fn no_weights(folder: &Path) -> Error {
    let files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let with = |extensions: &[&str]| {
        let is = |path: &&PathBuf| path.extension().is_some_and(|e| extensions.iter().any(|wanted| e == *wanted));
        files.iter().find(is)
    };
    if let Some(gguf) = with(&["gguf"]) {
        return Error::file(folder, "holds no model.safetensors, but GGUF")
            .with_help(format!("name the file itself: {}", gguf.display()));
    }
    if with(&["bin", "pt", "pth"]).is_some() {
        return Error::file(folder, "holds its weights as pickle (.bin, .pt), which is not read: it can run code").with_help(
            "convert it once with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder, \
             safe_serialization=True)",
        );
    }
    Error::file(folder, format!("holds no weights: neither model.safetensors nor {INDEX}"))
        .with_help("fetch the whole model, or save it with transformers' save_pretrained")
}
