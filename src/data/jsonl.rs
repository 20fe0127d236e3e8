//! JSON Lines, read one line at a time in bounded memory. It knows nothing of formats.

use super::formats::{RowError, Step};
use crate::error::{Error, Located, Result};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The most bytes of one line.
pub const MAX_LINE: usize = 64 << 20;

/// A file of JSON Lines, open for reading.
pub struct JsonLines<R> {
    path: PathBuf,
    reader: R,
    number: usize,
}

/// One line that is not blank, as it stands in the file.
pub struct Line {
    /// From 1.
    pub number: usize,
    /// Without the line's end, and without the mark that some editors put at the start of a file.
    bytes: Vec<u8>,
}

impl JsonLines<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// When there is no such file, when it is a folder, or when it may not be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::file(path, "there is no such file")
                .with_help("check the path; data files are JSON Lines, one object a line"),
            _ => Error::io("open", path)(error),
        })?;
        if file.metadata().map_err(Error::io("read", path))?.is_dir() {
            return Err(Error::file(path, "is a folder, and a JSON Lines file is needed")
                .with_help("name one file; several can be joined with `cat`"));
        }
        Ok(Self::new(path, BufReader::with_capacity(1 << 20, file)))
    }
}

impl<R: BufRead> JsonLines<R> {
    /// Lines from any reader; `path` is what errors name.
    pub fn new(path: impl Into<PathBuf>, reader: R) -> Self {
        Self { path: path.into(), reader, number: 0 }
    }

    /// The next line that is not blank; `None` at the end.
    ///
    /// # Errors
    /// When the system fails to read, or when a line is longer than [`MAX_LINE`].
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let mut bounded = (&mut self.reader).take(MAX_LINE as u64 + 2);
            if bounded.read_until(b'\n', &mut bytes).map_err(Error::io("read", &self.path))? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
            if self.number == 1 && bytes.starts_with(b"\xEF\xBB\xBF") {
                bytes.drain(..3);
            }
            if bytes.len() > MAX_LINE {
                bytes.truncate(4 * Located::EXCERPT);
                let line = Line { number: self.number, bytes };
                let message = format!("the line is longer than {} MiB", MAX_LINE >> 20);
                let error = line.error(&self.path, 0, 1, message);
                return Err(error.with_help("JSON Lines has one object a line; is this another kind of file?"));
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(Line { number: self.number, bytes }));
            }
        }
    }
}

impl Line {
    /// Bytes that the line holds.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The object on the line.
    ///
    /// # Errors
    /// When the line is no UTF-8, holds a NUL, or is no JSON object: names the line and the column.
    pub fn parse(&self, path: &Path) -> Result<Map<String, Value>> {
        if let Some(at) = self.bytes.iter().position(|&byte| byte == 0) {
            return Err(self.foreign(path, at, "the line holds a NUL byte, so this is no text".to_string()));
        }
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to();
            self.foreign(path, at, format!("the byte 0x{:02x} is not valid UTF-8", self.bytes[at]))
        })?;
        match serde_json::from_str(text) {
            Ok(Value::Object(row)) => Ok(row),
            Ok(other) => {
                let message = format!("a row must be a JSON object, got {}", kind_of_row(&other));
                Err(self.error(path, leading_space(text), 1, message).with_help(
                    "JSON Lines has one object a line; a JSON array of rows becomes that with `jq -c '.[]' rows.json`",
                ))
            }
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                let at = error.column().saturating_sub(1).min(text.len());
                let report = self.error(path, at, 1, format!("not valid JSON: {reason}"));
                Err(if matches!(text.trim(), "[" | "{") {
                    report.with_help("one row must stand on one line: `jq -c '.[]' rows.json > rows.jsonl` makes it so")
                } else {
                    report.with_help("mend the line, or remove it")
                })
            }
        }
    }

    /// The error of a row, at the value that it names or, where that is missing, at the object that lacks it.
    pub fn row_error(&self, path: &Path, error: RowError) -> Error {
        let (at, width) = locate(&self.bytes, &error.path);
        let width = String::from_utf8_lossy(&self.bytes[at..at + width]).chars().count();
        let report = self.error(path, at, width, error.message);
        match error.help {
            Some(help) => report.with_help(help),
            None => report.with_help("mend the row, or remove it"),
        }
    }

    /// The error of what a row became later, put at the row.
    pub fn place(&self, path: &Path, error: Error) -> Error {
        match error {
            Error::Invalid { message, help } => self.row_error(path, RowError { path: Vec::new(), message, help }),
            other => other,
        }
    }

    /// An error at a byte of the line.
    fn error(&self, path: &Path, at: usize, width: usize, message: String) -> Error {
        let before = String::from_utf8_lossy(&self.bytes[..at.min(self.bytes.len())]);
        let column = before.chars().count() + 1;
        let text = Located::excerpt(&String::from_utf8_lossy(&self.bytes), column);
        let width = width.clamp(1, Located::EXCERPT / 2);
        let path = path.to_path_buf();
        Error::Located(Box::new(Located { path, line: self.number, column, width, text, message, help: None }))
    }

    /// The error of a file that is no JSON Lines at all, or in another encoding.
    fn foreign(&self, path: &Path, at: usize, message: String) -> Error {
        let help = match &self.bytes[..] {
            [0x1F, 0x8B, ..] => "the file is compressed with gzip; unpack it first",
            [b'P', b'A', b'R', b'1', ..] => "the file is Parquet; convert it to JSON Lines first",
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "the file is UTF-16; save it as UTF-8",
            _ => "data files are JSON Lines in UTF-8; `iconv -f latin1 -t utf-8` converts other text",
        };
        self.error(path, at, 1, message).with_help(help)
    }
}

