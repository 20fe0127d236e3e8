//! The head and the loss as one operation: `[tokens, vocabulary]` is never whole.
//!
//! One pass gives the log-probabilities of the targets *and* the gradient of each token's cross-entropy: an objective's
//! weights carry no gradient, so they are row-wise factors of `[tokens, d]` that can be known later. What is kept of a
//! chunk's logits is `exp(logit - reference)` in the compute type, which rounds by a share of the probability, not of the
//! logit; log-probabilities come from `f32` sums alone.

use super::element::Element;
use super::frozen_weight::{DEPTH_BLOCK, FrozenWeight, lend_pack_rows, lend_pack_transposed};
use super::gemm::pack::Shape;
use super::gemm::{LANES, Lhs, Place, TILE_COLUMNS, TILE_ROWS, Term, ZERO, add, multiply, store};
use super::largest::Largest;
use super::linear::{PANEL, panel_rows};
use super::pool::{Buffer, Ledger, Lent, Pool, room};
use super::simd::{Level, exp, sum_lanes, vectorized};
use super::softcap::{Cap, NoCap, Slope, cap_all};
use candle_core::{Result, bail};
use rayon::prelude::*;

/// Numbers of a packed panel of the forward pass: small, for each task passes all of it.
const FORWARD_PANEL: usize = PANEL / 4;

/// Tokens of a task of the forward pass.
const TASK_ROWS: usize = 4 * TILE_ROWS;

/// The size of a chunk of tokens × vocabulary in bytes, and the most tokens in it.
const CHUNK_BYTES: usize = 64 << 20;
const CHUNK_TOKENS: usize = 512;

/// Each chunk dequantizes and packs the head twice, whatever its size. So with a large vocabulary a chunk grows beyond
/// `CHUNK_BYTES` until it has this many tokens, or takes `MOST_BYTES`.
const WORTHWHILE_TOKENS: usize = 256;
const MOST_BYTES: usize = 256 << 20;

/// How far a logit may lie above a row's reference before the row is scaled anew: `e⁴⁰` is far from the type's end.
const HEADROOM: f32 = 40.0;

/// What is asked of a pass through the head.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeadRequest {
    /// Whether the gradient of each token's cross-entropy is wanted.
    pub gradient: bool,
    /// Of how many of the largest logits the entropy is wanted.
    pub top_k: Option<usize>,
}

/// What one pass through the head gives for `n` supervised tokens.
#[derive(Debug, Default)]
pub struct HeadPass {
    /// Log-probability of each target, in nats.
    pub log_probabilities: Vec<f64>,
    /// Whether the target's logit is above all others: a tie ranks nothing first.
    pub top1: Vec<bool>,
    /// `∂(-log p(target)) / ∂hidden`, `[n, d]`: to be multiplied by each token's weight.
    pub gradient: Option<Buffer<f32>>,
    /// The entropy of the softmax over each token's `k` largest logits, in nats; empty where it was not asked for.
    pub entropies: Vec<f64>,
}

/// Tokens whose exponentials are held at a time.
pub fn chunk_tokens<E: Element>(vocabulary: usize) -> usize {
    let within = |bytes: usize| bytes / (vocabulary.max(1) * size_of::<E>()) / TILE_ROWS * TILE_ROWS;
    within(CHUNK_BYTES).max(within(MOST_BYTES).min(WORTHWHILE_TOKENS)).clamp(TILE_ROWS, CHUNK_TOKENS)
}

