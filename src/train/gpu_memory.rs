//! A GPU's memory during a run: taken in one piece, and what is done when it is full.

use super::backward::Engine;
use super::trainer::Trainer;
use super::{Event, MemoryEstimate, Observer};
use crate::error::{Error, Result};

/// What an estimate of a GPU's memory is made from, besides what an [`Engine`] knows.
#[derive(Debug, Clone, Copy)]
pub struct GpuBudget {
    /// Bytes of the frozen weights that are on it.
    pub weights: u64,
    /// The adapter's numbers, and its rank.
    pub adapter: (usize, usize),
    /// Bytes that this program has of it, or could have.
    pub memory: u64,
}

impl Engine<'_> {
    /// What a GPU's memory is estimated to need for micro-batches of so many tokens.
    pub fn gpu_estimate(&self, budget: &GpuBudget, tokens: usize) -> MemoryEstimate {
        let kept = (self.kept_layers, self.offload, self.objective.needs().reference);
        let workspace = self.device.gpu().map_or(0, |gpu| gpu.memory().workspace as u64);
        MemoryEstimate::on_gpu(budget.weights, budget.adapter, &self.lm.dimensions, tokens, kept, self.compute)
            .with_workspace(workspace)
    }

    /// Takes what a step will need of a GPU's memory in one piece, behind what stays for the whole run.
    ///
    /// # Errors
    /// When what stays does not fit, or the driver fails.
    pub fn reserve(&self, budget: &GpuBudget) -> Result<()> {
        let Some(gpu) = self.device.gpu() else { return Ok(()) };
        if let Some(memory) = self.params.memory() {
            memory.operands(self.compute)?;
            memory.begin_step()?;
        }
        gpu.trim();
        let estimate = self.gpu_estimate(budget, self.capacity);
        Ok(gpu.reserve(usize::try_from(estimate.activations + estimate.head).unwrap_or(usize::MAX))?)
    }
}

impl Trainer<'_> {
    /// Where `error` is that a GPU's memory is full: keeps no activations, or else halves the micro-batches. The result of a
    /// step depends on neither.
    ///
    /// # Errors
    /// When it is another error, or there is nothing left to halve.
    pub(super) fn make_room(&mut self, error: Error, tokens: Option<usize>, observer: &mut dyn Observer) -> Result<()> {
        let Some(gpu) = self.engine.device.gpu() else { return Err(error) };
        let Some(refusal) = gpu.take_refusal() else { return Err(error) };
        gpu.trim();
        let full = match refusal.wanted >> 20 {
            0 => "the GPU's memory is full".to_owned(),
            wanted => format!("the GPU's memory is full ({wanted} MiB more were needed)"),
        };
        if self.engine.kept_layers > 0 {
            self.engine.kept_layers = 0;
            self.reserve()?;
            let what = "all activations are computed again from here on, which changes time, not the result";
            observer.event(&Event::Note(format!("{full}: {what}")));
            return Ok(());
        }
        if self.micro_batch_size > 1 {
            let rows = self.micro_batch_size / 2;
            let times = self.micro_batch_size.div_ceil(rows);
            self.micro_batch_size = rows;
            // Buffers had room for what does not fit.
            self.engine.capacity = self.engine.capacity.div_ceil(times).max(tokens.unwrap_or(0));
            self.reserve()?;
            observer.event(&Event::Note(format!(
                "{full}: from here on micro-batches of {rows} and {times} times as many of them, which changes time, not the \
                 result"
            )));
            return Ok(());
        }
        let row = tokens.map_or(String::new(), |tokens| format!(" of up to {tokens} tokens"));
        let fits = self.gpu.map(|budget| {
            // Fewer than what was refused, whatever is estimated.
            let most = tokens.unwrap_or(self.engine.capacity).saturating_sub(1);
            MemoryEstimate::most_within(most, budget.memory, |tokens| self.engine.gpu_estimate(&budget, tokens))
        });
        let fits =
            fits.filter(|&fits| fits > 1).map_or(String::new(), |fits| format!("; about {fits} tokens would fit"));
        let offload = if self.engine.offload { "" } else { "`training.gradient_checkpointing: offload`, or " };
        Err(Error::invalid(format!("device: {full}, with one row{row} at a time{fits}"))
            .with_help(format!("set {offload}a smaller `data.max_seq_len` or `quantization.type`")))
    }

    /// As [`Engine::reserve`].
    pub(super) fn reserve(&self) -> Result<()> {
        self.gpu.as_ref().map_or(Ok(()), |budget| self.engine.reserve(budget))
    }
}
