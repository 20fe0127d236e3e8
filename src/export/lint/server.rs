//! The programs that adapters are made for.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A program that serves an adapter, or loads one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Server {
    /// vLLM.
    Vllm,
    /// `SGLang`.
    Sglang,
    /// Text Generation Inference, and `LoRAX`, whose loader it has.
    Tgi,
    /// mistral.rs.
    MistralRs,
    /// llama.cpp: its `convert_lora_to_gguf.py`, then `--lora`.
    LlamaCpp,
    /// Ollama.
    Ollama,
    /// mlx-lm.
    Mlx,
    /// PEFT with transformers.
    Peft,
}

impl Server {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 8] =
        [Self::Vllm, Self::Sglang, Self::Tgi, Self::MistralRs, Self::LlamaCpp, Self::Ollama, Self::Mlx, Self::Peft];

    /// The word for it in recipes and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::Tgi => "tgi",
            Self::MistralRs => "mistralrs",
            Self::LlamaCpp => "llamacpp",
            Self::Ollama => "ollama",
            Self::Mlx => "mlx",
            Self::Peft => "peft",
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Server {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let word = if text == "lorax" { "tgi" } else { text };
        Self::ALL.into_iter().find(|server| server.name() == word).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let shown: String = text.chars().take(40).collect();
            Error::invalid(format!("`{shown}` is not a server that adapters are checked for; these are: {names}"))
        })
    }
}

impl TryFrom<String> for Server {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_as_they_are_written_in_recipes_too() {
        for server in Server::ALL {
            assert_eq!(server.name().parse::<Server>().unwrap(), server);
            assert_eq!(serde_json::to_value(server).unwrap(), server.name());
        }
        assert_eq!("lorax".parse::<Server>().unwrap(), Server::Tgi);
        let error = "vlm".parse::<Server>().unwrap_err().to_string();
        assert!(error.contains("`vlm`") && error.contains("vllm, sglang, tgi, mistralrs, llamacpp"), "{error}");
    }
}
