//! Parquet, row by row: a row group is open at a time, and of it a few pages a column. Of columns that nobody needs no page is
//! read.
//!
//! The reader itself is the `parquet` crate's, which believes what a file claims and panics where that is false. So a file's
//! claims are checked before (`claims`), its pages while they are read (`pages`), and what still panics becomes an error
//! ([`quiet`](crate::data::quiet)).

mod claims;
mod pages;
mod projection;

use super::MAX_ROW;
use super::row::{Content, RawRow};
use crate::data::quiet::quietly;
use crate::error::{Error, Result};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::{ReaderIter, TreeBuilder};
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::{ColumnPath, SchemaDescPtr};
use pages::CheckedGroup;
use projection::Projection;
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of a column that are decoded at a time: few, because one may hold much.
const BATCH: usize = 32;

/// A Parquet file.
pub(super) struct ParquetFile {
    path: PathBuf,
    file: SerializedFileReader<File>,
    group: usize,
    rows: Option<ReaderIter>,
    read: usize,
    total: u64,
    columns: Arc<Columns>,
    /// The columns that are read.
    schema: SchemaDescPtr,
}

/// The columns of a file, and those of them that nobody needs.
#[derive(Debug, Default)]
struct Columns {
    names: Vec<String>,
    left_out: Vec<String>,
}

/// A row of a Parquet file.
pub(super) struct ParquetRow {
    row: Row,
    columns: Arc<Columns>,
}

impl ParquetFile {
    /// Reads and checks what the file says about itself.
    ///
    /// # Errors
    /// When it is not a Parquet file, or cut, or damaged, or has no columns.
    pub fn open(path: &Path, file: File) -> Result<Self> {
        claims::check(path, &file)?;
        let file = tried(path, || SerializedFileReader::new(file))?;
        let metadata = file.metadata();
        for group in metadata.row_groups() {
            if group.num_rows() < 0 {
                return Err(damaged(path, "its columns are not of one length"));
            }
            if group.num_columns() == 0 {
                return Err(Error::file(path, "is a Parquet file without columns"));
            }
        }
        let total = metadata.row_groups().iter().map(|group| group.num_rows() as u64).fold(0, u64::saturating_add);
        let schema = metadata.file_metadata().schema_descr_ptr();
        let names = schema.root_schema().get_fields().iter().map(|field| field.name().to_string()).collect();
        let columns = Arc::new(Columns { names, left_out: Vec::new() });
        Ok(Self { path: path.to_path_buf(), file, group: 0, rows: None, read: 0, total, columns, schema })
    }

    /// The names of the columns.
    pub fn columns(&self) -> &[String] {
        &self.columns.names
    }

    /// Whether there is no row.
    pub const fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Reads no other columns from here on.
    ///
    /// # Errors
    /// When a column that is needed is of a type that is not read: names the column and the type.
    pub fn select(&mut self, needs: &dyn Fn(&str) -> bool) -> Result<()> {
        let whole = self.file.metadata().file_metadata().schema_descr_ptr();
        let Projection { schema, left_out } =
            tried(&self.path, || Projection::new(&whole, needs))?.map_err(|refused| {
                let message =
                    format!("the column `{}` is of the type {}, which is not read", refused.column, refused.kind);
                Error::file(&self.path, message)
                    .with_help("write it as text, or take a format or a template that does not read it")
            })?;
        self.schema = schema;
        self.columns = Arc::new(Columns { names: self.columns.names.clone(), left_out });
        Ok(())
    }

    /// Checks that the columns of a row group that are read have one value a row, where they have no lists.
    fn check_lengths(&self, group: usize) -> Result<()> {
        let group = self.file.metadata().row_group(group);
        let read = |path: &ColumnPath| self.schema.columns().iter().any(|column| column.path() == path);
        let mut flat = group.columns().iter().filter(|column| column.column_descr().max_rep_level() == 0);
        if flat.any(|column| column.num_values() != group.num_rows() && read(column.column_path())) {
            return Err(damaged(&self.path, "its columns are not of one length"));
        }
        Ok(())
    }

    /// The share of the rows that are read.
    pub fn share_read(&self) -> f64 {
        if self.total == 0 { 1.0 } else { self.read as f64 / self.total as f64 }
    }

    /// The next row; `None` at the end.
    ///
    /// # Errors
    /// When the file is damaged from here on.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        loop {
            if let Some(rows) = &mut self.rows {
                if let Some(row) = tried(&self.path, || rows.next().transpose())? {
                    self.read += 1;
                    let row = ParquetRow { row, columns: self.columns.clone() };
                    let content =
                        if row.size() > MAX_ROW { Content::ParquetTooLong } else { Content::Parquet(Box::new(row)) };
                    return Ok(Some(RawRow::new(self.read, content)));
                }
                self.rows = None;
            }
            if self.group >= self.file.num_row_groups() {
                return Ok(None);
            }
            self.check_lengths(self.group)?;
            let (file, group, schema) = (&self.file, self.group, self.schema.clone());
            self.rows = Some(tried(&self.path, || {
                let group = CheckedGroup(file.get_row_group(group)?);
                TreeBuilder::new().with_batch_size(BATCH).as_iter(schema, &group)
            })?);
            self.group += 1;
        }
    }
}

