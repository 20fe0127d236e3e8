//! An adapter as files: PEFT's layout, which is ours too, and what other programs write.
//!
//! It owns the files and their names; it trains nothing and merges nothing.

mod base_name;
mod bundle;
mod card;
mod config;
mod format;
mod gguf;
mod halves;
mod mlx;
mod patterns;
mod peft;
mod read;
mod serving;
mod tensors;
#[cfg(test)]
mod tests;

pub use base_name::published_base;
pub use bundle::AdapterBundle;
pub use card::{
    CARD_BASE, CARD_REPO, CardFacts, CardKind, CardRows, CardSample, CardTask, CardValidation, base_model_tag, hub_id,
    model_card,
};
pub use config::{AdapterConfig, plain_names};
pub use format::{AdapterFormat, AdapterSummary};
pub use peft::{CONFIG as ADAPTER_CONFIG, TENSORS as ADAPTER_TENSORS};
pub use serving::vllm_rank;
pub use tensors::read_tensors;
