//! Equipoise fine-tunes LoRA adapters on a frozen, quantized base under Balanced Fine-Tuning (BFT).

pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod fs;
pub mod hub;
pub mod nn;
pub mod objectives;
pub mod recipe;
pub mod rng;
pub mod run;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
