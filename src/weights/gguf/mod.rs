//! GGUF files: llama.cpp's container of quantized weights, under Hugging Face's names.
//!
//! It owns reading the header, the names and row orders of architectures, and building the tokenizer from the metadata.
//! It does not own dequantizing, nor writing GGUF files: `export` does that, with the tables of names, types and patterns here.

pub(crate) mod adapter_file;
pub mod architecture;
mod config;
mod families;
mod header;
mod keys;
mod metadata;
mod pre_tokenizer;
mod rope_keys;
pub mod rows;
mod sentencepiece;
mod special_tokens;
mod tokenizer;

pub use adapter_file::{AdapterFile, open_adapter};
pub use config::NORMS_INCLUDE_ONE;
pub(crate) use header::type_number;
pub use metadata::Metadata;
pub(crate) use pre_tokenizer::{GPT2, Splitting, WORD_PATTERNS, name_of as pre_tokenizer_name};
pub(crate) use special_tokens::is_known_end;
pub(super) use tokenizer::tokenizer;

use super::Contents;
use super::chat_templates::ChatTemplates;
use super::table::{Entry, Table, WeightFile, byte_len};
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use architecture::Architecture;
use keys::{Keys, Tensors};
use serde_json::{Map, Value};
use std::path::Path;

/// The bytes of a tensor; `None` when its rows are no whole blocks or the number does not fit.
pub(crate) fn tensor_bytes(shape: &[usize], dtype: WeightType) -> Option<usize> {
    byte_len(shape, dtype)
}

/// Reads and checks the header of a GGUF file.
pub(super) fn open(path: &Path) -> Result<(Contents, Metadata)> {
    let file = WeightFile::open(path)?;
    let (metadata, records) = header::read(path, &file.file, file.len)?;
    if let Some(parts) = metadata.number("split.count")?.filter(|&parts| parts > 1) {
        return Err(Error::file(path, format!("is one of {parts} parts of a split GGUF file, which are not read"))
            .with_help("join the parts with llama.cpp's `llama-gguf-split --merge FIRST-PART WHOLE.gguf`"));
    }
    let Some(name) = metadata.string("general.architecture")? else {
        return Err(Error::file(path, "metadata has no `general.architecture`")
            .with_help("take a GGUF file of a language model"));
    };
    let architecture = Architecture::of_gguf(name);
    let keys = Keys { path, metadata: &metadata, name, strict: architecture.is_some() };
    let config = config::translate(&keys, &Tensors { file: &file, records: &records })?;
    let mut table = Table::default();
    let number = table.add_file(file);
    for record in records {
        add(path, &config, architecture, record, number, &mut table)?;
    }
    let special_tokens = special_tokens::read(&metadata)?;
    let chat_templates = chat_templates(&metadata)?;
    let contents =
        Contents { config, said: None, notes: Vec::new(), table, special_tokens, chat_templates, wrapper: None };
    Ok((contents, metadata))
}

/// Puts a tensor into the table, under the names that Hugging Face has for it.
fn add(
    path: &Path,
    config: &Map<String, Value>,
    architecture: Option<&Architecture>,
    record: header::Record,
    file: usize,
    table: &mut Table,
) -> Result<()> {
    let parts = architecture.and_then(|row| row.parts_of_qkv(&record.name));
    let name = architecture.and_then(|row| row.hugging_face_name(&record.name)).unwrap_or_else(|| record.name.clone());
    let dtype = match record.dtype {
        Ok(dtype) => dtype,
        Err(kind) => {
            let unread = header::unread(path, &record.name, kind);
            let names = parts.map_or_else(|| vec![name], Vec::from);
            for name in names {
                table.leave(name, unread.clone());
            }
            return Ok(());
        }
    };
    let Some(len) = byte_len(&record.shape, dtype) else {
        return Err(Error::file(
            path,
            format!("tensor `{}`: a shape of {:?} cannot be held as {dtype:?}", record.name, record.shape),
        )
        .with_help("the file is damaged; fetch it again"));
    };
    let header::Record { name: stored, shape, offset, .. } = record;
    let rows = shape.first().copied().unwrap_or(0);
    let Some(parts) = parts else {
        let permuted_heads = permuted_heads(path, config, architecture, &name, &stored, rows)?;
        return table.insert(name, Entry { stored, shape, dtype, file, offset, len, permuted_heads, packed: None });
    };
    // Rows of q, then of k, then of v.
    let mut offset = offset;
    for (name, height) in parts.into_iter().zip(heights(path, config, &stored, rows)?) {
        let permuted_heads = permuted_heads(path, config, architecture, &name, &stored, height)?;
        let (stored, len) = (stored.clone(), len / rows * height);
        let mut shape = shape.clone();
        shape[0] = height;
        table.insert(name, Entry { stored, shape, dtype, file, offset, len, permuted_heads, packed: None })?;
        offset = offset.saturating_add(len as u64);
    }
    Ok(())
}

