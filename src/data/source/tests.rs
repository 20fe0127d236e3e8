//! Rows from files of every kind, as users have them.

use super::*;
use crate::data::formats::{RowError, Step};
use crate::error::Located;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zst(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    // As the program `zstd` does; without a checksum, damage may pass for other text.
    encoder.include_checksum(true).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn rows(path: &Path) -> Vec<RawRow> {
    let mut reader = RowReader::open(path).unwrap();
    let rows: Vec<_> = std::iter::from_fn(|| reader.next_row().unwrap()).collect();
    let (done, all) = reader.progress();
    assert_eq!(done, all);
    rows
}

fn values(path: &Path) -> Vec<Value> {
    rows(path).iter().map(|row| Value::Object(row.parse(path).unwrap())).collect()
}

/// The first error of opening and reading a file.
fn failure(path: &Path) -> Error {
    let mut reader = match RowReader::open(path) {
        Ok(reader) => reader,
        Err(error) => return error,
    };
    loop {
        match reader.next_row() {
            Ok(row) => {
                if let Err(error) = row.expect("a row that fails").parse(path) {
                    return error;
                }
            }
            Err(error) => {
                assert!(reader.next_row().unwrap().is_none(), "nothing comes after an error");
                return error;
            }
        }
    }
}

fn located(error: Error) -> Located {
    let Error::Located(located) = error else { panic!("no place: {error}") };
    *located
}

fn marked(located: &Located) -> String {
    located.text.chars().skip(located.text_column() - 1).take(located.width).collect()
}

#[test]
fn every_kind_gives_the_same_rows_however_it_is_packed() {
    let folder = Folder::new();
    let expected = [json!({"a": "1", "b": "x, \"y\"\nz"}), json!({"a": "2", "b": "é"})];
    let lines = "\u{FEFF}{\"a\": \"1\", \"b\": \"x, \\\"y\\\"\\nz\"}\r\n\r\n  \n{\"a\": \"2\", \"b\": \"é\"}";
    let array = "\u{FEFF} [ {\"a\": \"1\",\n \"b\": \"x, \\\"y\\\"\\nz\"},{\"a\": \"2\", \"b\": \"é\"}\n]\n";
    let csv = "\u{FEFF}a,b\r\n1,\"x, \"\"y\"\"\nz\"\r\n\r\n2,é\r\n";
    let tsv = "a\tb\n1\t\"x, \"\"y\"\"\nz\"\n2\té";
    for (name, kind, text) in [
        ("a.jsonl", "JSON Lines", lines),
        ("a.ndjson", "JSON Lines", lines),
        ("lines.json", "JSON Lines", lines),
        ("lines.data", "JSON Lines", lines),
        ("array.json", "JSON array", array),
        ("array.data", "JSON array", array),
        ("a.csv", "CSV", csv),
        ("a.tsv", "TSV", tsv),
    ] {
        let path = folder.write(name, text);
        assert_eq!(values(&path), expected, "{name}");
        assert_eq!(RowReader::open(&path).unwrap().kind(), kind);
        let (front, back) = text.as_bytes().split_at(text.len() / 2);
        let members = [gzip(front), gzip(back)].concat();
        let frames = [zst(front), zst(back)].concat();
        for (end, packed, packing) in [("gz", members, "gzip"), ("zst", frames, "zstd")] {
            let path = folder.write(&format!("{name}.{end}"), packed);
            assert_eq!(values(&path), expected, "{}", path.display());
            assert_eq!(RowReader::open(&path).unwrap().kind(), format!("{kind} ({packing})"));
        }
    }
    let text = folder.write("a.txt", "\u{FEFF}one\r\n\n  two \n");
    assert_eq!(values(&text), [json!({"text": "one"}), json!({"text": "  two "})]);
}

#[test]
fn rows_are_numbered_by_their_lines() {
    let folder = Folder::new();
    let numbers = |path: &Path| rows(path).iter().map(RawRow::number).collect::<Vec<_>>();
    assert_eq!(numbers(&folder.write("a.jsonl", "{}\n\n{}\n")), [1, 3]);
    assert_eq!(numbers(&folder.write("a.json", "[\n{}, {\n},\n\n{}]")), [2, 2, 5]);
    assert_eq!(numbers(&folder.write("a.csv", "\na\n\"x\ny\"\r\n\r\n1\n   \n2")), [3, 6, 7, 8]);
    assert_eq!(numbers(&folder.write("b.csv", "a,b\n1,2\n   \n3,4")), [2, 4]);
    assert_eq!(numbers(&folder.write("a.txt", "x\n\ny")), [1, 3]);
}

#[test]
fn numbers_keep_their_digits() {
    let folder = Folder::new();
    let numbers =
        ["9.163453718085519", "0.009409760010891", "5e-324", "1.7976931348623157e308", "18446744073709551615"];
    let text = numbers.map(|number| format!("{{\"v\": {number}}}\n")).concat();
    let values = values(&folder.write("n.jsonl", text));
    for (value, number) in values.iter().zip(numbers) {
        assert_eq!(value["v"].as_f64(), number.parse::<f64>().ok(), "{number}");
    }
}

#[test]
fn files_without_rows_have_none() {
    let folder = Folder::new();
    let names = ["a.jsonl", "a.json", "a.csv", "a.txt"];
    for (name, text) in names.map(|name| (name, "")).into_iter().chain([("b.json", "[ ]"), ("b.csv", "a,b\n")]) {
        assert!(rows(&folder.write(name, text)).is_empty(), "{name}");
    }
}

#[test]
fn one_bad_row_is_named_and_passed_over() {
    let folder = Folder::new();
    let lines = |bad: &str| {
        (1..=10_000).map(|n| if n == 7_341 { format!("{bad}\n") } else { "{\"a\": 1}\n".into() }).collect::<String>()
    };
    for name in ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"] {
        let text = lines("{\"ä\": oops}");
        let packed = if name.ends_with("gz") {
            gzip(text.as_bytes())
        } else if name.ends_with("zst") {
            zst(text.as_bytes())
        } else {
            text.into_bytes()
        };
        let path = folder.write(name, packed);
        let error = located(failure(&path));
        assert_eq!((error.line, error.column, error.text.as_str()), (7_341, 7, "{\"ä\": oops}"));
        let good = rows(&path).iter().filter(|row| row.parse(&path).is_ok()).count();
        assert_eq!(good, 9_999);
    }
    let array = format!("[{}]", lines("{\"ä\":\n oops}").trim().replace("}\n", "},\n"));
    let path = folder.write("a.json", array);
    let error = located(failure(&path));
    assert_eq!((error.line, error.column, error.text.as_str()), (7_342, 2, " oops},"));
    assert_eq!(rows(&path).iter().filter(|row| row.parse(&path).is_ok()).count(), 9_999);
}

