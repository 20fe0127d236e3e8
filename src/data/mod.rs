//! Data: from rows of JSON to batches of tokens.
//!
//! row → [`Example`] (`formats`) → [`Sequence`] (`template`, `turns`, `tokenize`) → [`Dataset`] → [`Batch`]. It knows neither
//! models nor objectives, and nothing of where the tokenizer comes from.

mod batch;
mod config;
mod dataset;
mod example;
pub mod formats;
pub mod jsonl;
mod report;
mod stream;
mod template;
#[cfg(test)]
mod testing;
mod tokenize;
mod turns;

pub use batch::{Batch, Target, epoch_order};
pub use config::{
    CacheConfig, DataConfig, OnBadRow, Overlong, RowTemplate, SourceConfig, Sources, TrainOnTurns,
};
pub use dataset::Dataset;
pub use example::{Example, Message, Role};
pub use formats::FormatName;
pub use report::{DataReport, Lengths, Preview};
pub use stream::TextStream;
pub use template::{ChatTemplate, named};
pub use tokenize::{Encoder, IGNORED, Sequence};
