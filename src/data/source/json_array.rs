//! A JSON array, element by element: the array itself is never held, only the row at hand. And objects over several lines, one
//! after the other.
//!
//! Where elements begin and end, brackets and quotes alone decide; whether one is valid is its own affair.

use super::MAX_ROW;
use super::compression::Input;
use super::json::JsonText;
use super::lines::{too_long, with_cut_help};
use super::place::Place;
use super::row::{Content, RawRow};
use crate::error::{Error, Located, Result};
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// How rows stand in a file of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// As the elements of one array.
    Array,
    /// One after the other, with nothing or a comma between them.
    Objects,
}

/// A file that is one array, or objects one after the other.
pub(super) struct JsonArray {
    path: PathBuf,
    input: Input,
    shape: Shape,
    /// Where the reader is.
    place: Place,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the array.
    Start,
    /// Behind `[`.
    First,
    /// Behind a comma.
    Next,
    /// Behind an element.
    Between,
    /// Behind `]`.
    End,
}

/// How far into an element the reader is.
#[derive(Default)]
struct Scan {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl JsonArray {
    pub fn new(path: &Path, input: Input, shape: Shape) -> Self {
        Self { path: path.to_path_buf(), input, shape, place: Place::line(1), state: State::Start }
    }

    /// The next element; `None` at the end.
    ///
    /// # Errors
    /// When the file can be read no further, or when it is not an array from here on.
    pub fn next_row(&mut self) -> Result<Option<RawRow>> {
        loop {
            let Some(byte) = self.skip_space()? else {
                return match self.state {
                    State::Start | State::End => Ok(None),
                    _ if self.shape == Shape::Objects => Ok(None),
                    _ => Err(with_cut_help(self.error("the file ends before its array is closed: `]` is missing"))),
                };
            };
            self.state = match (self.state, byte) {
                (State::Between, b',') => self.over(byte, State::Next),
                (State::Start | State::Between | State::Next, b'{') if self.shape == Shape::Objects => {
                    return self.element().map(Some);
                }
                (_, _) if self.shape == Shape::Objects => {
                    return Err(self.error("the next row is expected here, as an object in braces"));
                }
                (State::Start, b'[') => self.over(byte, State::First),
                // A comma behind the last row does no harm.
                (State::First | State::Between | State::Next, b']') => self.over(byte, State::End),
                (State::Start, _) => return Err(self.error("a JSON array starts with `[`")),
                (State::Between, _) => {
                    return Err(self.error("`,` or `]` is expected after a row").with_help("fix the row before it"));
                }
                (State::First | State::Next, b',' | b'}') => {
                    return Err(self.error("a row is expected here").with_help("remove the comma that has no row"));
                }
                (State::First | State::Next, _) => return self.element().map(Some),
                (State::End, _) => {
                    let error = self.error("there is more behind the end of the array");
                    return Err(error.with_help("a `.json` file is one array of rows, or one object a line"));
                }
            };
        }
    }

    /// Moves over `byte`, which was seen and is at hand.
    fn over(&mut self, byte: u8, state: State) -> State {
        self.place.advance(&[byte]);
        self.input.reader.consume(1);
        state
    }

    /// The next byte that is not white space, not yet taken; `None` at the end.
    fn skip_space(&mut self) -> Result<Option<u8>> {
        loop {
            let buffer = match self.input.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Err(self.input.error(&self.path, error)),
            };
            let space = buffer.iter().take_while(|byte| is_space(**byte)).count();
            let next = buffer.get(space).copied();
            let ended = buffer.is_empty();
            self.place.advance(&buffer[..space]);
            self.input.reader.consume(space);
            if next.is_some() || ended {
                return Ok(next);
            }
        }
    }

    /// The element that begins here.
    fn element(&mut self) -> Result<RawRow> {
        let mut place = self.place.clone();
        let (mut scan, mut bytes, mut length) = (Scan::default(), Vec::new(), 0);
        loop {
            let buffer = match self.input.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) => return Err(self.input.error(&self.path, error)),
            };
            if buffer.is_empty() {
                return Err(self.broken_off(place, bytes, length <= MAX_ROW));
            }
            let (taken, ended) = scan.run(buffer);
            length += taken;
            if length <= MAX_ROW {
                bytes.extend_from_slice(&buffer[..taken]);
            } else if bytes.len() > 4 * Located::EXCERPT || bytes.is_empty() {
                bytes.extend_from_slice(&buffer[..taken.min(4 * Located::EXCERPT)]);
                bytes.truncate(4 * Located::EXCERPT);
                bytes.shrink_to_fit();
            }
            if ended {
                let rest = &buffer[taken..];
                let rest = &rest[..rest.len().min(4 * Located::EXCERPT)];
                place.after.extend(rest.iter().take_while(|byte| **byte != b'\n'));
            }
            self.place.advance(&buffer[..taken]);
            self.input.reader.consume(taken);
            if ended {
                break;
            }
        }
        self.state = State::Between;
        let line = place.line;
        Ok(RawRow::new(
            line,
            if length > MAX_ROW {
                too_long(place, bytes, "row")
            } else {
                Content::Json(JsonText { place, bytes, in_array: self.shape == Shape::Array })
            },
        ))
    }

    /// The error of an element that the file's end cuts: where it stops to be JSON, if it does so before.
    fn broken_off(&self, place: Place, bytes: Vec<u8>, whole: bool) -> Error {
        let text = JsonText { place, bytes, in_array: self.shape == Shape::Array };
        if whole
            && let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&text.bytes)
            && !error.is_eof()
            && let Err(error) = text.parse(&self.path)
        {
            return error.with_help("from here on, rows cannot be separated; fix this one");
        }
        let error = text.place.error(&self.path, &text.bytes, 0, 1, "the file ends inside the row that starts here");
        with_cut_help(error)
    }

    /// An error where the reader is.
    fn error(&mut self, message: &str) -> Error {
        let rest = self.input.reader.fill_buf().unwrap_or_default();
        let rest = &rest[..rest.len().min(4 * Located::EXCERPT)];
        self.place.error(&self.path, rest, 0, 1, message)
    }
}

impl Scan {
    /// Runs over bytes: how many belong to the element, and whether it ends there.
    fn run(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.in_text {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_text = true,
                b'{' | b'[' => self.depth += 1,
                b',' | b'}' | b']' if self.depth == 0 => return (at, true),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                byte if self.depth == 0 && is_space(byte) => return (at, true),
                _ => {}
            }
        }
        (bytes.len(), false)
    }
}

/// White space as JSON has it.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
