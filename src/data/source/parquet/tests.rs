//! Files made by the crate's own writer, whole and damaged.

use super::*;
use crate::data::source::RowReader;
use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, FloatType, Int32Type, Int64Type};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use serde_json::json;
use std::sync::Arc;

const SCHEMA: &str = "message rows {
    required binary prompt (UTF8);
    optional int64 id;
    optional double score;
    optional float weight;
    optional boolean good;
    optional int32 day (DATE);
    optional binary raw;
    optional group messages (LIST) {
        repeated group list {
            optional group element {
                optional binary role (UTF8);
                optional binary content (UTF8);
            }
        }
    }
}";

/// The rows of [`SCHEMA`], `groups` times three of them.
fn file(compression: Compression, version: WriterVersion, groups: usize, raw: &[u8]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).set_writer_version(version).build();
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let text = |values: &[&str]| values.iter().map(|value| ByteArray::from(*value)).collect::<Vec<_>>();
    for _ in 0..groups {
        let mut group = writer.next_row_group().unwrap();
        macro_rules! column {
            ($kind:ty, $values:expr, $definition:expr, $repetition:expr) => {{
                let mut column = group.next_column().unwrap().unwrap();
                column.typed::<$kind>().write_batch($values, $definition, $repetition).unwrap();
                column.close().unwrap();
            }};
        }
        column!(ByteArrayType, &text(&["a", "é", "c"]), None, None);
        column!(Int64Type, &[7, i64::MIN], Some(&[1, 0, 1]), None);
        column!(DoubleType, &[0.5, f64::NAN], Some(&[1, 0, 1]), None);
        column!(FloatType, &[0.1, 3.0], Some(&[1, 0, 1]), None);
        column!(BoolType, &[true, false], Some(&[1, 0, 1]), None);
        column!(Int32Type, &[0, 19_000], Some(&[1, 0, 1]), None);
        column!(ByteArrayType, &[ByteArray::from("ok"), ByteArray::from(raw.to_vec())], Some(&[1, 0, 1]), None);
        // Two messages, none at all, and an empty list.
        column!(ByteArrayType, &text(&["user", "assistant"]), Some(&[4, 4, 0, 1]), Some(&[0, 1, 0, 0]));
        column!(ByteArrayType, &text(&["hi"]), Some(&[4, 3, 0, 1]), Some(&[0, 1, 0, 0]));
        group.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

/// A file that is right, for others to spoil.
pub(in crate::data::source) fn sample() -> Vec<u8> {
    file(Compression::SNAPPY, WriterVersion::PARQUET_1_0, 1, b"ok")
}

fn write(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn read(path: &Path) -> Result<Vec<Result<Value>>> {
    let mut reader = RowReader::open(path)?;
    let mut rows = Vec::new();
    while let Some(row) = reader.next_row()? {
        assert_eq!(row.number(), rows.len() + 1);
        rows.push(row.parse(path).map(Value::Object));
    }
    assert_eq!(reader.progress(), (std::fs::metadata(path).unwrap().len(), std::fs::metadata(path).unwrap().len()));
    Ok(rows)
}

#[test]
fn columns_become_fields_with_every_codec() {
    let expected = [
        json!({"prompt": "a", "id": 7, "score": 0.5, "weight": 0.1, "good": true, "day": "1970-01-01", "raw": "ok",
            "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]}),
        json!({"prompt": "é", "id": null, "score": null, "weight": null, "good": null, "day": null, "raw": null,
            "messages": null}),
        json!({"prompt": "c", "id": i64::MIN, "score": null, "weight": 3.0, "good": false, "day": "2022-01-08", "raw": "x",
            "messages": []}),
    ];
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let (_folder, path) = write(&file(codec, version, 2, b"x"));
            let rows: Vec<_> = read(&path).unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(rows, [&expected[..], &expected[..]].concat(), "{codec:?} {version:?}");
        }
    }
}

#[test]
fn parquet_is_told_by_its_bytes_where_the_name_is_silent() {
    let (_folder, path) = write(&sample());
    let other = path.with_file_name("download");
    std::fs::rename(&path, &other).unwrap();
    assert_eq!(RowReader::open(&other).unwrap().kind(), "Parquet");
}

#[test]
fn bytes_that_are_no_text_make_a_bad_row() {
    let (_folder, path) = write(&file(Compression::SNAPPY, WriterVersion::PARQUET_1_0, 1, b"\xFF\xD8"));
    let rows = read(&path).unwrap();
    assert!(rows[0].is_ok() && rows[1].is_ok());
    let error = rows[2].as_ref().unwrap_err().to_string();
    assert!(error.contains("row 3: the column `raw` is of bytes, and these 2 are not UTF-8 text"), "{error}");
}

#[test]
fn a_cut_file_is_told() {
    let bytes = file(Compression::SNAPPY, WriterVersion::PARQUET_1_0, 3, b"x");
    for end in [bytes.len() / 2, bytes.len() - 1, 20, 4, 0] {
        let (_folder, path) = write(&bytes[..end]);
        let error = read(&path).err().unwrap();
        assert!(error.to_string().contains("is a damaged Parquet file"), "{end}: {error}");
    }
}

#[test]
fn damage_anywhere_is_an_error_or_other_values() {
    let bytes = sample();
    for at in 0..bytes.len() {
        for byte in [0, 0x7F, 0xFF] {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            let (_folder, path) = write(&bytes);
            let _ = read(&path);
        }
    }
}