impl ParquetRow {
    /// About how many bytes it holds.
    pub fn size(&self) -> usize {
        self.row.get_column_iter().map(|(name, field)| name.len() + size(field)).sum()
    }

    /// The row's columns by name: groups as objects, lists as lists, dates and decimals as text, null where nobody needs them.
    /// Inside of others bytes that are not text are null too.
    ///
    /// # Errors
    /// When a column holds bytes that are not text.
    pub fn parse(&self, path: &Path, number: usize) -> Result<Map<String, Value>> {
        // Dates that no calendar has make the crate panic.
        let row = quietly(|| self.object());
        let row = row.unwrap_or_else(|| Err("a value is out of any range".to_string()));
        row.map_err(|message| {
            let message = format!("row {number}: {message}");
            Error::file(path, message).with_help("write the column as text, or fix the row, or remove it")
        })
    }

    fn object(&self) -> Result<Map<String, Value>, String> {
        let mut row = Map::with_capacity(self.columns.names.len());
        for (name, field) in self.row.get_column_iter() {
            let read = match field {
                Field::Bytes(bytes) => text(bytes.data()).ok_or_else(|| {
                    format!("the column `{name}` is of bytes, and these {} are not UTF-8 text", bytes.len())
                }),
                field => value(field).map_err(|message| format!("`{name}`: {message}")),
            };
            row.insert(name.clone(), read?);
        }
        row.extend(self.columns.left_out.iter().map(|name| (name.clone(), Value::Null)));
        Ok(row)
    }
}

/// Runs what reads the file, and makes what goes wrong an error of it.
fn tried<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
    match quietly(read) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) if error.to_string().contains("isabled feature") => {
            Err(Error::file(path, "is compressed in a way that is not read here (brotli)")
                .with_help("write it again with zstd or snappy"))
        }
        Some(Err(ParquetError::NYI(message))) => {
            Err(Error::file(path, format!("holds what is not read here: {message}"))
                .with_help("write it again with plain columns, or as JSON Lines"))
        }
        Some(Err(error)) => {
            let message = error.to_string();
            Err(damaged(path, message.split_once(": ").map_or(message.as_str(), |(_, message)| message)))
        }
        None => Err(damaged(path, "its parts do not fit together")),
    }
}

fn damaged(path: &Path, message: &str) -> Error {
    let message: String = message.chars().take(300).collect();
    Error::file(path, format!("is a damaged Parquet file: {message}")).with_help("copy or download it again")
}

/// Bytes as text, where they are UTF-8.
fn text(bytes: &[u8]) -> Option<Value> {
    std::str::from_utf8(bytes).ok().map(Value::from)
}

fn object(row: &Row) -> Result<Map<String, Value>, String> {
    row.get_column_iter().map(|(name, field)| Ok((name.clone(), value(field)?))).collect()
}

fn value(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::from(*value),
        Field::Byte(value) => Value::from(*value),
        Field::Short(value) => Value::from(*value),
        Field::Int(value) => Value::from(*value),
        Field::Long(value) => Value::from(*value),
        Field::UByte(value) => Value::from(*value),
        Field::UShort(value) => Value::from(*value),
        Field::UInt(value) => Value::from(*value),
        Field::ULong(value) => Value::from(*value),
        // The shortest digits that mean this number, not those of the double next to it.
        Field::Float16(value) => float(value.to_string().parse().unwrap_or(f64::NAN)),
        Field::Float(value) => float(value.to_string().parse().unwrap_or(f64::NAN)),
        Field::Double(value) => float(*value),
        Field::Str(text) => Value::from(text.as_str()),
        // A picture beside the texts of a turn, say.
        Field::Bytes(bytes) => text(bytes.data()).unwrap_or(Value::Null),
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => list.elements().iter().map(value).collect::<Result<Vec<_>, _>>()?.into(),
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, entry) in map.entries() {
                let key = match value(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                object.insert(key, value(entry)?);
            }
            Value::Object(object)
        }
        Field::TimestampMillis(value) => moment(*value, 1_000)?,
        Field::TimestampMicros(value) => moment(*value, 1_000_000)?,
        other => Value::from(other.to_string()),
    })
}

/// A moment as ISO 8601 has it, without a zone: the file may mean one or none. `parts` are those of a second.
fn moment(value: i64, parts: i64) -> Result<Value, String> {
    let (seconds, rest) = (value.div_euclid(parts), value.rem_euclid(parts));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let day = Field::Date(i32::try_from(days).map_err(|_| "a moment is out of any range".to_string())?);
    let digits = parts.ilog10() as usize;
    let part = if rest == 0 { String::new() } else { format!(".{rest:0digits$}") };
    Ok(Value::from(format!("{day}T{:02}:{:02}:{:02}{part}", second / 3600, second / 60 % 60, second % 60)))
}

/// JSON has neither infinities nor NaN: they become null.
fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn size(field: &Field) -> usize {
    size_of::<Field>()
        + match field {
            Field::Str(text) => text.len(),
            Field::Bytes(bytes) => bytes.len(),
            Field::Group(row) => row.get_column_iter().map(|(name, field)| name.len() + size(field)).sum(),
            Field::ListInternal(list) => list.elements().iter().map(size).sum(),
            Field::MapInternal(map) => map.entries().iter().map(|(key, value)| size(key) + size(value)).sum(),
            _ => 0,
        }
}

#[cfg(test)]
pub(super) mod tests;
