//! Exports held against base and adapter, as they were trained.

use super::export::BaseChoice;
use super::output::now;
use super::prepare::{encoder, open_device};
use super::trained_on::TrainedOn;
use crate::data::{Encoder, Message};
use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::export::{Difference, Manifest, Reference, allowed_kl, open_export};
use crate::models;
use crate::train::{Event, Observer};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is read where nobody gives prompts: short texts of the kind that adapters here are made for, and some that are not.
const PROMPTS: &[&str] = &[
    "What are the symptoms of iron deficiency anemia, and how is it treated?",
    "Define the biological process term.\n\nmitotic spindle assembly",
    "Which process do these genes share? BRCA1, RAD51, XRCC2, PALB2, BRCA2",
    "A 54-year-old man presents with crushing chest pain that radiates to the left arm. What is the next step?",
    "The capital of France is Paris. Write one sentence about the river that runs through it.",
    "Explain how metformin lowers blood glucose in type 2 diabetes mellitus.",
];

/// The most tokens of a prompt that are compared.
const TOKENS: usize = 128;

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// Folders that `export` wrote.
    pub exports: Vec<PathBuf>,
    /// Another place of the adapter than the manifest names.
    pub adapter: Option<PathBuf>,
    /// Another place of the base.
    pub base: Option<String>,
    /// Texts to compare on; the built-in ones if there is none.
    pub prompts: Vec<String>,
    /// Fail past this mean KL, in place of what the types allow.
    pub max_kl: Option<f64>,
    /// Fetch nothing.
    pub offline: bool,
}

/// The outcome for one export.
#[derive(Debug, Clone, Serialize)]
pub struct Verified {
    /// The folder.
    pub folder: PathBuf,
    /// The target.
    pub target: String,
    /// The types of the weights.
    pub types: Vec<(String, usize)>,
    /// How far it is from base and adapter.
    pub difference: Difference,
    /// How far the base alone is: what the adapter does.
    pub base_alone: Difference,
    /// The mean KL that is allowed.
    pub allowed_kl: f64,
    /// Whether it is within that.
    pub passed: bool,
}

/// Reads exports with our own reader and compares them with base and adapter.
///
/// # Errors
/// When a file is not as it was written, or base, adapter or an export cannot be read.
pub fn verify(request: &VerifyRequest, observer: &mut dyn Observer) -> Result<Vec<Verified>> {
    let manifests = request.exports.iter().map(|folder| Manifest::read(folder)).collect::<Result<Vec<_>>>()?;
    let mut verified = Vec::new();
    for (folder, manifest) in request.exports.iter().zip(&manifests) {
        observer.event(&Event::Phase(format!("reading {}", folder.display())));
        manifest.check_files(folder)?;
        let adapter = request.adapter.as_ref().unwrap_or(&manifest.adapter);
        // What was merged into the unquantized model is held against the one that the adapter was trained on.
        let model = request.base.clone().or_else(|| (!manifest.original).then(|| manifest.base.clone()));
        let choice = BaseChoice { model, original: manifest.original };
        verified.extend(verify_all(&[folder], adapter, &choice, request.offline, &request.prompts, observer)?);
    }
    for verified in &mut verified {
        if let Some(most) = request.max_kl {
            verified.allowed_kl = most;
            verified.passed = verified.difference.mean_kl <= most;
        }
    }
    Ok(verified)
}

/// Compares exports of one adapter. The reference is loaded, asked and dropped before each of them is.
pub(super) fn verify_all(
    folders: &[&Path],
    adapter: &Path,
    choice: &BaseChoice,
    offline: bool,
    prompts: &[String],
    observer: &mut dyn Observer,
) -> Result<Vec<Verified>> {
    let device = open_device(DeviceConfig::default())?;
    // The unquantized model is no reference where the adapter names what it was trained on.
    let model = choice.model.as_deref().filter(|_| !choice.original);
    let trained_on = TrainedOn::of(adapter, model)?;
    let base = match trained_on.open(offline, observer) {
        Err(_) if choice.original && choice.model.is_some() => {
            TrainedOn::of(adapter, choice.model.as_deref())?.open(offline, observer)?
        }
        base => base?,
    };
    observer.event(&Event::Phase("reading base and adapter".into()));
    let bundle = trained_on.adapter(&base, &mut ())?;
    let held = trained_on.held_to_merge(&base, &bundle)?;
    let texts = {
        let encoder = encoder(&base, trained_on.chat_template()?.as_deref(), now())?;
        texts(&encoder, prompts)?
    };
    let reference = {
        let model = models::load(&base, held, Some(&bundle.config.lora), 0, &device, false)?;
        model.params.assign(&bundle.tensors, adapter)?;
        Reference::new(&model.lm, texts, &device)?
    };
    let mut verified = Vec::new();
    for folder in folders {
        let manifest = Manifest::read(folder)?;
        observer.event(&Event::Phase(format!("comparing {}", folder.display())));
        let model = open_export(folder, &manifest, &base, held, &device)?;
        let difference = reference.compare(&model.lm, &device)?;
        let allowed_kl = allowed_kl(&manifest);
        verified.push(Verified {
            folder: folder.to_path_buf(),
            target: manifest.target,
            types: manifest.types,
            passed: difference.mean_kl <= allowed_kl,
            difference,
            base_alone: reference.base_alone.clone(),
            allowed_kl,
        });
        if observer.stop_requested() {
            return Err(Error::Interrupted);
        }
    }
    Ok(verified)
}

/// The tokens of the prompts, as a user's turn where there is a chat template.
fn texts(encoder: &Encoder, prompts: &[String]) -> Result<Vec<Vec<u32>>> {
    let built_in: Vec<String> = PROMPTS.iter().map(|&prompt| prompt.to_owned()).collect();
    let prompts = if prompts.is_empty() { &built_in } else { prompts };
    prompts
        .iter()
        .map(|prompt| {
            let mut ids = match encoder.template() {
                Some(_) => encoder.encode_prompt(&[Message::user(prompt)])?,
                None => encoder.encode_text(prompt)?,
            };
            ids.truncate(TOKENS);
            if ids.is_empty() {
                return Err(Error::invalid("a prompt to compare on is empty"));
            }
            Ok(ids)
        })
        .collect()
}
