//! A trained adapter as a folder, in PEFT's layout.
//!
//! It owns the files and their names; it trains nothing and merges nothing.

mod bundle;
mod card;

pub use bundle::{AdapterBundle, AdapterConfig};
pub use card::{CardFacts, model_card};
