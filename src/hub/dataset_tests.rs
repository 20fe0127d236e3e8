//! Fetching datasets, against the stand-in for the Hub.

use super::dataset::fetch_dataset_from;
use super::tests::{COMMIT, CONVERTED, Hub, told};
use super::*;

const TRAIN: &[&str] = &["train"];
const VALIDATION: &[&str] = &["validation", "valid", "dev", "test"];

/// Asks for a dataset; answers with the names of its files in the cache, or with the error and its help.
struct Ask<'a> {
    address: String,
    cache: &'a Path,
    subset: Option<&'a str>,
    split: Option<&'a str>,
    offline: bool,
}

impl<'a> Ask<'a> {
    fn new(hub: &Hub, cache: &'a tempfile::TempDir) -> Self {
        Self { address: hub.address.clone(), cache: cache.path(), subset: None, split: None, offline: false }
    }

    fn subset(self, subset: &'a str) -> Self {
        Self { subset: Some(subset), ..self }
    }

    fn split(self, split: &'a str) -> Self {
        Self { split: Some(split), ..self }
    }

    fn offline(self) -> Self {
        Self { offline: true, ..self }
    }

    fn get(self, id: &str, default_splits: &[&str]) -> std::result::Result<String, String> {
        let place = Place { endpoint: Some(format!("http://{}", self.address)), cache: Some(self.cache.into()) };
        let dataset = DatasetConfig { id, split: self.split, subset: self.subset };
        let options = FetchOptions { offline: self.offline };
        let paths =
            fetch_dataset_from(&dataset, default_splits, &options, &mut |_| {}, &place).map_err(|e| told(&e))?;
        let names = paths.iter().map(|path| {
            assert!(path.is_file(), "{} is there", path.display());
            let name = path.strip_prefix(self.cache).unwrap().display().to_string();
            name.split_once("snapshots/").unwrap().1.replace(COMMIT, "main").replace(CONVERTED, "converted")
        });
        Ok(names.collect::<Vec<_>>().join(" "))
    }
}

const SHARDED: (&str, &[(&str, &str)]) = (
    "datasets/org/sharded",
    &[
        ("README.md", "---\nlicense: mit\n---\n"),
        ("data/train-00000-of-00002.parquet", "1"),
        ("data/train-00001-of-00002.parquet", "2"),
        ("data/dev-00000-of-00001.parquet", "3"),
        ("data/test-00000-of-00001.parquet", "4"),
        ("train.csv", "old"),
        ("sharded.py", "code"),
    ],
);

#[test]
fn a_split_in_parquet_is_fetched_once_and_found_again_without_network() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[SHARDED]);
    let train = "main/data/train-00000-of-00002.parquet main/data/train-00001-of-00002.parquet";
    assert_eq!(Ask::new(&hub, &cache).get("org/sharded", TRAIN).unwrap(), train);
    let folder = cache.path().join("datasets--org--sharded");
    assert_eq!(std::fs::read_to_string(folder.join("refs/main")).unwrap(), COMMIT);
    assert!(!folder.join("snapshots").join(COMMIT).join("sharded.py").exists(), "code is not fetched");
    assert!(!folder.join("snapshots").join(COMMIT).join("train.csv").exists());

    let before = hub.requests.lock().unwrap().len();
    assert_eq!(Ask::new(&hub, &cache).offline().get("org/sharded", TRAIN).unwrap(), train);
    assert_eq!(Ask::new(&hub, &cache).offline().get(&format!("org/sharded@{COMMIT}"), TRAIN).unwrap(), train);
    let message = Ask::new(&hub, &cache).offline().get("org/sharded", VALIDATION).unwrap_err();
    assert!(message.contains("is not in the cache, which has: train"), "{message}");
    assert!(message.contains("hf download org/sharded --repo-type dataset"), "{message}");
    assert_eq!(hub.requests.lock().unwrap().len(), before, "offline asks nobody");

    assert_eq!(Ask::new(&hub, &cache).get("org/sharded", TRAIN).unwrap(), train);
    assert_eq!(hub.requests.lock().unwrap().len(), before + 1, "only the commit is asked for, the files are here");
    let dev = "main/data/dev-00000-of-00001.parquet";
    assert_eq!(Ask::new(&hub, &cache).get("org/sharded", VALIDATION).unwrap(), dev);
    assert_eq!(Ask::new(&hub, &cache).split("val").get("org/sharded", TRAIN).unwrap(), dev);
    let test = Ask::new(&hub, &cache).split("test").get("org/sharded", TRAIN).unwrap();
    assert_eq!(test, "main/data/test-00000-of-00001.parquet");
}

