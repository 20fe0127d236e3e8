//! Lines of text, each in bounded memory: the rows of JSON Lines and of plain text.

use super::MAX_ROW;
use super::compression::Input;
use super::json::JsonText;
use super::place::Place;
use super::row::{Content, RawRow, TextLine, Unreadable};
use crate::error::{Error, Located, Result};
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A row of JSON.
    Json,
    /// A row of one field.
    Text,
}

/// A file whose rows are lines.
pub(super) struct Lines {
    path: PathBuf,
    input: Input,
    meaning: Meaning,
    number: usize,
}

impl Lines {
    pub fn new(path: &Path, input: Input, meaning: Meaning) -> Self {
        Self { path: path.to_path_buf(), input, meaning, number: 0 }
    }

    /// The next line that is not blank; `None` at the end.
    ///
    /// # Errors
    /// When the file can be read no further.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        loop {
            let mut bytes = Vec::new();
            let ended = read_line(&mut self.input.reader, &mut bytes);
            let Some(complete) = ended.map_err(|error| self.input.error(&self.path, error))? else { return Ok(None) };
            self.number += 1;
            let place = Place::line(self.number);
            if !complete {
                return Ok(Some(RawRow::new(self.number, too_long(place, bytes, "line"))));
            }
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let content = match self.meaning {
                Meaning::Json => Content::Json(JsonText { place, bytes, in_array: false }),
                Meaning::Text => Content::Line(TextLine { place, bytes }),
            };
            return Ok(Some(RawRow::new(self.number, content)));
        }
    }
}

/// A row of more than [`MAX_ROW`] bytes, of which `bytes` are the first.
pub(super) fn too_long(place: Place, mut bytes: Vec<u8>, what: &str) -> Content {
    bytes.truncate(4 * Located::EXCERPT);
    bytes.shrink_to_fit();
    let message = format!("the {what} is longer than {} MiB", MAX_ROW >> 20);
    let help = "is this another kind of file? If not, remove the row, or split it".to_string();
    Content::Unreadable(Box::new(Unreadable { place, bytes, message, help }))
}

/// Reads up to and over the next line end. `None` at the end of the file; `false` when the line was longer than [`MAX_ROW`],
/// and only its start is kept.
fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    let (mut complete, mut read) = (true, 0);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok((read > 0).then_some(complete));
        }
        let newline = buffer.iter().position(|&byte| byte == b'\n');
        let part = &buffer[..newline.unwrap_or(buffer.len())];
        if complete && line.len() + part.len() > MAX_ROW {
            complete = false;
            line.extend_from_slice(&part[..part.len().min(4 * Located::EXCERPT)]);
            line.truncate(4 * Located::EXCERPT);
            line.shrink_to_fit();
        }
        if complete {
            line.extend_from_slice(part);
        }
        let taken = part.len() + usize::from(newline.is_some());
        read += taken;
        reader.consume(taken);
        if newline.is_some() {
            return Ok(Some(complete));
        }
    }
}

/// The error of a file that broke off inside a row.
pub(super) fn with_cut_help(error: Error) -> Error {
    error.with_help("the file may have been cut short; copy or write it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Read};

    #[test]
    fn an_endless_line_is_passed_over_in_bounded_memory() {
        let endless = std::io::repeat(b'x').take(3 * MAX_ROW as u64).chain(&b"\nnext\n"[..]);
        let mut reader = BufReader::with_capacity(1 << 20, endless);
        let mut line = Vec::new();
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), Some(false));
        assert!(line.capacity() <= 8 * Located::EXCERPT);
        line.clear();
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), Some(true));
        assert_eq!(line, b"next");
        assert_eq!(read_line(&mut reader, &mut line).unwrap(), None);
    }
}
