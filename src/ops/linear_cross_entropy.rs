//! The head and the cross-entropy as one operation, which never holds `[tokens, vocabulary]` whole.
//!
//! The objectives weight each token's loss by a number that is known only when all log-probabilities of its sample are, and
//! that carries no gradient. The gradient of `w·ce` with respect to a hidden state is `w` times the gradient of `ce`: so one
//! pass gives the log-probabilities and the unweighted gradient `[tokens, d]`, and weighting it later is a product by row.
//! No second pass through the head is needed.

use super::cpu::with_slice;
use super::frozen_matmul::FrozenWeight;
use super::gemm::{Matrix, MatrixMut, Threads, gemm};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Tokens whose logits are held at a time.
const CHUNK: usize = 256;

/// What one pass through the head gives for `n` supervised tokens.
#[derive(Debug)]
pub struct HeadPass {
    /// Log-probability of each target, in nats.
    pub log_probabilities: Vec<f64>,
    /// Whether the target has the largest logit.
    pub top1: Vec<bool>,
    /// `∂(-log p(target)) / ∂hidden`, `[n, d]`: to be multiplied by each token's weight.
    pub gradient: Option<Tensor>,
}

/// For `hidden: [n, d]` (`f32`), the head `W: [vocabulary, d]` and a target for each row: `log softmax(hidden·Wᵀ)[target]`,
/// and under `with_gradient` the gradient `(softmax - onehot)·W` of its negative.
///
/// # Errors
/// When shapes do not fit, or a target is not below the vocabulary's size.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    head: &FrozenWeight,
    targets: &[u32],
    with_gradient: bool,
) -> Result<HeadPass> {
    let (n, d) = hidden.dims2()?;
    if n != targets.len() || d != head.columns() {
        bail!(
            "head: {:?} does not fit {} targets and a head of {} inputs",
            hidden.shape(),
            targets.len(),
            head.columns()
        );
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= head.rows()) {
        bail!("head: the target {target} is outside of the vocabulary of {}", head.rows());
    }
    let hidden = hidden.detach();
    if !hidden.device().is_cpu() {
        return composed(&hidden, head, targets, with_gradient);
    }
    let device = hidden.device();
    with_slice(&hidden, |hidden| {
        let mut pass =
            HeadPass { log_probabilities: Vec::with_capacity(n), top1: Vec::with_capacity(n), gradient: None };
        let mut gradient = vec![0f32; if with_gradient { n * d } else { 0 }];
        let mut logits = vec![0f32; CHUNK.min(n) * head.rows()];
        for (i, (hidden, targets)) in hidden.chunks(CHUNK * d).zip(targets.chunks(CHUNK)).enumerate() {
            let logits = &mut logits[..targets.len() * head.rows()];
            project(hidden, head, logits)?;
            for (log_probability, top1) in to_gradient(logits, targets, head.rows()) {
                pass.log_probabilities.push(log_probability);
                pass.top1.push(top1);
            }
            if with_gradient {
                head.backward_into(logits, targets.len(), &mut gradient[i * CHUNK * d..][..targets.len() * d])?;
            }
        }
        if with_gradient {
            pass.gradient = Some(Tensor::from_vec(gradient, (n, d), device)?);
        }
        Ok(pass)
    })
}

fn project(hidden: &[f32], head: &FrozenWeight, logits: &mut [f32]) -> Result<()> {
    let (d, vocabulary) = (head.columns(), head.rows());
    let m = hidden.len() / d;
    head.for_each_panel(|range, panel| {
        let dst = MatrixMut::strided(&mut logits[range.start..], m, range.len(), vocabulary);
        gemm(dst, Matrix::dense(hidden, m, d), Matrix::dense(panel, range.len(), d).t(), 1.0, false, Threads::All);
        Ok(())
    })
}

/// Turns rows of logits into rows of `softmax - onehot`; gives each target's log-probability and whether it is on top.
fn to_gradient(logits: &mut [f32], targets: &[u32], vocabulary: usize) -> Vec<(f64, bool)> {
    logits
        .par_chunks_mut(vocabulary)
        .zip(targets)
        .map(|(row, &target)| {
            let target = target as usize;
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let logit = row[target];
            let mut sum = 0f64;
            for part in row.chunks_mut(1024) {
                let mut part_sum = 0f32;
                for x in part {
                    *x = (*x - max).exp();
                    part_sum += *x;
                }
                sum += f64::from(part_sum);
            }
            let inverse = (1.0 / sum) as f32;
            for p in row.iter_mut() {
                *p *= inverse;
            }
            row[target] -= 1.0;
            (f64::from(logit - max) - sum.ln(), logit >= max)
        })
        .collect()
}

pub(super) fn composed(hidden: &Tensor, head: &FrozenWeight, targets: &[u32], with_gradient: bool) -> Result<HeadPass> {
    let weight = head.dequantize(hidden.device())?;
    let mut pass = HeadPass { log_probabilities: Vec::new(), top1: Vec::new(), gradient: None };
    let mut gradients = Vec::new();
    for (i, targets) in targets.chunks(CHUNK).enumerate() {
        let logits = hidden.narrow(0, i * CHUNK, targets.len())?.matmul(&weight.t()?)?;
        let log_probabilities = candle_nn::ops::log_softmax(&logits, 1)?;
        let index = Tensor::from_slice(targets, (targets.len(), 1), hidden.device())?;
        let picked = log_probabilities.gather(&index, 1)?;
        pass.log_probabilities.extend(picked.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from));
        let best = logits.argmax(1)?.to_vec1::<u32>()?;
        pass.top1.extend(best.iter().zip(targets).map(|(best, target)| best == target));
        if with_gradient {
            let minus_one = Tensor::ones_like(&picked)?.neg()?;
            gradients.push(log_probabilities.exp()?.scatter_add(&index, &minus_one, 1)?.matmul(&weight)?);
        }
    }
    if with_gradient && !gradients.is_empty() {
        pass.gradient = Some(Tensor::cat(&gradients, 0)?);
    }
    Ok(pass)
}
