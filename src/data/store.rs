//! Tokenised rows, in a file or in memory, read one at a time.
//!
//! It owns the layout and that what is read is what was written. It knows neither tokenizers nor where files belong.
//!
//! ```text
//! magic, then for each row its tokens (2 or 4 bytes each) and the ranges of them that are learnt,
//! then 48 bytes a row (the index), then JSON (the account of how the rows came about), then the trailer
//! ```
//!
//! Rows are read with `pread`, not through a memory map: what a process holds of the file does not grow as it goes through
//! the rows, and a file that is cut short under it is an error, not a signal.

mod entry;
mod writer;

pub use entry::Entry;
pub(super) use writer::{Encoded, StoreWriter, encode};

use super::tokenize::{IGNORED, Sequence};
use crate::error::{Error, Result};
use crate::fs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How every store begins and ends; the digits change with the layout.
pub(super) const MAGIC: &[u8; 8] = b"EQTOK002";
/// Rows, bytes of the account, the hash of all that is before it, and the magic.
const TRAILER: usize = 8 + 8 + 32 + 8;
/// The most bytes of an account.
const MAX_ACCOUNT: u64 = 256 << 20;

/// How the rows of a store came about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The rows' format and why it was taken.
    pub format: String,
    /// What kind of files they came from, such as `JSON Lines (gzip)`.
    pub kind: String,
    /// Rows that were read.
    pub rows: usize,
    /// Left out because they are too long.
    pub dropped: usize,
    /// Cut because they are too long.
    pub truncated: usize,
    /// Left out because they could not be read, under `on_bad_row: skip`.
    pub skipped: usize,
    /// The first few of those: the number of the file, and what stands behind its path in the error.
    pub skipped_examples: Vec<(u32, String)>,
    /// Left out because there is nothing in them to learn: an empty answer, or none that is to be learnt.
    pub unlearnt: usize,
    /// The first few of those, as of the skipped ones.
    pub unlearnt_examples: Vec<(u32, String)>,
    /// Answers in conversations that are empty, and so not learnt, beside others that are.
    pub empty_answers: usize,
    /// Fields of turns that neither this program nor the chat template reads, each with how many rows have it.
    pub unread: BTreeMap<String, usize>,
    /// Rows with an answer after which no learnt token ends the turn.
    pub eos_unsupervised: usize,
    /// Rows that are conversations, through the chat template.
    pub conversations: usize,
    /// Rows with tools that the chat template leaves out.
    pub tools_left_out: usize,
    /// Rows whose last answer does not begin with what the generation prompt ends with, and what that is in the first.
    pub asked_otherwise: usize,
    pub asked_with: Option<String>,
    /// Rows with thoughts in the last answer that the chat template leaves out.
    pub thoughts_left_out: usize,
    /// The highest token.
    pub largest_token: u32,
    /// Bytes a token: 2 or 4.
    pub token_bytes: u8,
    /// How many rows had how many tokens, before any was dropped or cut; ascending.
    pub lengths: Vec<(u32, u32)>,
}

#[derive(Debug)]
enum Bytes {
    Memory(Vec<u8>),
    File(File, PathBuf),
}

/// Tokenised rows.
#[derive(Debug)]
pub struct TokenStore {
    bytes: Bytes,
    index: Vec<Entry>,
    account: Account,
}

