//! What a layer is told about a batch besides its hidden states.

use crate::ops::element::Element;
use crate::ops::{Buffer, Pool, RopeTable, Sequence};
use std::cell::RefCell;

/// What a layer is told about a batch besides its hidden states. `E` is the type of its products.
#[derive(Debug)]
pub struct ForwardContext<'a, E: Element> {
    /// The model's rotations for the tokens of the batch.
    pub ropes: Vec<RopeTable>,
    /// Which tokens attend to which; they lie one sequence after the other.
    pub sequences: Vec<Sequence>,
    /// The rows of this batch whose keys and values `sequences` speak of, where these are not all rows in their order: a context
    /// that several continuations share stands there once for each. Not in training.
    pub key_rows: Option<&'a [usize]>,
    /// In training under dropout: a key for each token.
    pub dropout_keys: Option<&'a [u64]>,
    /// Whether adapters take part; without them the layer is the base's.
    pub adapter: bool,
    /// In generation: the keys and values of the tokens before.
    pub cache: Option<&'a KvCache<E>>,
    /// Where buffers come from.
    pub pool: &'a Pool,
    /// Tokens of this batch.
    pub tokens: usize,
    /// The most tokens that a batch of this run has: what buffers have room for.
    pub capacity: usize,
}

impl<E: Element> ForwardContext<'_, E> {
    /// A buffer of `[tokens, columns]`.
    pub fn take<T: Element>(&self, columns: usize) -> Buffer<T> {
        self.pool.take(self.tokens, columns, self.capacity)
    }
}

/// Keys and values of the tokens so far, by layer: `[tokens, kv·d]` each.
#[derive(Debug)]
pub struct KvCache<E> {
    layers: RefCell<Vec<[Vec<E>; 2]>>,
}

impl<E: Element> KvCache<E> {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: RefCell::new((0..layers).map(|_| [Vec::new(), Vec::new()]).collect()) }
    }

    /// Appends the keys and values of some tokens (rows of `width`, from `stride` to `stride`) to a layer's, and calls `f`
    /// with all so far.
    pub fn append<R>(
        &self,
        layer: usize,
        [keys, values]: [&[E]; 2],
        (width, stride): (usize, usize),
        f: impl FnOnce(&[E], &[E]) -> R,
    ) -> R {
        let mut layers = self.layers.borrow_mut();
        let [all_keys, all_values] = &mut layers[layer];
        for (all, new) in [(&mut *all_keys, keys), (&mut *all_values, values)] {
            for row in new.chunks(stride) {
                all.extend_from_slice(&row[..width]);
            }
        }
        f(all_keys, all_values)
    }
}
