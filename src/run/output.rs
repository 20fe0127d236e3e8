//! The output folder: whose it is, and that only one run writes there.

use super::RunOptions;
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_TENSORS, AdapterBundle, AdapterConfig};
use crate::error::{Error, Result};
use crate::eval::{evaluation_files, remove_empty_folders};
use crate::export::TOKENIZER_FILES;
use crate::fs;
use crate::recipe::{KeyKind, Recipe};
use crate::train::{Checkpoint, FitSummary, LrScheduler, METRICS, checkpoint_folder, checkpoints_folder, read_state};
use crate::weights::CHAT_TEMPLATES_FOLDER;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

const RECIPE: &str = "recipe.yaml";
const LOCK: &str = ".lock";
/// Results of the recipe's tasks, in an output folder.
pub(super) const EVAL: &str = "eval";
/// Bytes of an adapter's small files: card, recipe, metrics, tokenizer.
const OTHER_FILES: u64 = 64 << 10;

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
        std::fs::create_dir_all(&path).map_err(|error| refused(&path, &error))?;
        let lock = lock(&path)?;
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

fn refused(path: &Path, error: &std::io::Error) -> Error {
    Error::file(path, format!("nothing can be written there: {error}")).with_help("set another `output_dir`")
}

/// Locks a folder for this process; the lock ends with the file.
///
/// # Errors
/// When another process holds it, or the folder cannot be written.
pub(super) fn lock(path: &Path) -> Result<File> {
    let mut lock = OpenOptions::new();
    let lock = lock.create(true).truncate(false).write(true).open(path.join(LOCK));
    let lock = lock.map_err(|error| refused(path, &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::file(path, "another process is training into this folder")
            .with_help("wait for it, or set another `output_dir`")),
        Err(TryLockError::Error(error)) => Err(refused(path, &error)),
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
            "`--resume` goes on where that changes no step that is done (a longer run with `lr_scheduler: constant` and \
             `warmup_steps`); else set \
             another `output_dir`, or begin again with `--overwrite`",
        ));
    }
    let begun = Checkpoint::steps(path).is_empty() && !path.join(ADAPTER_TENSORS).exists();
    Ok(if begun { Found::Beginning } else { Found::Run })
}

/// Whether the disk has room for what a run of so many parameters and steps writes, as a warning where it may become full.
///
/// # Errors
/// When it has no room for a checkpoint and the adapter.
pub(super) fn check_disk(
    recipe: &Recipe,
    options: &RunOptions,
    (adapter_parameters, steps): (usize, usize),
) -> Result<Option<String>> {
    let out = &recipe.output_dir;
    let Some(free) = fs::free_space(out) else { return Ok(None) };
    // What `--overwrite` removes makes room first.
    let free = free + if options.overwrite { written(out).iter().map(|path| fs::size(path)).sum() } else { 0 };
    let adapter = 4 * adapter_parameters as u64 + OTHER_FILES;
    // Beside the adapter, the optimizer's two moments.
    let mut checkpoint = adapter + 8 * adapter_parameters as u64;
    if options.resume && is_finished(recipe, steps)? {
        if out.join(ADAPTER_TENSORS).is_file() {
            return Ok(None);
        }
        checkpoint = 0;
    }
    let there = if options.overwrite { 0 } else { Checkpoint::steps(out).len() };
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    if free < adapter + checkpoint {
        let message = format!(
            "{} MiB are free on its disk; a checkpoint takes {} MiB, and the adapter {} MiB",
            free >> 20,
            mib(checkpoint),
            mib(adapter)
        );
        return Err(Error::file(out, message).with_help("free some space, or set another `output_dir`"));
    }
    // Those that are kept, the best, and the one that is being written.
    let at_most = (recipe.training.save_total_limit + 2).saturating_sub(there) as u64;
    let most = adapter.saturating_add(checkpoint.saturating_mul(at_most));
    Ok((free < most).then(|| {
        format!(
            "{} MiB are free on the disk of {}; with `training.save_total_limit: {}` checkpoints may take {} MiB",
            free >> 20,
            out.display(),
            recipe.training.save_total_limit,
            mib(most)
        )
    }))
}

