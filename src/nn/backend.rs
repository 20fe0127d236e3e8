//! What computes a layer: the CPU's operations, or a GPU's.
//!
//! A layer's story, forward and backward, is told once, in [`DecoderLayer`](super::DecoderLayer); a backend knows the batch and
//! does the arithmetic. [`ForwardContext`](super::ForwardContext) is the CPU's, [`GpuContext`](super::GpuContext) a GPU's.

use super::linear::Linear;
use super::self_attention::QkNorm;
use crate::ops::{Activation, AttentionShape, FrozenVector, FrozenWeight, HeadRequest};
use candle_core::Result;

/// A normalization.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `[d]`
    pub weight: &'a FrozenVector,
    /// What is added to the mean square.
    pub epsilon: f64,
}

/// The model's end: a normalization and the matrix of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Before the product.
    pub norm: Norm<'a>,
    /// `[vocabulary, d]`
    pub weight: &'a FrozenWeight,
    /// With `c`, a logit `z` becomes `c·tanh(z/c)`.
    pub softcap: Option<f32>,
}

/// What the head says of some rows of the residual stream.
#[derive(Debug)]
pub struct Prediction<S> {
    /// `log p(target)` of each row, in nats.
    pub log_probabilities: Vec<f64>,
    /// Whether the target has the largest logit.
    pub top1: Vec<bool>,
    /// The entropy of each row's largest logits, in nats; empty where it was not asked for.
    pub entropies: Vec<f64>,
    /// The rows, `[n, d]`.
    pub(super) picked: S,
    /// The gradient of each row's cross-entropy after the normalization, `[n, d]`, where it was asked for.
    pub(super) pulled: Option<S>,
}

/// What a prediction is to stay near to.
#[derive(Debug)]
pub struct Reference<'a, S> {
    /// With its gradient.
    pub prediction: Prediction<S>,
    /// The factor of each row's `∇KL(reference ‖ prediction)`, which is the difference of the two gradients of cross-entropy: both
    /// are `(p - onehot)·W`.
    pub weights: &'a [f64],
}

/// `ce - ce0 - ∇ce0·(h - h0)` of each row, whose last part is `along`; rounding may leave it a little below 0.
pub(super) fn divergences<S>(prediction: &Prediction<S>, reference: &Prediction<S>, along: Vec<f64>) -> Vec<f64> {
    let log_p = prediction.log_probabilities.iter().zip(&reference.log_probabilities);
    // Not `f64::max`: it would hide a NaN.
    let clamped = |x: f64| if x < 0.0 { 0.0 } else { x };
    log_p.zip(along).map(|((log_p, log_p0), along)| clamped(log_p0 - log_p - along)).collect()
}

/// Computes with a batch of tokens, whose positions and sequences it knows. Rows are those of the batch's tokens, unless said
/// otherwise.
///
/// All methods fail when a tensor is on another device, or the device refuses.
#[expect(clippy::missing_errors_doc, reason = "said above, once for all")]
pub trait Backend {
    /// Rows of the residual stream or of its gradient, `[tokens, d]`.
    type Stream;
    /// Rows of activations, in the type of products.
    type Rows;
    /// Log-sums of attention, `[tokens, heads]`.
    type Sums;
    /// Sums of the adapters' gradients.
    type Gradients;
    /// A layer's input while it waits for the backward pass.
    type Kept;

    /// Embeddings of the batch's tokens, times a factor.
    fn embed(&self, weight: &FrozenWeight, ids: &[u32], factor: f32) -> Result<Self::Stream>;