#[test]
fn what_is_no_row_of_json_is_explained() {
    let folder = Folder::new();
    let line = |bytes: &[u8]| located(failure(&folder.write("a.jsonl", bytes)));
    let utf8 = line(b"{\"a\": \"b\xFFc\"}");
    assert_eq!((utf8.line, utf8.column), (1, 9));
    assert!(utf8.message.contains("0xff") && utf8.help.unwrap().contains("iconv"));
    assert!(line(b"{\"a\": \"\0\"}").message.contains("NUL"));
    assert!(line(b"[1, 2]").message.contains("got a number"), "an array under the name of lines is one");
    assert!(line(b"{\"a\": 1}\n{\n\"b\": 2}\n").help.unwrap().contains("jq"));
    assert!(line(b"{'a': None}").help.unwrap().contains("json.dumps"));
    assert!(line(b"{\"a\": 1").message.contains("EOF"));
    let element = located(failure(&folder.write("a.json", "[{}, 3]")));
    assert_eq!((element.line, element.column), (1, 6));
    assert!(element.message.contains("got a number"));
    assert!(failure(&folder.write("b.json", "name: x")).to_string().contains("neither `{` nor `[`"));
    assert!(failure(&folder.write("a.jsonl", b"\xFF\xFE{\0}\0")).to_string().contains("UTF-16"));
}

#[test]
fn a_broken_array_is_named_where_it_breaks() {
    let folder = Folder::new();
    for (text, line, column, message) in [
        ("[{}\n {}]", 2, 2, "`,` or `]`"),
        ("[,{}]", 1, 2, "a row is expected"),
        ("[{}]\n{}", 2, 1, "behind the end"),
        ("[{\"a\": 1},\n {\"a\": 2}", 2, 10, "`]` is missing"),
        ("[{\"a\": 1},\n {\"a\": ", 2, 2, "ends inside the row"),
        ("[\n{\"a\": 1,\n{\"a\": 2}]\n", 3, 1, "not valid JSON"),
    ] {
        let error = located(failure(&folder.write("a.json", text)));
        assert_eq!((error.line, error.column), (line, column), "{text}: {error}");
        assert!(error.message.contains(message) && error.help.is_some(), "{error}");
    }
}

