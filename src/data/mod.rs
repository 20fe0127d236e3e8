//! Data: from files to batches of tokens.
//!
//! file → row (`source`) → [`Example`] (`formats`) → [`Sequence`] (`template`, `turns`, `tokenize`) → `store` (`tokenized`,
//! `cache`) → [`Dataset`] → [`Plan`] → [`Batch`]. It knows neither models nor objectives, and nothing of where the tokenizer
//! comes from.

mod batch;
mod cache;
mod config;
mod dataset;
mod example;
pub mod formats;
mod forms;
mod plan;
mod quiet;
mod report;
mod rows;
pub mod source;
mod store;
mod stream;
mod template;
#[cfg(test)]
mod testing;
mod tokenize;
mod tokenized;
mod turns;
mod words;

pub use batch::{Batch, Target};
pub use config::{CacheConfig, DataConfig, OnBadRow, Overlong, RowTemplate, SourceConfig, Sources, TrainOnTurns};
pub use dataset::{DataFiles, Dataset, Split};
pub use example::{Example, Message, Role};
pub use formats::{FormatName, RowFormat};
pub use plan::{Arrangement, Epoch, Plan};
pub use report::{Bin, DataReport, Lengths, PackingReport, Preview, RowWeights, SourceReport};
pub use rows::Rows;
pub use store::Entry;
pub use stream::TextStream;
pub(crate) use template::python_regex;
pub use template::{ChatTemplate, DocumentTemplate, named, python_text};
pub use tokenize::{Encoder, IGNORED, Notes, Scaffold, Sequence};
