//! The rows of a recipe's data files as tokens, ready to be drawn from.
//!
//! It owns what happens to rows that are too long and which rows are held out. Each file is read once, in chunks whose rows
//! are tokenized in parallel; rows keep the order of the file, so nothing depends on the number of threads.

use super::config::{DataConfig, Overlong};
use super::formats::RowFormat;
use super::jsonl::{JsonLines, Line};
use super::report::{DataReport, Lengths, Preview};
use super::tokenize::{Encoder, Sequence};
use crate::error::{Error, Result};
use crate::rng::{key, name_key};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::Path;

/// Rows and bytes that are tokenized at a time.
const CHUNK_ROWS: usize = 2048;
const CHUNK_BYTES: usize = 32 << 20;

/// All rows of a recipe's data, as tokens.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The rows to train on, in the order of the file.
    pub train: Vec<Sequence>,
    /// The rows to validate on; maybe none.
    pub validation: Vec<Sequence>,
    /// The data in numbers.
    pub report: DataReport,
    /// The first row, to look at.
    pub preview: Preview,
}

impl Dataset {
    /// Reads, checks and tokenizes the files of a recipe. `seed` chooses the rows of `validation_split`; `progress` gets the
    /// bytes that are done and those of all files.
    ///
    /// # Errors
    /// Names file, line and field of the first row that is not as its format wants it, that teaches nothing, or that is too
    /// long where `overlong` is `error`; and the file that cannot be read, holds no rows, or of which no row is left.
    pub fn load(config: &DataConfig, encoder: &Encoder, seed: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<Self> {
        let sources = std::iter::once(&config.train).chain(&config.validation);
        let files: Vec<&Path> = sources.map(|sources| Path::new(sources.0[0].name())).collect();
        let bytes = files.iter().map(|path| file_length(path)).sum();
        let mut loader = Loader { config, encoder, format: None, counts: Counts::default(), done: 0, bytes, progress };
        let mut train = loader.read(files[0])?;
        let validation = match files.get(1) {
            Some(path) => loader.read(path)?,
            None => hold_out(&mut train, config, seed)?,
        };
        let (format, counts) = (loader.format, loader.counts);
        let strip = |rows: Vec<Row>| rows.into_iter().map(|row| row.sequence).collect::<Vec<_>>();
        let (train, validation) = (strip(train), strip(validation));
        let report = DataReport {
            format: format.map(|format| format.explain()).unwrap_or_default(),
            rows: counts.lengths.len(),
            train_rows: train.len(),
            validation_rows: validation.len(),
            tokens: train.iter().map(Sequence::len).sum(),
            supervised_tokens: train.iter().map(Sequence::supervised).sum(),
            dropped: counts.dropped,
            truncated: counts.truncated,
            lengths: Lengths::of(counts.lengths),
            eos_unsupervised_rows: counts.eos_unsupervised,
        };
        let preview = Preview { segments: encoder.segments(&train[0])? };
        Ok(Self { train, validation, report, preview })
    }

    /// SHA-256 of all tokens and labels, as hexadecimal digits: the same data, tokenizer, template and split have the same.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for rows in [&self.train, &self.validation] {
            hash.update((rows.len() as u64).to_le_bytes());
            for row in rows {
                let mut bytes = Vec::with_capacity(8 + 12 * row.len());
                bytes.extend((row.len() as u64).to_le_bytes());
                bytes.extend(row.input_ids.iter().flat_map(|id| id.to_le_bytes()));
                bytes.extend(row.labels.iter().flat_map(|label| label.to_le_bytes()));
                hash.update(&bytes);
            }
        }
        hash.finalize().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// A row that is kept, and the line it stands on.
struct Row {
    line: usize,
    sequence: Sequence,
}

#[derive(Default)]
struct Counts {
    lengths: Vec<usize>,
    dropped: usize,
    truncated: usize,
    eos_unsupervised: usize,
}

struct Loader<'a> {
    config: &'a DataConfig,
    encoder: &'a Encoder,
    format: Option<RowFormat>,
    counts: Counts,
    done: u64,
    bytes: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

/// What became of a row.
struct Outcome {
    length: usize,
    ends_supervised: bool,
    truncated: bool,
    sequence: Option<Sequence>,
}

impl Loader<'_> {
    /// The kept rows of a file.
    fn read(&mut self, path: &Path) -> Result<Vec<Row>> {
        let mut lines = JsonLines::open(path)?;
        let length = file_length(path);
        let (mut rows, mut seen, mut taken) = (Vec::new(), 0, 0);
        loop {
            let (mut chunk, mut bytes) = (Vec::new(), 0);
            while chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
                let Some(line) = lines.next_line()? else { break };
                bytes += line.size() + 1;
                chunk.push(line);
            }
            if chunk.is_empty() {
                break;
            }
            seen += chunk.len();
            taken = (taken + bytes as u64).min(length);
            rows.extend(self.read_chunk(path, &chunk)?);
            // Line ends of two bytes and blank lines are not counted here, but where the file ends.
            (self.progress)((self.done + taken).min(self.bytes), self.bytes);
        }
        self.done += length;
        (self.progress)(self.done.min(self.bytes), self.bytes);
        if seen == 0 {
            return Err(Error::file(path, "holds no rows").with_help("data files are JSON Lines, one object a line"));
        }
        if rows.is_empty() {
            let message = format!(
                "none of the {seen} rows is left: all have more than max_seq_len = {} tokens",
                self.config.max_seq_len
            );
            return Err(
                Error::file(path, message).with_help("raise `data.max_seq_len`, or set `data.overlong` to `truncate`")
            );
        }
        Ok(rows)
    }

    fn read_chunk(&mut self, path: &Path, chunk: &[Line]) -> Result<Vec<Row>> {
        if self.format.is_none() {
            let (first, config) = (&chunk[0], self.config);
            let row = first.parse(path)?;
            let format = RowFormat::new(config.format, &config.fields, config.template.as_ref(), &row);
            self.format = Some(format.map_err(|error| first.row_error(path, error))?);
        }
        let format = self.format.as_ref().expect("the first row gave it");
        let (config, encoder) = (self.config, self.encoder);
        let read = |line: &Line| read_row(config, encoder, format, path, line);
        // All outcomes, then the first error: the same one, however the threads run.
        let outcomes: Vec<Result<Outcome>> = chunk.par_iter().map(read).collect();
        let mut rows = Vec::with_capacity(chunk.len());
        for (line, outcome) in chunk.iter().zip(outcomes) {
            let outcome = outcome?;
            self.counts.lengths.push(outcome.length);
            match outcome.sequence {
                None => self.counts.dropped += 1,
                Some(sequence) => {
                    self.counts.truncated += usize::from(outcome.truncated);
                    self.counts.eos_unsupervised += usize::from(!outcome.ends_supervised);
                    rows.push(Row { line: line.number, sequence });
                }
            }
        }
        Ok(rows)
    }
}

