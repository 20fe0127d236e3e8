//! Frozen weights on the disk: a Hugging Face folder or a GGUF file, seen alike.
//!
//! It owns what such a base holds (tensors under Hugging Face's names, configuration, tokenizer, special tokens, chat
//! template) and reads tensors one at a time, so that peak memory stays near one tensor. It does not own what a tensor
//! means: `models` asks for the names and shapes that an architecture needs.

mod added_tokens;
mod chat_templates;
mod folder;
pub mod gguf;
mod packed;
mod resolve;
mod safetensors_file;
mod safetensors_header;
mod shards;
mod special_tokens;
mod table;
mod wrapper;

pub use chat_templates::{ChatTemplates, FOLDER as CHAT_TEMPLATES_FOLDER};
pub(crate) use gguf::WORD_PATTERNS;
pub(crate) use safetensors_file::{SafetensorsHeader, StoredTensor};
pub use safetensors_header::{TensorInfo, safetensors_header};
pub use special_tokens::SpecialTokens;
pub use wrapper::Wrapper;
pub(crate) use wrapper::{multimodal_name, text_name};

use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::path::{Path, PathBuf};
use table::Table;
use tokenizers::Tokenizer;

/// One tensor as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct RawTensor {
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The type of the elements, or of the blocks that hold them.
    pub dtype: WeightType,
    /// The elements or blocks, row after row, little-endian.
    pub bytes: Vec<u8>,
}

/// A frozen base model on the disk: a Hugging Face folder or a GGUF file, under Hugging Face's tensor names.
#[derive(Debug)]
pub struct Base {
    path: PathBuf,
    model_type: String,
    contents: Contents,
    /// Of a GGUF file: its metadata.
    gguf: Option<gguf::Metadata>,
}

/// What both kinds of base are made of.
#[derive(Debug)]
struct Contents {
    config: Map<String, Value>,
    /// The configuration as the file has it, where it says something twice.
    said: Option<Map<String, Value>>,
    /// What one should know of it.
    notes: Vec<String>,
    table: Table,
    special_tokens: SpecialTokens,
    chat_templates: ChatTemplates,
    /// The multimodal model that the decoder belongs to.
    wrapper: Option<Wrapper>,
}

impl Base {
    /// Opens a folder of `config.json` and safetensors, or a `.gguf` file. Headers are read and checked, weights not.
    ///
    /// # Errors
    /// When nothing is there, or a header is cut short, contradicts itself or claims more than the file holds.
    pub fn open(path: &Path) -> Result<Self> {
        let (contents, gguf) = if path.is_dir() {
            (folder::open(path)?, None)
        } else if path.is_file() {
            let (contents, metadata) = gguf::open(path)?;
            (contents, Some(metadata))
        } else {
            return Err(Error::file(path, "no such folder or file")
                .with_help("a base model is a folder with config.json and model.safetensors, or a .gguf file"));
        };
        let Some(model_type) = contents.config.get("model_type").and_then(Value::as_str).map(String::from) else {
            return Err(Error::file(path.join("config.json"), "no `model_type`, which names the architecture")
                .with_help("a config.json written by transformers has it, for example \"model_type\": \"llama\""));
        };
        Ok(Self { path: path.to_path_buf(), model_type, contents, gguf })
    }

    /// The folder or file, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is a GGUF file rather than a folder.
    pub fn is_gguf(&self) -> bool {
        self.gguf.is_some()
    }

    /// Of a GGUF file, its metadata: what an export to GGUF carries over.
    pub fn gguf_metadata(&self) -> Option<&gguf::Metadata> {
        self.gguf.as_ref()
    }

    /// The multimodal model that this decoder belongs to.
    pub fn wrapper(&self) -> Option<&Wrapper> {
        self.contents.wrapper.as_ref()
    }

    /// What one should know of the base: where it says two things, and what counts then.
    pub fn notes(&self) -> &[String] {
        &self.contents.notes
    }

    /// The configuration in the form of Hugging Face's `config.json`; for GGUF translated from the metadata. What a file says
    /// twice is in it once, as transformers takes it.
    pub fn config(&self) -> &Map<String, Value> {
        &self.contents.config
    }

