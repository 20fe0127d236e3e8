//! Which files a path of a recipe means.

use super::foreign;
use super::kind::{NAMES, is_data_file};
use super::splits::{self, Taken};
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The most names that a message lists.
const SHOWN: usize = 10;

/// Names of files that stand beside data, and describe it: of `datasets`, of models and of packages.
const BESIDE: &[&str] = &[
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "croissant.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "package.json",
    "license.txt",
    "licence.txt",
    "readme.txt",
    "notice.txt",
    "citation.txt",
    "requirements.txt",
];

/// The files that a recipe's `path` means: a file, a folder (the data files directly in it; where their names speak of
/// splits, those of the first of `wanted`), or a pattern with `*`, `?`, `[…]` or `**`; sorted. A path that is there is never
/// taken for a pattern. Also what was left out of a folder, for people. `~` and variables are the recipe's to expand.
///
/// # Errors
/// When nothing is there, or nothing fits: says what is there instead.
pub fn expand(pattern: &str, wanted: &[&str]) -> Result<(Vec<PathBuf>, Option<String>)> {
    let path = Path::new(pattern);
    if path.is_dir() {
        let Taken { files, note } = splits::choose(data_files(path)?, wanted);
        return Ok((files, note.map(|note| format!("{}: {note}", path.display()))));
    }
    if path.exists() {
        return Ok((vec![path.to_path_buf()], None));
    }
    if !pattern.contains(['*', '?', '[']) {
        return Err(missing(path));
    }
    Ok((matching(pattern)?, None))
}

/// The files that fit a pattern.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    let options =
        glob::MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, case_sensitive: true };
    let matches = glob::glob_with(pattern, options).map_err(|error| {
        let message = format!("{pattern}: is not a valid pattern: {} (character {})", error.msg, error.pos + 1);
        Error::invalid(message)
            .with_help("`*` stands for any part of a name, `**` for any folders, `[[]` for a bracket")
    })?;
    let mut files = Vec::new();
    for found in matches {
        let path = found.map_err(|error| {
            let path = error.path().to_path_buf();
            Error::io("read", path)(error.into())
        })?;
        if !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::file(path, "no file fits this pattern").with_help(around(path)));
    }
    files.sort();
    Ok(files)
}

/// The data files directly in a folder, sorted.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && is_data_file(&path) && !is_beside(&path) && path.is_file() {
            files.push(path);
        }
    }
    // A licence or a note beside tables is none of them.
    if files.iter().any(|path| !is_text(path)) {
        files.retain(|path| !is_text(path));
    }
    if files.is_empty() {
        return Err(without_data(folder));
    }
    files.sort();
    Ok(files)
}

/// The error of a folder that holds no data file: what it is, where that can be told.
fn without_data(folder: &Path) -> Error {
    let inside: Vec<PathBuf> = names(folder).into_iter().map(|name| folder.join(name)).collect();
    let has = |name: &str| folder.join(name).is_file();
    let arrow = inside.iter().any(|path| path.extension().is_some_and(|extension| extension == "arrow"));
    if has("dataset_dict.json") || has("state.json") && arrow {
        return Error::file(folder, "is a dataset that `datasets` saved with `save_to_disk` (Arrow files), which is not read here")
            .with_help(
                "write its rows to a file that is read: `load_from_disk(FOLDER).to_parquet(\"rows.parquet\")`, of a dataset \
                 with splits `load_from_disk(FOLDER)[\"train\"]`; or `.to_json(\"rows.jsonl\")`",
            );
    }
    if arrow {
        return Error::file(folder, "holds Arrow files, as the cache of `datasets` has them, which are not read here").with_help(
            "write the rows to a file that is read: `load_dataset(NAME, split=\"train\").to_parquet(\"rows.parquet\")`; a \
             dataset on the Hub can be named itself: `train: {hub: org/name}`",
        );
    }
    let foreign = inside.iter().filter(|path| path.is_file()).find_map(|path| Some((path, foreign::of_name(path)?)));
    if let Some((path, foreign)) = foreign.filter(|(path, _)| !is_beside(path) && !is_note(path)) {
        return foreign.error(path);
    }
    let deeper: Vec<_> = inside.iter().filter(|path| path.is_dir() && data_files(path).is_ok()).collect();
    let shown = |path: &PathBuf| format!("`{}`", path.display());
    let help = match deeper[..] {
        [] => format!("{}; data files are named {NAMES}", holds(folder)),
        [one] => format!("{} holds data files: name that folder", shown(one)),
        _ => {
            let all: Vec<_> = deeper.iter().take(SHOWN).map(|path| shown(path)).collect();
            format!(
                "these folders in it hold data files: {}; name the one to train on, or a list of them",
                all.join(", ")
            )
        }
    };
    Error::file(folder, "there is no data file in this folder").with_help(help)
}