/// For `hidden: [n, d]`, the head `W: [vocabulary, d]` and a target for each row: `log softmax(hidden·Wᵀ)[target]`; where they are
/// asked for, the gradient `(softmax - onehot)·W` of its negative and the entropy of the largest logits. `capacity`: tokens that
/// buffers have room for; with 0, those that are there.
///
/// With a `softcap` of `c`, a logit `z` is `c·tanh(z/c)` before the softmax; its slope is `1 - tanh²`.
///
/// # Errors
/// When shapes do not fit, or a target is not below the vocabulary's size.
pub fn linear_cross_entropy<E: Element>(
    hidden: &[E],
    head: &FrozenWeight,
    targets: &[u32],
    softcap: Option<f32>,
    HeadRequest { gradient: with_gradient, top_k }: HeadRequest,
    (pool, capacity): (&Pool, usize),
) -> Result<HeadPass> {
    let (n, d, vocabulary) = (targets.len(), head.columns(), head.rows());
    if hidden.len() != n * d {
        bail!("head: {} numbers do not fit {n} targets and a head of {d} inputs", hidden.len());
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
        bail!("head: the target {target} is outside of the vocabulary of {vocabulary}");
    }
    let chunk = chunk_tokens::<E>(vocabulary);
    let mut pass = HeadPass::default();
    let mut gradient = with_gradient.then(|| pool.take::<f32>(n, d, room(n, capacity)));
    let stride = vocabulary.next_multiple_of(LANES);
    let mut exponentials = pool.take::<E>(n.min(chunk), stride, chunk);
    for (i, (hidden, targets)) in hidden.chunks(chunk * d).zip(targets.chunks(chunk)).enumerate() {
        let exponentials = &mut exponentials[..targets.len() * stride];
        let rows = forward(hidden, head, targets, (exponentials, softcap, top_k), pool)?;
        for row in &rows {
            pass.log_probabilities.push(f64::from(row.target_logit - row.reference) - row.sum.ln());
            pass.top1.push(row.target_logit > row.rival);
            pass.entropies.extend(row.largest.as_ref().map(Largest::entropy));
        }
        if let Some(gradient) = &mut gradient {
            let out = &mut gradient[i * chunk * d..][..targets.len() * d];
            backward((exponentials, softcap), head, &rows, targets, out, pool)?;
        }
    }
    pass.gradient = gradient;
    Ok(pass)
}

/// What [`linear_cross_entropy`] takes for `n` targets and a head `[vocabulary, d]`; what is left is the gradient.
pub fn lend_linear_cross_entropy<E: Element>(
    n: usize,
    (vocabulary, d): (usize, usize),
    with_gradient: bool,
    (ledger, capacity): (&Ledger, usize),
) -> Option<Lent> {
    let chunk = chunk_tokens::<E>(vocabulary);
    let gradient = with_gradient.then(|| ledger.take::<f32>(n, d, room(n, capacity)));
    let _exponentials = ledger.take::<E>(n.min(chunk), vocabulary.next_multiple_of(LANES), chunk);
    // All chunks but the last are alike, and so are all panels.
    for n in [n.min(chunk), n % chunk] {
        let rows = forward_panel_rows(d);
        let packed = ledger.take::<E>(1, Shape::new::<E>(d, rows).numbers(), 1);
        lend_pack_transposed(rows.min(vocabulary), ledger);
        ledger.at_once(n.div_ceil(TASK_ROWS), || ledger.take::<f32>(TASK_ROWS, rows, TASK_ROWS));
        drop(packed);
        if with_gradient {
            let (rows, block) = (panel_rows(d, DEPTH_BLOCK), Shape::new::<E>(DEPTH_BLOCK, d));
            let _packed = ledger.take::<E>(rows / DEPTH_BLOCK, block.numbers(), 1);
            lend_pack_rows((rows.min(vocabulary), d), ledger);
        }
    }
    gradient
}

/// Rows of the head that the forward pass packs at a time.
fn forward_panel_rows(d: usize) -> usize {
    (FORWARD_PANEL / d / TILE_COLUMNS).max(1) * TILE_COLUMNS
}

/// What is known of a token's logits so far.
#[derive(Debug, Clone)]
struct Row {
    /// What exponentials are relative to: the largest logit of the first panel, unless later ones lie far above.
    reference: f32,
    /// The largest logit of another token than the target.
    rival: f32,
    /// `Σ exp(logit - reference)`
    sum: f64,
    target_logit: f32,
    /// The largest logits, where their entropy is wanted.
    largest: Option<Largest>,
}

