//! Writing GGUF files: the container, the metadata that llama.cpp wants, and the tokenizer inside.
//!
//! It owns bytes, keys and names. It does not own what the weights are: whoever merges or quantizes streams them in.

mod adapter;
mod hub_id;
mod metadata;
mod rope;
mod tensors;
mod tokenizer;
mod tokenizer_kind;
mod writer;

pub use adapter::{AdapterFacts, adapter_metadata, write_adapter};
pub use metadata::{ModelFacts, file_type, metadata};
pub use rope::{ROPE_FREQS, rope_freqs};
pub use tensors::{Placement, placement};
pub use writer::{GgufWriter, TensorInfo, file_size};
