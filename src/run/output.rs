//! The output folder: whose it is, and that only one run writes there.

use super::RunOptions;
use crate::error::{Error, Result};
use crate::export::TOKENIZER_FILES;
use crate::fs;
use crate::recipe::{KeyKind, Recipe};
use crate::train::{Checkpoint, checkpoint_folder, checkpoints_folder, read_state};
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

const RECIPE: &str = "recipe.yaml";
const LOCK: &str = ".lock";
/// Bytes of an adapter's small files: card, recipe, metrics, tokenizer.
const OTHER_FILES: u64 = 64 << 10;
const METRICS: &str = "metrics.jsonl";

/// An output folder that this process holds.
pub(super) struct OutputFolder {
    path: PathBuf,
    /// The lock ends with the process, however that ends.
    _lock: File,
}

/// What stands at the output folder's place.
enum Found {
    Nothing,
    /// This recipe's run, before its first checkpoint.
    Beginning,
    /// This recipe's run.
    Run,
}

impl OutputFolder {
    /// Whether the run may write there, without writing.
    ///
    /// # Errors
    /// When the folder holds another recipe's run, or this one's and neither `resume` nor `overwrite` was asked for.
    pub(super) fn look(recipe: &Recipe, options: &RunOptions) -> Result<()> {
        let path = &recipe.output_dir;
        if let Some(start) = &recipe.lora.init_from
            && let (Ok(start), Ok(out)) = (start.canonicalize(), path.canonicalize())
            && start.starts_with(&out)
        {
            return Err(Error::invalid(format!(
                "lora.init_from: {} is in the output folder, which a run from the beginning clears",
                start.display()
            ))
            .with_help("set another `output_dir`"));
        }
        match (find(recipe, options)?, options.resume, options.overwrite) {
            (_, true, true) => Err(Error::invalid("`--resume` and `--overwrite` exclude each other")),
            (Found::Run, false, false) => Err(Error::file(path, "holds a run of this recipe").with_help(
                "`--resume` goes on with it, `--overwrite` begins again, `--set output_dir=FOLDER` keeps it and trains elsewhere",
            )),
            _ => Ok(()),
        }
    }

