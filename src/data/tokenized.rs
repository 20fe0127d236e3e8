//! From a source's files to a store of tokens: read once, in chunks whose rows are tokenized in parallel.
//!
//! It owns what happens to rows that are bad or too long. Rows keep the order of the files, so nothing depends on the number
//! of threads.

use super::config::{DataConfig, OnBadRow, Overlong, RowSettings, SourceConfig};
use super::dataset::Split;
use super::example::Example;
use super::formats::{RowError, RowFormat};
use super::source::{RawRow, RowReader, TableSettings};
use super::store::{Account, Encoded, StoreWriter, TokenStore, encode};
use super::tokenize::{Encoder, Notes};
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Rows and bytes that are tokenized at a time.
const CHUNK_ROWS: usize = 2048;
const CHUNK_BYTES: usize = 32 << 20;
/// How many of the rows that are left out are named one by one.
const SKIPPED_EXAMPLES: usize = 20;
/// How many fields that nothing reads are counted.
const UNREAD: usize = 50;

/// Fields of turns that are read, or that templates leave out on purpose.
const READ: [&str; 8] =
    ["role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "thinking"];

/// Fields of turns that say nothing of the conversation, and that no template is missed for.
const BOOKKEEPING: [&str; 24] = [
    "id",
    "idx",
    "index",
    "uid",
    "uuid",
    "turn",
    "turn_id",
    "message_id",
    "parent_id",
    "timestamp",
    "time",
    "date",
    "created",
    "created_at",
    "model",
    "source",
    "url",
    "lang",
    "language",
    "tokens",
    "token_count",
    "hash",
    "metadata",
    "annotations",
];

/// One source of rows, with all that decides about its tokens.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub config: &'a DataConfig,
    /// What the recipe says of it alone.
    pub own: &'a SourceConfig,
    pub split: Split,
    pub files: &'a [PathBuf],
    pub encoder: &'a Encoder,
}

