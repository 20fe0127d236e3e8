//! The recipe's `lora` section, under PEFT's names.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The recipe's `lora`: rank, scale and where the adapter sits. Names and meanings are those of PEFT's `LoraConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// The update is scaled by `lora_alpha / r`, or by `lora_alpha / √r` under `use_rslora`.
    pub lora_alpha: f64,
    /// Share of the adapter's inputs that is zeroed in training.
    pub lora_dropout: f64,
    /// Rank-stabilised scaling (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Which linear layers get an adapter.
    pub target_modules: TargetModules,
    /// An adapter to begin with, in place of a new one. What of `r`, `lora_alpha`, `use_rslora` and `target_modules` is not
    /// written in the recipe is then the adapter's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

/// The recipe's `lora.target_modules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetModules {
    /// A word for a set of modules; `all-linear` is the only one: every linear layer but the head.
    Keyword(TargetKeyword),
    /// Names such as `q_proj`: the last parts of a module's path, as many as are given (`layers.3.mlp.up_proj`).
    Names(Vec<String>),
}

/// Words that stand for a set of modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKeyword {
    /// Every linear layer but the head.
    #[serde(rename = "all-linear")]
    AllLinear,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            use_rslora: false,
            target_modules: TargetModules::Keyword(TargetKeyword::AllLinear),
            init_from: None,
        }
    }
}

impl LoraConfig {
    /// The highest rank: beyond every width that is adapted.
    pub const MAX_R: usize = 1 << 16;

    /// What the update is multiplied by: `α/r`, or `α/√r` for rank-stabilised LoRA.
    pub fn scale(&self) -> f64 {
        self.lora_alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// Names the key (`lora.r` and so on) and the values that it takes.
    pub fn validate(&self) -> Result<()> {
        if !(1..=Self::MAX_R).contains(&self.r) {
            return Err(Error::invalid(format!(
                "lora.r: must be at least 1 and at most {}, got {}",
                Self::MAX_R,
                self.r
            )));
        }
        // The scale is applied in `f32`.
        if !(self.lora_alpha > 0.0 && (self.scale() as f32).is_finite()) {
            return Err(Error::invalid("lora.lora_alpha: must be a number above 0, and not beyond all measure"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::invalid("lora.lora_dropout: must be at least 0 and below 1"));
        }
        if matches!(&self.target_modules, TargetModules::Names(names) if names.is_empty()) {
            return Err(Error::invalid("lora.target_modules: names no module; write `all-linear` or a list"));
        }
        Ok(())
    }

    /// Whether the module at `path` (`model.layers.3.mlp.up_proj`) gets an adapter.
    pub fn targets(&self, path: &str) -> bool {
        match &self.target_modules {
            TargetModules::Keyword(TargetKeyword::AllLinear) => true,
            TargetModules::Names(names) => names.iter().any(|name| is_end_of(name, path)),
        }
    }
}

/// Whether a path ends in all parts of `name`.
pub(super) fn is_end_of(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}
