//! The recipe's text and the command line's overrides, to blame a mistake on the right line of them.

use super::locate::{Locations, Place, join, locate, parent};
use crate::error::{Error, Located, Result};
use serde_yaml::{Mapping, Value};
use std::io::Read;
use std::path::Path;

/// The most bytes of a recipe.
const MAX_BYTES: u64 = 1 << 20;
/// The most characters of an offending line that an error carries.
const MAX_LINE: usize = 400;
/// The most keys in an override's path.
const MAX_KEYS: usize = 8;

/// One `--set section.key=value`.
#[derive(Debug)]
pub(super) struct Override {
    text: String,
    /// The dotted key.
    path: String,
    value: Value,
    /// Where the value begins in `text`, in characters from 1.
    column: usize,
}

/// What a recipe is read from.
pub(super) struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    pub locations: Locations,
    overrides: Vec<Override>,
}

/// Reads a recipe file.
pub(super) fn read(path: &Path) -> Result<String> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder, not a recipe").with_help(recipes_in(path)));
    }
    let file = std::fs::File::open(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::NotFound {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Error::file(path, "there is no such recipe").with_help(recipes_in(folder))
        } else {
            Error::io("read", path)(error)
        }
    })?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, "is over 1 MiB, which no recipe is").with_help("give the path of a YAML recipe"));
    }
    String::from_utf8(bytes).map_err(|error| not_utf8(path, error.as_bytes(), error.utf8_error().valid_up_to()))
}

fn not_utf8(path: &Path, bytes: &[u8], valid: usize) -> Error {
    let before = &bytes[..valid];
    let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let end = bytes[valid..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| valid + at);
    Error::Located(Box::new(Located {
        path: path.to_owned(),
        line: String::from_utf8_lossy(before).matches('\n').count() + 1,
        column: 1 + String::from_utf8_lossy(&bytes[start..valid]).chars().count(),
        width: 1,
        text: cut(&String::from_utf8_lossy(&bytes[start..end])),
        message: format!("the byte 0x{:02x} is not UTF-8 text", bytes[valid]),
        help: Some("save the recipe as UTF-8 (a GGUF or safetensors file goes under `base.model`)".into()),
    }))
}

fn recipes_in(folder: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
        .map(|path| path.strip_prefix("./").unwrap_or(&path).display().to_string())
        .collect();
    names.sort();
    let folder = if folder == Path::new(".") { "here".into() } else { format!("in {}", folder.display()) };
    match names.len() {
        0 => format!("there are no .yaml files {folder}"),
        1..=12 => format!("the recipes {folder}: {}", names.join(", ")),
        more => format!("the recipes {folder}: {}, and {} more", names[..12].join(", "), more - 12),
    }
}

fn cut(line: &str) -> String {
    line.trim_end_matches(['\r', '\n']).chars().take(MAX_LINE).collect()
}

