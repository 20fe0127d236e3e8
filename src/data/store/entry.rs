//! A row's line in the index of a store.

/// What is known of a row without reading it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Where its bytes begin.
    pub(super) offset: u64,
    /// How many tokens it has.
    pub tokens: u32,
    /// How many of them are learnt.
    pub supervised: u32,
    /// How many ranges of them are learnt.
    pub(super) spans: u32,
    /// Which of the source's files it came from.
    pub file: u32,
    /// Its line there, or its number, from 1.
    pub line: u32,
    /// What its loss is multiplied by.
    pub weight: f32,
    /// The same for rows with the same tokens of which the same are learnt.
    pub content: u64,
    /// The same for rows with the same tokens before the first that is learnt.
    pub prompt: u64,
}

impl Entry {
    /// What tells rows apart that should not be measured on where others like them are learnt: the prompt or, where all is
    /// learnt, everything.
    pub(in crate::data) const fn prompt_or_content(&self) -> u64 {
        if self.supervised + 1 < self.tokens { self.prompt } else { self.content }
    }

    /// Bytes of an entry in a file.
    pub(super) const BYTES: usize = 48;

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.offset.to_le_bytes());
        for word in [self.tokens, self.supervised, self.spans, self.file, self.line, self.weight.to_bits()] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.content.to_le_bytes());
        out.extend(self.prompt.to_le_bytes());
    }

    /// Reads [`Entry::BYTES`] bytes.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        Self {
            offset: long(0),
            tokens: word(8),
            supervised: word(12),
            spans: word(16),
            file: word(20),
            line: word(24),
            weight: f32::from_bits(word(28)),
            content: long(32),
            prompt: long(40),
        }
    }
}