/// How many rows of a tensor that holds q, k and v are whose.
fn heights(path: &Path, config: &Map<String, Value>, stored: &str, rows: usize) -> Result<[usize; 3]> {
    let number = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    let width = number("head_dim");
    let (q, k) =
        (number("num_attention_heads").saturating_mul(width), number("num_key_value_heads").saturating_mul(width));
    if rows == 0 || q.saturating_add(k).saturating_add(k) != rows {
        return Err(Error::file(
            path,
            format!("tensor `{stored}`: expected {q} + {k} + {k} rows of q, k and v, got {rows}"),
        ));
    }
    Ok([q, k, k])
}

/// `tokenizer.chat_template`, and those with names that `tokenizer.chat_templates` lists.
fn chat_templates(metadata: &Metadata) -> Result<ChatTemplates> {
    let mut templates = ChatTemplates::default();
    if let Some(template) = metadata.string("tokenizer.chat_template")? {
        templates.insert("default", template.to_owned());
    }
    for name in metadata.strings("tokenizer.chat_templates")?.unwrap_or_default() {
        if let Some(template) = metadata.string(&format!("tokenizer.chat_template.{name}"))? {
            templates.insert(name, template.to_owned());
        }
    }
    Ok(templates)
}

/// The header of a GGUF file, whatever it holds: a model or an adapter.
#[derive(Debug)]
pub struct Header {
    /// Keys and values.
    pub metadata: Metadata,
    /// The tensors, under the names that they have in the file.
    pub tensors: Vec<HeaderTensor>,
}

/// A tensor as the header has it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeaderTensor {
    /// Its name in the file.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The type of the elements, or of the blocks that hold them.
    pub dtype: WeightType,
}

/// Reads the header of a GGUF file, and checks that the file holds the tensors that it names.
///
/// # Errors
/// When it is not a GGUF file, is cut short, contradicts itself, or holds a tensor of a type that is not read.
pub fn header(path: &Path) -> Result<Header> {
    let file = WeightFile::open(path)?;
    let (metadata, records) = header::read(path, &file.file, file.len)?;
    let mut tensors = Vec::with_capacity(records.len());
    for header::Record { name, shape, dtype, offset } in records {
        let dtype = dtype.map_err(|kind| header::unread(path, &name, kind).error())?;
        let end = byte_len(&shape, dtype).and_then(|len| offset.checked_add(len as u64));
        if end.is_none_or(|end| end > file.len) {
            return Err(Error::file(path, format!("tensor `{name}`: {shape:?} of {dtype:?} is beyond the file's end"))
                .with_help("the file was not written or fetched whole; write or fetch it again"));
        }
        tensors.push(HeaderTensor { name, shape, dtype });
    }
    Ok(Header { metadata, tensors })
}

/// Of how many heads the rows of a q or k tensor in llama.cpp's order are, checked against its height.
fn permuted_heads(
    path: &Path,
    config: &Map<String, Value>,
    architecture: Option<&Architecture>,
    name: &str,
    stored: &str,
    rows: usize,
) -> Result<Option<usize>> {
    if !architecture.is_some_and(|row| row.is_permuted(name)) {
        return Ok(None);
    }
    let key = if name.contains(".q_proj.") { "num_attention_heads" } else { "num_key_value_heads" };
    let heads = config.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(Error::file(path, rows::misfit(stored, rows, heads)));
    }
    Ok(Some(heads))
}
