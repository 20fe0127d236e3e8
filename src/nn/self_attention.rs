//! The first branch of a decoder layer: attention with rotary positions and grouped queries.

use super::backend::Backend;
use super::linear::Linear;
use super::residual::Residual;
use crate::ops::{AttentionShape, FrozenVector};
use candle_core::Result;
use std::slice::from_ref;

/// Normalizes queries and keys before their rotation: over runs of as many numbers as the weights have, which are a head, or all
/// heads.
#[derive(Debug)]
pub struct QkNorm {
    /// Of queries: `[d]`, or `[heads·d]`.
    pub query: FrozenVector,
    /// Of keys: `[d]`, or `[kv·d]`.
    pub key: FrozenVector,
    /// What is added to the mean square.
    pub epsilon: f64,
}

/// The weights of the branch, and what it does with them.
#[derive(Debug)]
pub struct SelfAttention {
    /// Its ends in the residual stream.
    pub residual: Residual,
    /// The heads, and what becomes of their scores.
    pub shape: AttentionShape,
    /// Which of the model's rotations its heads take; without one, positions are not encoded (`NoPE`).
    pub rope: Option<usize>,
    /// Normalizations of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Queries, keys, values: three layers, or one of all their outputs.
    pub qkv: Vec<Linear>,
    /// From the heads to the residual stream.
    pub o: Linear,
}

/// What the branch's backward pass reads besides its input.
pub struct AttentionActivations<B: Backend + ?Sized> {
    /// `[m, (heads + 2·kv)·d]`: rotated queries, rotated keys, values. Where queries and keys are normalized, as they were before:
    /// where a weight is zero, nothing else would tell.
    qkv: B::Rows,
    qkv_down: B::Rows,
    /// Attention's output, `[m, heads·d]`.
    context: B::Rows,
    context_down: B::Rows,
    /// `[m, heads]`
    log_sums: B::Sums,
    /// The branch's output, where [`Residual::keeps_output`].
    output: Option<B::Rows>,
}

impl SelfAttention {
    /// The stream behind the branch, and what the backward pass reads. `index` is the layer's, for generation.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn forward<B: Backend>(
        &self,
        index: usize,
        x: &B::Stream,
        backend: &B,
    ) -> Result<(B::Stream, AttentionActivations<B>)> {
        let (qkv_down, mut qkv) = self.residual.enter(x, backend, |entered| {
            let down = backend.down(&self.qkv, entered)?;
            let qkv = backend.linear(&self.qkv, entered, &down)?;
            Ok((down, qkv))
        })?;
        let heads = self.heads(&qkv, backend)?;
        if heads.is_none() {
            self.rotate(&mut qkv, backend)?;
        }
        let (context, log_sums) = backend.attend(index, self.shape, heads.as_ref().unwrap_or(&qkv))?;
        drop(heads);
        let context_down = backend.down(from_ref(&self.o), &context)?;
        let (y, output) = self.residual.join(&self.o, (&context, &context_down), x, backend)?;
        Ok((y, AttentionActivations { qkv, qkv_down, context, context_down, log_sums, output }))
    }

    /// Normalized and rotated heads, where they are normalized.
    fn heads<B: Backend>(&self, qkv: &B::Rows, backend: &B) -> Result<Option<B::Rows>> {
        let Some(norm) = &self.qk_norm else { return Ok(None) };
        let mut heads = backend.normalize_heads(self.shape, norm, qkv)?;
        self.rotate(&mut heads, backend)?;
        Ok(Some(heads))
    }

    fn rotate<B: Backend>(&self, heads: &mut B::Rows, backend: &B) -> Result<()> {
        self.rope.map_or(Ok(()), |rope| backend.rotate(rope, self.shape, heads))
    }

    /// From the gradient of the stream behind the branch, in `gradient`, to that of `x`, in the same place; the adapters'
    /// gradients are added to `gradients`. Without `wanted` the former is not finished.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn backward<B: Backend>(
        &self,
        x: &B::Stream,
        activations: AttentionActivations<B>,
        gradient: &mut B::Stream,
        wanted: bool,
        backend: &B,
        gradients: &mut B::Gradients,
    ) -> Result<()> {
        let AttentionActivations { qkv, qkv_down, context, context_down, log_sums, output } = activations;
        let d_context = self.residual.with_gradient(output, gradient, backend, |dy| {
            backend.linear_backward(from_ref(&self.o), (&context, &context_down), dy, true, gradients)
        })?;
        let Some(d_context) = d_context else { return Ok(()) };
        let heads = self.heads(&qkv, backend)?;
        let mut d_qkv = backend.with_rows(&d_context, |d_context| {
            let output = (&context, &log_sums);
            backend.attend_backward(self.rope, self.shape, heads.as_ref().unwrap_or(&qkv), output, d_context)
        })?;
        drop((d_context, context, heads));
        if let Some(norm) = &self.qk_norm {
            backend.normalize_heads_backward(self.shape, norm, &qkv, &mut d_qkv)?;
        }
        drop(qkv);
        let pulled = self.residual.enter(x, backend, |entered| {
            backend.linear_backward(&self.qkv, (entered, &qkv_down), &d_qkv, wanted, gradients)
        })?;
        match pulled {
            Some(pulled) => self.residual.enter_backward(x, &pulled, gradient, backend),
            None => Ok(()),
        }
    }
}
