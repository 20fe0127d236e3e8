//! `metrics.jsonl`: a line for the run, and one for each step and each validation, each with the time of its writing.

use super::health::Health;
use super::metrics::{RunHeader, StepMetrics, Validation};
use crate::calendar::rfc3339;
use crate::error::{Error, Result};
use crate::fs;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Line {
    Run(Box<RunHeader>),
    Step(StepMetrics),
    Validation(Validation),
    Health(Health),
    Skipped { step: usize, reason: String },
}

/// A line as it is written: behind its type, the time, as `2026-11-26T06:28:07.250Z`.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    line: &'a Line,
    time: String,
}

impl Line {
    const fn step(&self) -> usize {
        match self {
            Self::Run(header) => header.resumed_after,
            Self::Step(metrics) => metrics.step,
            Self::Validation(validation) => validation.step,
            Self::Health(health) => health.step,
            Self::Skipped { step, .. } => *step,
        }
    }

    /// Whether the line is of what happened up to a step that the run goes on after.
    const fn is_up_to(&self, step: usize) -> bool {
        match self {
            // A run that went on after this step, and was killed before the next one, tells nothing.
            Self::Run(header) => header.resumed_after == 0 || header.resumed_after < step,
            _ => self.step() <= step,
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
                .filter(|line| serde_json::from_str::<Line>(line).is_ok_and(|line| line.is_up_to(step)))
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
        let written = Written { line, time: rfc3339(SystemTime::now()) };
        let mut text = serde_json::to_string(&written).map_err(|error| Error::invalid(format!("internal: {error}")))?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_earlier_versions_are_read() {
        let step = r#"{"type":"step","step":3,"epoch":0.5,"loss":0.125,"cross_entropy":2.5,"learning_rate":0.1,"grad_norm":1.0,"tokens":9,"supervised_tokens":4,"tokens_per_second":10.0,"objective":{}}"#;
        let Line::Step(step) = serde_json::from_str(step).unwrap() else { panic!("not a step") };
        assert_eq!((step.objective_loss, step.cross_entropy), (0.125, 2.5));
        let validation = r#"{"type":"validation","step":0,"loss":2.5,"objective_loss":0.125,"token_accuracy":0.5,"supervised_tokens":4,"best":true}"#;
        let Line::Validation(validation) = serde_json::from_str(validation).unwrap() else {
            panic!("not a validation")
        };
        assert_eq!((validation.objective_loss, validation.cross_entropy), (0.125, 2.5));
    }

    #[test]
    fn a_line_beyond_the_step_that_a_run_goes_on_after_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut record = Record::open(&path, None).unwrap();
        for step in 1..=3 {
            record.write(&Line::Skipped { step, reason: "the loss is not finite".into() }).unwrap();
        }
        drop(record);
        Record::open(&path, Some(2)).unwrap().write(&Line::Skipped { step: 3, reason: "again".into() }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<_> = text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().step()).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert!(text.ends_with("Z\"}\n") && text.contains("again"), "{text}");
    }
}
