//! A backend that computes nothing: it lends what the CPU's takes, so that the memory of a step is known before it is taken.
//!
//! The code of a layer and of a step is the same for all backends; here a [`Ledger`] records what it takes. The layers may be
//! hollow.

use super::backend::{Backend, Head, Norm, Prediction, Reference};
use super::linear::Linear;
use super::self_attention::QkNorm;
use crate::ops::attention::{lend_attention, lend_attention_backward};
use crate::ops::{
    Activation, AttentionShape, Element, FrozenWeight, GroupSizes, HeadRequest, Ledger, Lent, ModuleSizes, Sequence,
    lend_linear_cross_entropy,
};
use candle_core::Result;
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::slice::from_ref;

/// What a rehearsal knows of a batch. `E` is the type of products.
#[derive(Debug)]
pub struct Rehearsal<'a, E> {
    /// Which tokens attend to which.
    pub sequences: &'a [Sequence],
    /// Whether inputs are dropped.
    pub dropout: bool,
    /// Whether adapters take part.
    pub adapter: bool,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Tokens that buffers have room for.
    pub capacity: usize,
    /// What lends.
    pub ledger: &'a Ledger,
    /// The type of products.
    pub element: PhantomData<E>,
}

impl<E: Element> Rehearsal<'_, E> {
    fn take<T: Element>(&self, columns: usize) -> Lent {
        self.ledger.take::<T>(self.tokens, columns, self.capacity)
    }

    fn columns(&self, of: &Lent) -> usize {
        of.len() / self.tokens.max(1)
    }

    fn with<R>(&self, group: &[Linear], f: impl FnOnce(&GroupSizes<'_>) -> R) -> R {
        let sizes = |linear: &Linear| {
            let adapter = linear.adapter.as_ref().filter(|_| self.adapter);
            ModuleSizes {
                rows: linear.weight.rows(),
                rank: adapter.map_or(0, super::LoraAdapter::rank),
                dropout: self.dropout && adapter.is_some_and(|adapter| adapter.dropout > 0.0),
            }
        };
        let modules: Vec<_> = group.iter().map(sizes).collect();
        let inputs = group[0].weight.columns();
        f(&GroupSizes { inputs, modules: &modules, capacity: self.capacity, ledger: self.ledger })
    }
}

