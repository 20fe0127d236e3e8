//! A layer of a decoder: attention, then a gated MLP, each a branch of the residual stream; forward, and backward by hand, on any
//! [`Backend`].
//!
//! What families of models do differently are optional parts of the two branches ([`SelfAttention`], [`Mlp`]) and of their ends in
//! the stream ([`Residual`](super::Residual)), each with its own forward and backward.
//!
//! What the backward pass reads is [`Activations`]: kept from the forward pass, or computed again from the layer's input by
//! the same code, and so with the same bits. Normalized states and the product within the MLP are always computed again:
//! they cost little, and keeping them a third of the memory.

use super::backend::Backend;
use super::mlp::{Mlp, MlpActivations};
use super::self_attention::{AttentionActivations, SelfAttention};
use candle_core::Result;

/// The weights of a layer, and what it does with them.
#[derive(Debug)]
pub struct DecoderLayer {
    /// Its place, from 0.
    pub index: usize,
    /// The first branch.
    pub attention: SelfAttention,
    /// The second one.
    pub mlp: Mlp,
}

/// What a layer's backward pass reads besides its input.
pub struct Activations<B: Backend + ?Sized> {
    attention: AttentionActivations<B>,
    /// The residual stream between attention and MLP, `[m, d]`.
    middle: B::Stream,
    mlp: MlpActivations<B>,
}

impl DecoderLayer {
    /// `[m, d]` to `[m, d]`, and what the backward pass reads.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn forward<B: Backend>(&self, x: &B::Stream, backend: &B) -> Result<(B::Stream, Activations<B>)> {
        let mut activations = self.begin(x, backend)?;
        let y = self.mlp.finish(&activations.middle, &mut activations.mlp, backend)?;
        Ok((y, activations))
    }

    /// What the backward pass reads: the forward pass, without its last product where that is not read.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn activations<B: Backend>(&self, x: &B::Stream, backend: &B) -> Result<Activations<B>> {
        if self.mlp.residual.keeps_output() { Ok(self.forward(x, backend)?.1) } else { self.begin(x, backend) }
    }

    fn begin<B: Backend>(&self, x: &B::Stream, backend: &B) -> Result<Activations<B>> {
        let (middle, attention) = self.attention.forward(self.index, x, backend)?;
        let mlp = self.mlp.begin(&middle, backend)?;
        Ok(Activations { attention, middle, mlp })
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
        let Activations { attention, middle, mlp } = activations;
        self.mlp.backward(&middle, mlp, gradient, backend, gradients)?;
        drop(middle);
        self.attention.backward(x, attention, gradient, wanted, backend, gradients)
    }
}
