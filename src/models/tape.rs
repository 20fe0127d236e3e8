//! The same model on candle's own graph, in `f32` on the CPU: what the kernels are tested against.

use super::CausalLm;
use crate::nn::{DecoderLayer, Linear};
use crate::ops::{Activation, Dropout, composed};
use candle_core::{Device, Result, Tensor};

/// What a layer knows of a batch `[b, t]` besides its hidden states.
#[derive(Debug)]
pub struct TapeContext<'a> {
    /// Cosines and sines, `[b, t, head_dim / 2]`.
    rope: (Tensor, Tensor),
    /// 0 where a query sees a key, else -∞: `[b, 1, t, t]`.
    mask: Tensor,
    dropout_keys: Option<&'a [u64]>,
    adapter: bool,
}

impl<'a> TapeContext<'a> {
    /// For tokens at these positions, of these segments (`[b, t]`, row by row; a token sees those before it in its own).
    ///
    /// # Errors
    /// When the device refuses.
    pub fn new(
        lm: &CausalLm,
        (rows, width): (usize, usize),
        position_ids: &[u32],
        segment_ids: &[u32],
        dropout_keys: Option<&'a [u64]>,
        adapter: bool,
    ) -> Result<Self> {
        let mut mask = vec![f32::NEG_INFINITY; rows * width * width];
        for (query, mask) in mask.chunks_exact_mut(width).enumerate() {
            let row = query / width * width;
            for (key, mask) in (row..=query).zip(mask) {
                if segment_ids[key] == segment_ids[query] {
                    *mask = 0.0;
                }
            }
        }
        Ok(Self {
            rope: lm.rope(position_ids).tensors(rows, width, &Device::Cpu)?,
            mask: Tensor::from_vec(mask, (rows, 1, width, width), &Device::Cpu)?,
            dropout_keys,
            adapter,
        })
    }
}

impl CausalLm {
    /// `[b, t]` token ids to `[b, t, d]`, without a gradient.
    ///
    /// # Errors
    /// When an id is outside of the vocabulary.
    pub fn tape_embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.embedding(ids)
    }

    /// Layer `index` on `[b, t, d]`, in a graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn tape_layer(&self, index: usize, hidden: &Tensor, context: &TapeContext<'_>) -> Result<Tensor> {
        let DecoderLayer { shape, epsilon, input_norm, qkv, o, post_attention_norm, gate_up, down, .. } =
            &self.layers[index];
        let x = composed::rms_norm(hidden, &input_norm.tensor()?, *epsilon)?;
        let [q, k, v] = qkv.each_ref().map(|linear| tape_linear(linear, &x, context));
        let rotate = |x: &Tensor| composed::rope(x, &context.rope.0, &context.rope.1, None, shape.head_dim);
        let attention = composed::attention(&rotate(&q?)?, &rotate(&k?)?, &v?, &context.mask, *shape)?;
        let hidden = (hidden + tape_linear(o, &attention, context)?)?;

        let x = composed::rms_norm(&hidden, &post_attention_norm.tensor()?, *epsilon)?;
        let [gate, up] = gate_up.each_ref().map(|linear| tape_linear(linear, &x, context));
        hidden + tape_linear(down, &composed::gate(Activation::Silu, &gate?, &up?)?, context)?
    }

    /// The normalization before the head, in a graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn tape_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        composed::rms_norm(hidden, &self.norm.tensor()?, self.epsilon)
    }
}

fn tape_linear(linear: &Linear, x: &Tensor, context: &TapeContext<'_>) -> Result<Tensor> {
    let mut y = composed::linear(x, &linear.weight)?;
    if let Some(bias) = &linear.bias {
        y = y.broadcast_add(&bias.tensor()?)?;
    }
    let Some(adapter) = linear.adapter.as_ref().filter(|_| context.adapter) else { return Ok(y) };
    let dropped = match context.dropout_keys.filter(|_| adapter.dropout > 0.0) {
        Some(row_keys) => {
            let dropout = Dropout { probability: adapter.dropout as f32, row_keys, layer_key: adapter.key };
            (x * Tensor::from_vec(dropout.masks(linear.weight.columns()), x.shape(), x.device())?)?
        }
        None => x.clone(),
    };
    let update = dropped.broadcast_matmul(&adapter.a.t()?)?.broadcast_matmul(&adapter.b.t()?)?;
    y + (update * adapter.scale)?
}
