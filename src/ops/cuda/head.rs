//! The head and the loss on a GPU: `[tokens, vocabulary]` is never whole.

use super::programs;
use super::rows::{Cuda, Rows, address, size};
use crate::device::Memory;
use crate::device::driver::{Argument, Matrix, Number, Work};
use crate::ops::{FrozenWeight, HeadPass, HeadRequest};
use candle_core::{Error, Result, bail};

/// Threads of a block of the loss.
const THREADS: u32 = 512;
/// Threads of a block that caps logits, each of which takes eight.
const CAP_THREADS: usize = 256;
/// Bytes that the logits of a chunk take at most.
const CHUNK_BYTES: usize = 512 << 20;

/// Tokens that chunks are multiples of: cuBLAS cuts a product into tiles of 128 or 256 rows, and a part of a tile takes as long
/// as a whole one.
const CHUNK_STEP: usize = 256;

/// Tokens whose logits are held at a time: a head is dequantized once for each chunk, so that few large ones are best.
pub(crate) fn chunk_tokens(vocabulary: usize) -> usize {
    let most = (CHUNK_BYTES / (4 * vocabulary.max(1))).clamp(16, 4096);
    if most > CHUNK_STEP { most / CHUNK_STEP * CHUNK_STEP } else { most }
}

impl Cuda {
    /// The twin of [`crate::ops::linear_cross_entropy`] for `hidden: [n, d]`; the gradient comes apart from the rest.
    ///
    /// # Errors
    /// When shapes do not fit, a target is not below the vocabulary's size, or the device refuses.
    pub fn linear_cross_entropy(
        &self,
        hidden: &Rows,
        head: &FrozenWeight,
        targets: &[u32],
        softcap: Option<f32>,
        HeadRequest { gradient: with_gradient, top_k }: HeadRequest,
    ) -> Result<(HeadPass, Option<Rows>)> {
        let (n, vocabulary) = (targets.len(), head.rows());
        if (hidden.rows, hidden.columns) != (n, head.columns()) {
            bail!("head: {} rows do not fit {n} targets and a head of {} inputs", hidden.rows, head.columns());
        }
        if let Some(target) = targets.iter().find(|&&target| target as usize >= vocabulary) {
            bail!("head: the target {target} is outside of the vocabulary of {vocabulary}");
        }
        let gradient = with_gradient.then(|| self.rows(n, hidden.columns)).transpose()?;
        let chunk = chunk_tokens(vocabulary).min(n);
        let (targets_at, log_p) = (self.gpu.upload_numbers(targets)?, self.gpu.allocate(4 * n)?);
        let top1 = self.gpu.allocate(4 * n)?;
        let entropies = top_k.map(|_| self.gpu.allocate(4 * n)).transpose()?;
        let logits = self.gpu.allocate(4 * chunk * vocabulary)?;
        let pulled = with_gradient.then(|| self.gpu.allocate(self.compute.bytes() * chunk * vocabulary)).transpose()?;
        for first in (0..n).step_by(chunk.max(1)) {
            let rows = chunk.min(n - first);
            self.chunk_logits(hidden, first, rows, head, logits.address())?;
            let from = |memory: &Memory| Argument::Address(memory.address() + 4 * first as u64);
            if let (Some(entropies), Some(k)) = (&entropies, top_k) {
                self.largest_entropy((rows, vocabulary), [address(&logits), from(entropies)], k, softcap)?;
            }
            let pulled_at = Argument::Address(pulled.as_ref().map_or(0, Memory::address));
            let arguments = [address(&logits), from(&targets_at), pulled_at, from(&log_p), from(&top1)];
            self.cross_entropy((rows, vocabulary), &arguments, pulled.is_some(), softcap)?;
            if let (Some(pulled), Some(gradient)) = (&pulled, &gradient) {
                let whole = matrix(pulled.address(), rows, vocabulary, self.compute.number());
                let into = part(gradient, self, first, rows);
                self.each_panel(head, |range, panel| {
                    let bytes = range.start * self.compute.bytes();
                    let dy = Matrix { address: whole.address + bytes as u64, columns: range.len(), ..whole };
                    let beta = if range.start == 0 { 0.0 } else { 1.0 };
                    self.multiply((dy, false), (panel, false), into, (1.0, beta))
                })?;
            }
        }
        let log_probabilities = log_p.read::<f32>(0, n)?.into_iter().map(f64::from).collect();
        let top1 = top1.read::<u32>(0, n)?.into_iter().map(|top| top != 0).collect();
        let entropies = entropies.map_or_else(|| Ok(Vec::new()), |entropies| entropies.read::<f32>(0, n))?;
        let entropies = entropies.into_iter().map(f64::from).collect();
        Ok((HeadPass { log_probabilities, top1, gradient: None, entropies }, gradient))
    }

