//! `metrics.jsonl`: a line for each step and each validation.

use super::metrics::{StepMetrics, Validation};
use crate::error::{Error, Result};
use crate::fs;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Line {
    Step(StepMetrics),
    Validation(Validation),
    Skipped { step: usize, reason: String },
}

impl Line {
    const fn step(&self) -> usize {
        match self {
            Self::Step(metrics) => metrics.step,
            Self::Validation(validation) => validation.step,
            Self::Skipped { step, .. } => *step,
        }
    }
}

/// The open file.
pub(super) struct Record {
    path: PathBuf,
    file: File,
}

impl Record {
    /// Opens the file at `path` to go on after `step`: what a killed run wrote beyond it is cut off.
    pub(super) fn open(path: &Path, step: Option<usize>) -> Result<Self> {
        let read = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(Error::io("read", path))?,
        };
        let kept = match step {
            Some(step) => String::from_utf8_lossy(&read)
                .lines()
                .filter(|line| serde_json::from_str::<Line>(line).is_ok_and(|line| line.step() <= step))
                .flat_map(|line| [line, "\n"])
                .collect(),
            _ => String::new(),
        };
        fs::write_atomic(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Appends a line.
    pub(super) fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|error| Error::invalid(format!("internal: {error}")))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))
    }
}
