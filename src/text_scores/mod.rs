//! Scores of texts: generated answers against references, and log-likelihoods as perplexities.
//!
//! Each score follows the program that published numbers come from, to the last case: [`rouge`] is `rouge_score`,
//! [`exact_match`] and [`mod@perplexity`] are lm-evaluation-harness, [`squad`] is the evaluation script of `SQuAD`. Nothing
//! here knows a model, a task or a file. Means over items, standard errors and tests lie elsewhere.

pub mod exact_match;
pub mod perplexity;
pub mod porter;
mod python;
pub mod rouge;
pub mod squad;

pub use exact_match::ExactMatch;
pub use perplexity::{RollingLikelihood, perplexity};
pub use python::is_space;
pub use rouge::{Rouge, RougeTokens, Score};
pub use squad::{Squad, normalize_answer};