#[test]
fn an_array_on_one_line_is_read_without_holding_it() {
    let folder = Folder::new();
    let text = format!("[{}{{\"é\": oops}}, {{}}]", "{\"é\": \"aé\"}, ".repeat(50_000));
    let path = folder.write("a.json", &text);
    let error = located(failure(&path));
    let column = text[..text.find("oops").unwrap()].chars().count() + 1;
    assert_eq!((error.line, error.column), (1, column));
    assert!(error.text.chars().skip(error.text_column() - 1).collect::<String>().starts_with("oops}, {}]"));
    assert!(rows(&path).iter().all(|row| row.size() < 8192));
}

#[test]
fn long_rows_are_read_and_longer_ones_passed_over() {
    let folder = Folder::new();
    let long = "x".repeat(50 << 20);
    let longer = "y".repeat(MAX_ROW + 1);
    for (name, text) in [
        ("a.jsonl", format!("{{\"a\": \"{long}\"}}\n{{\"a\": \"{longer}\"}}\n{{\"a\": \"z\"}}")),
        ("a.json", format!("[{{\"a\": \"{long}\"}},\n{{\"a\": \"{longer}\"}},\n{{\"a\": \"z\"}}]")),
        ("a.csv", format!("a\n{long}\n{longer}\nz\n")),
        ("a.txt", format!("{long}\n{longer}\nz\n")),
    ] {
        let path = folder.write(name, text);
        let rows = rows(&path);
        let field = if name == "a.txt" { "text" } else { "a" };
        let length = |row: &RawRow| row.parse(&path).unwrap()[field].as_str().unwrap().len();
        assert_eq!((length(&rows[0]), length(&rows[2]), rows.len()), (50 << 20, 1, 3), "{name}");
        let error = located(rows[1].parse(&path).unwrap_err());
        assert!(error.message.contains("longer than 64 MiB"), "{error}");
        assert_eq!(error.line, rows[1].number());
        assert!(rows[1].size() < 10_000);
    }
}

#[test]
fn tables_without_order_are_named() {
    let folder = Folder::new();
    let table = |text: &str| located(failure(&folder.write("a.csv", text)));
    let short = table("a,b\n1,2\n\"x\ny\"\n");
    assert_eq!((short.line, short.column), (3, 1));
    assert!(short.message.contains("1 field, and the header names 2"), "{short}");
    let long = table("a,b\n1,2,3\n");
    assert_eq!((long.line, long.column), (2, 5));
    let mut twice = RowReader::open(&folder.write("a.csv", "a,b,a,\n1,2,3\n")).unwrap();
    assert_eq!(twice.columns().unwrap(), ["a", "b", "a.1", "Unnamed: 3"]);
    assert!(twice.select(&|column| column == "a").unwrap_err().to_string().contains("names `a` twice"));
    twice.select(&|column| column == "b").unwrap();
    let row = twice.next_row().unwrap().unwrap().parse(Path::new("a.csv")).unwrap();
    assert_eq!(json!(row), json!({"a": null, "b": "2", "a.1": null, "Unnamed: 3": null}));
    let open = table("a,b\n1,2\n3,\"x\n4,y\n5,z\n");
    assert_eq!(open.line, 3);
    assert!(open.message.contains("never closed"), "{open}");
    let latin = failure(&folder.write("a.csv", b"a,b\n1,\xE9\n"));
    assert_eq!(located(latin).column, 3);
}

