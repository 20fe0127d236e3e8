//! Base models by name: a folder, a GGUF file, or an id on the Hugging Face Hub.

use serde::{Deserialize, Serialize};

/// The recipe's `base`: which frozen model the adapter is trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseConfig {
    /// A folder, a `.gguf` file, or a Hub id: `org/name` or `org/name@revision`.
    pub model: String,
    /// In a Hub repository of GGUF files, the file to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}
