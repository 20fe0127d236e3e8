//! How much memory a run will take, before it takes it: the CPU's, or a GPU's.

use crate::models::Dimensions;
use crate::ops::Compute;
use crate::ops::cuda::{chunk_tokens, panel_bytes};
use serde::Serialize;

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// On the CPU, what the process holds besides: the program, the tokenizer, the rows' index, and an allowance for what is
    /// taken in small pieces.
    pub program: u64,
    /// The frozen weights.
    pub weights: u64,
    /// The adapter, the optimizer's two moments, and on a GPU the gradients.
    pub adapter_and_optimizer: u64,
    /// What the layers keep for the backward pass, and the work of one layer; on the CPU the head's work and the gradients too.
    pub activations: u64,
    /// On a GPU, what the head takes beyond that.
    pub head: u64,
    /// On a GPU, what cuBLAS works in.
    pub workspace: u64,
    /// All of it, and the program itself.
    pub total: u64,
}

/// What a run on the CPU takes in small pieces, whatever its size.
const SMALL: u64 = 8 << 20;

impl MemoryEstimate {
    /// An estimate for the CPU: what the process holds before the weights, those, the adapter with its moments, and what a
    /// [`Ledger`](crate::ops::Ledger) says of the steps' buffers, gradients among them.
    pub const fn on_cpu(held: u64, weights: u64, adapter_parameters: usize, buffers: u64) -> Self {
        let adapter_and_optimizer = 3 * 4 * adapter_parameters as u64;
        let named = held + weights + adapter_and_optimizer + buffers;
        // Stacks of threads, small vectors, files while they are written, and what the allocator keeps between its pieces.
        let program = held + SMALL + named / 32;
        let total = program + weights + adapter_and_optimizer + buffers;
        Self { program, weights, adapter_and_optimizer, activations: buffers, head: 0, workspace: 0, total }
    }

    /// An estimate for a GPU, of its own memory alone: all activations are in the type of products, and buffers have room for
    /// `tokens`. What the driver takes for itself is not in it: it is not in what the driver calls free either. What cuBLAS works
    /// in comes with [`Self::with_workspace`].
    ///
    /// A layer keeps its input, but under `offload`; of the last `kept_layers` layers, what [`Activations`] hold. With a `reference`, the
    /// head's rows of the base alone and their gradient stay besides.
    ///
    /// [`Activations`]: crate::nn::Activations
    pub fn on_gpu(
        weights: u64,
        (adapter_parameters, r): (usize, usize),
        d: &Dimensions,
        tokens: usize,
        (kept_layers, offload, reference): (usize, bool, bool),
        compute: Compute,
    ) -> Self {
        let (tokens, bytes, r) = (tokens as u64, compute.bytes() as u64, r as u64);
        let (hidden, inner, layers) = (d.hidden as u64, d.intermediate as u64, d.layers as u64);
        let (query, key) = ((d.heads * d.head_dim) as u64, (d.kv_heads * d.head_dim) as u64);
        let outputs = d.kept_outputs as u64 * hidden;
        let each = tokens * (bytes * (2 * query + 2 * key + hidden + 2 * inner + 6 * r + outputs) + 4 * d.heads as u64);
        let inputs = (if offload { 1 } else { layers } + if reference { 2 } else { 0 }) * tokens * hidden * bytes;
        let kept = (kept_layers as u64 + 1).min(layers);
        // Backward through an MLP: the product within beside its gradient (those of gate and up take their place); the
        // stream's, a normalized state and what is pulled through it.
        // Through attention: the gradients of its output and of the heads, and where these are normalized a copy of them.
        let copy = if d.qk_norm { query + 2 * key } else { 0 };
        let most = (2 * inner + 3 * hidden).max(2 * query + 2 * key + copy + 3 * hidden);
        let work = tokens * bytes * most + panel_bytes(d.intermediate, d.hidden, compute);
        let chunk = tokens.min(chunk_tokens(d.vocabulary) as u64);
        let head = chunk * d.vocabulary as u64 * (4 + bytes) + 4 * tokens * hidden * bytes;
        let head_panel = panel_bytes(d.vocabulary, d.hidden, compute);
        // A layer's work is done when the head's begins, and the other way round.
        let (layer, head) = (kept * each + work, head + head_panel + (kept - 1) * each);
        // Rotations, factors of queries, keys of dropout, and small tables.
        let tables = tokens * (4 * (d.head_dim * d.rotations) as u64 + 12) + (64 << 10);
        let activations = inputs + tables + if layer > head { layer } else { 0 };
        let head = if layer > head { 0 } else { head };
        // Buffers of several sizes come and go, and leave holes.
        let activations = activations + (activations + head) / 32;
        let rounded = if compute == Compute::Bf16 { 2 } else { 0 };
        let adapter_and_optimizer = (4 * 4 + rounded) * adapter_parameters as u64;
        let total = weights + adapter_and_optimizer + activations + head;
        Self { program: 0, weights, adapter_and_optimizer, activations, head, workspace: 0, total }
    }

    /// With what a GPU's libraries hold besides.
    #[must_use]
    pub const fn with_workspace(self, workspace: u64) -> Self {
        Self { workspace, total: self.total - self.workspace + workspace, ..self }
    }

    /// The most that fits within `limit` bytes, up to `most`: tokens of a micro-batch, or layers whose activations are kept.
    /// `estimate` takes their number, and grows with it.
    pub fn most_within(most: usize, limit: u64, estimate: impl Fn(usize) -> Self) -> usize {
        if estimate(most).total <= limit {
            return most;
        }
        let (mut fits, mut over) = (0, most);
        while over - fits > 1 {
            let middle = fits + (over - fits) / 2;
            if estimate(middle).total <= limit { fits = middle } else { over = middle }
        }
        fits
    }
}
