//! What a pool would hold: buffers by their lengths alone.

use super::Free;
use crate::ops::element::Element;
use std::cell::RefCell;
use std::rc::Rc;

/// Lends buffers as a [`Pool`](super::Pool) does, without their memory; clones share it.
///
/// Who lends from it what an operation takes, in the same order, knows what the operation makes a pool hold.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Rc<RefCell<Account>>);

#[derive(Debug, Default)]
struct Account {
    /// Those that are free: of `bf16`, and of `f32`.
    free: [Free<Piece>; 2],
    held: Held,
}

/// A buffer's numbers, and how many of them were ever written to.
#[derive(Debug, Clone, Copy)]
struct Piece {
    length: usize,
    touched: usize,
}

/// What a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Buffers.
    pub buffers: u64,
    /// Their bytes, as [`Pool::allocated`](super::Pool::allocated) counts them.
    pub allocated: u64,
    /// Of those, what takes memory: the system gives a page when it is written to.
    pub touched: u64,
}

impl Ledger {
    /// As [`Pool::take`](super::Pool::take). All numbers of the buffer are taken to be written.
    pub fn take<E: Element>(&self, rows: usize, columns: usize, capacity_rows: usize) -> Lent {
        let (len, wanted) = (rows * columns, rows.max(capacity_rows) * columns);
        let (shelf, size) = (shelf::<E>(), size_of::<E>() as u64);
        let Account { free, held } = &mut *self.0.borrow_mut();
        let piece = free[shelf].take(wanted).unwrap_or_else(|| {
            held.buffers += 1;
            held.allocated += wanted as u64 * size;
            Piece { length: wanted, touched: 0 }
        });
        held.touched += len.saturating_sub(piece.touched) as u64 * size;
        let piece = Piece { touched: piece.touched.max(len), ..piece };
        Lent { piece, len, shelf, ledger: self.clone() }
    }

    /// As many of `tasks` tasks as there are threads, each with what `take` gives.
    pub fn at_once<R>(&self, tasks: usize, take: impl Fn() -> R) {
        drop((0..tasks.min(rayon::current_num_threads())).map(|_| take()).collect::<Vec<_>>());
    }

    /// What a pool would hold by now.
    pub fn held(&self) -> Held {
        self.0.borrow().held
    }
}

const fn shelf<E: Element>() -> usize {
    if size_of::<E>() == 2 { 0 } else { 1 }
}

/// Numbers that go back to their ledger when they are dropped.
#[derive(Debug)]
pub struct Lent {
    piece: Piece,
    len: usize,
    shelf: usize,
    ledger: Ledger,
}

impl Lent {
    /// How many numbers.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.ledger.0.borrow_mut().free[self.shelf].put(self.piece.length, self.piece);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Pool;
    use super::*;
    use half::bf16;

    #[test]
    fn it_lends_as_a_pool_does() {
        let (pool, ledger) = (Pool::default(), Ledger::default());
        let sizes =
            [(7, 64, 10), (10, 64, 10), (3, 64, 10), (10, 4, 10), (5, 60, 9), (0, 8, 0), (80, 8, 80), (9, 64, 9)];
        for (rows, columns, capacity) in sizes {
            let ours = (pool.take::<f32>(rows, columns, capacity), pool.take::<bf16>(rows, columns, capacity));
            let theirs = (ledger.take::<f32>(rows, columns, capacity), ledger.take::<bf16>(rows, columns, capacity));
            assert_eq!((ours.0.len(), ours.1.len()), (theirs.0.len(), theirs.1.len()));
            let held = ledger.held();
            assert_eq!(pool.allocated(), (held.buffers, held.allocated), "{rows} x {columns}, room for {capacity}");
        }
    }

    #[test]
    fn room_that_nobody_writes_to_takes_no_memory() {
        let ledger = Ledger::default();
        drop(ledger.take::<f32>(3, 100, 10));
        assert_eq!(ledger.held(), Held { buffers: 1, allocated: 4000, touched: 1200 });
        drop(ledger.take::<f32>(8, 100, 10));
        drop(ledger.take::<f32>(2, 100, 10));
        assert_eq!(ledger.held(), Held { buffers: 1, allocated: 4000, touched: 3200 });
    }
}
