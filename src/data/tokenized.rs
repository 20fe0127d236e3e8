//! From a source's files to a store of tokens: read once, in chunks whose rows are tokenized in parallel.
//!
//! It owns what happens to rows that are bad or too long. Rows keep the order of the files, so nothing depends on the number
//! of threads.

use super::config::{DataConfig, OnBadRow, Overlong, SourceConfig};
use super::example::Example;
use super::formats::RowFormat;
use super::source::{RawRow, RowReader};
use super::store::{Account, Encoded, StoreWriter, TokenStore, encode};
use super::tokenize::{Encoder, Notes};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows and bytes that are tokenized at a time.
const CHUNK_ROWS: usize = 2048;
const CHUNK_BYTES: usize = 32 << 20;
/// How many of the rows that are skipped are told one by one.
const SKIPPED_EXAMPLES: usize = 20;

/// One source of rows, with all that decides about its tokens.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub config: &'a DataConfig,
    /// What the recipe says of it alone.
    pub own: &'a SourceConfig,
    pub files: &'a [PathBuf],
    pub encoder: &'a Encoder,
}

impl Source<'_> {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|path| std::fs::metadata(path).map_or(0, |metadata| metadata.len())).sum()
    }

    fn format(&self, first: &RawRow, path: &Path) -> Result<RowFormat> {
        let (format, fields, template) = self.own.rows(self.config);
        let row = first.parse(path)?;
        RowFormat::new(format, fields, template, &row).map_err(|error| first.row_error(path, error))
    }
}

/// Tokenizes a source, and holds the tokens in memory. `progress` gets the bytes of the files that are done.
pub(super) fn tokenize(source: &Source<'_>, progress: &mut dyn FnMut(u64)) -> Result<TokenStore> {
    let writer = StoreWriter::in_memory(source.encoder.vocabulary());
    let store = fill(source, writer, progress)?;
    store.ok_or_else(|| Error::invalid("internal: tokens in memory went into a file"))
}

/// Tokenizes a source into a new file. `progress` gets the bytes of the files that are done.
pub(super) fn tokenize_into(path: &Path, source: &Source<'_>, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let writer = StoreWriter::create(path, source.encoder.vocabulary())?;
    fill(source, writer, progress).map(drop)
}

fn fill(source: &Source<'_>, writer: StoreWriter<'_>, progress: &mut dyn FnMut(u64)) -> Result<Option<TokenStore>> {
    let mut run = Run { source, writer, format: None, account: Account::default(), lengths: BTreeMap::new() };
    let limit = source.own.limit.unwrap_or(usize::MAX);
    let mut done = 0;
    for (number, file) in source.files.iter().enumerate() {
        if run.account.rows >= limit {
            break;
        }
        run.read(number, file, &mut |now| progress(done + now))?;
        done += std::fs::metadata(file).map_or(0, |metadata| metadata.len());
        progress(done);
    }
    run.finish()
}

struct Run<'a, 'w> {
    source: &'a Source<'a>,
    writer: StoreWriter<'w>,
    format: Option<RowFormat>,
    account: Account,
    lengths: BTreeMap<u32, u32>,
}

/// What became of a row.
struct Outcome {
    length: usize,
    ends_supervised: bool,
    truncated: bool,
    notes: Notes,
    conversation: bool,
    row: Option<Encoded>,
}

impl Run<'_, '_> {
    fn read(&mut self, number: usize, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut reader = RowReader::with_columns(path, &self.source.own.columns)?;
        if self.account.kind.is_empty() {
            self.account.kind = reader.kind().to_string();
        }
        let limit = self.source.own.limit.unwrap_or(usize::MAX);
        while self.account.rows < limit {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while chunk.len() < CHUNK_ROWS.min(limit - self.account.rows) && bytes < CHUNK_BYTES {
                let Some(row) = reader.next_row()? else { break };
                bytes += row.size() + 1;
                chunk.push(row);
            }
            if chunk.is_empty() {
                break;
            }
            self.read_chunk(number, path, &chunk)?;
            progress(reader.progress().0);
        }
        Ok(())
    }

