//! Forward passes without gradients, in `f32`.

use super::{CausalLm, TapeContext};
use crate::nn::{ForwardContext, KvCache};
use crate::ops::{Buffer, Compute, Group, Module, Pool, SavedInput, Sequence, frozen_matmul, numbers, rms_norm};
use candle_core::{Device, Result, Tensor, bail};

impl CausalLm {
    /// The logits after each token of a text, `[n, vocabulary]`, with the adapter or without.
    ///
    /// # Errors
    /// For no token at all, for ids outside of the vocabulary, and for more tokens than the model has positions.
    pub fn logits(&self, ids: &[u32], adapter: bool, device: &Device) -> Result<Vec<f32>> {
        if ids.is_empty() || ids.len() > self.dimensions.max_positions {
            bail!("{} tokens: expected 1 to {}", ids.len(), self.dimensions.max_positions);
        }
        if device.is_cpu() {
            let pool = Pool::default();
            return self.head_cpu(&self.hidden_cpu(ids, 0, adapter, None, &pool)?, &pool);
        }
        let positions: Vec<u32> = (0..ids.len() as u32).collect();
        let context = TapeContext::new(self, (1, ids.len()), &positions, &vec![1; ids.len()], None, adapter, device)?;
        let mut hidden = self.tape_embed(&Tensor::new(ids, device)?.unsqueeze(0)?)?;
        for index in 0..self.dimensions.layers {
            hidden = self.tape_layer(index, &hidden, &context)?.detach();
        }
        frozen_matmul(&self.tape_norm(&hidden)?, &self.lm_head, Compute::F32)?.flatten_all()?.to_vec1()
    }

    /// The hidden states after the last layer, `[n, d]`, of tokens that follow `before` others, which are in `cache`.
    pub(super) fn hidden_cpu<'p>(
        &self,
        ids: &[u32],
        before: usize,
        adapter: bool,
        cache: Option<&'p KvCache<f32>>,
        pool: &'p Pool,
    ) -> Result<Buffer<f32>> {
        let (n, end) = (ids.len(), before + ids.len());
        let positions: Vec<u32> = (before as u32..end as u32).collect();
        let context = ForwardContext {
            rope: self.rope(&positions),
            sequences: vec![Sequence { queries: 0..n, keys: 0..end }],
            dropout_keys: None,
            adapter,
            cache,
            pool,
            tokens: n,
            capacity: n,
        };
        let mut x = context.take::<f32>(self.dimensions.hidden);
        self.embed(ids, &mut x)?;
        for layer in &self.layers {
            x = layer.forward(&x, &context)?.0;
        }
        Ok(x)
    }

    /// The logits of hidden states `[n, d]`.
    pub(super) fn head_cpu(&self, hidden: &[f32], pool: &Pool) -> Result<Vec<f32>> {
        let n = hidden.len() / self.dimensions.hidden;
        let mut normed = vec![0f32; hidden.len()];
        rms_norm(hidden, &numbers(&self.norm)?, self.epsilon, &mut normed);
        let mut logits = vec![0f32; n * self.dimensions.vocabulary];
        let head = Module { weight: &self.lm_head, bias: None, update: None };
        let group = Group { modules: &[head], pool, capacity: n };
        group.forward(SavedInput { x: &normed[..], down: &[] }, &mut logits)?;
        Ok(logits)
    }
}
