//! Which of a folder's files are of which split, by their names, as `datasets` tells them.

use std::path::{Path, PathBuf};

/// A split, and the words that stand for it in names.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// What the files of a folder are for, and which of them were taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    pub files: Vec<PathBuf>,
    /// What was left out, for people; `None` where nothing was.
    pub note: Option<String>,
}

/// The split that a file's name speaks of.
fn of_name(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let words = || name.split(|c: char| !c.is_alphanumeric());
    // A number may follow the word: `train2`, `test01`.
    let is = |word: &str, known: &str| word.trim_end_matches(|c: char| c.is_ascii_digit()) == known;
    words().find_map(|word| {
        SPLITS.iter().find(|(_, known)| known.iter().any(|known| is(word, known))).map(|(split, _)| *split)
    })
}

/// The files to take for `wanted`, the first of these splits that there is. Where names tell splits, files of no split are of
/// the one to train on. Where none of the wanted is there, all are taken.
pub(super) fn choose(files: Vec<PathBuf>, wanted: &[&str]) -> Taken {
    let split = |path: &PathBuf| of_name(path);
    let known: Vec<_> = files.iter().filter_map(split).collect();
    let one = files.iter().all(|path| split(path) == split(&files[0]));
    if known.is_empty() || one || known.iter().all(|split| *split == "train") {
        return Taken { files, note: None };
    }
    let is = |path: &PathBuf, wanted: &str| match split(path) {
        Some(split) => split == wanted,
        // `rows.jsonl` beside `test.jsonl`: what is not named is to be learnt, unless something is.
        None => wanted == "train" && !files.iter().any(|path| split_is(path, "train")),
    };
    let Some(wanted) = wanted.iter().find(|wanted| files.iter().any(|path| is(path, wanted))) else {
        return Taken { files, note: None };
    };
    let (files, others): (Vec<_>, Vec<_>) = files.iter().cloned().partition(|path| is(path, wanted));
    let names = |files: &[PathBuf]| {
        let name = |path: &PathBuf| format!("`{}`", path.file_name().unwrap_or_default().to_string_lossy());
        let more = if files.len() > 5 { format!(" and {} more", files.len() - 5) } else { String::new() };
        format!("{}{more}", files.iter().take(5).map(name).collect::<Vec<_>>().join(", "))
    };
    let note =
        format!("by the names of its files, these are taken: {}; these are not: {}", names(&files), names(&others));
    Taken { files, note: Some(note) }
}

fn split_is(path: &Path, wanted: &str) -> bool {
    of_name(path) == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], wanted: &[&str]) -> (Vec<String>, bool) {
        let taken = choose(files.iter().map(PathBuf::from).collect(), wanted);
        (taken.files.iter().map(|path| path.display().to_string()).collect(), taken.note.is_some())
    }

    #[test]
    fn names_tell_what_is_to_be_learnt_and_what_to_measure_on() {
        let all = ["dev.jsonl", "test-00000-of-00001.parquet", "train_en.jsonl", "train-de.jsonl"];
        assert_eq!(chosen(&all, &["train"]), (vec!["train_en.jsonl".into(), "train-de.jsonl".into()], true));
        assert_eq!(chosen(&all, &["validation", "test"]), (vec!["dev.jsonl".into()], true));
        assert_eq!(chosen(&["rows.jsonl", "test.jsonl"], &["train"]), (vec!["rows.jsonl".into()], true));
        assert_eq!(
            chosen(&["extra.jsonl", "train.jsonl", "val.jsonl"], &["train"]),
            (vec!["train.jsonl".into()], true)
        );
    }

    #[test]
    fn where_names_tell_nothing_all_is_taken() {
        for files in [
            &["a.jsonl", "b.jsonl"][..],
            &["train-1.jsonl", "train-2.jsonl"],
            &["test.jsonl"],
            &["latest.csv", "contest.csv"],
        ] {
            let expected: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            assert_eq!(chosen(files, &["train"]), (expected, false));
        }
        assert!(!chosen(&["train.jsonl", "rows.jsonl"], &["validation", "test"]).1);
        assert_eq!(chosen(&["train.jsonl", "rows.jsonl"], &["train"]).0.len(), 2);
    }
}
