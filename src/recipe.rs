//! The recipe: what was typed, and what it means.
//!
//! [`RecipeFile`] mirrors the YAML; [`Recipe`] is valid by construction. This module assembles the config structs of the
//! rooms below and answers every mistake with its place in the file; what a key means and which values it takes belong to
//! the struct that holds it.

mod diagnose;
mod foreign;
mod keys;
mod locate;
mod paths;
mod short;
mod source;
mod unknown;

use crate::adapter::AdapterSummary;
use crate::data::DataConfig;
use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::eval::EvaluationConfig;
use crate::export::ExportConfig;
use crate::hub::{BaseConfig, HubConfig};
use crate::nn::{LoraConfig, QuantizationConfig};
use crate::objectives::ObjectiveConfig;
use crate::ops::ComputeConfig;
use crate::train::{MetricForBest, TrainingConfig};
use serde::{Deserialize, Serialize};
use serde_yaml::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What may be typed into a recipe, key by key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// The run's name; by default the recipe file's name without its ending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The frozen model.
    pub base: BaseConfig,
    /// How its weights are held in memory.
    #[serde(default)]
    pub quantization: QuantizationConfig,
    /// The adapter.
    #[serde(default)]
    pub lora: LoraConfig,
    /// What a step minimises.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// The rows.
    pub data: DataConfig,
    /// The optimizer, its schedule, and what is saved when.
    #[serde(default)]
    pub training: TrainingConfig,
    /// What is measured of the adapter besides the held-out rows.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// What the adapter is made for.
    #[serde(default)]
    pub export: ExportConfig,
    /// Where the arithmetic runs.
    #[serde(default)]
    pub device: DeviceConfig,
    /// The type of products and activations.
    #[serde(default)]
    pub compute: ComputeConfig,
    /// Where the adapter goes; by default `adapters/<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_dir: Option<PathBuf>,
    /// Where it is uploaded after training; nowhere by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubConfig>,
}

/// A recipe whose every value has been checked, as far as that goes without model and data.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The run's name.
    pub name: String,
    /// The frozen model.
    pub base: BaseConfig,
    /// How its weights are held in memory.
    pub quantization: QuantizationConfig,
    /// The adapter.
    pub lora: LoraConfig,
    /// What a step minimises.
    pub objective: ObjectiveConfig,
    /// The rows.
    pub data: DataConfig,
    /// The optimizer, its schedule, and what is saved when.
    pub training: TrainingConfig,
    /// What is measured of the adapter besides the held-out rows.
    pub evaluation: EvaluationConfig,
    /// What the adapter is made for.
    pub export: ExportConfig,
    /// Where the arithmetic runs.
    pub device: DeviceConfig,
    /// The type of products and activations.
    pub compute: ComputeConfig,
    /// Where the adapter goes.
    pub output_dir: PathBuf,
    /// Where it is uploaded after training.
    pub hub: Option<HubConfig>,
    /// The file that the recipe was read from.
    pub path: PathBuf,
}

/// The most characters of a name, as on the Hub.
const MAX_NAME: usize = 96;

