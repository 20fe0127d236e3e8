//! The backward pass of a group of linear layers.

use super::{Group, SavedInput, Update, UpdateGradient, panel_rows};
use crate::ops::element::Element;
use crate::ops::frozen_weight::DEPTH_BLOCK;
use crate::ops::gemm::pack::{Shape, pack_all_rows, transpose};
use crate::ops::gemm::{Lhs, TILE_COLUMNS, Term, add, contract_tokens, multiply, store};
use crate::ops::pool::Buffer;
use candle_core::Result;

impl Group<'_> {
    /// The backward pass for `dy: [m, outputs]`: with `v = scale·dy·B`, `dx = dy·W + D(v·A)` is written to `dx: [m, in]` if
    /// wanted, and `dA = vᵀ·D(x)`, `dB = scale·dyᵀ·down` are added to the gradient of each update (`gradients[i]` for
    /// module `i`).
    ///
    /// # Errors
    /// When a weight is on another device.
    pub fn backward<E: Element>(
        &self,
        saved: SavedInput<'_, E>,
        dy: &[E],
        dx: Option<&mut [f32]>,
        gradients: &mut [Option<UpdateGradient<'_>>],
    ) -> Result<()> {
        let v = self.pull_up(dy);
        if let Some(dx) = dx {
            self.input_gradient(dy, &v, dx)?;
        }
        if !v.is_empty() {
            self.gradients_of_a(saved.x, &v, gradients);
            self.gradients_of_b(saved.down, dy, gradients);
        }
        Ok(())
    }

    /// `scale·dy·B` of each update, side by side.
    fn pull_up<E: Element>(&self, dy: &[E]) -> Buffer<E> {
        let (n, ranks) = (self.outputs(), self.ranks::<E>());
        let m = dy.len() / n;
        let mut v = self.pool.take::<E>(m, ranks, self.capacity);
        for (i, update, output, first) in self.updates::<E>() {
            let rows = self.modules[i].weight.rows();
            let padded = update.rank.next_multiple_of(E::GROUP);
            let mut scaled = self.pool.take::<f32>(rows, update.rank, rows);
            scaled.iter_mut().zip(update.b).for_each(|(scaled, b)| *scaled = b * update.scale);
            let shape = Shape::new::<E>(rows, padded);
            let mut packed = self.pool.take::<E>(1, shape.numbers(), 1);
            pack_all_rows(&scaled, update.rank, (rows, update.rank), shape, &mut packed);
            let term = Term { lhs: Lhs { data: &dy[output..], stride: n }, rhs: &packed, shape };
            multiply(&[term], (m, padded), &mut v[first..], ranks, store::<E>);
        }
        v
    }

    /// `dx = Σ dy·W + D(v·A)` over the modules.
    fn input_gradient<E: Element>(&self, dy: &[E], v: &[E], dx: &mut [f32]) -> Result<()> {
        let (n, k, ranks) = (self.outputs(), self.inputs(), self.ranks::<E>());
        let m = dy.len() / n;
        let block = Shape::new::<E>(DEPTH_BLOCK, k);
        let panel_rows = panel_rows(k, DEPTH_BLOCK);
        let mut packed = self.pool.take::<E>(panel_rows / DEPTH_BLOCK, block.numbers(), 1);
        let (mut output, mut rank, mut written) = (0, 0, false);
        for module in self.modules {
            let all = module.weight.rows();
            for start in (0..all).step_by(panel_rows) {
                let rows = start..(start + panel_rows).min(all);
                module.weight.pack_rows(rows.clone(), &mut packed, self.pool)?;
                let blocks = rows.clone().step_by(DEPTH_BLOCK).zip(packed.chunks(block.numbers()));
                let mut terms: Vec<_> = blocks
                    .map(|(row, rhs)| Term {
                        lhs: Lhs { data: &dy[output + row..], stride: n },
                        rhs,
                        shape: Shape::new::<E>((rows.end - row).min(DEPTH_BLOCK), k),
                    })
                    .collect();
                // The update is a little more depth of the module's last panel; under dropout it goes its own way.
                let update = module.update.filter(|update| rows.end == all && update.dropout.is_none());
                let a = update.map(|update| self.packed_a::<E>(&update));
                terms.extend(a.iter().zip(update).map(|(rhs, update)| Term {
                    lhs: Lhs { data: &v[rank..], stride: ranks },
                    rhs,
                    shape: Shape::new::<E>(update.rank, k),
                }));
                if written {
                    multiply(&terms, (m, k), dx, k, add);
                } else {
                    multiply(&terms, (m, k), dx, k, store::<f32>);
                }
                written = true;
            }
            output += all;
            rank += module.update.map_or(0, |update| update.rank.next_multiple_of(E::GROUP));
        }
        for (_, update, _, first) in self.updates::<E>() {
            let Some(dropout) = update.dropout else { continue };
            let a = self.packed_a::<E>(&update);
            let lhs = Lhs { data: &v[first..], stride: ranks };
            let term = Term { lhs, rhs: &a, shape: Shape::new::<E>(update.rank, k) };
            let mut pulled = self.pool.take::<f32>(m, k, self.capacity);
            multiply(&[term], (m, k), &mut pulled, k, store::<f32>);
            dropout.apply_add(&pulled, dx, k);
        }
        Ok(())
    }

    /// `A`, packed: `[r, in]`.
    fn packed_a<E: Element>(&self, update: &Update<'_>) -> Buffer<E> {
        let k = self.inputs();
        let shape = Shape::new::<E>(update.rank, k);
        let mut packed = self.pool.take::<E>(1, shape.numbers(), 1);
        pack_all_rows(update.a, k, (update.rank, k), shape, &mut packed);
        packed
    }

    /// `dA += vᵀ·D(x)`: one pass over `x` for all updates, or one for each where inputs are dropped.
    fn gradients_of_a<E: Element>(&self, x: &[E], v: &[E], gradients: &mut [Option<UpdateGradient<'_>>]) {
        let (k, ranks) = (self.inputs(), self.ranks::<E>());
        let m = x.len() / k;
        let vt = self.transposed(v, ranks, m);
        let updates: Vec<_> = self.updates::<E>().collect();
        let shared = updates.iter().all(|(_, update, _, _)| update.dropout.is_none());
        if shared {
            self.contract(&vt, ranks, (x, k), k, m, |row, column, sums| {
                let Some((i, update, _, first)) = updates.iter().rev().find(|(_, _, _, first)| *first <= row) else {
                    return;
                };
                if let Some(gradient) = gradients[*i].as_mut().filter(|_| row - first < update.rank) {
                    let out = &mut gradient.a[(row - first) * k + column..][..sums.len()];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                }
            });
            return;
        }
        let mut dropped = self.pool.take::<E>(m, k, self.capacity);
        for (i, update, _, first) in updates {
            let Some(gradient) = gradients[i].as_mut() else { continue };
            match update.dropout {
                Some(dropout) => dropout.apply(x, &mut dropped, k),
                None => dropped.copy_from_slice(x),
            }
            let depth = m.next_multiple_of(E::GROUP);
            self.contract(&vt[first * depth..], update.rank, (&dropped, k), k, m, |row, column, sums| {
                let out = &mut gradient.a[row * k + column..][..sums.len()];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            });
        }
    }

    /// `dB += scale·dyᵀ·down`, computed as its transpose.
    fn gradients_of_b<E: Element>(&self, down: &[E], dy: &[E], gradients: &mut [Option<UpdateGradient<'_>>]) {
        let (n, ranks) = (self.outputs(), self.ranks::<E>());
        let m = dy.len() / n;
        let downt = self.transposed(down, ranks, m);
        let depth = m.next_multiple_of(E::GROUP);
        for (i, update, output, first) in self.updates::<E>() {
            let Some(gradient) = gradients[i].as_mut() else { continue };
            let columns = self.modules[i].weight.rows();
            self.contract(&downt[first * depth..], update.rank, (&dy[output..], n), columns, m, |row, column, sums| {
                for (b, sum) in gradient.b[column * update.rank..].chunks_exact_mut(update.rank).zip(sums) {
                    b[row] += update.scale * sum;
                }
            });
        }
    }

    fn contract<E: Element>(
        &self,
        lhs: &[E],
        r: usize,
        rows: (&[E], usize),
        columns: usize,
        m: usize,
        sink: impl FnMut(usize, usize, &[f32]),
    ) {
        let padded = columns.next_multiple_of(TILE_COLUMNS);
        let mut packed = self.pool.take::<E>(m + 1, padded, self.capacity + 1);
        let mut results = self.pool.take::<f32>(r, padded, r);
        let lhs = Lhs { data: lhs, stride: m.next_multiple_of(E::GROUP) };
        contract_tokens((lhs, r), rows, (m, columns), (&mut packed, &mut results), sink);
    }

    /// `[m, columns]` to `[columns, m]`, `m` padded with zeros to whole groups.
    fn transposed<E: Element>(&self, x: &[E], columns: usize, m: usize) -> Buffer<E> {
        let depth = m.next_multiple_of(E::GROUP);
        let mut out = self.pool.take::<E>(depth, columns, (self.capacity + 1).next_multiple_of(E::GROUP));
        transpose(x, columns, (m, columns), &mut out, depth);
        for out in out.chunks_exact_mut(depth) {
            out[m..].fill(E::default());
        }
        out
    }
}
