//! From files on disk to raw rows.
//!
//! It owns which files a path means ([`expand`]), what kind of file each is, decompression, and the reading of one row at a
//! time in bounded memory ([`RowReader`]). It knows nothing of what the fields of a row mean, of tokenizers or of recipes.
//!
//! Bounds, all of them documented where they are: a row of a text file has at most [`MAX_ROW`] bytes; a compressed file may
//! unpack to any size, but not at a ratio that no text has; a Parquet file's claims are checked before they are believed.

mod compression;
mod expand;
mod json;
mod json_array;
mod kind;
mod lines;
mod parquet;
mod place;
mod row;
mod table;

pub use expand::expand;
pub use row::RawRow;

use crate::error::{Error, Result};
use compression::{Compression, Input};
use json_array::JsonArray;
use kind::Kind;
use lines::{Lines, Meaning};
use parquet::ParquetFile;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use table::Table;

/// The most bytes of one row: longer ones are bad rows, which hold up no others.
pub const MAX_ROW: usize = 64 << 20;

/// A data file, open for reading row by row, in bounded memory.
pub struct RowReader {
    rows: Rows,
    kind: String,
    /// Bytes taken from the disk; Parquet is told by its rows instead.
    consumed: Arc<AtomicU64>,
    length: u64,
    done: bool,
}

enum Rows {
    Lines(Lines),
    Array(JsonArray),
    Table(Box<Table>),
    Parquet(Box<ParquetFile>),
}

impl RowReader {
    /// Opens a file. Its kind is told by its name and, where the name leaves it open, by its first bytes; whether it is
    /// compressed is told by its first bytes alone.
    ///
    /// # Errors
    /// When there is no such file (names that are near are given), when it is a folder, a pipe or a device, when it may not
    /// be read, and when it is of no kind that is understood here.
    pub fn open(path: &Path) -> Result<Self> {
        Self::with_columns(path, &[])
    }

    /// As [`RowReader::open`]; a table without a header has these columns. None: its first record is the header.
    ///
    /// # Errors
    /// As [`RowReader::open`], and when the file is no table.
    pub fn with_columns(path: &Path, columns: &[String]) -> Result<Self> {
        let (file, length) = compression::regular_file(path)?;
        let no_table = || {
            Error::file(path, "is no CSV or TSV, and `columns` names the columns of such a file")
                .with_help("take `columns` out of the recipe")
        };
        if kind::is_parquet(path, &file, length)? {
            if !columns.is_empty() {
                return Err(no_table());
            }
            let rows = Rows::Parquet(Box::new(ParquetFile::open(path, file)?));
            let consumed = Arc::new(AtomicU64::new(0));
            return Ok(Self { rows, kind: Kind::Parquet.name().to_string(), consumed, length, done: false });
        }
        let input = Input::open(path, file)?;
        let consumed = input.consumed.clone();
        let kind = Kind::of_text(path, &input)?;
        let name = match input.compression {
            Compression::None => kind.name().to_string(),
            packed => format!("{} ({})", kind.name(), packed.name()),
        };
        let rows = match kind {
            Kind::Csv => Rows::Table(Box::new(Table::new(path, input, b',', columns)?)),
            Kind::Tsv => Rows::Table(Box::new(Table::new(path, input, b'\t', columns)?)),
            _ if !columns.is_empty() => return Err(no_table()),
            Kind::JsonLines => Rows::Lines(Lines::new(path, input, Meaning::Json)),
            Kind::Text => Rows::Lines(Lines::new(path, input, Meaning::Text)),
            Kind::JsonArray => Rows::Array(JsonArray::new(path, input)),
            Kind::Parquet => return Err(compression::packed_parquet(path)),
        };
        Ok(Self { rows, kind: name, consumed, length, done: false })
    }

    /// The next row; `None` at the end, and after an error.
    ///
    /// # Errors
    /// When the file as a whole is broken from here on: a compressed file or a Parquet file that was cut or damaged, an
    /// array that is not closed, a quote that is not, or a system that fails to read. What is wrong with one row alone is
    /// told by [`RawRow::parse`], and the rows behind it can still be read.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        if self.done {
            return Ok(None);
        }
        let row = match &mut self.rows {
            Rows::Lines(rows) => rows.next_row(),
            Rows::Array(rows) => rows.next_row(),
            Rows::Table(rows) => rows.next_row(),
            Rows::Parquet(rows) => rows.next_row(),
        };
        self.done = !matches!(row, Ok(Some(_)));
        row
    }

    /// What the file is, for people: `JSON Lines`, `CSV (gzip)`, `Parquet`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The bytes of the file, as on disk, that are consumed (those read ahead among them), and all of them.
    pub fn progress(&self) -> (u64, u64) {
        let consumed = match &self.rows {
            _ if self.done => self.length,
            Rows::Parquet(rows) => (rows.share_read() * self.length as f64) as u64,
            _ => self.consumed.load(Ordering::Relaxed),
        };
        (consumed.min(self.length), self.length)
    }
}

/// The error of a file in an encoding that is not read here, where its first bytes tell.
fn foreign_encoding(path: &Path, start: &[u8]) -> Option<Error> {
    match start {
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => {
            Some(Error::file(path, "is UTF-16, and data files are UTF-8").with_help("save it as UTF-8"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
