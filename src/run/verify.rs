//! Exports compared with base and adapter, as they were trained.

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

/// Nats of mean KL from which on an adapter does something that can be lost.
const NOTICEABLE: f64 = 1e-4;

/// The most tokens of all prompts: the logits of each are held, a row as long as the vocabulary.
const ALL_TOKENS: usize = 4096;

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

/// Where the base is that an adapter was trained on.
pub(super) struct TrainedBase {
    /// A place that somebody named.
    pub model: Option<String>,
    /// The unquantized model: no reference where the adapter's own base is there.
    pub fallback: Option<String>,
    pub offline: bool,
}

impl TrainedBase {
    /// The unquantized model, for an adapter that names no base.
    fn only_fallback(&self, adapter: &Path) -> Option<&str> {
        self.fallback.as_deref().filter(|_| TrainedOn::of(adapter, None).is_err())
    }
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
    /// Whether the export is nearer to the base alone than to base and adapter: what was learnt is lost.
    pub lost: bool,
    /// Whether it is within what is allowed, and not lost.
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
        // What was merged into the unquantized model is compared with the one that the adapter was trained on.
        let given = manifest.base_given && !manifest.original;
        let model = request.base.clone().or_else(|| given.then(|| manifest.base.clone()));
        let place = TrainedBase { model, fallback: manifest.original_base(), offline: request.offline };
        verified.extend(verify_all(&[folder], adapter, &place, &request.prompts, observer)?);
    }
    for verified in &mut verified {
        if let Some(most) = request.max_kl {
            verified.allowed_kl = most;
            verified.lost = false;
            verified.passed = verified.difference.mean_kl <= most;
        }
    }
    Ok(verified)
}

/// Compares exports of one adapter. The reference is loaded, asked and dropped before each of them is.
pub(super) fn verify_all(
    folders: &[&Path],
    adapter: &Path,
    place: &TrainedBase,
    prompts: &[String],
    observer: &mut dyn Observer,
) -> Result<Vec<Verified>> {
    let device = open_device(DeviceConfig::default())?;
    let mut trained_on = TrainedOn::of(adapter, place.model.as_deref().or_else(|| place.only_fallback(adapter)))?;
    let base = match (trained_on.open(place.offline, observer), &place.fallback) {
        (Err(_), Some(fallback)) if place.model.is_none() => {
            trained_on = TrainedOn::of(adapter, Some(fallback))?;
            trained_on.open(place.offline, observer)?
        }
        (base, _) => base?,
    };
    observer.event(&Event::Phase("reading base and adapter".into()));
    let bundle = trained_on.adapter(&base, observer)?;
    let held = trained_on.held(&base, &bundle)?;
    let texts = {
        let encoder = encoder(&base, trained_on.chat_template(&base)?.as_deref(), now())?;
        let positions = base.config().get("max_position_embeddings").and_then(serde_json::Value::as_u64);
        texts(&encoder, prompts, positions.map_or(TOKENS, |positions| TOKENS.min(positions as usize)))?
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
        let alone = reference.base_alone.mean_kl;
        let lost = alone > NOTICEABLE && difference.mean_kl > alone / 2.0;
        verified.push(Verified {
            folder: folder.to_path_buf(),
            target: manifest.target,
            types: manifest.types,
            lost,
            passed: difference.mean_kl <= allowed_kl && !lost,
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

/// The first tokens of the prompts, `most` of each, as a user's turn where there is a chat template.
fn texts(encoder: &Encoder, prompts: &[String], most: usize) -> Result<Vec<Vec<u32>>> {
    let built_in: Vec<String> = PROMPTS.iter().map(|&prompt| prompt.to_owned()).collect();
    let prompts = if prompts.is_empty() { &built_in } else { prompts };
    let texts: Vec<Vec<u32>> = prompts
        .iter()
        .map(|prompt| {
            let mut ids = match encoder.template() {
                Some(_) => encoder.encode_prompt(&[Message::user(prompt)])?,
                None => encoder.encode_text(prompt)?,
            };
            ids.truncate(most);
            if ids.is_empty() {
                return Err(Error::invalid("a prompt to compare on is empty"));
            }
            Ok(ids)
        })
        .collect::<Result<_>>()?;
    let all: usize = texts.iter().map(Vec::len).sum();
    if all > ALL_TOKENS {
        return Err(Error::invalid(format!("the prompts have {all} tokens; {ALL_TOKENS} at most are compared"))
            .with_help("give fewer or shorter ones: a few hundred tokens tell as much"));
    }
    Ok(texts)
}
