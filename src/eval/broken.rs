//! Files of a folder of tasks that cannot be read. They stand in the way of the tasks that they name, and of no others.

use crate::error::Error;
use serde_yaml::Value;
use std::path::{Path, PathBuf};

/// A file that cannot be read as a task or a group.
#[derive(Debug)]
pub(super) struct Broken {
    pub path: PathBuf,
    /// The task or group that it names, as far as it can be known.
    pub name: Option<String>,
    tags: Vec<String>,
    message: String,
    help: Option<String>,
}

impl Broken {
    /// A file with its bytes. They may be YAML all the same: `!function` is, and is refused.
    pub fn new(path: &Path, bytes: &[u8], error: &Error) -> Self {
        let (name, tags) = match serde_yaml::from_slice::<Value>(bytes) {
            Ok(keys) => {
                let text = |key: &str| keys.get(key).and_then(Value::as_str).map(str::to_owned);
                let tags = match keys.get("tag") {
                    Some(Value::String(tag)) => vec![tag.clone()],
                    Some(Value::Sequence(tags)) => tags.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                    _ => Vec::new(),
                };
                (text("group").or_else(|| text("task")), tags)
            }
            Err(_) => (in_lines(&String::from_utf8_lossy(bytes)), Vec::new()),
        };
        Self { path: path.to_owned(), name, tags, message: error.to_string(), help: error.help().map(str::to_owned) }
    }

    /// Whether its task, its group or one of its tags has this name.
    pub fn is_called(&self, name: &str) -> bool {
        self.name.as_deref() == Some(name) || self.tags.iter().any(|tag| tag == name)
    }

    /// Why it cannot be read.
    pub fn error(&self) -> Error {
        let error = Error::invalid(self.message.clone());
        match &self.help {
            Some(help) => error.with_help(help.clone()),
            None => error,
        }
    }
}

/// The name in a text that is no YAML.
fn in_lines(text: &str) -> Option<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("group:").or(line.strip_prefix("task:")));
    let names = names.map(|name| name.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']));
    names.filter(|name| !name.is_empty() && !name.starts_with('[')).map(str::to_owned).next()
}
