use super::*;
use crate::data::testing::{CHATML, END, encoder, encoder_with, tokenizer};
use crate::data::{CacheConfig, ChatTemplate, FormatName, IGNORED, OnBadRow, Overlong, Sources, TrainOnTurns};
use std::path::Path;

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
        let path = self.write("train.jsonl", text);
        DataConfig { cache: CacheConfig::Off, ..DataConfig::new(source(&path)) }
    }

    /// A configuration whose tokens are kept in the folder `cache`.
    fn cached(&self, text: &str) -> DataConfig {
        DataConfig { cache: CacheConfig::Folder(self.0.path().join("cache")), ..self.config(text) }
    }

    fn cache_files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.0.path().join("cache")).unwrap();
        let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

fn source(path: &Path) -> Sources {
    Sources::file(path.to_str().unwrap())
}

fn load_with(config: &DataConfig, seed: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<Dataset> {
    let files = DataFiles::find(config, |_, _| unreachable!("no Hub here"))?;
    Dataset::load(config, &files, &encoder(), seed, progress)
}

fn load(config: &DataConfig) -> Result<Dataset> {
    load_with(config, 42, &mut |_, _| {})
}

fn sequences(rows: &Rows) -> Vec<crate::data::Sequence> {
    (0..rows.len()).map(|row| rows.get(row).unwrap()).collect()
}

fn rows(n: usize) -> String {
    let row = |i| format!("{{\"instruction\": \"what is {i}\", \"output\": \"it is {i}\"}}\n");
    (0..n).map(row).collect::<Vec<_>>().concat()
}

#[test]
fn rows_keep_their_order_and_the_report_counts_them() {
    let folder = Folder::new();
    let mut config = folder.config(&(rows(5000) + "\n"));
    config.validation = Some(source(&folder.write("valid.jsonl", &rows(3))));
    let mut seen = Vec::new();
    let dataset = load_with(&config, 42, &mut |done, total| seen.push((done, total))).unwrap();
    let encoder = encoder();
    for (i, row) in sequences(&dataset.train).iter().enumerate() {
        assert!(encoder.decode(&row.input_ids, true).unwrap().ends_with(&format!("it is {i}\n")));
    }
    let report = &dataset.report;
    assert_eq!((report.rows, report.train_rows, report.validation_rows, report.dropped), (5003, 5000, 3, 0));
    assert_eq!((report.leaks, report.duplicates), (3, 0), "the rows to validate on are the first to train on");
    assert!(
        report.leak_examples[0].ends_with("valid.jsonl:1 is ".to_owned().as_str())
            || report.leak_examples[0].contains("train.jsonl:1")
    );
    assert!(report.sources[0].format.starts_with("alpaca (by the first row's"), "{}", report.sources[0].format);
    assert_eq!(report.eos_unsupervised_rows, 0);
    let supervised: usize =
        sequences(&dataset.train).iter().flat_map(|row| &row.labels[1..]).filter(|&&label| label != IGNORED).count();
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
    config.max_seq_len = Some(10);
    let dropped = load(&config).unwrap();
    assert_eq!((dropped.report.dropped, dropped.report.truncated, dropped.train.len()), (2, 0, 1));
    assert_eq!((dropped.report.lengths.min, dropped.report.lengths.max), (10, 35));
    config.overlong = Overlong::Truncate;
    let cut = load(&config).unwrap();
    assert_eq!((cut.report.dropped, cut.report.truncated, cut.train.len()), (1, 1, 2));
    let row = cut.train.get(1).unwrap();
    assert_eq!((row.len(), row.supervised()), (10, 5));
    assert_ne!(cut.fingerprint(), dropped.fingerprint());
    config.overlong = Overlong::Error;
    let error = load(&config).unwrap_err();
    assert!(error.to_string().contains(":2:1: the row has 16 tokens, and max_seq_len is 10"), "{error}");
    config.overlong = Overlong::Drop;
    config.max_seq_len = Some(3);
    let none = load(&config).unwrap_err();
    assert!(none.to_string().contains("none of the 3 rows is left"), "{none}");
    assert!(none.help().unwrap().contains("truncate"));
}

#[test]
fn the_seed_alone_chooses_the_rows_that_are_held_out() {
    let folder = Folder::new();
    let mut config = folder.config(&rows(101));
    config.validation_split = 0.1;
    let load = |seed| load_with(&config, seed, &mut |_, _| {}).unwrap();
    let (one, again, other) = (load(1), load(1), load(2));
    assert_eq!((one.train.len(), one.validation.len()), (90, 11));
    assert_eq!(one.fingerprint(), again.fingerprint());
    assert_ne!(one.fingerprint(), other.fingerprint());
    let both = [sequences(&one.train), sequences(&one.validation)].concat();
    let mut all: Vec<_> = both.into_iter().map(|row| row.input_ids).collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 101);
}

