//! One micro-batch forward and backward: loss and gradients.
//!
//! On the CPU and on a GPU by the same code (`pass`), with operations of our own; on candle's graph (`tape`) only to test them.

mod pass;
mod sums;
mod tape;

pub use sums::GradientSums;

use crate::data::Batch;
use crate::device::{Device, Gpu};
use crate::error::{Error, Result};
use crate::models::CausalLm;
use crate::nn::{AdapterParams, Gradients};
use crate::objectives::{LabelLogProbs, Objective, Observations, StepTotals};
use crate::ops::{Compute, Element, Ledger, Pool};
use crate::rng;
use candle_core::Tensor;
use half::bf16;
use pass::Tokens;
use std::collections::BTreeMap;

/// What a micro-batch adds to its step.
#[derive(Debug, Clone, Default)]
pub struct Loss {
    /// The objective's loss before its division.
    pub sum: f64,
    /// `Σ weight`, the factors of the tokens' cross-entropies.
    pub weight: f64,
    /// `Σ ce` of the supervised tokens, in nats.
    pub cross_entropy: f64,
    /// Supervised tokens.
    pub supervised: usize,
    /// `Σ p` of the supervised tokens.
    pub probability: f64,
    /// Of the supervised tokens, those with a probability above one half.
    pub likely: usize,
    /// Of the supervised tokens, those that the model ranks first.
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
        self.weight += other.weight;
        self.cross_entropy += other.cross_entropy;
        self.supervised += other.supervised;
        self.probability += other.probability;
        self.likely += other.likely;
        self.top1 += other.top1;
        self.tokens += other.tokens;
        self.observations.join(other.observations);
    }

    /// What loss and gradients of so many samples are divided by.
    pub fn denominator(&self, objective: &dyn Objective, samples: usize) -> f64 {
        objective.denominator(&StepTotals { samples, supervised_tokens: self.supervised, weight: self.weight })
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
    /// Whether a GPU's layers' inputs wait in the CPU's memory.
    pub offload: bool,
    /// The type of products and activations.
    pub compute: Compute,
    /// Where it runs.
    pub device: &'a Device,
    /// Where buffers come from.
    pub pool: &'a Pool,
    /// The most tokens of a micro-batch, if it is known: what buffers have room for.
    pub capacity: usize,
}

/// The sums of one optimizer step, where they were made.
pub struct StepSums<'a> {
    /// Sums over the micro-batches.
    pub loss: Loss,
    /// What loss and gradients are divided by.
    pub denominator: f64,
    /// Sums of gradients, not yet divided.
    pub gradients: GradientSums<'a>,
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

