//! An adapter in the forms that servers take, each compared with base and adapter.

use super::output::now;
use super::prepare::{encoder, ends};
use super::trained_on::TrainedOn;
use super::verify::{TrainedBase, Verified, verify_all};
use crate::adapter::{AdapterFormat, hub_id};
use crate::error::{Error, Result};
use crate::export::{self, ExportOptions, Exported, FloatType, Job, Manifest, Target};
use crate::nn::{QuantizationConfig, QuantizationType};
use crate::train::{Event, Observer};
use crate::weights::Base;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What to export, and how.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// An adapter: a folder that `train` wrote, or PEFT's, mlx-lm's or llama.cpp's.
    pub adapter: PathBuf,
    /// The targets' names.
    pub targets: Vec<String>,
    /// Where to: the target's folder, or with several targets the folder of their folders.
    pub out: Option<PathBuf>,
    /// `trained` (what goes without saying), `original`, `original:MODEL`, or a model.
    pub base: Option<String>,
    /// Types.
    pub options: ExportOptions,
    /// Replace an earlier export.
    pub overwrite: bool,
    /// Compare what was written with base and adapter.
    pub verify: bool,
    /// Fetch nothing.
    pub offline: bool,
}

/// What was exported.
#[derive(Debug, Clone, Serialize)]
pub struct ExportSummary {
    /// One for each target.
    pub exports: Vec<ExportedTarget>,
    /// Seconds in all.
    pub seconds: f64,
}

/// One target's export.
#[derive(Debug, Clone, Serialize)]
pub struct ExportedTarget {
    /// The folder.
    pub folder: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// The adapter's name.
    pub name: String,
    /// Its rank.
    pub r: usize,
    /// The base's Hub id, where the adapter names one.
    pub base_id: Option<String>,
    /// What a user should know.
    pub notes: Vec<String>,
    /// The comparison, if there was one.
    pub verified: Option<Verified>,
    /// Seconds of writing.
    pub seconds: f64,
}

/// What `--base` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BaseChoice {
    /// Another place than the adapter names.
    pub model: Option<String>,
    /// The weights as they are stored, not as they were held in training.
    pub original: bool,
}

impl BaseChoice {
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            None | Some("trained") => Self::default(),
            Some("original") => Self { model: None, original: true },
            Some(text) => match text.strip_prefix("original:") {
                Some(model) => Self { model: Some(model.into()), original: true },
                None => Self { model: Some(text.into()), original: false },
            },
        }
    }
}

/// Writes an adapter for each target.
///
/// # Errors
/// Before anything is written: when adapter or base cannot be read or do not fit each other, a target is not known, or a
/// folder is in use. Then: when the disk refuses, or [`Verified`] is not as good as it must be.
pub fn export(request: &ExportRequest, observer: &mut dyn Observer) -> Result<ExportSummary> {
    let start = Instant::now();
    let (name, targets) = (name_of(&request.adapter)?, targets(request)?);
    let folders: Vec<PathBuf> = targets.iter().map(|target| folder_of(request, &name, target)).collect();
    AdapterFormat::of(&request.adapter)?;
    for folder in &folders {
        export::look(folder, request.overwrite)?;
    }
    check_options(request)?;
    let choice = BaseChoice::parse(request.base.as_deref());
    let trained_on = TrainedOn::of(&request.adapter, choice.model.as_deref())?;
    let base = trained_on.open(request.offline, observer)?;
    if choice.original && base.is_gguf() {
        return Err(Error::invalid(format!("{} is a GGUF file, not the unquantized model", base.path().display()))
            .with_help("name that one: --base original:MODEL"));
    }
    for folder in &folders {
        keeps_inputs(folder, &[&request.adapter, base.path()])?;
    }
    let adapter = trained_on.adapter(&base, observer)?;
    let quantization = if choice.original {
        QuantizationConfig { kind: QuantizationType::None }
    } else {
        trained_on.held(&base, &adapter)?
    };
    let template = trained_on.chat_template(&base)?;
    let stop = stop_texts(&base, template.as_deref())?;
    let adapter_path = absolute(&request.adapter);
    let base_name = match Path::new(trained_on.base_name()) {
        path if path.exists() => absolute(path).display().to_string(),
        _ => trained_on.base_name().to_owned(),
    };
    let job = Job {
        name: &name,
        path: &adapter_path,
        adapter: &adapter,
        base_name: &base_name,
        base_given: trained_on.given,
        original: choice.original,
        quantization,
        base: &base,
        chat_template: template.as_deref(),
        stop: &stop,
        options: request.options,
    };
    let mut exports = Vec::new();
    for (target, folder) in targets.into_iter().zip(&folders) {
        exports.push(export_one(target, &job, folder, request.overwrite, observer)?);
    }
    if request.verify {
        compare(request, choice, &mut exports, observer)?;
    }
    Ok(ExportSummary { exports, seconds: start.elapsed().as_secs_f64() })
}

/// The targets, each once.
fn targets(request: &ExportRequest) -> Result<Vec<&'static Target>> {
    let mut targets: Vec<&Target> = Vec::new();
    for name in &request.targets {
        let target = Target::find(name)?;
        if !targets.iter().any(|other| other.name == target.name) {
            targets.push(target);
        }
    }
    Ok(targets)
}

