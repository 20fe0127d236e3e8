//! An adapter in the form that a server takes.
//!
//! It owns what is written for whom: folders and files, and what each server would refuse. It does not own reading adapters
//! ([`crate::adapter`]), nor sending anything anywhere ([`crate::hub`]). One file and one line of [`TARGETS`] add a target.

mod config;
pub mod gguf;
pub mod lint;
mod manifest;
mod merged;
mod merged_weights;
mod mlx;
pub mod ollama;
mod output;
mod peft;
mod tokenizer_files;
mod verify;

pub use config::ExportConfig;
pub use manifest::{MANIFEST, Manifest};
pub use merged_weights::MergedWeights;
pub use output::{FileEntry, Output, Watch};
pub use tokenizer_files::{TOKENIZER_FILES, tokenizer_files};
pub use verify::{Difference, Reference, allowed_kl, open_export};

use crate::adapter::AdapterBundle;
use crate::error::{Error, Result};
use crate::fs::write_folder_atomic;
use crate::nn::{QuantizationConfig, QuantizationType};
use crate::weight_type::WeightType;
use crate::weights::Base;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A form that an adapter can be written in.
#[derive(Debug)]
pub struct Target {
    /// Its name: `peft`, `merged` and so on.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    export: fn(&Job<'_>, &mut Output<'_>) -> Result<()>,
}

/// The targets.
pub const TARGETS: &[Target] = &[
    Target { name: "peft", about: "PEFT's folder, which most servers take beside a base", export: peft::export },
    Target { name: "merged", about: "a whole model as a Hugging Face folder, in safetensors", export: merged::export },
    Target { name: "gguf", about: "a whole model as one GGUF file, for llama.cpp", export: gguf::export_merged },
    Target {
        name: "gguf-adapter",
        about: "the adapter as a GGUF file, to lay on a base's",
        export: gguf::export_adapter,
    },
    Target { name: "ollama", about: "the merged GGUF file with Ollama's Modelfile", export: ollama::export_merged },
    Target {
        name: "ollama-adapter",
        about: "the adapter's GGUF file with a Modelfile that lays it on the base",
        export: ollama::export_adapter,
    },
    Target { name: "mlx", about: "mlx-lm's adapter folder", export: mlx::export },
];

impl Target {
    /// Whether it is a GGUF file, which needs a name for the architecture.
    pub fn is_gguf(&self) -> bool {
        ["gguf", "ollama"].iter().any(|kind| self.name.starts_with(kind))
    }

    /// The target of this name.
    ///
    /// # Errors
    /// When there is none; all are listed.
    pub fn find(name: &str) -> Result<&'static Self> {
        TARGETS.iter().find(|target| target.name == name).ok_or_else(|| {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            Error::invalid(format!("there is no target `{name}`")).with_help(format!("targets: {}", names.join(", ")))
        })
    }
}

/// A floating type for what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    BF16,
}

impl FloatType {
    /// The type of weights.
    pub const fn weight_type(self) -> WeightType {
        match self {
            Self::F32 => WeightType::F32,
            Self::F16 => WeightType::F16,
            Self::BF16 => WeightType::BF16,
        }
    }

    /// candle's type.
    pub const fn candle(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::F16 => candle_core::DType::F16,
            Self::BF16 => candle_core::DType::BF16,
        }
    }
}

/// The type of a GGUF file's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// A floating type.
    Float(FloatType),
    /// Blocks.
    Blocks(QuantizationType),
}

impl GgufType {
    /// The type of weights.
    pub fn weight_type(self) -> WeightType {
        match self {
            Self::Float(float) => float.weight_type(),
            Self::Blocks(kind) => kind.weight_type().unwrap_or(WeightType::Q8_0),
        }
    }
}

/// A type's name as people write it: `q4_k`, `bf16`.
pub fn type_name(dtype: WeightType) -> String {
    let name = format!("{dtype:?}").to_lowercase();
    name.strip_suffix('k').map_or_else(|| name.clone(), |stem| format!("{stem}_k"))
}

/// The names that a PEFT adapter's modules have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefix {
    /// Those of a text-only model: `model.layers.0…`.
    Text,
    /// Those of a multimodal model: `model.language_model.layers.0…`.
    Multimodal,
}

/// What a user chooses of an export.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExportOptions {
    /// The type of floating weights; by default f32 for adapters, and for merged models what the base has (bf16 of a
    /// quantized one).
    pub dtype: Option<FloatType>,
    /// The type of a GGUF file's matrices; by default `q8_0`, and of what the adapter leaves alone that of a GGUF base.
    pub quantize: Option<GgufType>,
    /// The names that a PEFT adapter's modules have; by default those of the base's own class.
    pub prefix: Option<Prefix>,
}

