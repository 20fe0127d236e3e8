//! Products with frozen, quantized weights and their low-rank updates: the bulk of a step's arithmetic.
//!
//! Autograd of a plain `matmul` also computes the gradient of the frozen weight: a third of the arithmetic, for nothing.
//! Here it is `dX = dY·W` alone. The update rides along: its rank is a little more depth of the same product. Modules that
//! share an input (queries, keys and values; gate and up) are one group: their inputs' gradients are one sum, and what is
//! done to the input is done once.

mod backward;
mod ledger;

pub use ledger::{GroupSizes, ModuleSizes};

use super::dropout::Dropout;
use super::element::{Element, convert};
use super::frozen_weight::{FEW_ROWS, FrozenWeight};
use super::gemm::pack::{Shape, pack_all_transposed};
use super::gemm::{Lhs, TILE_COLUMNS, Term, add, multiply, store};
use super::pool::{Buffer, Pool};
use candle_core::Result;
use std::ops::Range;

/// Numbers of a packed panel: 2 MiB of `bf16`, near what a core's cache holds.
pub(super) const PANEL: usize = 1 << 20;

/// Rows of `k` numbers that are packed at a time, in whole multiples.
pub(super) fn panel_rows(k: usize, multiple: usize) -> usize {
    (PANEL / k / multiple).max(1) * multiple
}

/// A frozen matrix `W: [out, in]`, and its update.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// The matrix.
    pub weight: &'a FrozenWeight,
    /// The frozen bias, `[out]`.
    pub bias: Option<&'a [f32]>,
    /// The adapter of a target module.
    pub update: Option<Update<'a>>,
}

/// `scale · B(A(dropout(x)))`, PEFT's names: `A: [r, in]`, `B: [out, r]`.
#[derive(Debug, Clone, Copy)]
pub struct Update<'a> {
    /// `[r, in]`
    pub a: &'a [f32],
    /// `[out, r]`
    pub b: &'a [f32],
    /// `r`
    pub rank: usize,
    /// `lora_alpha / r`, or over `√r`.
    pub scale: f32,
    /// In training where inputs are dropped.
    pub dropout: Option<Dropout<'a>>,
}

/// Gradients of a module's update: sums are added to them.
#[derive(Debug)]
pub struct UpdateGradient<'a> {
    /// `[r, in]`
    pub a: &'a mut [f32],
    /// `[out, r]`
    pub b: &'a mut [f32],
}

/// Modules with one input.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    /// Their outputs lie side by side, in this order.
    pub modules: &'a [Module<'a>],
    /// Where buffers come from.
    pub pool: &'a Pool,
    /// Tokens that buffers have room for.
    pub capacity: usize,
}

/// A group's input and what its forward pass leaves for the backward pass.
#[derive(Debug, Clone, Copy)]
pub struct SavedInput<'a, E> {
    /// The input, `[m, in]`.
    pub x: &'a [E],
    /// `D(x)·Aᵀ` of each update, side by side, ranks padded to the type's group; `[m, ranks]`.
    pub down: &'a [E],
}

impl<'a> Group<'a> {
    /// Inputs of the modules.
    pub fn inputs(&self) -> usize {
        self.modules[0].weight.columns()
    }

    /// Outputs of all modules.
    pub fn outputs(&self) -> usize {
        self.modules.iter().map(|module| module.weight.rows()).sum()
    }

    /// Each update with its module's place, its first output, and the first of its padded ranks.
    fn updates<E: Element>(&self) -> impl Iterator<Item = (usize, Update<'a>, usize, usize)> {
        let (mut output, mut rank) = (0, 0);
        self.modules.iter().enumerate().filter_map(move |(i, module)| {
            let place = (output, rank);
            output += module.weight.rows();
            let update = module.update?;
            rank += update.rank.next_multiple_of(E::GROUP);
            Some((i, update, place.0, place.1))
        })
    }