#[test]
fn a_missing_shard_is_noticed_without_network() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[SHARDED]);
    Ask::new(&hub, &cache).get("org/sharded", TRAIN).unwrap();
    let snapshot = cache.path().join("datasets--org--sharded/snapshots").join(COMMIT);
    std::fs::remove_file(snapshot.join("data/train-00000-of-00002.parquet")).unwrap();
    let message = Ask::new(&hub, &cache).offline().get("org/sharded", TRAIN).unwrap_err();
    assert!(message.contains("lacks data/train-00000-of-00002"), "{message}");
}

#[test]
fn a_hub_that_is_down_does_not_matter_when_the_split_is_here() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[SHARDED]);
    let here = Ask::new(&hub, &cache).get("org/sharded", TRAIN).unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ask = || Ask { address: closed.clone(), ..Ask::new(&hub, &cache) };
    assert_eq!(ask().get("org/sharded", TRAIN).unwrap(), here);
    let message = ask().get("org/other", TRAIN).unwrap_err();
    assert!(message.contains("cannot be reached") && message.contains("`path`"), "{message}");
}

#[test]
fn names_without_owner_and_files_in_other_formats_are_taken() {
    let cache = tempfile::tempdir().unwrap();
    let old = &[("train.jsonl.gz", "1"), ("dev.jsonl", "2"), ("notes.jsonl", "3"), ("labels.csv", "4")];
    let plain = &[("part-1.json", "1"), ("part-2.json", "2"), ("README.md", "text")];
    let hub = Hub::start(&[("datasets/squad", old), ("datasets/org/plain", plain)]);
    assert_eq!(Ask::new(&hub, &cache).get("squad", TRAIN).unwrap(), "main/train.jsonl.gz");
    assert!(cache.path().join("datasets--squad/refs/main").is_file());
    assert_eq!(Ask::new(&hub, &cache).get("squad", VALIDATION).unwrap(), "main/dev.jsonl");
    assert_eq!(Ask::new(&hub, &cache).get("org/plain@main", TRAIN).unwrap(), "main/part-1.json main/part-2.json");
    let message = Ask::new(&hub, &cache).get("org/plain", VALIDATION).unwrap_err();
    assert!(message.contains("no split `validation` or `valid`") && message.contains("they are: train"), "{message}");
}

const README: &str = "---
configs:
- config_name: easy
  data_files:
  - split: train
    path: rows/easy-*.csv
  - split: test
    path: [rows/exam.csv, rows/lost.csv]
- config_name: hard
  default: true
  data_files: ['rows/**/hard.csv']
- config_name: images
  data_files: '*.zip'
---
# Title
";

const DECLARED: (&str, &[(&str, &str)]) = (
    "datasets/org/declared",
    &[
        ("README.md", README),
        ("rows/easy-1.csv", "1"),
        ("rows/easy-2.csv", "2"),
        ("rows/easy-2.json", "about"),
        ("rows/exam.csv", "3"),
        ("rows/deep/hard.csv", "4"),
        ("rows/train.csv", "5"),
        ("images.zip", "6"),
    ],
);

#[test]
fn what_the_readme_declares_wins() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[DECLARED]);
    let id = "org/declared";
    for offline in [false, true] {
        let ask = || Ask { offline, ..Ask::new(&hub, &cache) };
        assert_eq!(ask().subset("easy").get(id, TRAIN).unwrap(), "main/rows/easy-1.csv main/rows/easy-2.csv");
        assert_eq!(ask().get(id, TRAIN).unwrap(), "main/rows/deep/hard.csv", "the default one");
    }
    let message = Ask::new(&hub, &cache).subset("easy").split("test").get(id, TRAIN).unwrap_err();
    assert!(message.contains("README names `rows/lost.csv`, which the repository does not have"), "{message}");
    let message = Ask::new(&hub, &cache).subset("easy").split("exam").get(id, TRAIN).unwrap_err();
    assert!(message.contains("no split `exam`") && message.contains("they are: train, test"), "{message}");
    let message = Ask::new(&hub, &cache).subset("soft").get(id, TRAIN).unwrap_err();
    assert!(message.contains("no subset `soft`") && message.contains("are: easy, hard, images"), "{message}");
    let message = Ask::new(&hub, &cache).subset("images").get(id, TRAIN).unwrap_err();
    assert!(message.contains("no data in it that can be read") && message.contains("images.zip"), "{message}");
    std::fs::remove_file(
        cache.path().join("datasets--org--declared/snapshots").join(COMMIT).join("rows/deep/hard.csv"),
    )
    .unwrap();
    let message = Ask::new(&hub, &cache).offline().get(id, TRAIN).unwrap_err();
    assert!(message.contains("not in the cache"), "{message}");
}

