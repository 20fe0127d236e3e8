//! What a run will take of memory: the CPU's, or a GPU's.

use super::micro_batches::MicroBatches;
use super::prepare::Prepared;
use crate::device::{Device, available_memory, process_memory};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::objectives;
use crate::ops::{Held, Ledger, Pool};
use crate::recipe::Recipe;
use crate::train::backward::Engine;
use crate::train::{GpuBudget, GradientCheckpointing, MemoryEstimate};

/// Bytes that a GPU's weights take beyond their own: each begins at a multiple of 256.
const WEIGHTS_ROUNDING: u64 = 64 << 10;

/// What the process is taken to hold where the system does not tell.
const PROGRAM: u64 = 64 << 20;

impl Prepared {
    /// Weights and adapter must fit a GPU's memory, whatever else is made smaller.
    pub(super) fn check_gpu_memory(&self, recipe: &Recipe) -> Result<()> {
        let Some(free) = self.gpu_free() else { return Ok(()) };
        let memory = self.memory_with(recipe, 0);
        let least = memory.weights + memory.adapter_and_optimizer;
        if least <= free {
            return Ok(());
        }
        let (weights, adapter, free) = (memory.weights >> 20, memory.adapter_and_optimizer >> 20, free >> 20);
        Err(Error::invalid(format!(
            "device: the weights take {weights} MiB, the adapter and its optimizer {adapter}, and {free} MiB of the GPU's memory \
             are free"
        ))
        .with_help("set a smaller `quantization.type` or `lora.r`; `nvidia-smi` lists who else uses the memory"))
    }

    /// Bytes of a GPU's memory that are free.
    fn gpu_free(&self) -> Option<u64> {
        self.device.gpu().and_then(|gpu| gpu.free_bytes().ok())
    }

    /// Bytes of the CPU's memory that are free, and what is held already of what a run needs.
    fn cpu_room(&self) -> Option<u64> {
        available_memory().map(|free| free + self.program_bytes)
    }

    /// Those, and what is held already of what a run needs.
    fn gpu_room(&self) -> Option<u64> {
        let workspace = self.device.gpu().map_or(0, |gpu| gpu.memory().workspace as u64);
        self.gpu_free().map(|free| free + workspace)
    }

    /// Takes a GPU's memory for the weights in one piece: behind tensors of many sizes, segments would end in room for none.
    pub(super) fn reserve_weights(&self) -> Result<()> {
        let Some(gpu) = self.device.gpu() else { return Ok(()) };
        let bytes = self.gpu_weights_bytes() + WEIGHTS_ROUNDING;
        Ok(gpu.reserve(usize::try_from(bytes).unwrap_or(usize::MAX))?)
    }

    /// What a run is told of a GPU's memory, once the weights are there.
    pub(super) fn gpu_budget(&self, recipe: &Recipe) -> Option<GpuBudget> {
        let gpu = self.device.gpu()?;
        Some(GpuBudget {
            weights: self.gpu_weights_bytes(),
            adapter: (self.rehearsal.report.adapter_parameters, recipe.lora.r),
            memory: gpu.facts().ok()?.free + gpu.memory().reserved as u64,
        })
    }

    /// Bytes of the weights that go to a GPU: all but the embeddings.
    fn gpu_weights_bytes(&self) -> u64 {
        self.rehearsal.report.bytes - embedding_bytes(&self.rehearsal)
    }

    pub(super) fn memory(&self, recipe: &Recipe) -> MemoryEstimate {
        self.memory_with(recipe, self.kept_layers)
    }

    pub(super) fn layers_to_keep(&self, recipe: &Recipe) -> usize {
        let layers = self.layers();
        let training = &recipe.training;
        match training.gradient_checkpointing {
            GradientCheckpointing::None => layers,
            GradientCheckpointing::Layer | GradientCheckpointing::Offload => 0,
            GradientCheckpointing::Auto => {
                let free = if self.device.is_cpu() { self.cpu_room() } else { self.gpu_room() };
                let free = || free.map_or(u64::MAX, |free| free / 5 * 4);
                let limit = training.max_memory_mb.map_or_else(free, |megabytes| megabytes.saturating_mul(1 << 20));
                MemoryEstimate::most_within(layers, limit, |kept| self.memory_with(recipe, kept))
            }
        }
    }

