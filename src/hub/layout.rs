//! Which files of a dataset's repository hold which split of which subset: told from their names, by the conventions of the
//! `datasets` library, or from what the README declares. Pure: it sees file names only.

use super::card::Declared;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use std::collections::{BTreeMap, BTreeSet};

/// The words that mark a split in a file's or folder's name.
const KEYWORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// Files that are about the data; by the beginning of their names, in lower case.
const NO_DATA: &[&str] = &[
    "readme.",
    "readme_",
    "license.",
    "licence.",
    "notice.",
    "citation.",
    "changelog.",
    "requirements.",
    "config.json",
    "dataset_info",
    "dataset_dict.json",
    "state.json",
];

/// A subset ("configuration") of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Subset {
    pub name: String,
    pub splits: Vec<Split>,
}

/// The files of one split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Split {
    pub name: String,
    pub files: Vec<String>,
    /// Files that the README names, but that are not there.
    pub absent: Vec<String>,
    /// Whether the README names each file, so that shards beside them are not meant.
    pub listed: bool,
}

impl Split {
    fn of(name: String, mut files: Vec<String>) -> Self {
        files.sort();
        Self { name, files, ..Self::default() }
    }
}

/// The kinds of files that can be read; a subset has one of them. The first is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Format {
    Parquet,
    Json,
    Table,
    Text,
}

/// The format of a file; `None` for what is no data, cannot be read, or is hidden.
fn format_of(path: &str) -> Option<Format> {
    if path.split('/').any(|part| part.starts_with('.') || part.starts_with("__")) {
        return None;
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    if NO_DATA.iter().any(|start| name.starts_with(start)) {
        return None;
    }
    if name.ends_with(".parquet") {
        return Some(Format::Parquet);
    }
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match plain.rsplit_once('.')?.1 {
        "jsonl" | "json" => Some(Format::Json),
        "csv" | "tsv" => Some(Format::Table),
        "txt" => Some(Format::Text),
        _ => None,
    }
}

/// The readable files of one format: Parquet if there is any, else what has the most files with a split in their names.
fn one_format(files: &[String]) -> Vec<&String> {
    let mut counts: BTreeMap<Format, (usize, usize)> = BTreeMap::new();
    for file in files {
        if let Some(format) = format_of(file) {
            let count = counts.entry(format).or_default();
            *count = (count.0 + usize::from(split_of(file).is_some()), count.1 + 1);
        }
    }
    let preferred = |format: &Format| (*format == Format::Parquet, counts[format], std::cmp::Reverse(*format));
    let Some(format) = counts.keys().copied().max_by_key(preferred) else { return Vec::new() };
    files.iter().filter(|file| format_of(file) == Some(format)).collect()
}

/// The split that a word stands for.
pub(super) fn canonical(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    KEYWORDS.iter().find(|(_, words)| words.contains(&word.as_str())).map(|(split, _)| *split)
}

/// The first word of a name that stands for a split.
fn keyword_in(name: &str) -> Option<&'static str> {
    name.split(|c: char| !c.is_alphabetic()).find_map(canonical)
}

/// One of several files that belong together, such as `data/train-00000-of-00002.parquet`.
#[derive(Debug, PartialEq, Eq)]
struct Shard<'a> {
    /// What stands before the numbers, without the delimiter.
    prefix: &'a str,
    index: usize,
    total: usize,
}

fn shard(path: &str) -> Option<Shard<'_>> {
    let at = path.rfind("-of-")?;
    let digits =
        |text: &str| (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?;
    let index = digits(path.get(at.checked_sub(5)?..at)?)?;
    let total = digits(path.get(at + 4..at + 9)?)?;
    let prefix = path.get(..at - 5)?.strip_suffix(['-', '.', '_'])?;
    (index < total).then_some(Shard { prefix, index, total })
}

/// The first shard that a list of files lacks.
pub(super) fn absent_shard(files: &[String]) -> Option<String> {
    let mut sets: BTreeMap<(&str, usize), BTreeSet<usize>> = BTreeMap::new();
    for shard in files.iter().filter_map(|file| shard(file)) {
        sets.entry((shard.prefix, shard.total)).or_default().insert(shard.index);
    }
    sets.into_iter().find_map(|((prefix, total), there)| {
        let index = (0..total).find(|index| !there.contains(index))?;
        Some(format!("{prefix}-{index:05}-of-{total:05}"))
    })
}

