//! A folder's safetensors files: one, or several under an index. It owns which file a tensor is taken from; not reading
//! headers or tensors.
//!
//! What cannot be read (a type, a shard that is not there) is kept with its reason, and refused when somebody asks for it:
//! old checkpoints hold buffers that no model needs.

use super::packed::{self, Part};
use super::safetensors_file::{SafetensorsHeader, StoredTensor};
use super::table::{Entry, Table, Unread, WeightFile};
use super::wrapper;
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const INDEX: &str = "model.safetensors.index.json";

/// Reads the headers of a folder's weights: `model.safetensors`, or the shards that its index names.
pub(super) fn open(folder: &Path) -> Result<Table> {
    let (mut table, mut others) = (Table::default(), BTreeMap::new());
    let single = folder.join("model.safetensors");
    let index = folder.join(INDEX);
    if single.is_file() {
        add_file((&mut table, &mut others), &single, &BTreeMap::new())?;
    } else if index.is_file() {
        add_shards((&mut table, &mut others), folder, &index)?;
    } else {
        return Err(no_weights(folder));
    }
    packed::assemble(&mut table, &others)?;
    complete_names(&mut table)?;
    Ok(table)
}

/// Weights that lie beside those that are read: two downloads in one folder.
pub(super) fn left_out(folder: &Path) -> Option<String> {
    let both = folder.join("model.safetensors").is_file() && folder.join(INDEX).is_file();
    both.then(|| {
        format!("{} holds model.safetensors and {INDEX}: the first is read, as in transformers", folder.display())
    })
}

/// Adds all tensors of the shards that an index names, as transformers reads them. Where two shards hold a tensor of the same
/// name, the index says which one counts.
fn add_shards((table, parts): (&mut Table, &mut Others), folder: &Path, index: &Path) -> Result<()> {
    let shards = read_index(index)?;
    let mut elsewhere: BTreeMap<&str, &str> = BTreeMap::new();
    for (file, tensors) in &shards {
        elsewhere.extend(tensors.iter().map(|tensor| (tensor.as_str(), file.as_str())));
    }
    if shards.keys().all(|file| !folder.join(file).is_file()) {
        let shard = shards.keys().next().map_or("", String::as_str);
        return Err(absent(index, shard).error());
    }
    for (file, tensors) in &shards {
        let path = folder.join(file);
        let held = if path.is_file() {
            let others: BTreeMap<&str, &str> =
                elsewhere.iter().filter(|(_, other)| *other != file).map(|(name, other)| (*name, *other)).collect();
            add_file((table, parts), &path, &others)?
        } else {
            BTreeSet::new()
        };
        for tensor in tensors.iter().filter(|tensor| !held.contains(*tensor)) {
            let unread = if path.is_file() { not_in(&path, tensor) } else { absent(index, file) };
            table.leave(tensor.clone(), unread);
        }
    }
    Ok(())
}

fn absent(index: &Path, shard: &str) -> Unread {
    Unread {
        path: index.to_owned(),
        message: format!("names the shard `{shard}`, which is not in the folder"),
        help: "fetch that file too, next to the others".into(),
        is_buffer: false,
    }
}

fn not_in(shard: &Path, tensor: &str) -> Unread {
    Unread {
        path: shard.to_owned(),
        message: format!("tensor `{tensor}` is missing, though {INDEX} says that it is here"),
        help: "index and shards are of different downloads; fetch them again".into(),
        is_buffer: false,
    }
}

/// shard → tensors, from the index.
fn read_index(path: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let index: Value =
        serde_json::from_slice(&text).map_err(|error| Error::file(path, format!("is not valid JSON: {error}")))?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::file(path, "has no `weight_map`, which says what shard holds what tensor"));
    };
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let Some(file) = file.as_str() else {
            return Err(Error::file(path, format!("weight_map.{tensor}: expected a file name, got {file}")));
        };
        if Path::new(file).file_name() != Some(file.as_ref()) || file.contains('\\') {
            return Err(Error::file(path, format!("weight_map.{tensor}: `{file}` is not a plain file name"))
                .with_help("shards lie in the same folder as the index; names with folders in them are not read"));
        }
        shards.entry(file.to_string()).or_default().push(tensor.clone());
    }
    Ok(shards)
}

/// Tensors of types that no weight has by itself.
type Others = BTreeMap<String, Part>;

/// Adds one file's tensors, but for those that belong to another file; gives the names of all that it holds.
fn add_file(
    (table, others): (&mut Table, &mut Others),
    path: &Path,
    elsewhere: &BTreeMap<&str, &str>,
) -> Result<BTreeSet<String>> {
    let file = WeightFile::open(path)?;
    let header = SafetensorsHeader::read(path, &file.file, file.len)?;
    let number = table.add_file(file);
    let mut names = BTreeSet::new();
    for StoredTensor { name, dtype, shape, offset, len } in header.tensors {
        names.insert(name.clone());
        if elsewhere.contains_key(name.as_str()) {
            continue;
        }
        if let Some(dtype) = ggml_dtype(&dtype) {
            let stored = name.clone();
            let (permuted_heads, packed) = (None, None);
            table.insert(name, Entry { stored, shape, dtype, file: number, offset, len, permuted_heads, packed })?;
        } else {
            table.leave(name.clone(), unsupported(path, &name, &dtype));
            others.insert(name, Part { dtype, shape, file: number, offset, len });
        }
    }
    Ok(names)
}

fn ggml_dtype(dtype: &str) -> Option<WeightType> {
    match dtype {
        "F32" => Some(WeightType::F32),
        "F16" => Some(WeightType::F16),
        "BF16" => Some(WeightType::BF16),
        _ => None,
    }
}

fn unsupported(path: &Path, name: &str, dtype: &str) -> Unread {
    let help = match dtype {
        "F64" => {
            "save the model in another type once with transformers: from_pretrained(folder, dtype=\"float32\"), then save_pretrained(new_folder)"
        }
        "I8" => {
            "8-bit folders of bitsandbytes (LLM.int8) are not read: take the unquantized model, one in its 4 bits (NF4), or a GGUF file"
        }
        _ => "take the unquantized model (Equipoise quantizes a base by itself), or a GGUF file of it",
    };
    Unread {
        path: path.to_owned(),
        message: format!("tensor `{name}` is of type {dtype}; F32, F16 and BF16 are read"),
        help: help.into(),
        is_buffer: ["I64", "I32", "I16", "BOOL"].contains(&dtype),
    }
}

/// Names become those of a text-only causal language model: the text decoder of a multimodal model has others, and some base models
/// are saved without the `model.` that they begin with.
fn complete_names(table: &mut Table) -> Result<()> {
    if table.entries().any(|(name, _)| wrapper::text_name(name).is_some()) {
        return table.rename(|name| wrapper::text_name(&name).unwrap_or(name));
    }
    let bare = |name: &str| name.starts_with("layers.") || name == "embed_tokens.weight" || name == "norm.weight";
    if table.entries().all(|(name, _)| !name.starts_with("model.")) && table.entries().any(|(name, _)| bare(name)) {
        table.rename(|name| if name.starts_with("lm_head.") { name } else { format!("model.{name}") })?;
    }
    Ok(())
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
