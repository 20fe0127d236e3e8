//! Sums of gradients, where they were made.

use crate::error::Result;
use crate::nn::{AdapterParams, Gradients};
use crate::ops::cuda::AdapterMemory;
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Sums of the gradients of an adapter's tensors.
#[derive(Debug)]
pub enum GradientSums<'a> {
    /// On the CPU, by name.
    Cpu(Gradients),
    /// In the adapter's memory on a GPU.
    Gpu(&'a AdapterMemory),
}

impl GradientSums<'_> {
    /// `√Σ g²` over all tensors, in `f64`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn norm(&self) -> Result<f64> {
        match self {
            Self::Cpu(gradients) => Ok(gradients.norm()),
            Self::Gpu(memory) => Ok(memory.gradient_norm()?),
        }
    }

    /// The sums by name, on the CPU.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn into_tensors(self, params: &AdapterParams) -> Result<BTreeMap<String, Tensor>> {
        let sums: Vec<(String, Vec<f32>)> = match self {
            Self::Cpu(gradients) => gradients.into_sums().collect(),
            Self::Gpu(memory) => memory.gradients()?.into_iter().collect(),
        };
        let tensors = sums.into_iter().filter_map(|(name, sum)| {
            let shape = params.get(&name)?.shape().clone();
            Some(Tensor::from_vec(sum, shape, &Device::Cpu).map(|sum| (name, sum)))
        });
        Ok(tensors.collect::<candle_core::Result<_>>()?)
    }
}
