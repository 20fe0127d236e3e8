//! Everything before the first step: device, base, tokens, plan.

use super::memory::{offloads, program_bytes};
use super::micro_batches::MicroBatches;
use super::{CHAT_TEMPLATE, RunOptions};
use crate::adapter::{AdapterBundle, AdapterConfig};
use crate::data::{ChatTemplate, DataConfig, DataFiles, Dataset, Encoder, Plan, Split, named};
use crate::device::{Device, DeviceConfig};
use crate::error::{Error, Result};
use crate::hub::{self, BaseConfig, DatasetConfig, FetchOptions};
use crate::models::{self, Dimensions, Model};
use crate::objectives::{self, Needs, Objective};
use crate::ops::simd::Level;
use crate::ops::{self, Compute, Pool};
use crate::recipe::Recipe;
use crate::train::backward::Engine;
use crate::train::{AdapterFiles, Event, Identity, MemoryEstimate, Observer};
use crate::weights::Base;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// What a run needs, found to fit together.
pub(super) struct Prepared {
    pub base: Base,
    pub encoder: Encoder,
    /// The chat template that the recipe names, as it was when the run began.
    pub chat_template: Option<String>,
    pub dataset: Dataset,
    /// The most tokens of a row.
    pub max_seq_len: usize,
    pub plan: Plan,
    pub micro_batches: MicroBatches,
    /// The model without its weights: its sizes, and what building it has found out.
    pub(super) rehearsal: Model,
    /// What the process holds before the weights are there.
    pub(super) program_bytes: u64,
    /// Estimates of the CPU's memory that were made, by how many layers are kept: each is a rehearsal.
    pub(super) estimates: RefCell<BTreeMap<usize, MemoryEstimate>>,
    pub device: Device,
    pub compute: Compute,
    /// Of how many layers the activations are kept.
    pub kept_layers: usize,
}

/// Opens the device, with its kernels ready.
pub(super) fn open_device(config: DeviceConfig) -> Result<Device> {
    let device = config.open()?;
    ops::prepare(&device)?;
    if let Some(facts) = device.gpu().map(crate::device::Gpu::facts).transpose()? {
        tracing::info!(gpu = %facts, "opened the GPU");
    }
    Ok(device)
}

/// Finds the base and opens it.
pub(super) fn open_base(config: &BaseConfig, offline: bool, observer: &mut dyn Observer) -> Result<Base> {
    observer.event(&Event::Phase("reading the base".into()));
    let options = FetchOptions::from_env(offline);
    let path = hub::fetch(config, &options, &mut |progress| {
        let what = format!("fetching {}", progress.file);
        observer.event(&Event::Bytes { what, done: progress.done, total: progress.total });
    })?;
    let base = Base::open(&path)?;
    for note in base.notes() {
        observer.event(&Event::Note(note.clone()));
    }
    tracing::info!(path = %path.display(), model_type = base.model_type(), "opened the base");
    Ok(base)
}

/// The base's tokenizer and special tokens, with its chat template or another one. `now` is what templates take for today, in
/// seconds since 1970.
pub(super) fn encoder(base: &Base, template: Option<&str>, now: u64) -> Result<Encoder> {
    let special = base.special_tokens();
    let text = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| text.clone());
    let (bos, eos) = (text(&special.bos), text(&special.eos));
    let named = special.named.iter().map(|(name, text)| (name.clone(), text.clone().into())).collect();
    let compile = |source: Option<&str>| match source {
        Some(source) => ChatTemplate::at(source, bos.as_deref(), eos.as_deref(), now)
            .map(|template| Some(template.with_variables(&named))),
        None => Ok(None),
    };
    // As in transformers: the template `tool_use` is for conversations with tools, unless another is named.
    let with_tools = compile(base.chat_templates().tool_use().filter(|_| template.is_none()))?;
    let template = compile(template.or(base.chat_template()))?;
    let names = base.chat_templates().named().map(|(name, _)| name.to_owned()).collect();
    let encoder = Encoder::new(base.tokenizer()?, template, special.eos.clone(), special.bos.clone(), special.add_bos)?;
    Ok(encoder.with_tool_template(with_tools).with_named_templates(names))
}

/// As [`encoder`], as a recipe's data wants it.
pub(super) fn data_encoder(base: &Base, data: &DataConfig, template: Option<&str>, now: u64) -> Result<Encoder> {
    Ok(encoder(base, template, now)?.with_turns(data.train_on_turns))
}