impl Source<'_> {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|path| std::fs::metadata(path).map_or(0, |metadata| metadata.len())).sum()
    }

    /// What its rows are for, where a message must say so.
    fn purpose(&self) -> &'static str {
        match self.split {
            Split::Train => "",
            Split::Validation => " to validate on",
        }
    }

    /// The format of rows of which the first is this.
    fn format(&self, first: &Map<String, Value>) -> Result<RowFormat, RowError> {
        let RowSettings { format, fields, roles, template } = self.own.rows(self.config);
        RowFormat::new(format, fields, template, first).map(|format| format.with_roles(roles))
    }

    /// The reader of one of its files.
    fn open(&self, path: &Path) -> Result<RowReader> {
        let settings = TableSettings { columns: &self.own.columns, delimiter: self.own.delimiter_byte() };
        RowReader::with_settings(path, settings)
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
#[derive(Default)]
struct Outcome {
    length: usize,
    ends_supervised: bool,
    truncated: bool,
    notes: Notes,
    conversation: bool,
    /// Answers that are empty, and so not learnt.
    empty_answers: usize,
    /// Fields of its turns that nothing reads.
    unread: BTreeSet<String>,
    row: Option<Encoded>,
}

impl Run<'_, '_> {
    fn read(&mut self, number: usize, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut reader = self.source.open(path)?;
        if self.account.kind.is_empty() {
            self.account.kind = reader.kind().to_string();
        }
        if let (None, Some(columns)) = (&self.format, reader.columns()) {
            // A table tells its format before a row is read, so that no more than it needs is.
            let row = columns.iter().map(|name| (name.clone(), Value::Null)).collect();
            match self.source.format(&row) {
                Ok(format) => self.format = Some(format),
                Err(error) => return reader.columns_error(path, error),
            }
        }
        if let Some(format) = &self.format {
            reader.select(&|column| format.needs(column))?;
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

    /// Finds the format, where it is not known yet, by the first of these rows that has one. The rows from there on.
    fn find_format<'c>(&mut self, number: usize, path: &Path, chunk: &'c [RawRow]) -> Result<&'c [RawRow]> {
        let mut rest = chunk;
        while self.format.is_none() {
            let Some((first, others)) = rest.split_first() else { break };
            let format = first
                .parse(path)
                .map_err(with_skip_help)
                .and_then(|row| self.source.format(&row).map_err(|error| first.row_error(path, error)));
            match format {
                Ok(format) => self.format = Some(format),
                Err(error) if self.source.config.on_bad_row == OnBadRow::Skip && others.len() < chunk.len() => {
                    // The first row may be the bad one; when none fits, the end says so.
                    self.skip(number, path, &error);
                    rest = others;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(rest)
    }

    fn read_chunk(&mut self, number: usize, path: &Path, chunk: &[RawRow]) -> Result<()> {
        self.account.rows += chunk.len();
        let rest = self.find_format(number, path, chunk)?;
        let Some(format) = self.format.as_ref() else { return Ok(()) };
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
                Err(Fault::Unlearnt(error)) => {
                    self.account.unlearnt += 1;
                    note(&mut self.account.unlearnt_examples, number, path, &error);
                    continue;
                }
                Err(Fault::Bad(error)) => return Err(with_skip_help(error)),
                Err(Fault::TooLong(error)) => return Err(error),
            };
            self.keep(number, row, outcome)?;
        }
        Ok(())
    }

    /// Counts a row that was read, and writes its tokens.
    fn keep(&mut self, number: usize, row: &RawRow, outcome: Outcome) -> Result<()> {
        *self.lengths.entry(u32::try_from(outcome.length).unwrap_or(u32::MAX)).or_default() += 1;
        self.account.tools_left_out += usize::from(outcome.notes.tools_left_out);
        self.account.thoughts_left_out += usize::from(outcome.notes.thoughts_left_out);
        if let Some(opening) = outcome.notes.asked_otherwise {
            self.account.asked_otherwise += 1;
            self.account.asked_with.get_or_insert(opening);
        }
        self.account.conversations += usize::from(outcome.conversation);
        self.account.empty_answers += outcome.empty_answers;
        for field in outcome.unread {
            if self.account.unread.len() < UNREAD || self.account.unread.contains_key(&field) {
                *self.account.unread.entry(field).or_default() += 1;
            }
        }
        match outcome.row {
            None => self.account.dropped += 1,
            Some(encoded) => {
                self.account.truncated += usize::from(outcome.truncated);
                self.account.eos_unsupervised += usize::from(!outcome.ends_supervised);
                self.writer.push(&encoded, number, row.number())?;
            }
        }
        Ok(())
    }

    fn skip(&mut self, number: usize, path: &Path, error: &Error) {
        self.account.skipped += 1;
        note(&mut self.account.skipped_examples, number, path, error);
    }

    fn finish(mut self) -> Result<Option<TokenStore>> {
        let Account { rows, skipped, unlearnt, .. } = self.account;
        let name = self.source.files.first().map_or_else(|| PathBuf::from(self.source.own.name()), Clone::clone);
        if rows == 0 {
            let help = match self.source.split {
                Split::Train => "look at the file; a recipe needs rows to learn from",
                Split::Validation => {
                    "look at the file, or take `data.validation` out; `data.validation_split` holds rows out"
                }
            };
            return Err(Error::file(name, format!("holds no rows{}", self.source.purpose())).with_help(help));
        }
        if self.writer.len() == 0 {
            return Err(self.nothing_left(name, rows, skipped, unlearnt));
        }
        self.account.format = self.format.as_ref().map(RowFormat::explain).unwrap_or_default();
        self.account.lengths = self.lengths.into_iter().collect();
        self.writer.finish(self.account)
    }

    /// The error of a source of which no row is left.
    fn nothing_left(&self, name: PathBuf, rows: usize, skipped: usize, unlearnt: usize) -> Error {
        let first = |examples: &[(u32, String)]| {
            examples.first().map(|(_, what)| what.trim_start_matches(':').to_owned()).unwrap_or_default()
        };
        let none = match rows {
            1 => "its one row".to_owned(),
            rows => format!("none of the {rows} rows"),
        };
        let (not, is) = if rows == 1 { ("cannot", "is left out") } else { ("can", "is left") };
        let purpose = self.source.purpose();
        if skipped == rows {
            let message =
                format!("{none} {not} be read{purpose}; the first: {}", first(&self.account.skipped_examples));
            return Error::file(name, message);
        }
        if skipped + unlearnt == rows {
            let examples = first(&self.account.unlearnt_examples);
            let teaches = if rows == 1 { "teaches nothing" } else { "teaches anything" };
            return Error::file(name, format!("{none} {teaches}{purpose}; the first: {examples}")).with_help(
                "an answer is what is learnt, and an empty one teaches to say nothing: fill the answers in",
            );
        }
        let config = self.source.config;
        let others = [(skipped, "cannot be read"), (unlearnt, "teach nothing")];
        let others = others.into_iter().filter(|(count, _)| *count > 0);
        let others = others.fold(String::new(), |all, (count, what)| format!("{all}, and {count} {what}"));
        let long = rows - skipped - unlearnt;
        let (has, have) = if long == 1 { ("has", "has") } else { ("have", "have") };
        let (message, help) = match config.overlong {
            Overlong::Truncate => (
                format!("{has} no answer within max_seq_len = {} tokens", config.max_seq_len()),
                "raise `data.max_seq_len`",
            ),
            _ => (
                format!("{have} more than max_seq_len = {} tokens", config.max_seq_len()),
                "raise `data.max_seq_len`, or set `data.overlong` to `truncate`",
            ),
        };
        Error::file(name, format!("{none} {is}{purpose}: {long} {message}{others}")).with_help(help)
    }
}

/// Adds to the rows that are named one by one.
fn note(examples: &mut Vec<(u32, String)>, number: usize, path: &Path, error: &Error) {
    if examples.len() < SKIPPED_EXAMPLES {
        // Without the path: the same tokens may serve the same file elsewhere.
        let text = error.to_string();
        let what = text.strip_prefix(&path.display().to_string()).unwrap_or(&text);
        examples.push((u32::try_from(number).unwrap_or(u32::MAX), what.to_owned()));
    }
}

/// The error of a row, with the key that leaves such rows out.
fn with_skip_help(error: Error) -> Error {
    let skip = "`data.on_bad_row: skip` leaves such rows out, and counts them";
    let help = error.help().map_or_else(|| skip.to_owned(), |help| format!("{help}; {skip}"));
    error.with_help(help)
}

/// What is wrong with a row.
enum Fault {
    /// It cannot be read; it may be skipped.
    Bad(Error),
    /// There is nothing in it to learn, and it is left out.
    Unlearnt(Error),
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
    let bad = |error: RowError| {
        let fault = if error.teaches_nothing { Fault::Unlearnt } else { Fault::Bad };
        fault(row.row_error(path, error))
    };
    let example = format.read(&fields).map_err(bad)?;
    let weight = format.weight(&fields).map_err(bad)?;
    let conversation = matches!(example, Example::Chat { .. });
    let (empty_answers, unread) = (empty_answers(&example), unread(encoder, &example));
    let too_long = |length: String| {
        let message = format!("the row has {length} tokens, and max_seq_len is {}", config.max_seq_len());
        let help = "raise `data.max_seq_len`, shorten the row, or set `data.overlong` to `drop` or `truncate`";
        Fault::TooLong(row.place(path, Error::invalid(message).with_help(help)))
    };
    // A row that is far too long would take much time and memory to tokenize, to be left out.
    let most = if config.overlong == Overlong::Truncate { usize::MAX } else { config.max_seq_len() };
    let (mut sequence, notes) = match encoder.encode_within(&example, most).map_err(|error| row.place(path, error))? {
        Ok(encoded) => encoded,
        Err(least) if config.overlong == Overlong::Error => return Err(too_long(format!("at least {least}"))),
        Err(length) => {
            let ends_supervised = true;
            return Ok(Outcome { length, ends_supervised, conversation, empty_answers, unread, ..Outcome::default() });
        }
    };
    sequence.weight = weight;
    let length = sequence.len();
    if sequence.supervised() == 0 {
        let error = Error::invalid("no token of the row is learnt").with_help(
            "the answers that are to be learnt are empty, or hold only what template or tokenizer leave out; fix the row, or \
             remove it",
        );
        return Err(Fault::Unlearnt(row.place(path, error)));
    }
    let ends_supervised = encoder.ends_supervised(&sequence);
    let (mut truncated, mut dropped) = (false, false);
    if length > config.max_seq_len() {
        match config.overlong {
            Overlong::Drop => dropped = true,
            Overlong::Truncate => {
                sequence.truncate(config.max_seq_len());
                dropped = sequence.supervised() == 0;
                truncated = !dropped;
            }
            Overlong::Error => return Err(too_long(length.to_string())),
        }
    }
    let row = (!dropped).then(|| encode(&sequence, token_bytes));
    Ok(Outcome { length, ends_supervised, truncated, notes, conversation, empty_answers, unread, row })
}

/// Answers of a conversation that are empty, and not learnt for that.
fn empty_answers(example: &Example) -> usize {
    let Example::Chat { messages, .. } = example else { return 0 };
    messages.iter().filter(|message| message.is_silent() && message.train == Some(false)).count()
}

/// Fields of turns that the chat template does not read either, but for those that say nothing of the conversation.
fn unread(encoder: &Encoder, example: &Example) -> BTreeSet<String> {
    let Example::Chat { messages, tools, .. } = example else { return BTreeSet::new() };
    let Ok(template) = encoder.template_for(tools) else { return BTreeSet::new() };
    let fields = messages.iter().flat_map(|message| message.extra.keys());
    let odd = fields.filter(|field| !READ.contains(&field.as_str()) && !BOOKKEEPING.contains(&field.as_str()));
    odd.filter(|field| !template.reads(field)).cloned().collect()
}

#[cfg(test)]
#[path = "tokenized_tests.rs"]
mod tests;
