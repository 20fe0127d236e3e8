//! What answers: a model on a device, with its adapter or without.

use super::super::output::now;
use super::super::prepare::{encoder, open_base, open_device};
use super::super::trained_on::TrainedOn;
use super::EvalRequest;
use crate::adapter::{ADAPTER_CONFIG, AdapterSummary};
use crate::data::{ChatTemplate, Encoder};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::{Answer, Asked, Tokens};
use crate::fs::fingerprint;
use crate::hub::BaseConfig;
use crate::models::{self, CausalLm, Continuations, Generator, Model, Runner, Sampling, Score};
use crate::nn::{QuantizationConfig, QuantizationType};
use crate::ops::{Compute, ComputeConfig, Pool};
use crate::train::{Event, Observer};
use crate::weights::Base;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What a model's prompts need, and where it computes.
pub(in crate::run) struct Bench {
    pub device: Device,
    pub encoder: Encoder,
    template_source: String,
    prefix: u32,
    ends: Vec<u32>,
    /// The most tokens of a text: the model's positions, or fewer.
    pub max_length: usize,
    pub compute: Compute,
    /// Its place or id, and what its files are made of.
    pub base_name: String,
    pub base_sha256: String,
    /// The adapter's place, and what its files are made of.
    pub adapter: Option<(String, String)>,
}

impl Bench {
    /// Loads the model of a request: an adapter with its base where it is one.
    pub fn open(request: &EvalRequest, observer: &mut dyn Observer) -> Result<(Self, Model)> {
        let device = open_device(request.device)?;
        let quantization = request.quantization.map(|kind| QuantizationConfig { kind });
        let path = Path::new(&request.model);
        let is_adapter = path.join(ADAPTER_CONFIG).is_file()
            || path.is_file() && AdapterSummary::read(path).is_ok()
            || request.base.is_some();
        let (bench, model) = if is_adapter {
            let trained_on = TrainedOn::of(path, request.base.as_deref())?;
            let (base, model) = trained_on.model(quantization, &device, request.offline, observer)?;
            let template = trained_on.chat_template(&base)?;
            let name = trained_on.base_name().to_owned();
            let adapter = Some((request.model.clone(), hash_of(path)?));
            (Self::new((&base, name), adapter, template.as_deref(), &model, device, request.compute)?, model)
        } else {
            let base = open_base(&BaseConfig { model: request.model.clone(), file: None }, request.offline, observer)?;
            let stored = QuantizationConfig { kind: QuantizationType::None };
            let stored = if base.is_gguf() { QuantizationConfig::default() } else { stored };
            observer.event(&Event::Phase("loading the weights".into()));
            let model = models::load(&base, quantization.unwrap_or(stored), None, 0, &device, false)?;
            (Self::new((&base, request.model.clone()), None, None, &model, device, request.compute)?, model)
        };
        let bench = bench.with_max_length(request.max_length)?;
        for note in &model.report.notes {
            observer.event(&Event::Note(note.clone()));
        }
        Ok((bench, model))
    }

    /// That of a model that is loaded: a base, or an adapter with its base.
    ///
    /// # Errors
    /// When the base has no tokenizer, or no token to begin a text with.
    pub fn new(
        (base, base_name): (&Base, String),
        adapter: Option<(String, String)>,
        template: Option<&str>,
        model: &Model,
        device: Device,
        compute: ComputeConfig,
    ) -> Result<Self> {
        let encoder = encoder(base, template, now())?;
        let special = base.special_tokens();
        let prefix = special.bos.as_ref().or(special.eos.as_ref()).map(|(_, id)| *id).ok_or_else(|| {
            Error::file(base.path(), "has neither a BOS nor an EOS token: nothing can stand before a text")
        })?;
        Ok(Self {
            template_source: template.or(base.chat_template()).unwrap_or_default().to_owned(),
            prefix,
            ends: special.eos_ids.clone(),
            compute: compute.resolve(&device),
            base_sha256: base.fingerprint()?,
            adapter,
            max_length: model.lm.dimensions.max_positions,
            device,
            encoder,
            base_name,
        })
    }

    /// With at most so many tokens in a text.
    ///
    /// # Errors
    /// When the model has fewer positions.
    fn with_max_length(self, wanted: Option<usize>) -> Result<Self> {
        match wanted {
            Some(wanted) if wanted > self.max_length => Err(Error::invalid(format!(
                "--max-length: {wanted} is more than the {} positions of the model",
                self.max_length
            ))
            .with_help("leave it out, or give a smaller number")),
            wanted => Ok(Self { max_length: wanted.unwrap_or(self.max_length), ..self }),
        }
    }