/// The chat template that a recipe names in place of the base's.
pub(super) fn named_template(data: &DataConfig, base: &Base) -> Result<Option<String>> {
    let Some(setting) = data.chat_template.as_deref() else { return Ok(None) };
    let own = base.chat_templates().get(setting).filter(|_| named::find(setting).is_none());
    let source = match own {
        Some(source) => source.to_owned(),
        None => named::chat_template_source(setting).map_err(|error| with_own_names(error, base))?,
    };
    // A mistake in it is one of that file, not of the base.
    ChatTemplate::at(&source, None, None, 0).map_err(|error| {
        Error::invalid(format!("data.chat_template: `{setting}`: {error}"))
            .with_help("fix that template, or name another")
    })?;
    Ok(Some(source))
}

/// An error about a template's name, with the names that the base has besides.
fn with_own_names(error: Error, base: &Base) -> Error {
    let own: Vec<String> = base.chat_templates().named().map(|(name, _)| format!("`{name}`")).collect();
    match error.help().map(|help| format!("{help}; the base's own are {}", own.join(", "))) {
        Some(help) if !own.is_empty() => error.with_help(help),
        _ => error,
    }
}

/// The recipe's data with rows of as many tokens as the base takes.
///
/// # Errors
/// When the recipe wants longer rows than that.
pub(super) fn fitted(data: &DataConfig, base: &Base, observer: &mut dyn Observer) -> Result<DataConfig> {
    let positions = base.config().get("max_position_embeddings").and_then(serde_json::Value::as_u64);
    let Some(positions) = positions.map(|n| usize::try_from(n).unwrap_or(usize::MAX)) else { return Ok(data.clone()) };
    match data.max_seq_len {
        Some(wanted) if wanted > positions => Err(Error::invalid(format!(
            "data.max_seq_len: {wanted} is over the {positions} positions that the base was made for"
        ))
        .with_help(format!("set `data.max_seq_len` to {positions} at most, or delete the line"))),
        None if data.max_seq_len() > positions => {
            observer.event(&Event::Note(format!(
                "rows have {positions} tokens at most: the base was made for no more, and `data.max_seq_len` is not set"
            )));
            Ok(DataConfig { max_seq_len: Some(positions), ..data.clone() })
        }
        _ => Ok(DataConfig { max_seq_len: Some(data.max_seq_len()), ..data.clone() }),
    }
}

/// Reads and tokenizes the recipe's data, which [`fitted`] gives.
pub(super) fn dataset(
    recipe: &Recipe,
    data: &DataConfig,
    encoder: &Encoder,
    offline: bool,
    observer: &mut dyn Observer,
) -> Result<(Dataset, Plan)> {
    let training = &recipe.training;
    let options = FetchOptions::for_data(offline);
    let files = DataFiles::find(data, |source, split| {
        let splits: &[&str] = match split {
            Split::Train => &["train"],
            Split::Validation => &["validation", "valid", "val", "dev", "test"],
        };
        observer.event(&Event::Phase("finding the data".into()));
        let dataset = DatasetConfig {
            id: source.hub.as_deref().unwrap_or_default(),
            split: source.split.as_deref(),
            subset: source.subset.as_deref(),
        };
        hub::fetch_dataset(&dataset, splits, &options, &mut |progress| {
            let what = format!("fetching {}", progress.file);
            observer.event(&Event::Bytes { what, done: progress.done, total: progress.total });
        })
    })?;
    observer.event(&Event::Phase("tokenizing".into()));
    let held_out_by = data.validation_seed.unwrap_or(training.seed);
    let mut dataset = Dataset::load(data, &files, encoder, held_out_by, &mut |done, total| {
        observer.event(&Event::Bytes { what: "tokenizing".into(), done, total });
    })?;
    let plan = dataset.plan(data, training.micro_batch_size * training.gradient_accumulation_steps, training.seed);
    dataset.report.add_plan(&plan, data.packing.then_some(data.max_seq_len()));
    tracing::info!(train = dataset.train.len(), validation = dataset.validation.len(), "tokenized");
    Ok((dataset, plan))
}

/// The tokens that end a generation.
pub(super) fn ends(base: &Base, encoder: &Encoder) -> Vec<u32> {
    let mut ends = base.special_tokens().eos_ids.clone();
    ends.extend(encoder.stop_ids());
    ends
}

/// The divergence from the base is taken from gradients of the head's input, which a cap on logits would bend.
pub(super) fn check_reference(recipe: &Recipe, model: &Model) -> Result<()> {
    if model.lm.logits_softcap.is_none() || !objectives::build(&recipe.objective).needs().reference {
        return Ok(());
    }
    let name = recipe.objective.kind.name();
    Err(Error::invalid(format!(
        "objective.type: `{name}` measures the divergence from the base by logits that are linear in the last hidden state, and this \
         base caps them (`final_logit_softcapping`)"
    ))
    .with_help("take `dft` or `bft`, or a base without that cap"))
}

