//! A micro-batch on the CPU, with operations of our own.
//!
//! Padding never enters: the tokens of all samples lie one after the other. A layer keeps its [`Activations`], or its input
//! alone, from which the same code computes them again: no bit of the result changes.

use super::{Engine, Head, Loss};
use crate::data::Batch;
use crate::error::Result;
use crate::nn::{Activations, DecoderLayer, ForwardContext, Gradients};
use crate::ops::{Buffer, Element, Sequence, linear_cross_entropy, numbers, rms_norm, rms_norm_backward};

/// The tokens of a batch without its padding.
struct Tokens {
    /// Where each stands in the batch.
    places: Vec<usize>,
    sequences: Vec<Sequence>,
}

impl Tokens {
    fn of(batch: &Batch) -> Self {
        let (mut places, mut sequences) = (Vec::new(), Vec::<Sequence>::new());
        let mut last = None;
        for (place, &segment) in batch.segment_ids.iter().enumerate() {
            if segment == 0 {
                continue;
            }
            let sample = (place / batch.width, segment);
            let index = places.len();
            places.push(place);
            match sequences.last_mut().filter(|_| last == Some(sample)) {
                Some(sequence) => {
                    sequence.queries.end += 1;
                    sequence.keys.end += 1;
                }
                None => sequences.push(Sequence { queries: index..index + 1, keys: index..index + 1 }),
            }
            last = Some(sample);
        }
        Self { places, sequences }
    }

    fn pick<T: Copy>(&self, from: &[T]) -> Vec<T> {
        self.places.iter().map(|&place| from[place]).collect()
    }
}

/// What is kept of a layer between the forward and the backward pass.
struct Kept<E: Element> {
    input: Buffer<f32>,
    activations: Option<Activations<E>>,
}

impl Engine<'_> {
    /// The loss of a batch, without gradients and without dropout.
    pub(super) fn evaluate_cpu<E: Element>(&self, batch: &Batch) -> Result<Loss> {
        let tokens = Tokens::of(batch);
        let context = self.context::<E>(batch, &tokens, None);
        let mut hidden = self.embed(batch, &tokens, &context)?;
        for layer in &self.lm.layers {
            hidden = layer.forward(&hidden, &context)?.0;
        }
        self.head(batch, &tokens, &hidden, &context, None)
    }

    /// The loss of a batch; its gradients are added to `gradients`.
    pub(super) fn accumulate_cpu<E: Element>(
        &self,
        batch: &Batch,
        dropout_keys: Option<&[u64]>,
        gradients: &mut Gradients,
    ) -> Result<Loss> {
        let tokens = Tokens::of(batch);
        let dropout_keys = dropout_keys.map(|keys| tokens.pick(keys));
        let context = self.context::<E>(batch, &tokens, dropout_keys.as_deref());
        let layers = &self.lm.layers;
        let recomputed = layers.len().saturating_sub(self.kept_layers);
        let mut kept = Vec::with_capacity(layers.len());
        let mut hidden = self.embed(batch, &tokens, &context)?;
        for layer in layers {
            let (output, activations) = layer.forward(&hidden, &context)?;
            // The last layers are kept whole: the backward pass frees them first.
            let activations = (layer.index >= recomputed).then_some(activations);
            kept.push(Kept { input: std::mem::replace(&mut hidden, output), activations });
        }

        let mut gradient = context.take::<f32>(self.lm.dimensions.hidden);
        gradient.fill(0.0);
        let loss = self.head(batch, &tokens, &hidden, &context, Some(&mut gradient))?;
        drop(hidden);
        if loss.supervised == 0 {
            return Ok(loss); // Nothing is supervised: no gradient.
        }
        for (layer, kept) in layers.iter().zip(kept).rev() {
            backward_layer(layer, kept, &mut gradient, &context, gradients)?;
        }
        Ok(loss)
    }

    fn context<'a, E: Element>(
        &'a self,
        batch: &Batch,
        tokens: &Tokens,
        dropout_keys: Option<&'a [u64]>,
    ) -> ForwardContext<'a, E> {
        ForwardContext {
            rope: self.lm.rope(&tokens.pick(&batch.position_ids)),
            sequences: tokens.sequences.clone(),
            dropout_keys,
            adapter: true,
            cache: None,
            pool: self.pool,
            tokens: tokens.places.len(),
            capacity: self.capacity.max(batch.rows * batch.width),
        }
    }

    fn embed<E: Element>(
        &self,
        batch: &Batch,
        tokens: &Tokens,
        context: &ForwardContext<'_, E>,
    ) -> Result<Buffer<f32>> {
        let mut hidden = context.take(self.lm.dimensions.hidden);
        self.lm.embed(&tokens.pick(&batch.input_ids), &mut hidden)?;
        Ok(hidden)
    }

    /// The loss; the weighted gradient of `hidden` is added to `gradient`.
    fn head<E: Element>(
        &self,
        batch: &Batch,
        tokens: &Tokens,
        hidden: &[f32],
        context: &ForwardContext<'_, E>,
        gradient: Option<&mut [f32]>,
    ) -> Result<Loss> {
        let head = Head::of(batch);
        if head.labels.is_empty() {
            return Ok(head.nothing());
        }
        let (d, n) = (self.lm.dimensions.hidden, head.labels.len());
        // Places are ascending, and so is what they map to.
        let rows: Vec<usize> = head.places.iter().filter_map(|place| tokens.places.binary_search(place).ok()).collect();
        let mut picked = self.pool.take::<f32>(n, d, context.capacity);
        for (picked, &row) in picked.chunks_exact_mut(d).zip(&rows) {
            picked.copy_from_slice(&hidden[row * d..][..d]);
        }
        let norm = numbers(&self.lm.norm)?;
        let mut normalized = self.pool.take::<E>(n, d, context.capacity);
        rms_norm(&picked, &norm, self.lm.epsilon, &mut normalized);
        let pass = linear_cross_entropy(&normalized, &self.lm.lm_head, &head.labels, gradient.is_some(), self.pool)?;
        let (loss, weights) = head.loss(self.objective, &pass.log_probabilities, &pass.top1);
        if let (Some(gradient), Some(mut pulled)) = (gradient, pass.gradient) {
            for (row, weight) in pulled.chunks_exact_mut(d).zip(weights) {
                for x in row {
                    *x *= weight as f32;
                }
            }
            let mut through = self.pool.take::<f32>(n, d, context.capacity);
            through.fill(0.0);
            rms_norm_backward(&picked, &norm, self.lm.epsilon, &pulled, &mut through);
            for (through, row) in through.chunks_exact(d).zip(rows) {
                gradient[row * d..][..d].copy_from_slice(through);
            }
        }
        Ok(loss)
    }
}

fn backward_layer<E: Element>(
    layer: &DecoderLayer,
    Kept { input, activations }: Kept<E>,
    gradient: &mut [f32],
    context: &ForwardContext<'_, E>,
    gradients: &mut Gradients,
) -> Result<()> {
    let activations = match activations {
        Some(activations) => activations,
        None => layer.activations(&input, context)?,
    };
    // The first layer's input is frozen embeddings.
    layer.backward(&input, &activations, gradient, layer.index > 0, context, gradients)?;
    Ok(())
}
