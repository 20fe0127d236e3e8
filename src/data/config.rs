//! The recipe's `data` section.

use super::formats::FormatName;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The recipe's `data`: which rows are learnt, and how they become tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A JSON Lines file.
    pub train: PathBuf,
    /// A JSON Lines file to validate on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Without a validation file: the share of the rows that is held out for it, chosen by the seed.
    #[serde(default)]
    pub validation_split: f64,
    /// What the rows look like.
    #[serde(default)]
    pub format: FormatName,
    /// The most tokens of one row.
    #[serde(default = "default_max_seq_len")]
    pub max_seq_len: usize,
    /// What happens to rows with more.
    #[serde(default)]
    pub overlong: Overlong,
}

const fn default_max_seq_len() -> usize {
    1024
}

/// The recipe's `data.overlong`: rows of more than `max_seq_len` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Left out, counted and reported.
    #[default]
    Drop,
    /// Cut at the end, counted and reported; left out where nothing supervised remains.
    Truncate,
    /// An error that names the row.
    Error,
}

impl DataConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and the values that it takes.
    pub fn validate(&self) -> Result<()> {
        if self.max_seq_len < 2 {
            return Err(Error::invalid("data.max_seq_len: must be at least 2 tokens"));
        }
        if !(0.0..1.0).contains(&self.validation_split) {
            return Err(Error::invalid("data.validation_split: must be at least 0 and below 1"));
        }
        if self.validation.is_some() && self.validation_split > 0.0 {
            return Err(Error::invalid(
                "data.validation_split: cannot stand beside `data.validation`; keep one of the two",
            ));
        }
        Ok(())
    }
}
