//! Equipoise fine-tunes `LoRA` adapters on a frozen, quantized base under Balanced Fine-Tuning (BFT, arXiv 2511.21075) or another objective.
//!
//! A recipe goes in, an adapter comes out: [`recipe::Recipe`] says what, [`run`] does it. The floors, from the top: `cli`,
//! [`run`], [`recipe`], [`train`], [`export`] and [`hub`], [`objectives`] and [`adapter`], [`models`] and [`data`], [`nn`], [`weights`]
//! and [`ops`], and at the bottom [`device`], [`error`], [`fs`], [`rng`] and [`weight_type`]. A room imports from the floors below its own.

pub mod adapter;
pub mod calendar;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod fs;
pub mod hub;
pub mod models;
pub mod nn;
pub mod objectives;
pub mod ops;
pub mod recipe;
pub mod rng;
pub mod run;
pub mod statistics;
pub mod text_scores;
pub mod train;
pub mod weight_type;
pub mod weights;

pub use error::{Error, Result};
