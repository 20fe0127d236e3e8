//! The rows of a split: which rows of which stores, in order.

use super::store::{Entry, TokenStore};
use super::tokenize::Sequence;
use crate::error::Result;
use std::ops::Range;
use std::sync::Arc;

/// A row of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RowRef {
    pub store: u32,
    pub row: u32,
}

/// The rows to train on, or to validate on. Their tokens are read when they are asked for.
#[derive(Debug, Clone)]
pub struct Rows {
    stores: Arc<Vec<TokenStore>>,
    refs: Vec<RowRef>,
    /// For each source, which of the rows are its own, and how often they come in an epoch.
    sources: Vec<(Range<usize>, f64)>,
}

impl Rows {
    /// These rows of these stores. `sources` cuts the rows up, in order, each part with its weight.
    pub(super) const fn new(
        stores: Arc<Vec<TokenStore>>,
        refs: Vec<RowRef>,
        sources: Vec<(Range<usize>, f64)>,
    ) -> Self {
        Self { stores, refs, sources }
    }

    /// These sequences, in memory, each once an epoch.
    pub fn of(sequences: &[Sequence]) -> Self {
        let store = TokenStore::of(sequences);
        let rows = (0..store.len() as u32).map(|row| RowRef { store: 0, row }).collect();
        Self::new(Arc::new(vec![store]), rows, vec![(0..sequences.len(), 1.0)])
    }

    /// The same rows, cut up into these sources.
    #[cfg(test)]
    pub(super) fn with_sources(self, sources: Vec<(Range<usize>, f64)>) -> Self {
        Self { sources, ..self }
    }

    /// Number of rows.
    pub const fn len(&self) -> usize {
        self.refs.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.refs.is_empty()
    }

    /// The first `n` rows of each source.
    pub fn firsts(&self, n: usize) -> impl Iterator<Item = usize> {
        self.sources.iter().flat_map(move |(range, _)| range.clone().take(n))
    }

    /// What is known of a row without reading it.
    pub fn entry(&self, row: usize) -> &Entry {
        let RowRef { store, row } = self.refs[row];
        &self.stores[store as usize].index()[row as usize]
    }

    /// As [`Rows::entry`], of all rows in order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        (0..self.len()).map(|row| self.entry(row))
    }

    /// A row's tokens and labels.
    ///
    /// # Errors
    /// When the file of tokens can no longer be read.
    pub fn get(&self, row: usize) -> Result<Sequence> {
        let RowRef { store, row } = self.refs[row];
        self.stores[store as usize].row(row as usize)
    }

    /// Which source a row is of: its place among those of training and validation, in the order of the recipe.
    pub(super) fn source(&self, row: usize) -> usize {
        self.refs[row].store as usize
    }

    pub(super) fn refs(&self) -> &[RowRef] {
        &self.refs
    }

    pub(super) fn sources(&self) -> &[(Range<usize>, f64)] {
        &self.sources
    }
}
