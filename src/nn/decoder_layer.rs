//! A layer of a decoder: pre-normalized attention with rotary positions and grouped queries, and a gated MLP; forward, and
//! backward by hand.
//!
//! What the backward pass reads is [`Activations`]: kept from the forward pass, or computed again from the layer's input by
//! the same code, and so with the same bits. Normalized states and the product within the MLP are always computed again:
//! they cost little, and keeping them a third of the memory.

use super::context::ForwardContext;
use super::gradients::Gradients;
use super::linear::{Linear, LinearGroup};
use crate::ops::attention::{Attention, AttentionOutput, Heads, attention, attention_backward};
use crate::ops::element::{Element, convert};
use crate::ops::{AttentionShape, Buffer, SavedInput, numbers, rms_norm, rms_norm_backward, swiglu, swiglu_backward};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

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
    pub input_norm: Tensor,
    /// Queries, keys, values.
    pub qkv: [Linear; 3],
    /// From the heads to the residual stream.
    pub o: Linear,
    /// `[d]`
    pub post_attention_norm: Tensor,
    /// Gate and up.
    pub gate_up: [Linear; 2],
    /// From the MLP to the residual stream.
    pub down: Linear,
}

/// What a layer's backward pass reads besides its input.
#[derive(Debug)]
pub struct Activations<E: Element> {
    /// Rotated queries, rotated keys, values: `[m, (heads + 2·kv)·d]`.
    qkv: Buffer<E>,
    qkv_down: Buffer<E>,
    /// Attention's output, `[m, heads·d]`.
    context: Buffer<E>,
    context_down: Buffer<E>,
    /// `[m, heads]`
    log_sums: Buffer<f32>,
    /// The residual stream between attention and MLP, `[m, d]`.
    middle: Buffer<f32>,
    /// `[m, 2·intermediate]`
    gate_up: Buffer<E>,
    gate_up_down: Buffer<E>,
}

impl DecoderLayer {
    /// Bytes that [`Activations`] take for each token.
    pub fn activation_bytes<E: Element>(hidden: usize, shape: AttentionShape, intermediate: usize, r: usize) -> usize {
        let AttentionShape { heads, kv_heads, head_dim } = shape;
        let down = 6 * r.next_multiple_of(E::GROUP);
        size_of::<E>() * ((2 * heads + 2 * kv_heads) * head_dim + 2 * intermediate + down) + 4 * (heads + hidden)
    }

