//! What stands between the fields of a table, where nobody says it: found in the first records, or by the line `sep=;` that
//! Excel reads.

/// How many records are looked at.
const RECORDS: usize = 50;

/// What may stand between fields.
const CANDIDATES: [u8; 4] = [b',', b';', b'\t', b'|'];

/// The delimiter that a first line `sep=;` names, and that line's length with its end.
pub(super) fn declared(start: &[u8]) -> Option<(u8, usize)> {
    let line = start.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    let text = start[..line].strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(&start[..line]);
    let (name, delimiter) = text.split_at_checked(4)?;
    let end = if start[line..].starts_with(b"\r\n") { line + 2 } else { line + 1 };
    match delimiter {
        [byte] if name.eq_ignore_ascii_case(b"sep=") && byte.is_ascii() => Some((*byte, end)),
        _ => None,
    }
}

/// The delimiter of a table that starts with these bytes; `whole` where they are all of it. `columns` is how many there are,
/// where the recipe names them; `usual` is that of the file's name, and is taken where it may be right.
pub(super) fn tell(start: &[u8], whole: bool, columns: usize, usual: u8) -> u8 {
    let others = CANDIDATES.into_iter().filter(|candidate| *candidate != usual);
    let all: Vec<Seen> =
        std::iter::once(usual).chain(others).map(|byte| Seen::new(start, whole, columns, byte)).collect();
    let most = |fits: &dyn Fn(&Seen) -> bool| {
        let fitting = all[1..].iter().filter(|seen| fits(seen));
        fitting.max_by_key(|seen| seen.fields).map(|seen| seen.delimiter)
    };
    if all[0].even {
        return usual;
    }
    let even = most(&|seen| seen.even);
    let usual_cuts = all[0].cuts;
    even.or_else(|| if usual_cuts { None } else { most(&|seen| seen.cuts) }).unwrap_or(usual)
}

/// What a delimiter makes of the first records.
struct Seen {
    delimiter: u8,
    /// Fields of the first record.
    fields: usize,
    /// Whether it cuts the first record and all others into as many fields.
    even: bool,
    /// Whether it cuts the first record and half of the others.
    cuts: bool,
}

impl Seen {
    fn new(start: &[u8], whole: bool, columns: usize, delimiter: u8) -> Self {
        let counts = count(start, whole, delimiter);
        let fields = if columns > 0 { columns } else { counts.first().copied().unwrap_or(0) };
        let cut = counts.iter().filter(|count| **count > 1).count();
        Self {
            delimiter,
            fields,
            even: fields > 1 && !counts.is_empty() && counts.iter().all(|count| *count == fields),
            cuts: fields > 1 && 2 * cut >= counts.len() && cut > 0,
        }
    }
}

/// How many fields each of the first records has. A record that `start` cuts off is left out.
fn count(start: &[u8], whole: bool, delimiter: u8) -> Vec<usize> {
    let (mut counts, mut fields, mut quoted, mut at_start, mut blank) = (Vec::new(), 1, false, true, true);
    for &byte in start {
        match byte {
            b'"' if quoted || at_start => {
                quoted = !quoted;
                blank = false;
                // A quote inside of a quoted field is two: the second opens it again.
                at_start = !quoted;
            }
            _ if quoted => {}
            b'\r' | b'\n' => {
                if !blank {
                    counts.push(fields);
                }
                (fields, at_start, blank) = (1, true, true);
                if counts.len() == RECORDS {
                    return counts;
                }
            }
            _ if byte == delimiter => {
                fields += 1;
                (at_start, blank) = (true, false);
            }
            _ => {
                at_start = at_start && byte == b' ';
                blank = blank && byte.is_ascii_whitespace();
            }
        }
    }
    if whole && !blank {
        counts.push(fields);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_records_tell() {
        for (text, usual, expected) in [
            ("a,b\n1,2\n", b',', b','),
            ("instruction;output\nName a gas;Argon, a noble one\n", b',', b';'),
            ("a;b\n\"x;y\nz\";1,5\n2;2,5", b',', b';'),
            ("a\tb\nx, y\tz\n", b',', b'\t'),
            ("a|b\n1|2\n", b',', b'|'),
            ("a,b\nx;y,z;w\n", b',', b','),
            ("a,b\n1,2\n", b'\t', b','),
            ("text\none; two\nthree, four\n", b',', b','),
            // A field with the delimiter that is not quoted makes an error at its row, not another delimiter.
            ("a,b\n1,2,3\n4;5,6\n", b',', b','),
            ("a;b\n1;2;3\n4;5\n", b',', b';'),
            ("a\"b;c\n1;2\n", b',', b';'),
            ("", b',', b','),
        ] {
            assert_eq!(tell(text.as_bytes(), true, 0, usual) as char, expected as char, "{text}");
        }
        assert_eq!(tell(b"x;1,5\ny;2,5\n", true, 2, b','), b',', "as the name says, where both fit");
        assert_eq!(tell(b"x;y;1,5\nz;w;2,5\n", true, 3, b','), b';');
        assert_eq!(tell(b"a;b\n1;2\n3;", false, 0, b','), b';', "a record that is cut off tells nothing");
    }

    #[test]
    fn a_first_line_may_declare_it() {
        assert_eq!(declared(b"sep=;\r\na;b\n"), Some((b';', 7)));
        assert_eq!(declared(b"\"SEP=|\"\na|b\n"), Some((b'|', 8)));
        assert_eq!(declared(b"separator;b\n"), None);
        assert_eq!(declared(b"sep=\n"), None);
    }
}
