//! The second branch of a decoder layer: a gated MLP.

use super::backend::Backend;
use super::linear::Linear;
use super::residual::Residual;
use crate::ops::Activation;
use candle_core::Result;
use std::slice::from_ref;

/// The weights of the branch, and what it does with them: `down(activation(gate(x))·up(x))`.
#[derive(Debug)]
pub struct Mlp {
    /// Its ends in the residual stream.
    pub residual: Residual,
    /// Of gates.
    pub activation: Activation,
    /// Gate and up: two layers, or one of both their outputs.
    pub gate_up: Vec<Linear>,
    /// From the MLP to the residual stream.
    pub down: Linear,
}

/// What the branch's backward pass reads besides its input.
pub struct MlpActivations<B: Backend + ?Sized> {
    /// `[m, 2·intermediate]`
    gate_up: B::Rows,
    gate_up_down: B::Rows,
    /// The branch's output, where [`Residual::keeps_output`].
    output: Option<B::Rows>,
}

impl Mlp {
    /// Gates and ups: the forward pass without its last product.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn begin<B: Backend>(&self, x: &B::Stream, backend: &B) -> Result<MlpActivations<B>> {
        self.residual.enter(x, backend, |entered| {
            let gate_up_down = backend.down(&self.gate_up, entered)?;
            let gate_up = backend.linear(&self.gate_up, entered, &gate_up_down)?;
            Ok(MlpActivations { gate_up, gate_up_down, output: None })
        })
    }

    /// The stream behind the branch.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn finish<B: Backend>(
        &self,
        x: &B::Stream,
        activations: &mut MlpActivations<B>,
        backend: &B,
    ) -> Result<B::Stream> {
        let inner = backend.gate(self.activation, &activations.gate_up, self.intermediate())?;
        let inner_down = backend.down(from_ref(&self.down), &inner)?;
        let (y, output) = self.residual.join(&self.down, (&inner, &inner_down), x, backend)?;
        activations.output = output;
        Ok(y)
    }

    /// As [`SelfAttention::backward`](super::SelfAttention::backward); the gradient of `x` is always wanted.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn backward<B: Backend>(
        &self,
        x: &B::Stream,
        activations: MlpActivations<B>,
        gradient: &mut B::Stream,
        backend: &B,
        gradients: &mut B::Gradients,
    ) -> Result<()> {
        let MlpActivations { gate_up, gate_up_down, output } = activations;
        let width = self.intermediate();
        let inner = backend.gate(self.activation, &gate_up, width)?;
        let inner_down = backend.down(from_ref(&self.down), &inner)?;
        let d_inner = self.residual.with_gradient(output, gradient, backend, |dy| {
            backend.linear_backward(from_ref(&self.down), (&inner, &inner_down), dy, true, gradients)
        })?;
        drop((inner, inner_down));
        let Some(d_inner) = d_inner else { return Ok(()) };
        let d_gate_up = backend.gate_backward(self.activation, gate_up, width, &d_inner)?;
        drop(d_inner);

        let pulled = self.residual.enter(x, backend, |entered| {
            backend.linear_backward(&self.gate_up, (entered, &gate_up_down), &d_gate_up, true, gradients)
        })?;
        match pulled {
            Some(pulled) => self.residual.enter_backward(x, &pulled, gradient, backend),
            None => Ok(()),
        }
    }

    fn intermediate(&self) -> usize {
        self.down.weight.columns()
    }
}