    /// `[m, d]` to `[m, d]`, and what the backward pass reads.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn forward<E: Element>(
        &self,
        x: &[f32],
        context: &ForwardContext<'_, E>,
    ) -> Result<(Buffer<f32>, Activations<E>)> {
        let activations = self.activations(x, context)?;
        let inner = self.inner(&activations, context);
        let down = LinearGroup(std::slice::from_ref(&self.down));
        let saved = SavedInput { x: &inner, down: &down.down(&inner, context)? };
        let mut y = context.take::<f32>(self.hidden());
        convert_all(&activations.middle, &mut y);
        down.forward_add(saved, &mut y, context)?;
        Ok((y, activations))
    }

    /// What the backward pass reads: the forward pass without its last product.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn activations<E: Element>(&self, x: &[f32], context: &ForwardContext<'_, E>) -> Result<Activations<E>> {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let qkv_group = LinearGroup(&self.qkv);
        let normalized = self.normalized(x, &self.input_norm, context)?;
        let qkv_down = qkv_group.down(&normalized, context)?;
        let mut qkv = qkv_group.forward(SavedInput { x: &normalized, down: &qkv_down }, context)?;
        drop(normalized);
        context.rope.rotate(&mut qkv, qkv_group.outputs(), (heads + kv_heads) * head_dim);

        let mut attended = context.take::<E>(heads * head_dim);
        let mut log_sums = context.take::<f32>(heads);
        self.attend(&qkv, context, |of| attention(of, &mut attended, &mut log_sums, context.pool));
        let o = LinearGroup(std::slice::from_ref(&self.o));
        let context_down = o.down(&attended, context)?;
        let mut middle = context.take::<f32>(self.hidden());
        convert_all(x, &mut middle);
        o.forward_add(SavedInput { x: &attended, down: &context_down }, &mut middle, context)?;

        let normalized = self.normalized(&middle, &self.post_attention_norm, context)?;
        let gate_up_group = LinearGroup(&self.gate_up);
        let gate_up_down = gate_up_group.down(&normalized, context)?;
        let gate_up = gate_up_group.forward(SavedInput { x: &normalized, down: &gate_up_down }, context)?;
        Ok(Activations { qkv, qkv_down, context: attended, context_down, log_sums, middle, gate_up, gate_up_down })
    }

    /// From the gradient of the output, in `gradient`, to the gradient of the input, in the same place; the adapters'
    /// gradients are added to `gradients`. Without `wanted` the input's gradient is not finished: nobody reads it.
    ///
    /// # Errors
    /// When a tensor is not on the CPU.
    pub fn backward<E: Element>(
        &self,
        x: &[f32],
        activations: &Activations<E>,
        gradient: &mut [f32],
        wanted: bool,
        context: &ForwardContext<'_, E>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        self.backward_mlp(activations, gradient, context, gradients)?;
        self.backward_attention(x, activations, gradient, wanted, context, gradients)
    }

    fn backward_mlp<E: Element>(
        &self,
        activations: &Activations<E>,
        gradient: &mut [f32],
        context: &ForwardContext<'_, E>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let intermediate = self.down.weight.columns();
        let down = LinearGroup(std::slice::from_ref(&self.down));
        let inner = self.inner(activations, context);
        let inner_down = down.down(&inner, context)?;
        let saved = SavedInput { x: &inner, down: &inner_down };
        let dy = self.rounded(gradient, context);
        let mut d_inner = context.take::<f32>(intermediate);
        down.backward(saved, &dy, Some(&mut d_inner), context, gradients)?;
        drop((inner, inner_down, dy));
        let mut d_gate_up = context.take::<E>(2 * intermediate);
        swiglu_backward(&activations.gate_up, intermediate, &d_inner, &mut d_gate_up);
        drop(d_inner);

        let normalized = self.normalized(&activations.middle, &self.post_attention_norm, context)?;
        let saved = SavedInput { x: &normalized, down: &activations.gate_up_down };
        let mut pulled = context.take::<f32>(self.hidden());
        LinearGroup(&self.gate_up).backward(saved, &d_gate_up, Some(&mut pulled), context, gradients)?;
        let weight = numbers(&self.post_attention_norm)?;
        rms_norm_backward(&activations.middle, &weight, self.epsilon, &pulled, gradient);
        Ok(())
    }

    fn backward_attention<E: Element>(
        &self,
        x: &[f32],
        activations: &Activations<E>,
        gradient: &mut [f32],
        wanted: bool,
        context: &ForwardContext<'_, E>,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let width = self.shape.heads * self.shape.head_dim;
        let o = LinearGroup(std::slice::from_ref(&self.o));
        let saved = SavedInput { x: &activations.context, down: &activations.context_down };
        let dy = self.rounded(gradient, context);
        let mut pulled = context.take::<f32>(width);
        o.backward(saved, &dy, Some(&mut pulled), context, gradients)?;
        drop(dy);
        let mut d_context = context.take::<E>(width);
        convert_all(&pulled, &mut d_context);
        drop(pulled);

        let qkv_group = LinearGroup(&self.qkv);
        let mut d_qkv = context.take::<E>(qkv_group.outputs());
        let output =
            AttentionOutput { out: &activations.context, log_sums: &activations.log_sums, gradient: &d_context };
        self.attend(&activations.qkv, context, |of| {
            attention_backward(of, output, Some(&context.rope), &mut d_qkv, context.pool);
        });
        drop(d_context);

        let normalized = self.normalized(x, &self.input_norm, context)?;
        let saved = SavedInput { x: &normalized, down: &activations.qkv_down };
        let mut pulled = wanted.then(|| context.take::<f32>(self.hidden()));
        qkv_group.backward(saved, &d_qkv, pulled.as_deref_mut(), context, gradients)?;
        if let Some(pulled) = pulled {
            rms_norm_backward(x, &numbers(&self.input_norm)?, self.epsilon, &pulled, gradient);
        }
        Ok(())
    }

    fn hidden(&self) -> usize {
        self.o.weight.rows()
    }

    fn normalized<E: Element>(&self, x: &[f32], weight: &Tensor, context: &ForwardContext<'_, E>) -> Result<Buffer<E>> {
        let mut y = context.take(self.hidden());
        rms_norm(x, &numbers(weight)?, self.epsilon, &mut y);
        Ok(y)
    }

    /// `silu(gate)·up`
    fn inner<E: Element>(&self, activations: &Activations<E>, context: &ForwardContext<'_, E>) -> Buffer<E> {
        let width = self.down.weight.columns();
        let mut inner = context.take(width);
        swiglu(&activations.gate_up, width, &mut inner);
        inner
    }

    fn rounded<E: Element>(&self, gradient: &[f32], context: &ForwardContext<'_, E>) -> Buffer<E> {
        let mut rounded = context.take(self.hidden());
        convert_all(gradient, &mut rounded);
        rounded
    }

    /// Calls `f` with queries, keys and values; in generation, with those of all tokens so far.
    fn attend<E: Element>(&self, qkv: &[E], context: &ForwardContext<'_, E>, f: impl FnOnce(&Attention<'_, E>)) {
        let AttentionShape { heads, kv_heads, head_dim } = self.shape;
        let stride = (heads + 2 * kv_heads) * head_dim;
        let (queries, width) = (heads * head_dim, kv_heads * head_dim);
        let (keys, values) = (&qkv[queries..], &qkv[queries + width..]);
        let (shape, q, sequences) = (self.shape, Heads { data: qkv, stride }, &*context.sequences);
        let of = |keys: &[E], values: &[E], stride: usize| {
            let (k, v) = (Heads { data: keys, stride }, Heads { data: values, stride });
            f(&Attention { shape, q, k, v, sequences });
        };
        match context.cache {
            None => of(keys, values, stride),
            Some(cache) => {
                cache.append(self.index, [keys, values], (width, stride), |keys, values| of(keys, values, width));
            }
        }
    }
}

/// Copies, rounding to the type that is wanted, all threads at once.
fn convert_all<E: Element>(from: &[f32], to: &mut [E]) {
    to.par_chunks_mut(1 << 14).zip(from.par_chunks(1 << 14)).for_each(|(to, from)| convert(from, to));
}
