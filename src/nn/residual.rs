//! How a branch of a layer leaves the residual stream, and how it joins it again: `x + join(f(enter(x)))`.

use super::backend::{Backend, Norm};
use super::linear::Linear;
use crate::ops::FrozenVector;
use candle_core::Result;
use std::slice::from_ref;

/// The weight of a normalization, and what is added to its mean square.
#[derive(Debug)]
pub struct FrozenNorm {
    /// `[d]`
    pub weight: FrozenVector,
    /// What is added to the mean square.
    pub epsilon: f64,
}

impl FrozenNorm {
    /// As a backend takes it.
    pub const fn norm(&self) -> Norm<'_> {
        Norm { weight: &self.weight, epsilon: self.epsilon }
    }
}

/// The two ends of a branch.
#[derive(Debug)]
pub struct Residual {
    /// Normalizes what the branch gets; without it, the branch gets the stream itself.
    pub enter: Option<FrozenNorm>,
    /// What becomes of the branch's output.
    pub join: Join,
}

/// What becomes of a branch's output before it is added to the stream.
#[derive(Debug)]
pub enum Join {
    /// Nothing.
    Sum,
    /// It is multiplied by a constant.
    Scaled(f32),
    /// It is normalized. The backward pass then reads the output.
    Normalized(FrozenNorm),
}

impl Residual {
    /// A branch that normalizes its input and adds its output, as Llama's do.
    pub const fn pre_normalized(norm: FrozenNorm) -> Self {
        Self { enter: Some(norm), join: Join::Sum }
    }

    /// Whether the backward pass reads the branch's output.
    pub const fn keeps_output(&self) -> bool {
        matches!(self.join, Join::Normalized(_))
    }

    /// Calls `f` with the branch's input.
    ///
    /// # Errors
    /// When the backend refuses, or `f` fails.
    pub fn enter<B: Backend, R>(&self, x: &B::Stream, backend: &B, f: impl FnOnce(&B::Rows) -> Result<R>) -> Result<R> {
        match &self.enter {
            Some(norm) => f(&backend.normalize(x, norm.norm())?),
            None => backend.with_rows(x, f),
        }
    }

    /// Adds to `gradient` what `pulled`, the gradient of the branch's input, gives for `x`.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn enter_backward<B: Backend>(
        &self,
        x: &B::Stream,
        pulled: &B::Stream,
        gradient: &mut B::Stream,
        backend: &B,
    ) -> Result<()> {
        match &self.enter {
            Some(norm) => backend.normalize_backward(x, norm.norm(), pulled, gradient),
            None => backend.add(pulled, gradient),
        }
    }

    /// The stream behind a branch whose last layer is `linear`, and that layer's output where the backward pass reads it.
    ///
    /// # Errors
    /// When the backend refuses.
    pub fn join<B: Backend>(
        &self,
        linear: &Linear,
        (x, down): (&B::Rows, &B::Rows),
        onto: &B::Stream,
        backend: &B,
    ) -> Result<(B::Stream, Option<B::Rows>)> {
        let output = || backend.linear(from_ref(linear), x, down);
        match &self.join {
            Join::Sum => Ok((backend.linear_onto(linear, x, down, onto)?, None)),
            Join::Scaled(factor) => Ok((backend.add_scaled(onto, &output()?, *factor)?, None)),
            Join::Normalized(norm) => {
                let output = output()?;
                Ok((backend.add_normalized(onto, &output, norm.norm())?, Some(output)))
            }
        }
    }

    /// Calls `f` with the gradient of the last layer's output, `gradient` being that of the stream behind the branch.
    ///
    /// # Errors
    /// When the backend refuses, or `f` fails.
    pub fn with_gradient<B: Backend, R>(
        &self,
        output: Option<B::Rows>,
        gradient: &B::Stream,
        backend: &B,
        f: impl FnOnce(&B::Rows) -> Result<R>,
    ) -> Result<R> {
        match (&self.join, output) {
            (Join::Sum, _) => backend.with_rows(gradient, f),
            (Join::Scaled(factor), _) => f(&backend.scaled(gradient, *factor)?),
            (Join::Normalized(norm), Some(output)) => {
                let pulled = backend.add_normalized_backward(&output, norm.norm(), gradient)?;
                drop(output);
                f(&pulled)
            }
            (Join::Normalized(_), None) => candle_core::bail!("internal: a branch's output was not kept"),
        }
    }
}
