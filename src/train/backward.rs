//! One micro-batch forward and backward, layer by layer.
//!
//! Each layer is a graph of its own, from a variable that holds its input. The backward pass starts from the gradient of the
//! layer's output and pulls it through to the input. Under [`GradientCheckpointing::Layer`] the forward pass drops the graph
//! and the backward pass builds it again from the same input, with the same operations: no bit of the result changes.

use super::GradientCheckpointing;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::models::CausalLm;
use crate::nn::{AdapterParams, ForwardContext};
use crate::objectives::{LabelLogProbs, Objective, Observations};
use crate::ops::{HeadPass, linear_cross_entropy, seed_gradient};
use crate::rng;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Sums of gradients by tensor name, over the micro-batches of a step; not yet divided by the step's denominator.
pub type Gradients = BTreeMap<String, Tensor>;

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
    pub lm: &'a dyn CausalLm,
    /// Its adapter.
    pub params: &'a AdapterParams,
    /// What is minimised.
    pub objective: &'a dyn Objective,
    /// Which activations are kept.
    pub checkpointing: GradientCheckpointing,
    /// Where it runs.
    pub device: &'a Device,
}

/// What is kept of a layer between the forward and the backward pass.
enum Kept {
    /// Its input only.
    Input(Tensor),
    /// Its input and its output, with the graph in between.
    Graph(Var, Tensor),
}

/// The gradients of one optimizer step.
pub struct StepGradients {
    /// Sums over the micro-batches.
    pub loss: Loss,
    /// What loss and gradients are divided by.
    pub denominator: f64,
    /// Sums of gradients, not yet divided.
    pub gradients: Gradients,
}