#[test]
fn several_subsets_need_a_choice() {
    let cache = tempfile::tempdir().unwrap();
    let files = &[("en/train-00000-of-00001.parquet", "1"), ("de/train-00000-of-00001.parquet", "2")];
    let hub = Hub::start(&[("datasets/org/many", files)]);
    let message = Ask::new(&hub, &cache).get("org/many", TRAIN).unwrap_err();
    assert!(message.contains("several subsets") && message.contains("`subset`; they are: de, en"), "{message}");
    let found = Ask::new(&hub, &cache).subset("en").get("org/many", TRAIN).unwrap();
    assert_eq!(found, "main/en/train-00000-of-00001.parquet");
    let message = Ask::new(&hub, &cache).offline().subset("de").get("org/many", TRAIN).unwrap_err();
    assert!(message.contains("subset `de` is not in the cache, which has: en"), "{message}");
}

#[test]
fn what_cannot_be_read_is_taken_from_the_hubs_parquet_copies() {
    let cache = tempfile::tempdir().unwrap();
    let script = &[("README.md", "text"), ("script.py", "code"), ("data.zip", "zip")];
    let copies = &[
        ("default/train/0000.parquet", "1"),
        ("default/train/0001.parquet", "2"),
        ("default/test/0000.parquet", "3"),
        ("extra/partial-train/0000.parquet", "4"),
    ];
    let hub = Hub::start(&[
        ("datasets/org/script", script),
        ("datasets/org/script@converted", copies),
        ("datasets/org/pickle", &[("data.pkl", "pickle")]),
    ]);
    for offline in [false, true] {
        let ask = || Ask { offline, ..Ask::new(&hub, &cache) };
        let train = "converted/default/train/0000.parquet converted/default/train/0001.parquet";
        assert_eq!(ask().get("org/script", TRAIN).unwrap(), train);
        assert_eq!(ask().get("org/script@refs/convert/parquet", TRAIN).unwrap(), train);
        let extra = ask().subset("extra").get("org/script", TRAIN).unwrap();
        assert_eq!(extra, "converted/extra/partial-train/0000.parquet");
    }
    let message = Ask::new(&hub, &cache).get("org/pickle", TRAIN).unwrap_err();
    assert!(message.contains("no data in it that can be read") && message.contains("data.pkl"), "{message}");
    let message = Ask::new(&hub, &cache).get(&format!("org/script@{COMMIT}"), TRAIN).unwrap_err();
    assert!(message.contains("org/script@refs/convert/parquet"), "the copies are of another commit: {message}");
    let asked = hub.requests.lock().unwrap().join("\n");
    assert!(!asked.contains("script.py") && !asked.contains("data.pkl"), "{asked}");
}

#[test]
fn refusals_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[
        SHARDED,
        ("datasets/org/gated", SHARDED.1),
        ("datasets/org/absolute", &[("/train.jsonl", "1")]),
        ("datasets/org/windows", &[("a\\..\\train.jsonl", "1")]),
        ("datasets/org/above", &[("../train.jsonl", "1"), ("a/../../train.jsonl", "1")]),
    ]);
    let told = |id: &str| Ask::new(&hub, &cache).get(id, TRAIN).unwrap_err();
    assert!(told("org/nothing").contains("there is no dataset org/nothing on the Hub (404)"));
    assert!(told("org/sharded@nowhere").contains("no revision `nowhere`"));
    let private = told("org/private");
    assert!(
        private.contains("(401)") && private.contains("private dataset") && private.contains("/datasets/org/private")
    );
    let gated = told("org/gated");
    assert!(gated.contains("(403)") && gated.contains("/datasets/org/gated"), "{gated}");
    assert!(!cache.path().join("datasets--org--gated/refs").exists(), "an incomplete snapshot is not noted");
    for id in ["org/absolute", "org/windows"] {
        assert!(told(id).contains("not a path within a dataset"), "{}", told(id));
    }
    assert!(told("org/above").contains("no data in it"), "{}", told("org/above"));
    for id in ["", "a/b/c", "../x", "/", "./rows.jsonl", "org/na me", "o/n@../x"] {
        assert!(told(id).contains("is not the name of a dataset"), "{id}");
    }
    let offline = Ask::new(&hub, &cache).offline().get("org/nothing", TRAIN).unwrap_err();
    assert!(offline.contains("not in the cache") && offline.contains("name local files as `path`"), "{offline}");
}