/// The split that a path's names tell, and how many of its folders stand before what tells it.
///
/// A folder that is called after a split decides, then the file's own name, then words in folders' names.
fn split_of(path: &str) -> Option<(String, usize)> {
    let parts: Vec<&str> = path.split('/').collect();
    let (name, folders) = parts.split_last()?;
    if let Some(at) = folders.iter().rposition(|folder| canonical(folder).is_some()) {
        return Some((canonical(folders[at])?.into(), at));
    }
    if let Some(Shard { prefix: split, .. }) = shard(name) {
        // Saved by `datasets`: `data/<split>-00000-of-00001.parquet`, where a split may have any name.
        let is_word = split.chars().all(|c| c.is_alphanumeric() || c == '_');
        let of_a_kind = split.split('_').next().and_then(canonical).is_some();
        if is_word && (of_a_kind || folders == ["data"]) {
            return Some((canonical(split).unwrap_or(split).into(), folders.len()));
        }
    }
    if let Some(split) = keyword_in(name) {
        return Some((split.into(), folders.len()));
    }
    let at = folders.iter().rposition(|folder| keyword_in(folder).is_some())?;
    Some((keyword_in(folders[at])?.into(), at))
}

/// The subset that folders stand for: their path, without a leading `data`.
fn subset_of(folders: &[&str]) -> String {
    let folders = folders.strip_prefix(&["data"]).unwrap_or(folders);
    if folders.is_empty() { "default".into() } else { folders.join("/") }
}

type Found<'a> = BTreeMap<String, BTreeMap<String, Vec<&'a String>>>;

/// The subsets and splits that file names tell. Where none tells a split, all files are `train`, and each folder is also a
/// subset of its own.
pub(super) fn by_names(files: &[String]) -> Vec<Subset> {
    let files = one_format(files);
    let mut found = Found::new();
    let mut add = |folders: &[&str], split: String, file| {
        found.entry(subset_of(folders)).or_default().entry(split).or_default().push(file);
    };
    let split: Vec<_> = files.iter().map(|file| split_of(file)).collect();
    let told = split.iter().any(Option::is_some);
    for (file, split) in files.into_iter().zip(split) {
        let parts: Vec<&str> = file.split('/').collect();
        let folders = &parts[..parts.len() - 1];
        match split {
            Some((split, depth)) => add(&folders[..depth], split, file),
            None if told => {}
            None => {
                add(&[], "train".into(), file);
                if subset_of(folders) != "default" {
                    add(folders, "train".into(), file);
                }
            }
        }
    }
    subsets(found)
}

/// The subsets of the Hub's own Parquet copies: `<subset>/<split>/0000.parquet`. A dataset that is too large has only its
/// beginning there, in `partial-<split>`.
pub(super) fn converted(files: &[String]) -> Vec<Subset> {
    let mut found = Found::new();
    for file in files.iter().filter(|file| format_of(file) == Some(Format::Parquet)) {
        if let [subset, split, _] = file.split('/').collect::<Vec<_>>()[..] {
            let split = split.strip_prefix("partial-").unwrap_or(split);
            found.entry(subset.into()).or_default().entry(split.into()).or_default().push(file);
        }
    }
    subsets(found)
}

fn subsets(found: Found) -> Vec<Subset> {
    let split = |(name, files): (String, Vec<&String>)| Split::of(name, files.into_iter().cloned().collect());
    found.into_iter().map(|(name, splits)| Subset { name, splits: splits.into_iter().map(split).collect() }).collect()
}

/// The splits of a declared subset.
///
/// # Errors
/// What is wrong with a pattern.
pub(super) fn of_declared(declared: &Declared, files: &[String]) -> Result<Vec<Split>, String> {
    let folder = declared.folder.as_deref().map(plain_path).unwrap_or_default();
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let inside: Vec<String> = files.iter().filter(|file| file.starts_with(&prefix)).cloned().collect();
    let Some(splits) = &declared.splits else {
        return Ok(names_inside(&inside, prefix.len()));
    };
    let matched = splits
        .iter()
        .map(|(name, paths)| {
            let paths: Vec<String> = paths.iter().map(|path| format!("{prefix}{}", plain_path(path))).collect();
            matching(name, &paths, &inside)
        })
        .collect::<Result<Vec<Split>, String>>()?;
    // One format in all splits: a pattern such as `data/*` may also catch a description.
    let all: Vec<String> = matched.iter().flat_map(|split| split.files.iter().cloned()).collect();
    let wanted: BTreeSet<&String> = one_format(&all).into_iter().collect();
    let keep = |mut split: Split| {
        split.files.retain(|file| wanted.contains(file));
        split
    };
    Ok(matched.into_iter().map(keep).collect())
}

