//! The same model on candle's own graph, in `f32` on the CPU: what the kernels are tested against.

use super::CausalLm;
use crate::nn::{FrozenNorm, Join, Linear, Mlp, Residual, SelfAttention};
use crate::ops::{Dropout, RopeTable, composed};
use candle_core::{D, Device, Result, Tensor};
use std::slice::from_ref;

/// What a layer knows of a batch `[b, t]` besides its hidden states.
#[derive(Debug)]
pub struct TapeContext<'a> {
    /// The model's rotations.
    ropes: Vec<Rotation>,
    /// For each window of the model's layers, 0 where a query sees a key, else -∞: `[b, 1, t, t]`.
    masks: Vec<(Option<usize>, Tensor)>,
    dropout_keys: Option<&'a [u64]>,
    adapter: bool,
}

/// Cosines and sines, `[b, t, D / 2]`, and factors of queries, `[b, t, 1]`.
#[derive(Debug)]
struct Rotation {
    cos: Tensor,
    sin: Tensor,
    factors: Option<Tensor>,
    interleaved: bool,
}

impl Rotation {
    fn new(table: &RopeTable, (rows, width): (usize, usize)) -> Result<Self> {
        let (cos, sin) = table.tensors(rows, width, &Device::Cpu)?;
        let factors = table.query_factor_tensor(rows, width, &Device::Cpu)?;
        Ok(Self { cos, sin, factors, interleaved: table.is_interleaved() })
    }

    fn apply(&self, x: &Tensor, is_query: bool, head_dim: usize) -> Result<Tensor> {
        let factors = self.factors.as_ref().filter(|_| is_query);
        let rotate = |x: &Tensor| composed::rope(x, &self.cos, &self.sin, factors, head_dim);
        if !self.interleaved {
            return rotate(x);
        }
        // Pairs of neighbours are halves in another order.
        let turned = 2 * self.cos.dim(D::Minus1)? as u32;
        let order = (0..turned).step_by(2).chain((1..turned).step_by(2)).chain(turned..head_dim as u32);
        let order: Vec<u32> = order.collect();
        let mut back = vec![0; order.len()];
        for (to, from) in order.iter().enumerate() {
            back[*from as usize] = to as u32;
        }
        let reorder = |x: &Tensor, order: Vec<u32>| {
            let heads = x.reshape((x.elem_count() / head_dim, head_dim))?;
            heads.index_select(&Tensor::new(order, &Device::Cpu)?, 1)?.reshape(x.shape())
        };
        reorder(&rotate(&reorder(x, order)?)?, back)
    }
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
        let mut windows: Vec<_> = lm.layers.iter().map(|layer| layer.attention.shape.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let mask = |window: Option<usize>| {
            let mut mask = vec![f32::NEG_INFINITY; rows * width * width];
            for (query, mask) in mask.chunks_exact_mut(width).enumerate() {
                let row = query / width * width;
                for (key, mask) in (row..=query).zip(mask) {
                    let near = window.is_none_or(|window| query - key < window);
                    if near && segment_ids[key] == segment_ids[query] {
                        *mask = 0.0;
                    }
                }
            }
            Ok((window, Tensor::from_vec(mask, (rows, 1, width, width), &Device::Cpu)?))
        };
        let rotations = lm.rotations(position_ids);
        Ok(Self {
            ropes: rotations.iter().map(|table| Rotation::new(table, (rows, width))).collect::<Result<_>>()?,
            masks: windows.into_iter().map(mask).collect::<Result<_>>()?,
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
        self.embed_tokens.embedding(ids)? * f64::from(self.embedding_factor)
    }

    /// Layer `index` on `[b, t, d]`, in a graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn tape_layer(&self, index: usize, hidden: &Tensor, context: &TapeContext<'_>) -> Result<Tensor> {
        let layer = &self.layers[index];
        let attention = tape_attention(&layer.attention, &enter(&layer.attention.residual, hidden)?, context)?;
        let hidden = join(&layer.attention.residual, hidden, attention)?;
        let mlp = tape_mlp(&layer.mlp, &enter(&layer.mlp.residual, &hidden)?, context)?;
        join(&layer.mlp.residual, &hidden, mlp)
    }

    /// The normalization before the head, in a graph.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn tape_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        composed::rms_norm(hidden, &self.norm.tensor()?, self.epsilon)
    }
}

fn tape_attention(attention: &SelfAttention, x: &Tensor, context: &TapeContext<'_>) -> Result<Tensor> {
    let SelfAttention { shape, rope, qk_norm, qkv, o, .. } = attention;
    let (query, key) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let qkv = side_by_side(qkv, x, context)?;
    let part = |first, width| qkv.narrow(D::Minus1, first, width)?.contiguous();
    let (mut q, mut k, v) = (part(0, query)?, part(query, key)?, part(query + key, key)?);
    if let Some(norm) = qk_norm {
        q = composed::head_norm(&q, &norm.query.tensor()?, norm.epsilon)?;
        k = composed::head_norm(&k, &norm.key.tensor()?, norm.epsilon)?;
    }
    if let Some(rope) = rope {
        let rotation = &context.ropes[*rope];
        (q, k) = (rotation.apply(&q, true, shape.head_dim)?, rotation.apply(&k, false, shape.head_dim)?);
    }
    let mask = context.masks.iter().find(|(window, _)| *window == shape.window);
    let Some((_, mask)) = mask else { candle_core::bail!("internal: a window without a mask") };
    let heads = composed::attention(&q, &k, &v, mask, *shape)?;
    side_by_side(from_ref(o), &heads, context)
}

fn tape_mlp(mlp: &Mlp, x: &Tensor, context: &TapeContext<'_>) -> Result<Tensor> {
    let gate_up = side_by_side(&mlp.gate_up, x, context)?;
    let width = mlp.down.weight.columns();
    let part = |first| gate_up.narrow(D::Minus1, first, width)?.contiguous();
    let inner = composed::gate(mlp.activation, &part(0)?, &part(width)?)?;
    side_by_side(from_ref(&mlp.down), &inner, context)
}

fn enter(residual: &Residual, x: &Tensor) -> Result<Tensor> {
    residual.enter.as_ref().map_or_else(|| Ok(x.clone()), |norm| tape_norm(norm, x))
}

fn join(residual: &Residual, x: &Tensor, branch: Tensor) -> Result<Tensor> {
    match &residual.join {
        Join::Sum => x + branch,
        Join::Scaled(factor) => x + (branch * f64::from(*factor))?,
        Join::Normalized(norm) => x + tape_norm(norm, &branch)?,
    }
}

fn tape_norm(norm: &FrozenNorm, x: &Tensor) -> Result<Tensor> {
    composed::rms_norm(x, &norm.weight.tensor()?, norm.epsilon)
}

/// The outputs of layers that share an input.
fn side_by_side(group: &[Linear], x: &Tensor, context: &TapeContext<'_>) -> Result<Tensor> {
    let outputs = group.iter().map(|linear| tape_linear(linear, x, context)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&outputs, D::Minus1)
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