    /// Padded ranks of all updates.
    fn ranks<E: Element>(&self) -> usize {
        self.updates::<E>().map(|(_, update, _, _)| update.rank.next_multiple_of(E::GROUP)).sum()
    }

    /// `D(x)·Aᵀ` of each update: one product for all, or one for each where inputs are dropped.
    ///
    /// # Panics
    /// When shapes do not fit: a bug of the caller.
    pub fn down<E: Element>(&self, x: &[E]) -> Buffer<E> {
        let (k, ranks) = (self.inputs(), self.ranks::<E>());
        let m = x.len() / k;
        let mut down = self.pool.take::<E>(m, ranks, self.capacity);
        if self.updates::<E>().all(|(_, update, ..)| update.dropout.is_none()) {
            let mut stacked = self.pool.take::<f32>(ranks, k, ranks);
            stacked.fill(0.0);
            for (_, update, _, first) in self.updates::<E>() {
                stacked[first * k..][..update.a.len()].copy_from_slice(update.a);
            }
            self.down_into(x, &stacked, (ranks, 0), &mut down);
            return down;
        }
        let mut dropped = self.pool.take::<E>(m, k, self.capacity);
        for (_, update, _, first) in self.updates::<E>() {
            match update.dropout {
                Some(dropout) => dropout.apply(x, &mut dropped, k),
                None => dropped.copy_from_slice(x),
            }
            self.down_into(&dropped, update.a, (ranks, first), &mut down);
        }
        down
    }

    /// `x·Aᵀ` for `a: [r, in]` to the columns of `down: [m, ranks]` from `first` on.
    fn down_into<E: Element>(&self, x: &[E], a: &[f32], (ranks, first): (usize, usize), down: &mut [E]) {
        let k = self.inputs();
        let (m, r) = (x.len() / k, a.len() / k);
        let shape = Shape::new::<E>(k, r.next_multiple_of(E::GROUP));
        let mut packed = self.pool.take::<E>(1, shape.numbers(), 1);
        pack_all_transposed(a, k, (r, k), shape, &mut packed);
        let term = Term { lhs: Lhs { data: x, stride: k }, rhs: &packed, shape };
        if ranks > 0 {
            multiply(&[term], (m, shape.columns), &mut down[first..], ranks, store::<E>);
        }
    }

    /// `y = x·Wᵀ + bias + scale·down·Bᵀ` for `x: [m, in]`, the modules side by side in `y: [m, outputs]`.
    ///
    /// # Errors
    /// When a weight is on another device.
    pub fn forward<E: Element, O: Element>(&self, saved: SavedInput<'_, E>, y: &mut [O]) -> Result<()> {
        if saved.x.len() <= FEW_ROWS * self.inputs() {
            return self.few_rows(saved, |i, sum| y[i] = O::from_f32(sum));
        }
        self.each_panel(saved, |module, first, panel, terms, m| {
            let out = &mut y[first + panel.start..];
            multiply(terms, (m, panel.len()), out, self.outputs(), store::<O>);
            if let Some(bias) = module.bias {
                let bias = &bias[panel.clone()];
                for row in y[first + panel.start..].chunks_mut(self.outputs()) {
                    for (y, bias) in row.iter_mut().zip(bias) {
                        *y = O::from_f32(y.to_f32() + bias);
                    }
                }
            }
        })
    }

    /// `y += x·Wᵀ + scale·down·Bᵀ`, for what is added to the residual stream.
    ///
    /// # Errors
    /// When a weight is on another device.
    pub fn forward_add<E: Element>(&self, saved: SavedInput<'_, E>, y: &mut [f32]) -> Result<()> {
        if saved.x.len() <= FEW_ROWS * self.inputs() {
            return self.few_rows(saved, |i, sum| y[i] += sum);
        }
        self.each_panel(saved, |module, first, panel, terms, m| {
            multiply(terms, (m, panel.len()), &mut y[first + panel.start..], self.outputs(), add);
            if let Some(bias) = module.bias {
                for row in y[first + panel.start..].chunks_mut(self.outputs()) {
                    row.iter_mut().zip(&bias[panel.clone()]).for_each(|(y, bias)| *y += bias);
                }
            }
        })
    }

