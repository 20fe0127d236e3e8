//! Data.

mod config;

pub use config::{DataConfig, FormatName, Overlong};
