//! Which parts of a device's memory are free: an arena that gives out blocks of few large segments.
//!
//! A driver's own allocation waits for the device; a step takes and gives back some hundred buffers. It owns no memory itself:
//! whoever asks for a block adds a segment where there is none large enough.

use super::driver::Address;
use std::collections::BTreeMap;

/// What addresses and sizes are multiples of.
pub(super) const ALIGNMENT: usize = 256;

/// Free and taken blocks.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// First address and size of each segment.
    segments: BTreeMap<Address, usize>,
    /// First address and size of each free block; neighbours in a segment are one.
    free: BTreeMap<Address, usize>,
    taken: usize,
    peak: usize,
    peak_reserved: usize,
}

impl Arena {
    /// What a request comes to.
    pub fn rounded(bytes: usize) -> usize {
        bytes.max(1).next_multiple_of(ALIGNMENT)
    }

    /// A block of this size, a multiple of [`ALIGNMENT`]: from the smallest that is large enough.
    pub fn take(&mut self, bytes: usize) -> Option<Address> {
        let fits = self.free.iter().filter(|(_, size)| **size >= bytes);
        let (&address, &size) = fits.min_by_key(|(_, size)| **size)?;
        self.free.remove(&address);
        if size > bytes {
            self.free.insert(address + bytes as Address, size - bytes);
        }
        self.taken += bytes;
        self.peak = self.peak.max(self.taken);
        Some(address)
    }

    /// Takes a block back, and joins it with free neighbours of its segment.
    pub fn give_back(&mut self, address: Address, bytes: usize) {
        self.taken -= bytes;
        let (mut first, mut size) = (address, bytes);
        let segment = self.segments.range(..=address).next_back().map_or(0, |(first, _)| *first);
        if let Some((&before, &length)) = self.free.range(segment..address).next_back()
            && before + length as Address == address
        {
            self.free.remove(&before);
            (first, size) = (before, length + size);
        }
        let next = address + bytes as Address;
        if !self.segments.contains_key(&next)
            && let Some(length) = self.free.remove(&next)
        {
            size += length;
        }
        self.free.insert(first, size);
    }

    /// Adds a segment.
    pub fn add(&mut self, address: Address, bytes: usize) {
        self.segments.insert(address, bytes);
        self.free.insert(address, bytes);
        self.peak_reserved = self.peak_reserved.max(self.reserved());
    }

    /// Removes all segments of which nothing is taken, and gives their addresses.
    pub fn remove_unused(&mut self) -> Vec<Address> {
        let unused: Vec<Address> = self
            .segments
            .iter()
            .filter(|(address, size)| self.free.get(address) == Some(size))
            .map(|(&address, _)| address)
            .collect();
        for address in &unused {
            self.segments.remove(address);
            self.free.remove(address);
        }
        unused
    }

    /// Bytes of all segments.
    pub fn reserved(&self) -> usize {
        self.segments.values().sum()
    }

    /// Bytes of the largest block that is free.
    pub fn largest_free(&self) -> usize {
        self.free.values().copied().max().unwrap_or(0)
    }

    /// Bytes of all segments that nobody uses.
    pub fn unused(&self) -> usize {
        self.free.values().sum()
    }

    /// The most bytes that were taken at a time, and that all segments had.
    pub const fn peaks(&self) -> (usize, usize) {
        (self.peak, self.peak_reserved)
    }

    /// Forgets earlier peaks.
    pub fn reset_peaks(&mut self) {
        self.peak = self.taken;
        self.peak_reserved = self.reserved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn blocks_never_overlap_and_all_comes_back_as_one() {
        let (mut arena, mut rng) = (Arena::default(), Rng::new(3));
        // Segments that touch must not be joined: they are given back one by one.
        arena.add(1 << 20, 1 << 16);
        arena.add((1 << 20) + (1 << 16), 1 << 16);
        let mut taken: Vec<(Address, usize)> = Vec::new();
        let mut refused = 0;
        for _ in 0..5000 {
            if rng.below(2) == 0 && !taken.is_empty() {
                let (address, bytes) = taken.swap_remove(rng.below(taken.len() as u64) as usize);
                arena.give_back(address, bytes);
                continue;
            }
            let bytes = Arena::rounded(rng.below(20_000) as usize);
            let Some(address) = arena.take(bytes) else {
                refused += 1;
                continue;
            };
            assert!(address.is_multiple_of(ALIGNMENT as u64));
            let end = address + bytes as u64;
            assert!(taken.iter().all(|&(other, size)| end <= other || other + size as u64 <= address));
            let border = (1 << 20) + (1 << 16);
            assert!(end <= border || address >= border, "a block lies in one segment");
            taken.push((address, bytes));
        }
        assert!(refused > 0, "it was full at times");
        for (address, bytes) in taken {
            arena.give_back(address, bytes);
        }
        assert_eq!(arena.free.len(), 2, "each segment is one block again");
        assert_eq!(arena.remove_unused().len(), 2);
        assert_eq!(arena.reserved(), 0);
        assert!(arena.peaks().0 > 0 && arena.peaks().1 == 1 << 17);
    }
}
