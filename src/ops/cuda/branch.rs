//! What joins a branch to the residual stream on a GPU, where it is more than a sum. Stream and branch are of one type here.

use super::programs;
use super::rows::{Cuda, Rows, address, on_gpu, same_shape, size};
use crate::device::Term;
use crate::device::driver::Argument;
use crate::ops::FrozenVector;
use candle_core::Result;

impl Cuda {
    /// `onto + factor·branch`, for the residual stream: it lasts.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn add_scaled(&self, onto: &Rows, branch: &Rows, factor: f32) -> Result<Rows> {
        same_shape(&[onto, branch])?;
        let y = self.rows_for(onto.rows, onto.columns, Term::Long)?;
        let [onto_at, branch, y_at] = [onto, branch, &y].map(|rows| address(&rows.memory));
        let arguments = [onto_at, branch, y_at, Argument::F32(factor), size(y.columns)?];
        self.each_part_by(&programs::families(), "add_scaled", (y.rows, y.columns), 3, &arguments)?;
        Ok(y)
    }

    /// `onto + rms_norm(branch)`, for the residual stream: it lasts. The twin of [`crate::ops::add_normalized`].
    ///
    /// # Errors
    /// When the device refuses.
    pub fn add_normalized(&self, onto: &Rows, branch: &Rows, weight: &FrozenVector, epsilon: f64) -> Result<Rows> {
        same_shape(&[onto, branch])?;
        let weight = on_gpu(weight, onto.columns)?;
        let y = self.rows_for(onto.rows, onto.columns, Term::Long)?;
        let [onto_at, branch, y_at] = [onto, branch, &y].map(|rows| address(&rows.memory));
        let arguments = [onto_at, branch, weight, y_at, size(y.columns)?, Argument::F32(epsilon as f32)];
        self.each_row(&programs::families(), "add_normalized", (y.rows, y.columns), 3, &arguments)?;
        Ok(y)
    }

    /// The gradient of the branch of [`Self::add_normalized`] for that of the stream.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn branch_norm_backward(&self, branch: &Rows, weight: &FrozenVector, epsilon: f64, dy: &Rows) -> Result<Rows> {
        same_shape(&[branch, dy])?;
        let weight = on_gpu(weight, branch.columns)?;
        let gradient = self.rows(branch.rows, branch.columns)?;
        let [branch_at, dy, gradient_at] = [branch, dy, &gradient].map(|rows| address(&rows.memory));
        let arguments = [branch_at, weight, dy, gradient_at, size(branch.columns)?, Argument::F32(epsilon as f32)];
        let shape = (branch.rows, branch.columns);
        self.each_row(&programs::families(), "branch_norm_backward", shape, 3, &arguments)?;
        Ok(gradient)
    }

    /// `factor·x`
    ///
    /// # Errors
    /// When the device refuses.
    pub fn scaled(&self, x: &Rows, factor: f32) -> Result<Rows> {
        let y = self.rows(x.rows, x.columns)?;
        self.scale_to(x, factor, &y)?;
        Ok(y)
    }

    /// `y = factor·x`; `y` may be `x`.
    pub(super) fn scale_to(&self, x: &Rows, factor: f32, y: &Rows) -> Result<()> {
        let arguments = [address(&x.memory), address(&y.memory), Argument::F32(factor), size(x.columns)?];
        self.each_part_by(&programs::families(), "scaled", (x.rows, x.columns), 2, &arguments)
    }

    /// `onto += x`
    ///
    /// # Errors
    /// When the device refuses.
    pub fn add_to(&self, x: &Rows, onto: &Rows) -> Result<()> {
        same_shape(&[x, onto])?;
        self.each_part("add", (x.rows, x.columns), 3, &[address(&x.memory), address(&onto.memory), size(x.columns)?])
    }
}
