//! CSV and TSV, record by record in bounded memory. The first record names the fields, whose values are text always.
//!
//! Fields may be quoted with `"`, in TSV as well, as pandas and spreadsheets write it.

use super::MAX_ROW;
use super::compression::Input;
use super::lines::too_long;
use super::place::{ENCODING_HELP, Place, count, newlines, text};
use super::row::{Content, RawRow};
use crate::data::formats::{RowError, Step};
use crate::error::{Error, Located, Result};
use csv_core::ReadRecordResult;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The most fields of a record.
const MAX_FIELDS: usize = 1 << 16;

/// A file of records.
pub(super) struct Table {
    path: PathBuf,
    input: Input,
    core: csv_core::Reader,
    delimiter: u8,
    /// The line that the reader is on, from 1.
    line: usize,
    header: Arc<Vec<String>>,
}

/// A row of fields.
pub(super) struct Record {
    header: Arc<Vec<String>>,
    place: Place,
    delimiter: u8,
    /// The record's first line as it stands in the file, or the start of that.
    first_line: Vec<u8>,
    /// The fields' values, one behind the other, and where each ends.
    values: Vec<u8>,
    ends: Vec<usize>,
    too_long: bool,
}

impl Table {
    /// Reads the header, unless the columns are given.
    ///
    /// # Errors
    /// When it is no text, or names a field not at all or twice.
    pub fn new(path: &Path, input: Input, delimiter: u8, columns: &[String]) -> Result<Self> {
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let path = path.to_path_buf();
        let mut table = Self { path, input, core, delimiter, line: 1, header: Arc::default() };
        if !columns.is_empty() {
            table.header = Arc::new(columns.to_vec());
        } else if let Some(record) = table.next_record()? {
            table.header = Arc::new(record.names(&table.path)?);
        }
        Ok(table)
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// When the file can be read no further, or when a quote is not closed.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        let record = loop {
            let Some(record) = self.next_record()? else { return Ok(None) };
            // A line of white space alone is blank to people.
            let blank = record.ends.len() == 1 && record.values.iter().all(u8::is_ascii_whitespace);
            if !blank || record.too_long || self.header.len() == 1 {
                break record;
            }
        };
        let line = record.place.line;
        let content = if record.too_long {
            too_long(record.place, record.first_line, "row")
        } else {
            Content::Record(Box::new(record))
        };
        Ok(Some(RawRow::new(line, content)))
    }

    fn next_record(&mut self) -> Result<Option<Record>> {
        if !self.skip_blank_lines()? {
            return Ok(None);
        }
        let place = Place::line(self.line);
        let mut record = Record {
            header: self.header.clone(),
            place,
            delimiter: self.delimiter,
            first_line: Vec::new(),
            values: Vec::new(),
            ends: Vec::new(),
            too_long: false,
        };
        let (mut values, mut ends) = (vec![0; 512], vec![0; self.header.len().max(15) + 1]);
        let (mut filled, mut fields, mut quotes) = (0, 0, 0);
        loop {
            let buffer = match self.input.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Err(self.input.error(&self.path, error)),
            };
            let at_end = buffer.is_empty();
            let (result, read, written, ended) =
                self.core.read_record(buffer, &mut values[filled..], &mut ends[fields..]);
            record.keep_first_line(&buffer[..read], self.line);
            self.line += newlines(&buffer[..read]);
            quotes += count(&buffer[..read], b'"');
            self.input.reader.consume(read);
            filled += written;
            fields += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if values.len() >= MAX_ROW => {
                    record.too_long = true;
                    filled = 0;
                }
                ReadRecordResult::OutputFull => values.resize((2 * values.len()).min(MAX_ROW), 0),
                ReadRecordResult::OutputEndsFull if ends.len() >= MAX_FIELDS => {
                    record.too_long = true;
                    fields = 0;
                }
                ReadRecordResult::OutputEndsFull => ends.resize((2 * ends.len()).min(MAX_FIELDS), 0),
                ReadRecordResult::Record | ReadRecordResult::End => {
                    // The end of the file closes every quote, so what follows a stray one would be a single field.
                    if at_end && quotes % 2 == 1 && self.line > record.place.line {
                        return Err(record.unclosed(&self.path));
                    }
                    break;
                }
            }
        }
        values.truncate(filled);
        values.shrink_to_fit();
        ends.truncate(fields);
        (record.values, record.ends) = (values, ends);
        Ok(Some(record))
    }

    /// Moves to the next line that is not empty; `false` at the end.
    fn skip_blank_lines(&mut self) -> Result<bool> {
        loop {
            let buffer = match self.input.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Err(self.input.error(&self.path, error)),
            };
            if buffer.is_empty() {
                return Ok(false);
            }
            let blank = buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let more = blank < buffer.len();
            self.line += newlines(&buffer[..blank]);
            self.input.reader.consume(blank);
            if more {
                return Ok(true);
            }
        }
    }
}

