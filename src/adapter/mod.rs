//! A trained adapter as a folder, in PEFT's layout.
//!
//! It owns the files and their names; it trains nothing and merges nothing.

mod bundle;
mod card;
mod serving;
mod tensors;

pub use bundle::{AdapterBundle, AdapterConfig};
pub use card::{CARD_BASE, CARD_REPO, CardFacts, CardKind, CardValidation, base_model_tag, hub_id, model_card};
pub use tensors::{read_tensors, serialize_tensors};
