//! A GPU as a backend.

use super::backend::{Backend, Head, Norm, Prediction, Reference, divergences};
use super::linear::Linear;
use super::self_attention::QkNorm;
use crate::device::{Gpu, Memory, PinnedMemory};
use crate::ops::cuda::{
    AdapterMemory, Cuda, DropoutKeys, GpuModule, GpuUpdate, KeyValueMemory, Operands, Places, RopeMemory, Rows, Tiles,
};
use crate::ops::{Activation, AttentionShape, Compute, FrozenWeight, HeadPass, HeadRequest, RopeTable, Sequence};
use candle_core::{Result, bail};
use std::slice::from_ref;

/// What a layer on a GPU is told about a batch.
#[derive(Debug)]
pub struct GpuContext<'a> {
    cuda: Cuda,
    operands: Option<Operands<'a>>,
    ropes: Vec<RopeMemory>,
    tiles: Tiles,
    dropout_keys: Option<DropoutKeys>,
    cache: Option<&'a KeyValueMemory>,
    key_rows: Option<Places>,
    /// Whether layers' inputs wait in the CPU's memory.
    offload: bool,
}

/// What a [`GpuContext`] is made of.
#[derive(Debug)]
pub struct GpuBatch<'a, 'b> {
    /// The type of products and activations.
    pub compute: Compute,
    /// The most tokens that a batch of this run has.
    pub capacity: usize,
    /// Adapters, where they take part.
    pub adapter: Option<&'a AdapterMemory>,
    /// The model's rotations for the tokens of the batch.
    pub ropes: Vec<RopeTable>,
    /// Which tokens attend to which.
    pub sequences: &'b [Sequence],
    /// As in [`ForwardContext`](super::ForwardContext).
    pub key_rows: Option<&'b [usize]>,
    /// Width of a head.
    pub head_dim: usize,
    /// In training under dropout: a key for each token.
    pub dropout_keys: Option<&'b [u64]>,
    /// In generation: the keys and values of the tokens before.
    pub cache: Option<&'a KeyValueMemory>,
    /// Whether layers' inputs wait in the CPU's memory for the backward pass.
    pub offload: bool,
    /// Tokens of the batch.
    pub tokens: usize,
}

/// A layer's input, on the GPU or in the CPU's memory.
#[derive(Debug)]
pub enum KeptRows {
    /// On the GPU.
    Here(Rows),
    /// In the CPU's memory: its numbers, its rows and its columns.
    Away(PinnedMemory, usize, usize),
}

impl<'a> GpuContext<'a> {
    /// Uploads what a batch's layers need to know.
    ///
    /// # Errors
    /// When the memory is full.
    pub fn new(gpu: &Gpu, batch: &GpuBatch<'a, '_>) -> Result<Self> {
        let cuda = Cuda { gpu: gpu.clone(), compute: batch.compute, capacity: batch.capacity };
        Ok(Self {
            operands: batch.adapter.map(|adapter| adapter.operands(batch.compute)).transpose()?,
            ropes: batch.ropes.iter().map(|rope| cuda.rope(rope, batch.tokens)).collect::<Result<_>>()?,
            tiles: cuda.tiles(batch.sequences, batch.head_dim)?,
            dropout_keys: batch.dropout_keys.map(|keys| cuda.dropout_keys(keys)).transpose()?,
            cache: batch.cache,
            key_rows: batch.key_rows.map(|rows| cuda.places(rows)).transpose()?,
            offload: batch.offload,
            cuda,
        })
    }

    /// Calls `f` with the modules as the GPU takes them, and their factors.
    fn with<R>(&self, group: &[Linear], f: impl FnOnce(&[GpuModule<'_>], &Operands<'_>) -> Result<R>) -> Result<R> {
        let modules: Vec<GpuModule<'_>> = group.iter().map(|linear| self.module(linear)).collect();
        match &self.operands {
            Some(operands) => f(&modules, operands),
            None => f(&modules, &Operands::none(&AdapterMemory::none(&self.cuda.gpu)?)),
        }
    }
}

impl GpuContext<'_> {
    fn module<'m>(&'m self, linear: &'m Linear) -> GpuModule<'m> {
        let update = linear.adapter.as_ref().filter(|_| self.operands.is_some()).map(|adapter| GpuUpdate {
            names: adapter.names.each_ref().map(String::as_str),
            rank: adapter.rank(),
            scale: adapter.scale as f32,
            dropout: self
                .dropout_keys
                .as_ref()
                .filter(|_| adapter.dropout > 0.0)
                .map(|keys| (keys, adapter.dropout as f32, adapter.key)),
        });
        GpuModule { weight: &linear.weight, bias: linear.bias.as_ref(), update }
    }
}

