//! Ctrl-C and SIGTERM: the first asks the run to stop and save, the second ends it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes a line for people, above a bar if there is one.
pub(super) type Say = Box<dyn Fn(&str) + Send>;

/// Whether someone asked to stop.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on, for a run that saves what it has.
    pub fn listen(say: Say) -> Self {
        Self::saying(
            "stopping after this step, and saving; once more to stop at once",
            "stopped at once; the last checkpoint stands",
            say,
        )
    }

    /// Listens from now on, for work of which nothing half-done is kept.
    pub fn listen_to_leave(say: Say) -> Self {
        Self::saying("stopping; once more to stop at once", "stopped at once", say)
    }

    fn saying(first: &'static str, second: &'static str, say: Say) -> Self {
        let interrupt = Self::default();
        let asked = Arc::clone(&interrupt.0);
        let handler = move || {
            if asked.swap(true, Ordering::SeqCst) {
                say(second);
                std::process::exit(i32::from(super::INTERRUPTED));
            }
            say(first);
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will end the run without saving: {error}");
        }
        interrupt
    }

    /// Whether the run should stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