impl Recipe {
    /// Reads a recipe and applies overrides, `section.key=value` each, in order.
    ///
    /// # Errors
    /// Every mistake is an [`Error::Located`] at its line (or at its override, with the path `--set`); a file that cannot
    /// be read is an [`Error::File`] or [`Error::Io`].
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::parse(&source::read(path)?, path, overrides)
    }

    /// As [`Recipe::load`], from a text; `path` is what errors name, and gives the default name.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self> {
        let mut source = source::Source::new(path, text);
        let mut root = diagnose::parse(&source)?;
        source.apply(overrides, &mut root)?;
        unknown::check(&root, &source)?;
        drop_empty_sections(&mut root);
        paths::settle(&mut root).map_err(|error| diagnose::out_of_range(&source, error))?;
        take_from_adapter(&mut root).map_err(|error| diagnose::out_of_range(&source, error))?;
        let file: RecipeFile = serde_path_to_error::deserialize(root.clone())
            .map_err(|error| diagnose::wrong_value(&source, &root, &error.path().to_string(), error.inner()))?;
        Self::from_file(file, path)
            .and_then(|recipe| type_is_named(&root).map(|()| recipe))
            .map_err(|error| diagnose::out_of_range(&source, error))
    }

    /// The recipe that `file` means; `path` gives the default name.
    ///
    /// # Errors
    /// Names the key (`section.key: ...`) and the values that it takes.
    pub fn from_file(file: RecipeFile, path: &Path) -> Result<Self> {
        let name = match file.name {
            Some(name) => checked_name(name)?,
            None => default_name(path)?,
        };
        let output_dir = file.output_dir.unwrap_or_else(|| Path::new("adapters").join(&name));
        if output_dir.as_os_str().is_empty() {
            return Err(Error::invalid("output_dir: is empty").with_help("give a folder, or delete the line"));
        }
        if file.base.model.trim().is_empty() {
            return Err(Error::invalid("base.model: is empty").with_help("give a Hub id, a folder, or a .gguf file"));
        }
        file.lora.validate()?;
        file.objective.validate()?;
        file.data.validate()?;
        file.training.validate()?;
        let of_task =
            file.training.metric_for_best_model.as_ref().filter(|metric| matches!(metric, MetricForBest::Task(_)));
        file.evaluation.validate(of_task.map(MetricForBest::key).as_deref())?;
        file.hub.as_ref().map_or(Ok(()), HubConfig::validate)?;
        Ok(Self {
            name,
            base: file.base,
            quantization: file.quantization,
            lora: file.lora,
            objective: file.objective,
            data: file.data,
            training: file.training,
            evaluation: file.evaluation,
            export: file.export,
            device: file.device,
            compute: file.compute,
            output_dir,
            hub: file.hub,
            path: path.to_owned(),
        })
    }

    /// The recipe as a file with every value written out.
    pub fn to_file(&self) -> RecipeFile {
        RecipeFile {
            name: Some(self.name.clone()),
            base: self.base.clone(),
            quantization: self.quantization,
            lora: self.lora.clone(),
            objective: self.objective.clone(),
            data: self.data.clone(),
            training: self.training.clone(),
            evaluation: self.evaluation.clone(),
            export: self.export.clone(),
            device: self.device,
            compute: self.compute,
            output_dir: Some(self.output_dir.clone()),
            hub: self.hub.clone(),
        }
    }

    /// The recipe as YAML, every key with its value; it loads again to the same recipe. Keys that are unset and have no
    /// default, such as `training.max_steps`, are left out.
    ///
    /// # Errors
    /// When a path in it is not Unicode.
    pub fn to_yaml(&self) -> Result<String> {
        let failed = |error: serde_yaml::Error| Error::invalid(format!("cannot write the recipe: {error}"));
        let mut value = serde_yaml::to_value(self.to_file()).map_err(failed)?;
        short::whole_numbers(&mut value);
        serde_yaml::to_string(&value).map_err(failed)
    }

    /// The keys of a kind whose values differ from those of an `earlier` recipe, each as `training.seed: 43 (was 42)`; an
    /// unset key shows as `null`.
    pub fn differences(&self, earlier: &Self, kind: KeyKind) -> Vec<String> {
        let (now, before) = (self.values(kind), earlier.values(kind));
        let mut keys: Vec<&String> = now.iter().chain(&before).map(|(key, _)| key).collect();
        let mut seen = std::collections::HashSet::new();
        keys.retain(|key| seen.insert(*key));
        let value = |values: &[(String, String)], key: &String| {
            values.iter().find(|(name, _)| name == key).map_or("null".to_owned(), |(_, value)| value.clone())
        };
        keys.into_iter()
            .map(|key| (key, value(&now, key), value(&before, key)))
            .filter(|(_, now, before)| now != before)
            .map(|(key, now, before)| format!("{key}: {now} (was {before})"))
            .collect()
    }

    /// SHA-256, in hexadecimal, of every key and value that decides a step, the schedule apart.
    pub fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        for (key, value) in self.values(KeyKind::Result) {
            hasher.update(format!("{key}: {value}\n"));
        }
        format!("{:x}", hasher.finalize())
    }

    /// SHA-256, in hexadecimal, of the whole recipe: of what [`Self::to_yaml`] gives, which stands in the output folder.
    ///
    /// # Errors
    /// As [`Self::to_yaml`].
    pub fn sha256(&self) -> Result<String> {
        Ok(format!("{:x}", Sha256::digest(self.to_yaml()?)))
    }

    /// The dotted keys of a kind, with their values as JSON, in the order of the structs.
    fn values(&self, kind: KeyKind) -> Vec<(String, String)> {
        let mut values = Vec::new();
        // A path that is not Unicode cannot be in a recipe, whose text is UTF-8.
        let root = serde_yaml::to_value(self.to_file()).unwrap_or(Value::Null);
        flatten("", &root, &mut values);
        values.retain(|(key, _)| KeyKind::of(key) == kind);
        values
    }
}

/// What a change of a key means for a run that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// It decides the steps: a run goes on only under the same.
    Result,
    /// It decides how long the run is and the learning rates: it may change where that changes no step that is done.
    Schedule,
    /// It decides what is measured, saved or uploaded, or changes no bit of the result.
    Free,
}

