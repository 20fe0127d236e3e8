//! Which of the formats an adapter is in, and what can be said of it without its base.

use super::config::{Targets, plain_name};
use super::peft::{self, CONFIG};
use super::{gguf, mlx};
use crate::error::{Error, Result};
use crate::nn::{LoraConfig, TargetModules};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A format that adapters are read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterFormat {
    /// PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// mlx-lm's folder: `adapter_config.json` and `adapters.safetensors`.
    Mlx,
    /// llama.cpp's file.
    Gguf,
}

/// What an adapter says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSummary {
    /// The base that it names; empty where it names none.
    pub base_model: String,
    /// Rank, scale and targets.
    pub lora: LoraConfig,
}

impl AdapterFormat {
    /// The format of what lies at `path`.
    ///
    /// # Errors
    /// When nothing is there, or it is no adapter.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_file() {
            if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
                return Ok(Self::Gguf);
            }
            return Err(Error::file(path, "is not an adapter").with_help(HELP));
        }
        if !path.is_dir() {
            return Err(Error::file(path, "no such folder or file").with_help(HELP));
        }
        if !path.join(CONFIG).is_file() {
            let files = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
            let gguf: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "gguf")).collect();
            if let [one] = &gguf[..] {
                return Err(Error::file(path, "is a folder with a GGUF file, not an adapter")
                    .with_help(format!("if that is a LoRA adapter, name the file itself: {}", one.display())));
            }
            if path.join("trainer_state.json").is_file() {
                return Err(Error::file(path, format!("is a checkpoint of an earlier version, without {CONFIG}"))
                    .with_help("let the run end: equipoise train RECIPE --resume"));
            }
            if let Some(checkpoint) = last_checkpoint(path) {
                return Err(Error::file(path, "holds a run that has not ended, and so no adapter yet").with_help(format!(
                    "its last checkpoint is an adapter too: {}; or let the run end: equipoise train RECIPE --resume",
                    checkpoint.display()
                )));
            }
            return Err(Error::file(path, format!("is not an adapter's folder: there is no {CONFIG} in it"))
                .with_help("name a folder that `train` wrote, a checkpoint in it, or a PEFT folder"));
        }
        Ok(if path.join(mlx::TENSORS).is_file() && !path.join(peft::TENSORS).is_file() {
            Self::Mlx
        } else {
            Self::Peft
        })
    }
}

/// The last checkpoint of the run in a folder, if it is one that is an adapter.
fn last_checkpoint(run: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|folder| folder.join(CONFIG).is_file()).max()
}

const HELP: &str =
    "an adapter is a folder that `train` wrote, a PEFT or mlx-lm folder, or a GGUF file of a LoRA adapter";

impl AdapterSummary {
    /// Reads what an adapter says of itself.
    ///
    /// # Errors
    /// As [`super::AdapterBundle::load`], as far as it shows without a base.
    pub fn read(path: &Path) -> Result<Self> {
        let raw = match AdapterFormat::of(path)? {
            AdapterFormat::Peft => peft::read(path)?,
            AdapterFormat::Mlx => mlx::read(path, None)?,
            AdapterFormat::Gguf => gguf::read(path, None)?,
        };
        let stored = raw.modules()?;
        let mut lora = raw.lora(&stored)?;
        let modules: BTreeSet<String> = stored.iter().map(|module| plain_name(module)).collect();
        let targets = Targets::of(&modules);
        let names = if targets.layers.is_some() { modules } else { targets.names };
        lora.target_modules = TargetModules::Names(names.into_iter().collect());
        Ok(Self { base_model: raw.base_model, lora })
    }
}
