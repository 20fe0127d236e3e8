//! Bytes that nobody meant: every kind of file ends with rows or an error, never with a panic, and in bounded time.

use super::parquet::tests::sample;
use super::tests::{Folder, gzip, zst};
use super::*;
use crate::data::formats::{RowError, Step};
use proptest::prelude::*;

/// Names of all kinds, packed ones among them, with a file that is right.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let lines = b"{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"\xC3\xA9\"}]}\n";
    let array = b"[{\"instruction\": \"a\", \"output\": \"\\\"[\"},\n {\"text\": [1, {}]}, 3]";
    let csv = b"prompt,completion\n1,\"x \"\"y\"\"\nz\"\n2,\xC3\xA9\n";
    let tsv = b"a\tb\n1\t2\n";
    vec![
        ("a.jsonl", lines.to_vec()),
        ("a.json", array.to_vec()),
        ("a.csv", csv.to_vec()),
        ("a.tsv", tsv.to_vec()),
        ("a.txt", b"one\ntwo\n".to_vec()),
        ("a.data", array.to_vec()),
        ("a.jsonl.gz", gzip(lines)),
        ("a.csv.zst", zst(csv)),
        ("a.parquet", sample()),
    ]
}

/// Reads all of a file, whatever it is; how many rows there were.
fn read_all(path: &Path) -> usize {
    let Ok(mut reader) = RowReader::open(path) else { return 0 };
    let mut count = 0;
    while let Ok(Some(row)) = reader.next_row() {
        count += 1;
        if let Err(error) = row.parse(path) {
            assert!(!error.to_string().is_empty());
        }
        for steps in [vec![], vec!["prompt".into()], vec![Step::Index(1), "a".into()]] {
            assert!(!row.row_error(path, RowError::new(steps, "wrong")).to_string().is_empty());
        }
        assert!(count < 1_000_000, "rows without end");
    }
    let (done, all) = reader.progress();
    assert!(done <= all);
    count
}

#[test]
fn the_samples_are_right() {
    let folder = Folder::new();
    for (name, bytes) in samples() {
        assert!(read_all(&folder.write(name, bytes)) > 0, "{name}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let folder = Folder::new();
        for (name, _) in samples() {
            read_all(&folder.write(name, &bytes));
        }
        read_all(&folder.write("b.jsonl.gz", gzip(&bytes)));
        read_all(&folder.write("b.json.zst", zst(&bytes)));
    }

    #[test]
    fn no_change_to_a_file_makes_a_reader_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let folder = Folder::new();
        for (name, mut bytes) in samples() {
            for (index, byte) in &changes {
                let at = index.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
            read_all(&folder.write(name, bytes));
        }
    }

    #[test]
    fn no_json_makes_a_reader_panic(
        text in r#"(\{"(messages|prompt|instruction|output|completion)": ?(\[\{"role": "(user|assistant)", "content": ("é"|1|null)\}\]|"a"|3)(, "output": "b"|, "completion": \[\])?\}[\n,]?){1,4}\]?"#,
        cut in 0usize..200,
    ) {
        let folder = Folder::new();
        let bytes = text.as_bytes();
        let cut = &bytes[..cut.min(bytes.len())];
        for bytes in [bytes, cut] {
            read_all(&folder.write("a.jsonl", bytes));
            read_all(&folder.write("a.json", [b"[", bytes].concat()));
        }
    }
}