impl<'a> Source<'a> {
    pub fn new(path: &'a Path, text: &'a str) -> Self {
        // A byte order mark, as some editors write it, is not part of the YAML.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { path, text, locations: locate(text), overrides: Vec::new() }
    }

    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The line of this number, from 1; empty past the end.
    pub fn line(&self, number: usize) -> &'a str {
        self.text.lines().nth(number.saturating_sub(1)).unwrap_or_default()
    }

    /// Parses `--set` arguments and applies them in order.
    pub fn apply(&mut self, overrides: &[String], root: &mut Value) -> Result<()> {
        for text in overrides {
            let (path, value) = text.split_once('=').ok_or_else(|| override_shape(text, 1))?;
            let column = path.chars().count() + 2;
            let path = path.trim();
            if path.split('.').any(|key| key.trim().is_empty()) || path.split('.').count() > MAX_KEYS {
                return Err(override_shape(text, 1));
            }
            let value: Value = serde_yaml::from_str(value).map_err(|error| {
                let problem = super::diagnose::yaml_problem(&error);
                in_override(
                    text,
                    Place { line: 1, column, width: usize::MAX },
                    format!("the value is not YAML: {problem}"),
                )
                .with_help("quote it for YAML inside the shell's quotes: --set 'name=\"a: b\"'")
            })?;
            let value = super::diagnose::untagged(value);
            let placed = Override { text: text.clone(), path: path.to_owned(), value, column };
            insert(root, &placed)?;
            self.overrides.push(placed);
        }
        Ok(())
    }

    fn override_of(&self, path: &str) -> Option<&Override> {
        let within =
            |own: &str| path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        self.overrides.iter().rev().find(|placed| within(&placed.path))
    }

    /// Whether the value at `path` came from the command line.
    pub fn is_override(&self, path: &str) -> bool {
        self.override_of(path).is_some()
    }

    /// The line of the key at `path`, unless it came from the command line.
    pub fn line_of(&self, path: &str) -> Option<usize> {
        if self.is_override(path) { None } else { self.locations.key(path).map(|place| place.line) }
    }

    /// The value at `path` as it was typed, quotes and all.
    pub fn typed(&self, path: &str) -> Option<String> {
        if self.is_override(path) {
            return None;
        }
        let place = self.locations.value(path)?;
        (Some(place) != self.locations.key(path))
            .then(|| self.line(place.line).chars().skip(place.column - 1).take(place.width).collect())
    }

    /// An error at the key at `path`, or at the closest thing above it.
    pub fn at_key(&self, path: &str, message: String) -> Error {
        self.at_path(path, message, Locations::key, true)
    }

    /// An error at the value at `path`, or at the closest thing above it.
    pub fn at_value(&self, path: &str, message: String) -> Error {
        self.at_path(path, message, Locations::value, false)
    }

    fn at_path(&self, path: &str, message: String, of: fn(&Locations, &str) -> Option<Place>, key: bool) -> Error {
        if let Some(placed) = self.override_of(path) {
            let place = if key && placed.path == path {
                let start = placed.path.rfind('.').map_or(0, |at| at + 1);
                let column = placed.path[..start].chars().count() + 1;
                Place { line: 1, column, width: placed.path[start..].chars().count() }
            } else {
                Place { line: 1, column: placed.column, width: usize::MAX }
            };
            return in_override(&placed.text, place, message);
        }
        let mut step = Some(path);
        while let Some(path) = step {
            // The whole recipe has a place too, but "the first key" says more than "everything".
            if let Some(place) =
                of(&self.locations, path).or_else(|| self.locations.key(path)).filter(|_| !path.is_empty())
            {
                return self.at(place, message);
            }
            if let Some(placed) = self.overrides.iter().find(|placed| !path.is_empty() && placed.path.starts_with(path))
            {
                return in_override(&placed.text, Place { line: 1, column: 1, width: path.chars().count() }, message);
            }
            step = parent(path);
        }
        self.at(self.locations.start.unwrap_or(Place { line: 1, column: 1, width: 1 }), message)
    }

    /// An error at a place of the file.
    pub fn at(&self, place: Place, message: String) -> Error {
        located(self.path, self.line(place.line), place, message)
    }
}

fn located(path: &Path, line: &str, place: Place, message: String) -> Error {
    let length = line.trim_end().chars().count();
    let column = place.column.clamp(1, length + 1);
    let width = place.width.clamp(1, (length + 1).saturating_sub(column).max(1));
    let path = path.to_owned();
    Error::Located(Box::new(Located { path, line: place.line, column, width, text: cut(line), message, help: None }))
}

fn in_override(text: &str, place: Place, message: String) -> Error {
    located(Path::new("--set"), text.lines().next().unwrap_or_default(), place, message)
}

fn override_shape(text: &str, column: usize) -> Error {
    in_override(text, Place { line: 1, column, width: usize::MAX }, "expected `section.key=value`".into())
        .with_help("for example --set training.learning_rate=1e-4, or --set 'lora.target_modules=[q_proj, v_proj]'")
}

fn insert(root: &mut Value, placed: &Override) -> Result<()> {
    let mut at = root;
    let mut so_far = String::new();
    for key in placed.path.split('.') {
        if at.is_null() {
            *at = Value::Mapping(Mapping::new());
        }
        let Value::Mapping(mapping) = at else {
            let place = Place { line: 1, column: 1, width: placed.path.chars().count() };
            let message = format!("`{so_far}` holds a value, not keys, so there is no `{}`", placed.path);
            return Err(in_override(&placed.text, place, message));
        };
        so_far = join(&so_far, key);
        at = mapping.entry(Value::String(key.to_owned())).or_insert(Value::Null);
    }
    *at = placed.value.clone();
    Ok(())
}
