//! Base models by name (a folder, a GGUF file, or an id on the Hugging Face Hub), the Hub's datasets, and folders that go
//! there.
//!
//! It owns turning what a recipe calls its base or its data into paths on this disk: through the Hub's ordinary cache, with
//! no more files than are needed, and without the network when told so; and uploading a folder in one commit. It does not
//! own reading what lies at those paths, nor what is in the folder.

mod address;
mod cache;
mod card;
mod config;
mod dataset;
#[cfg(test)]
mod dataset_tests;
mod environment;
mod explain;
mod folder;
mod hash;
mod layout;
mod lfs;
mod line;
mod model;
mod plan;
mod readme;
mod remote;
mod session;
#[cfg(test)]
mod stand_in;
#[cfg(test)]
mod tests;
mod token;
mod upload;
#[cfg(test)]
mod upload_tests;

pub use config::HubConfig;
pub use dataset::{DatasetConfig, fetch_dataset};
pub use environment::settled;
pub use folder::LeftOut;
pub use plan::{PlannedFile, UploadPlan, plan};
pub use upload::{UploadOptions, UploadProgress, UploadSummary, UploadedFile, check_access, upload};

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

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

/// How to fetch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchOptions {
    /// Never touch the network: what is not on this disk is an error.
    pub offline: bool,
}

impl FetchOptions {
    /// Offline when asked for, or when `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` is `1`, `true`, `yes` or `on`.
    pub fn from_env(offline: bool) -> Self {
        Self { offline: offline || environment::is_offline(&variable) }
    }

    /// As [`Self::from_env`], for datasets: `HF_DATASETS_OFFLINE` goes before both.
    pub fn for_data(offline: bool) -> Self {
        Self { offline: offline || environment::is_offline_for_data(&variable) }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Refuses an address on the Hub that leads elsewhere.
///
/// # Errors
/// When it has parts such as `..`.
pub fn check_address(text: &str) -> Result<()> {
    address::check(text, variable("HF_ENDPOINT").as_deref())
}

/// A base's name as recipes have it: of an address on the Hub its id (`org/name`, or `org/name@revision`), and the file that the
/// address names. Other names stay as they are, but for a slash at the end of an id.
pub fn model_id(text: &str) -> (String, Option<String>) {
    if Path::new(text).exists() {
        return (text.to_owned(), None);
    }
    if let Some(address) = address::read(Kind::Model, text, variable("HF_ENDPOINT").as_deref()) {
        return (address.id, address.file);
    }
    let short = text.trim().trim_end_matches('/');
    (if parse(short).is_some() { short } else { text }.to_owned(), None)
}

/// A dataset's name as recipes have it: of an address on the Hub its id.
pub fn dataset_id(text: &str) -> String {
    let endpoint = variable("HF_ENDPOINT");
    if let Some(address) = address::read(Kind::Dataset, text, endpoint.as_deref()) {
        return address.id;
    }
    let short = text.trim().trim_end_matches('/');
    let short = short.strip_prefix("datasets/").filter(|rest| rest.contains('/')).unwrap_or(short);
    if parse_id(Kind::Dataset, short).is_some() { short } else { text }.to_owned()
}

/// How far the download of one file has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchProgress {
    /// The file's name in the repository.
    pub file: String,
    /// Bytes that are here.
    pub done: u64,
    /// Bytes in all; 0 where the Hub does not say.
    pub total: u64,
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Dataset,
}

impl Kind {
    const fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }

    /// The beginning of the folder in the cache.
    const fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before the name in an address.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }

    /// What `hf download` needs besides the name.
    const fn download_flag(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => " --repo-type dataset",
        }
    }

    /// What can be done without the Hub.
    const fn instead(self) -> &'static str {
        match self {
            Self::Model => "name a local folder as base",
            Self::Dataset => "name local files as `path` in place of `hub`",
        }
    }
}

/// A repository on the Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reference {
    kind: Kind,
    /// Empty for the few old datasets that have none.
    owner: String,
    name: String,
    /// A branch, a tag or a commit.
    revision: String,
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.owner.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.owner, self.name) }
    }
}

/// What a base reference resolves to: a path on this disk, after whatever had to be downloaded.
///
/// A path that exists is taken as it is (with `file`, that file in the folder). Anything else of the form `org/name` or
/// `org/name@revision` is a model on the Hub; `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_CACHE` are honoured.
///
/// # Errors
/// When the path is not there, or the Hub does not have the model, does not give it, or cannot be reached.
pub fn fetch(config: &BaseConfig, options: &FetchOptions, progress: &mut dyn FnMut(FetchProgress)) -> Result<PathBuf> {
    fetch_from(config, options, progress, &Place::default())
}

/// Where the Hub and the cache are; `None` for where the environment says.
#[derive(Debug, Default)]
struct Place {
    endpoint: Option<String>,
    cache: Option<PathBuf>,
}