    /// The entropy of the `k` largest logits of each row: `arguments` say where both are.
    fn largest_entropy(
        &self,
        (rows, vocabulary): (usize, usize),
        [logits, entropies]: [Argument; 2],
        k: usize,
        softcap: Option<f32>,
    ) -> Result<()> {
        let grid = [u32::try_from(rows).map_err(Error::wrap)?, 1, 1];
        let arguments = [logits, entropies, size(vocabulary)?, size(k)?, Argument::F32(softcap.unwrap_or(0.0))];
        let work = Work { bytes: (4 * rows * vocabulary) as u64, flop: 0 };
        self.launch(&programs::objectives(), "largest_entropy", (grid, THREADS), 0, &arguments, work)
    }

    /// `Σ g·(x - y)` of each row.
    ///
    /// # Errors
    /// When shapes differ, or the device refuses.
    pub fn along(&self, g: &Rows, x: &Rows, y: &Rows) -> Result<Vec<f32>> {
        let shape = (g.rows, g.columns);
        if shape != (x.rows, x.columns) || shape != (y.rows, y.columns) {
            bail!("internal: rows of different shapes along each other");
        }
        let sums = self.gpu.allocate(4 * g.rows)?;
        let arguments = [address(&g.memory), address(&x.memory), address(&y.memory), address(&sums), size(g.columns)?];
        self.each_row(&programs::objectives(), "along", shape, 3, &arguments)?;
        sums.read::<f32>(0, g.rows)
    }

    /// Log-probabilities, whether they are the largest, and the gradient of logits if it is wanted: `arguments` say where.
    fn cross_entropy(
        &self,
        (rows, vocabulary): (usize, usize),
        arguments: &[Argument],
        with_gradient: bool,
        softcap: Option<f32>,
    ) -> Result<()> {
        let grid = [u32::try_from(rows).map_err(Error::wrap)?, 1, 1];
        let bytes = 4 + if with_gradient { self.compute.bytes() } else { 0 };
        let work = Work { bytes: (rows * vocabulary * bytes) as u64, flop: 0 };
        let mut arguments = arguments.to_vec();
        arguments.push(size(vocabulary)?);
        let Some(cap) = softcap else {
            return self.launch(&programs::rows(), "cross_entropy", (grid, THREADS), 0, &arguments, work);
        };
        arguments.push(Argument::F32(cap));
        self.launch(&programs::families(), "cross_entropy_capped", (grid, THREADS), 0, &arguments, work)
    }

    /// The logits of some rows in `f32`, to an address.
    fn chunk_logits(&self, hidden: &Rows, first: usize, rows: usize, head: &FrozenWeight, to: u64) -> Result<()> {
        let (x, vocabulary) = (part(hidden, self, first, rows), head.rows());
        self.each_panel(head, |range, panel| {
            let out = matrix(to + 4 * range.start as u64, rows, vocabulary, Number::F32);
            self.multiply((x, false), (panel, true), Matrix { columns: range.len(), ..out }, (1.0, 0.0))
        })
    }

    /// `c·tanh(z/c)` in the place of each logit.
    fn softcap(&self, logits: &Memory, count: usize, cap: f32) -> Result<()> {
        let grid = [u32::try_from(count.div_ceil(8 * CAP_THREADS)).map_err(Error::wrap)?, 1, 1];
        let arguments = [address(logits), Argument::F32(cap), Argument::U64(count as u64)];
        let work = Work { bytes: (2 * 4 * count) as u64, flop: 0 };
        self.launch(&programs::families(), "softcap", (grid, CAP_THREADS as u32), 0, &arguments, work)
    }

    /// The logits of all rows, `[n, vocabulary]`; under a `softcap` of `c`, `c·tanh(z/c)` of them.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn logits(&self, hidden: &Rows, head: &FrozenWeight, softcap: Option<f32>) -> Result<Vec<f32>> {
        let chunk = chunk_tokens(head.rows()).min(hidden.rows);
        let memory = self.gpu.allocate(4 * chunk * head.rows())?;
        let mut logits = Vec::with_capacity(hidden.rows * head.rows());
        for first in (0..hidden.rows).step_by(chunk.max(1)) {
            let rows = chunk.min(hidden.rows - first);
            self.chunk_logits(hidden, first, rows, head, memory.address())?;
            if let Some(cap) = softcap {
                self.softcap(&memory, rows * head.rows(), cap)?;
            }
            logits.extend(memory.read::<f32>(0, rows * head.rows())?);
        }
        Ok(logits)
    }
}

const fn matrix(address: u64, rows: usize, columns: usize, number: Number) -> Matrix {
    Matrix { address, rows, columns, stride: columns, number }
}

fn part(rows: &Rows, cuda: &Cuda, first: usize, count: usize) -> Matrix {
    let whole = rows.matrix(cuda.compute, 0, rows.columns);
    let bytes = first * rows.columns * cuda.compute.bytes();
    Matrix { address: whole.address + bytes as u64, rows: count, ..whole }
}
