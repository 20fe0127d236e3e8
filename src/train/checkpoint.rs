//! A run on the disk: everything that decides how it goes on.

use super::health::Watch;
use super::metrics::Validation;
use super::{AdamW, MetricForBest, Schedule};
use crate::adapter::{ADAPTER_TENSORS, AdapterBundle, AdapterConfig, plain_names, read_tensors};
use crate::error::{Error, Result};
use crate::fs;
use candle_core::{DType, Tensor};
use safetensors::{SafeTensorError, serialize_to_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The part of a checkpoint that is not tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimizer steps that are done. With the seed it tells the place in the data and in all random sequences, since those
    /// are functions of seed, step and name.
    pub step: usize,
    /// Updates that the optimizer made: steps less those skipped.
    pub updates: usize,
    /// Rows that were consumed.
    pub rows: usize,
    /// The recipe's seed, from which every random number follows.
    pub seed: u64,
    /// When the run began, in seconds since 1970: what chat templates take for today, also on the day it goes on.
    pub started: u64,
    /// Steps skipped for a non-finite loss or gradient.
    pub skipped: usize,
    /// The last so many steps were all skipped.
    pub skipped_in_a_row: usize,
    /// The validation before the first step.
    pub first_validation: Option<Validation>,
    /// The last validation.
    pub last_validation: Option<Validation>,
    /// The best validation.
    pub best_validation: Option<Validation>,
    /// Validations since the best.
    pub stale_validations: usize,
    /// Whether early stopping has ended the run.
    pub stopped_early: bool,
    /// Whether the run was asked to stop while the validation after this step was due: it is still to come.
    #[serde(default)]
    pub validation_is_to_come: bool,
    /// A hash of the tasks that validations ask.
    #[serde(default)]
    pub tasks: Option<String>,
    /// By which number of a validation the best was chosen.
    #[serde(default)]
    pub metric: Option<MetricForBest>,
    /// Cross-entropy and token accuracy of the first step's rows under the base alone.
    #[serde(default)]
    pub first_step: Option<(f64, f64)>,
    /// Seconds in steps, of all processes up to this checkpoint.
    #[serde(default)]
    pub seconds: f64,
    /// Tokens in steps, likewise.
    #[serde(default)]
    pub tokens: usize,
    /// When the adapter was compared with the base alone.
    #[serde(default)]
    pub(super) watch: Watch,
    /// The learning rates by which the steps so far were taken.
    #[serde(default)]
    pub schedule: Option<Schedule>,
    /// What the run is made of.
    pub identity: Identity,
}

/// What a run is made of. A checkpoint goes on only under the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the resolved recipe.
    pub recipe: String,
    /// Of the base's files.
    pub base: String,
    /// Of the tokenized rows.
    pub data: String,
    /// The kind of device: its arithmetic rounds in its own way.
    pub device: String,
}

/// What makes a checkpoint's tensors an adapter, which other programs load and `generate`, `export` and `upload` take.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    /// The adapter's configuration.
    pub config: AdapterConfig,
    /// Further files: names and contents.
    pub others: Vec<(String, Vec<u8>)>,
}

/// A run at a step.
pub struct Checkpoint {
    /// The adapter's tensors.
    pub adapter: BTreeMap<String, Tensor>,
    /// The optimizer's moments.
    pub optimizer: BTreeMap<String, Tensor>,
    /// The rest.
    pub state: TrainerState,
}

const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";

/// Where the checkpoints of a run lie.
pub fn checkpoints_folder(out: &Path) -> PathBuf {
    out.join("checkpoints")
}

/// The folder of the checkpoint after `step`.
pub fn checkpoint_folder(out: &Path, step: usize) -> PathBuf {
    checkpoints_folder(out).join(format!("step-{step:06}"))
}

impl Checkpoint {
    /// Writes the folder of a checkpoint, whole or not at all, tensor by tensor.
    ///
    /// # Errors
    /// When the disk is full or read-only; what was there before stays.
    pub fn save(
        out: &Path,
        files: &AdapterFiles,
        adapter: BTreeMap<String, Tensor>,
        optimizer: &AdamW,
        state: &TrainerState,
    ) -> Result<PathBuf> {
        let folder = checkpoint_folder(out, state.step);
        let parent = checkpoints_folder(out);
        std::fs::create_dir_all(&parent).map_err(Error::io("create", &parent))?;
        fs::write_folder_atomic(&folder, |temporary| {
            AdapterBundle { config: files.config.clone(), tensors: adapter }.save(temporary, DType::F32)?;
            for (name, contents) in &files.others {
                std::fs::write(temporary.join(name), contents).map_err(Error::io("write", folder.join(name)))?;
            }
            write_moments(optimizer, &temporary.join(OPTIMIZER), &folder.join(OPTIMIZER))?;
            let state = serde_json::to_vec_pretty(state).map_err(|e| Error::invalid(format!("internal: {e}")))?;
            std::fs::write(temporary.join(STATE), state).map_err(Error::io("write", folder.join(STATE)))
        })?;
        Ok(folder)
    }

    /// Reads the checkpoint in `folder`.
    ///
    /// # Errors
    /// When a file is missing or damaged.
    pub fn load(folder: &Path) -> Result<Self> {
        Ok(Self {
            adapter: plain_names(saved_tensors(&folder.join(ADAPTER_TENSORS))?),
            optimizer: saved_tensors(&folder.join(OPTIMIZER))?,
            state: read_state(folder)?,
        })
    }

    /// The steps that have a checkpoint, in order.
    pub fn steps(out: &Path) -> Vec<usize> {
        let entries = std::fs::read_dir(checkpoints_folder(out)).into_iter().flatten().flatten();
        let mut steps: Vec<usize> =
            entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// Removes all but the last `keep` checkpoints and the one after step `best`.
    pub fn prune(out: &Path, keep: usize, best: Option<usize>) {
        let steps = Self::steps(out);
        let last = steps.len().saturating_sub(keep);
        for &step in steps[..last].iter().filter(|&&step| Some(step) != best) {
            fs::remove_folder_atomic(&checkpoint_folder(out, step));
        }
    }
}

/// The state in a checkpoint's folder.
///
/// # Errors
/// When the file is missing or damaged.
pub fn read_state(folder: &Path) -> Result<TrainerState> {
    let path = folder.join(STATE);
    let bytes = std::fs::read(&path).map_err(|error| damaged(&path, &format!("cannot be read: {error}")))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(&path, &format!("is not a checkpoint's state: {error}")))
}

/// A file of a checkpoint that is not as it was written.
fn damaged(path: &Path, why: &str) -> Error {
    let folder = path.parent().unwrap_or(path).display();
    Error::file(path, format!("the checkpoint is damaged: {why}"))
        .with_help(format!("remove {folder} to go on from the checkpoint before, or begin again with `--overwrite`"))
}

/// `path` is where the file will stand, for messages.
fn write_moments(optimizer: &AdamW, temporary: &Path, path: &Path) -> Result<()> {
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    // The crate's own file is for its owner alone.
    let created = File::create(temporary).and_then(|file| file.metadata()).map_err(Error::io("create", path))?;
    serialize_to_file(optimizer.moments()?, metadata, temporary).map_err(|error| match error {
        SafeTensorError::IoError(error) => Error::io("write", path)(error),
        error => Error::file(path, error.to_string()),
    })?;
    std::fs::set_permissions(temporary, created.permissions()).map_err(Error::io("write", path))
}

fn saved_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    read_tensors(path).map_err(|error| damaged(path, &error.to_string()))
}
