//! How much memory a run will take, before it takes it.

use super::GradientCheckpointing;
use crate::models::Dimensions;
use serde::Serialize;

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The frozen weights.
    pub weights: u64,
    /// The adapter, its gradients, and the optimizer's two moments.
    pub adapter_and_optimizer: u64,
    /// What the layers keep for the backward pass, and the work of one layer.
    pub activations: u64,
    /// The head: logits of a chunk, and a panel of dequantized weights.
    pub head: u64,
    /// All of it, and the program itself.
    pub total: u64,
}

/// What the program takes without a model: code, tokenizer, threads.
const PROGRAM: u64 = 48 << 20;

impl MemoryEstimate {
    /// An estimate for micro-batches of `rows × width` tokens.
    ///
    /// `weights + adapter·(1 + 1 + 2) + layer inputs + kept activations + one layer's work + head`, all but the weights in
    /// `f32`. A layer's graph keeps, for each token: input, two normalized inputs, queries twice (before and after
    /// rotation), keys twice, values, attention, the state between, gate, up, and their product.
    pub fn new(
        weights: u64,
        adapter_parameters: usize,
        d: &Dimensions,
        (rows, width): (usize, usize),
        checkpointing: GradientCheckpointing,
    ) -> Self {
        let tokens = (rows * width) as u64;
        let (query, key) = ((d.heads * d.head_dim) as u64, (d.kv_heads * d.head_dim) as u64);
        let (hidden, inner) = (d.hidden as u64, d.intermediate as u64);
        let graph = 4 * tokens * (6 * hidden + 3 * query + 5 * key + 3 * inner);
        // While a layer is pulled through, gradients of about as many numbers are alive.
        let work = graph + 4 * tokens * (2 * hidden + 2 * inner);
        let inputs = 4 * tokens * hidden * d.layers as u64;
        let activations = work
            + match checkpointing {
                GradientCheckpointing::None => graph * d.layers as u64,
                GradientCheckpointing::Layer => inputs,
            };
        let logits = 4 * tokens.min(256) * d.vocabulary as u64;
        let largest = 4 * hidden * (d.vocabulary as u64).max(inner);
        let head = logits + largest.min(16 << 20) + 4 * tokens * hidden * 3;
        let adapter_and_optimizer = 4 * 5 * adapter_parameters as u64;
        let total = PROGRAM + weights + adapter_and_optimizer + activations + head;
        Self { weights, adapter_and_optimizer, activations, head, total }
    }
}
