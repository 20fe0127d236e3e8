//! A GGUF file that holds a LoRA adapter rather than a model: its header checked, its tensors read one at a time.
//!
//! It owns the container and what kind of adapter it is. What the tensors are called elsewhere is [`crate::adapter`]'s.

use super::header;
use super::metadata::Metadata;
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use crate::weights::RawTensor;
use crate::weights::table::{Entry, Table, WeightFile, byte_len};
use std::path::{Path, PathBuf};

/// A LoRA adapter in a GGUF file, under GGUF's names.
#[derive(Debug)]
pub struct AdapterFile {
    path: PathBuf,
    metadata: Metadata,
    table: Table,
}

/// Opens a GGUF file that says of itself that it is a LoRA adapter. The header is read and checked, tensors not.
///
/// # Errors
/// When it is no GGUF file, damaged, a model, or an adapter of another kind (control vector, activated LoRA).
pub fn open_adapter(path: &Path) -> Result<AdapterFile> {
    let file = WeightFile::open(path)?;
    let (metadata, records) = header::read(path, &file.file, file.len)?;
    check_kind(path, &metadata)?;
    let mut table = Table::default();
    let number = table.add_file(file);
    for header::Record { name, shape, dtype, offset } in records {
        let dtype = match dtype {
            Ok(dtype) => dtype,
            Err(kind) => {
                table.leave(name.clone(), header::unread(path, &name, kind));
                continue;
            }
        };
        let Some(len) = byte_len(&shape, dtype) else {
            return Err(Error::file(
                path,
                format!("tensor `{name}`: a shape of {shape:?} cannot be held as {dtype:?}"),
            )
            .with_help("the file is damaged; fetch it again"));
        };
        let entry =
            Entry { stored: name.clone(), shape, dtype, file: number, offset, len, permuted_heads: None, packed: None };
        table.insert(name, entry)?;
    }
    Ok(AdapterFile { path: path.to_path_buf(), metadata, table })
}

fn check_kind(path: &Path, metadata: &Metadata) -> Result<()> {
    match metadata.string("general.type")? {
        Some("adapter") => {}
        // Control vectors say their kind in the place of the architecture.
        _ if metadata.string("general.architecture")? == Some("controlvector") => {
            return Err(Error::file(path, "is a control vector, not a LoRA adapter"));
        }
        Some("model") | None => {
            return Err(Error::file(path, "is a model, not a LoRA adapter: its `general.type` is not `adapter`")
                .with_help("name the GGUF file that llama.cpp's convert_lora_to_gguf.py or an export wrote"));
        }
        Some(other) => {
            return Err(Error::file(path, format!("metadata `general.type`: expected `adapter`, got `{other}`")));
        }
    }
    match metadata.string("adapter.type")? {
        Some("lora") => {}
        other => {
            let other = other.unwrap_or("nothing");
            return Err(Error::file(path, format!("metadata `adapter.type`: expected `lora`, got `{other}`")));
        }
    }
    if metadata.get("adapter.alora.invocation_tokens").is_some() {
        return Err(Error::file(path, "is an activated LoRA (aLoRA), which acts only after certain tokens")
            .with_help("such adapters are not read; take a plain LoRA adapter"));
    }
    Ok(())
}

impl AdapterFile {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keys and values of the header.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The names of all tensors, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.table.entries().map(|(name, _)| name)
    }

    /// The error for the first tensor of LoRA that cannot be read. That of others nobody needs.
    pub fn unread(&self) -> Option<Error> {
        self.table.unread_names().find(|name| name.contains(".lora_")).and_then(|name| self.table.unread(name))
    }

    /// Shape (outermost first) and type of a tensor.
    pub fn tensor(&self, name: &str) -> Option<(&[usize], WeightType)> {
        self.table.get(name).map(|entry| (entry.shape.as_slice(), entry.dtype))
    }

    /// Reads one tensor, rows in the file's order.
    ///
    /// # Errors
    /// When there is no such tensor, or the file has shrunk or cannot be read.
    pub fn read(&self, name: &str) -> Result<RawTensor> {
        self.table.read(name, &self.path)
    }
}
