//! A layer of a decoder: pre-normalized attention with rotary positions and grouped queries, and a gated MLP; forward, and
//! backward by hand, on any [`Backend`].
//!
//! What the backward pass reads is [`Activations`]: kept from the forward pass, or computed again from the layer's input by
//! the same code, and so with the same bits. Normalized states and the product within the MLP are always computed again:
//! they cost little, and keeping them a third of the memory.

use super::backend::{Backend, Norm};
use super::linear::Linear;
use crate::ops::{AttentionShape, FrozenVector};
use candle_core::Result;
use std::slice::from_ref;

/// The weights of a layer, and its sizes.
#[derive(Debug)]
pub struct DecoderLayer {
    /// Its place, from 0.
    pub index: usize,
    /// The heads.
    pub shape: AttentionShape,
    /// What normalizations add to the mean square.
    pub epsilon: f64,
    /// `[d]`
    pub input_norm: FrozenVector,
    /// Queries, keys, values.
    pub qkv: [Linear; 3],
    /// From the heads to the residual stream.
    pub o: Linear,
    /// `[d]`
    pub post_attention_norm: FrozenVector,
    /// Gate and up.
    pub gate_up: [Linear; 2],
    /// From the MLP to the residual stream.
    pub down: Linear,
}

/// What a layer's backward pass reads besides its input.
pub struct Activations<B: Backend + ?Sized> {
    /// Rotated queries, rotated keys, values: `[m, (heads + 2·kv)·d]`.
    qkv: B::Rows,
    qkv_down: B::Rows,
    /// Attention's output, `[m, heads·d]`.
    context: B::Rows,
    context_down: B::Rows,
    /// `[m, heads]`
    log_sums: B::Sums,
    /// The residual stream between attention and MLP, `[m, d]`.
    middle: B::Stream,
    /// `[m, 2·intermediate]`
    gate_up: B::Rows,
    gate_up_down: B::Rows,
}

impl DecoderLayer {
    /// `[m, d]` to `[m, d]`, and what the backward pass reads.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn forward<B: Backend>(&self, x: &B::Stream, backend: &B) -> Result<(B::Stream, Activations<B>)> {
        let activations = self.activations(x, backend)?;
        let inner = backend.swiglu(&activations.gate_up, self.intermediate())?;
        let inner_down = backend.down(from_ref(&self.down), &inner)?;
        let y = backend.linear_onto(&self.down, &inner, &inner_down, &activations.middle)?;
        Ok((y, activations))
    }

    /// What the backward pass reads: the forward pass without its last product.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn activations<B: Backend>(&self, x: &B::Stream, backend: &B) -> Result<Activations<B>> {
        let normalized = backend.normalize(x, self.input_norm())?;
        let qkv_down = backend.down(&self.qkv, &normalized)?;
        let mut qkv = backend.linear(&self.qkv, &normalized, &qkv_down)?;
        drop(normalized);
        backend.rotate(self.shape, &mut qkv)?;

        let (context, log_sums) = backend.attend(self.index, self.shape, &qkv)?;
        let context_down = backend.down(from_ref(&self.o), &context)?;
        let middle = backend.linear_onto(&self.o, &context, &context_down, x)?;

        let normalized = backend.normalize(&middle, self.post_attention_norm())?;
        let gate_up_down = backend.down(&self.gate_up, &normalized)?;
        let gate_up = backend.linear(&self.gate_up, &normalized, &gate_up_down)?;
        Ok(Activations { qkv, qkv_down, context, context_down, log_sums, middle, gate_up, gate_up_down })
    }

    /// From the gradient of the output, in `gradient`, to the gradient of the input, in the same place; the adapters'
    /// gradients are added to `gradients`. Without `wanted` the input's gradient is not finished: nobody reads it.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn backward<B: Backend>(
        &self,
        x: &B::Stream,
        activations: Activations<B>,
        gradient: &mut B::Stream,
        wanted: bool,
        backend: &B,
        gradients: &mut B::Gradients,
    ) -> Result<()> {
        let Activations { qkv, qkv_down, context, context_down, log_sums, middle, gate_up, gate_up_down } = activations;
        self.backward_mlp(&middle, (gate_up, gate_up_down), gradient, backend, gradients)?;
        drop(middle);

        let d_context = backend.with_rows(gradient, |dy| {
            backend.linear_backward(from_ref(&self.o), (&context, &context_down), dy, true, gradients)
        })?;
        let Some(d_context) = d_context else { return Ok(()) };
        let d_qkv = backend.with_rows(&d_context, |d_context| {
            backend.attend_backward(self.shape, &qkv, (&context, &log_sums), d_context)
        })?;
        drop((d_context, context, qkv));
        let normalized = backend.normalize(x, self.input_norm())?;
        let pulled = backend.linear_backward(&self.qkv, (&normalized, &qkv_down), &d_qkv, wanted, gradients)?;
        match pulled {
            Some(pulled) => backend.normalize_backward(x, self.input_norm(), &pulled, gradient),
            None => Ok(()),
        }
    }

    fn backward_mlp<B: Backend>(
        &self,
        middle: &B::Stream,
        (gate_up, gate_up_down): (B::Rows, B::Rows),
        gradient: &mut B::Stream,
        backend: &B,
        gradients: &mut B::Gradients,
    ) -> Result<()> {
        let width = self.intermediate();
        let inner = backend.swiglu(&gate_up, width)?;
        let inner_down = backend.down(from_ref(&self.down), &inner)?;
        let d_inner = backend.with_rows(gradient, |dy| {
            backend.linear_backward(from_ref(&self.down), (&inner, &inner_down), dy, true, gradients)
        })?;
        drop((inner, inner_down));
        let Some(d_inner) = d_inner else { return Ok(()) };
        let d_gate_up = backend.swiglu_backward(gate_up, width, &d_inner)?;
        drop(d_inner);

        let normalized = backend.normalize(middle, self.post_attention_norm())?;
        let saved = (&normalized, &gate_up_down);
        match backend.linear_backward(&self.gate_up, saved, &d_gate_up, true, gradients)? {
            Some(pulled) => backend.normalize_backward(middle, self.post_attention_norm(), &pulled, gradient),
            None => Ok(()),
        }
    }

    fn intermediate(&self) -> usize {
        self.down.weight.columns()
    }

    const fn input_norm(&self) -> Norm<'_> {
        Norm { weight: &self.input_norm, epsilon: self.epsilon }
    }

    const fn post_attention_norm(&self) -> Norm<'_> {
        Norm { weight: &self.post_attention_norm, epsilon: self.epsilon }
    }
}
