//! The floors of the house: a room imports from the floors below its own only.

use std::path::{Path, PathBuf};

/// From the top. Rooms of one floor do not import each other.
const FLOORS: &[&[&str]] = &[
    &["cli"],
    &["run"],
    &["recipe"],
    &["train", "hub", "eval", "export", "report"],
    &["objectives", "adapter"],
    &["models", "data"],
    &["nn"],
    &["weights", "ops", "statistics"],
    &["calendar", "device", "fs", "rng", "text_scores", "weight_type"],
    &["error"],
];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The rooms that a line names as `crate::room`.
fn rooms(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let path = file.strip_prefix(&src).unwrap();
        let room = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(own) = floor(room) else { continue };
        let text = std::fs::read_to_string(file).unwrap();
        // What tests of a room use is their affair.
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        assert!(!code.contains("crate::{"), "{}: name each room in a line of its own", path.display());
        for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for other in rooms(line).filter(|other| *other != room) {
                if floor(other).is_some_and(|other| other <= own) {
                    wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(files.len() > 40, "the sources were found");
    assert!(wrong.is_empty(), "these imports do not point down:\n{}", wrong.join("\n"));
}

#[test]
fn every_room_has_a_floor() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for line in lib.lines() {
        if let Some(room) = line.strip_prefix("pub mod ").map(|rest| rest.trim_end_matches(';')) {
            assert!(floor(room).is_some(), "{room} has no floor");
        }
    }
}
