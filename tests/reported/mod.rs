//! What people who fine-tune have reported, of this program and of others, each on the smallest input that shows it:
//! `cases/<name>`, with `cases/tiny-base` (9,000 random parameters, a tokenizer of bytes, `ChatML`) beside them. What is
//! expected was found with transformers, PEFT, pandas or datasets; each test says where.

mod bases;
mod environment;
mod folder;
mod going_on;
mod rows;
mod runs;
mod signals;
mod templates;

use crate::support::workplace::{Refusal, refusal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A copy of a case's folder, the tiny base beside it.
pub struct Case {
    root: TempDir,
    name: String,
}

/// A row as `data --show` has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// The text, what is learnt between `[[` and `]]`.
    pub text: String,
    /// How many tokens it is.
    pub tokens: u64,
}

impl Case {
    pub fn new(name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reported/cases");
        for folder in [name, "tiny-base"] {
            copy(&cases.join(folder), &root.path().join(folder));
        }
        Self { root, name: name.to_owned() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(&self.name).join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// The program in the case's folder, with nothing of the caller's environment that changes what it says.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(option_env!("CARGO_BIN_EXE_equipoise").unwrap_or("equipoise"));
        command.current_dir(self.path("")).args(arguments).stdin(Stdio::null());
        command.env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1").env_remove("EQUIPOISE_LOG");
        command.env("EQUIPOISE_CACHE", self.path("cache"));
        command
    }

    /// What `data --json --show 9` says of a recipe; `settings` are `key=value`.
    #[track_caller]
    pub fn data(&self, recipe: &str, settings: &[&str]) -> Value {
        let output = self.data_command(recipe, settings).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The rows of [`Self::data`].
    #[track_caller]
    pub fn shown(&self, recipe: &str, settings: &[&str]) -> Vec<Shown> {
        shown(&self.data(recipe, settings))
    }

    /// What `data` refuses a recipe with.
    #[track_caller]
    pub fn refused(&self, recipe: &str, settings: &[&str]) -> Refusal {
        refusal(&self.data_command(recipe, settings).output().unwrap())
    }

    fn data_command(&self, recipe: &str, settings: &[&str]) -> Command {
        let mut all = vec!["data", recipe, "--json", "--show", "9"];
        all.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        self.command(&all)
    }
}

/// The rows of what `data --json` says.
pub fn shown(told: &Value) -> Vec<Shown> {
    let row = |row: &Value| {
        let piece = |piece: &Value| {
            let text = piece[0].as_str().unwrap();
            if piece[1] == true { format!("[[{text}]]") } else { text.to_owned() }
        };
        let text = row["segments"].as_array().unwrap().iter().map(piece).collect();
        Shown { text, tokens: row["tokens"].as_u64().unwrap() }
    };
    told["rows"].as_array().unwrap().iter().map(row).collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