impl KeyKind {
    fn of(key: &str) -> Self {
        const SCHEDULE: &[&str] =
            &["learning_rate", "lr_scheduler", "warmup_ratio", "warmup_steps", "max_steps", "epochs"];
        const FREE: &[&str] = &[
            "gradient_checkpointing",
            "max_memory_mb",
            "save_steps",
            "save_total_limit",
            "eval_steps",
            "metric_for_best_model",
            "early_stopping_patience",
            "load_best_model_at_end",
            "max_skipped_steps",
            "fail_on_divergence",
        ];
        match key.strip_prefix("training.") {
            Some(key) if SCHEDULE.contains(&key) => Self::Schedule,
            Some(key) if FREE.contains(&key) => Self::Free,
            None if matches!(key, "name" | "output_dir" | "hub" | "data.cache" | "data.sample_in_card" | "export") => {
                Self::Free
            }
            None if ["hub.", "export.", "evaluation."].iter().any(|section| key.starts_with(section)) => Self::Free,
            _ => Self::Result,
        }
    }
}

fn flatten(path: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Mapping(mapping) => {
            for (key, value) in mapping {
                flatten(&locate::join(path, key.as_str().unwrap_or_default()), value, into);
            }
        }
        other => into.push((path.to_owned(), serde_json::to_string(other).unwrap_or_default())),
    }
}

/// A section whose keys are all commented out is as good as one that is not there.
fn drop_empty_sections(root: &mut Value) {
    if let Value::Mapping(mapping) = root {
        mapping.retain(|key, value| {
            !(value.is_null()
                && key.as_str().is_some_and(|key| matches!(keys::kind_at(key), Some(keys::Kind::Section(_)))))
        });
    }
}

/// Settings of an objective mean nothing without its type, and the default has none: a recipe that has them meant another.
fn type_is_named(root: &Value) -> Result<()> {
    let Some(Value::Mapping(objective)) = root.get("objective") else { return Ok(()) };
    let first = objective.keys().find_map(Value::as_str).filter(|_| !objective.contains_key("type"));
    let Some(key) = first else { return Ok(()) };
    let kinds: Vec<String> =
        ObjectiveConfig::kinds_with(key).iter().map(|kind| format!("`type: {}`", kind.name())).collect();
    let default = ObjectiveConfig::default().kind.name();
    Err(Error::invalid(format!(
        "objective.{key}: does nothing without `objective.type`, which is `{default}` by default"
    ))
    .with_help(format!("write {} in `objective`", kinds.join(" or "))))
}

/// What of `lora` goes without saying under `lora.init_from` is the adapter's own.
fn take_from_adapter(root: &mut Value) -> Result<()> {
    let Some(Value::Mapping(lora)) = root.get_mut("lora") else { return Ok(()) };
    let Some(path) = lora.get("init_from").and_then(Value::as_str).map(PathBuf::from) else { return Ok(()) };
    if ["r", "lora_alpha", "use_rslora", "target_modules"].iter().all(|key| lora.contains_key(*key)) {
        return Ok(());
    }
    let its = AdapterSummary::read(&path).map_err(|error| {
        let help = error.help().map(str::to_owned);
        let located = Error::invalid(format!("lora.init_from: {error}"));
        if let Some(help) = help { located.with_help(help) } else { located }
    })?;
    let its = serde_yaml::to_value(&its.lora).map_err(|error| Error::invalid(format!("internal: {error}")))?;
    for key in ["r", "lora_alpha", "use_rslora", "target_modules"] {
        if let Some(value) = its.get(key).filter(|_| !lora.contains_key(key)) {
            lora.insert(key.into(), value.clone());
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.chars().all(fits)
}

fn checked_name(name: String) -> Result<String> {
    if is_name(&name) {
        return Ok(name);
    }
    Err(Error::invalid(format!(
        "name: `{}` is not a name for a folder",
        name.chars().take(MAX_NAME).collect::<String>()
    ))
    .with_help(NAME_HELP))
}

const NAME_HELP: &str =
    "a name holds letters, digits, `.`, `_` and `-`, does not begin with `.`, and has at most 96 characters";

fn default_name(path: &Path) -> Result<String> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if is_name(&stem) {
        return Ok(stem);
    }
    let mended: String = stem.chars().map(|c| if is_name(&c.to_string()) { c } else { '-' }).take(MAX_NAME).collect();
    let mended = mended.trim_matches('-');
    let mended = if is_name(mended) { mended } else { "my-recipe" };
    Err(Error::invalid(format!("the file's name, `{stem}`, cannot be the run's name"))
        .with_help(format!("add `name: {mended}`; {NAME_HELP}")))
}

#[cfg(test)]
mod tests;
