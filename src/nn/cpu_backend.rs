//! The CPU's operations as a backend. Padding never enters: the tokens of all samples lie one after the other.

use super::backend::{Backend, Head, Norm, Prediction, Reference, divergences};
use super::context::ForwardContext;
use super::gradients::Gradients;
use super::linear::{Linear, LinearGroup};
use super::self_attention::QkNorm;
use crate::ops::attention::{Attention, AttentionOutput, Heads, attention, attention_backward};
use crate::ops::element::{Element, convert_all};
use crate::ops::{
    Activation, AttentionShape, Buffer, FrozenWeight, Group, HeadNorms, HeadPass, HeadRequest, Module, SavedInput,
    add_normalized, add_scaled, branch_norm_backward, gate, gate_backward, linear_cross_entropy, normalize_heads,
    normalize_heads_backward, rms_norm, rms_norm_backward, scaled, softcap as softcap_all,
};
use candle_core::{Result, bail};
use rayon::prelude::*;

impl<E: Element> Backend for ForwardContext<'_, E> {
    type Stream = Buffer<f32>;
    type Rows = Buffer<E>;
    type Sums = Buffer<f32>;
    type Gradients = Gradients;
    type Kept = Buffer<f32>;

    fn embed(&self, weight: &FrozenWeight, ids: &[u32], factor: f32) -> Result<Buffer<f32>> {
        let mut hidden = self.take(weight.columns());
        weight.embed(ids, &mut hidden)?;
        if factor != 1.0 {
            hidden.par_iter_mut().with_min_len(1 << 14).for_each(|x| *x *= factor);
        }
        Ok(hidden)
    }

    fn normalize(&self, x: &Buffer<f32>, norm: Norm<'_>) -> Result<Buffer<E>> {
        let mut y = self.take(norm.weight.numbers().len());
        rms_norm(x, norm.weight.numbers(), norm.epsilon, &mut y);
        Ok(y)
    }

    fn normalize_backward(
        &self,
        x: &Buffer<f32>,
        norm: Norm<'_>,
        pulled: &Buffer<f32>,
        gradient: &mut Buffer<f32>,
    ) -> Result<()> {
        rms_norm_backward(x, norm.weight.numbers(), norm.epsilon, pulled, gradient);
        Ok(())
    }

    fn add(&self, x: &Buffer<f32>, onto: &mut Buffer<f32>) -> Result<()> {
        onto.par_iter_mut().zip(&x[..]).with_min_len(1 << 14).for_each(|(onto, x)| *onto += x);
        Ok(())
    }

    fn scaled(&self, x: &Buffer<f32>, factor: f32) -> Result<Buffer<E>> {
        let mut y = self.take(x.len() / self.tokens);
        scaled(x, factor, &mut y);
        Ok(y)
    }

    fn add_scaled(&self, onto: &Buffer<f32>, branch: &Buffer<E>, factor: f32) -> Result<Buffer<f32>> {
        let mut y = self.take(onto.len() / self.tokens);
        add_scaled(onto, branch, factor, &mut y);
        Ok(y)
    }

    fn add_normalized(&self, onto: &Buffer<f32>, branch: &Buffer<E>, norm: Norm<'_>) -> Result<Buffer<f32>> {
        let mut y = self.take(onto.len() / self.tokens);
        add_normalized(onto, branch, norm.weight.numbers(), norm.epsilon, &mut y);
        Ok(y)
    }

    fn add_normalized_backward(&self, branch: &Buffer<E>, norm: Norm<'_>, dy: &Buffer<f32>) -> Result<Buffer<E>> {
        let mut pulled = self.take(dy.len() / self.tokens);
        branch_norm_backward(branch, norm.weight.numbers(), norm.epsilon, dy, &mut pulled);
        Ok(pulled)
    }

    fn with_rows<R>(&self, x: &Buffer<f32>, f: impl FnOnce(&Buffer<E>) -> Result<R>) -> Result<R> {
        let mut rounded = self.take(x.len() / self.tokens);
        convert_all(x, &mut rounded);
        f(&rounded)
    }

    fn down(&self, group: &[Linear], x: &Buffer<E>) -> Result<Buffer<E>> {
        LinearGroup(group).down(x, self)
    }

    fn linear(&self, group: &[Linear], x: &Buffer<E>, down: &Buffer<E>) -> Result<Buffer<E>> {
        LinearGroup(group).forward(SavedInput { x, down }, self)
    }

    fn linear_onto(&self, linear: &Linear, x: &Buffer<E>, down: &Buffer<E>, onto: &Buffer<f32>) -> Result<Buffer<f32>> {
        let mut y = self.take::<f32>(linear.weight.rows());
        convert_all(onto, &mut y);
        LinearGroup(std::slice::from_ref(linear)).forward_add(SavedInput { x, down }, &mut y, self)?;
        Ok(y)
    }

    fn linear_backward(
        &self,
        group: &[Linear],
        (x, down): (&Buffer<E>, &Buffer<E>),
        dy: &Buffer<E>,
        wanted: bool,
        gradients: &mut Gradients,
    ) -> Result<Option<Buffer<f32>>> {
        let mut dx = wanted.then(|| self.take::<f32>(group[0].weight.columns()));
        LinearGroup(group).backward(SavedInput { x, down }, dy, dx.as_deref_mut(), self, gradients)?;
        Ok(dx)
    }

    fn normalize_heads(&self, shape: AttentionShape, norm: &QkNorm, qkv: &Buffer<E>) -> Result<Buffer<E>> {
        let mut heads = self.take(shape.width());
        normalize_heads(qkv, shape, norm.numbers(), &mut heads);
        Ok(heads)
    }

    fn normalize_heads_backward(
        &self,
        shape: AttentionShape,
        norm: &QkNorm,
        qkv: &Buffer<E>,
        d_qkv: &mut Buffer<E>,
    ) -> Result<()> {
        normalize_heads_backward(qkv, shape, norm.numbers(), d_qkv);
        Ok(())
    }

    fn rotate(&self, rope: usize, shape: AttentionShape, qkv: &mut Buffer<E>) -> Result<()> {
        self.ropes[rope].rotate(qkv, shape);
        Ok(())
    }

    fn attend(&self, index: usize, shape: AttentionShape, qkv: &Buffer<E>) -> Result<(Buffer<E>, Buffer<f32>)> {
        let mut attended = self.take::<E>(shape.heads * shape.head_dim);
        let mut log_sums = self.take::<f32>(shape.heads);
        self.with_heads(index, shape, qkv, |of| attention(of, &mut attended, &mut log_sums, self.pool));
        Ok((attended, log_sums))
    }

    fn attend_backward(
        &self,
        rope: Option<usize>,
        shape: AttentionShape,
        qkv: &Buffer<E>,
        (out, log_sums): (&Buffer<E>, &Buffer<f32>),
        d_output: &Buffer<E>,
    ) -> Result<Buffer<E>> {
        let mut d_qkv = self.take::<E>(shape.width());
        let output = AttentionOutput { out, log_sums, gradient: d_output };
        let rope = rope.map(|rope| &self.ropes[rope]);
        self.with_heads(0, shape, qkv, |of| {
            attention_backward(of, output, rope, &mut d_qkv, self.pool);
        });
        Ok(d_qkv)
    }

    fn gate(&self, activation: Activation, gate_up: &Buffer<E>, width: usize) -> Result<Buffer<E>> {
        let mut y = self.take(width);
        gate(activation, gate_up, width, &mut y);
        Ok(y)
    }

    fn gate_backward(
        &self,
        activation: Activation,
        gate_up: Buffer<E>,
        width: usize,
        dy: &Buffer<f32>,
    ) -> Result<Buffer<E>> {
        let mut d_gate_up = self.take::<E>(2 * width);
        gate_backward(activation, &gate_up, width, dy, &mut d_gate_up);
        Ok(d_gate_up)
    }

    fn predict(
        &self,
        hidden: &Buffer<f32>,
        rows: &[usize],
        head: Head<'_>,
        labels: &[u32],
        request: HeadRequest,
    ) -> Result<Prediction<Buffer<f32>>> {
        let (n, d) = (rows.len(), head.weight.columns());
        let mut picked = self.pool.take::<f32>(n, d, self.capacity);
        for (picked, &row) in picked.chunks_exact_mut(d).zip(rows) {
            picked.copy_from_slice(&hidden[row * d..][..d]);
        }
        let mut normalized = self.pool.take::<E>(n, d, self.capacity);
        rms_norm(&picked, head.norm.weight.numbers(), head.norm.epsilon, &mut normalized);
        let pass =
            linear_cross_entropy(&normalized, head.weight, labels, head.softcap, request, (self.pool, self.capacity))?;
        let HeadPass { log_probabilities, top1, gradient: pulled, entropies } = pass;
        Ok(Prediction { log_probabilities, top1, entropies, picked, pulled })
    }

    fn divergences(
        &self,
        prediction: &Prediction<Buffer<f32>>,
        reference: &Prediction<Buffer<f32>>,
        head: Head<'_>,
    ) -> Result<Vec<f64>> {
        let Some(pulled) = &reference.pulled else { bail!("internal: a reference without a gradient") };
        let (n, d) = (prediction.log_probabilities.len(), head.weight.columns());
        let [h, h0] = [prediction, reference].map(|of| {
            let mut normalized = self.pool.take::<E>(n, d, self.capacity);
            rms_norm(&of.picked, head.norm.weight.numbers(), head.norm.epsilon, &mut normalized);
            normalized
        });
        let rows = pulled.par_chunks(d).zip(h.par_chunks(d)).zip(h0.par_chunks(d)).with_min_len(8);
        let along: Vec<f64> = rows.map(|((gradient, h), h0)| along(gradient, h, h0)).collect();
        Ok(divergences(prediction, reference, along))
    }

    fn pull(
        &self,
        prediction: Prediction<Buffer<f32>>,
        rows: &[usize],
        head: Head<'_>,
        weights: &[f64],
        reference: Option<Reference<'_, Buffer<f32>>>,
    ) -> Result<Buffer<f32>> {
        let d = head.weight.columns();
        let mut gradient = self.take::<f32>(d);
        gradient.fill(0.0);
        let Some(mut pulled) = prediction.pulled else { return Ok(gradient) };
        for (i, row) in pulled.chunks_exact_mut(d).enumerate() {
            let of_reference = reference.as_ref().map_or(0.0, |reference| reference.weights[i]);
            let weight = (weights[i] + of_reference) as f32;
            for x in row {
                *x *= weight;
            }
        }
        if let Some(Reference { prediction: Prediction { pulled: Some(base), .. }, weights }) = &reference {
            for ((row, base), weight) in pulled.chunks_exact_mut(d).zip(base.chunks_exact(d)).zip(*weights) {
                row.iter_mut().zip(base).for_each(|(x, base)| *x -= *weight as f32 * base);
            }
        }
        let mut through = self.pool.take::<f32>(rows.len(), d, self.capacity);
        through.fill(0.0);
        let (weight, epsilon) = (head.norm.weight.numbers(), head.norm.epsilon);
        rms_norm_backward(&prediction.picked, weight, epsilon, &pulled, &mut through);
        for (through, row) in through.chunks_exact(d).zip(rows) {
            gradient[row * d..][..d].copy_from_slice(through);
        }
        Ok(gradient)
    }

    fn logits(&self, hidden: &Buffer<f32>, first: usize, head: Head<'_>) -> Result<Vec<f32>> {
        let d = head.weight.columns();
        let hidden = &hidden[first * d..];
        let n = hidden.len() / d;
        let mut normed = vec![0f32; hidden.len()];
        rms_norm(hidden, head.norm.weight.numbers(), head.norm.epsilon, &mut normed);
        let mut logits = vec![0f32; n * head.weight.rows()];
        let softcap = head.softcap;
        let head = Module { weight: head.weight, bias: None, update: None };
        let group = Group { modules: &[head], pool: self.pool, capacity: n };
        group.forward(SavedInput { x: &normed[..], down: &[] }, &mut logits)?;
        if let Some(cap) = softcap {
            softcap_all(&mut logits, cap);
        }
        Ok(logits)
    }

    fn keep(&self, x: Buffer<f32>) -> Result<Buffer<f32>> {
        Ok(x)
    }

    fn take_back(&self, kept: Buffer<f32>) -> Result<Buffer<f32>> {
        Ok(kept)
    }
}

