//! The recipe's `export` section.

use super::lint::Server;
use serde::{Deserialize, Serialize};

/// The recipe's `export`: what the adapter is made for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportConfig {
    /// Servers that are to load the adapter. `train` and `check` warn of what they would refuse or get wrong.
    #[serde(rename = "for")]
    pub servers: Vec<Server>,
}