/// Whether a file describes the data beside it.
fn is_beside(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    BESIDE.contains(&name.as_str()) || name.contains("croissant") && path.extension().is_some_and(|end| end == "json")
}

fn is_note(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["md", "yaml", "yml", "toml"].iter().any(|note| extension == *note))
}

fn is_text(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    [".txt", ".txt.gz", ".txt.zst"].iter().any(|end| name.ends_with(end))
}

/// The error of a file that is not there, with the names that are near.
pub(super) fn missing(path: &Path) -> Error {
    let text = path.to_string_lossy();
    let hub = match text.split('/').collect::<Vec<_>>()[..] {
        [owner, name] if !owner.is_empty() && !owner.starts_with('.') && !is_data_file(Path::new(name)) => {
            format!("; a dataset on the Hub is written `{{hub: {text}}}`")
        }
        _ => String::new(),
    };
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    if parts.len() > 1 && parts.iter().any(|part| Path::new(part).exists()) {
        let help = format!("several files are a list, in brackets: [{}]", parts.join(", "));
        return Error::file(path, "there is no such file; it reads as one name").with_help(help);
    }
    Error::file(path, "there is no such file").with_help(format!("{}{hub}", around(path)))
}

/// What there is in place of `path`, for people.
fn around(path: &Path) -> String {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        let there = path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.is_dir();
        let lacking = path.ancestors().skip(1).take_while(missing).last().unwrap_or(parent);
        if lacking.to_string_lossy().contains(['*', '?', '[']) {
            return holds(there);
        }
        let here = if there == Path::new(".") { "this folder" } else { "what is there" };
        return format!("there is no folder `{}`; {here}: {}", lacking.display(), holds(there));
    }
    let wanted = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let near = |name: &String| strsim::jaro_winkler(&name.to_lowercase(), &wanted);
    let best = names(parent).into_iter().max_by(|a, b| near(a).total_cmp(&near(b)));
    match best {
        Some(best) if near(&best) > 0.85 => format!("did you mean {}?", parent.join(best).display()),
        _ => holds(parent),
    }
}

/// What a folder holds, for people.
fn holds(folder: &Path) -> String {
    let names = names(folder);
    if names.is_empty() {
        return format!("{} is empty", folder.display());
    }
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    format!("{} holds {}{more}", folder.display(), shown.join(", "))
}