impl Prepared {
    pub(super) fn new(recipe: &Recipe, options: &RunOptions, now: u64, observer: &mut dyn Observer) -> Result<Self> {
        let device = match &options.device {
            Some(device) => device.clone(),
            None => open_device(recipe.device)?,
        };
        let base = open_base(&recipe.base, options.offline, observer)?;
        let lora = Some(&recipe.lora);
        let rehearsal = models::load(&base, recipe.quantization, lora, recipe.training.seed, &device, true)?;
        if let Some(gpu) = device.gpu() {
            let compute = recipe.compute.resolve(&device);
            let shapes = rehearsal.lm.layers.iter().map(|layer| layer.attention.shape);
            ops::cuda::prepare_attention(gpu, shapes, compute)?;
            if rehearsal.lm.needs_family_kernels() {
                ops::cuda::prepare_families(gpu)?;
            }
            if objectives::build(&recipe.objective).needs() != Needs::default() {
                ops::cuda::prepare_objectives(gpu)?;
            }
        }
        check_reference(recipe, &rehearsal)?;
        let data = fitted(&recipe.data, &base, observer)?;
        let chat_template = named_template(&recipe.data, &base)?;
        let encoder = data_encoder(&base, &recipe.data, chat_template.as_deref(), now)?;
        let (dataset, plan) = dataset(recipe, &data, &encoder, options.offline, observer)?;
        let mut prepared = Self {
            micro_batches: MicroBatches::of(&plan, &dataset, &recipe.training),
            program_bytes: program_bytes(),
            estimates: RefCell::default(),
            max_seq_len: data.max_seq_len(),
            base,
            encoder,
            chat_template,
            dataset,
            plan,
            compute: recipe.compute.resolve(&device),
            kept_layers: 0,
            device,
            rehearsal,
        };
        prepared.check_vocabulary()?;
        prepared.check_gpu_memory(recipe)?;
        prepared.kept_layers = prepared.layers_to_keep(recipe);
        Ok(prepared)
    }

    /// Takes the orders that another seed has of the same rows.
    pub(super) fn order_by(&mut self, recipe: &Recipe) {
        let training = &recipe.training;
        let data = DataConfig { max_seq_len: Some(self.max_seq_len), ..recipe.data.clone() };
        let rows_per_step = training.micro_batch_size * training.gradient_accumulation_steps;
        self.plan = self.dataset.plan(&data, rows_per_step, training.seed);
        self.micro_batches = MicroBatches::of(&self.plan, &self.dataset, training);
        self.estimates.borrow_mut().clear();
    }

    /// Gives the adapter the numbers that a run of this recipe begins with.
    ///
    /// # Errors
    /// When the adapter of `lora.init_from` cannot be read or does not fit.
    pub(super) fn begin_anew(&self, recipe: &Recipe, model: &Model, observer: &mut dyn Observer) -> Result<()> {
        model.params.initialize(recipe.training.seed)?;
        recipe.lora.init_from.as_ref().map_or(Ok(()), |path| self.begin_with(path, recipe, model, observer))
    }

    /// Tokens that the model has no embedding for would fail in the middle of a run.
    fn check_vocabulary(&self) -> Result<()> {
        let largest = self.dataset.largest_token() as usize;
        if largest < self.dimensions().vocabulary {
            return Ok(());
        }
        Err(Error::file(
            self.base.path(),
            format!(
                "the tokenizer gives the id {largest}, but the model has {} embeddings; their files do not belong together",
                self.dimensions().vocabulary
            ),
        ))
    }

    pub(super) fn load_model(&self, recipe: &Recipe, observer: &mut dyn Observer) -> Result<Model> {
        observer.event(&Event::Phase("loading the weights".into()));
        self.reserve_weights()?;
        let lora = Some(&recipe.lora);
        let mut model = models::load(&self.base, recipe.quantization, lora, recipe.training.seed, &self.device, false)?;
        let longest = self.longest_row();
        if model.lm.fit_rotations(longest) {
            observer.event(&Event::Note(format!(
                "the longest row has {longest} tokens, more than the base's original context: all rows use its long RoPE factors, \
                 as servers with a longer context do"
            )));
        }
        if let Some(path) = &recipe.lora.init_from {
            self.begin_with(path, recipe, &model, observer)?;
        }
        tracing::info!(parameters = model.report.parameters, bytes = model.report.bytes, "loaded the weights");
        for note in &model.report.notes {
            observer.event(&Event::Note(note.clone()));
        }
        Ok(model)
    }

    /// Tokens of the longest row, of training and validation.
    fn longest_row(&self) -> usize {
        let rows = self.dataset.train.entries().chain(self.dataset.validation.entries());
        rows.map(|entry| entry.tokens as usize).max().unwrap_or(0)
    }