fn fetch_from(
    config: &BaseConfig,
    options: &FetchOptions,
    progress: &mut dyn FnMut(FetchProgress),
    place: &Place,
) -> Result<PathBuf> {
    // A recipe's paths are expanded when it is read; the command line's by the shell, but for `--base=~/x`.
    let expanded = crate::fs::expand(&config.model, &variable);
    let (model, file) = model_id(if Path::new(&config.model).exists() { &config.model } else { &expanded });
    check_address(&expanded)?;
    let config = BaseConfig { model, file: config.file.clone().or(file) };
    let path = Path::new(&config.model);
    if path.exists() {
        return local(path, config.file.as_deref());
    }
    let Some(reference) = parse(&config.model) else { return Err(not_there(&config.model)) };
    if let Some(file) = &config.file {
        check_file_name(file)?;
    }
    let cache = cache::Cache::of(&reference, place.cache.clone().unwrap_or_else(hf_hub::resolve_cache_dir));
    let fetched = if options.offline {
        model::find(&cache, config.file.as_deref())
    } else {
        model::fetch(&reference, config.file.as_deref(), &cache, place.endpoint.as_deref(), progress)
    };
    fetched.map_err(|error| or_a_folder(error, path))
}

/// `models/llama` reads as a Hub id; with a folder `models` here, another folder in it may have been meant.
fn or_a_folder(error: Error, path: &Path) -> Error {
    if !path.parent().is_some_and(Path::is_dir) {
        return error;
    }
    let near = near(path);
    let guess = if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(" or ")) };
    let help = error.help().unwrap_or_default().to_string();
    error.with_help(format!("{help}. There is no folder `{}` here either{guess}", path.display()))
}

fn local(path: &Path, file: Option<&str>) -> Result<PathBuf> {
    let Some(file) = file else { return Ok(path.to_path_buf()) };
    let inside = path.join(file);
    if path.is_dir() && inside.is_file() {
        return Ok(inside);
    }
    Err(Error::file(path, format!("base.file: there is no `{file}` in it"))
        .with_help("`file` names a GGUF file in a folder or Hub repository; leave it out for a model in safetensors"))
}

/// `org/name` or `org/name@revision`; `None` for what can only be a path.
fn parse(model: &str) -> Option<Reference> {
    let reference = parse_id(Kind::Model, model)?;
    let gguf = Path::new(&reference.name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    (!gguf && !reference.owner.is_empty()).then_some(reference)
}

/// `org/name`, `name`, or one of them with `@revision`.
fn parse_id(kind: Kind, text: &str) -> Option<Reference> {
    let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
    let (owner, name) = id.split_once('/').map_or((None, id), |(owner, name)| (Some(owner), name));
    let is_name = |part: &str| {
        let begins = part.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        begins && part.len() <= 96 && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    // A revision becomes part of a path in the cache.
    (owner.is_none_or(is_name) && is_name(name) && is_plain(revision)).then(|| Reference {
        kind,
        owner: owner.unwrap_or_default().into(),
        name: name.into(),
        revision: revision.into(),
    })
}

/// Whether a path has only plain parts, and so stays in the folder to which it is joined.
fn is_plain(path: &str) -> bool {
    path.split('/').all(|part| !part.is_empty() && part != ".." && part != "." && !part.contains(['\\', '\0']))
}

/// A file in a repository: only plain parts, for it becomes a path in the cache.
fn check_file_name(file: &str) -> Result<()> {
    if is_plain(file) && Path::new(file).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Ok(());
    }
    Err(Error::invalid(format!("base.file: `{file}` is not the name of a GGUF file in a repository"))
        .with_help("for example `file: model.Q4_K_M.gguf`; leave it out for a model in safetensors"))
}

/// The error for a path that leads nowhere, with what lies near.
fn not_there(model: &str) -> Error {
    let path = Path::new(model);
    let near = near(path);
    let here = std::env::current_dir().map(|folder| folder.display().to_string()).unwrap_or_default();
    let help = if !near.is_empty() {
        format!("did you mean {}?", near.join(" or "))
    } else if let Some(id) = meant(model) {
        format!("for the model on the Hub write `{id}`")
    } else if path.is_absolute() {
        "a base is a folder, a .gguf file, or a Hub id such as org/name".into()
    } else {
        format!("relative paths begin at {here}; a base is a folder, a .gguf file, or a Hub id such as org/name")
    };
    Error::invalid(format!("base.model: no such file or folder: {model}")).with_help(help)
}

/// The id in what looks like one: `models/org/name`, as the Hub's own interface writes it, or `org/name:file`.
fn meant(model: &str) -> Option<String> {
    let rest = model.strip_prefix("models/").or_else(|| model.strip_prefix("api/models/"))?;
    parse(rest.trim_end_matches('/')).map(|reference| match reference.revision.as_str() {
        "main" => reference.to_string(),
        revision => format!("{reference}@{revision}"),
    })
}

/// What lies beside a missing path and has a name like it.
fn near(path: &Path) -> Vec<String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let names = std::fs::read_dir(parent).into_iter().flatten().flatten().take(10_000);
    let mut near: Vec<(f64, String)> = names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .map(|name| (strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, name)| parent.join(name).display().to_string()).collect()
}
