//! What a layer is told about a batch besides its hidden states.

use crate::ops::RopeTable;
use candle_core::{Result, Tensor};
use std::cell::RefCell;
use std::sync::Arc;

/// What a layer is told about a batch besides its hidden states.
#[derive(Debug)]
pub struct ForwardContext<'a> {
    /// Rotations for the tokens of the batch.
    pub rope: RopeTable,
    /// `[b, keys]`: tokens see their own segment only.
    pub segments: Arc<[u32]>,
    /// In training under dropout: a key for each token.
    pub dropout_keys: Option<Arc<[u64]>>,
    /// Whether adapters take part; without them the layer is the base's.
    pub adapter: bool,
    /// In generation: the keys and values of the tokens before.
    pub cache: Option<&'a KvCache>,
}

/// Keys and values of the tokens so far, by layer.
#[derive(Debug)]
pub struct KvCache {
    layers: RefCell<Vec<Option<(Tensor, Tensor)>>>,
}

impl KvCache {
    /// An empty cache for so many layers.
    pub fn new(layers: usize) -> Self {
        Self { layers: RefCell::new(vec![None; layers]) }
    }

    /// Appends `k` and `v` (`[b, t, kv·d]`) to a layer's, and gives all so far.
    ///
    /// # Errors
    /// When shapes do not fit what is held.
    pub fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let mut layers = self.layers.borrow_mut();
        let joined = match layers[layer].take() {
            Some((before_k, before_v)) => (Tensor::cat(&[&before_k, k], 1)?, Tensor::cat(&[&before_v, v], 1)?),
            None => (k.clone(), v.clone()),
        };
        layers[layer] = Some(joined.clone());
        Ok(joined)
    }
}
