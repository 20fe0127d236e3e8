//! Where a row stands in a text file, and the errors that point there.

use crate::error::{Error, Located};
use std::path::Path;

/// How much of the line before a row is kept for an error to show: more than [`Located::EXCERPT`] characters.
const KEPT: usize = 4 * Located::EXCERPT + 4;

/// A place in a text file: where a row begins, with what it shares its first and last line with.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    /// From 1.
    pub line: usize,
    /// What stands before the row on its first line, or the end of that.
    pub before: Vec<u8>,
    /// Characters of that line in front of `before`. Where there are any, `before` has more than an excerpt.
    pub skipped: usize,
    /// What follows the row on its last line, as far as it was at hand.
    pub after: Vec<u8>,
}

impl Place {
    /// The start of a line.
    pub const fn line(line: usize) -> Self {
        Self { line, before: Vec::new(), skipped: 0, after: Vec::new() }
    }

    /// Bytes that it holds.
    pub const fn size(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Moves on behind `bytes`.
    pub fn advance(&mut self, bytes: &[u8]) {
        let rest = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => {
                self.line += newlines(bytes);
                self.before.clear();
                self.skipped = 0;
                &bytes[end + 1..]
            }
            None => bytes,
        };
        self.before.extend_from_slice(rest);
        if self.before.len() > 2 * KEPT {
            let mut cut = self.before.len() - KEPT;
            while cut > 0 && is_continuation(self.before[cut]) {
                cut -= 1;
            }
            self.skipped += self.before[..cut].iter().filter(|byte| !is_continuation(**byte)).count();
            self.before.drain(..cut);
        }
    }

    /// An error at byte `at` of the row that begins here and whose text is `bytes`.
    pub fn error(&self, path: &Path, bytes: &[u8], at: usize, width: usize, message: impl Into<String>) -> Error {
        let at = at.min(bytes.len());
        let start = bytes[..at].iter().rposition(|&byte| byte == b'\n').map(|newline| newline + 1);
        let end = bytes[at..].iter().position(|&byte| byte == b'\n').map(|newline| at + newline);
        let (mut shown, skipped) = if start.is_none() { (self.before.clone(), self.skipped) } else { (Vec::new(), 0) };
        shown.extend_from_slice(&bytes[start.unwrap_or(0)..at]);
        // The column in what is shown: the same as in the line but for the characters skipped, of which there are none
        // unless the excerpt starts behind them.
        let column = String::from_utf8_lossy(&shown).chars().count() + 1;
        let last = end.unwrap_or(bytes.len());
        shown.extend_from_slice(&bytes[at..last.min(at + 4 * Located::EXCERPT)]);
        if end.is_none() {
            shown.extend_from_slice(&self.after);
        }
        let shown = String::from_utf8_lossy(&shown);
        Error::Located(Box::new(Located {
            path: path.to_path_buf(),
            line: self.line + newlines(&bytes[..at]),
            column: skipped + column,
            width: width.clamp(1, Located::EXCERPT / 2),
            text: Located::excerpt(shown.trim_end_matches('\r'), column),
            message: message.into(),
            help: None,
        }))
    }
}

/// How many line ends there are.
pub(super) fn newlines(bytes: &[u8]) -> usize {
    count(bytes, b'\n')
}

const fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

/// What is wrong with bytes that are to be text: where, and what to say.
pub(super) fn text(bytes: &[u8]) -> Result<&str, (usize, String)> {
    if let Some(at) = bytes.iter().position(|&byte| byte == 0) {
        return Err((at, "there is a NUL byte, so this is not text in UTF-8; UTF-16 has such bytes".to_string()));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        (at, format!("the byte 0x{:02x} is not valid UTF-8", bytes[at]))
    })
}

/// What to do about text in another encoding.
pub(super) const ENCODING_HELP: &str = "data files are UTF-8; `iconv -f cp1252 -t utf-8 FILE` converts text of Windows or \
                                       Latin-1, and `iconv -f utf-16le -t utf-8 FILE` text with NUL bytes";

/// How often a byte stands in others.
#[expect(clippy::naive_bytecount, reason = "the compiler makes vectors of it; a crate for this is not worth its name")]
pub(super) fn count(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().filter(|&&byte| byte == wanted).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_place_far_along_a_line_shows_what_is_around_it() {
        let mut place = Place::line(3);
        let line = format!("{}x\n{}", "a\n", "é1".repeat(20_000));
        for part in line.as_bytes().chunks(777) {
            place.advance(part);
        }
        let Error::Located(located) = place.error(Path::new("p"), b"{oops}", 1, 4, "wrong") else { panic!("a place") };
        assert_eq!((located.line, located.column), (5, 40_002));
        let marked: String = located.text.chars().skip(located.text_column() - 1).take(4).collect();
        assert_eq!(marked, "oops");
        assert!(place.before.len() <= 2 * KEPT);
    }

    proptest! {
        #[test]
        fn columns_are_those_of_the_whole_line(lines in r"([aé\n]{0,9}|[é]{900,1000}){1,12}", row in r"[aé\n]{1,9}", at in 0usize..9) {
            let mut place = Place::line(1);
            place.advance(lines.as_bytes());
            let at = row.char_indices().map(|(at, _)| at).nth(at).unwrap_or(0);
            let Error::Located(located) = place.error(Path::new("p"), row.as_bytes(), at, 1, "x") else { panic!("a place") };
            let (whole, target) = (format!("{lines}{row}"), lines.len() + at);
            let start = whole[..target].rfind('\n').map_or(0, |newline| newline + 1);
            prop_assert_eq!(located.line, whole[..target].matches('\n').count() + 1);
            prop_assert_eq!(located.column, whole[start..target].chars().count() + 1);
            let line = whole[start..].split('\n').next().unwrap();
            prop_assert_eq!(&located.text, &Located::excerpt(line, located.column));
        }
    }
}
