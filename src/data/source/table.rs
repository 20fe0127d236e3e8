//! CSV and TSV, record by record in bounded memory. The first record names the fields, whose values are text always.
//!
//! Fields may be quoted with `"`, in TSV as well, as pandas and spreadsheets write it. Fields that nobody needs are not looked
//! at: they may not be text, have no name or one that stands twice, or be missing at the end of a row.

use super::MAX_ROW;
use super::compression::{Input, START};
use super::delimiter;
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
    header: Arc<Header>,
}

/// The columns of a table.
#[derive(Debug, Clone, Default)]
struct Header {
    names: Vec<String>,
    /// Whether a column is read; all are where this is empty.
    needed: Vec<bool>,
    /// Names that stand twice.
    twice: HashSet<String>,
    /// Whether a space follows each delimiter, and belongs to no value.
    spaced: bool,
}

/// A row of fields.
pub(super) struct Record {
    header: Arc<Header>,
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
    /// Reads the header, unless the columns are given. `usual` is the delimiter of the file's name; `named` the recipe's.
    ///
    /// # Errors
    /// When the header is not text.
    pub fn new(path: &Path, mut input: Input, usual: u8, named: Option<u8>, columns: &[String]) -> Result<Self> {
        let declared = delimiter::declared(&input.start);
        let rest = &input.start[declared.map_or(0, |(_, length)| length)..];
        let told = || delimiter::tell(rest, input.start.len() < START, columns.len(), usual);
        let delimiter = named.or(declared.map(|(byte, _)| byte)).unwrap_or_else(told);
        if let Some((_, length)) = declared {
            if let Err(error) = input.reader.fill_buf() {
                return Err(input.error(path, error));
            }
            input.reader.consume(length);
        }
        let core = csv_core::ReaderBuilder::new().delimiter(delimiter).build();
        let path = path.to_path_buf();
        let line = 1 + usize::from(declared.is_some());
        let mut table = Self { path, input, core, delimiter, line, header: Arc::default() };
        if !columns.is_empty() {
            table.header = Arc::new(Header { names: columns.to_vec(), ..Header::default() });
        } else if let Some(record) = table.next_record()? {
            table.header = Arc::new(record.header(&table.path)?);
        }
        Ok(table)
    }

    /// The delimiter.
    pub const fn delimiter(&self) -> u8 {
        self.delimiter
    }

    /// The names of the columns. A column without one is `Unnamed: 3` by its place, and of two with the same the second is
    /// `name.1`, as pandas has it.
    pub fn columns(&self) -> &[String] {
        &self.header.names
    }

    /// Reads no other columns from here on.
    ///
    /// # Errors
    /// When a column that is needed has the name of another.
    pub fn select(&mut self, needs: &dyn Fn(&str) -> bool) -> Result<()> {
        let mut header = (*self.header).clone();
        if let Some(name) = header.names.iter().find(|name| header.twice.contains(*name) && needs(name)) {
            let message = format!("the header names `{name}` twice, and the rows' format reads it");
            return Err(Error::file(&self.path, message).with_help("give one of the two columns another name"));
        }
        header.needed = header.names.iter().map(|name| needs(name)).collect();
        self.header = Arc::new(header);
        Ok(())
    }