impl<'e> Engine<'e> {
    /// Loss and gradients of an optimizer step: sums over its micro-batches, and the number that both are divided by, once.
    /// `dropout_keys` has the keys of each micro-batch's tokens where dropout is on.
    ///
    /// # Errors
    /// When shapes do not fit, an adapter tensor gets no gradient, or a GPU's memory is full.
    pub fn sums(
        &self,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>> + Send,
    ) -> Result<StepSums<'e>> {
        match self.device {
            // From within the pool: a thread outside would hand each small task over, and sleep.
            Device::Cpu => rayon::scope(|_| self.sums_cpu(Self::accumulate_cpu, batches, dropout_keys)),
            Device::Gpu(gpu) => self.sums_gpu(gpu, batches, dropout_keys),
        }
    }

    /// [`Self::sums`], with the gradients by name on the CPU.
    ///
    /// # Errors
    /// As [`Self::sums`].
    pub fn step(
        &self,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>> + Send,
    ) -> Result<StepGradients> {
        let StepSums { loss, denominator, gradients } = self.sums(batches, dropout_keys)?;
        Ok(StepGradients { loss, denominator, gradients: gradients.into_tensors(self.params)? })
    }

    /// [`Self::step`] on candle's graph, on the CPU: what the kernels are tested against.
    ///
    /// # Errors
    /// As [`Self::step`].
    #[doc(hidden)]
    pub fn step_on_tape(
        &self,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>>,
    ) -> Result<StepGradients> {
        let StepSums { loss, denominator, gradients } = self.sums_cpu(Self::accumulate_tape, batches, dropout_keys)?;
        Ok(StepGradients { loss, denominator, gradients: gradients.into_tensors(self.params)? })
    }

    /// [`Self::evaluate`] on candle's graph, on the CPU.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    #[doc(hidden)]
    pub fn evaluate_on_tape(&self, batch: &Batch) -> Result<Loss> {
        self.evaluate_tape(batch)
    }

    fn sums_cpu(
        &self,
        accumulate: impl Fn(&Self, &Batch, Option<&[u64]>, &mut Gradients) -> Result<Loss>,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>>,
    ) -> Result<StepSums<'e>> {
        let (mut loss, mut gradients) = (Loss::default(), Gradients::new(self.pool));
        for (i, batch) in batches.iter().enumerate() {
            loss.join(accumulate(self, batch, dropout_keys(i).as_deref(), &mut gradients)?);
        }
        self.check_complete(&loss, gradients.len())?;
        Ok(self.step_sums(batches, loss, GradientSums::Cpu(gradients)))
    }

    fn sums_gpu(
        &self,
        gpu: &Gpu,
        batches: &[Batch],
        dropout_keys: impl Fn(usize) -> Option<Vec<u64>>,
    ) -> Result<StepSums<'e>> {
        let Some(memory) = self.params.memory() else {
            return Err(Error::invalid("internal: the adapter is not on the GPU"));
        };
        memory.begin_step()?;
        let mut loss = Loss::default();
        for (i, batch) in batches.iter().enumerate() {
            let tokens = Tokens::of(batch);
            let keys = dropout_keys(i).map(|keys| tokens.pick(&keys));
            let context = self.gpu_context(gpu, batch, &tokens, (keys.as_deref(), true))?;
            let base = self.gpu_reference(gpu, batch, &tokens, true)?;
            loss.join(self.accumulate_on(&context, base.as_ref(), batch, &tokens, &mut ())?);
        }
        self.check_complete(&loss, memory.touched()?)?;
        Ok(self.step_sums(batches, loss, GradientSums::Gpu(memory)))
    }

    fn check_complete(&self, loss: &Loss, got: usize) -> Result<()> {
        let all = self.params.len();
        if loss.supervised > 0 && got != all {
            return Err(Error::invalid(format!("internal: {got} of {all} adapter tensors got a gradient")));
        }
        Ok(())
    }

    fn step_sums(&self, batches: &[Batch], loss: Loss, gradients: GradientSums<'e>) -> StepSums<'e> {
        let samples = batches.iter().map(Batch::samples).sum();
        let denominator = loss.denominator(self.objective, samples);
        StepSums { loss, denominator, gradients }
    }

    /// The loss of a batch, without gradients and without dropout.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn evaluate(&self, batch: &Batch) -> Result<Loss> {
        self.evaluate_with(batch, true)
    }

    /// As [`Self::evaluate`], of the base alone.
    ///
    /// # Errors
    /// As [`Self::evaluate`].
    pub fn evaluate_base(&self, batch: &Batch) -> Result<Loss> {
        self.evaluate_with(batch, false)
    }

    fn evaluate_with(&self, batch: &Batch, adapter: bool) -> Result<Loss> {
        let tokens = Tokens::of(batch);
        if let Device::Gpu(gpu) = self.device {
            let context = self.gpu_context(gpu, batch, &tokens, (None, adapter))?;
            let base = self.gpu_reference(gpu, batch, &tokens, adapter)?;
            return self.evaluate_on(&context, base.as_ref(), batch, &tokens);
        }
        rayon::scope(|_| match self.compute {
            Compute::F32 => self.evaluate_in::<f32>(batch, &tokens, adapter),
            Compute::Bf16 => self.evaluate_in::<bf16>(batch, &tokens, adapter),
        })
    }

    fn evaluate_in<E: Element>(&self, batch: &Batch, tokens: &Tokens, adapter: bool) -> Result<Loss> {
        let context = self.cpu_context::<E>(batch, tokens, (None, adapter));
        let base = self.cpu_reference::<E>(batch, tokens, adapter);
        self.evaluate_on(&context, base.as_ref(), batch, tokens)
    }

    /// Lends from `ledger` what the batches take on the CPU: each is trained on, with or without `dropout`, and measured with
    /// the adapter and without it; those of `validation` are measured alone, first. The model may be a plan's.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn rehearse(&self, trained: &[Batch], dropout: bool, validation: &[Batch], ledger: &Ledger) -> Result<()> {
        let one = |batch, how| match self.compute {
            Compute::F32 => self.rehearse_in::<f32>(batch, how, ledger),
            Compute::Bf16 => self.rehearse_in::<bf16>(batch, how, ledger),
        };
        for batch in validation {
            one(batch, (false, true, false))?;
        }
        for batch in trained {
            for how in [(true, true, dropout), (false, true, false), (false, false, false)] {
                one(batch, how)?;
            }
        }
        Ok(())
    }

    fn accumulate_cpu(&self, batch: &Batch, dropout_keys: Option<&[u64]>, gradients: &mut Gradients) -> Result<Loss> {
        match self.compute {
            Compute::F32 => self.accumulate_in::<f32>(batch, dropout_keys, gradients),
            Compute::Bf16 => self.accumulate_in::<bf16>(batch, dropout_keys, gradients),
        }
    }

    fn accumulate_in<E: Element>(
        &self,
        batch: &Batch,
        dropout_keys: Option<&[u64]>,
        gradients: &mut Gradients,
    ) -> Result<Loss> {
        let tokens = Tokens::of(batch);
        let dropout_keys = dropout_keys.map(|keys| tokens.pick(keys));
        let context = self.cpu_context::<E>(batch, &tokens, (dropout_keys.as_deref(), true));
        let base = self.cpu_reference::<E>(batch, &tokens, true);
        self.accumulate_on(&context, base.as_ref(), batch, &tokens, gradients)
    }
}

