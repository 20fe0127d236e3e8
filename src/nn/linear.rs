//! A frozen linear layer, with an adapter or without.

use super::context::ForwardContext;
use crate::ops::{Dropout, FrozenWeight, LoraScale, frozen_matmul, lora_linear};
use candle_core::{Result, Tensor, Var};

/// The trainable part of a layer: `scale · B(A(dropout(x)))`.
#[derive(Debug, Clone)]
pub struct LoraAdapter {
    /// `[r, in]`
    pub a: Var,
    /// `[out, r]`
    pub b: Var,
    /// `lora_alpha / r`, or over `√r`.
    pub scale: f64,
    /// Share of the inputs that is zeroed in training.
    pub dropout: f64,
    /// The layer's key for dropout masks.
    pub key: u64,
}

/// `y = x·Wᵀ + bias + scale·B(A(dropout(x)))`: frozen `W` and bias, and the adapter where the layer is a target.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The frozen matrix.
    pub weight: FrozenWeight,
    /// The frozen bias, `[out]`.
    pub bias: Option<Tensor>,
    /// The adapter of a target module.
    pub adapter: Option<LoraAdapter>,
}

impl Linear {
    /// For `x: [.., in]`, `[.., out]`.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn forward(&self, x: &Tensor, context: &ForwardContext<'_>) -> Result<Tensor> {
        let y = match self.adapter.as_ref().filter(|_| context.adapter) {
            None => frozen_matmul(x, &self.weight)?,
            Some(adapter) => {
                let dropout = context.dropout_keys.as_ref().filter(|_| adapter.dropout > 0.0).map(|keys| Dropout {
                    probability: adapter.dropout as f32,
                    row_keys: keys.clone(),
                    layer_key: adapter.key,
                });
                lora_linear(x, &self.weight, &adapter.a, &adapter.b, LoraScale(adapter.scale as f32), dropout)?
            }
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}