impl Row {
    fn new(top_k: Option<usize>) -> Self {
        Self { reference: 0.0, rival: f32::NEG_INFINITY, sum: 0.0, target_logit: 0.0, largest: top_k.map(Largest::new) }
    }
}

/// The exponentials of a chunk, `[n, vocabulary padded]`, panel by panel of the vocabulary; under a cap each times the slope of
/// its logit.
fn forward<E: Element>(
    hidden: &[E],
    head: &FrozenWeight,
    targets: &[u32],
    (exponentials, softcap, top_k): (&mut [E], Option<f32>, Option<usize>),
    pool: &Pool,
) -> Result<Vec<Row>> {
    let (d, vocabulary) = (head.columns(), head.rows());
    let stride = exponentials.len() / targets.len();
    let panel_rows = forward_panel_rows(d);
    let mut packed = pool.take::<E>(1, Shape::new::<E>(d, panel_rows).numbers(), 1);
    let mut rows = vec![Row::new(top_k); targets.len()];
    for start in (0..vocabulary).step_by(panel_rows) {
        let range = start..(start + panel_rows).min(vocabulary);
        let shape = Shape::new::<E>(d, range.len());
        head.pack_transposed(range.clone(), &mut packed, pool)?;
        let tasks = exponentials.par_chunks_mut(TASK_ROWS * stride).zip(rows.par_chunks_mut(TASK_ROWS));
        let tasks = tasks.zip(hidden.par_chunks(TASK_ROWS * d)).zip(targets.par_chunks(TASK_ROWS));
        tasks.for_each(|(((exponentials, rows), hidden), targets)| {
            let mut logits = pool.take::<f32>(TASK_ROWS, panel_rows, TASK_ROWS);
            let term = Term { lhs: Lhs { data: hidden, stride: d }, rhs: &packed, shape };
            panel_logits(term, rows.len(), &mut logits, panel_rows);
            for (i, (row, &target)) in rows.iter_mut().zip(targets).enumerate() {
                let logits = &mut logits[i * panel_rows..][..range.len()];
                let at = (target as usize).checked_sub(start).filter(|&at| at < logits.len());
                row.take(logits, at, softcap, start, &mut exponentials[i * stride..][..stride]);
            }
        });
    }
    Ok(rows)
}

/// The logits of some tokens and a panel, a tile at a time: it serves all of them from the cache.
fn panel_logits<E: Element>(term: Term<'_, E>, rows: usize, logits: &mut [f32], stride: usize) {
    let (level, mut sums) = (Level::detect(), ZERO);
    for tile in 0..term.shape.tiles() {
        let (columns, _) = term.shape.tile(tile);
        for row in (0..rows).step_by(TILE_ROWS) {
            let place = Place { row, rows: (rows - row).min(TILE_ROWS), tile };
            E::accumulate(level, &[term], place, true, &mut sums);
            store(&mut logits[row * stride + tile * TILE_COLUMNS..], stride, &sums[..place.rows], columns);
        }
    }
}

impl Row {
    /// Caps the logits of a panel and takes them, with the target `at` its place if it is among them; writes their exponentials to
    /// `out[start..]`.
    fn take<E: Element>(
        &mut self,
        logits: &mut [f32],
        at: Option<usize>,
        softcap: Option<f32>,
        start: usize,
        out: &mut [E],
    ) {
        if let Some(cap) = softcap {
            cap_all(logits, cap);
        }
        let (rival, max) = if let Some(at) = at {
            self.target_logit = logits[at];
            let (before, after) = (largest(&logits[..at]), largest(&logits[at + 1..]));
            let rival = if after > before { after } else { before };
            (rival, if logits[at] > rival { logits[at] } else { rival })
        } else {
            let max = largest(logits);
            (max, max)
        };
        if let Some(largest) = &mut self.largest {
            largest.take(logits, max);
        }
        if start == 0 {
            self.reference = max;
        } else if max > self.reference + HEADROOM {
            let factor = exp::<false>(self.reference - max);
            scale(&mut out[..start], factor);
            self.sum *= f64::from(factor);
            self.reference = max;
        }
        self.rival = if rival > self.rival { rival } else { self.rival };
        let written = &mut out[start..start + logits.len()];
        self.sum += f64::from(match softcap {
            None => exponentials(logits, self.reference, NoCap, written),
            Some(cap) => exponentials(logits, self.reference, Cap(cap), written),
        });
        // The padding is read as depth; what an earlier batch left there could be anything.
        out[start + logits.len()..].iter_mut().take(LANES).for_each(|x| *x = E::default());
    }
}

