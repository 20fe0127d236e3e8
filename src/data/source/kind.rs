//! What kind of file a data file is.

use super::compression::{Input, START};
use super::foreign;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    JsonLines,
    JsonArray,
    /// Objects one after the other, each over several lines.
    JsonObjects,
    Csv,
    Tsv,
    Text,
    Parquet,
}

/// The names that are understood, for people.
pub(super) const NAMES: &str =
    "`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.txt` (each also with `.gz` or `.zst`) and `.parquet`";

/// What a name says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    As(Kind),
    /// JSON of either sort.
    Json,
}

impl Kind {
    /// The name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JsonLines => "JSON Lines",
            Self::JsonArray => "JSON array",
            Self::JsonObjects => "JSON objects",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Text => "text",
            Self::Parquet => "Parquet",
        }
    }

    /// The kind of a file that is not Parquet on the face of it.
    ///
    /// # Errors
    /// When neither the name nor the first bytes tell.
    pub fn of_text(path: &Path, input: &Input) -> Result<Self> {
        let first = input.start.iter().find(|byte| !byte.is_ascii_whitespace());
        match named(path) {
            // Some write an array under the name of lines.
            Some(Named::As(Self::JsonLines)) if first == Some(&b'[') => return Ok(Self::JsonArray),
            Some(Named::As(Self::JsonLines)) if spans_lines(&input.start) => return Ok(Self::JsonObjects),
            Some(Named::As(kind)) => return Ok(kind),
            Some(Named::Json) if input.start.is_empty() => return Ok(Self::JsonLines),
            _ => {}
        }
        match first {
            Some(b'{') if spans_lines(&input.start) => Ok(Self::JsonObjects),
            Some(b'{') => Ok(Self::JsonLines),
            Some(b'[') => Ok(Self::JsonArray),
            _ if named(path).is_some() => {
                Err(Error::file(path, "starts with neither `{` nor `[`, so it holds no rows of JSON")
                    .with_help("a `.json` file is an array of objects, or one object a line"))
            }
            _ => Err(foreign::of_name(path).map_or_else(
                || {
                    Error::file(path, "is of no kind that is read here, by its name or by its first bytes")
                        .with_help(format!("data files are named {NAMES}"))
                },
                |foreign| foreign.error(path),
            )),
        }
    }
}

/// Whether JSON begins with an object that goes on after the first line: that ends where one must, and no other object begins
/// below it.
fn spans_lines(start: &[u8]) -> bool {
    let mut lines = start.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return false };
    first.starts_with(b"{")
        && first.ends_with(b"{") | first.ends_with(b",") | first.ends_with(b"[")
        && !second.starts_with(b"{")
        && !(first.ends_with(b"},") && first.len() > 2)
}

/// Whether a name is that of plain text, which may begin with anything.
pub(super) fn is_plain_text(path: &Path) -> bool {
    named(path) == Some(Named::As(Kind::Text))
}

/// Whether a name is that of a data file.
pub(super) fn is_data_file(path: &Path) -> bool {
    named(path).is_some()
}

fn named(path: &Path) -> Option<Named> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let name = [".gz", ".gzip", ".zst", ".zstd"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension {
        "jsonl" | "ndjson" => Named::As(Kind::JsonLines),
        "json" => Named::Json,
        "csv" => Named::As(Kind::Csv),
        "tsv" => Named::As(Kind::Tsv),
        "txt" => Named::As(Kind::Text),
        "parquet" => Named::As(Kind::Parquet),
        _ => return None,
    })
}

/// Whether a file is Parquet: by its name or, where that says something else, by its first and last bytes.
///
/// # Errors
/// When it cannot be read.
pub(super) fn is_parquet(path: &Path, mut file: &File, length: u64) -> Result<bool> {
    let named = named(path) == Some(Named::As(Kind::Parquet));
    let (mut first, mut last) = ([0; 4], [0; 4]);
    if length < 12 {
        return Ok(named);
    }
    let mut read = || {
        file.read_exact(&mut first)?;
        file.seek(SeekFrom::End(-4))?;
        file.read_exact(&mut last)?;
        file.seek(SeekFrom::Start(0))
    };
    read().map_err(Error::io("read", path))?;
    if named && first != *b"PAR1" {
        let mut start = Vec::new();
        let mut read = || {
            file.take(START as u64).read_to_end(&mut start)?;
            file.seek(SeekFrom::Start(0))
        };
        read().map_err(Error::io("read", path))?;
        if let Some(foreign) = foreign::of_bytes(&start) {
            return Err(foreign.error(path));
        }
    }
    let packed = matches!(first, [0x1F, 0x8B, ..] | [0x28, 0xB5, 0x2F, 0xFD]);
    Ok(named && !packed || &first == b"PAR1" && &last == b"PAR1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_kinds_whatever_packs_them() {
        for (name, kind) in [
            ("a.jsonl", Some(Named::As(Kind::JsonLines))),
            ("A.JSONL.GZ", Some(Named::As(Kind::JsonLines))),
            ("a.b.ndjson.zst", Some(Named::As(Kind::JsonLines))),
            ("a.json", Some(Named::Json)),
            ("a.csv.gz", Some(Named::As(Kind::Csv))),
            ("a.tsv", Some(Named::As(Kind::Tsv))),
            ("a.txt", Some(Named::As(Kind::Text))),
            ("a-00000-of-00001.parquet", Some(Named::As(Kind::Parquet))),
            ("README.md", None),
            ("jsonl", None),
            ("a.gz", None),
        ] {
            assert_eq!(named(Path::new(name)), kind, "{name}");
        }
    }
}
