//! Evaluation on tasks, as lm-evaluation-harness (lm-eval) defines them: its YAML keys, its requests, its metrics and its files.
//!
//! YAML → [`TaskConfig`] (`config`, `registry`) → documents and prompts (`document`, `prompt`) → tokens (`request`) → scores → metrics of
//! each item and of all (`metrics`, `aggregate`) → files (`files`). Beside that, which items stand in training rows (`contamination`). It reads no model and fetches nothing: the caller has the
//! documents, and the model that answers.

mod aggregate;
mod broken;
mod config;
mod contamination;
mod document;
mod evaluation;
mod files;
mod filter;
mod general_text;
mod metrics;
mod options;
mod prompt;
mod recorded;
mod registry;
mod request;
mod scoring;
mod value;

pub use aggregate::{Aggregate, TaskResult, aggregate, group_results};
pub use config::{GroupConfig, MetricConfig, OutputType, TaskConfig};
pub use contamination::{Found, Index, Items, NEAR, NGRAM, RowMatch, SHINGLE, Tally, words};
pub use document::{Documents, Prepared};
pub use evaluation::{EvalStrategy, EvaluationConfig};
pub use files::{
    Journal, RunFacts, TaskHash, document_hash, evaluation_files, file_stamp, model_folder, remove_empty_folders,
    results_json,
};
pub(crate) use files::{difference, numbers, pretty};
pub use general_text::general_text;
pub use metrics::ItemValue;
pub use prompt::ChatSettings;
pub use recorded::{RecordedItem, RecordedItems, RecordedRun, RecordedTask};
pub use registry::{Registry, Selected, SelectedGroup};
pub use request::Tokens;
pub use scoring::{Answer, Asked, Chosen, Generation, ItemResult, evaluate_item, requests_of, shifted_requests_of};
