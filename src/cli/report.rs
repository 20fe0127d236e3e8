//! Errors as people see them: the message, the offending line with its neighbours and a mark, and what to do.

use super::output::{colors, printable};
use crate::error::{Error, Located};
use miette::{
    Diagnostic, GraphicalTheme, LabeledSpan, MietteError, MietteHandler, MietteHandlerOpts, MietteSpanContents,
    ReportHandler, SourceCode, SourceSpan, SpanContents,
};
use std::fmt;
use std::io::{IsTerminal, Read};

/// Columns where it is not a terminal that shows the report.
const PLAIN_WIDTH: usize = 120;
/// Files above this size are not read again for the lines around a mistake.
const MAX_BYTES: u64 = 1 << 20;
/// Lines shown before and after the offending one.
const CONTEXT: usize = 2;
/// The most characters of a neighbouring line.
const MAX_LINE: usize = 160;

/// How a report is drawn.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// Columns; those of the terminal if not said.
    pub width: Option<usize>,
    /// Lines and arrows in Unicode; ASCII where it is not a terminal that shows them.
    pub unicode: bool,
    /// Colors.
    pub colors: bool,
}

impl Look {
    pub fn of_stderr() -> Self {
        let stderr = std::io::stderr();
        let terminal = stderr.is_terminal();
        Self { width: (!terminal).then_some(PLAIN_WIDTH), unicode: terminal, colors: colors(&stderr) }
    }

    fn theme(&self) -> GraphicalTheme {
        match (self.unicode, self.colors) {
            (true, true) => GraphicalTheme::unicode(),
            (true, false) => GraphicalTheme::unicode_nocolor(),
            (false, _) => GraphicalTheme::none(),
        }
    }
}

/// The error as a text that ends with a line break.
pub(super) fn render(error: &Error, look: &Look) -> String {
    let report = Report::of(error);
    let options = MietteHandlerOpts::new()
        .graphical_theme(look.theme())
        .force_graphical(true)
        .context_lines(CONTEXT)
        .terminal_links(false)
        .without_syntax_highlighting();
    let handler = match look.width {
        Some(width) => options.width(width),
        None => options,
    }
    .build();
    format!("{}\n", Drawn { report: &report, handler }.to_string().trim_matches('\n'))
}

/// A report with how to draw it.
struct Drawn<'a> {
    report: &'a Report,
    handler: MietteHandler,
}

impl fmt::Display for Drawn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handler.debug(self.report, f)
    }
}

/// The error as a JSON object.
pub(super) fn as_json(error: &Error) -> serde_json::Value {
    match error {
        Error::Located(at) => serde_json::json!({
            "message": at.message, "help": at.help, "path": at.path, "line": at.line, "column": at.column,
        }),
        other => serde_json::json!({ "message": other.to_string(), "help": other.help() }),
    }
}

#[derive(Debug)]
struct Report {
    message: String,
    help: Option<String>,
    excerpt: Option<Excerpt>,
}

impl Report {
    fn of(error: &Error) -> Self {
        let (message, excerpt) = match error {
            Error::Located(located) => (located.message.clone(), Some(Excerpt::of(located))),
            other => (other.to_string(), None),
        };
        Self { message: printable(&message), help: error.help().map(printable), excerpt }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.excerpt.as_ref().map(|excerpt| excerpt as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let excerpt = self.excerpt.as_ref()?;
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(None, excerpt.span))))
    }
}

/// A few lines of a file, which know their numbers.
#[derive(Debug)]
struct Excerpt {
    name: String,
    text: String,
    /// The number of the first line of `text`, from 1.
    first_line: usize,
    /// What offends, in bytes of `text`.
    span: SourceSpan,
}

impl Excerpt {
    fn of(located: &Located) -> Self {
        let line = printable(&located.text);
        let (before, after) = neighbours(located).unwrap_or_default();
        let start: usize = before.iter().map(|line| line.len() + 1).sum();
        let byte = |column: usize| line.char_indices().nth(column).map_or(line.len(), |(at, _)| at);
        let (from, to) =
            (byte(located.column.saturating_sub(1)), byte(located.column.saturating_sub(1) + located.width));
        let first_line = located.line - before.len().min(located.line);
        let lines: Vec<String> = before.into_iter().chain([line]).chain(after).collect();
        // Control characters would let a file name write on the terminal.
        let name = printable(&located.path.display().to_string());
        Self { name, text: lines.join("\n") + "\n", first_line, span: (start + from, to - from).into() }
    }
}

/// The lines around the offending one, if the file still reads as the error says it did.
fn neighbours(located: &Located) -> Option<(Vec<String>, Vec<String>)> {
    let metadata =
        std::fs::metadata(&located.path).ok().filter(|metadata| metadata.is_file() && metadata.len() <= MAX_BYTES)?;
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    std::fs::File::open(&located.path).ok()?.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<&str> = text.lines().collect();
    let at = located.line.checked_sub(1)?;
    if *lines.get(at)? != located.text {
        return None;
    }
    let short =
        |lines: &[&str]| lines.iter().map(|line| printable(&line.chars().take(MAX_LINE).collect::<String>())).collect();
    let end = lines.len().min(at + 1 + CONTEXT);
    Some((short(&lines[at.saturating_sub(CONTEXT)..at]), short(&lines[at + 1..end])))
}

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let inner = self.text.read_span(span, before, after)?;
        let line = inner.line() + self.first_line.saturating_sub(1);
        let (data, span, count) = (inner.data(), *inner.span(), inner.line_count());
        // The header asks without context, and counts bytes; people and editors count characters.
        let line_start = self.text[..span.offset()].rfind('\n').map_or(0, |at| at + 1);
        let column = if before == 0 { self.text[line_start..span.offset()].chars().count() } else { inner.column() };
        Ok(Box::new(MietteSpanContents::new_named(self.name.clone(), data, span, line, column, count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Look = Look { width: Some(100), unicode: false, colors: false };

    fn located(path: &std::path::Path, line: usize, column: usize, width: usize, text: &str) -> Error {
        Error::Located(Box::new(Located {
            path: path.to_owned(),
            line,
            column,
            width,
            text: text.into(),
            message: "this is wrong".into(),
            help: Some("write:\nlora:\n  r: 16".into()),
        }))
    }

    #[test]
    fn the_line_is_shown_with_its_neighbours_and_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.yaml");
        std::fs::write(&path, "a: 1\nb: 2\nc: 3\nd: é 4\ne: 5\nf: 6\ng: 7\n").unwrap();
        let text = render(&located(&path, 4, 6, 1, "d: é 4"), &PLAIN);
        let text = text.replace(&folder.path().display().to_string(), "FOLDER");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn without_the_file_the_line_stands_alone_under_its_own_number() {
        let text = render(&located("gone.jsonl".as_ref(), 12_345, 3, 4, "{\"a\": \u{1b}[2J}"), &PLAIN);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn no_place_is_too_odd_to_draw() {
        for (line, column, width, text) in
            [(0, 0, 0, ""), (1, 1, 1, ""), (9, 500, 10, "short"), (1, 3, usize::MAX / 2, "ééé")]
        {
            let text = render(&located("--set".as_ref(), line, column, width, text), &PLAIN);
            assert!(text.contains("this is wrong") && text.contains("r: 16"), "{text}");
        }
    }

    #[test]
    fn errors_without_a_place_are_drawn_too() {
        let error = Error::file("adapters/x", "holds no adapter").with_help("run `equipoise train` first");
        insta::assert_snapshot!(render(&error, &PLAIN));
    }
}
