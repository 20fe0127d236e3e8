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
    /// Opens the file at `path` to go on after `step`: what a killed run wrote beyond it is cut off, and where the step's
    /// validation is still to come, that too.
    pub(super) fn open(path: &Path, step: Option<usize>, validation_is_to_come: bool) -> Result<Self> {
        let kept = match step {
            Some(step) => read(path)?
                .lines()
                .filter_map(|line| Some((line, serde_json::from_str::<Line>(line).ok()?)))
                .take_while(|(_, line)| {
                    let is_to_come = |of: &Validation| validation_is_to_come && of.step == step;
                    !matches!(line, Line::Validation(of) if is_to_come(of))
                })
                .filter(|(_, line)| line.is_up_to(step))
                .flat_map(|(line, _)| [line, "\n"])
                .collect(),
            None => String::new(),
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

/// The validations in the file at `path`, up to a step and after training began.
pub(super) fn validations(path: &Path, step: usize) -> Result<Vec<Validation>> {
    let validation = |line: &str| match serde_json::from_str(line) {
        Ok(Line::Validation(validation)) => Some(validation),
        _ => None,
    };
    let text = read(path)?;
    Ok(text.lines().filter_map(validation).filter(|of| (1..=step).contains(&of.step)).collect())
}

/// The file's text; none where there is no file.
fn read(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(Error::io("read", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_older_files_are_read() {
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
        let mut record = Record::open(&path, None, false).unwrap();
        for step in 1..=3 {
            record.write(&Line::Skipped { step, reason: "the loss is not finite".into() }).unwrap();
        }
        drop(record);
        Record::open(&path, Some(2), false).unwrap().write(&Line::Skipped { step: 3, reason: "again".into() }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<_> = text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().step()).collect();
        assert_eq!(steps, [1, 2, 3]);
        assert!(text.ends_with("Z\"}\n") && text.contains("again"), "{text}");
    }

    #[test]
    fn a_line_with_a_number_that_is_none_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let health = Health::of(2, (f64::NAN, 0.0), (2.5, 0.5), 100, 2048);
        Record::open(&path, None, false).unwrap().write(&Line::Health(health)).unwrap();
        drop(Record::open(&path, Some(2), false).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let Line::Health(read) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert!(text.contains("\"cross_entropy\":null") && read.cross_entropy.is_nan(), "{text}");
        assert_eq!((read.base_cross_entropy, read.verdict), (2.5, health.verdict));
    }

    #[test]
    fn a_validation_that_is_still_to_come_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let validation = |step| Validation {
            step,
            cross_entropy: 2.5,
            token_accuracy: 0.5,
            token_probability: 0.3,
            likely_tokens: 0.0,
            objective_loss: 0.1,
            supervised_tokens: 9,
            best: false,
            tasks: Vec::new(),
        };
        let health = Line::Health(Health::of(2, (4.0, 0.1), (2.5, 0.5), 100, 2048));
        let mut record = Record::open(&path, None, false).unwrap();
        let lines = [Line::Validation(validation(1)), health.clone(), Line::Validation(validation(2)), health];
        for line in &lines {
            record.write(line).unwrap();
        }
        drop(record);
        drop(Record::open(&path, Some(2), false).unwrap());
        assert_eq!(validations(&path, 9).unwrap().len(), 2);
        drop(Record::open(&path, Some(2), true).unwrap());
        assert_eq!(validations(&path, 9).unwrap(), [validation(1)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2, "the step's own health stays");
    }
}