/// Compares what was written with base and adapter.
fn compare(
    request: &ExportRequest,
    BaseChoice { model, original }: BaseChoice,
    exports: &mut [ExportedTarget],
    observer: &mut dyn Observer,
) -> Result<()> {
    let place = TrainedBase {
        model: model.clone().filter(|_| !original),
        fallback: model.filter(|_| original),
        offline: request.offline,
    };
    let folders: Vec<&Path> = exports.iter().map(|export| export.folder.as_path()).collect();
    let verified = verify_all(&folders, &request.adapter, &place, &[], observer).map_err(|error| {
        let help = error.help().map(|help| format!("{help}; ")).unwrap_or_default();
        error.with_help(format!("{help}what was written stays there, not compared"))
    })?;
    for (export, verified) in exports.iter_mut().zip(verified) {
        export.verified = Some(verified);
    }
    Ok(())
}

fn export_one(
    target: &Target,
    job: &Job<'_>,
    folder: &Path,
    overwrite: bool,
    observer: &mut dyn Observer,
) -> Result<ExportedTarget> {
    let start = Instant::now();
    let what = format!("writing {}", folder.display());
    observer.event(&Event::Bytes { what: what.clone(), done: 0, total: 0 });
    let Exported { folder, manifest, notes } = export::export(target, job, folder, overwrite, &mut |done, total| {
        observer.event(&Event::Bytes { what: what.clone(), done, total });
        !observer.stop_requested()
    })?;
    for note in &notes {
        observer.event(&Event::Note(format!("{}: {note}", target.name)));
    }
    Ok(ExportedTarget {
        folder,
        manifest,
        name: job.name.to_owned(),
        r: job.adapter.config.lora.r,
        base_id: hub_id(&job.adapter.config.base_model_name_or_path).map(String::from),
        notes,
        verified: None,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// A path that leads to the same place from elsewhere.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// An export that replaces a folder must not remove what it is made from.
fn keeps_inputs(folder: &Path, inputs: &[&Path]) -> Result<()> {
    let Ok(out) = folder.canonicalize() else { return Ok(()) };
    for input in inputs {
        if input.canonicalize().is_ok_and(|input| input.starts_with(&out)) {
            return Err(Error::file(folder, format!("holds {}, which is exported from", input.display()))
                .with_help("name another folder with `--out`"));
        }
    }
    Ok(())
}

/// Options that no target takes were meant for something.
fn check_options(request: &ExportRequest) -> Result<()> {
    let any = |names: &[&str]| request.targets.iter().any(|target| names.contains(&target.as_str()));
    if request.options.quantize.is_some() && !any(&["gguf", "ollama"]) {
        return Err(Error::invalid("--quantize is for merged GGUF files, and none is asked for")
            .with_help("add `--to gguf`; --dtype is the type of adapters and of `merged`"));
    }
    if request.options.dtype == Some(FloatType::BF16) && any(&["gguf-adapter", "ollama-adapter"]) {
        return Err(Error::invalid("--dtype: llama.cpp's adapters are f32 or f16, not bf16"));
    }
    if request.options.dtype.is_some() && !any(&["peft", "merged", "gguf-adapter", "ollama-adapter", "mlx"]) {
        return Err(Error::invalid("--dtype is for adapters and for `--to merged`, and none is asked for")
            .with_help("the type of a merged GGUF file is --quantize: `--quantize bf16`"));
    }
    if request.options.prefix.is_some() && !any(&["peft"]) {
        return Err(Error::invalid("--prefix is for `--to peft`, and that is not asked for")
            .with_help("add `peft` to `--to`, or leave `--prefix` out"));
    }
    Ok(())
}

/// The texts of the tokens that end an answer.
fn stop_texts(base: &Base, template: Option<&str>) -> Result<Vec<String>> {
    let encoder = encoder(base, template, now())?;
    let mut ids = ends(base, &encoder);
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| encoder.decode(&[id], false)).collect()
}

/// The adapter's name: that of its folder or file.
fn name_of(adapter: &Path) -> Result<String> {
    let path = adapter.canonicalize().map_err(|_| {
        Error::file(adapter, "no such folder or file").with_help("name a folder that `train` wrote, or another adapter")
    })?;
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    Ok(name.map_or("adapter".into(), |name| name.to_string_lossy().into_owned()))
}

fn folder_of(request: &ExportRequest, name: &str, target: &Target) -> PathBuf {
    // A link stays, and what it leads to is replaced.
    let real = |out: &Path| out.canonicalize().unwrap_or_else(|_| out.to_owned());
    match &request.out {
        Some(out) if request.targets.len() == 1 && (out.is_symlink() || out.file_name().is_none()) => real(out),
        Some(out) if request.targets.len() == 1 => out.clone(),
        Some(out) => out.join(target.name),
        None => Path::new("exports").join(name).join(target.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_a_place_or_a_kind_or_both() {
        let choice = |text: &str| {
            let choice = BaseChoice::parse(Some(text));
            (choice.model, choice.original)
        };
        assert_eq!(choice("trained"), (None, false));
        assert_eq!(choice("original"), (None, true));
        assert_eq!(choice("original:org/name"), (Some("org/name".into()), true));
        assert_eq!(choice("models/x.gguf"), (Some("models/x.gguf".into()), false));
    }
}
