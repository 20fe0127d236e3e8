//! Where a tensor of a base stands in a GGUF file: its name there, and the order of its rows.

use crate::error::{Error, Result};
use crate::weights::Base;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::gguf::rows;
use serde_json::Value;

/// What a GGUF file calls a tensor, and how it orders the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// GGUF's name.
    pub name: String,
    /// Where the rows go into llama.cpp's order: of how many heads.
    pub permuted_heads: Option<usize>,
}

impl Placement {
    /// Whole rows in Hugging Face's order, brought into the order of the file. `rows` is the tensor's outermost dimension.
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

/// Where the tensor of this Hugging Face name goes.
///
/// # Errors
/// When GGUF has no name for it, or none for the base's architecture.
pub fn placement(base: &Base, name: &str) -> Result<Placement> {
    let architecture = architecture(base)?;
    if name == super::ROPE_FREQS {
        return Ok(Placement { name: name.to_string(), permuted_heads: None });
    }
    let Some(gguf) = architecture.gguf_name(name) else {
        return Err(Error::file(
            base.path(),
            format!("tensor `{name}` has no name in GGUF files of `{}`", architecture.gguf),
        )
        .with_help("export the merged model instead: `--to merged`"));
    };
    let permuted_heads = architecture.is_permuted(name).then(|| heads(base, name)).transpose()?;
    Ok(Placement { name: gguf, permuted_heads })
}

/// How llama.cpp writes the base's architecture.
pub(super) fn architecture(base: &Base) -> Result<&'static Architecture> {
    Architecture::of_model_type(base.model_type()).ok_or_else(|| {
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