/// Whether the disk has room for so many adapters, each with `beside` bytes of other files, and for a checkpoint.
///
/// # Errors
/// When it has not.
pub(super) fn check_room(out: &Path, adapter_parameters: usize, (adapters, beside): (usize, u64)) -> Result<()> {
    let Some(free) = fs::free_space(out) else { return Ok(()) };
    let adapter = 4 * adapter_parameters as u64 + OTHER_FILES + beside;
    // Beside the adapter, the optimizer's two moments.
    let checkpoint = 12 * adapter_parameters as u64 + OTHER_FILES;
    let needed = adapter.saturating_mul(adapters as u64) + if adapters > 0 { checkpoint } else { 0 };
    if free >= needed {
        return Ok(());
    }
    let message = format!(
        "{} MiB are free on its disk; {adapters} adapters and a checkpoint take {} MiB",
        free >> 20,
        needed.div_ceil(1 << 20)
    );
    Err(Error::file(out, message).with_help("free some space, or set another `--output-path`"))
}

/// Whether the last checkpoint has all steps behind it, and their validation.
fn is_finished(recipe: &Recipe, steps: usize) -> Result<bool> {
    let Some(&last) = Checkpoint::steps(&recipe.output_dir).last() else { return Ok(false) };
    let state = read_state(&checkpoint_folder(&recipe.output_dir, last))?;
    let patience = recipe.training.early_stopping_patience;
    let is_stopped = patience > 0 && state.stale_validations >= patience;
    Ok((state.step >= steps || is_stopped) && !state.validation_is_to_come)
}

/// Writes an adapter into the folder. One that is there already, with the same numbers, is left as it is: a finished run can be
/// looked at on a full disk.
///
/// # Errors
/// When the disk refuses.
pub(super) fn write_adapter(
    config: AdapterConfig,
    tensors: BTreeMap<String, Tensor>,
    out: &OutputFolder,
) -> Result<Vec<PathBuf>> {
    let bundle = AdapterBundle { config, tensors };
    if bundle.stands_in(&out.path) {
        return Ok([ADAPTER_CONFIG, ADAPTER_TENSORS].map(|name| out.path.join(name)).into());
    }
    bundle.save(&out.path, DType::F32)
}

/// The settings by which a run that has ended can be made longer: steps that are done must keep their learning rates and rows.
pub(super) fn longer(recipe: &Recipe, fit: &FitSummary) -> Option<String> {
    let training = &recipe.training;
    let rows = fit.state.step * training.micro_batch_size * training.gradient_accumulation_steps;
    if training.lr_scheduler != LrScheduler::Constant || fit.state.rows != rows || fit.state.stopped_early {
        return None;
    }
    let warmup = match fit.state.schedule {
        Some(schedule) if training.warmup_steps.is_none() && training.warmup_ratio > 0.0 => {
            format!(" --set training.warmup_steps={}", schedule.warmup_steps())
        }
        _ => String::new(),
    };
    Some(format!("--set training.max_steps=N{warmup}"))
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

/// What a run has written, as far as it is there, and nothing else.
fn written(path: &Path) -> Vec<PathBuf> {
    let checkpoints = Checkpoint::steps(path).into_iter().map(|step| checkpoint_folder(path, step));
    let own = [ADAPTER_TENSORS, ADAPTER_CONFIG, METRICS, "README.md", RECIPE];
    let files = own.iter().chain(TOKENIZER_FILES).map(|name| path.join(name));
    let named = std::fs::read_dir(path.join(CHAT_TEMPLATES_FOLDER)).into_iter().flatten().flatten().map(|it| it.path());
    let named = named.filter(|path| path.extension().is_some_and(|end| end == "jinja"));
    let answers = evaluation_files(&path.join(EVAL));
    checkpoints.chain(files).filter(|path| path.exists()).chain(named).chain(answers).collect()
}

/// Removes what a run has written.
fn clear(path: &Path) -> Result<()> {
    for path in written(path) {
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(Error::io("remove", &path))?;
    }
    // Where they are empty now.
    remove_empty_folders(&path.join(EVAL));
    let _ = std::fs::remove_dir(path.join(CHAT_TEMPLATES_FOLDER));
    Ok(())
}