    fn memory_with(&self, recipe: &Recipe, kept_layers: usize) -> MemoryEstimate {
        let Device::Gpu(gpu) = &self.device else { return self.cpu_memory(recipe, kept_layers) };
        let adapter = (self.rehearsal.report.adapter_parameters, recipe.lora.r);
        let kept = (kept_layers, offloads(recipe), objectives::build(&recipe.objective).needs().reference);
        let (weights, tokens) = (self.gpu_weights_bytes(), self.micro_batches.most_tokens);
        MemoryEstimate::on_gpu(weights, adapter, self.dimensions(), tokens, kept, self.compute)
            .with_workspace(gpu.memory().workspace as u64)
    }

    /// What a run will hold on the CPU: its micro-batches are rehearsed on the model without weights.
    fn cpu_memory(&self, recipe: &Recipe, kept_layers: usize) -> MemoryEstimate {
        if let Some(known) = self.estimates.borrow().get(&kept_layers) {
            return *known;
        }
        let estimate = self.rehearsed(recipe, kept_layers);
        self.estimates.borrow_mut().insert(kept_layers, estimate);
        estimate
    }

    fn rehearsed(&self, recipe: &Recipe, kept_layers: usize) -> MemoryEstimate {
        let (objective, pool, ledger) = (objectives::build(&recipe.objective), Pool::default(), Ledger::default());
        let engine = Engine { kept_layers, ..self.engine(recipe, &self.rehearsal, &*objective, &pool) };
        let MicroBatches { trained, validation, .. } = &self.micro_batches;
        if let Err(error) = engine.rehearse(trained, recipe.lora.lora_dropout > 0.0, validation, &ledger) {
            tracing::warn!(%error, "internal: the steps could not be rehearsed; the estimate of memory lacks their buffers");
        }
        let Held { buffers, allocated, touched } = ledger.held();
        tracing::debug!(buffers, allocated, touched, "the buffers that steps will take");
        let report = &self.rehearsal.report;
        MemoryEstimate::on_cpu(self.program_bytes, report.bytes, report.adapter_parameters, touched)
    }

    /// What may not fit.
    pub(super) fn memory_warnings(&self, recipe: &Recipe) -> Vec<String> {
        let memory = self.memory(recipe);
        let mut warnings = Vec::new();
        let limit = recipe.training.max_memory_mb.filter(|limit| memory.total > limit.saturating_mul(1 << 20));
        if let Some(limit) = limit.filter(|_| recipe.training.gradient_checkpointing == GradientCheckpointing::Auto) {
            warnings.push(format!(
                "the run may need {} MB with no activation kept, and `training.max_memory_mb` is {limit}",
                memory.total >> 20
            ));
        }
        if let Some(available) = self.cpu_room().filter(|&available| self.device.is_cpu() && memory.total > available) {
            warnings.push(format!(
                "the run may need {} MB, and {} MB are free: set `training.gradient_checkpointing: layer`, or a smaller \
                 `training.micro_batch_size` or `data.max_seq_len`",
                memory.total >> 20,
                available >> 20
            ));
        }
        if let Some(free) = self.gpu_room().filter(|&free| memory.total > free) {
            let offload = if offloads(recipe) { "" } else { "`training.gradient_checkpointing: offload`, " };
            warnings.push(format!(
                "the run may need {} MiB of the GPU's memory, and {} MiB are free: set {offload}a smaller \
                 `training.micro_batch_size`, `data.max_seq_len` or `quantization.type`; else micro-batches are halved until \
                 they fit",
                memory.total >> 20,
                free >> 20
            ));
        }
        if self.device.is_cpu() && offloads(recipe) {
            warnings.push("`training.gradient_checkpointing: offload` is `layer` on the CPU".into());
        }
        warnings
    }
}

/// What the process holds by now, in bytes.
pub(super) fn program_bytes() -> u64 {
    process_memory().map_or(PROGRAM, |(_, now)| now)
}

/// Whether layers' inputs wait in the CPU's memory.
pub(super) fn offloads(recipe: &Recipe) -> bool {
    recipe.training.gradient_checkpointing == GradientCheckpointing::Offload
}

/// Bytes of the embeddings, where they are not the head's as well.
fn embedding_bytes(rehearsal: &Model) -> u64 {
    let held = &rehearsal.report.held;
    let head = held.contains_key("lm_head.weight");
    match held.get("model.embed_tokens.weight").filter(|_| head) {
        Some(dtype) => {
            let numbers = rehearsal.lm.dimensions.vocabulary * rehearsal.lm.dimensions.hidden;
            dtype.bytes(numbers) as u64
        }
        None => 0,
    }
}
