//! One row as it stands in its file, not yet parsed.

use super::MAX_ROW;
use super::json::JsonText;
use super::parquet::ParquetRow;
use super::place::{ENCODING_HELP, Place, text};
use super::table::Record;
use crate::data::formats::RowError;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// One row as it stands in its file. Rows are read one after the other, and parsed in parallel.
pub struct RawRow {
    number: usize,
    content: Content,
}

pub(super) enum Content {
    Json(JsonText),
    Record(Box<Record>),
    Line(TextLine),
    Parquet(Box<ParquetRow>),
    /// A row of Parquet that is too long.
    ParquetTooLong,
    Unreadable(Box<Unreadable>),
}

/// A line that is a row of one field.
pub(super) struct TextLine {
    pub place: Place,
    pub bytes: Vec<u8>,
}

/// A row of text that was given up while it was read.
pub(super) struct Unreadable {
    pub place: Place,
    /// Its start.
    pub bytes: Vec<u8>,
    pub message: String,
    pub help: String,
}

impl RawRow {
    pub(super) const fn new(number: usize, content: Content) -> Self {
        Self { number, content }
    }

    /// The line that it starts on, from 1; in Parquet the row's number, from 1. Rows of an array may share a line.
    pub const fn number(&self) -> usize {
        self.number
    }

    /// About how many bytes it holds.
    pub fn size(&self) -> usize {
        size_of::<Self>()
            + match &self.content {
                Content::Json(row) => row.bytes.len() + row.place.size(),
                Content::Record(row) => row.size(),
                Content::Line(row) => row.bytes.len(),
                Content::Parquet(row) => row.size(),
                Content::ParquetTooLong => 0,
                Content::Unreadable(row) => row.bytes.len() + row.place.size(),
            }
    }

    /// The row's fields.
    ///
    /// # Errors
    /// When the row is not what its kind of file has: names the line and the column, or the row.
    pub fn parse(&self, path: &Path) -> Result<Map<String, Value>> {
        match &self.content {
            Content::Json(row) => row.parse(path),
            Content::Record(row) => row.parse(path),
            Content::Line(row) => row.parse(path),
            Content::Parquet(row) => row.parse(path, self.number),
            Content::ParquetTooLong => {
                let message = format!("row {}: it is longer than {} MiB", self.number, MAX_ROW >> 20);
                Err(Error::file(path, message).with_help("remove the row, or split it"))
            }
            Content::Unreadable(row) => Err(row.error(path)),
        }
    }

    /// The error of what the row means, at the value that it names, as far as its kind of file can tell where that is.
    pub fn row_error(&self, path: &Path, error: RowError) -> Error {
        match &self.content {
            Content::Json(row) => row.row_error(path, error),
            Content::Record(row) => row.row_error(path, error),
            Content::Line(row) => {
                let report = row.place.error(path, &row.bytes, 0, 1, error.message);
                report.with_help(error.help.as_deref().unwrap_or("fix the line, or remove it"))
            }
            Content::Parquet(_) | Content::ParquetTooLong => {
                let report = Error::file(path, format!("row {}: {}", self.number, error.message));
                report.with_help(error.help.as_deref().unwrap_or("fix the row, or remove it"))
            }
            Content::Unreadable(row) => row.error(path),
        }
    }

    /// The error of what the row became later, put at the row.
    pub fn place(&self, path: &Path, error: Error) -> Error {
        match error {
            Error::Invalid { message, help } => self.row_error(path, RowError { help, ..RowError::new([], message) }),
            other => other,
        }
    }
}

impl TextLine {
    /// One field, `text`.
    fn parse(&self, path: &Path) -> Result<Map<String, Value>> {
        let line = text(&self.bytes)
            .map_err(|(at, message)| self.place.error(path, &self.bytes, at, 1, message).with_help(ENCODING_HELP))?;
        Ok(Map::from_iter([("text".to_string(), Value::String(line.to_string()))]))
    }
}

impl Unreadable {
    fn error(&self, path: &Path) -> Error {
        self.place.error(path, &self.bytes, 0, 1, self.message.clone()).with_help(self.help.clone())
    }
}
