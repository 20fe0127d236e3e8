//! Equipoise fine-tunes LoRA adapters on a frozen, quantized base under Balanced Fine-Tuning (BFT).

pub mod data;
pub mod device;
pub mod error;
pub mod fs;
pub mod hub;
pub mod models;
pub mod nn;
pub mod objectives;
pub mod ops;
pub mod rng;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