    /// Creates or takes over the folder.
    ///
    /// # Errors
    /// As [`Self::look`]; when another process trains there, or the folder cannot be written.
    pub(super) fn open(recipe: &Recipe, options: &RunOptions) -> Result<Self> {
        Self::look(recipe, options)?;
        let path = recipe.output_dir.clone();
        let refused = |error| {
            Error::file(&path, format!("nothing can be written there: {error}")).with_help("set another `output_dir`")
        };
        std::fs::create_dir_all(&path).map_err(refused)?;
        let mut lock = OpenOptions::new();
        let lock = lock.create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(&path, "another process is training into this folder")
                    .with_help("wait for it, or set another `output_dir`"));
            }
            Err(TryLockError::Error(error)) => return Err(refused(error)),
        }
        fs::sweep(&path);
        fs::sweep(&checkpoints_folder(&path));
        if options.overwrite {
            clear(&path)?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// Writes the resolved recipe, once it is sure that it is what runs.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn write_recipe(&self, recipe: &Recipe) -> Result<()> {
        fs::write_atomic(&self.path.join(RECIPE), recipe.to_yaml()?.as_bytes())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// When the run began: now, or what the last checkpoint says where it goes on.
pub(super) fn started(recipe: &Recipe, options: &RunOptions) -> Result<u64> {
    match Checkpoint::steps(&recipe.output_dir).last() {
        Some(&step) if options.resume => Ok(read_state(&checkpoint_folder(&recipe.output_dir, step))?.started),
        _ => Ok(now()),
    }
}

fn find(recipe: &Recipe, options: &RunOptions) -> Result<Found> {
    let path = &recipe.output_dir;
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let message = "is not a folder, or a part of the path is a file";
            return Err(Error::file(path, message).with_help("set another `output_dir`"));
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    // Hidden files are our lock, or what a killed run left half-written.
    let mut visible = entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    if visible.next().is_none() {
        return Ok(Found::Nothing);
    }
    let saved = path.join(RECIPE);
    // Somebody's own recipe.yaml makes no run of a folder: `--overwrite` must not clear it.
    if !(saved.is_file() && path.join(LOCK).is_file()) {
        return Err(Error::file(path, "is not empty, and holds no run of Equipoise")
            .with_help("set another `output_dir`, or empty the folder"));
    }
    if options.overwrite {
        return Ok(Found::Run);
    }
    let earlier = Recipe::load(&saved, &[])?;
    let differences = recipe.differences(&earlier, KeyKind::Result);
    let another = |differences: Vec<String>, help: &str| {
        let message = format!("holds the run of another recipe; what differs:\n  {}", differences.join("\n  "));
        Error::file(path, message).with_help(help)
    };
    if !differences.is_empty() {
        return Err(another(
            [differences, recipe.differences(&earlier, KeyKind::Schedule)].concat(),
            "put the recipe back as it was to go on with that run, set another `output_dir`, or begin again with \
             `--overwrite`",
        ));
    }
    let schedule = recipe.differences(&earlier, KeyKind::Schedule);
    if !(schedule.is_empty() || options.resume || Checkpoint::steps(path).is_empty()) {
        return Err(another(
            schedule,
            "`--resume` goes on where that changes no step that is done (a longer run with a constant learning rate); else set \
             another `output_dir`, or begin again with `--overwrite`",
        ));
    }
    let begun = Checkpoint::steps(path).is_empty() && !path.join("adapter_model.safetensors").exists();
    Ok(if begun { Found::Beginning } else { Found::Run })
}

/// Whether the disk has room for what a run writes, as a warning where it may become full.
///
/// # Errors
/// When it has no room for a checkpoint and the adapter.
pub(super) fn check_disk(recipe: &Recipe, adapter_parameters: usize) -> Result<Option<String>> {
    let Some(free) = fs::free_space(&recipe.output_dir) else { return Ok(None) };
    let adapter = 4 * adapter_parameters as u64 + OTHER_FILES;
    // Beside the adapter, the optimizer's two moments.
    let checkpoint = adapter + 8 * adapter_parameters as u64;
    let there = Checkpoint::steps(&recipe.output_dir).len();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if free < adapter + checkpoint {
        let message = format!(
            "{} MiB are free on its disk; a checkpoint takes {} MiB, and the adapter {} MiB",
            free >> 20,
            mib(checkpoint),
            mib(adapter)
        );
        return Err(Error::file(&recipe.output_dir, message).with_help("free some space, or set another `output_dir`"));
    }
    // Those that are kept, the best, and the one that is being written.
    let at_most = (recipe.training.save_total_limit + 2).saturating_sub(there) as u64;
    let most = adapter.saturating_add(checkpoint.saturating_mul(at_most));
    Ok((free < most).then(|| {
        format!(
            "{} MiB are free on the disk of {}; with `training.save_total_limit: {}` checkpoints may take {} MiB",
            free >> 20,
            recipe.output_dir.display(),
            recipe.training.save_total_limit,
            mib(most)
        )
    }))
}

/// What the recipe has otherwise than the run that goes on, where that is allowed.
pub(super) fn changes(recipe: &Recipe, options: &RunOptions) -> Vec<String> {
    let saved = recipe.output_dir.join(RECIPE);
    let earlier = options.resume.then(|| Recipe::load(&saved, &[]).ok()).flatten();
    let differences = |earlier: Recipe| {
        let kinds = [KeyKind::Schedule, KeyKind::Free];
        kinds.map(|kind| recipe.differences(&earlier, kind)).concat()
    };
    earlier.map(differences).unwrap_or_default()
}

/// Removes what a run has written, and nothing else.
fn clear(path: &Path) -> Result<()> {
    for step in Checkpoint::steps(path) {
        let folder = checkpoint_folder(path, step);
        std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
    }
    let own = ["adapter_model.safetensors", "adapter_config.json", METRICS, "README.md", RECIPE];
    for name in own.iter().chain(TOKENIZER_FILES) {
        let file = path.join(name);
        if file.exists() {
            std::fs::remove_file(&file).map_err(Error::io("remove", &file))?;
        }
    }
    Ok(())
}
