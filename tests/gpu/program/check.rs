//! Comparisons with the CPU, as lines of JSON, under a watchdog: a kernel that never ends must not end in silence.

use crate::support::gpu_comparisons::{Comparison, Event, Extent, Theme, compare};
use crate::support::watch::Book;
use crate::{Opened, Sort, print, say};
use clap::{Args, ValueEnum as _};
use equipoise::device::Device;
use equipoise::error::Result;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is compared.
#[derive(Args)]
pub struct Arguments {
    /// Only these themes.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Theme>,
    /// Small sizes, and each buffer an allocation of its own (rounded up to 256 bytes): for tools such as compute-sanitizer.
    #[arg(long)]
    pub small: bool,
    /// Seconds that one comparison may take; then the process ends with exit code 4.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    each_limit: Option<u32>,
}

/// The comparison at hand: what it is called, its type, and since when.
type Current = Arc<Mutex<Option<(String, &'static str, Instant)>>>;

/// Makes the comparisons; the exit code.
pub fn run(opened: &Opened, arguments: &Arguments, json: bool) -> Result<u8> {
    opened.introduce(json)?;
    let small = arguments.small || opened.sort == Sort::Host;
    let extent = if small { Extent::Small } else { Extent::Whole };
    let themes = if arguments.only.is_empty() { Theme::value_variants() } else { &arguments.only };
    let current = Current::default();
    if let Some(seconds) = arguments.each_limit {
        watch_over(current.clone(), opened.book.clone(), Duration::from_secs(seconds.into()), json);
    }
    let (mut passed, mut count, mut written) = (0, 0, Ok(()));
    let mut on_event = |event: Event| {
        let line = match event {
            Event::Begin(name, dtype) => {
                let line = json!({"event": "begin", "name": name, "dtype": dtype}).to_string();
                *current.lock().unwrap_or_else(PoisonError::into_inner) = Some((name, dtype, Instant::now()));
                if !json {
                    return;
                }
                line
            }
            Event::Ended(each) => {
                // It was downloaded: what follows is the CPU's time.
                *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
                count += 1;
                passed += usize::from(each.passed());
                if let Some(failure) = &each.failure {
                    say(&format!("{} in {}: {failure}", each.name, each.dtype));
                }
                line(&each, json)
            }
        };
        if written.is_ok() {
            written = print(&line);
        }
    };
    let whole = compare(&Device::Gpu(opened.gpu.clone()), themes, &mut on_event, extent);
    *current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    written?;
    say(&format!("{passed} of {count} comparisons are within their tolerance"));
    if !whole {
        say("the GPU takes no more work in this process: the comparisons that follow were not made");
        return Ok(3);
    }
    Ok(u8::from(passed != count || count == 0))
}

fn line(each: &Comparison, json: bool) -> String {
    let Comparison { name, dtype, error, tolerance, cpu_error, failure } = each;
    if json {
        let mut line = json!({
            "name": name, "dtype": dtype, "error": error, "tolerance": tolerance, "passed": each.passed(),
        });
        if let Some(cpu_error) = cpu_error {
            line["cpu_error"] = json!(cpu_error);
        }
        if let Some(failure) = failure {
            line["failure"] = json!(failure);
        }
        return line.to_string();
    }
    let verdict = if each.passed() { "" } else { "  WRONG" };
    format!("{dtype:4} {error:9.2e} of {tolerance:.0e}  {name}{verdict}")
}

/// Ends the process where a comparison takes longer than it may. Only a thread of its own can: the main one waits for the GPU.
fn watch_over(current: Current, book: Arc<Book>, limit: Duration, json: bool) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let guard = current.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((name, dtype, begun)) = &*guard else { continue };
            if begun.elapsed() < limit {
                continue;
            }
            let seconds = limit.as_secs();
            let failure = Some(format!("no answer after {seconds} s; what was launched last: {}", book.last()));
            let (error, name) = (f64::NAN, name.clone());
            let last = Comparison { name, dtype, error, tolerance: 0.0, cpu_error: None, failure };
            let _ = print(&line(&last, json));
            say(&format!("{}: {}", last.name, last.failure.as_deref().unwrap_or_default()));
            // Not `exit`: what a driver does at the end of a process would wait for the kernel.
            // SAFETY: it ends the process; what was printed is flushed.
            #[expect(
                unsafe_code,
                reason = "the standard library ends a process only with all that is registered for it"
            )]
            unsafe {
                libc::_exit(4)
            }
        }
    });
}
