//! Where a tensor of a base stands in a GGUF file: its name there, which rows, in what order, and what is added to them.

use crate::error::{Error, Result};
use crate::weights::Base;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::gguf::{NORMS_INCLUDE_ONE, rows};
use serde_json::Value;
use std::ops::Range;

/// What a GGUF file calls a tensor or a part of one, and how it orders the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// GGUF's name.
    pub name: String,
    /// The rows that go there; of a vector its numbers.
    pub rows: Range<usize>,
    /// Where the rows go into llama.cpp's order: of how many heads.
    pub permuted_heads: Option<usize>,
    /// Whether 1 is added to each number.
    pub adds_one: bool,
}

impl Placement {
    /// Whole rows in Hugging Face's order, brought into the order of the file. `rows` is how many there are.
    ///
    /// # Errors
    /// When the rows do not divide into the heads.
    pub fn order(&self, bytes: Vec<u8>, rows: usize) -> Result<Vec<u8>> {
        let Some(heads) = self.permuted_heads else { return Ok(bytes) };
        rows::to_gguf(&bytes, rows, heads).ok_or_else(|| {
            let message =
                format!("tensor `{}`: {rows} rows are not {heads} heads of an even number of rows", self.name);
            Error::invalid(message)
        })
    }
}

/// Parts of a checkpoint that the file of a language model leaves out: towers for images and sounds, layers that predict further
/// tokens, and frequencies that old versions of transformers saved.
const LEFT_OUT: &[&str] =
    &["vision", "visual", "audio", "multi_modal_projector", "mm_projector", "mtp", "image_newline", "inv_freq"];

/// Whether a GGUF file of a language model leaves a tensor out. What a GGUF file holds already, it keeps.
pub fn is_left_out(base: &Base, name: &str) -> bool {
    let is_other = |part: &str| LEFT_OUT.iter().any(|other| part.starts_with(other) || part.ends_with(other));
    !base.is_gguf() && name.split('.').any(is_other)
}

/// Where the tensor of this Hugging Face name goes: to one place, or half of its rows to each of two.
///
/// # Errors
/// When GGUF has no name for it, or none for the base's architecture; when its rows cannot be halved.
pub fn placements(base: &Base, name: &str) -> Result<Vec<Placement>> {
    placements_as(base, name, base.tensor(name).map_or(&[], |(shape, _)| shape))
}

/// As [`placements`], of a tensor of this shape.
pub(super) fn placements_as(base: &Base, name: &str, shape: &[usize]) -> Result<Vec<Placement>> {
    let architecture = architecture(base)?;
    let height = shape.first().copied().unwrap_or(1);
    let names = architecture.gguf_names(name);
    let permuted_heads = architecture.is_permuted(name).then(|| heads(base, name)).transpose()?;
    let adds_one = architecture.includes_one(name) && !norms_include_one(base);
    let place = |name: String, rows| Placement { name, rows, permuted_heads, adds_one };
    match names.len() {
        // A GGUF file may hold what Hugging Face has no name for: factors of frequencies, further tokens, towers.
        0 if base.is_gguf() => Ok(vec![place(name.to_owned(), 0..height)]),
        0 => Err(Error::file(
            base.path(),
            format!("tensor `{name}` has no name in GGUF files of `{}`", architecture.gguf),
        )
        .with_help("export the merged model instead: `--to merged`")),
        parts if !height.is_multiple_of(parts) || (parts > 1 && shape.len() < 2) => {
            Err(Error::file(base.path(), format!("tensor `{name}`: a shape of {shape:?} cannot be split into {parts}")))
        }
        parts => {
            let part = height / parts;
            Ok(names.into_iter().enumerate().map(|(i, name)| place(name, i * part..(i + 1) * part)).collect())
        }
    }
}

/// Whether the base's norms are those that are multiplied by, though its architecture's files in Hugging Face's form have them
/// less 1.
pub(in crate::export) fn norms_include_one(base: &Base) -> bool {
    base.config().get(NORMS_INCLUDE_ONE).and_then(Value::as_bool) == Some(true)
}

/// How llama.cpp writes the base's architecture.
pub(super) fn architecture(base: &Base) -> Result<&'static Architecture> {
    Architecture::of_base(base).ok_or_else(|| {
        Error::file(base.path(), format!("the architecture `{}` is not written as GGUF", base.model_type())).with_help(
            "export the merged model (`--to merged`) and convert that with llama.cpp's convert_hf_to_gguf.py",
        )
    })
}

fn heads(base: &Base, name: &str) -> Result<usize> {
    let number = |key: &str| base.config().get(key).and_then(Value::as_u64).filter(|&heads| heads > 0);
    let queries = number("num_attention_heads");
    let heads = if name.contains(".k_proj.") { number("num_key_value_heads").or(queries) } else { queries };
    let message = "config.json: num_attention_heads: expected a whole number above 0";
    heads.map(|heads| heads as usize).ok_or_else(|| Error::file(base.path(), message))
}
