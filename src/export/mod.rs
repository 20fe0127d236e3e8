//! An adapter in the form that a server takes.
//!
//! It owns what is written for whom: folders and files, and what each server would refuse. It does not own reading adapters
//! ([`crate::adapter`]), nor sending anything anywhere ([`crate::hub`]).

mod config;
pub mod gguf;
pub mod lint;
pub mod ollama;

pub use config::ExportConfig;