    /// `x / √(mean(x²) + ε) · w`
    fn normalize(&self, x: &Self::Stream, norm: Norm<'_>) -> Result<Self::Rows>;

    /// Adds to `gradient` what `pulled`, the gradient of [`Self::normalize`]'s output, gives for `x`.
    fn normalize_backward(
        &self,
        x: &Self::Stream,
        norm: Norm<'_>,
        pulled: &Self::Stream,
        gradient: &mut Self::Stream,
    ) -> Result<()>;

    /// `onto += x`
    fn add(&self, x: &Self::Stream, onto: &mut Self::Stream) -> Result<()>;

    /// A stream times a factor, in the type of products.
    fn scaled(&self, x: &Self::Stream, factor: f32) -> Result<Self::Rows>;

    /// `onto + factor·branch`
    fn add_scaled(&self, onto: &Self::Stream, branch: &Self::Rows, factor: f32) -> Result<Self::Stream>;

    /// `onto + branch / √(mean(branch²) + ε) · w`
    fn add_normalized(&self, onto: &Self::Stream, branch: &Self::Rows, norm: Norm<'_>) -> Result<Self::Stream>;

    /// What `gradient`, that of [`Self::add_normalized`]'s output, gives for `branch`.
    fn add_normalized_backward(
        &self,
        branch: &Self::Rows,
        norm: Norm<'_>,
        gradient: &Self::Stream,
    ) -> Result<Self::Rows>;

    /// Calls `f` with a stream in the type of products.
    fn with_rows<R>(&self, x: &Self::Stream, f: impl FnOnce(&Self::Rows) -> Result<R>) -> Result<R>;

    /// `D(x)·Aᵀ` of the layers' adapters, side by side, for the other passes.
    fn down(&self, group: &[Linear], x: &Self::Rows) -> Result<Self::Rows>;

    /// `x·Wᵀ + bias + scale·down·Bᵀ` of layers that share an input, side by side.
    fn linear(&self, group: &[Linear], x: &Self::Rows, down: &Self::Rows) -> Result<Self::Rows>;

    /// [`Self::linear`] of one layer, and `onto`.
    fn linear_onto(
        &self,
        linear: &Linear,
        x: &Self::Rows,
        down: &Self::Rows,
        onto: &Self::Stream,
    ) -> Result<Self::Stream>;

    /// The gradient of the input for `dy`, where it is wanted; the adapters' gradients are added to `gradients`.
    fn linear_backward(
        &self,
        group: &[Linear],
        saved: (&Self::Rows, &Self::Rows),
        dy: &Self::Rows,
        wanted: bool,
        gradients: &mut Self::Gradients,
    ) -> Result<Option<Self::Stream>>;

    /// `[tokens, (heads + 2·kv)·d]` with queries and keys normalized, values as they are.
    fn normalize_heads(&self, shape: AttentionShape, norm: &QkNorm, qkv: &Self::Rows) -> Result<Self::Rows>;

    /// From the gradient of [`Self::normalize_heads`]'s output to that of `qkv`, in its place.
    fn normalize_heads_backward(
        &self,
        shape: AttentionShape,
        norm: &QkNorm,
        qkv: &Self::Rows,
        d_qkv: &mut Self::Rows,
    ) -> Result<()>;

    /// Rotates queries and keys in `[tokens, (heads + 2·kv)·d]` by the tokens' positions, with rotation `rope` of the model's.
    fn rotate(&self, rope: usize, shape: AttentionShape, qkv: &mut Self::Rows) -> Result<()>;

    /// Attention of rotated queries, rotated keys, and values; in generation, with those of all tokens so far of layer `index`.
    fn attend(&self, index: usize, shape: AttentionShape, qkv: &Self::Rows) -> Result<(Self::Rows, Self::Sums)>;

    /// The gradient of queries, keys and values before their rotation.
    fn attend_backward(
        &self,
        rope: Option<usize>,
        shape: AttentionShape,
        qkv: &Self::Rows,
        output: (&Self::Rows, &Self::Sums),
        d_output: &Self::Rows,
    ) -> Result<Self::Rows>;

    /// `activation(gate)·up` of `[tokens, 2·width]`, gates first.
    fn gate(&self, activation: Activation, gate_up: &Self::Rows, width: usize) -> Result<Self::Rows>;

    /// The gradient of gates and ups, which may take their place.
    fn gate_backward(
        &self,
        activation: Activation,
        gate_up: Self::Rows,
        width: usize,
        dy: &Self::Stream,
    ) -> Result<Self::Rows>;

    /// What the head says of `rows`; with their gradient, what [`Self::pull`] needs.
    fn predict(
        &self,
        hidden: &Self::Stream,
        rows: &[usize],
        head: Head<'_>,
        labels: &[u32],
        request: HeadRequest,
    ) -> Result<Prediction<Self::Stream>>;

    /// `KL(reference ‖ prediction)` of each row, in nats, from two predictions of the same labels by the same head, which does not cap
    /// its logits. `reference` has its gradient.
    ///
    /// Cross-entropy is convex in the rows `h` that the head multiplies, and its gradient at the reference's rows `h0` is
    /// `(p0 - onehot)·W`. So the divergence over the whole vocabulary is `ce - ce0 - ∇ce0·(h - h0)`: no logits are needed.
    fn divergences(
        &self,
        prediction: &Prediction<Self::Stream>,
        reference: &Prediction<Self::Stream>,
        head: Head<'_>,
    ) -> Result<Vec<f64>>;

    /// The gradient of the stream: that of the cross-entropies under a weight for each of `rows`, the same as in [`Self::predict`], and
    /// that of their divergences from a reference; zero in other rows.
    fn pull(
        &self,
        prediction: Prediction<Self::Stream>,
        rows: &[usize],
        head: Head<'_>,
        weights: &[f64],
        reference: Option<Reference<'_, Self::Stream>>,
    ) -> Result<Self::Stream>;

    /// The logits of the rows from `first` on, `[n, vocabulary]`.
    fn logits(&self, hidden: &Self::Stream, first: usize, head: Head<'_>) -> Result<Vec<f32>>;

    /// Puts a layer's input aside.
    fn keep(&self, x: Self::Stream) -> Result<Self::Kept>;

    /// Takes it back.
    fn take_back(&self, kept: Self::Kept) -> Result<Self::Stream>;
}
