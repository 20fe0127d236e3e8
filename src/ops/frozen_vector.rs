//! A frozen vector: the weight of a normalization, or a bias.

use crate::device::{Device, Memory};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A frozen vector in `f32`, on the CPU, and on the GPU where one computes.
#[derive(Debug, Clone)]
pub struct FrozenVector {
    numbers: Arc<[f32]>,
    memory: Option<Arc<Memory>>,
}

impl FrozenVector {
    /// Takes the numbers of a tensor.
    ///
    /// # Errors
    /// When they are not `f32`, or the GPU's memory is full.
    pub fn new(tensor: &Tensor, device: &Device) -> Result<Self> {
        let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        let memory = device.gpu().map(|gpu| gpu.upload_numbers(&numbers)).transpose()?;
        Ok(Self { numbers: numbers.into(), memory: memory.map(Arc::new) })
    }

    /// The numbers.
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// The numbers in a GPU's memory.
    pub(super) fn memory(&self) -> Option<&Memory> {
        self.memory.as_deref()
    }

    /// The vector as candle has it.
    ///
    /// # Errors
    /// Never.
    pub fn tensor(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.numbers, self.numbers.len(), &candle_core::Device::Cpu)
    }
}