/// The supervised predictions of a batch.
struct Head {
    /// Flat indices of the hidden states that predict, ascending.
    places: Vec<usize>,
    labels: Vec<u32>,
    /// Predictions of each sample.
    lengths: Vec<usize>,
    /// The weight of each sample.
    row_weights: Vec<f32>,
    tokens: usize,
}

/// What a model says of a batch's supervised predictions.
struct Seen<'a> {
    log_probabilities: &'a [f64],
    top1: &'a [bool],
    /// Empty unless the objective needs them.
    entropies: &'a [f64],
    divergences: &'a [f64],
}

/// What each prediction's gradient is multiplied by.
struct Factors {
    cross_entropy: Vec<f64>,
    divergence: Vec<f64>,
}

impl Head {
    fn of(batch: &Batch) -> Self {
        let targets = batch.supervised_targets();
        let mut lengths = vec![0; batch.samples()];
        for target in &targets {
            lengths[target.sample] += 1;
        }
        debug_assert_eq!(batch.weights.len(), lengths.len(), "each sample has a weight");
        Self {
            places: targets.iter().map(|target| target.position).collect(),
            labels: targets.iter().map(|target| target.label).collect(),
            lengths,
            row_weights: batch.weights.clone(),
            tokens: batch.tokens(),
        }
    }

    /// The loss where nothing is supervised.
    fn nothing(&self) -> Loss {
        Loss { tokens: self.tokens, ..Loss::default() }
    }

    /// The objective's loss, and the factors of its gradient. A row's weight is a factor of both.
    fn loss(&self, objective: &dyn Objective, seen: &Seen<'_>) -> (Loss, Factors) {
        let Seen { log_probabilities, top1, entropies, divergences } = *seen;
        let labels = LabelLogProbs { log_probabilities, lengths: &self.lengths, entropies, divergences };
        let weighted = objective.weigh(&labels);
        let of_tokens = self.lengths.iter().zip(&self.row_weights);
        let rows: Vec<f64> =
            of_tokens.flat_map(|(&length, &weight)| std::iter::repeat_n(f64::from(weight), length)).collect();
        let cross_entropy: Vec<f64> = weighted.weights.iter().zip(&rows).map(|(weight, row)| weight * row).collect();
        let loss = Loss {
            sum: weighted.losses.iter().zip(&rows).map(|(loss, row)| loss * row).sum::<f64>(),
            weight: cross_entropy.iter().sum(),
            cross_entropy: -log_probabilities.iter().sum::<f64>(),
            probability: log_probabilities.iter().map(|log_p| log_p.exp()).sum(),
            likely: log_probabilities.iter().filter(|&&log_p| log_p > -std::f64::consts::LN_2).count(),
            supervised: self.labels.len(),
            top1: top1.iter().filter(|&&top| top).count(),
            tokens: self.tokens,
            observations: weighted.observations,
        };
        let divergence = rows.iter().map(|row| weighted.divergence_weight * row).collect();
        (loss, Factors { cross_entropy, divergence })
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