impl<E: Element> Backend for Rehearsal<'_, E> {
    type Stream = Lent;
    type Rows = Lent;
    type Sums = Lent;
    type Gradients = BTreeMap<String, Lent>;
    type Kept = Lent;

    fn embed(&self, weight: &FrozenWeight, _: &[u32], _: f32) -> Result<Lent> {
        Ok(self.take::<f32>(weight.columns()))
    }

    fn normalize(&self, x: &Lent, _: Norm<'_>) -> Result<Lent> {
        Ok(self.take::<E>(self.columns(x)))
    }

    fn normalize_backward(&self, _: &Lent, _: Norm<'_>, _: &Lent, _: &mut Lent) -> Result<()> {
        Ok(())
    }

    fn add(&self, _: &Lent, _: &mut Lent) -> Result<()> {
        Ok(())
    }

    fn scaled(&self, x: &Lent, _: f32) -> Result<Lent> {
        Ok(self.take::<E>(self.columns(x)))
    }

    fn add_scaled(&self, onto: &Lent, _: &Lent, _: f32) -> Result<Lent> {
        Ok(self.take::<f32>(self.columns(onto)))
    }

    fn add_normalized(&self, onto: &Lent, _: &Lent, _: Norm<'_>) -> Result<Lent> {
        Ok(self.take::<f32>(self.columns(onto)))
    }

    fn add_normalized_backward(&self, _: &Lent, _: Norm<'_>, gradient: &Lent) -> Result<Lent> {
        Ok(self.take::<E>(self.columns(gradient)))
    }

    fn with_rows<R>(&self, x: &Lent, f: impl FnOnce(&Lent) -> Result<R>) -> Result<R> {
        f(&self.take::<E>(self.columns(x)))
    }

    fn down(&self, group: &[Linear], _: &Lent) -> Result<Lent> {
        Ok(self.with(group, |group| group.down::<E>(self.tokens)))
    }

    fn linear(&self, group: &[Linear], _: &Lent, _: &Lent) -> Result<Lent> {
        Ok(self.with(group, |group| {
            let y = self.take::<E>(group.outputs());
            group.forward::<E>(self.tokens);
            y
        }))
    }

    fn linear_onto(&self, linear: &Linear, _: &Lent, _: &Lent, _: &Lent) -> Result<Lent> {
        let y = self.take::<f32>(linear.weight.rows());
        self.with(from_ref(linear), |group| group.forward::<E>(self.tokens));
        Ok(y)
    }

    fn linear_backward(
        &self,
        group: &[Linear],
        _: (&Lent, &Lent),
        _: &Lent,
        wanted: bool,
        gradients: &mut BTreeMap<String, Lent>,
    ) -> Result<Option<Lent>> {
        let dx = wanted.then(|| self.take::<f32>(group[0].weight.columns()));
        for linear in group {
            let Some(adapter) = linear.adapter.as_ref().filter(|_| self.adapter) else { continue };
            let sizes = [linear.weight.columns(), linear.weight.rows()].map(|width| adapter.rank() * width);
            for (name, size) in adapter.names.iter().zip(sizes) {
                gradients.entry(name.clone()).or_insert_with(|| self.ledger.take::<f32>(1, size, 1));
            }
        }
        self.with(group, |group| group.backward::<E>(self.tokens, wanted));
        Ok(dx)
    }

    fn normalize_heads(&self, shape: AttentionShape, _: &QkNorm, _: &Lent) -> Result<Lent> {
        Ok(self.take::<E>(shape.width()))
    }

    fn normalize_heads_backward(&self, _: AttentionShape, _: &QkNorm, _: &Lent, _: &mut Lent) -> Result<()> {
        Ok(())
    }

    fn rotate(&self, _: usize, _: AttentionShape, _: &mut Lent) -> Result<()> {
        Ok(())
    }

    fn attend(&self, _: usize, shape: AttentionShape, _: &Lent) -> Result<(Lent, Lent)> {
        let taken = (self.take::<E>(shape.heads * shape.head_dim), self.take::<f32>(shape.heads));
        lend_attention::<E>(shape, self.sequences, self.capacity, self.ledger);
        Ok(taken)
    }

    fn attend_backward(
        &self,
        _: Option<usize>,
        shape: AttentionShape,
        _: &Lent,
        _: (&Lent, &Lent),
        _: &Lent,
    ) -> Result<Lent> {
        let d_qkv = self.take::<E>(shape.width());
        lend_attention_backward::<E>(shape, (self.tokens, self.capacity), self.sequences, self.ledger);
        Ok(d_qkv)
    }

    fn gate(&self, _: Activation, _: &Lent, width: usize) -> Result<Lent> {
        Ok(self.take::<E>(width))
    }

    fn gate_backward(&self, _: Activation, gate_up: Lent, width: usize, _: &Lent) -> Result<Lent> {
        let taken = self.take::<E>(2 * width);
        drop(gate_up);
        Ok(taken)
    }

    fn predict(
        &self,
        _: &Lent,
        rows: &[usize],
        head: Head<'_>,
        _: &[u32],
        request: HeadRequest,
    ) -> Result<Prediction<Lent>> {
        let (n, d) = (rows.len(), head.weight.columns());
        let picked = self.ledger.take::<f32>(n, d, self.capacity);
        let _normalized = self.ledger.take::<E>(n, d, self.capacity);
        let pulled =
            lend_linear_cross_entropy::<E>(n, (head.weight.rows(), d), request.gradient, (self.ledger, self.capacity));
        let entropies = request.top_k.map_or_else(Vec::new, |_| vec![0.0; n]);
        Ok(Prediction { log_probabilities: vec![0.0; n], top1: vec![false; n], entropies, picked, pulled })
    }

    fn divergences(&self, prediction: &Prediction<Lent>, _: &Prediction<Lent>, head: Head<'_>) -> Result<Vec<f64>> {
        let (n, d) = (prediction.log_probabilities.len(), head.weight.columns());
        let _normalized = [(); 2].map(|()| self.ledger.take::<E>(n, d, self.capacity));
        Ok(vec![0.0; n])
    }

    fn pull(
        &self,
        prediction: Prediction<Lent>,
        rows: &[usize],
        head: Head<'_>,
        _: &[f64],
        _: Option<Reference<'_, Lent>>,
    ) -> Result<Lent> {
        let gradient = self.take::<f32>(head.weight.columns());
        if prediction.pulled.is_some() {
            drop(self.ledger.take::<f32>(rows.len(), head.weight.columns(), self.capacity));
        }
        Ok(gradient)
    }

    fn logits(&self, _: &Lent, _: usize, _: Head<'_>) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }

    fn keep(&self, x: Lent) -> Result<Lent> {
        Ok(x)
    }

    fn take_back(&self, kept: Lent) -> Result<Lent> {
        Ok(kept)
    }
}