/// The splits in a folder, whatever folders are in it. The first `prefix` bytes of a name are the folder.
fn names_inside(files: &[String], prefix: usize) -> Vec<Split> {
    let inside: Vec<String> = files.iter().map(|file| file[prefix..].to_string()).collect();
    let inside = one_format(&inside);
    let folder = files.first().map_or("", |file| &file[..prefix]);
    let told = inside.iter().any(|file| split_of(file).is_some());
    let mut splits: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in inside {
        let split = if told { split_of(file).map(|(split, _)| split) } else { Some("train".into()) };
        if let Some(split) = split {
            splits.entry(split).or_default().push(format!("{folder}{file}"));
        }
    }
    splits.into_iter().map(|(name, files)| Split::of(name, files)).collect()
}

fn plain_path(path: &str) -> &str {
    path.trim_start_matches("./").trim_end_matches('/')
}

/// The readable files that a split's patterns match.
fn matching(name: &str, paths: &[String], files: &[String]) -> Result<Split, String> {
    let is_pattern = |path: &&String| path.contains(['*', '?', '[']);
    let patterns: Vec<&String> = paths.iter().filter(is_pattern).collect();
    let globs = globs(&patterns)?;
    // A name may hold brackets, too.
    let named: BTreeSet<&String> = paths.iter().collect();
    let is_meant = |file: &&String| named.contains(*file) || globs.is_match(file.as_str());
    let mut meant: Vec<String> =
        files.iter().filter(is_meant).filter(|file| format_of(file).is_some()).cloned().collect();
    meant.sort();
    let there: BTreeSet<&String> = files.iter().collect();
    let absent = named.into_iter().filter(|path| !is_pattern(path) && !there.contains(path)).cloned().collect();
    Ok(Split { name: name.into(), files: meant, absent, listed: patterns.is_empty() })
}

