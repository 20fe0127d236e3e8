//! Writing GGUF files: the container, the metadata that llama.cpp wants, and the tokenizer inside.
//!
//! It owns bytes, keys and names. It does not own what the weights are: whoever merges or quantizes streams them in.

mod adapter;
mod hub_id;
mod hyperparameters;
mod metadata;
mod model;
mod remarks;
mod rope;
mod tensors;
mod tokenizer;
mod tokenizer_kind;
mod writer;

pub use crate::weights::TensorInfo;
pub use adapter::{AdapterFacts, adapter_metadata, write_adapter};
pub use hyperparameters::hyperparameters;
pub use metadata::{ModelFacts, file_type, metadata};
pub(super) use model::export_model;
pub use model::write_base;
pub use rope::{ROPE_FREQS, rope_freqs, rope_tensors};
pub(super) use tensors::norms_include_one;
pub use tensors::{Placement, is_left_out, placements};
pub use writer::{GgufWriter, file_size};

use super::{FloatType, Job, Output};
use crate::error::{Error, Result};
use crate::weight_type::WeightType;

/// `--to gguf`: the merged model.
pub(super) fn export_merged(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    export_model(job, out).map(drop)
}

/// `--to gguf-adapter`: the adapter by itself; the base stays as it is.
pub(super) fn export_adapter(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    export_adapter_file(job, out).map(drop)
}

/// Writes `<name>-lora.gguf`; gives the file's name.
pub(super) fn export_adapter_file(job: &Job<'_>, out: &mut Output<'_>) -> Result<String> {
    let dtype = match job.options.dtype {
        None | Some(FloatType::F32) => WeightType::F32,
        Some(FloatType::F16) => WeightType::F16,
        Some(FloatType::BF16) => {
            return Err(Error::invalid("--dtype: llama.cpp's adapters are f32 or f16, not bf16"));
        }
    };
    let name = format!("{}-lora.gguf", job.name);
    write_adapter(&out.folder().join(&name), job.base, job.adapter, &AdapterFacts { name: job.name, dtype })?;
    for _ in &job.adapter.tensors {
        out.count(dtype);
    }
    out.adopt(&name)?;
    Ok(name)
}
