//! What a run tells whoever watches it.

use super::Health;
use super::metrics::{RunHeader, StepMetrics, Validation};
use std::path::PathBuf;

/// Something happened that a person might want to see. The library tells; it never prints.
#[derive(Debug, Clone)]
pub enum Event {
    /// A phase begins: `reading the base`, `tokenizing`, ...
    Phase(String),
    /// A remark that does not belong to a step: a fallback type, rows that were cut.
    Note(String),
    /// Something that is likely to be a mistake.
    Warning(String),
    /// Bytes are on their way: a file that is fetched, rows that are tokenized.
    Bytes {
        /// What is done with them.
        what: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all; 0 where that is not known.
        total: u64,
    },
    /// What runs, just before it does.
    Run(RunHeader),
    /// Of several runs, the next one. Their headers would say the same again and again.
    NextRun {
        /// Its place, and what is of its own.
        what: String,
        /// The objective.
        objective: String,
    },
    /// Training begins, at this step of that many.
    Start {
        /// The last step that is already done: 0, or where a checkpoint stands.
        step: usize,
        /// Steps in all.
        total_steps: usize,
    },
    /// An optimizer step was taken.
    Step {
        /// Its numbers.
        metrics: StepMetrics,
        /// Seconds until the end of the run, as far as is known: of steps, validations and what comes after.
        seconds_left: Option<f64>,
    },
    /// The validation rows are being measured.
    Validating {
        /// Rows so far.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// Items are being answered or compared.
    Items {
        /// Of what.
        what: String,
        /// Items so far.
        done: usize,
        /// Items in all.
        total: usize,
    },
    /// The adapter was compared with the base alone, and there is something new to say.
    Health(Health),
    /// The validation rows were measured.
    Validation(Validation),
    /// A step was skipped since its loss or gradient is not finite.
    Skipped {
        /// The step.
        step: usize,
        /// Steps skipped in this run so far.
        skipped: usize,
    },
    /// A checkpoint stands on the disk.
    Saved {
        /// The step.
        step: usize,
        /// Its folder.
        path: PathBuf,
    },
    /// Validation has not improved for `early_stopping_patience` measurements.
    EarlyStop {
        /// The step.
        step: usize,
        /// The step of the best validation.
        best_step: usize,
    },
    /// The run was asked to stop, and did so after this step, saved; before the first step, 0, there is nothing to save.
    Interrupted {
        /// The step.
        step: usize,
    },
}

/// Watches a run.
pub trait Observer {
    /// Gets each event, in order.
    fn event(&mut self, event: &Event);

    /// Whether the run should stop after the step at hand, as after Ctrl-C.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Observer for () {
    fn event(&mut self, _event: &Event) {}
}