#[test]
fn rows_with_the_same_prompt_are_held_out_together() {
    let folder = Folder::new();
    let row = |i: usize| format!("{{\"instruction\": \"what is {}\", \"output\": \"it is {i}\"}}\n", i / 3);
    let mut config = folder.config(&((0..300).map(row).collect::<Vec<_>>().concat() + &row(0)));
    config.validation_split = 0.1;
    let dataset = load(&config).unwrap();
    assert_eq!((dataset.report.leaks, dataset.report.shared_prompts), (0, 0));
    assert!((28..=31).contains(&dataset.validation.len()), "{}", dataset.validation.len());
    // Where all rows have the same prompt, they are told apart by their answers.
    let row = |i: usize| format!("{{\"instruction\": \"what\", \"output\": \"it is {}\"}}\n", i / 2);
    config = folder.config(&(0..100).map(row).collect::<Vec<_>>().concat());
    config.validation_split = 0.1;
    let dataset = load(&config).unwrap();
    assert_eq!((dataset.report.leaks, dataset.validation.len()), (0, 10));
    config = folder.config(&"{\"text\": \"a\"}\n".repeat(10));
    config.validation_split = 0.2;
    assert_eq!(load(&config).unwrap().validation.len(), 2);
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
fn each_source_has_its_own_format_weight_and_limit() {
    let folder = Folder::new();
    let mut config = folder.config(&rows(10));
    let other = folder.write("other.jsonl", &"{\"prompt\": \"a\", \"completion\": \"b\"}\n".repeat(6));
    config.train.0.push(SourceConfig {
        weight: Some(2.0),
        limit: Some(4),
        ..SourceConfig::file(other.to_str().unwrap())
    });
    config.validation = Some(source(&folder.write("valid.jsonl", "{\"text\": \"c\"}")));
    let dataset = load(&config).unwrap();
    let formats: Vec<&str> =
        dataset.report.sources.iter().map(|source| source.format.split(' ').next().unwrap()).collect();
    assert_eq!(formats, ["alpaca", "completion", "text"]);
    let kept: Vec<_> = dataset.report.sources.iter().map(|source| (source.rows, source.kept, source.weight)).collect();
    assert_eq!(kept, [(10, 10, 1.0), (4, 4, 2.0), (1, 1, 1.0)]);
    assert_eq!(dataset.plan(&config, 1, 0).packs_per_epoch(), 10 + 2 * 4);
    assert_eq!(dataset.report.duplicates, 3);
    assert!(
        dataset.report.duplicate_examples[0].ends_with("other.jsonl:1 again"),
        "{:?}",
        dataset.report.duplicate_examples
    );
}

#[test]
fn a_table_without_header_has_the_columns_of_the_recipe() {
    let folder = Folder::new();
    let path = folder.write("names.tsv", "A1BG\talpha-1-B glycoprotein\nA2M\talpha-2-macroglobulin\n");
    let columns = vec!["symbol".to_owned(), "name".to_owned()];
    let template = serde_json::from_str(r#"{"user": "{{ symbol }}?", "assistant": "{{ name }}"}"#).unwrap();
    let source = SourceConfig {
        columns: columns.clone(),
        template: Some(template),
        ..SourceConfig::file(path.to_str().unwrap())
    };
    let dataset = load(&DataConfig { cache: CacheConfig::Off, ..DataConfig::new(Sources(vec![source])) }).unwrap();
    assert_eq!(dataset.train.len(), 2);
    assert!(dataset.preview.segments[1].0.starts_with("alpha-1-B glycoprotein"));
    let mut config = folder.config(&rows(2));
    config.train.0[0].columns = columns;
    assert!(load(&config).unwrap_err().to_string().contains("is not CSV or TSV"));
}

#[test]
fn a_source_may_be_several_files_whose_rows_keep_the_order_of_names() {
    let folder = Folder::new();
    for (name, text) in [("b.jsonl", rows(2)), ("a.jsonl", "{\"instruction\": \"q\", \"output\": \"first\"}".into())] {
        folder.write(name, &text);
    }
    let pattern = folder.0.path().join("?.jsonl");
    let dataset = load(&DataConfig { cache: CacheConfig::Off, ..DataConfig::new(source(&pattern)) }).unwrap();
    assert_eq!((dataset.train.len(), dataset.report.sources[0].files), (3, 2));
    let first = encoder().decode(&dataset.train.get(0).unwrap().input_ids, true).unwrap();
    assert!(first.contains("first"), "{first}");
    assert_eq!(
        [0, 1, 2].map(|row| (dataset.train.entry(row).file, dataset.train.entry(row).line)),
        [(0, 1), (1, 1), (1, 2)]
    );
}

#[test]
fn bad_rows_may_be_skipped_and_are_counted_with_their_reasons() {
    let folder = Folder::new();
    let bad = ["{oops\n", "{\"instruction\": \"a\", \"output\": 7}\n", "{\"instruction\": \"a\", \"output\": \"\"}\n"];
    let mut config = folder.config(&format!("{}{}{}{}", bad[0], rows(50), bad[1], bad[2]));
    assert!(load(&config).is_err());
    config.on_bad_row = OnBadRow::Skip;
    let dataset = load(&config).unwrap();
    assert_eq!((dataset.report.rows, dataset.train.len(), dataset.report.skipped), (53, 50, 2));
    assert_eq!(dataset.report.unlearnt, 1);
    assert!(dataset.report.unlearnt_examples[0].contains("train.jsonl:53"), "{:?}", dataset.report.unlearnt_examples);
    let examples = &dataset.report.skipped_examples;
    assert!(examples[0].contains("train.jsonl:1:2: not valid JSON"), "{examples:?}");
    assert!(examples[1].contains("train.jsonl:52:32: `output` must be text"), "{examples:?}");
    let config = DataConfig { on_bad_row: OnBadRow::Skip, ..folder.config(&bad[0].repeat(3)) };
    let error = load(&config).unwrap_err().to_string();
    assert!(error.contains("none of the 3 rows can be read") && error.contains("1:2: not valid"), "{error}");
}

#[test]
fn kept_tokens_are_taken_again_and_only_for_the_same() {
    let folder = Folder::new();
    let mut config = folder.cached(&rows(300));
    let fresh = load(&DataConfig { cache: CacheConfig::Off, ..config.clone() }).unwrap();
    let first = load(&config).unwrap();
    let files = folder.cache_files();
    assert_eq!((first.fingerprint(), files.len()), (fresh.fingerprint(), 1));
    assert_eq!(sequences(&first.train), sequences(&fresh.train));
    let written = std::fs::metadata(&files[0]).unwrap().modified().unwrap();
    let again = load(&config).unwrap();
    assert_eq!(again.report, first.report);
    assert_eq!(std::fs::metadata(&files[0]).unwrap().modified().unwrap(), written, "not made anew");
    // What does not change a row's tokens changes no file: who is held out, how often rows come, how they are packed.
    config.validation_split = 0.1;
    config.packing = true;
    config.train.0[0].weight = Some(3.0);
    load(&config).unwrap();
    assert_eq!(folder.cache_files(), files);
    // What does, does.
    config.max_seq_len = Some(999);
    load(&config).unwrap();
    assert_eq!(folder.cache_files().len(), 2);
    folder.write("train.jsonl", &rows(301));
    assert_eq!(load(&config).unwrap().report.rows, 301);
    assert_eq!(folder.cache_files().len(), 3);
}

#[test]
fn whatever_decides_about_tokens_is_part_of_their_name() {
    let folder = Folder::new();
    let row = |i| {
        format!("{{\"instruction\": \"what {i}\", \"output\": \"it {i}\", \"prompt\": \"p\", \"completion\": \"c\"}}\n")
    };
    let base = folder.cached(&(0..5).map(row).collect::<Vec<_>>().concat());
    let base = DataConfig { format: FormatName::Alpaca, ..base };
    load(&base).unwrap();
    let own = |source: SourceConfig| Sources(vec![SourceConfig { path: base.train.0[0].path.clone(), ..source }]);
    let others = [
        DataConfig { format: FormatName::Completion, ..base.clone() },
        DataConfig { fields: serde_json::from_str(r#"{"output": "completion"}"#).unwrap(), ..base.clone() },
        DataConfig {
            format: FormatName::Auto,
            template: Some(serde_json::from_str(r#"{"completion": "{{ prompt }}"}"#).unwrap()),
            ..base.clone()
        },
        DataConfig { max_seq_len: Some(2000), ..base.clone() },
        DataConfig { overlong: Overlong::Truncate, ..base.clone() },
        DataConfig { on_bad_row: OnBadRow::Skip, ..base.clone() },
        DataConfig { train: own(SourceConfig { limit: Some(3), ..SourceConfig::default() }), ..base.clone() },
    ];
    for (i, config) in others.iter().enumerate() {
        load(config).unwrap();
        assert_eq!(folder.cache_files().len(), i + 2, "{config:?}");
    }
    let files = DataFiles::find(&base, |_, _| unreachable!()).unwrap();
    let with = |encoder: &Encoder| Dataset::load(&base, &files, encoder, 42, &mut |_, _| {}).unwrap();
    with(&encoder().with_turns(TrainOnTurns::Last));
    with(&encoder_with(&format!("x{CHATML}")));
    let mut bigger = tokenizer();
    bigger.add_special_tokens([tokenizers::AddedToken::from("<|more|>", true)]).unwrap();
    let template = ChatTemplate::at(CHATML, None, Some("<|im_end|>"), 0).unwrap();
    with(&Encoder::new(bigger, Some(template), Some(("<|im_end|>".into(), END)), None, false).unwrap());
    assert_eq!(folder.cache_files().len(), others.len() + 4);
    with(&encoder());
    assert_eq!(folder.cache_files().len(), others.len() + 4);
}

#[test]
fn where_the_data_lies_does_not_matter() {
    let (here, there) = (Folder::new(), Folder::new());
    let bad = "{oops\n".to_owned() + &rows(20);
    let config = |folder: &Folder| DataConfig { on_bad_row: OnBadRow::Skip, ..folder.config(&bad) };
    let cache = CacheConfig::Folder(here.0.path().join("cache"));
    let load = |folder: &Folder| load(&DataConfig { cache: cache.clone(), ..config(folder) }).unwrap();
    let (one, other) = (load(&here), load(&there));
    assert_eq!(here.cache_files().len(), 1);
    assert_eq!(one.fingerprint(), other.fingerprint());
    let named = |dataset: &Dataset| dataset.report.skipped_examples[0].clone();
    assert!(named(&one).starts_with(here.0.path().to_str().unwrap()), "{}", named(&one));
    assert!(named(&other).starts_with(there.0.path().to_str().unwrap()), "{}", named(&other));
}

#[test]
fn one_frequent_prompt_does_not_empty_either_side() {
    let folder = Folder::new();
    let row = |i: usize| {
        let what = if i < 990 { "always".to_owned() } else { i.to_string() };
        format!("{{\"instruction\": \"{what}\", \"output\": \"it is {i}\"}}\n")
    };
    for seed in 0..5 {
        let mut config = folder.config(&(0..1000).map(row).collect::<Vec<_>>().concat());
        config.validation_split = 0.01;
        assert_eq!(load_with(&config, seed, &mut |_, _| {}).unwrap().validation.len(), 10);
    }
}

#[test]
fn rows_that_are_skipped_do_not_hide_those_that_are_too_long() {
    let folder = Folder::new();
    let mut config = folder.config(&("{oops\n".to_owned() + &rows(3)));
    (config.on_bad_row, config.overlong, config.max_seq_len) = (OnBadRow::Skip, Overlong::Error, Some(5));
    assert!(load(&config).unwrap_err().to_string().contains("max_seq_len is 5"));
    config.overlong = Overlong::Drop;
    let error = load(&config).unwrap_err().to_string();
    assert!(error.contains("none of the 4 rows is left: 3 have more") && error.contains("1 cannot be read"), "{error}");
}

#[test]
fn a_light_source_has_a_row_and_a_heavy_one_has_bounds() {
    let folder = Folder::new();
    let mut config = folder.config(&rows(4));
    config.train.0[0].weight = Some(0.1);
    assert_eq!(load(&config).unwrap().plan(&config, 1, 0).packs_per_epoch(), 1);
    config.train.0[0] = SourceConfig {
        weight: Some(1000.0),
        ..SourceConfig::file(folder.write("many.jsonl", &rows(3)).to_str().unwrap())
    };
    let dataset = load(&config).unwrap();
    let longest = dataset.train.entries().map(|entry| entry.tokens as usize).max().unwrap();
    assert_eq!(dataset.plan(&config, 1, 0).most_tokens(5), 5 * longest, "a row may come again within a step");
}

#[test]
fn damaged_tokens_are_made_anew_and_a_failure_leaves_none() {
    let folder = Folder::new();
    let config = folder.cached(&rows(300));
    let whole = load(&config).unwrap();
    let file = folder.cache_files().remove(0);
    let bytes = std::fs::read(&file).unwrap();
    for damage in [&bytes[..bytes.len() / 2], b"", b"something else"] {
        std::fs::write(&file, damage).unwrap();
        assert_eq!(load(&config).unwrap().fingerprint(), whole.fingerprint());
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
    folder.write("train.jsonl", &(rows(300) + "{oops"));
    assert!(load(&config).is_err());
    assert_eq!(folder.cache_files(), [file]);
}

#[test]
fn what_a_killed_run_left_is_removed_and_what_others_write_is_not() {
    let folder = Folder::new();
    let config = folder.cached(&rows(3));
    std::fs::create_dir(folder.0.path().join("cache")).unwrap();
    let (dead, mine) = (format!(".tmp-{}-0-0-a.tokens", u32::MAX), format!(".tmp-{}-0-0-b.tokens", std::process::id()));
    let hours_ago = |name: &str, hours: u64| {
        let file = std::fs::File::create(folder.0.path().join("cache").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600 * hours)).unwrap();
    };
    hours_ago(&dead, 1);
    hours_ago(&mine, 1);
    hours_ago(".tmp-1-0-0-c.tokens", 72);
    load(&config).unwrap();
    let names: Vec<_> = folder.cache_files().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert!(names.contains(&mine.into()) && names.len() == 2, "{names:?}");
}

#[test]
fn two_runs_at_once_get_the_same_tokens() {
    let folder = Folder::new();
    let config = folder.cached(&rows(3000));
    let fingerprints: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| load(&config).unwrap().fingerprint())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(fingerprints.iter().all(|fingerprint| *fingerprint == fingerprints[0]));
    assert_eq!(folder.cache_files().len(), 1);
}