fn file_length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn read_row(config: &DataConfig, encoder: &Encoder, format: &RowFormat, path: &Path, line: &Line) -> Result<Outcome> {
    let fields = line.parse(path)?;
    let example = format.read(&fields).map_err(|error| line.row_error(path, error))?;
    let mut sequence = encoder.encode(&example).map_err(|error| line.place(path, error))?;
    let length = sequence.len();
    if sequence.supervised() == 0 {
        let error = Error::invalid("the row teaches nothing: no token of it is learnt")
            .with_help("the answer may hold only what the tokenizer leaves out; mend the row, or remove it");
        return Err(line.place(path, error));
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
            Overlong::Error => {
                let message = format!("the row has {length} tokens, and max_seq_len is {}", config.max_seq_len);
                let help = "raise `data.max_seq_len`, shorten the row, or set `data.overlong` to `drop` or `truncate`";
                return Err(line.place(path, Error::invalid(message).with_help(help)));
            }
        }
    }
    Ok(Outcome { length, ends_supervised, truncated, sequence: (!dropped).then_some(sequence) })
}

/// Takes the share of `validation_split` out of `rows`, each side in the order of the file. A row's luck depends on the seed
/// and its line alone, so dropping other rows hardly changes the choice.
fn hold_out(rows: &mut Vec<Row>, config: &DataConfig, seed: u64) -> Result<Vec<Row>> {
    if config.validation_split <= 0.0 {
        return Ok(Vec::new());
    }
    if rows.len() < 2 {
        return Err(Error::file(
            config.train.0[0].name(),
            "has one row, and `data.validation_split` needs at least two",
        )
        .with_help("set `data.validation_split` to 0, or add rows"));
    }
    // 0.07 · 100 is a little above 7 in floating point, and means 7.
    let count = ((config.validation_split * rows.len() as f64 - 1e-6).ceil() as usize).clamp(1, rows.len() - 1);
    let luck = |row: &Row| (key(seed, &[name_key("validation_split"), row.line as u64]), row.line);
    let mut drawn: Vec<_> = rows.iter().map(luck).collect();
    drawn.sort_unstable();
    let limit = drawn[count];
    let (train, held_out) = std::mem::take(rows).into_iter().partition(|row| luck(row) >= limit);
    *rows = train;
    Ok(held_out)
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