impl<E: Element> ForwardContext<'_, E> {
    /// Calls `f` with queries, keys and values; in generation, with those of all tokens so far.
    fn with_heads(&self, index: usize, shape: AttentionShape, qkv: &[E], f: impl FnOnce(&Attention<'_, E>)) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let stride = shape.width();
        let (queries, width) = (heads * head_dim, kv_heads * head_dim);
        let (keys, values) = (&qkv[queries..], &qkv[queries + width..]);
        let (q, sequences) = (Heads { data: qkv, stride }, &*self.sequences);
        let of = |keys: &[E], values: &[E], stride: usize| {
            let (k, v) = (Heads { data: keys, stride }, Heads { data: values, stride });
            f(&Attention { shape, q, k, v, sequences, capacity: self.capacity });
        };
        match self.cache {
            None => match self.key_rows {
                None => of(keys, values, stride),
                Some(rows) => {
                    let mut gathered = self.pool.take::<E>(rows.len(), stride, 0);
                    for (gathered, &row) in gathered.chunks_exact_mut(stride).zip(rows) {
                        gathered[queries..].copy_from_slice(&qkv[row * stride..][queries..stride]);
                    }
                    of(&gathered[queries..], &gathered[queries + width..], stride);
                }
            },
            Some(cache) => cache.append(index, [keys, values], (width, stride), |keys, values| of(keys, values, width)),
        }
    }
}

impl QkNorm {
    /// As operations on the CPU take it.
    fn numbers(&self) -> HeadNorms<'_> {
        HeadNorms { query: self.query.numbers(), key: self.key.numbers(), epsilon: self.epsilon }
    }
}

/// `Σ g·(h - h0)`, in `f64`: what is left of it beside two cross-entropies is small.
fn along<E: Element>(gradient: &[f32], h: &[E], h0: &[E]) -> f64 {
    gradient.iter().zip(h).zip(h0).map(|((g, h), h0)| f64::from(*g) * f64::from(h.to_f32() - h0.to_f32())).sum()
}