    /// What makes tokens of requests.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens { encoder: &self.encoder, prefix: self.prefix, max_length: self.max_length }
    }

    /// The chat template, compiled and as it is written.
    pub fn template(&self) -> Result<(&ChatTemplate, &str)> {
        let compiled = self.encoder.template().ok_or_else(|| {
            Error::invalid("--apply-chat-template: the model has no chat template")
                .with_help("leave it out: prompts are plain text then, as lm-eval has them by default")
        })?;
        Ok((compiled, &self.template_source))
    }

    /// The model with its adapter, or without; it takes so many tokens at a time, about.
    pub fn scorer<'a>(&'a self, model: &'a Model, adapter: bool, batch_tokens: usize) -> Scorer<'a> {
        Scorer { bench: self, model, adapter, pool: Pool::default(), batch_tokens }
    }
}

/// What an adapter is made of.
pub(in crate::run) fn hash_of(adapter: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = if adapter.is_dir() {
        let entries = std::fs::read_dir(adapter).map_err(Error::io("read", adapter))?;
        entries.filter_map(std::result::Result::ok).map(|entry| entry.path()).collect()
    } else {
        vec![adapter.to_owned()]
    };
    let is_part = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        path == adapter || name == ADAPTER_CONFIG || name.ends_with(".safetensors")
    };
    files.retain(is_part);
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fingerprint(&file)?);
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// What a model says of each continuation of each item, in as many passes as it takes with `most` tokens at a time, about.
pub(in crate::run) fn score(
    lm: &CausalLm,
    runner: Runner<'_>,
    compute: Compute,
    (pool, most): (&Pool, usize),
    items: &[&Continuations],
) -> Result<Vec<Vec<Score>>> {
    let (mut scores, mut rest) = (Vec::with_capacity(items.len()), items);
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|item| {
            tokens += item.tokens();
            tokens <= most
        });
        let (now, later) = rest.split_at(fits.count().max(1));
        scores.extend(rayon::scope(|_| lm.score(now, runner, compute, (pool, most)))?);
        rest = later;
    }
    Ok(scores)
}

/// A model of the bench, with the adapter or without.
pub(in crate::run) struct Scorer<'a> {
    bench: &'a Bench,
    model: &'a Model,
    adapter: bool,
    pool: Pool,
    batch_tokens: usize,
}

impl Scorer<'_> {
    /// The answers to some documents.
    pub fn answer(&self, batch: &[Asked]) -> Result<Vec<Answer>> {
        let items: Vec<&Continuations> = batch.iter().flat_map(|asked| &asked.items).collect();
        let mut scores = self.score(&items)?.into_iter();
        let answer = |asked: &Asked| {
            let of_items: Vec<Vec<Score>> = scores.by_ref().take(asked.items.len()).collect();
            match &asked.generation {
                Some(of) => Ok(Answer::Text(self.generate(&of.prompt, of.most, &of.until)?)),
                None => Ok(Answer::Scores(asked.scores(&of_items))),
            }
        };
        batch.iter().map(answer).collect()
    }

    /// What the model says of each continuation of each item. A long text is many items, which go through it in several passes.
    fn score(&self, items: &[&Continuations]) -> Result<Vec<Vec<Score>>> {
        let (Bench { device, compute, .. }, lm) = (self.bench, &self.model.lm);
        score(lm, lm.runner(device, self.adapter), *compute, (&self.pool, self.batch_tokens), items)
    }

    /// The likeliest text behind a prompt, of `most` tokens or fewer, up to the first of the stop strings.
    fn generate(&self, prompt: &[u32], most: usize, until: &[String]) -> Result<String> {
        let Bench { device, encoder, ends, .. } = self.bench;
        let mut generator = Generator::new(&self.model.lm, device, self.adapter, Sampling::default());
        // A stop string has this many tokens or fewer, and its first may be part of a token before.
        let longest = until.iter().map(String::len).max().unwrap_or(0) + 2;
        let (mut tokens, mut failed) = (Vec::new(), None);
        generator.run(prompt, most, ends, |token| {
            tokens.push(token);
            match encoder.decode(&tokens[tokens.len().saturating_sub(longest)..], false) {
                Ok(text) => !until.iter().any(|stop| text.contains(stop.as_str())),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let mut text = encoder.decode(&tokens, true)?;
        for stop in until {
            if let Some(at) = text.find(stop.as_str()) {
                text.truncate(at);
            }
        }
        Ok(text)
    }
}
