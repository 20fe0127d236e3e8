//! One micro-batch forward and backward: loss and gradients.
//!
//! On the CPU with operations of our own (`cpu`), on another device with candle's graph (`tape`); the objective and the
//! accounts are the same.

mod cpu;
mod tape;

use crate::data::Batch;
use crate::error::{Error, Result};
use crate::models::CausalLm;
use crate::nn::{AdapterParams, Gradients};
use crate::objectives::{LabelLogProbs, Objective, Observations};
use crate::ops::{Compute, Pool};
use crate::rng;
use candle_core::{Device, Tensor};
use half::bf16;
use std::collections::BTreeMap;

/// What a micro-batch adds to its step.
#[derive(Debug, Clone, Default)]
pub struct Loss {
    /// `Σ weight·ce`: the objective's loss before its division.
    pub sum: f64,
    /// `Σ ce` of the supervised tokens, in nats.
    pub cross_entropy: f64,
    /// Supervised tokens.
    pub supervised: usize,
    /// Of those, ranked first by the model.
    pub top1: usize,
    /// Tokens without padding.
    pub tokens: usize,
    /// What the objective measured.
    pub observations: Observations,
}

impl Loss {
    /// Adds another micro-batch.
    pub fn join(&mut self, other: Self) {
        self.sum += other.sum;
        self.cross_entropy += other.cross_entropy;
        self.supervised += other.supervised;
        self.top1 += other.top1;
        self.tokens += other.tokens;
        self.observations.join(other.observations);
    }
}

/// A model under an objective, on a device.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// The model.
    pub lm: &'a CausalLm,
    /// Its adapter.
    pub params: &'a AdapterParams,
    /// What is minimised.
    pub objective: &'a dyn Objective,
    /// Of how many of the last layers the activations are kept; those of the others are computed again.
    pub kept_layers: usize,
    /// The type of products and activations.
    pub compute: Compute,
    /// Where it runs.
    pub device: &'a Device,
    /// Where buffers come from.
    pub pool: &'a Pool,
    /// The most tokens of a micro-batch, if it is known: what buffers have room for.
    pub capacity: usize,
}

/// The gradients of one optimizer step.
pub struct StepGradients {
    /// Sums over the micro-batches.
    pub loss: Loss,
    /// What loss and gradients are divided by.
    pub denominator: f64,
    /// Sums of gradients by tensor name, not yet divided.
    pub gradients: BTreeMap<String, Tensor>,
}

