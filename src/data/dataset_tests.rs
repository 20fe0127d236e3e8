use super::*;
use crate::data::IGNORED;
use crate::data::config::Sources;
use crate::data::testing::encoder;
use std::path::PathBuf;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn config(&self, text: &str) -> DataConfig {
        serde_json::from_value(serde_json::json!({"train": self.write("train.jsonl", text)})).unwrap()
    }
}

fn load(config: &DataConfig) -> Result<Dataset> {
    Dataset::load(config, &encoder(), 42, &mut |_, _| {})
}

fn rows(n: usize) -> String {
    let row = |i| format!("{{\"instruction\": \"what is {i}\", \"output\": \"it is {i}\"}}\n");
    (0..n).map(row).collect::<Vec<_>>().concat()
}

#[test]
fn rows_keep_their_order_and_the_report_counts_them() {
    let folder = Folder::new();
    let mut config = folder.config(&(rows(5000) + "\n"));
    config.validation = Some(Sources::file(folder.write("valid.jsonl", &rows(3)).to_string_lossy()));
    let mut seen = Vec::new();
    let dataset = Dataset::load(&config, &encoder(), 42, &mut |done, total| seen.push((done, total))).unwrap();
    let encoder = encoder();
    for (i, row) in dataset.train.iter().enumerate() {
        assert!(encoder.decode(&row.input_ids, true).unwrap().ends_with(&format!("it is {i}\n")));
    }
    let report = &dataset.report;
    assert_eq!((report.rows, report.train_rows, report.validation_rows, report.dropped), (5003, 5000, 3, 0));
    assert!(report.format.starts_with("alpaca (told by"), "{}", report.format);
    assert_eq!(report.eos_unsupervised_rows, 0);
    let supervised = dataset.train.iter().flat_map(|row| &row.labels).filter(|&&label| label != IGNORED).count();
    assert_eq!(report.supervised_tokens, supervised);
    assert!(seen.last().is_some_and(|(done, total)| done == total));
    assert!(seen.is_sorted() && seen.iter().all(|(done, total)| done <= total), "{seen:?}");
    let text: String = dataset.preview.segments.iter().map(|(text, _)| text.as_str()).collect();
    assert_eq!(text, "<|im_start|>user\nwhat is 0<|im_end|>\n<|im_start|>assistant\nit is 0<|im_end|>\n");
    let learnt: Vec<_> = dataset.preview.segments.iter().filter(|(_, learnt)| *learnt).collect();
    assert_eq!(learnt, [&("it is 0<|im_end|>".to_string(), true)]);
}

#[test]
fn the_first_bad_row_is_named_however_threads_run() {
    let folder = Folder::new();
    let text = rows(3000) + "{\"instruction\": \"a\", \"output\": 7}\n" + &rows(10) + "{oops\n";
    for _ in 0..3 {
        let Error::Located(located) = load(&folder.config(&text)).unwrap_err() else { panic!("a place") };
        assert_eq!((located.line, located.column, located.width), (3001, 32, 1));
        assert!(located.message.contains("`output` must be text, got the integer 7"));
        assert!(located.path.ends_with("train.jsonl") && located.help.is_some());
    }
    let refused = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}";
    assert!(
        load(&folder.config(refused)).unwrap_err().to_string().contains("train.jsonl:1:14: `messages` holds no turn")
    );
    let unknown = load(&folder.config("\n{\"Q\": \"a\", \"A\": \"b\"}")).unwrap_err();
    assert!(unknown.to_string().contains(":2:1: no data format has the fields of this row"), "{unknown}");
    assert!(load(&folder.config("\n \n")).unwrap_err().to_string().ends_with("holds no rows"));
    assert!(load(&folder.config("")).unwrap_err().to_string().ends_with("holds no rows"));
}

#[test]
fn long_rows_are_dropped_cut_or_refused() {
    let folder = Folder::new();
    let row = |question: usize, answer: usize| {
        format!("{{\"prompt\": \"{}\", \"completion\": \"{}\"}}\n", "q".repeat(question), "a".repeat(answer))
    };
    let mut config = folder.config(&(row(5, 4) + &row(5, 10) + &row(30, 4)));
    config.max_seq_len = 10;
    let dropped = load(&config).unwrap();
    assert_eq!((dropped.report.dropped, dropped.report.truncated, dropped.train.len()), (2, 0, 1));
    assert_eq!((dropped.report.lengths.min, dropped.report.lengths.max), (10, 35));
    config.overlong = Overlong::Truncate;
    let cut = load(&config).unwrap();
    assert_eq!((cut.report.dropped, cut.report.truncated, cut.train.len()), (1, 1, 2));
    assert_eq!((cut.train[1].len(), cut.train[1].supervised()), (10, 5));
    assert_ne!(cut.fingerprint(), dropped.fingerprint());
    config.overlong = Overlong::Error;
    let error = load(&config).unwrap_err();
    assert!(error.to_string().contains(":2:1: the row has 16 tokens, and max_seq_len is 10"), "{error}");
    config.overlong = Overlong::Drop;
    config.max_seq_len = 3;
    let none = load(&config).unwrap_err();
    assert!(none.to_string().contains("none of the 3 rows is left"), "{none}");
    assert!(none.help().unwrap().contains("truncate"));
}

#[test]
fn the_seed_alone_chooses_the_rows_that_are_held_out() {
    let folder = Folder::new();
    let mut config = folder.config(&rows(101));
    config.validation_split = 0.1;
    let load = |seed| Dataset::load(&config, &encoder(), seed, &mut |_, _| {}).unwrap();
    let (one, again, other) = (load(1), load(1), load(2));
    assert_eq!((one.train.len(), one.validation.len()), (90, 11));
    assert_eq!(one.fingerprint(), again.fingerprint());
    assert_ne!(one.fingerprint(), other.fingerprint());
    let mut all: Vec<_> = one.train.iter().chain(&one.validation).map(|row| row.input_ids.clone()).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 101);
}

#[test]
fn a_split_leaves_a_row_on_both_sides() {
    let folder = Folder::new();
    for (n, share, expected) in [(2, 0.01, (1, 1)), (2, 0.99, (1, 1)), (3, 0.5, (1, 2)), (100, 0.07, (93, 7))] {
        let mut config = folder.config(&rows(n));
        config.validation_split = share;
        let dataset = load(&config).unwrap();
        assert_eq!((dataset.train.len(), dataset.validation.len()), expected);
    }
    let mut config = folder.config(&rows(1));
    config.validation_split = 0.5;
    assert!(load(&config).unwrap_err().to_string().contains("at least two"));
}

#[test]
fn a_format_holds_for_the_validation_file_too() {
    let folder = Folder::new();
    let mut config = folder.config(&rows(2));
    config.validation = Some(Sources::file(
        folder.write("valid.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}").to_string_lossy(),
    ));
    let error = load(&config).unwrap_err();
    assert!(error.to_string().contains("valid.jsonl:1:1: `instruction` is missing"), "{error}");
}
