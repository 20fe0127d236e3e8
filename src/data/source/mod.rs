//! From files on disk to raw rows.
//!
//! It owns which files a path means ([`expand`]), what kind of file each is, decompression, and the reading of one row at a
//! time in bounded memory ([`RowReader`]). It knows nothing of what the fields of a row mean, of tokenizers or of recipes.
//!
//! Bounds, all of them documented where they are: a row of a text file has at most [`MAX_ROW`] bytes; a compressed file may
//! unpack to any size, but not at a ratio that no text has; a Parquet file's claims are checked before they are believed.

mod compression;
mod delimiter;
mod expand;
mod foreign;
mod json;
mod json_array;
mod kind;
mod lines;
mod parquet;
mod place;
mod python;
mod row;
mod splits;
mod table;

pub use expand::expand;
pub use row::RawRow;

use crate::data::formats::RowError;
use crate::error::{Error, Result};
use compression::{Compression, Input};
use json_array::{JsonArray, Shape};
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
    /// Bytes taken from the disk; for Parquet its rows count instead.
    consumed: Arc<AtomicU64>,
    length: u64,
    done: bool,
}

/// What a recipe says of a table.
#[derive(Debug, Clone, Copy, Default)]
pub struct TableSettings<'a> {
    /// The names of its columns, where it has no header. None: its first record is the header.
    pub columns: &'a [String],
    /// What stands between its fields; found from the file's name and its first records where nothing is said.
    pub delimiter: Option<u8>,
}

enum Rows {
    Lines(Lines),
    Array(JsonArray),
    Table(Box<Table>),
    Parquet(Box<ParquetFile>),
}

impl RowReader {
    /// Opens a file. Its kind is found from its name and, where the name leaves it open, from its first bytes; whether it is
    /// compressed, from its first bytes alone.
    ///
    /// # Errors
    /// When there is no such file (names that are near are given), when it is a folder, a pipe or a device, when it may not
    /// be read, and when it is of no kind that is understood here.
    pub fn open(path: &Path) -> Result<Self> {
        Self::with_settings(path, TableSettings::default())
    }

    /// As [`RowReader::open`], with what the recipe says of tables: see [`TableSettings`].
    ///
    /// # Errors
    /// As [`RowReader::open`], and when the recipe says something of a table and the file is not one.
    pub fn with_settings(path: &Path, settings: TableSettings<'_>) -> Result<Self> {
        let TableSettings { columns, delimiter } = settings;
        let (file, length) = compression::regular_file(path)?;
        let refuse = || match (columns, delimiter) {
            ([], None) => Ok(()),
            (columns, _) => {
                let key = if columns.is_empty() { "delimiter" } else { "columns" };
                Err(Error::file(path, format!("is not CSV or TSV, and `{key}` is for such files"))
                    .with_help(format!("take `{key}` out of the recipe")))
            }
        };
        if kind::is_parquet(path, &file, length)? {
            refuse()?;
            let rows = Rows::Parquet(Box::new(ParquetFile::open(path, file)?));
            let consumed = Arc::new(AtomicU64::new(0));
            return Ok(Self { rows, kind: Kind::Parquet.name().to_string(), consumed, length, done: false });
        }
        let input = Input::open(path, file)?;
        let consumed = input.consumed.clone();
        let (kind, compression) = (Kind::of_text(path, &input)?, input.compression);
        let table = |input, usual| Table::new(path, input, usual, delimiter, columns).map(Box::new);
        let mut name = kind.name().to_string();
        let rows = match kind {
            Kind::Csv | Kind::Tsv => {
                let usual = if kind == Kind::Csv { b',' } else { b'\t' };
                let table = table(input, usual)?;
                if table.delimiter() != usual {
                    name = format!("{name} with {}", table::shown(table.delimiter()));
                }
                Rows::Table(table)
            }
            Kind::Parquet => return Err(compression::packed_parquet(path)),
            _ => {
                refuse()?;
                match kind {
                    Kind::Text => Rows::Lines(Lines::new(path, input, Meaning::Text)),
                    Kind::JsonArray => Rows::Array(JsonArray::new(path, input, Shape::Array)),
                    Kind::JsonObjects => Rows::Array(JsonArray::new(path, input, Shape::Objects)),
                    _ => Rows::Lines(Lines::new(path, input, Meaning::Json)),
                }
            }
        };
        if compression != Compression::None {
            name = format!("{name} ({})", compression.name());
        }
        Ok(Self { rows, kind: name, consumed, length, done: false })
    }

    /// The names of the columns, where the file has the same for all rows and says so before them.
    pub fn columns(&self) -> Option<&[String]> {
        match &self.rows {
            Rows::Table(rows) => Some(rows.columns()),
            Rows::Parquet(rows) => Some(rows.columns()),
            Rows::Lines(_) | Rows::Array(_) => None,
        }
    }

    /// Reads no other columns from here on; what they hold does not matter then. Of rows that name their fields one by one
    /// all are read.
    ///
    /// # Errors
    /// When a column that is needed cannot be read, or has the name of another.
    pub fn select(&mut self, needs: &dyn Fn(&str) -> bool) -> Result<()> {
        match &mut self.rows {
            Rows::Table(rows) => rows.select(needs),
            Rows::Parquet(rows) => rows.select(needs),
            Rows::Lines(_) | Rows::Array(_) => Ok(()),
        }
    }

    /// The error of what the columns mean, at the first row; none where there is no row.
    ///
    /// # Errors
    /// That error.
    pub fn columns_error(&mut self, path: &Path, error: RowError) -> Result<()> {
        match &self.rows {
            Rows::Parquet(rows) if rows.is_empty() => Ok(()),
            Rows::Parquet(_) => {
                let report = Error::file(path, error.message);
                Err(match error.help {
                    Some(help) => report.with_help(help),
                    None => report,
                })
            }
            _ => self.next_row()?.map_or(Ok(()), |first| Err(first.row_error(path, error))),
        }
    }

    /// The next row; `None` at the end, and after an error.
    ///
    /// # Errors
    /// When the file as a whole is broken from here on: a compressed file or a Parquet file that was cut or damaged, an
    /// array that is not closed, a quote that is not, or a system that fails to read. What is wrong with one row alone is
    /// reported by [`RawRow::parse`], and the rows behind it can still be read.
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
            Some(Error::file(path, "is UTF-16, and data files are UTF-8").with_help(
                "save it as UTF-8 (in Excel: \"CSV UTF-8\"), or convert it: `iconv -f utf-16 -t utf-8 FILE > rows`",
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
