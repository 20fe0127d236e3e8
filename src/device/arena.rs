//! Which parts of a device's memory are free: an arena that gives out blocks of few large segments.
//!
//! A driver's own allocation waits for the device; a step takes and gives back some hundred buffers. It owns no memory itself:
//! whoever asks for a block adds a segment where there is none large enough.

use super::driver::Address;
use std::collections::BTreeMap;

/// What addresses and sizes are multiples of.
pub(super) const ALIGNMENT: usize = 256;

/// How long a block is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// For some operations.
    Short,
    /// Until a pass comes back to it, or for a run.
    Long,
}

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

    /// A block of this size, a multiple of [`ALIGNMENT`]. What is soon given back comes from the smallest free block that is
    /// large enough, and what lasts from the high end of all: mixed, what lasts would leave holes in which nothing large fits.
    pub fn take(&mut self, bytes: usize, term: Term) -> Option<Address> {
        let mut fits = self.free.iter().filter(|(_, size)| **size >= bytes).map(|(&address, &size)| (address, size));
        let (first, size) = match term {
            Term::Short => fits.min_by_key(|(_, size)| *size)?,
            Term::Long => fits.next_back()?,
        };
        let rest = size - bytes;
        self.free.remove(&first);
        let (address, free) = match term {
            Term::Short => (first, first + bytes as Address),
            Term::Long => (first + rest as Address, first),
        };
        if rest > 0 {
            self.free.insert(free, rest);
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
            let term = if rng.below(2) == 0 { Term::Short } else { Term::Long };
            let Some(address) = arena.take(bytes, term) else {
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

    /// A step as it is: each layer takes buffers of several sizes, gives them back, and leaves its output; then the head; then
    /// all of it backwards. A tenth more than what is taken at most is all that is needed.
    #[test]
    fn a_step_fits_the_piece_that_it_takes_at_most() {
        let (stream, layers) = (7 * ALIGNMENT, 12);
        let buffers = [5, 3, 40, 20, 60].map(|size| size * ALIGNMENT);
        let work = |arena: &mut Arena, buffers: &[usize]| {
            // Each but the first overlaps the one before it.
            let mut held: Vec<(Address, usize)> = Vec::new();
            for &bytes in buffers {
                held.push((arena.take(bytes, Term::Short).expect("there is room"), bytes));
                if held.len() > 2 {
                    let (address, bytes) = held.remove(0);
                    arena.give_back(address, bytes);
                }
            }
            for (address, bytes) in held {
                arena.give_back(address, bytes);
            }
        };
        let step = |arena: &mut Arena| {
            let mut inputs = vec![arena.take(stream, Term::Long).expect("there is room")];
            for _ in 0..layers {
                let middle = arena.take(stream, Term::Long).expect("there is room");
                work(arena, &buffers);
                inputs.push(arena.take(stream, Term::Long).expect("there is room"));
                arena.give_back(middle, stream);
            }
            work(arena, &[110 * ALIGNMENT, 8 * ALIGNMENT]);
            let gradient = arena.take(stream, Term::Long).expect("there is room");
            while let Some(input) = inputs.pop() {
                work(arena, &buffers);
                arena.give_back(input, stream);
            }
            arena.give_back(gradient, stream);
        };
        let mut wide = Arena::default();
        wide.add(1 << 20, 1 << 20);
        step(&mut wide);
        let mut tight = Arena::default();
        tight.add(1 << 20, Arena::rounded(wide.peaks().0 * 11 / 10));
        step(&mut tight);
        step(&mut tight);
    }
}
