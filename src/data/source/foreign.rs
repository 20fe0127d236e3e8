//! Files that are not data files here, by what they are: from spreadsheets, other programs and other languages, each with the
//! way to one that is read.

use crate::error::Error;
use std::path::Path;

/// A kind of file that is not read.
pub(super) struct Foreign {
    /// What it is, as in "is ...".
    name: &'static str,
    /// What to do.
    help: &'static str,
}

const SHEET: &str = "save the sheet as CSV (UTF-8): in Excel \"Save As\", in LibreOffice \"Save As\" or \
                     `soffice --convert-to csv FILE`; or `pandas.read_excel(FILE).to_csv(\"rows.csv\", index=False)`";
const ARROW: &str = "with `datasets`: `load_from_disk(FOLDER).to_parquet(\"rows.parquet\")`, of each split, or `to_json(\"rows.jsonl\")`";
const FEATHER: &str = "with pandas: `pandas.read_feather(FILE).to_parquet(\"rows.parquet\")`";
const STATISTICS: &str = "with pandas: `pandas.read_stata`, `read_spss` or `read_sas` of the file, then \
                          `.to_csv(\"rows.csv\", index=False)`";
const PICKLE: &str = "a pickle can run code when it is loaded, so it never is here; where you trust it, write its rows out in \
                      Python: `pandas.DataFrame(rows).to_json(\"rows.jsonl\", orient=\"records\", lines=True)`";
const NUMPY: &str = "NumPy's arrays have no named fields; write the rows as JSON Lines";
const ARCHIVE: &str = "unpack it, and name the folder or the files in it";
const RDATA: &str = "in R: `write.csv(rows, \"rows.csv\", row.names = FALSE)`";
const DOCUMENT: &str =
    "take the text out into a file of rows: `.jsonl` with a field `text`, or `.txt` with one row a line";
const PAGE: &str =
    "the download gave a page and not the file: open the address in a browser, and take the link to the file itself";

/// What names and contents tell. The first that fits is taken, so what its bytes show stands first.
const KINDS: &[(&[&str], Foreign)] = &[
    (&["xlsx", "xlsm", "xlsb", "xls"], Foreign { name: "an Excel workbook", help: SHEET }),
    (&["ods", "fods"], Foreign { name: "an OpenDocument spreadsheet", help: SHEET }),
    (&["numbers"], Foreign { name: "a Numbers spreadsheet", help: "in Numbers: File, Export To, CSV" }),
    (&["arrow"], Foreign { name: "an Arrow file", help: ARROW }),
    (&["feather", "ftr"], Foreign { name: "a Feather file", help: FEATHER }),
    (
        &["avro"],
        Foreign { name: "an Avro file", help: "with DuckDB: `COPY (FROM read_avro('FILE')) TO 'rows.parquet'`" },
    ),
    (
        &["orc"],
        Foreign { name: "an ORC file", help: "with pandas: `pandas.read_orc(FILE).to_parquet(\"rows.parquet\")`" },
    ),
    (
        &["db", "sqlite", "sqlite3", "db3"],
        Foreign {
            name: "a SQLite database",
            help: "write a table out: `sqlite3 -header -csv FILE \"select * from TABLE\" > rows.csv`",
        },
    ),
    (&["duckdb"], Foreign { name: "a DuckDB database", help: "write a table out: `COPY TABLE TO 'rows.parquet'`" }),
    (&["dta"], Foreign { name: "a Stata file", help: STATISTICS }),
    (&["sav", "zsav", "por"], Foreign { name: "an SPSS file", help: STATISTICS }),
    (&["sas7bdat", "xpt"], Foreign { name: "a SAS file", help: STATISTICS }),
    (&["rds", "rdata", "rda"], Foreign { name: "a file of R", help: RDATA }),
    (&["pkl", "pickle"], Foreign { name: "a Python pickle", help: PICKLE }),
    (&["pt", "pth", "bin"], Foreign { name: "a file of PyTorch", help: PICKLE }),
    (&["npy", "npz"], Foreign { name: "a NumPy array", help: NUMPY }),
    (
        &["h5", "hdf5"],
        Foreign { name: "an HDF5 file", help: "with pandas: `pandas.read_hdf(FILE).to_parquet(\"rows.parquet\")`" },
    ),
    (&["tar", "tgz", "7z", "rar"], Foreign { name: "an archive", help: ARCHIVE }),
    (&["pdf"], Foreign { name: "a PDF", help: DOCUMENT }),
    (&["docx", "doc", "odt", "rtf"], Foreign { name: "a text document", help: DOCUMENT }),
    (&["md", "markdown"], Foreign { name: "a Markdown text", help: DOCUMENT }),
    (&["html", "htm"], Foreign { name: "a web page", help: PAGE }),
    (
        &["xml"],
        Foreign {
            name: "an XML file",
            help: "write its rows as JSON Lines or CSV: `pandas.read_xml(FILE).to_csv(\"rows.csv\", index=False)`",
        },
    ),
    (
        &["yaml", "yml", "toml"],
        Foreign { name: "a file of settings or YAML", help: "write the rows as JSON Lines: an object a line" },
    ),
    (
        &["lfs"],
        Foreign {
            name: "a pointer of Git LFS, and not the file itself",
            help: "fetch the file: `git lfs pull`, or name the dataset as `{hub: org/name}`",
        },
    ),
    (
        &["safetensors", "gguf"],
        Foreign { name: "a file of weights", help: "name a file of rows; a base model is `base.model`" },
    ),
];