fn kind_of_row(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn leading_space(text: &str) -> usize {
    text.len() - text.trim_start().len()
}

/// Where a value of a JSON text lies: first byte and length. Follows `path` as far as it goes; the last object or list on
/// the way stands for what is missing in it. The text must be valid JSON, or the answer is merely somewhere within it.
fn locate(text: &[u8], path: &[Step]) -> (usize, usize) {
    let start = skip_space(text, 0);
    let mut at = start;
    for step in path {
        match enter(text, at, step) {
            Some(next) => at = next,
            None => return (at.min(text.len()), usize::from(at < text.len())),
        }
    }
    let end = if path.is_empty() { at + 1 } else { skip_value(text, at) };
    (at.min(text.len()), end.min(text.len()).saturating_sub(at))
}

/// The place of the value that `step` leads to, from the object or list at `at`.
fn enter(text: &[u8], at: usize, step: &Step) -> Option<usize> {
    let mut at = skip_space(text, at + 1);
    let mut index = 0;
    while at < text.len() && !matches!(text[at], b'}' | b']') {
        let fits = if let Step::Key(key) = step {
            let end = skip_value(text, at);
            let fits = text.get(at + 1..end.saturating_sub(1)) == Some(key.as_bytes());
            at = skip_space(text, skip_space(text, end) + 1); // past the colon
            fits
        } else {
            *step == Step::Index(index)
        };
        if fits {
            return Some(at);
        }
        index += 1;
        at = skip_space(text, skip_value(text, at));
        if text.get(at) == Some(&b',') {
            at = skip_space(text, at + 1);
        }
    }
    None
}

fn skip_space(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// The place behind the value at `at`; always further on.
fn skip_value(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at < text.len() {
        match text[at] {
            b'"' => {
                at += 1;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            byte if depth == 0 => {
                let plain = |byte: &u8| !matches!(byte, b',' | b'}' | b']' | b':') && !byte.is_ascii_whitespace();
                let more = text[at..].iter().take_while(|byte| plain(byte)).count();
                return at + more.max(usize::from(byte != 0)).max(1);
            }
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::{FORMATS, Row};
    use proptest::prelude::*;

    fn lines(bytes: &[u8]) -> JsonLines<&[u8]> {
        JsonLines::new("rows.jsonl", bytes)
    }

    fn failure(bytes: &[u8]) -> Located {
        let mut reader = lines(bytes);
        loop {
            let line = reader.next_line().unwrap().expect("a line that fails");
            match line.parse(Path::new("rows.jsonl")) {
                Ok(_) => {}
                Err(Error::Located(located)) => return *located,
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn blank_lines_marks_and_carriage_returns_are_accepted() {
        let mut reader = lines(b"\xEF\xBB\xBF{\"a\": 1}\r\n\n  \t\r\n{\"a\": 2}");
        for (number, value) in [(1, 1), (4, 2)] {
            let line = reader.next_line().unwrap().unwrap();
            assert_eq!(line.number, number);
            assert_eq!(line.parse(Path::new("x")).unwrap()["a"], value);
        }
        assert!(reader.next_line().unwrap().is_none());
    }

    #[test]
    fn broken_lines_are_named_with_their_column() {
        let json = failure("{\"a\": 1}\n\n{\"ä\": oops}\n".as_bytes());
        assert_eq!((json.line, json.column), (3, 7), "{json}");
        assert_eq!(json.text, "{\"ä\": oops}");
        let utf8 = failure(b"{\"a\": \"b\xFFc\"}");
        assert_eq!((utf8.line, utf8.column), (1, 9));
        assert!(utf8.message.contains("0xff"));
        assert!(failure(b"{\"a\": \"\0\"}").message.contains("NUL"));
        assert!(failure(b"[1, 2]").help.unwrap().contains("jq"));
        assert!(failure(b"[\n{}\n]").help.unwrap().contains("jq"));
        assert!(failure(b"\x1F\x8B\x08\0").help.unwrap().contains("gzip"));
        assert!(failure(b"{\"a\": 1").message.contains("EOF"));
    }

    #[test]
    fn a_long_line_is_cut_around_its_column() {
        let mut text = format!("{{\"a\": \"{}\", ", "é".repeat(5000));
        text.push_str("oops");
        text.push_str(&"x".repeat(5000));
        let located = failure(text.as_bytes());
        assert_eq!(located.text.chars().count(), Located::EXCERPT);
        assert_eq!(located.text.chars().nth(located.text_column() - 1), Some('o'));
    }

    #[test]
    fn an_endless_line_is_an_error_in_bounded_memory() {
        let endless = BufReader::new(std::io::repeat(b'x'));
        let error = JsonLines::new("big", endless).next_line().err().unwrap();
        assert!(error.to_string().contains("longer than 64 MiB"), "{error}");
    }

    #[test]
    fn a_row_error_points_at_its_value() {
        let text = r#" {"x": {"role": "no"}, "messages": [{"role": "a\"]", "content": 1.5}, {"role" : "bot"}]}"#;
        let line = Line { number: 7, bytes: text.as_bytes().to_vec() };
        let cases: [(Vec<Step>, &str); 5] = [
            (vec![], "{"),
            (vec!["messages".into(), 0.into(), "content".into()], "1.5"),
            (vec!["messages".into(), 1.into(), "role".into()], "\"bot\""),
            (vec!["messages".into(), 1.into(), "content".into()], "{"),
            (vec!["x".into()], r#"{"role": "no"}"#),
        ];
        for (path, expected) in cases {
            let error = line.row_error(Path::new("x"), RowError::new(path, "wrong"));
            let Error::Located(located) = error else { panic!("a place") };
            let marked: String = located.text.chars().skip(located.column - 1).take(located.width).collect();
            assert_eq!(marked, expected);
        }
    }

    #[test]
    fn missing_files_and_folders_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = JsonLines::open(&folder.path().join("no.jsonl")).err().unwrap();
        assert!(missing.to_string().contains("no such file"), "{missing}");
        assert!(JsonLines::open(folder.path()).err().unwrap().to_string().contains("is a folder"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_or_a_format_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            read_all(&bytes);
        }

        #[test]
        fn no_json_makes_a_format_panic(
            text in r#"(\{"(messages|prompt|instruction|output|completion)": ?(\[\{"role": "(user|assistant)", "content": ("é"|1|null)\}\]|"a"|3)(, "output": "b"|, "completion": \[\])?\}\n?){1,4}"#,
            cut in 0usize..200,
        ) {
            let bytes = text.as_bytes();
            read_all(bytes);
            read_all(&bytes[..cut.min(bytes.len())]);
        }

        #[test]
        fn locating_stays_within_the_text(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            for path in [vec![], vec!["a".into()], vec![Step::Index(1), "a".into()]] {
                let (at, width) = locate(&bytes, &path);
                prop_assert!(at + width <= bytes.len());
            }
        }
    }

    fn read_all(bytes: &[u8]) {
        let mut reader = lines(bytes);
        while let Ok(Some(line)) = reader.next_line() {
            if let Ok(row) = line.parse(Path::new("rows.jsonl")) {
                for format in FORMATS {
                    if let Err(error) = format.read(Row::new(&row)) {
                        assert!(!line.row_error(Path::new("rows.jsonl"), error).to_string().is_empty());
                    }
                }
            }
        }
    }
}