impl Record {
    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.values.len() + self.first_line.len() + size_of_val(&self.ends[..])
    }

    /// The fields by name.
    ///
    /// # Errors
    /// When there are more or fewer than the header names, or when one is no text.
    pub fn parse(&self, path: &Path) -> Result<Map<String, Value>> {
        let (got, expected) = (self.ends.len(), self.header.len());
        if got != expected {
            let message = format!("the row has {got} field(s), and the header names {expected}");
            let field = if got > expected { expected } else { got.saturating_sub(1) };
            return Err(self
                .error(path, field, message)
                .with_help("quote fields that hold the delimiter, a quote or a line end; or remove the row"));
        }
        let mut row = Map::with_capacity(expected);
        for (index, name) in self.header.iter().enumerate() {
            let value = text(self.field(index)).map_err(|(_, message)| {
                self.error(path, index, format!("`{name}`: {message}")).with_help(ENCODING_HELP)
            })?;
            row.insert(name.clone(), Value::String(value.to_string()));
        }
        Ok(row)
    }

    /// The error of a row, at the field that it names.
    pub fn row_error(&self, path: &Path, error: RowError) -> Error {
        let field = match error.path.first() {
            Some(Step::Key(key)) => self.header.iter().position(|name| *name == *key),
            _ => None,
        };
        let report = self.error(path, field.unwrap_or(0), error.message);
        report.with_help(error.help.as_deref().unwrap_or("mend the row, or remove it"))
    }

    fn field(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.values[start..self.ends[index]]
    }

    /// The fields as names.
    fn names(&self, path: &Path) -> Result<Vec<String>> {
        if self.too_long {
            return Err(self.error(path, 0, "the header has no end; the first line must name the fields".to_string()));
        }
        let mut seen = HashSet::new();
        let mut names = Vec::new();
        for index in 0..self.ends.len() {
            let name = text(self.field(index))
                .map_err(|(_, message)| {
                    self.error(path, index, format!("the header: {message}")).with_help(ENCODING_HELP)
                })?
                .trim();
            if name.is_empty() {
                return Err(self
                    .error(path, index, format!("the header has no name for column {}", index + 1))
                    .with_help(
                        "the first line must name every field; pandas leaves its index out with `index=False`",
                    ));
            }
            if !seen.insert(name) {
                return Err(self
                    .error(path, index, format!("the header names `{name}` twice"))
                    .with_help("the first line must name every field, each by another name"));
            }
            names.push(name.to_string());
        }
        Ok(names)
    }

    /// Keeps what is on the record's first line, and not too far along.
    fn keep_first_line(&mut self, read: &[u8], line: usize) {
        if line == self.place.line {
            let room = (4 * Located::EXCERPT).saturating_sub(self.first_line.len());
            let end = read.iter().position(|&byte| byte == b'\n').unwrap_or(read.len());
            self.first_line.extend_from_slice(&read[..end.min(room)]);
        }
    }

    fn unclosed(&self, path: &Path) -> Error {
        self.place
            .error(path, &self.first_line, 0, 1, "a quote that opens in the row that starts here is never closed")
            .with_help("close it, or write `\"\"` for a quote inside of a quoted field")
    }

    /// An error at a field or, where that is not on the first line, at the row.
    fn error(&self, path: &Path, field: usize, message: String) -> Error {
        let (mut at, mut passed, mut quoted) = (0, 0, false);
        for (index, &byte) in self.first_line.iter().enumerate() {
            if passed == field {
                break;
            }
            quoted ^= byte == b'"';
            if byte == self.delimiter && !quoted {
                passed += 1;
                at = index + 1;
            }
        }
        let at = if passed == field { at } else { 0 };
        self.place.error(path, &self.first_line, at, 1, message)
    }
}