    /// Gives the adapter the numbers of another one.
    fn begin_with(&self, path: &Path, recipe: &Recipe, model: &Model, observer: &mut dyn Observer) -> Result<()> {
        let bundle = AdapterBundle::load(path, &self.base)?;
        let (ours, its) = (&recipe.lora, &bundle.config.lora);
        for (key, ours, its) in [("r", ours.r as f64, its.r as f64), ("lora_alpha", ours.lora_alpha, its.lora_alpha)] {
            if ours != its {
                return Err(Error::invalid(format!(
                    "lora.{key}: is {ours}, but the adapter of `lora.init_from` has {its}"
                ))
                .with_help(format!("delete `lora.{key}`: without it the adapter's own is taken")));
            }
        }
        if ours.use_rslora != its.use_rslora {
            return Err(Error::invalid(format!(
                "lora.use_rslora: is {}, but the adapter of `lora.init_from` has {}",
                ours.use_rslora, its.use_rslora
            ))
            .with_help("delete `lora.use_rslora`: without it the adapter's own is taken"));
        }
        if bundle.config.base_sha256.is_some_and(|known| self.base.fingerprint().is_ok_and(|now| now != known)) {
            let (path, base) = (path.display(), self.base.path().display());
            observer.event(&Event::Note(format!("{path} was trained on another base than {base}, of the same shapes")));
        }
        let mut tensors = bundle.tensors;
        let known = tensors.len();
        for (name, variable) in model.params.iter() {
            tensors.entry(name.to_owned()).or_insert_with(|| variable.as_tensor().clone());
        }
        if tensors.len() > known {
            observer.event(&Event::Note(format!(
                "{} of the {} modules are not in {}: they begin anew",
                (tensors.len() - known) / 2,
                tensors.len() / 2,
                path.display()
            )));
        }
        model.params.assign(&tensors, path)
    }

    /// What fills up a batch. Padding is masked by place, so that any token will do.
    pub(super) fn pad_id(&self) -> u32 {
        let special = self.base.special_tokens();
        let known = special.pad.as_ref().or(special.eos.as_ref()).map_or(0, |(_, id)| *id);
        if (known as usize) < self.dimensions().vocabulary { known } else { 0 }
    }

    /// The types that the base's matrices are held in, the commonest first.
    pub(super) fn held(&self) -> String {
        let mut types: Vec<(&String, &usize)> = self.rehearsal.report.types.iter().collect();
        types.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        types.into_iter().map(|(name, _)| name.to_ascii_lowercase()).collect::<Vec<_>>().join(", ")
    }

    /// What computes the run's steps with this model, or with the one without weights what is asked about them.
    pub(super) fn engine<'a>(
        &'a self,
        recipe: &Recipe,
        model: &'a Model,
        objective: &'a dyn Objective,
        pool: &'a Pool,
    ) -> Engine<'a> {
        Engine {
            lm: &model.lm,
            params: &model.params,
            objective,
            kept_layers: self.kept_layers,
            offload: offloads(recipe),
            compute: self.compute,
            device: &self.device,
            pool,
            capacity: self.micro_batches.most_tokens,
        }
    }

    pub(super) const fn dimensions(&self) -> &Dimensions {
        &self.rehearsal.lm.dimensions
    }

    pub(super) const fn layers(&self) -> usize {
        self.dimensions().layers
    }

    pub(super) fn device_name(&self) -> String {
        match &self.device {
            Device::Cpu => format!(
                "cpu, {} threads, {} ({})",
                rayon::current_num_threads(),
                self.compute.name(),
                Level::detect().name()
            ),
            Device::Gpu(gpu) => {
                let name = gpu.facts().map_or_else(|_| format!("{gpu:?}"), |facts| facts.to_string());
                format!("{name}; {}", self.compute.name())
            }
        }
    }

    /// What a checkpoint may go on with.
    pub(super) fn identity(&self, recipe: &Recipe) -> Result<Identity> {
        Ok(Identity {
            recipe: recipe.hash(),
            base: self.base.fingerprint()?,
            data: self.dataset.fingerprint(),
            device: format!("{}, {}", if self.device.is_cpu() { "cpu" } else { "cuda" }, self.compute.name()),
        })
    }

    /// What makes a checkpoint an adapter: its configuration, and the chat template that is not the base's.
    pub(super) fn adapter_files(&self, recipe: &Recipe) -> Result<AdapterFiles> {
        let config = AdapterConfig {
            base_model_name_or_path: super::card::base_name(recipe, self),
            base_sha256: Some(self.base.fingerprint()?),
            lora: recipe.lora.clone(),
            nested: self.base.wrapper().is_some(),
        };
        // Where PEFT and servers look for it: the base's own would not do.
        let template =
            self.chat_template.as_ref().map(|template| (CHAT_TEMPLATE.to_owned(), template.clone().into_bytes()));
        Ok(AdapterFiles { config, others: template.into_iter().collect() })
    }
}