/// `*` and `?` stay within a name, `**` crosses folders. The time to match is linear, whatever the pattern.
fn globs(patterns: &[&String]) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(|error| error.to_string())?);
    }
    set.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|file| (*file).to_string()).collect()
    }

    /// `subset/split: files`, a line a split.
    fn told(subsets: &[Subset]) -> Vec<String> {
        let line =
            |subset: &Subset, split: &Split| format!("{}/{}: {}", subset.name, split.name, split.files.join(" "));
        subsets.iter().flat_map(|subset| subset.splits.iter().map(move |split| line(subset, split))).collect()
    }

    fn by_names_of(files: &[&str]) -> Vec<String> {
        told(&by_names(&names(files)))
    }

    #[test]
    fn names_tell_splits_and_subsets() {
        assert_eq!(
            by_names_of(&["README.md", "train.jsonl", "dev.jsonl", "my_test_file.jsonl", "meta.json"]),
            ["default/test: my_test_file.jsonl", "default/train: train.jsonl", "default/validation: dev.jsonl"]
        );
        assert_eq!(
            by_names_of(&["data/train-00000-of-00002.parquet", "data/train-00001-of-00002-ab12.parquet"]),
            ["default/train: data/train-00000-of-00002.parquet data/train-00001-of-00002-ab12.parquet"]
        );
        assert_eq!(
            by_names_of(&["data/train_sft-00000-of-00001.parquet", "data/odd-00000-of-00001.parquet"]),
            [
                "default/odd: data/odd-00000-of-00001.parquet",
                "default/train_sft: data/train_sft-00000-of-00001.parquet"
            ]
        );
        assert_eq!(
            by_names_of(&["en/train-00000-of-00001.parquet", "de/train/0000.parquet", "train/x/a.parquet"]),
            [
                "de/train: de/train/0000.parquet",
                "default/train: train/x/a.parquet",
                "en/train: en/train-00000-of-00001.parquet"
            ]
        );
        assert_eq!(
            by_names_of(&["c4-train.00000-of-00002.json.gz"]),
            ["default/train: c4-train.00000-of-00002.json.gz"]
        );
        assert_eq!(by_names_of(&["my-train-set/a.csv"]), ["default/train: my-train-set/a.csv"]);
    }

    #[test]
    fn rows_of_a_test_set_are_not_taken_for_training() {
        assert_eq!(by_names_of(&["test/training_0.jsonl"]), ["default/test: test/training_0.jsonl"]);
        assert_eq!(by_names_of(&["dev-tools/train.jsonl"]), ["dev-tools/train: dev-tools/train.jsonl"]);
        // A word within a word is no split.
        assert_eq!(by_names_of(&["contest.jsonl", "trainer.jsonl"]), ["default/train: contest.jsonl trainer.jsonl"]);
    }

    #[test]
    fn files_without_split_are_all_train_and_folders_are_subsets() {
        assert_eq!(
            by_names_of(&["a.txt.zst", "b/c.txt", "data/d.txt", "LICENSE.txt", ".hidden/x.txt", "__x/y.txt"]),
            ["b/train: b/c.txt", "default/train: a.txt.zst b/c.txt data/d.txt"]
        );
        assert!(by_names(&names(&["script.py", "data.pkl", "README.md", "dataset_infos.json", "x.arrow"])).is_empty());
    }

    #[test]
    fn a_dataset_is_read_from_one_format() {
        assert_eq!(by_names_of(&["train.csv", "train.parquet", "a.jsonl"]), ["default/train: train.parquet"]);
        assert_eq!(
            by_names_of(&["train.csv", "test.tsv", "labels.json"]),
            ["default/test: test.tsv", "default/train: train.csv"]
        );
        assert_eq!(by_names_of(&["rows.jsonl", "other.csv"]), ["default/train: rows.jsonl"]);
    }

    fn declared(folder: Option<&str>, splits: Option<&[(&str, &[&str])]>) -> Declared {
        let split = |(name, paths): &(&str, &[&str])| ((*name).to_string(), names(paths));
        let splits = splits.map(|splits| splits.iter().map(split).collect());
        Declared { name: "x".into(), default: false, folder: folder.map(String::from), splits }
    }

    #[test]
    fn patterns_match_as_the_hub_does() {
        let files = names(&["a/t-1.csv", "a/t-2.csv", "a/b/t-3.csv", "a/about.json", "u.csv", "a/x.zip", "a[1].csv"]);
        let matched = |paths: &[&str]| {
            of_declared(&declared(None, Some(&[("train", paths)])), &files).map(|mut splits| splits.remove(0).files)
        };
        assert_eq!(matched(&["a/*"]).unwrap(), ["a/t-1.csv", "a/t-2.csv"], "one format, and not what is in folders");
        assert_eq!(matched(&["a/**"]).unwrap(), ["a/b/t-3.csv", "a/t-1.csv", "a/t-2.csv"]);
        assert_eq!(matched(&["**/t-?.csv"]).unwrap(), ["a/b/t-3.csv", "a/t-1.csv", "a/t-2.csv"]);
        assert_eq!(matched(&["**/*.csv"]).unwrap().len(), 5);
        assert_eq!(matched(&["a/t-[0-1].csv", "./u.csv"]).unwrap(), ["a/t-1.csv", "u.csv"]);
        assert_eq!(matched(&["a[1].csv"]).unwrap(), ["a[1].csv"]);
        assert!(matched(&["a/[z"]).is_err());
        assert_eq!(matched(&["/etc/*", "../*", "https://example.com/x.csv"]).unwrap(), [""; 0]);
    }

    #[test]
    fn a_declared_folder_is_the_root_of_its_files() {
        let files = names(&["x/train.csv", "x/deep/test.csv", "y/train.csv", "x-train.csv"]);
        let splits = of_declared(&declared(Some("./x/"), None), &files).unwrap();
        let subset = Subset { name: "x".into(), splits };
        assert_eq!(told(&[subset]), ["x/test: x/deep/test.csv", "x/train: x/train.csv"]);
        let splits = of_declared(&declared(Some("x"), Some(&[("dev", &["*.csv", "gone.csv"])])), &files).unwrap();
        assert_eq!(
            (splits[0].files.join(" "), splits[0].absent.join(" ")),
            ("x/train.csv".into(), "x/gone.csv".into())
        );
        assert!(!splits[0].listed);
    }

    #[test]
    fn the_hubs_copies_are_told_by_their_folders() {
        let files =
            names(&["en/train/0000.parquet", "en/train/0001.parquet", "de/partial-train/0000.parquet", "x.parquet"]);
        assert_eq!(
            told(&converted(&files)),
            ["de/train: de/partial-train/0000.parquet", "en/train: en/train/0000.parquet en/train/0001.parquet"]
        );
    }

    #[test]
    fn an_absent_shard_is_noticed() {
        let absent = |files: &[&str]| absent_shard(&names(files));
        assert_eq!(absent(&["a-00000-of-00002.parquet", "a-00001-of-00002-x.parquet", "b.parquet"]), None);
        let expected = Some("d/a-00001-of-00003".to_string());
        assert_eq!(absent(&["d/a-00000-of-00003.parquet", "d/a-00002-of-00003.parquet"]), expected);
        assert_eq!(absent(&["a-00009-of-00003.parquet", "é-of-00003", "-of-", "1-of-2"]), None);
    }
}