impl Engine<'_> {
    /// Loss and gradients of an optimizer step: sums over its micro-batches, and the number that both are divided by, once.
    /// `dropout_keys` has the keys of each micro-batch's tokens where dropout is on.
    ///
    /// # Errors
    /// When shapes do not fit, or an adapter tensor gets no gradient.
    pub fn step(
        &self,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>> + Send,
    ) -> Result<StepGradients> {
        // From within the pool: a thread outside would hand each small task over, and sleep.
        rayon::scope(|_| self.step_with(Self::accumulate, batches, dropout_keys))
    }

    /// [`Self::step`] on candle's graph, whatever the device: what the kernels are tested against.
    ///
    /// # Errors
    /// As [`Self::step`].
    #[doc(hidden)]
    pub fn step_on_tape(
        &self,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>>,
    ) -> Result<StepGradients> {
        self.step_with(Self::accumulate_tape, batches, dropout_keys)
    }

    /// [`Self::evaluate`] on candle's graph, whatever the device.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    #[doc(hidden)]
    pub fn evaluate_on_tape(&self, batch: &Batch) -> Result<Loss> {
        self.evaluate_tape(batch)
    }

    fn step_with(
        &self,
        accumulate: impl Fn(&Self, &Batch, Option<&[u64]>, &mut Gradients) -> Result<Loss>,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>>,
    ) -> Result<StepGradients> {
        let (mut loss, mut gradients) = (Loss::default(), Gradients::default());
        for (i, batch) in batches.iter().enumerate() {
            loss.join(accumulate(self, batch, dropout_keys(i).as_deref(), &mut gradients)?);
        }
        if loss.supervised > 0 && gradients.len() != self.params.len() {
            let (got, all) = (gradients.len(), self.params.len());
            return Err(Error::invalid(format!("internal: {got} of {all} adapter tensors got a gradient")));
        }
        let samples = batches.iter().map(Batch::samples).sum();
        let denominator = self.objective.denominator(samples, loss.supervised);
        let tensors = gradients.into_sums().filter_map(|(name, sum)| {
            let shape = self.params.get(&name)?.shape().clone();
            Some(
                Tensor::from_vec(sum, shape, &Device::Cpu)
                    .and_then(|sum| sum.to_device(self.device))
                    .map(|sum| (name, sum)),
            )
        });
        let gradients = tensors.collect::<candle_core::Result<_>>()?;
        Ok(StepGradients { loss, denominator, gradients })
    }

    /// The loss of a batch, without gradients and without dropout.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn evaluate(&self, batch: &Batch) -> Result<Loss> {
        rayon::scope(|_| match self.compute {
            _ if !self.device.is_cpu() => self.evaluate_tape(batch),
            Compute::F32 => self.evaluate_cpu::<f32>(batch),
            Compute::Bf16 => self.evaluate_cpu::<bf16>(batch),
        })
    }

    fn accumulate(&self, batch: &Batch, dropout_keys: Option<&[u64]>, gradients: &mut Gradients) -> Result<Loss> {
        match self.compute {
            _ if !self.device.is_cpu() => self.accumulate_tape(batch, dropout_keys, gradients),
            Compute::F32 => self.accumulate_cpu::<f32>(batch, dropout_keys, gradients),
            Compute::Bf16 => self.accumulate_cpu::<bf16>(batch, dropout_keys, gradients),
        }
    }
}

/// The supervised predictions of a batch.
struct Head {
    /// Flat indices of the hidden states that predict, ascending.
    places: Vec<usize>,
    labels: Vec<u32>,
    /// Predictions of each sample.
    lengths: Vec<usize>,
    tokens: usize,
}

impl Head {
    fn of(batch: &Batch) -> Self {
        let targets = batch.supervised_targets();
        let mut lengths = vec![0; batch.samples()];
        for target in &targets {
            lengths[target.sample] += 1;
        }
        Self {
            places: targets.iter().map(|target| target.position).collect(),
            labels: targets.iter().map(|target| target.label).collect(),
            lengths,
            tokens: batch.tokens(),
        }
    }

    /// The loss where nothing is supervised.
    fn nothing(&self) -> Loss {
        Loss { tokens: self.tokens, ..Loss::default() }
    }

    /// The objective's loss, and its weight for each prediction.
    fn loss(&self, objective: &dyn Objective, log_probabilities: &[f64], top1: &[bool]) -> (Loss, Vec<f64>) {
        let weighted = objective.weigh(&LabelLogProbs { log_probabilities, lengths: &self.lengths });
        let loss = Loss {
            sum: -weighted.weights.iter().zip(log_probabilities).map(|(w, log_p)| w * log_p).sum::<f64>(),
            cross_entropy: -log_probabilities.iter().sum::<f64>(),
            supervised: self.labels.len(),
            top1: top1.iter().filter(|&&top| top).count(),
            tokens: self.tokens,
            observations: weighted.observations,
        };
        (loss, weighted.weights)
    }
}

/// A key for each token of a batch: of the seed, the sample's place in the run (`rows` has that of each row; the samples of a
/// pack are told apart by their numbers in it), and the token's place in the sample. Padding gets one too, and does not matter.
pub fn dropout_keys(batch: &Batch, seed: u64, rows: &[u64]) -> Vec<u64> {
    let label = rng::name_key("dropout");
    let key = |(i, &position): (usize, &u32)| {
        let (row, position) = (rows[i / batch.width], u64::from(position));
        match batch.segment_ids[i] {
            0 | 1 => rng::key(seed, &[label, row, position]),
            segment => rng::key(seed, &[label, row, position, u64::from(segment)]),
        }
    };
    batch.position_ids.iter().enumerate().map(key).collect()
}
