//! A micro-batch on candle's graph, on the CPU: one graph a layer, so that it can be dropped and built again.

use super::{Engine, Head, Loss, Seen};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::models::TapeContext;
use crate::nn::Gradients;
use crate::ops::composed::{self, Reference};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

impl Engine<'_> {
    /// The loss of a batch, without gradients and without dropout.
    pub(super) fn evaluate_tape(&self, batch: &Batch) -> Result<Loss> {
        let normalized = self.tape_forward(batch, true)?;
        Ok(self.tape_head(batch, &normalized, self.tape_reference(batch)?.as_ref())?.0)
    }

    /// What the head multiplies, with the adapter or without it; without gradients and dropout.
    fn tape_forward(&self, batch: &Batch, adapter: bool) -> Result<Tensor> {
        let context = self.tape_context(batch, None, adapter)?;
        let mut hidden = self.tape_embed(batch)?;
        for index in 0..self.lm.layers.len() {
            hidden = self.lm.tape_layer(index, &hidden, &context)?.detach();
        }
        Ok(self.lm.tape_norm(&hidden)?)
    }

    /// What the base alone gives the head, where the objective needs it.
    fn tape_reference(&self, batch: &Batch) -> Result<Option<Tensor>> {
        self.objective.needs().reference.then(|| self.tape_forward(batch, false)).transpose()
    }

    /// The loss of a batch; its gradients are added to `gradients`.
    pub(super) fn accumulate_tape(
        &self,
        batch: &Batch,
        dropout_keys: Option<&[u64]>,
        gradients: &mut Gradients,
    ) -> Result<Loss> {
        let context = self.tape_context(batch, dropout_keys, true)?;
        let mut inputs = Vec::with_capacity(self.lm.layers.len());
        let mut hidden = self.tape_embed(batch)?;
        for index in 0..self.lm.layers.len() {
            let output = self.lm.tape_layer(index, &hidden, &context)?.detach();
            inputs.push(std::mem::replace(&mut hidden, output));
        }
        let input = Var::from_tensor(&hidden)?;
        let normalized = self.lm.tape_norm(&input)?;
        let reference = self.tape_reference(batch)?;
        let (loss, Some(pulled)) = self.tape_head(batch, &normalized.detach(), reference.as_ref())? else {
            return Err(Error::invalid("internal: the head gave no gradient"));
        };
        if loss.supervised == 0 {
            return Ok(loss);
        }
        let mut gradient = pull(&normalized, &pulled, &input)?.1;
        for (index, input) in inputs.iter().enumerate().rev() {
            let input = Var::from_tensor(input)?;
            let output = self.lm.tape_layer(index, &input, &context)?;
            let (mut store, pulled) = pull(&output, &gradient, &input)?;
            gradient = pulled;
            self.collect(&mut store, gradients)?;
        }
        Ok(loss)
    }

    fn tape_context<'a>(
        &self,
        batch: &Batch,
        dropout_keys: Option<&'a [u64]>,
        adapter: bool,
    ) -> Result<TapeContext<'a>> {
        let shape = (batch.rows, batch.width);
        let (positions, segments) = (&batch.position_ids, &batch.segment_ids);
        Ok(TapeContext::new(self.lm, shape, positions, segments, dropout_keys, adapter)?)
    }

    fn tape_embed(&self, batch: &Batch) -> Result<Tensor> {
        let ids = Tensor::from_slice(&batch.input_ids, (batch.rows, batch.width), &Device::Cpu)?;
        Ok(self.lm.tape_embed(&ids)?)
    }

    /// The loss, and the weighted gradient of `normalized` where anything is supervised.
    fn tape_head(
        &self,
        batch: &Batch,
        normalized: &Tensor,
        reference: Option<&Tensor>,
    ) -> Result<(Loss, Option<Tensor>)> {
        let head = Head::of(batch);
        if head.labels.is_empty() {
            return Ok((head.nothing(), Some(normalized.zeros_like()?)));
        }
        let rows = batch.rows * batch.width;
        let places: Vec<u32> = head.places.iter().map(|&place| place as u32).collect();
        let places = Tensor::new(places.as_slice(), &Device::Cpu)?;
        let pick = |of: &Tensor| of.reshape((rows, ()))?.index_select(&places, 0);
        let (weight, cap, top_k) = (&self.lm.lm_head, self.lm.logits_softcap, self.objective.needs().top_k);
        let hidden = pick(normalized)?;
        let pass = composed::head(&hidden, weight, &head.labels, cap, top_k)?;
        let reference =
            reference.map(|reference| composed::divergences(&hidden, &pick(reference)?, weight)).transpose()?;
        let seen = Seen {
            log_probabilities: &pass.log_probabilities,
            top1: &pass.top1,
            entropies: &pass.entropies,
            divergences: reference.as_ref().map_or(&[], |reference| &reference.divergences),
        };
        let (loss, factors) = head.loss(self.objective, &seen);
        let mut weighted = pass.gradient.broadcast_mul(&column(&factors.cross_entropy)?)?;
        if let Some(Reference { gradient, .. }) = reference {
            weighted = (weighted + gradient.broadcast_mul(&column(&factors.divergence)?)?)?;
        }
        let spread = Tensor::zeros((rows, self.lm.dimensions.hidden), DType::F32, &Device::Cpu)?;
        let spread = spread.index_add(&places, &weighted, 0)?.reshape(normalized.shape())?;
        Ok((loss, Some(spread)))
    }

    fn collect(&self, store: &mut GradStore, gradients: &mut Gradients) -> Result<()> {
        for (name, variable) in self.params.iter() {
            let Some(gradient) = store.remove(variable) else { continue };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            let mut sum = gradients.take(name, gradient.len());
            sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
            gradients.put(name, sum);
        }
        Ok(())
    }
}

fn column(numbers: &[f64]) -> Result<Tensor> {
    let numbers: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
    Ok(Tensor::from_slice(&numbers, (numbers.len(), 1), &Device::Cpu)?)
}

/// Pulls `gradient` from `output` back to `input`: all gradients on the way, and that of the input.
fn pull(output: &Tensor, gradient: &Tensor, input: &Var) -> Result<(GradStore, Tensor)> {
    let mut store = (output * gradient.detach())?.sum_all()?.backward()?;
    let gradient = store.remove(input).ok_or_else(|| Error::invalid("internal: a layer's input got no gradient"))?;
    Ok((store, gradient.detach()))
}
