//! Forward passes without gradients, in `f32`.

use super::CausalLm;
use crate::device::{Device, Gpu};
use crate::nn::{Backend, ForwardContext, GpuBatch, GpuContext, KvCache};
use crate::ops::cuda::{AdapterMemory, KeyValueMemory};
use crate::ops::{Compute, Pool, RopeTable, Sequence};
use candle_core::{Result, bail};

/// What a forward pass runs on, without adapter, or with the one that the model's layers have.
#[derive(Debug, Clone, Copy)]
pub enum Runner<'a> {
    /// The CPU.
    Cpu {
        /// Whether the adapter takes part.
        adapter: bool,
    },
    /// A GPU.
    Gpu {
        /// The GPU.
        gpu: &'a Gpu,
        /// The adapter, where it takes part.
        adapter: Option<&'a AdapterMemory>,
    },
}

/// Keys and values of the tokens before.
#[derive(Debug)]
pub(super) enum Cache {
    Cpu(KvCache<f32>),
    Gpu(KeyValueMemory),
}

impl Cache {
    pub fn new(runner: Runner<'_>, layers: usize) -> Self {
        match runner {
            Runner::Cpu { .. } => Self::Cpu(KvCache::new(layers)),
            Runner::Gpu { .. } => Self::Gpu(KeyValueMemory::new(layers)),
        }
    }
}

impl CausalLm {
    /// What this model runs on, with its adapter or without.
    pub fn runner<'a>(&'a self, device: &'a Device, adapter: bool) -> Runner<'a> {
        match device {
            Device::Cpu => Runner::Cpu { adapter },
            Device::Gpu(gpu) => Runner::Gpu { gpu, adapter: self.adapter_memory.as_deref().filter(|_| adapter) },
        }
    }

    /// The logits after each token of a text, `[n, vocabulary]`, with the adapter or without.
    ///
    /// # Errors
    /// For no token at all, for ids outside of the vocabulary, and for more tokens than the model has positions.
    pub fn logits(&self, ids: &[u32], adapter: bool, device: &Device) -> Result<Vec<f32>> {
        if ids.is_empty() || ids.len() > self.dimensions.max_positions {
            bail!("{} tokens: expected 1 to {}", ids.len(), self.dimensions.max_positions);
        }
        self.logits_after(self.runner(device, adapter), ids, 0, 0, None, &Pool::default())
    }

    /// The logits after each token from `first` on, of tokens that follow `before` others, which are in `cache`.
    pub(super) fn logits_after(
        &self,
        runner: Runner<'_>,
        ids: &[u32],
        first: usize,
        before: usize,
        cache: Option<&Cache>,
        pool: &Pool,
    ) -> Result<Vec<f32>> {
        let (n, end) = (ids.len(), before + ids.len());
        let positions: Vec<u32> = (before as u32..end as u32).collect();
        let ropes = self.rotations(&positions);
        let sequences = vec![Sequence { queries: 0..n, keys: 0..end }];
        match runner {
            Runner::Cpu { adapter } => {
                let cache = cache.and_then(|cache| match cache {
                    Cache::Cpu(cache) => Some(cache),
                    Cache::Gpu(_) => None,
                });
                let context = ForwardContext {
                    ropes,
                    sequences,
                    key_rows: None,
                    dropout_keys: None,
                    adapter,
                    cache,
                    pool,
                    tokens: n,
                    capacity: n,
                };
                self.logits_on(&context, ids, first)
            }
            Runner::Gpu { gpu, adapter } => {
                self.logits_on(&self.gpu_context(gpu, adapter, ropes, &sequences, cache)?, ids, first)
            }
        }
    }

    fn gpu_context<'a>(
        &self,
        gpu: &Gpu,
        adapter: Option<&'a AdapterMemory>,
        ropes: Vec<RopeTable>,
        sequences: &[Sequence],
        cache: Option<&'a Cache>,
    ) -> Result<GpuContext<'a>> {
        let tokens = sequences.iter().map(|sequence| sequence.queries.len()).sum();
        let batch = GpuBatch {
            compute: Compute::F32,
            capacity: tokens,
            adapter,
            ropes,
            sequences,
            key_rows: None,
            head_dim: self.dimensions.head_dim,
            dropout_keys: None,
            cache: cache.and_then(|cache| match cache {
                Cache::Gpu(cache) => Some(cache),
                Cache::Cpu(_) => None,
            }),
            offload: false,
            tokens,
        };
        GpuContext::new(gpu, &batch)
    }

    fn logits_on<B: Backend>(&self, backend: &B, ids: &[u32], first: usize) -> Result<Vec<f32>> {
        let mut x = backend.embed(&self.embed_tokens, ids, self.embedding_factor)?;
        for layer in &self.layers {
            x = layer.forward(&x, backend)?.0;
        }
        backend.logits(&x, first, self.head())
    }
}
