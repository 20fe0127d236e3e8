//! What the passes of a group of linear layers take from a pool.

use super::panel_rows;
use crate::ops::element::Element;
use crate::ops::frozen_weight::{DEPTH_BLOCK, FEW_ROWS, lend_pack_rows, lend_pack_transposed};
use crate::ops::gemm::TILE_COLUMNS;
use crate::ops::gemm::pack::Shape;
use crate::ops::pool::{Ledger, Lent};

/// The sizes of a [`Module`](super::Module).
#[derive(Debug, Clone, Copy)]
pub struct ModuleSizes {
    /// Outputs.
    pub rows: usize,
    /// The update's rank, 0 without an update.
    pub rank: usize,
    /// Whether the update's inputs are dropped.
    pub dropout: bool,
}

/// The sizes of a [`Group`](super::Group). Each method lends from `ledger`, for `m` tokens, what the method of that name in
/// [`Group`](super::Group) takes, in the same order.
#[derive(Debug, Clone, Copy)]
pub struct GroupSizes<'a> {
    /// Inputs of the modules.
    pub inputs: usize,
    /// The modules.
    pub modules: &'a [ModuleSizes],
    /// Tokens that buffers have room for.
    pub capacity: usize,
    /// Where buffers come from.
    pub ledger: &'a Ledger,
}

impl GroupSizes<'_> {
    /// Outputs of all modules.
    pub fn outputs(&self) -> usize {
        self.modules.iter().map(|module| module.rows).sum()
    }

    fn updates(&self) -> impl Iterator<Item = &ModuleSizes> {
        self.modules.iter().filter(|module| module.rank > 0)
    }

    fn ranks<E: Element>(&self) -> usize {
        self.updates().map(|module| module.rank.next_multiple_of(E::GROUP)).sum()
    }

    fn packed<E: Element>(&self, depth: usize, columns: usize) -> Lent {
        self.ledger.take::<E>(1, Shape::new::<E>(depth, columns).numbers(), 1)
    }

    /// As [`Group::down`](super::Group::down).
    pub fn down<E: Element>(&self, m: usize) -> Lent {
        let (k, ranks) = (self.inputs, self.ranks::<E>());
        let down = self.ledger.take::<E>(m, ranks, self.capacity);
        if self.updates().all(|update| !update.dropout) {
            let _stacked = self.ledger.take::<f32>(ranks, k, ranks);
            drop(self.packed::<E>(k, ranks.next_multiple_of(E::GROUP)));
            return down;
        }
        let _dropped = self.ledger.take::<E>(m, k, self.capacity);
        for update in self.updates() {
            drop(self.packed::<E>(k, update.rank.next_multiple_of(E::GROUP)));
        }
        down
    }

    /// As [`Group::forward`](super::Group::forward).
    pub fn forward<E: Element>(&self, m: usize) {
        let k = self.inputs;
        if m <= FEW_ROWS {
            let _x = self.ledger.take::<f32>(m, k, m);
            for module in self.modules {
                drop(self.ledger.take::<f32>(m, module.rows, m));
            }
            return;
        }
        let most = panel_rows(k, TILE_COLUMNS);
        let _packed = self.packed::<E>(k, most);
        for module in self.modules {
            for rows in panels(module.rows, most) {
                lend_pack_transposed(rows, self.ledger);
                if module.rank > 0 {
                    let scaled = self.ledger.take::<f32>(rows, module.rank, rows);
                    let packed = self.packed::<E>(module.rank, rows);
                    drop((scaled, packed));
                }
            }
        }
    }

    /// As [`Group::backward`](super::Group::backward), with the input's gradient if it is `wanted`.
    pub fn backward<E: Element>(&self, m: usize, wanted: bool) {
        let v = self.ledger.take::<E>(m, self.ranks::<E>(), self.capacity);
        for module in self.updates() {
            let scaled = self.ledger.take::<f32>(module.rows, module.rank, module.rows);
            drop((scaled, self.packed::<E>(module.rows, module.rank.next_multiple_of(E::GROUP))));
        }
        if wanted {
            self.input_gradient::<E>(m);
        }
        if !v.is_empty() {
            self.gradients_of_a::<E>(m);
            self.gradients_of_b::<E>(m);
        }
    }

    fn input_gradient<E: Element>(&self, m: usize) {
        let k = self.inputs;
        let most = panel_rows(k, DEPTH_BLOCK);
        let packed = self.ledger.take::<E>(most / DEPTH_BLOCK, Shape::new::<E>(DEPTH_BLOCK, k).numbers(), 1);
        for module in self.modules {
            for rows in panels(module.rows, most) {
                lend_pack_rows((rows, k), self.ledger);
            }
            if module.rank > 0 && !module.dropout {
                drop(self.packed::<E>(module.rank, k));
            }
        }
        for update in self.updates().filter(|update| update.dropout) {
            let a = self.packed::<E>(update.rank, k);
            drop((a, self.ledger.take::<f32>(m, k, self.capacity)));
        }
        drop(packed);
    }

    fn gradients_of_a<E: Element>(&self, m: usize) {
        let (k, ranks) = (self.inputs, self.ranks::<E>());
        let _turned = self.transposed::<E>(ranks, m);
        if self.updates().all(|update| !update.dropout) {
            self.contract::<E>(ranks, k, m);
            return;
        }
        let _dropped = self.ledger.take::<E>(m, k, self.capacity);
        for update in self.updates() {
            self.contract::<E>(update.rank, k, m);
        }
    }

    fn gradients_of_b<E: Element>(&self, m: usize) {
        let _turned = self.transposed::<E>(self.ranks::<E>(), m);
        for update in self.updates() {
            self.contract::<E>(update.rank, update.rows, m);
        }
    }

    fn contract<E: Element>(&self, r: usize, columns: usize, m: usize) {
        let padded = columns.next_multiple_of(TILE_COLUMNS);
        let packed = self.ledger.take::<E>(m + 1, padded, self.capacity + 1);
        drop((packed, self.ledger.take::<f32>(r, padded, r)));
    }

    fn transposed<E: Element>(&self, columns: usize, m: usize) -> Lent {
        self.ledger.take::<E>(m.next_multiple_of(E::GROUP), columns, (self.capacity + 1).next_multiple_of(E::GROUP))
    }
}

/// The sizes of the panels of `rows` rows: all but the last are alike, and what one takes the next finds.
fn panels(rows: usize, most: usize) -> impl Iterator<Item = usize> {
    [rows.min(most), rows % most].into_iter().filter(|rows| *rows > 0)
}