impl Engine<'_> {
    /// Loss and gradients of an optimizer step: sums over its micro-batches, and the number that both are divided by, once.
    /// `dropout_keys` has the keys of each micro-batch's tokens where dropout is on.
    ///
    /// # Errors
    /// As [`Self::accumulate`].
    pub fn step(&self, batches: &[Batch], dropout_keys: impl Fn(usize) -> Option<Arc<[u64]>>) -> Result<StepGradients> {
        let (mut loss, mut gradients) = (Loss::default(), Gradients::new());
        for (i, batch) in batches.iter().enumerate() {
            loss.join(self.accumulate(batch, dropout_keys(i), &mut gradients)?);
        }
        let samples = batches.iter().map(Batch::samples).sum();
        let denominator = self.objective.denominator(samples, loss.supervised);
        Ok(StepGradients { loss, denominator, gradients })
    }

    /// The loss of a batch, without gradients and without dropout.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn evaluate(&self, batch: &Batch) -> Result<Loss> {
        let context = self.context(batch, None);
        let mut hidden = self.embed(batch)?;
        for index in 0..self.lm.dimensions().layers {
            hidden = self.lm.layer(index, &hidden, &context)?.detach();
        }
        let (_, _, loss) = self.head(batch, &self.lm.final_norm(&hidden)?, false)?;
        Ok(loss)
    }

    /// The loss of a batch; its gradients are added to `gradients`. `dropout_keys` has a key for each token where dropout is
    /// on.
    ///
    /// # Errors
    /// When shapes do not fit, or an adapter tensor gets no gradient.
    pub fn accumulate(
        &self,
        batch: &Batch,
        dropout_keys: Option<Arc<[u64]>>,
        gradients: &mut Gradients,
    ) -> Result<Loss> {
        let context = self.context(batch, dropout_keys);
        let mut layers = Vec::with_capacity(self.lm.dimensions().layers);
        let mut hidden = self.embed(batch)?;
        for index in 0..self.lm.dimensions().layers {
            let (kept, output) = self.forward_layer(index, hidden, &context)?;
            layers.push(kept);
            hidden = output;
        }

        let input = Var::from_tensor(&hidden)?;
        let normalized = self.lm.final_norm(&input)?;
        let (positions, pass, loss) = self.head(batch, &normalized, true)?;
        let Some(pulled) = pass else {
            return Ok(loss); // Nothing is supervised: no gradient.
        };
        let (rows, width) = (batch.rows * batch.width, self.lm.dimensions().hidden);
        let positions = Tensor::new(positions.as_slice(), self.device)?;
        let spread = Tensor::zeros((rows, width), DType::F32, self.device)?.index_add(&positions, &pulled, 0)?;
        let mut gradient = pull(&normalized, &spread.reshape(normalized.shape())?, &input)?.1;

        let mut seen = 0;
        for (index, kept) in layers.into_iter().enumerate().rev() {
            let (input, output) = match kept {
                Kept::Graph(input, output) => (input, output),
                Kept::Input(input) => self.graph(index, &input, &context)?,
            };
            let (mut store, pulled) = pull(&output, &gradient, &input)?;
            gradient = pulled;
            seen += self.collect(&mut store, gradients)?;
        }
        if seen != self.params.len() {
            return Err(Error::invalid(format!(
                "internal: {seen} of {} adapter tensors got a gradient",
                self.params.len()
            )));
        }
        Ok(loss)
    }

    fn context(&self, batch: &Batch, dropout_keys: Option<Arc<[u64]>>) -> ForwardContext<'static> {
        ForwardContext {
            rope: self.lm.rope(&batch.position_ids),
            segments: batch.segment_ids.clone().into(),
            dropout_keys,
            adapter: true,
            cache: None,
        }
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let ids = Tensor::from_slice(&batch.input_ids, (batch.rows, batch.width), self.device)?;
        Ok(self.lm.embed(&ids)?)
    }

    fn graph(&self, index: usize, input: &Tensor, context: &ForwardContext<'_>) -> Result<(Var, Tensor)> {
        let input = Var::from_tensor(input)?;
        let output = self.lm.layer(index, &input, context)?;
        Ok((input, output))
    }

    fn forward_layer(&self, index: usize, input: Tensor, context: &ForwardContext<'_>) -> Result<(Kept, Tensor)> {
        match self.checkpointing {
            GradientCheckpointing::None => {
                let (input, output) = self.graph(index, &input, context)?;
                let detached = output.detach();
                Ok((Kept::Graph(input, output), detached))
            }
            GradientCheckpointing::Layer => {
                let output = self.lm.layer(index, &input, context)?.detach();
                Ok((Kept::Input(input), output))
            }
        }
    }

    /// Positions of the targets, the weighted gradient there, and the loss.
    fn head(&self, batch: &Batch, normalized: &Tensor, train: bool) -> Result<(Vec<u32>, Option<Tensor>, Loss)> {
        let targets = batch.supervised_targets();
        let positions: Vec<u32> = targets.iter().map(|target| target.position as u32).collect();
        let mut loss = Loss { tokens: batch.tokens(), supervised: targets.len(), ..Loss::default() };
        if targets.is_empty() {
            return Ok((positions, None, loss));
        }
        let labels: Vec<u32> = targets.iter().map(|target| target.label).collect();
        let mut lengths = vec![0; batch.samples()];
        for target in &targets {
            lengths[target.sample] += 1;
        }

        let flat = normalized.detach().reshape((batch.rows * batch.width, ()))?;
        let hidden = flat.index_select(&Tensor::new(positions.as_slice(), self.device)?, 0)?;
        let HeadPass { log_probabilities, top1, gradient } =
            linear_cross_entropy(&hidden, self.lm.lm_head(), &labels, train)?;

        let labels = LabelLogProbs { log_probabilities: &log_probabilities, lengths: &lengths };
        let weighted = self.objective.weigh(&labels);
        loss.sum = -weighted.weights.iter().zip(&log_probabilities).map(|(w, log_p)| w * log_p).sum::<f64>();
        loss.cross_entropy = -log_probabilities.iter().sum::<f64>();
        loss.top1 = top1.iter().filter(|&&top| top).count();
        loss.observations = weighted.observations;
        let pulled = match gradient {
            Some(gradient) => {
                let weights: Vec<f32> = weighted.weights.iter().map(|&w| w as f32).collect();
                let weights = Tensor::from_vec(weights, (targets.len(), 1), self.device)?;
                Some(gradient.broadcast_mul(&weights)?)
            }
            None => None,
        };
        Ok((positions, pulled, loss))
    }

    /// Moves the gradients of adapter tensors from `store` to `gradients`, and counts them.
    fn collect(&self, store: &mut GradStore, gradients: &mut Gradients) -> Result<usize> {
        let mut count = 0;
        for (name, variable) in self.params.iter() {
            let Some(gradient) = store.remove(variable) else { continue };
            count += 1;
            let sum = match gradients.get(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            gradients.insert(name.to_owned(), sum.detach());
        }
        Ok(count)
    }
}

/// Pulls `gradient` from `output` back to `input`: all gradients on the way, and that of the input.
fn pull(output: &Tensor, gradient: &Tensor, input: &Var) -> Result<(GradStore, Tensor)> {
    let mut store = seed_gradient(output, gradient)?.backward()?;
    let gradient = store.remove(input).ok_or_else(|| Error::invalid("internal: a layer's input got no gradient"))?;
    Ok((store, gradient.detach()))
}

/// A key for each token of a batch: of the seed, the sample's place in the run, and the token's place in the sample. Padding
/// gets one too, and does not matter.
pub fn dropout_keys(batch: &Batch, seed: u64, samples: &[u64]) -> Arc<[u64]> {
    let label = rng::name_key("dropout");
    let tokens = batch.position_ids.iter().enumerate();
    tokens.map(|(i, &position)| rng::key(seed, &[label, samples[i / batch.width], u64::from(position)])).collect()
}