    fn read_chunk(&mut self, number: usize, path: &Path, chunk: &[RawRow]) -> Result<()> {
        self.account.rows += chunk.len();
        let mut rest = chunk;
        while self.format.is_none() {
            let Some((first, others)) = rest.split_first() else { return Ok(()) };
            match self.source.format(first, path) {
                Ok(format) => self.format = Some(format),
                Err(error) if self.source.config.on_bad_row == OnBadRow::Skip && others.len() < chunk.len() => {
                    // The first row may be the bad one; when none fits, the end says so.
                    self.skip(number, path, &error);
                    rest = others;
                }
                Err(error) => return Err(error),
            }
        }
        let format = self.format.as_ref().expect("found above");
        let (source, token_bytes) = (self.source, self.writer.token_bytes());
        // All outcomes, then the first error: the same one, however the threads run.
        let outcomes: Vec<Result<Outcome, Fault>> =
            rest.par_iter().map(|row| read_row(source, format, token_bytes, path, row)).collect();
        for (row, outcome) in rest.iter().zip(outcomes) {
            let outcome = match outcome {
                Ok(outcome) => outcome,
                Err(Fault::Bad(error)) if source.config.on_bad_row == OnBadRow::Skip => {
                    self.skip(number, path, &error);
                    continue;
                }
                Err(Fault::Bad(error) | Fault::TooLong(error)) => return Err(error),
            };
            *self.lengths.entry(u32::try_from(outcome.length).unwrap_or(u32::MAX)).or_default() += 1;
            self.account.tools_left_out += usize::from(outcome.notes.tools_left_out);
            self.account.thoughts_left_out += usize::from(outcome.notes.thoughts_left_out);
            if let Some(opening) = outcome.notes.asked_otherwise {
                self.account.asked_otherwise += 1;
                self.account.asked_with.get_or_insert(opening);
            }
            self.account.conversations += usize::from(outcome.conversation);
            match outcome.row {
                None => self.account.dropped += 1,
                Some(encoded) => {
                    self.account.truncated += usize::from(outcome.truncated);
                    self.account.eos_unsupervised += usize::from(!outcome.ends_supervised);
                    self.writer.push(&encoded, number, row.number())?;
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self, number: usize, path: &Path, error: &Error) {
        self.account.skipped += 1;
        if self.account.skipped_examples.len() < SKIPPED_EXAMPLES {
            // Without the path: the same tokens may serve the same file elsewhere.
            let text = error.to_string();
            let what = text.strip_prefix(&path.display().to_string()).unwrap_or(&text);
            self.account.skipped_examples.push((u32::try_from(number).unwrap_or(u32::MAX), what.to_owned()));
        }
    }

    fn finish(mut self) -> Result<Option<TokenStore>> {
        let Account { rows, skipped, .. } = self.account;
        let name = self.source.files.first().map_or_else(|| PathBuf::from(self.source.own.name()), Clone::clone);
        if rows == 0 {
            return Err(
                Error::file(name, "holds no rows").with_help("look at the file; a recipe needs rows to learn from")
            );
        }
        if self.writer.len() == 0 && skipped == rows {
            let first = self.account.skipped_examples.first().map(|(_, what)| what.trim_start_matches(':'));
            let message = format!("none of the {rows} rows can be read; the first: {}", first.unwrap_or_default());
            return Err(Error::file(name, message));
        }
        if self.writer.len() == 0 {
            let config = self.source.config;
            let others = if skipped > 0 { format!(", and {skipped} cannot be read") } else { String::new() };
            let message = match config.overlong {
                Overlong::Truncate => format!("have no answer within max_seq_len = {} tokens", config.max_seq_len),
                _ => format!("have more than max_seq_len = {} tokens", config.max_seq_len),
            };
            let message = format!("none of the {rows} rows is left: {} {message}{others}", rows - skipped);
            let help = match config.overlong {
                Overlong::Truncate => "raise `data.max_seq_len`",
                _ => "raise `data.max_seq_len`, or set `data.overlong` to `truncate`",
            };
            return Err(Error::file(name, message).with_help(help));
        }
        self.account.format = self.format.as_ref().map(RowFormat::explain).unwrap_or_default();
        self.account.lengths = self.lengths.into_iter().collect();
        self.writer.finish(self.account)
    }
}

/// What is wrong with a row.
enum Fault {
    /// It cannot be read or learnt; it may be skipped.
    Bad(Error),
    /// It is too long, and the recipe wants to hear of that.
    TooLong(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Bad(error)
    }
}

fn read_row(
    source: &Source<'_>,
    format: &RowFormat,
    token_bytes: u8,
    path: &Path,
    row: &RawRow,
) -> Result<Outcome, Fault> {
    let Source { config, encoder, .. } = source;
    let fields = row.parse(path)?;
    let example = format.read(&fields).map_err(|error| row.row_error(path, error))?;
    let conversation = matches!(example, Example::Chat { .. });
    let too_long = |length: String| {
        let message = format!("the row has {length} tokens, and max_seq_len is {}", config.max_seq_len);
        let help = "raise `data.max_seq_len`, shorten the row, or set `data.overlong` to `drop` or `truncate`";
        Fault::TooLong(row.place(path, Error::invalid(message).with_help(help)))
    };
    // A row that is far too long would take much time and memory to tokenize, to be left out.
    let most = if config.overlong == Overlong::Truncate { usize::MAX } else { config.max_seq_len };
    let (mut sequence, notes) = match encoder.encode_within(&example, most).map_err(|error| row.place(path, error))? {
        Ok(encoded) => encoded,
        Err(least) if config.overlong == Overlong::Error => return Err(too_long(format!("at least {least}"))),
        Err(length) => {
            let (ends_supervised, truncated, notes) = (true, false, Notes::default());
            return Ok(Outcome { length, ends_supervised, truncated, notes, conversation, row: None });
        }
    };
    let length = sequence.len();
    if sequence.supervised() == 0 {
        let error = Error::invalid("the row teaches nothing: no token of it is learnt")
            .with_help("the answer may hold only what the tokenizer leaves out; mend the row, or remove it");
        return Err(row.place(path, error).into());
    }
    let ends_supervised = encoder.ends_supervised(&sequence);
    let (mut truncated, mut dropped) = (false, false);
    if length > config.max_seq_len {
        match config.overlong {
            Overlong::Drop => dropped = true,
            Overlong::Truncate => {
                sequence.truncate(config.max_seq_len);
                dropped = sequence.supervised() == 0;
                truncated = !dropped;
            }
            Overlong::Error => return Err(too_long(length.to_string())),
        }
    }
    let row = (!dropped).then(|| encode(&sequence, token_bytes));
    Ok(Outcome { length, ends_supervised, truncated, notes, conversation, row })
}