impl TokenStore {
    /// Opens the store in a file, and checks all of it against its hash.
    ///
    /// # Errors
    /// When the file cannot be read, is not a store, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let damaged = |what: &str| {
            Error::file(path, format!("is not a whole file of tokens: {what}")).with_help("remove it; it is made anew")
        };
        let file = File::open(path).map_err(Error::io("open", path))?;
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length < (MAGIC.len() + TRAILER) as u64 {
            return Err(damaged("it is too short"));
        }
        let mut trailer = [0; TRAILER];
        file.read_exact_at(&mut trailer, length - TRAILER as u64).map_err(Error::io("read", path))?;
        let number = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes"));
        let (rows, account_bytes) = (number(0), number(8));
        let body = length - TRAILER as u64;
        let index_bytes = rows.checked_mul(Entry::BYTES as u64);
        let begin = index_bytes.and_then(|bytes| body.checked_sub(bytes)?.checked_sub(account_bytes));
        let (Some(begin), true) = (begin, trailer[48..] == MAGIC[..] && account_bytes <= MAX_ACCOUNT) else {
            return Err(damaged("its end is not that of one"));
        };
        // The numbers of rows and of the account's bytes are hashed too.
        let fingerprint = fs::fingerprint_of(&file, path, body + 16)?;
        if fingerprint != trailer[16..48] {
            return Err(damaged("its contents were changed"));
        }
        let mut tail = vec![0; (body - begin) as usize];
        file.read_exact_at(&mut tail, begin).map_err(Error::io("read", path))?;
        let (index, account) = tail.split_at(tail.len() - account_bytes as usize);
        let account: Account =
            serde_json::from_slice(account).map_err(|_| damaged("its account is of another version"))?;
        let index: Vec<Entry> = index.chunks_exact(Entry::BYTES).map(Entry::read).collect();
        let store = Self { bytes: Bytes::File(file, path.to_path_buf()), index, account };
        if !store.index.iter().all(|entry| store.range(entry).is_some_and(|range| range.end <= begin)) {
            return Err(damaged("a row lies outside of it"));
        }
        Ok(store)
    }

    /// These sequences, in memory.
    pub fn of(sequences: &[Sequence]) -> Self {
        let largest = sequences.iter().flat_map(|sequence| &sequence.input_ids).max().copied().unwrap_or(0);
        let mut writer = StoreWriter::in_memory(largest as usize + 1);
        let pushed = sequences.iter().zip(1..).try_for_each(|(row, line)| {
            let encoded = encode(row, writer.token_bytes());
            writer.push(&encoded, 0, line)
        });
        let account = Account { rows: sequences.len(), ..Account::default() };
        let store = pushed.and_then(|()| writer.finish(account)).expect("memory refuses nothing");
        store.expect("without a file, the store is the answer")
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// What is known of the rows without reading them.
    pub fn index(&self) -> &[Entry] {
        &self.index
    }

    /// How the rows came about.
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.bytes {
            Bytes::Memory(_) => None,
            Bytes::File(_, path) => Some(path),
        }
    }

    /// A row.
    ///
    /// # Errors
    /// When the file can no longer be read.
    pub fn row(&self, row: usize) -> Result<Sequence> {
        let entry = &self.index[row];
        let range = self.range(entry).expect("`open` and the writer checked the index");
        match &self.bytes {
            Bytes::Memory(bytes) => Ok(self.decode(entry, &bytes[range.start as usize..range.end as usize])),
            Bytes::File(file, path) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                file.read_exact_at(&mut bytes, range.start).map_err(Error::io("read", path))?;
                Ok(self.decode(entry, &bytes))
            }
        }
    }

    fn range(&self, entry: &Entry) -> Option<std::ops::Range<u64>> {
        let bytes = u64::from(entry.tokens) * u64::from(self.account.token_bytes) + 8 * u64::from(entry.spans);
        Some(entry.offset..entry.offset.checked_add(bytes)?)
    }

    fn decode(&self, entry: &Entry, bytes: &[u8]) -> Sequence {
        let (tokens, spans) = bytes.split_at(entry.tokens as usize * usize::from(self.account.token_bytes));
        let input_ids: Vec<u32> = if self.account.token_bytes == 2 {
            tokens.chunks_exact(2).map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]]))).collect()
        } else {
            words(tokens).collect()
        };
        let mut labels = vec![IGNORED; input_ids.len()];
        let bounds: Vec<u32> = words(spans).collect();
        for bounds in bounds.chunks_exact(2) {
            let range = bounds[0] as usize..bounds[1] as usize;
            if let (Some(labels), Some(ids)) = (labels.get_mut(range.clone()), input_ids.get(range)) {
                for (label, &id) in labels.iter_mut().zip(ids) {
                    *label = i64::from(id);
                }
            }
        }
        Sequence { input_ids, labels, weight: entry.weight }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(ids: &[u32], learnt: &[(usize, usize)]) -> Sequence {
        let label = |i: usize| {
            if learnt.iter().any(|&(from, to)| (from..to).contains(&i)) { i64::from(ids[i]) } else { IGNORED }
        };
        Sequence::new(ids.to_vec(), (0..ids.len()).map(label).collect())
    }

    fn rows(largest: u32) -> Vec<Sequence> {
        vec![
            sequence(&[1, 2, largest], &[(1, 3)]),
            Sequence { weight: 2.5, ..sequence(&[5], &[]) },
            sequence(&[7, 7, 8, 9, 7], &[(0, 1), (2, 3), (4, 5)]),
            sequence(&(0..5000).map(|i| i % 60_000).collect::<Vec<_>>(), &[(10, 4999)]),
        ]
    }

    fn fill(writer: &mut StoreWriter<'_>, rows: &[Sequence]) {
        for (i, row) in rows.iter().enumerate() {
            writer.push(&writer::encode(row, writer.token_bytes()), 0, i + 1).unwrap();
        }
    }

    fn write(path: &Path, vocabulary: usize, rows: &[Sequence]) {
        let mut writer = StoreWriter::create(path, vocabulary).unwrap();
        fill(&mut writer, rows);
        writer.finish(Account { rows: rows.len(), ..Account::default() }).unwrap();
    }

    #[test]
    fn rows_come_back_as_they_were_from_file_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        for (vocabulary, largest, width) in [(50_000, 49_999, 2), (65_536, 65_535, 2), (65_537, 65_536, 4)] {
            let rows = rows(largest);
            let path = folder.path().join(format!("{vocabulary}"));
            write(&path, vocabulary, &rows);
            let file = TokenStore::open(&path).unwrap();
            let mut writer = StoreWriter::in_memory(vocabulary);
            fill(&mut writer, &rows);
            let memory = writer.finish(Account { rows: rows.len(), ..Account::default() }).unwrap().unwrap();
            assert_eq!(file.index(), memory.index());
            for store in [&file, &memory] {
                assert_eq!(
                    (store.account().token_bytes, store.account().largest_token, store.len()),
                    (width, largest.max(4999), 4)
                );
                for (i, row) in rows.iter().enumerate() {
                    assert_eq!(store.row(i).unwrap(), *row);
                    let entry = &store.index()[i];
                    assert_eq!((entry.tokens as usize, entry.supervised as usize), (row.len(), row.supervised()));
                    assert_eq!(entry.line, i as u32 + 1);
                }
            }
        }
    }

    #[test]
    fn any_changed_byte_and_any_cut_is_found_on_opening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        write(&path, 300, &rows(200)[..3]);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x40;
            std::fs::write(&path, &bytes).unwrap();
            let error = TokenStore::open(&path).unwrap_err();
            assert!(error.to_string().contains("not a whole file of tokens"), "byte {at}: {error}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(TokenStore::open(&path).is_err(), "cut at {at}");
        }
        std::fs::write(&path, &whole).unwrap();
        let store = TokenStore::open(&path).unwrap();
        std::fs::write(&path, &whole[..10]).unwrap();
        assert!(store.row(2).unwrap_err().to_string().contains("cannot read"), "a file cut under a run is not a crash");
    }

    #[test]
    fn equal_rows_have_equal_hashes_and_others_do_not() {
        let encode = |row: &Sequence| writer::encode(row, 2);
        let a = encode(&sequence(&[1, 2, 3], &[(2, 3)]));
        let same = encode(&sequence(&[1, 2, 3], &[(2, 3)]));
        let learnt = encode(&sequence(&[1, 2, 3], &[(1, 3)]));
        let other_answer = encode(&sequence(&[1, 2, 4], &[(2, 3)]));
        assert_eq!((a.content, a.prompt), (same.content, same.prompt));
        assert_ne!(a.content, learnt.content);
        assert_ne!(a.content, other_answer.content);
        assert_eq!(a.prompt, other_answer.prompt);
    }
}
