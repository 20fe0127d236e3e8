//! A GPU's memory during a run: taken in one piece, and what is done when it is full.

use super::trainer::Trainer;
use super::{Event, Observer};
use crate::error::{Error, Result};

/// Estimates of a GPU's memory.
#[derive(Debug, Clone, Copy)]
pub struct GpuEstimate {
    /// Tokens of a micro-batch that fit.
    pub fitting_tokens: usize,
    /// Bytes that activations and head take, with as many layers' activations kept as is planned.
    pub workspace: u64,
    /// The same with none kept.
    pub least_workspace: u64,
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
            self.gpu = self.gpu.map(|gpu| GpuEstimate { workspace: gpu.least_workspace, ..gpu });
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
            self.engine.capacity = self.engine.capacity.div_ceil(times);
            self.gpu = self.gpu.map(|gpu| GpuEstimate { workspace: gpu.workspace / times as u64, ..gpu });
            self.reserve()?;
            observer.event(&Event::Note(format!(
                "{full}: from here on micro-batches of {rows} and {times} times as many of them, which changes time, not the \
                 result"
            )));
            return Ok(());
        }
        let row = tokens.map_or(String::new(), |tokens| format!(" of up to {tokens} tokens"));
        let fits = self.gpu.map(|gpu| gpu.fitting_tokens).filter(|&fits| fits > 0);
        let fits = fits.map_or(String::new(), |fits| format!("; about {fits} tokens would fit"));
        let offload = if self.engine.offload { "" } else { "`training.gradient_checkpointing: offload`, or " };
        Err(Error::invalid(format!("device: {full}, with one row{row} at a time{fits}"))
            .with_help(format!("set {offload}a smaller `data.max_seq_len` or `quantization.type`")))
    }

    /// Takes what a step will need of a GPU's memory in one piece, behind what stays for the whole run.
    pub(super) fn reserve(&self) -> Result<()> {
        let (Some(gpu), Some(estimate)) = (self.engine.device.gpu(), self.gpu) else { return Ok(()) };
        if let Some(memory) = self.engine.params.memory() {
            memory.operands(self.engine.compute)?;
            memory.begin_step()?;
        }
        gpu.trim();
        Ok(gpu.reserve(usize::try_from(estimate.workspace).unwrap_or(usize::MAX))?)
    }
}