/// The names in a folder that are not hidden, data files first. At most some thousand are looked at.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(10_000);
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort_by_key(|name| (!is_data_file(Path::new(name)), name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"{}").unwrap();
        }
        folder
    }

    fn expanded(folder: &tempfile::TempDir, pattern: &str) -> Result<Vec<String>> {
        let root = folder.path();
        let (files, _) = expand(root.join(pattern).to_str().unwrap(), &["train"])?;
        Ok(files.iter().map(|path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn files_folders_and_patterns_are_expanded_in_order() {
        let licensed = folder(&["d/rows.jsonl", "d/LICENSE.txt"]);
        assert_eq!(expanded(&licensed, "d").unwrap(), ["d/rows.jsonl"], "a licence is not data");
        let folder =
            folder(&["d/b.jsonl", "d/a.csv.gz", "d/README.md", "d/.c.jsonl", "d/e/f.jsonl", "x[1].jsonl", "x1.jsonl"]);
        assert_eq!(expanded(&folder, "d").unwrap(), ["d/a.csv.gz", "d/b.jsonl"]);
        assert_eq!(expanded(&folder, "d/b.jsonl").unwrap(), ["d/b.jsonl"]);
        assert_eq!(expanded(&folder, "d/*.jsonl").unwrap(), ["d/b.jsonl"]);
        assert_eq!(expanded(&folder, "d/**/*.jsonl").unwrap(), ["d/b.jsonl", "d/e/f.jsonl"]);
        assert_eq!(expanded(&folder, "*/?.csv*").unwrap(), ["d/a.csv.gz"]);
        assert_eq!(expanded(&folder, "x[1].jsonl").unwrap(), ["x[1].jsonl"], "a file that is there is not a pattern");
    }

    #[test]
    fn what_stands_beside_data_is_not_taken_for_it() {
        let beside = [
            "d/README.md",
            "d/LICENSE.txt",
            "d/dataset_infos.json",
            "d/.gitattributes",
            "d/x.croissant.json",
            "d/a.lock",
        ];
        let beside = folder(
            &[&beside[..], &["d/a.json", "e/state.json", "e/dataset_info.json", "e/data-00000-of-00001.arrow"]]
                .concat(),
        );
        assert_eq!(expanded(&beside, "d").unwrap(), ["d/a.json"]);
        let saved = expanded(&beside, "e").unwrap_err();
        assert!(
            saved.to_string().contains("`save_to_disk`") && saved.help().unwrap().contains("to_parquet"),
            "{saved}"
        );
        let repository = folder(&["d/README.md", "d/data/train.jsonl"]);
        assert!(expanded(&repository, "d").unwrap_err().help().unwrap().contains("d/data` holds data files"));
        let splits = folder(&["d/test/a.jsonl", "d/train/a.jsonl"]);
        let help = expanded(&splits, "d").unwrap_err().help().unwrap().to_owned();
        assert!(help.contains("d/test`") && help.contains("d/train`; name the one to train on"), "{help}");
        let sheet = folder(&["d/Scores.xlsx"]);
        assert!(expanded(&sheet, "d").unwrap_err().to_string().contains("Excel"));
    }

    #[test]
    fn several_names_in_one_text_are_a_list() {
        let folder = folder(&["a.jsonl", "b.jsonl"]);
        let [a, b] = ["a.jsonl", "b.jsonl"].map(|name| folder.path().join(name).display().to_string());
        let error = expand(&format!("{a}, {b}"), &["train"]).unwrap_err();
        assert!(error.help().unwrap().ends_with(&format!("[{a}, {b}]")), "{error:?}");
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let folder = folder(&["data/train.jsonl", "data/valid.jsonl", "docs/notes.md"]);
        let help = |pattern: &str| expanded(&folder, pattern).unwrap_err().help().unwrap().to_string();
        assert!(
            help("data/trian.jsonl").contains("did you mean") && help("data/trian.jsonl").ends_with("train.jsonl?")
        );
        assert!(help("data/other.csv").contains("holds `train.jsonl`, `valid.jsonl`"), "{}", help("data/other.csv"));
        assert!(help("dta/train.jsonl").contains("there is no folder"), "{}", help("dta/train.jsonl"));
        assert!(help("data/*.csv").contains("`train.jsonl`"), "{}", help("data/*.csv"));
        assert!(help("docs").contains("`notes.md`") && help("docs").contains("`.parquet`"));
        let pattern = expanded(&folder, "data/[a.jsonl").unwrap_err().to_string();
        assert!(pattern.contains("not a valid pattern"), "{pattern}");
    }
}