impl Backend for GpuContext<'_> {
    type Stream = Rows;
    type Rows = Rows;
    type Sums = Memory;
    type Gradients = ();
    type Kept = KeptRows;

    fn embed(&self, weight: &FrozenWeight, ids: &[u32], factor: f32) -> Result<Rows> {
        self.cuda.embed(weight, ids, factor)
    }

    fn normalize(&self, x: &Rows, norm: Norm<'_>) -> Result<Rows> {
        self.cuda.rms_norm(x, norm.weight, norm.epsilon)
    }

    fn normalize_backward(&self, x: &Rows, norm: Norm<'_>, pulled: &Rows, gradient: &mut Rows) -> Result<()> {
        self.cuda.rms_norm_backward(x, norm.weight, norm.epsilon, pulled, gradient)
    }

    fn add(&self, x: &Rows, onto: &mut Rows) -> Result<()> {
        self.cuda.add_to(x, onto)
    }

    fn scaled(&self, x: &Rows, factor: f32) -> Result<Rows> {
        self.cuda.scaled(x, factor)
    }

    fn add_scaled(&self, onto: &Rows, branch: &Rows, factor: f32) -> Result<Rows> {
        self.cuda.add_scaled(onto, branch, factor)
    }

    fn add_normalized(&self, onto: &Rows, branch: &Rows, norm: Norm<'_>) -> Result<Rows> {
        self.cuda.add_normalized(onto, branch, norm.weight, norm.epsilon)
    }

    fn add_normalized_backward(&self, branch: &Rows, norm: Norm<'_>, gradient: &Rows) -> Result<Rows> {
        self.cuda.branch_norm_backward(branch, norm.weight, norm.epsilon, gradient)
    }

    fn with_rows<R>(&self, x: &Rows, f: impl FnOnce(&Rows) -> Result<R>) -> Result<R> {
        f(x)
    }

    fn down(&self, group: &[Linear], x: &Rows) -> Result<Rows> {
        self.with(group, |modules, operands| self.cuda.down(modules, operands, x))
    }

    fn linear(&self, group: &[Linear], x: &Rows, down: &Rows) -> Result<Rows> {
        self.with(group, |modules, operands| self.cuda.linear(modules, operands, x, down))
    }

    fn linear_onto(&self, linear: &Linear, x: &Rows, down: &Rows, onto: &Rows) -> Result<Rows> {
        self.with(from_ref(linear), |modules, operands| self.cuda.linear_onto(modules[0], operands, (x, down), onto))
    }

    fn linear_backward(
        &self,
        group: &[Linear],
        saved: (&Rows, &Rows),
        dy: &Rows,
        wanted: bool,
        (): &mut (),
    ) -> Result<Option<Rows>> {
        self.with(group, |modules, operands| self.cuda.linear_backward(modules, operands, saved, dy, wanted))
    }

    fn normalize_heads(&self, shape: AttentionShape, norm: &QkNorm, qkv: &Rows) -> Result<Rows> {
        self.cuda.normalize_heads(qkv, shape, &norm.query, &norm.key, norm.epsilon)
    }

    fn normalize_heads_backward(
        &self,
        shape: AttentionShape,
        norm: &QkNorm,
        qkv: &Rows,
        d_qkv: &mut Rows,
    ) -> Result<()> {
        self.cuda.normalize_heads_backward(qkv, shape, &norm.query, &norm.key, norm.epsilon, d_qkv)
    }

    fn rotate(&self, rope: usize, shape: AttentionShape, qkv: &mut Rows) -> Result<()> {
        self.cuda.rotate(qkv, &self.ropes[rope], shape, false)
    }

    fn attend(&self, index: usize, shape: AttentionShape, qkv: &Rows) -> Result<(Rows, Memory)> {
        if let Some(rows) = &self.key_rows {
            return self.cuda.attention_to(shape, qkv, &self.cuda.gather(qkv, rows)?, &self.tiles);
        }
        self.cuda.attention(shape, qkv, &self.tiles, self.cache.map(|cache| (cache, index)))
    }

    fn attend_backward(
        &self,
        rope: Option<usize>,
        shape: AttentionShape,
        qkv: &Rows,
        output: (&Rows, &Memory),
        d_output: &Rows,
    ) -> Result<Rows> {
        let d_qkv = self.cuda.attention_backward(shape, qkv, &self.tiles, output, d_output)?;
        if let Some(rope) = rope {
            self.cuda.rotate(&d_qkv, &self.ropes[rope], shape, true)?;
        }
        Ok(d_qkv)
    }

    fn gate(&self, activation: Activation, gate_up: &Rows, _: usize) -> Result<Rows> {
        self.cuda.gate(activation, gate_up)
    }

    fn gate_backward(&self, activation: Activation, gate_up: Rows, _: usize, dy: &Rows) -> Result<Rows> {
        self.cuda.gate_backward(activation, gate_up, dy)
    }

    fn predict(
        &self,
        hidden: &Rows,
        rows: &[usize],
        head: Head<'_>,
        labels: &[u32],
        request: HeadRequest,
    ) -> Result<Prediction<Rows>> {
        let picked = self.cuda.gather(hidden, &self.cuda.places(rows)?)?;
        let normalized = self.cuda.rms_norm(&picked, head.norm.weight, head.norm.epsilon)?;
        let (pass, pulled) = self.cuda.linear_cross_entropy(&normalized, head.weight, labels, head.softcap, request)?;
        let HeadPass { log_probabilities, top1, entropies, .. } = pass;
        Ok(Prediction { log_probabilities, top1, entropies, picked, pulled })
    }

    fn divergences(
        &self,
        prediction: &Prediction<Rows>,
        reference: &Prediction<Rows>,
        head: Head<'_>,
    ) -> Result<Vec<f64>> {
        let Some(pulled) = &reference.pulled else { bail!("internal: a reference without a gradient") };
        let [h, h0] =
            [prediction, reference].map(|of| self.cuda.rms_norm(&of.picked, head.norm.weight, head.norm.epsilon));
        let along = self.cuda.along(pulled, &h?, &h0?)?;
        Ok(divergences(prediction, reference, along.into_iter().map(f64::from).collect()))
    }

    fn pull(
        &self,
        prediction: Prediction<Rows>,
        rows: &[usize],
        head: Head<'_>,
        weights: &[f64],
        reference: Option<Reference<'_, Rows>>,
    ) -> Result<Rows> {
        let Prediction { picked, pulled: Some(pulled), .. } = prediction else {
            bail!("internal: the head was asked for no gradient")
        };
        let of_reference = |i: usize| reference.as_ref().map_or(0.0, |reference| reference.weights[i]);
        let factors: Vec<f32> =
            weights.iter().enumerate().map(|(i, weight)| (weight + of_reference(i)) as f32).collect();
        self.cuda.scale(&pulled, &factors)?;
        if let Some(Reference { prediction: Prediction { pulled: Some(base), .. }, weights }) = reference {
            let factors: Vec<f32> = weights.iter().map(|&weight| -weight as f32).collect();
            self.cuda.scale(&base, &factors)?;
            self.cuda.add_to(&base, &pulled)?;
        }
        let through = self.cuda.zeros(picked.rows(), picked.columns())?;
        self.cuda.rms_norm_backward(&picked, head.norm.weight, head.norm.epsilon, &pulled, &through)?;
        drop((picked, pulled));
        self.cuda.scatter(&through, &self.cuda.places(rows)?, self.tiles.tokens())
    }

    fn logits(&self, hidden: &Rows, first: usize, head: Head<'_>) -> Result<Vec<f32>> {
        let rows: Vec<usize> = (first..hidden.rows()).collect();
        let picked = self.cuda.gather(hidden, &self.cuda.places(&rows)?)?;
        let normalized = self.cuda.rms_norm(&picked, head.norm.weight, head.norm.epsilon)?;
        self.cuda.logits(&normalized, head.weight, head.softcap)
    }

    fn keep(&self, x: Rows) -> Result<KeptRows> {
        if !self.offload {
            return Ok(KeptRows::Here(x));
        }
        Ok(KeptRows::Away(self.cuda.to_pinned(&x)?, x.rows(), x.columns()))
    }

    fn take_back(&self, kept: KeptRows) -> Result<Rows> {
        match kept {
            KeptRows::Here(x) => Ok(x),
            KeptRows::Away(pinned, rows, columns) => self.cuda.from_pinned(&pinned, rows, columns),
        }
    }
}
