//! Writing to stdout, and numbers as people read them.

use crate::error::{Error, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// Writes a line to stderr. That nobody listens there is not a reason to end a run.
pub(super) fn say(line: &str) {
    let line = match width(&console::Term::stderr()) {
        Some(width) => wrapped(line, width),
        None => line.to_owned(),
    };
    let _ = writeln!(io::stderr(), "{line}");
}

/// The columns of a terminal; `None` where there is none.
pub(super) fn width(terminal: &console::Term) -> Option<usize> {
    terminal.size_checked().filter(|_| terminal.is_term()).map(|(_, columns)| usize::from(columns))
}

/// Lines broken between words to fit so many columns; a word that does not fit stays whole. What follows a label
/// (`label  text`), or is indented, goes on below itself.
pub(super) fn wrapped(text: &str, width: usize) -> String {
    let wrap = |line: &str| {
        let start = line.len() - line.trim_start().len();
        let label = line[start..].find("  ").map(|end| start + end).filter(|end| *end <= 24);
        let text_start = label.map_or(start, |end| end + line[end..].len() - line[end..].trim_start().len());
        let indent = " ".repeat(textwrap::core::display_width(&line[..text_start]));
        if textwrap::core::display_width(line) <= width {
            return line.to_owned();
        }
        let (label, rest) = line.split_at(text_start);
        let indent = if indent.len() + 16 > width { "" } else { indent.as_str() };
        let options = textwrap::Options::new(width).break_words(false).initial_indent(label).subsequent_indent(indent);
        // No break within a command's options, or a path.
        let options = options.word_splitter(textwrap::WordSplitter::NoHyphenation);
        let options = options.word_separator(textwrap::WordSeparator::AsciiSpace);
        textwrap::fill(rest, options)
    };
    text.split('\n').map(wrap).collect::<Vec<_>>().join("\n")
}

/// stdout, on which a reader who leaves early (`| head`) is not an error.
pub(super) struct Stdout {
    failed: Option<io::Error>,
}

impl Stdout {
    pub fn new() -> Self {
        Self { failed: None }
    }

    /// Writes at once, unless an earlier write failed.
    pub fn text(&mut self, text: &str) -> &mut Self {
        if self.failed.is_none() {
            let fitting = width(&console::Term::stdout()).map(|width| wrapped(text, width));
            let mut stdout = io::stdout().lock();
            let text = fitting.as_deref().unwrap_or(text);
            self.failed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
        }
        self
    }

    /// Writes one line of JSON: `value`, an object, behind an `event` of this name.
    pub fn json(&mut self, event: &str, value: &impl Serialize) -> &mut Self {
        let mut line = serde_json::json!({ "event": event });
        if let (Some(line), Ok(serde_json::Value::Object(value))) = (line.as_object_mut(), serde_json::to_value(value))
        {
            line.extend(value);
        }
        self.text(&format!("{line}\n"))
    }

    /// What went wrong, if anything did.
    ///
    /// # Errors
    /// When stdout could not be written for another reason than that its reader left.
    pub fn finish(&mut self) -> Result<()> {
        match self.failed.take() {
            Some(error) if !reader_left(&error) => Err(Error::io("write", "stdout")(error)),
            _ => Ok(()),
        }
    }
}

/// Whether nobody reads stdout any more: the other end of a pipe, or a terminal that was closed.
fn reader_left(error: &io::Error) -> bool {
    let terminal = || {
        rustix::fs::fstat(io::stdout())
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device())
    };
    let hung_up = [rustix::io::Errno::IO, rustix::io::Errno::NXIO].map(|errno| Some(errno.raw_os_error()));
    error.kind() == io::ErrorKind::BrokenPipe || (hung_up.contains(&error.raw_os_error()) && terminal())
}

/// Rows as columns, each as wide as its widest cell, with two spaces between them.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |cell| cell.chars().count());
    let widths: Vec<usize> =
        (0..count).map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Whether to color what goes to `stream`: on a terminal, unless `NO_COLOR` is set or the terminal is a dumb one.
pub(super) fn colors(stream: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// `1.4 GiB`, `812 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB"] {
        if value < 1024.0 {
            return if value < 10.0 && unit != "B" {
                format!("{value:.1} {unit}")
            } else {
                format!("{value:.0} {unit}")
            };
        }
        value /= 1024.0;
    }
    format!("{value:.1} GiB")
}

/// `134.5 M`, `656 k`, `12`.
pub(super) fn count(number: usize) -> String {
    let value = number as f64;
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{:.0} k", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.2} B", value / 1e9),
    }
}

/// `2h 03m`, `2m 31s`, `4.2s`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        _ => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
    }
}

/// A text that others wrote, with what would steer a terminal taken out. Line breaks and tabs stay.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

/// A word for a shell: in single quotes where it needs them.
pub(super) fn quoted(word: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(bare) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Lines of a label and a text, the texts in one column.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<(String, String)>,
}

impl Table {
    /// Adds a row; the further lines of `text` go below its first.
    pub fn row(&mut self, label: impl Into<String>, text: impl Into<String>) -> &mut Self {
        self.rows.push((label.into(), text.into()));
        self
    }

    pub fn render(&self) -> String {
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        for (label, text) in &self.rows {
            for (number, line) in text.lines().enumerate() {
                let label = if number == 0 { label.as_str() } else { "" };
                let _ = writeln!(out, "{}", format!("{label:width$}  {line}").trim_end());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 1023, 1536, 812 << 20, 3 << 29].map(bytes), ["0 B", "1023 B", "1.5 KiB", "812 MiB", "1.5 GiB"]);
        assert_eq!([12, 656_000, 134_515_008, 7_000_000_000].map(count), ["12", "656 k", "134.5 M", "7.00 B"]);
        assert_eq!([0.04, 9.97, 59.6, 151.0, 7380.0].map(duration), ["0.0s", "10s", "1m 00s", "2m 31s", "2h 03m"]);
    }

    #[test]
    fn lines_break_between_words_below_themselves() {
        assert_eq!(wrapped("short", 20), "short");
        assert_eq!(
            wrapped("label   one two three four five\nnext", 24),
            "label   one two three\n        four five\nnext"
        );
        assert_eq!(wrapped("        one two three four five", 24), "        one two three\n        four five");
        assert_eq!(wrapped("note: one two three four", 16), "note: one two\nthree four");
        assert_eq!(wrapped("written  a/path/that/is/longer/than/that", 20), "written  a/path/that/is/longer/than/that");
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal_or_the_shell() {
        assert_eq!(printable("a\u{1b}[2Jb\tc\nd"), "a\u{fffd}[2Jb\tc\nd");
        assert_eq!(quoted("adapters/x"), "adapters/x");
        assert_eq!(quoted("what's $(this)?"), "'what'\\''s $(this)?'");
    }
}
