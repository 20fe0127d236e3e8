//! How much memory a run will take, before it takes it: the CPU's, or a GPU's.

use crate::models::Dimensions;
use crate::nn::DecoderLayer;
use crate::ops::cuda::{chunk_tokens as cuda_chunk_tokens, panel_bytes};
use crate::ops::{Compute, chunk_tokens};
use half::bf16;
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
    /// The head: exponentials of a chunk, and panels of packed weights.
    pub head: u64,
    /// On a GPU, what cuBLAS works in.
    pub workspace: u64,
    /// All of it, and the program itself.
    pub total: u64,
}

/// What the program takes without a model: code, tokenizer, threads.
const PROGRAM: u64 = 48 << 20;

/// Numbers of the packed panels that are alive at a time.
const PANELS: u64 = 2 << 20;

impl MemoryEstimate {
    /// An estimate for micro-batches of so many tokens, padding not counted: it never enters.
    ///
    /// `weights + adapter·(1 + 1 + 2) + layer inputs + kept activations + one layer's work + head`. A layer keeps its input
    /// (`f32`), and of the last `kept_layers` layers what [`DecoderLayer::activation_bytes`] counts.
    pub fn new(
        weights: u64,
        (adapter_parameters, r): (usize, usize),
        d: &Dimensions,
        tokens: usize,
        kept_layers: usize,
        compute: Compute,
    ) -> Self {
        let (each, chunk) = match compute {
            Compute::F32 => (Self::layer::<f32>(d, r), chunk_tokens::<f32>(d.vocabulary)),
            Compute::Bf16 => (Self::layer::<bf16>(d, r), chunk_tokens::<bf16>(d.vocabulary)),
        };
        let (tokens, bytes) = (tokens as u64, compute.bytes() as u64);
        let (hidden, inner) = (d.hidden as u64, d.intermediate as u64);
        let (query, key) = ((d.heads * d.head_dim) as u64, (d.kv_heads * d.head_dim) as u64);
        let layers = d.layers as u64;
        // Of the layers that are computed again, one at a time is whole.
        let kept = (kept_layers as u64 + 1).min(layers);
        // Backward through an MLP: the product within, its gradient in f32, gate's and up's, their packed input; and through
        // attention: gradients of queries, keys and values in f32 for each head, and packed keys and values.
        let mlp = (4 * bytes + 4) * inner + (2 * bytes + 8) * hidden;
        let attention = (12 + 4 * bytes) * query + 4 * bytes * key + (2 * bytes + 8) * hidden;
        let work = tokens * mlp.max(attention);
        let activations = tokens * (4 * hidden * (layers + 2) + kept * each) + work;
        let rows = tokens.min(chunk as u64);
        let head = bytes * (rows * d.vocabulary as u64 + PANELS) + tokens * hidden * (bytes + 12);
        let adapter_and_optimizer = 4 * 4 * adapter_parameters as u64;
        let total = PROGRAM + weights + adapter_and_optimizer + activations + head;
        Self { weights, adapter_and_optimizer, activations, head, workspace: 0, total }
    }

    /// An estimate for a GPU, of its own memory alone: all activations are in the type of products, and buffers have room for
    /// `tokens`. What the driver takes for itself is not in it: it is not in what the driver calls free either. What cuBLAS works
    /// in comes with [`Self::with_workspace`].
    ///
    /// A layer keeps its input, but under `offload`; of the last `kept_layers` layers, what [`Activations`] hold.
    ///
    /// [`Activations`]: crate::nn::Activations
    pub fn on_gpu(
        weights: u64,
        (adapter_parameters, r): (usize, usize),
        d: &Dimensions,
        tokens: usize,
        (kept_layers, offload): (usize, bool),
        compute: Compute,
    ) -> Self {
        let (tokens, bytes, r) = (tokens as u64, compute.bytes() as u64, r as u64);
        let (hidden, inner, layers) = (d.hidden as u64, d.intermediate as u64, d.layers as u64);
        let (query, key) = ((d.heads * d.head_dim) as u64, (d.kv_heads * d.head_dim) as u64);
        let each = tokens * (bytes * (2 * query + 2 * key + hidden + 2 * inner + 6 * r) + 4 * d.heads as u64);
        let inputs = if offload { 1 } else { layers } * tokens * hidden * bytes;
        let kept = (kept_layers as u64 + 1).min(layers);
        // Backward through an MLP: the product within beside its gradient (those of gate and up take their place); the
        // stream's, a normalized state and what is pulled through it.
        let work = tokens * bytes * (2 * inner + 3 * hidden) + panel_bytes(d.intermediate, d.hidden, compute);
        let chunk = tokens.min(cuda_chunk_tokens(d.vocabulary) as u64);
        let head = chunk * d.vocabulary as u64 * (4 + bytes) + 4 * tokens * hidden * bytes;
        let head_panel = panel_bytes(d.vocabulary, d.hidden, compute);
        // A layer's work is done when the head's begins, and the other way round.
        let (layer, head) = (kept * each + work, head + head_panel + (kept - 1) * each);
        // Rotations and keys of dropout, and small tables.
        let tables = tokens * (4 * d.head_dim as u64 + 8) + (64 << 10);
        let activations = inputs + tables + if layer > head { layer } else { 0 };
        let head = if layer > head { 0 } else { head };
        // Buffers of several sizes come and go, and leave holes.
        let activations = activations + (activations + head) / 32;
        let rounded = if compute == Compute::Bf16 { 2 } else { 0 };
        let adapter_and_optimizer = (4 * 4 + rounded) * adapter_parameters as u64;
        let total = weights + adapter_and_optimizer + activations + head;
        Self { weights, adapter_and_optimizer, activations, head, workspace: 0, total }
    }

    /// With what a GPU's libraries hold besides.
    #[must_use]
    pub const fn with_workspace(self, workspace: u64) -> Self {
        Self { workspace, total: self.total - self.workspace + workspace, ..self }
    }

    /// The most tokens of a micro-batch that fit within `limit` bytes, up to `most`; `estimate` takes their number.
    pub fn tokens_within(most: usize, limit: u64, estimate: impl Fn(usize) -> Self) -> usize {
        let (mut fits, mut over) = (0, most + 1);
        while over - fits > 1 {
            let middle = fits + (over - fits) / 2;
            if estimate(middle).total <= limit { fits = middle } else { over = middle }
        }
        fits
    }

    /// The most layers whose activations can be kept within `limit` bytes; `estimate` takes their number.
    pub fn layers_within(layers: usize, limit: u64, estimate: impl Fn(usize) -> Self) -> usize {
        (0..=layers).rev().find(|&kept| estimate(kept).total <= limit).unwrap_or(0)
    }

    fn layer<E: crate::ops::Element>(d: &Dimensions, r: usize) -> u64 {
        DecoderLayer::activation_bytes::<E>(d.hidden, d.attention(), d.intermediate, r) as u64
    }
}
