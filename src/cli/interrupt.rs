//! Signals: the first asks the run to stop and save, a second Ctrl-C or SIGTERM ends it at once.
//!
//! A signal that was ignored when the process began stays ignored: `nohup` does that with SIGHUP, a script with the SIGINT of
//! its background jobs.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What asks to stop: people, a closed terminal, and what SLURM and LSF can send before a job's time is up.
const ASKING: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU];

/// What comes so soon after the first is the same request: wrappers send on what the terminal has sent to both.
const SAME_REQUEST: Duration = Duration::from_millis(300);

/// Writes a line for people, above a bar if there is one.
pub(super) type Say = Box<dyn Fn(&str) + Send>;

/// Whether someone asked to stop.
#[derive(Debug, Clone, Default)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on, for a run that saves what it has.
    pub fn listen(say: Say) -> Self {
        Self::saying(
            "stopping, and saving what is done; once more to stop at once",
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
        let heard: Vec<i32> = ASKING.into_iter().filter(|signal| !is_ignored(*signal)).collect();
        let asked = Arc::clone(&interrupt.0);
        let listening = Signals::new(heard).and_then(|mut signals| {
            let listen = move || {
                let mut since: Option<Instant> = None;
                for signal in signals.forever() {
                    let Some(first_heard) = since else {
                        asked.store(true, Ordering::SeqCst);
                        since = Some(Instant::now());
                        say(first);
                        continue;
                    };
                    // Of a terminal that closes, the kernel and the shell both tell.
                    if matches!(signal, SIGINT | SIGTERM) && first_heard.elapsed() > SAME_REQUEST {
                        say(second);
                        std::process::exit(i32::from(super::INTERRUPTED));
                    }
                }
            };
            std::thread::Builder::new().name("signals".into()).spawn(listen)
        });
        if let Err(error) = listening {
            tracing::warn!("Ctrl-C will end the run without saving: {error}");
        }
        interrupt
    }

    /// Whether the run should stop.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Whether a signal is ignored now.
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes; the old one is written to memory of its own type, which zeros make valid
    // even where the call fails.
    #[expect(unsafe_code, reason = "nothing safe tells what a signal does now")]
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
