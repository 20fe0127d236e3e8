//! Which files a path of a recipe means.

use super::kind::{NAMES, is_data_file};
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The most names that a message lists.
const SHOWN: usize = 10;

/// The files that a recipe's `path` means: a file, a folder (the data files directly in it), or a pattern with `*`, `?`,
/// `[…]` or `**`; sorted. A path that is there is never taken for a pattern.
///
/// # Errors
/// When nothing is there, or nothing fits: tells what is there instead.
pub fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    if path.is_dir() {
        return data_files(path);
    }
    if !pattern.contains(['*', '?', '[']) || path.exists() {
        return if path.exists() { Ok(vec![path.to_path_buf()]) } else { Err(missing(path)) };
    }
    let options =
        glob::MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, case_sensitive: true };
    let matches = glob::glob_with(pattern, options).map_err(|error| {
        let message = format!("{pattern}: is no valid pattern: {} (character {})", error.msg, error.pos + 1);
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
        if !hidden && is_data_file(&path) && path.is_file() {
            files.push(path);
        }
    }
    // A licence or a note beside tables is none of them.
    if files.iter().any(|path| !is_text(path)) {
        files.retain(|path| !is_text(path));
    }
    if files.is_empty() {
        let help = format!("{}; data files are named {NAMES}", holds(folder));
        return Err(Error::file(folder, "there is no data file in this folder").with_help(help));
    }
    files.sort();
    Ok(files)
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
        let files = expand(root.join(pattern).to_str().unwrap())?;
        Ok(files.iter().map(|path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn files_folders_and_patterns_are_expanded_in_order() {
        let licensed = folder(&["d/rows.jsonl", "d/LICENSE.txt"]);
        assert_eq!(expanded(&licensed, "d").unwrap(), ["d/rows.jsonl"], "a licence is no data");
        let folder =
            folder(&["d/b.jsonl", "d/a.csv.gz", "d/README.md", "d/.c.jsonl", "d/e/f.jsonl", "x[1].jsonl", "x1.jsonl"]);
        assert_eq!(expanded(&folder, "d").unwrap(), ["d/a.csv.gz", "d/b.jsonl"]);
        assert_eq!(expanded(&folder, "d/b.jsonl").unwrap(), ["d/b.jsonl"]);
        assert_eq!(expanded(&folder, "d/*.jsonl").unwrap(), ["d/b.jsonl"]);
        assert_eq!(expanded(&folder, "d/**/*.jsonl").unwrap(), ["d/b.jsonl", "d/e/f.jsonl"]);
        assert_eq!(expanded(&folder, "*/?.csv*").unwrap(), ["d/a.csv.gz"]);
        assert_eq!(expanded(&folder, "x[1].jsonl").unwrap(), ["x[1].jsonl"], "a file that is there is no pattern");
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
        assert!(pattern.contains("no valid pattern"), "{pattern}");
    }
}