#[test]
fn what_a_row_means_is_placed_where_it_stands() {
    let folder = Folder::new();
    let error = |path: &Path, steps: Vec<Step>| {
        let rows = rows(path);
        rows.last().unwrap().row_error(path, RowError::new(steps, "wrong"))
    };
    let lines = folder.write("a.jsonl", "{}\n {\"x\": {\"role\": \"no\"}, \"messages\": [{\"role\": \"a\\\"]\", \"content\": 1.5}, {\"role\" : \"bot\"}]}");
    let cases: [(Vec<Step>, &str); 5] = [
        (vec![], "{"),
        (vec!["messages".into(), 0.into(), "content".into()], "1.5"),
        (vec!["messages".into(), 1.into(), "role".into()], "\"bot\""),
        (vec!["messages".into(), 1.into(), "content".into()], "{"),
        (vec!["x".into()], "{\"role\": \"no\"}"),
    ];
    for (steps, expected) in cases {
        assert_eq!(marked(&located(error(&lines, steps))), expected);
    }
    let array =
        folder.write("a.json", "[{\"a\": 1, \"b\": 0},\n {\"a\": 1,\n  \"b\": 22}, {\"a\": 1,\n  \"b\": 333}  ]");
    let place = located(error(&array, vec!["b".into()]));
    assert_eq!((place.line, place.column, place.text.as_str()), (4, 8, "  \"b\": 333}  ]"));
    assert_eq!(marked(&place), "333");
    let place = located(error(&array, vec!["c".into()]));
    assert_eq!((place.line, place.column, place.text.as_str()), (3, 13, "  \"b\": 22}, {\"a\": 1,"));
    let csv = folder.write("a.csv", "a,b,c\n\"1,1\",2,3\n");
    let place = located(error(&csv, vec!["b".into()]));
    assert_eq!((place.line, place.column), (2, 7));
    let text = folder.write("a.txt", "x\n\ny");
    assert_eq!(located(error(&text, vec!["text".into()])).line, 3);
    let invalid = rows(&text)[0].place(&text, Error::invalid("too short"));
    assert_eq!(located(invalid).line, 1);
}

#[test]
fn a_cut_or_damaged_archive_is_told() {
    let folder = Folder::new();
    let text = (0..5000).map(|n| format!("{{\"a\": {n}}}\n")).collect::<Vec<_>>().concat();
    for (end, packed) in [("gz", gzip(text.as_bytes())), ("zst", zst(text.as_bytes()))] {
        let name = format!("a.jsonl.{end}");
        let cut = failure(&folder.write(&name, &packed[..packed.len() / 2]));
        assert!(cut.to_string().contains("cut short"), "{cut}");
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 20].fill(0x55);
        let path = folder.write(&name, damaged);
        let error = match RowReader::open(&path) {
            Err(error) => error,
            Ok(mut reader) => loop {
                match reader.next_row() {
                    Ok(row) => assert!(row.is_some(), "the damage is noticed"),
                    Err(error) => break error,
                }
            },
        };
        let told = ["is damaged", "cut short"].iter().any(|words| error.to_string().contains(words));
        assert!(told, "{error}");
    }
}

#[test]
fn a_bomb_is_stopped() {
    let folder = Folder::new();
    for end in ["gz", "zst"] {
        let path = folder.0.path().join(format!("a.txt.{end}"));
        let file = fs::File::create(&path).unwrap();
        let mut zeros = std::io::repeat(b' ').take(512 << 20);
        if end == "gz" {
            std::io::copy(&mut zeros, &mut flate2::write::GzEncoder::new(file, flate2::Compression::default()))
                .unwrap();
        } else {
            zstd::stream::copy_encode(zeros, file, 1).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
        let error = failure(&path);
        assert!(error.to_string().contains("250 times its size"), "{error}");
    }
}

#[test]
fn what_is_no_data_file_is_refused_by_name() {
    let folder = Folder::new();
    let refused = |name: &str, bytes: &[u8]| failure(&folder.write(name, bytes)).to_string();
    assert!(refused("a.md", b"# Title").contains("is a Markdown text"));
    assert!(refused("a.jsonl", b"\xFD7zXZ\0\0\0").contains("xz"));
    assert!(refused("a.csv", b"PK\x03\x04rest").contains("zip"));
    let packed = failure(&folder.write("a.parquet.gz", gzip(b"PAR1....PAR1")));
    assert!(packed.help().unwrap().contains("compresses what it holds itself"), "{packed}");
    let missing = RowReader::open(&folder.0.path().join("a.jsonk")).err().unwrap();
    assert!(missing.to_string().contains("no such file") && missing.help().unwrap().contains("a.jsonl?"), "{missing}");
    assert!(RowReader::open(folder.0.path()).err().unwrap().to_string().contains("is a folder"));
    assert!(RowReader::open(Path::new("/dev/zero")).err().unwrap().to_string().contains("a device"));
    let pipe = folder.0.path().join("pipe.jsonl");
    if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
        assert!(RowReader::open(&pipe).err().unwrap().to_string().contains("pipe"), "and it does not wait");
    }
}