    /// The next record; `None` at the end.
    ///
    /// # Errors
    /// When the file can be read no further, or when a quote is not closed.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        let record = loop {
            let Some(record) = self.next_record()? else { return Ok(None) };
            // A line of white space alone is blank to people, and so are empty fields, which spreadsheets write below a table.
            let blank = record.values.iter().all(u8::is_ascii_whitespace);
            if !blank || record.too_long || self.header.names.len() == 1 {
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
        let (mut values, mut ends) = (vec![0; 512], vec![0; self.header.names.len().max(15) + 1]);
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

    /// The fields by name; null where nobody needs them.
    ///
    /// # Errors
    /// When there are more than the header names, or one that is needed is missing or no text.
    pub fn parse(&self, path: &Path) -> Result<Map<String, Value>> {
        let Header { names, needed, .. } = &*self.header;
        let needed = |index: usize| needed.get(index).copied().unwrap_or(true);
        let (got, expected) = (self.ends.len(), names.len());
        // A delimiter at the end of each row makes a field, with nothing in it.
        let more = (expected..got).any(|index| !self.field(index).trim_ascii().is_empty());
        let less = (got..expected).any(needed);
        if more || less {
            return Err(self.uneven(path));
        }
        let mut row = Map::with_capacity(expected);
        for (index, name) in names.iter().enumerate() {
            let value = if needed(index) { Value::from(self.value(path, index, name)?) } else { Value::Null };
            row.insert(name.clone(), value);
        }
        Ok(row)
    }

    /// The text of a field.
    fn value(&self, path: &Path, index: usize, name: &str) -> Result<String> {
        let value = text(self.field(index))
            .map_err(|(_, message)| self.error(path, index, format!("`{name}`: {message}")).with_help(ENCODING_HELP))?;
        if !self.header.spaced {
            return Ok(value.to_string());
        }
        let value = value.trim_start_matches(' ');
        let quoted = value.strip_prefix('"').and_then(|value| value.trim_end().strip_suffix('"'));
        Ok(quoted.map_or_else(|| value.to_string(), |inner| inner.replace("\"\"", "\"")))
    }

    /// The error of a row with more or fewer fields than the header.
    fn uneven(&self, path: &Path) -> Error {
        let (got, expected) = (self.ends.len(), self.header.names.len());
        let fields = if got == 1 { "field" } else { "fields" };
        let message = format!("the row has {got} {fields}, and the header names {expected}");
        let field = if got > expected { expected } else { got.saturating_sub(1) };
        let delimiter = shown(self.delimiter);
        let spaced = (0..got).any(|index| self.field(index).trim_ascii_start().starts_with(b"\"") && index > 0);
        let help = if spaced && got > expected {
            "take the space before the quote out: only a quote right behind the delimiter opens a quoted field"
                .to_string()
        } else if got == expected + 1 && !self.field(0).is_empty() && self.field(0).iter().all(u8::is_ascii_digit) {
            format!(
                "quote fields that hold {delimiter}, a quote or a line end; or, if the rows begin with numbers that the header \
                 does not name, write the table again without row names"
            )
        } else {
            format!(
                "quote fields that hold {delimiter}, a quote or a line end, or remove the row; if another character stands \
                 between the fields, say `delimiter` at the source: `train: {{path: …, delimiter: \";\"}}`"
            )
        };
        self.error(path, field, message).with_help(help)
    }

    /// The error of a row, at the field that it names.
    pub fn row_error(&self, path: &Path, error: RowError) -> Error {
        let field = match error.path.first() {
            Some(Step::Key(key)) => self.header.names.iter().position(|name| *name == *key),
            _ => None,
        };
        let report = self.error(path, field.unwrap_or(0), error.message);
        report.with_help(error.help.as_deref().unwrap_or("fix the row, or remove it"))
    }

    fn field(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.values[start..self.ends[index]]
    }

    /// The fields as names of columns.
    fn header(&self, path: &Path) -> Result<Header> {
        if self.too_long {
            return Err(self.error(path, 0, "the header has no end; the first line must name the fields".to_string()));
        }
        let mut header = Header { spaced: self.ends.len() > 1, ..Header::default() };
        let mut seen = HashSet::new();
        for index in 0..self.ends.len() {
            let written = text(self.field(index)).map_err(|(_, message)| {
                self.error(path, index, format!("the header: {message}")).with_help(ENCODING_HELP)
            })?;
            header.spaced &= index == 0 || written.starts_with(' ');
            let name = unquoted(written.trim());
            let mut unique = if name.is_empty() { format!("Unnamed: {index}") } else { name.to_string() };
            if seen.contains(&unique) {
                header.twice.insert(unique.clone());
                let numbered =
                    (1..=self.ends.len()).map(|n| format!("{name}.{n}")).find(|numbered| !seen.contains(numbered));
                unique = numbered.unwrap_or_default();
            }
            seen.insert(unique.clone());
            header.names.push(unique);
        }
        Ok(header)
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

/// A delimiter, for people.
pub(super) fn shown(delimiter: u8) -> String {
    match delimiter {
        b'\t' => "a tab".to_string(),
        byte => format!("`{}`", byte as char),
    }
}

/// A name without the quotes that a space before them made a part of it.
fn unquoted(name: &str) -> &str {
    name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name)
}