    /// Of a multimodal model's decoder: the configuration of the multimodal model, as its file has it.
    pub fn multimodal_config(&self) -> Option<&Map<String, Value>> {
        self.contents.said.as_ref().filter(|_| self.contents.wrapper.is_some())
    }

    /// The architecture, as Hugging Face's `model_type` names it (for a GGUF file of an architecture that is not in
    /// [`gguf::architecture`]'s table, the GGUF name).
    pub fn model_type(&self) -> &str {
        &self.model_type
    }

    /// Shape and type of a tensor, by Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub fn tensor(&self, name: &str) -> Option<(&[usize], WeightType)> {
        self.contents.table.get(name).map(|entry| (entry.shape.as_slice(), entry.dtype))
    }

    /// What a tensor is stored as, for people, where it is read in another type: FP8, and NF4 in blocks that cross rows.
    pub fn stored_as(&self, name: &str) -> Option<&'static str> {
        let entry = self.contents.table.get(name)?;
        entry.packed.as_ref()?.stored_as(entry.dtype)
    }

    /// The error for a tensor that the base names and that cannot be read: of a type that is not read, or of a shard that is
    /// not there. Such tensors are no fault of a base as long as nobody needs them.
    pub fn unread(&self, name: &str) -> Option<Error> {
        self.contents.table.unread(name)
    }

    /// Why the first weight that cannot be read cannot, whether it is needed or not. Buffers of integers do not count.
    pub fn first_unread(&self) -> Option<&str> {
        self.contents.table.first_unread().map(|unread| unread.message.as_str())
    }

    /// The names of all tensors that can be read, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.contents.table.entries().map(|(name, _)| name)
    }

    /// The name that a tensor has in its file: another one than Hugging Face's in a GGUF file.
    pub fn stored_name(&self, name: &str) -> Option<&str> {
        self.contents.table.get(name).map(|entry| entry.stored.as_str())
    }

    /// Reads one tensor. Rows that GGUF keeps in llama.cpp's order come back in Hugging Face's.
    ///
    /// # Errors
    /// When there is no such tensor, or the file has shrunk or cannot be read.
    pub fn read(&self, name: &str) -> Result<RawTensor> {
        self.contents.table.read(name, &self.path)
    }

    /// Reads some rows of a matrix (the whole of a vector is its only row), as [`Self::read`] would give them.
    ///
    /// # Errors
    /// When there is no such tensor or row, or the file has shrunk or cannot be read.
    pub fn read_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        self.contents.table.read_rows(name, rows, &self.path)
    }

    /// The tokenizer. `encode(text, false)` adds no token of its own; neither truncation nor padding is on.
    ///
    /// # Errors
    /// When there is none, or it is of a kind that cannot be read; the message says how to get one that can.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.gguf {
            Some(metadata) => gguf::tokenizer(metadata, &self.path),
            None => folder::tokenizer(&self.path),
        }
    }

    /// The tokens that begin, end and pad a text.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.contents.special_tokens
    }

    /// The chat template (Jinja), if the base has one: of several the one that is named `default`.
    pub fn chat_template(&self) -> Option<&str> {
        self.contents.chat_templates.plain()
    }

    /// All chat templates, with their names.
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.contents.chat_templates
    }

    /// A SHA-256 in hex that tells bases apart without reading them whole.
    ///
    /// It covers the configuration, the names, shapes, types and places of all tensors, the sizes of the files, the
    /// first and last 64 KiB of each file, and 4 KiB from the middle of each tensor: of two fine-tunes of one model,
    /// headers, embeddings and the last norm can be equal.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let config = self.contents.said.as_ref().unwrap_or(&self.contents.config);
        hasher.update(Value::Object(config.clone()).to_string());
        self.contents.table.hash(&mut hasher)?;
        Ok(format!("{:x}", hasher.finalize()))
    }

    /// The bytes of all tensors as they are stored.
    pub fn stored_bytes(&self) -> u64 {
        let bytes = |entry: &table::Entry| entry.len + entry.packed.as_ref().map_or(0, packed::Packed::bytes);
        self.contents.table.entries().map(|(_, entry)| bytes(entry) as u64).sum()
    }
}

#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
