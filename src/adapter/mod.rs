//! A trained adapter as a folder, in PEFT's layout.
//!
//! It owns the files and their names; it trains nothing and merges nothing.

mod bundle;
mod card;
pub mod gguf;
mod tensors;

pub use bundle::{AdapterBundle, AdapterConfig};
pub use card::{CardFacts, model_card};
pub use tensors::{read_tensors, serialize_tensors};
