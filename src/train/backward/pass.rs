//! A micro-batch on a backend.
//!
//! Padding never enters: the tokens of all samples lie one after the other. A layer keeps its [`Activations`], or its input
//! alone, from which the same code computes them again: no bit of the result changes.

use super::{Engine, Factors, Head, Loss, Seen};
use crate::data::Batch;
use crate::error::Result;
use crate::nn::{
    Activations, Backend, DecoderLayer, ForwardContext, GpuBatch, GpuContext, Prediction, Reference, Rehearsal,
};
use crate::ops::{Element, HeadRequest, Ledger, Sequence};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// The tokens of a batch without its padding.
pub(super) struct Tokens {
    /// Where each stands in the batch.
    places: Vec<usize>,
    sequences: Vec<Sequence>,
}

impl Tokens {
    pub(super) fn of(batch: &Batch) -> Self {
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

    pub(super) fn pick<T: Copy>(&self, from: &[T]) -> Vec<T> {
        self.places.iter().map(|&place| from[place]).collect()
    }
}

/// What is kept of a layer between the forward and the backward pass.
struct Kept<B: Backend> {
    input: B::Kept,
    activations: Option<Activations<B>>,
}

impl Engine<'_> {
    /// What the CPU needs to know of a batch: with dropout's keys, and whether the adapter takes part.
    pub(super) fn cpu_context<'a, E: Element>(
        &'a self,
        batch: &Batch,
        tokens: &Tokens,
        (dropout_keys, adapter): (Option<&'a [u64]>, bool),
    ) -> ForwardContext<'a, E> {
        ForwardContext {
            ropes: self.lm.rotations(&tokens.pick(&batch.position_ids)),
            sequences: tokens.sequences.clone(),
            key_rows: None,
            dropout_keys,
            adapter,
            cache: None,
            pool: self.pool,
            tokens: tokens.places.len(),
            capacity: self.capacity.max(tokens.places.len()),
        }
    }

    /// Lends from `ledger` what a batch takes on the CPU: in training under `trained`, else without gradients.
    pub(super) fn rehearse_in<E: Element>(
        &self,
        batch: &Batch,
        (trained, adapter, dropout): (bool, bool, bool),
        ledger: &Ledger,
    ) -> Result<()> {
        let tokens = Tokens::of(batch);
        let rehearsal = |dropout, adapter| Rehearsal::<E> {
            sequences: &tokens.sequences,
            dropout,
            adapter,
            tokens: tokens.places.len(),
            capacity: self.capacity.max(tokens.places.len()),
            ledger,
            element: PhantomData,
        };
        let (backend, base) = (rehearsal(dropout, adapter), rehearsal(false, false));
        let base = self.has_reference(adapter).then_some(&base);
        if trained {
            self.accumulate_on(&backend, base, batch, &tokens, &mut BTreeMap::new())?;
        } else {
            self.evaluate_on(&backend, base, batch, &tokens)?;
        }
        Ok(())
    }

    /// As [`Self::cpu_context`], for a GPU.
    pub(super) fn gpu_context<'a>(
        &'a self,
        gpu: &crate::device::Gpu,
        batch: &Batch,
        tokens: &Tokens,
        (dropout_keys, adapter): (Option<&[u64]>, bool),
    ) -> Result<GpuContext<'a>> {
        let batch = GpuBatch {
            compute: self.compute,
            capacity: self.capacity,
            adapter: self.params.memory().map(|memory| &**memory).filter(|_| adapter),
            ropes: self.lm.rotations(&tokens.pick(&batch.position_ids)),
            sequences: &tokens.sequences,
            key_rows: None,
            head_dim: self.lm.dimensions.head_dim,
            dropout_keys,
            cache: None,
            offload: self.offload,
            tokens: tokens.places.len(),
        };
        Ok(GpuContext::new(gpu, &batch)?)
    }

    /// The CPU's context without the adapter, where the objective needs it beside one with it.
    pub(super) fn cpu_reference<'a, E: Element>(
        &'a self,
        batch: &Batch,
        tokens: &Tokens,
        adapter: bool,
    ) -> Option<ForwardContext<'a, E>> {
        self.has_reference(adapter).then(|| self.cpu_context::<E>(batch, tokens, (None, false)))
    }

    /// As [`Self::cpu_reference`], for a GPU.
    pub(super) fn gpu_reference<'a>(
        &'a self,
        gpu: &crate::device::Gpu,
        batch: &Batch,
        tokens: &Tokens,
        adapter: bool,
    ) -> Result<Option<GpuContext<'a>>> {
        self.has_reference(adapter).then(|| self.gpu_context(gpu, batch, tokens, (None, false))).transpose()
    }

    /// Whether the objective compares what runs, with its adapter or without, with the base alone.
    pub(super) fn has_reference(&self, adapter: bool) -> bool {
        adapter && self.objective.needs().reference
    }

    /// What the model says of a batch's supervised tokens; nothing else is kept.
    fn predict_on<B: Backend>(
        &self,
        backend: &B,
        batch: &Batch,
        tokens: &Tokens,
        head: &Head,
        request: HeadRequest,
    ) -> Result<Prediction<B::Stream>> {
        let mut hidden =
            backend.embed(&self.lm.embed_tokens, &tokens.pick(&batch.input_ids), self.lm.embedding_factor)?;
        for layer in &self.lm.layers {
            hidden = layer.forward(&hidden, backend)?.0;
        }
        Ok(backend.predict(&hidden, &rows(head, tokens), self.lm.head(), &head.labels, request)?)
    }

    /// What the base alone says, with its gradient: what a divergence is measured from.
    fn reference_on<B: Backend>(
        &self,
        base: &B,
        batch: &Batch,
        tokens: &Tokens,
        head: &Head,
    ) -> Result<Prediction<B::Stream>> {
        self.predict_on(base, batch, tokens, head, HeadRequest { gradient: true, top_k: None })
    }

    fn request(&self, gradient: bool) -> HeadRequest {
        HeadRequest { gradient, top_k: self.objective.needs().top_k }
    }

    /// The loss of a batch, without gradients. `base` is the backend without the adapter, where the objective needs it.
    pub(super) fn evaluate_on<B: Backend>(
        &self,
        backend: &B,
        base: Option<&B>,
        batch: &Batch,
        tokens: &Tokens,
    ) -> Result<Loss> {
        let head = Head::of(batch);
        if head.labels.is_empty() {
            return Ok(head.nothing());
        }
        let reference = base.map(|base| self.reference_on(base, batch, tokens, &head)).transpose()?;
        let prediction = self.predict_on(backend, batch, tokens, &head, self.request(false))?;
        Ok(self.loss_on(backend, &head, &prediction, reference.as_ref())?.0)
    }

    /// The objective's loss of a prediction, and what its gradient is made of.
    fn loss_on<B: Backend>(
        &self,
        backend: &B,
        head: &Head,
        prediction: &Prediction<B::Stream>,
        reference: Option<&Prediction<B::Stream>>,
    ) -> Result<(Loss, Factors)> {
        let divergences =
            reference.map(|reference| backend.divergences(prediction, reference, self.lm.head())).transpose()?;
        let seen = Seen {
            log_probabilities: &prediction.log_probabilities,
            top1: &prediction.top1,
            entropies: &prediction.entropies,
            divergences: divergences.as_deref().unwrap_or_default(),
        };
        Ok(head.loss(self.objective, &seen))
    }

    /// The loss of a batch; its gradients are added to `gradients`. `base` is as in [`Self::evaluate_on`].
    pub(super) fn accumulate_on<B: Backend>(
        &self,
        backend: &B,
        base: Option<&B>,
        batch: &Batch,
        tokens: &Tokens,
        gradients: &mut B::Gradients,
    ) -> Result<Loss> {
        let head = Head::of(batch);
        if head.labels.is_empty() {
            return Ok(head.nothing()); // Nothing is supervised: no gradient.
        }
        let reference = base.map(|base| self.reference_on(base, batch, tokens, &head)).transpose()?;
        let layers = &self.lm.layers;
        let recomputed = layers.len().saturating_sub(self.kept_layers);
        let mut kept = Vec::with_capacity(layers.len());
        let mut hidden =
            backend.embed(&self.lm.embed_tokens, &tokens.pick(&batch.input_ids), self.lm.embedding_factor)?;
        for layer in layers {
            let (output, activations) = layer.forward(&hidden, backend)?;
            // The last layers are kept whole: the backward pass frees them first.
            let activations = (layer.index >= recomputed).then_some(activations);
            kept.push(Kept { input: backend.keep(std::mem::replace(&mut hidden, output))?, activations });
        }
        let rows = rows(&head, tokens);
        let prediction = backend.predict(&hidden, &rows, self.lm.head(), &head.labels, self.request(true))?;
        drop(hidden);
        let (loss, factors) = self.loss_on(backend, &head, &prediction, reference.as_ref())?;
        let reference = reference.map(|prediction| Reference { prediction, weights: &factors.divergence });
        let mut gradient = backend.pull(prediction, &rows, self.lm.head(), &factors.cross_entropy, reference)?;
        for (layer, kept) in layers.iter().zip(kept).rev() {
            backward_layer(layer, kept, &mut gradient, backend, gradients)?;
        }
        Ok(loss)
    }
}

/// The rows that predict. Places are ascending, and so is what they map to.
fn rows(head: &Head, tokens: &Tokens) -> Vec<usize> {
    head.places.iter().filter_map(|place| tokens.places.binary_search(place).ok()).collect()
}

fn backward_layer<B: Backend>(
    layer: &DecoderLayer,
    Kept { input, activations }: Kept<B>,
    gradient: &mut B::Stream,
    backend: &B,
    gradients: &mut B::Gradients,
) -> Result<()> {
    let input = backend.take_back(input)?;
    let activations = match activations {
        Some(activations) => activations,
        None => layer.activations(&input, backend)?,
    };
    // The first layer's input is frozen embeddings.
    layer.backward(&input, activations, gradient, layer.index > 0, backend, gradients)?;
    Ok(())
}