    /// A few rows, as in token-by-token generation: calls `f` with each index of `[m, outputs]` and what stands there.
    fn few_rows<E: Element>(&self, saved: SavedInput<'_, E>, mut f: impl FnMut(usize, f32)) -> Result<()> {
        let (k, ranks, n) = (self.inputs(), self.ranks::<E>(), self.outputs());
        let m = saved.x.len() / k;
        let mut x = self.pool.take::<f32>(m, k, m);
        convert(saved.x, &mut x);
        let (mut output, mut rank) = (0, 0);
        for module in self.modules {
            let rows = module.weight.rows();
            let mut y = self.pool.take::<f32>(m, rows, m);
            module.weight.forward_few_rows(&x, m, &mut y)?;
            for (i, y) in y.chunks_exact(rows).enumerate() {
                for (j, y) in y.iter().enumerate() {
                    let update = module.update.map_or(0.0, |update| {
                        let down = &saved.down[i * ranks + rank..][..update.rank];
                        let b = &update.b[j * update.rank..][..update.rank];
                        update.scale * down.iter().zip(b).map(|(down, b)| down.to_f32() * b).sum::<f32>()
                    });
                    f(i * n + output + j, y + update + module.bias.map_or(0.0, |bias| bias[j]));
                }
            }
            output += rows;
            rank += module.update.map_or(0, |update| update.rank.next_multiple_of(E::GROUP));
        }
        Ok(())
    }

    /// Calls `f` with each panel of each module: the module, its first output, its rows in the panel, and the product's terms.
    fn each_panel<E: Element>(
        &self,
        saved: SavedInput<'_, E>,
        mut f: impl FnMut(&Module<'_>, usize, Range<usize>, &[Term<'_, E>], usize),
    ) -> Result<()> {
        let (k, ranks) = (self.inputs(), self.ranks::<E>());
        let m = saved.x.len() / k;
        let panel_rows = panel_rows(k, TILE_COLUMNS);
        let mut packed = self.pool.take::<E>(1, Shape::new::<E>(k, panel_rows).numbers(), 1);
        let (mut output, mut rank) = (0, 0);
        for module in self.modules {
            let n = module.weight.rows();
            for start in (0..n).step_by(panel_rows) {
                let rows = start..(start + panel_rows).min(n);
                let shape = Shape::new::<E>(k, rows.len());
                module.weight.pack_transposed(rows.clone(), &mut packed, self.pool)?;
                let base = Term { lhs: Lhs { data: saved.x, stride: k }, rhs: &packed, shape };
                match module.update {
                    Some(update) => {
                        let shape = Shape::new::<E>(update.rank, rows.len());
                        let b = self.packed_b::<E>(&update, rows.clone(), shape);
                        let lhs = Lhs { data: &saved.down[rank..], stride: ranks };
                        f(module, output, rows, &[base, Term { lhs, rhs: &b, shape }], m);
                    }
                    None => f(module, output, rows, &[base], m),
                }
            }
            output += n;
            rank += module.update.map_or(0, |update| update.rank.next_multiple_of(E::GROUP));
        }
        Ok(())
    }

    /// `scale·Bᵀ` for some outputs, packed: `[r, rows]`.
    fn packed_b<E: Element>(&self, update: &Update<'_>, rows: Range<usize>, shape: Shape) -> Buffer<E> {
        let mut scaled = self.pool.take::<f32>(rows.len(), update.rank, rows.len());
        for (scaled, b) in scaled.iter_mut().zip(&update.b[rows.start * update.rank..]) {
            *scaled = b * update.scale;
        }
        let mut packed = self.pool.take::<E>(1, shape.numbers(), 1);
        pack_all_transposed(&scaled, update.rank, (rows.len(), update.rank), shape, &mut packed);
        packed
    }
}