impl Foreign {
    /// The error of a file of this kind.
    pub fn error(&self, path: &Path) -> Error {
        Error::file(path, format!("is {}, which is not read here", self.name)).with_help(self.help)
    }
}

/// What a name says of a file that is not read.
pub(super) fn of_name(path: &Path) -> Option<&'static Foreign> {
    let extension = path.extension()?.to_string_lossy().to_lowercase();
    of(&extension)
}

fn of(extension: &str) -> Option<&'static Foreign> {
    KINDS.iter().find(|(extensions, _)| extensions.contains(&extension)).map(|(_, foreign)| foreign)
}

/// What the first bytes say of a file that is not read, whatever its name.
pub(super) fn of_bytes(start: &[u8]) -> Option<&'static Foreign> {
    // Letters may begin a text as well: `ORCID,name`.
    let binary = start.iter().take(64).any(|byte| *byte < 9);
    let extension = match start {
        [b'P', b'K', 3, 4, ..] => return of_zip(start),
        [0xD0, 0xCF, 0x11, 0xE0, ..] => "xls",
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] | [b'F', b'E', b'A', b'1', ..] if binary => "feather",
        // A stream of Arrow begins with a message: a mark, and its length.
        [0xFF, 0xFF, 0xFF, 0xFF, _, _, 0, 0, ..] => "arrow",
        [b'O', b'b', b'j', 1, ..] => "avro",
        [b'O', b'R', b'C', ..] if binary => "orc",
        [0x80, 2..=5, b'}' | b']' | b'c' | 0x8C | 0x95 | b'(' | b'q', ..] => "pkl",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "npy",
        [0x89, b'H', b'D', b'F', ..] => "h5",
        [b'$', b'F', b'L', b'2' | b'3', ..] if binary => "sav",
        [b'R', b'D', b'X' | b'A', b'2' | b'3', ..] | [b'X', b'\n', 0, 0, 0, 2 | 3, ..] if binary => "rds",
        [b'7', b'z', 0xBC, 0xAF, ..] | [b'R', b'a', b'r', b'!', ..] => "7z",
        [b'%', b'P', b'D', b'F', ..] => "pdf",
        [b'G', b'G', b'U', b'F', ..] if binary => "gguf",
        _ if start.starts_with(b"SQLite format 3\0") => "sqlite",
        _ if start.get(8..12) == Some(b"DUCK") => "duckdb",
        _ if start.starts_with(b"<stata_dta>") => "dta",
        _ if start.get(12..16) == Some(&[0xC2, 0xEA, 0x81, 0x60]) => "sas7bdat",
        _ if start.get(257..262) == Some(b"ustar") => "tar",
        _ => return of_text(start),
    };
    of(extension)
}

/// What the first bytes of a text say.
fn of_text(start: &[u8]) -> Option<&'static Foreign> {
    let extension = match start {
        _ if start.starts_with(b"version https://git-lfs.github.com/") => "lfs",
        _ if starts_with(start, b"<!doctype html") || starts_with(start, b"<html") => "html",
        _ if starts_with(start, b"<?xml") => "xml",
        _ => return None,
    };
    of(extension)
}

fn starts_with(start: &[u8], text: &[u8]) -> bool {
    let start = start.trim_ascii_start();
    start.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text))
}

/// What a zip holds: a workbook, a document, tensors, or just files.
fn of_zip(start: &[u8]) -> Option<&'static Foreign> {
    let holds = |name: &[u8]| start.windows(name.len()).any(|window| window == name);
    let extension = if holds(b"xl/") {
        "xlsx"
    } else if holds(b"opendocument.spreadsheet") {
        "ods"
    } else if holds(b"Index/") && holds(b".iwa") {
        "numbers"
    } else if holds(b"word/") || holds(b"opendocument.text") {
        "docx"
    } else if holds(b"data.pkl") {
        "pt"
    } else if holds(b".npy") {
        "npz"
    } else {
        return None;
    };
    of(extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_by_their_bytes_and_their_names() {
        for (start, name) in [
            (&b"PK\x03\x04\x14\0\x06\0........[Content_Types].xml....xl/workbook.xml"[..], "an Excel workbook"),
            (b"PK\x03\x04....mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "an OpenDocument spreadsheet"),
            (b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", "an Excel workbook"),
            (b"\x80\x04\x95\x10\0\0\0\0\0\0\0]", "a Python pickle"),
            (b"\x93NUMPY\x01\0v\0", "a NumPy array"),
            (b"ARROW1\0\0\xFF\xFF\xFF\xFF", "a Feather file"),
            (b"ORC\n\x1d\n\x04\x08", "an ORC file"),
            (b"\xFF\xFF\xFF\xFF\xA0\x01\0\0\x10\0", "an Arrow file"),
            (b"SQLite format 3\0", "a SQLite database"),
            (b"\n<!DOCTYPE html><html>", "a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:ab",
                "a pointer of Git LFS, and not the file itself",
            ),
        ] {
            assert_eq!(of_bytes(start).map(|foreign| foreign.name), Some(name));
        }
        for start in
            [&b"{\"a\": 1}\n"[..], b"a,b\n1,2\n", b"[", b"", b"PK,b\n", b"\xFF\xFE{\0", b"ORCID,name\n", b"RDX2,x\n"]
        {
            assert!(of_bytes(start).is_none(), "{start:?}");
        }
        assert_eq!(of_name(Path::new("x/Scores.XLSX")).unwrap().name, "an Excel workbook");
        assert!(of_name(Path::new("x.jsonl")).is_none());
    }
}