/// What is to be exported.
pub struct Job<'a> {
    /// The adapter's name, which files take.
    pub name: &'a str,
    /// Its folder or file.
    pub path: &'a Path,
    /// The adapter.
    pub adapter: &'a AdapterBundle,
    /// The base as it was named.
    pub base_name: &'a str,
    /// Whether somebody named it, not the adapter.
    pub base_given: bool,
    /// Whether `quantization` is not that of the training.
    pub original: bool,
    /// How the base's weights are held for a merge.
    pub quantization: QuantizationConfig,
    /// The base.
    pub base: &'a Base,
    /// A chat template that takes precedence over the base's.
    pub chat_template: Option<&'a str>,
    /// The texts of the tokens that end an answer.
    pub stop: &'a [String],
    /// What the user chose.
    pub options: ExportOptions,
}

impl<'a> Job<'a> {
    /// The weights with the adapter merged in.
    ///
    /// # Errors
    /// As [`MergedWeights::new`].
    pub fn merged(&self) -> Result<MergedWeights<'a>> {
        MergedWeights::new(self.base, self.quantization, self.adapter)
    }

    /// The chat template: the adapter's, or the base's.
    pub fn chat_template(&self) -> Option<&'a str> {
        self.chat_template.or(self.base.chat_template())
    }
}

/// What an export wrote.
#[derive(Debug, Clone)]
pub struct Exported {
    /// The folder.
    pub folder: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Whether an export may be written to `folder`.
///
/// # Errors
/// When something stands there that is not an earlier export, or `overwrite` is not set.
pub fn look(folder: &Path, overwrite: bool) -> Result<()> {
    if folder.file_name().is_none() {
        return Err(
            Error::file(folder, "cannot be replaced by an export").with_help("name a folder in it with `--out`")
        );
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::file(folder, "is not a folder, or a part of the path is a file")
                .with_help("name another folder with `--out`"));
        }
        Err(error) => return Err(Error::io("read", folder)(error)),
    };
    if !entries {
        return Ok(());
    }
    if !folder.join(MANIFEST).is_file() {
        return Err(Error::file(folder, "is not empty, and holds no export of Equipoise")
            .with_help("name another folder with `--out`, or empty this one"));
    }
    if !overwrite {
        return Err(Error::file(folder, "holds an earlier export")
            .with_help("`--overwrite` replaces it; `--out FOLDER` keeps it and writes elsewhere"));
    }
    // Files that are not the export's are removed only if the user asks for it.
    let manifest = Manifest::read(folder)?;
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != MANIFEST && !manifest.files.iter().any(|file| file.name == name) {
            return Err(Error::file(folder, format!("holds `{name}` too, which the earlier export did not write"))
                .with_help("move it, or name another folder with `--out`"));
        }
    }
    Ok(())
}

/// Writes one target into `folder`: whole or not at all.
///
/// # Errors
/// As [`look`]; when the base cannot be read, the adapter cannot be written in this form, or the disk refuses.
pub fn export(
    target: &Target,
    job: &Job<'_>,
    folder: &Path,
    overwrite: bool,
    watch: &mut Watch<'_>,
) -> Result<Exported> {
    look(folder, overwrite)?;
    let (mut written, mut notes) = (None, Vec::new());
    write_folder_atomic(folder, |temporary| {
        let mut out = Output::new(temporary, folder, watch);
        (target.export)(job, &mut out)?;
        let manifest = Manifest {
            equipoise: env!("CARGO_PKG_VERSION").to_owned(),
            target: target.name.to_owned(),
            adapter: job.path.to_owned(),
            base: job.base_name.to_owned(),
            base_given: job.base_given,
            original: job.original,
            quantization: job.quantization,
            types: std::mem::take(&mut out.types).into_iter().collect(),
            files: std::mem::take(&mut out.files),
        };
        out.small(MANIFEST, manifest.to_json().as_bytes())?;
        // Another export may have been faster.
        look(folder, overwrite)?;
        (written, notes) = (Some(manifest), std::mem::take(&mut out.notes));
        Ok(())
    })?;
    let manifest = written.ok_or_else(|| Error::invalid("internal: the folder was not filled"))?;
    Ok(Exported { folder: folder.to_owned(), manifest, notes })
}

/// Counts of types, for the manifest.
type Types = BTreeMap<String, usize>;