/// `out = (softmax∘slope)·W - slope[target]·W[target]`; the slopes are 1 without a cap, and under one are in the exponentials.
fn backward<E: Element>(
    (exponentials, softcap): (&[E], Option<f32>),
    head: &FrozenWeight,
    rows: &[Row],
    targets: &[u32],
    out: &mut [f32],
    pool: &Pool,
) -> Result<()> {
    let (n, d, vocabulary) = (rows.len(), head.columns(), head.rows());
    let stride = exponentials.len() / n;
    let block = Shape::new::<E>(DEPTH_BLOCK, d);
    let panel_rows = panel_rows(d, DEPTH_BLOCK);
    let mut packed = pool.take::<E>(panel_rows / DEPTH_BLOCK, block.numbers(), 1);
    for start in (0..vocabulary).step_by(panel_rows) {
        let range = start..(start + panel_rows).min(vocabulary);
        head.pack_rows(range.clone(), &mut packed, pool)?;
        let blocks = range.clone().step_by(DEPTH_BLOCK).zip(packed.chunks(block.numbers()));
        let terms: Vec<_> = blocks
            .map(|(first, rhs)| Term {
                lhs: Lhs { data: &exponentials[first..], stride },
                rhs,
                shape: Shape::new::<E>((range.end - first).min(DEPTH_BLOCK), d),
            })
            .collect();
        if start == 0 {
            multiply(&terms, (n, d), out, d, store::<f32>);
        } else {
            multiply(&terms, (n, d), out, d, add);
        }
    }
    out.par_chunks_mut(d).zip(rows).zip(targets).with_min_len(8).try_for_each_init(
        || vec![0f32; d],
        |weight, ((out, row), &target)| {
            let target = target as usize;
            head.dequantize_rows(target..target + 1, weight)?;
            let factor = (1.0 / row.sum) as f32;
            let slope = softcap.map_or(1.0, |cap| Cap(cap).at(row.target_logit));
            out.iter_mut().zip(&*weight).for_each(|(out, weight)| *out = *out * factor - weight * slope);
            Ok(())
        },
    )
}

vectorized! {
    fn largest(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, tail) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

vectorized! {
    fn scale<E: Element>(x: &mut [E], factor: f32) {
        for x in x {
            *x = E::from_f32(x.to_f32() * factor);
        }
    }
}

vectorized! {
    /// `out = exp(logits - reference)∘slope`; gives the sum of the exponentials before rounding.
    fn exponentials<E: Element, S: Slope>(logits: &[f32], reference: f32, slope: S, out: &mut [E]) -> f32 {
        let mut sums = [0f32; LANES];
        let ((chunks, tail), (out_chunks, out_tail)) = (logits.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
        for (chunk, out) in chunks.iter().zip(out_chunks) {
            for lane in 0..LANES {
                let e = exp::<FMA>(chunk[lane] - reference);
                sums[lane] += e;
                out[lane] = E::from_f32(e * slope.at(chunk[lane]));
            }
        }
        let mut sum = sum_lanes(sums);
        for (x, out) in tail.iter().zip(out_tail) {
            let e = exp::<FMA>(*x - reference);
            sum += e;
            *out = E::from_f32(e * slope.at(*x));
        }
        sum
    }
}
