//! Writing a store: rows one after the other, then index, account and trailer.

use super::{Account, Bytes, Entry, MAGIC, TokenStore};
use crate::data::tokenize::{IGNORED, Sequence};
use crate::error::{Error, Result};
use crate::fs::Fingerprint;
use crate::rng::mix;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Bytes that are gathered before they go to the disk.
const CHUNK: usize = 4 << 20;

/// A row in a store's form. To make it takes no store, so that many threads can.
#[derive(Debug, Clone)]
pub struct Encoded {
    bytes: Vec<u8>,
    tokens: u32,
    supervised: u32,
    spans: u32,
    largest: u32,
    weight: f32,
    pub(super) content: u64,
    pub(super) prompt: u64,
}

/// Encodes a row with `token_bytes` (2 or 4) for each token.
pub fn encode(sequence: &Sequence, token_bytes: u8) -> Encoded {
    let ids = &sequence.input_ids;
    let mut bytes = Vec::with_capacity(ids.len() * usize::from(token_bytes) + 16);
    for id in ids {
        bytes.extend_from_slice(&id.to_le_bytes()[..usize::from(token_bytes)]);
    }
    let learnt = |i: usize| sequence.labels[i] != IGNORED;
    let (mut spans, mut at, mut first) = (0, 0, ids.len());
    while at < ids.len() {
        if !learnt(at) {
            at += 1;
            continue;
        }
        let end = (at..ids.len()).find(|&i| !learnt(i)).unwrap_or(ids.len());
        first = first.min(at);
        bytes.extend_from_slice(&(at as u32).to_le_bytes());
        bytes.extend_from_slice(&(end as u32).to_le_bytes());
        spans += 1;
        at = end;
    }
    let tokens_end = ids.len() * usize::from(token_bytes);
    let hash = |bytes: &[u8], seed: u64| {
        bytes.chunks(8).fold(mix(seed), |hash, chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(hash ^ u64::from_le_bytes(word))
        })
    };
    let prompt = hash(&bytes[..first * usize::from(token_bytes)], first as u64);
    let content = hash(&bytes[tokens_end..], hash(&bytes[..tokens_end], ids.len() as u64));
    Encoded {
        tokens: ids.len() as u32,
        supervised: sequence.supervised() as u32,
        spans,
        largest: ids.iter().max().copied().unwrap_or(0),
        weight: sequence.weight,
        content,
        prompt,
        bytes,
    }
}

/// A store that grows.
pub struct StoreWriter<'a> {
    file: Option<(File, &'a Path)>,
    /// With a file: what is not written yet. Without: everything.
    bytes: Vec<u8>,
    written: u64,
    hash: Fingerprint,
    index: Vec<Entry>,
    largest: u32,
    token_bytes: u8,
}

impl<'a> StoreWriter<'a> {
    /// A store in a new file, for tokens below `vocabulary`.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(path: &'a Path, vocabulary: usize) -> Result<Self> {
        let file = File::create(path).map_err(Error::io("create", path))?;
        Ok(Self { file: Some((file, path)), ..Self::in_memory(vocabulary) })
    }

    /// A store in memory, for tokens below `vocabulary`.
    pub fn in_memory(vocabulary: usize) -> Self {
        Self {
            file: None,
            bytes: MAGIC.to_vec(),
            written: 0,
            hash: Fingerprint::default(),
            index: Vec::new(),
            largest: 0,
            token_bytes: if vocabulary <= 1 << 16 { 2 } else { 4 },
        }
    }

    /// Bytes a token.
    pub const fn token_bytes(&self) -> u8 {
        self.token_bytes
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Adds a row that was encoded with this store's `token_bytes`; it came from this line of this file of the source.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, row: &Encoded, file: usize, line: usize) -> Result<()> {
        self.index.push(Entry {
            offset: self.written + self.bytes.len() as u64,
            tokens: row.tokens,
            supervised: row.supervised,
            spans: row.spans,
            file: u32::try_from(file).unwrap_or(u32::MAX),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            weight: row.weight,
            content: row.content,
            prompt: row.prompt,
        });
        self.largest = self.largest.max(row.largest);
        self.bytes.extend_from_slice(&row.bytes);
        self.flush(CHUNK)
    }

    /// Closes the store. In memory, it is the answer; in a file, [`TokenStore::open`] finds it there.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn finish(mut self, account: Account) -> Result<Option<TokenStore>> {
        let account = Account { largest_token: self.largest, token_bytes: self.token_bytes, ..account };
        let tail = serde_json::to_vec(&account).map_err(|error| Error::invalid(format!("internal: {error}")))?;
        let (index, rows_end) = (std::mem::take(&mut self.index), self.bytes.len());
        for entries in index.chunks(CHUNK / Entry::BYTES) {
            for entry in entries {
                entry.write(&mut self.bytes);
            }
            self.flush(CHUNK)?;
        }
        self.bytes.extend_from_slice(&tail);
        self.bytes.extend((index.len() as u64).to_le_bytes());
        self.bytes.extend((tail.len() as u64).to_le_bytes());
        self.flush(0)?;
        if self.file.is_none() {
            self.hash.update(&self.bytes);
            self.bytes.truncate(rows_end);
            self.bytes.shrink_to_fit();
        }
        let fingerprint = std::mem::take(&mut self.hash).finish();
        match &mut self.file {
            None => Ok(Some(TokenStore { bytes: Bytes::Memory(self.bytes), index, account })),
            Some((file, path)) => {
                self.bytes.extend(fingerprint);
                self.bytes.extend(MAGIC);
                file.write_all(&self.bytes).map_err(Error::io("write", PathBuf::from(*path)))?;
                Ok(None)
            }
        }
    }

    fn flush(&mut self, above: usize) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        if self.bytes.len() <= above {
            return Ok(());
        }
        self.hash.update(&self.bytes);
        file.write_all(&self.bytes).map_err(Error::io("write", PathBuf::from(*path)))?;
        self.written += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}
