//! `equipoise-gpu`: compares what a GPU computes with the CPU, and measures training steps on it. README.md says what it prints.
//!
//! `--device host` runs both, small, on a GPU that is none: the kernels compiled for the CPU.

#[path = "program/bench.rs"]
mod bench;
#[path = "program/model.rs"]
mod model;
#[expect(dead_code, unused_imports, clippy::unwrap_used, reason = "it is the tests': few parts of it are needed here")]
#[path = "../support/mod.rs"]
mod support;
#[path = "program/watch.rs"]
mod watch;

use clap::{Args, Parser, Subcommand};
use equipoise::device::driver::Driver;
use equipoise::device::{self, Device, DeviceConfig, Gpu};
use equipoise::error::{Error, Result};
use serde_json::json;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use support::gpu_comparisons::{Comparison, Extent, compare};
use watch::{Book, Watch};

/// Compares and measures on a GPU.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Every operation and whole steps against the CPU. Exit code 1 if one is not as it should be, 2 without a GPU.
    GpuCheck(Common),
    /// Tokens a second, memory and shares of time of training steps on a model of random weights.
    GpuBench {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        bench: bench::Arguments,
    },
}

#[derive(Args)]
struct Common {
    /// JSON, an object a line.
    #[arg(long)]
    json: bool,
    /// `cuda:N`, or `host` for a GPU that is none.
    #[arg(long, default_value = "cuda:0")]
    device: String,
}

/// An open GPU, and what is noted of it.
struct Opened {
    gpu: Gpu,
    book: Arc<Book>,
    host: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let common = match &arguments.command {
        Command::GpuCheck(common) | Command::GpuBench { common, .. } => common,
    };
    let opened = match open(&common.device) {
        Ok(opened) => opened,
        Err(error) => return failed(&error, 2),
    };
    let done = match &arguments.command {
        Command::GpuCheck(common) => check(&opened, common.json),
        Command::GpuBench { common, bench } => measure(&opened, bench, common.json),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => failed(&device::explain(error), 3),
    }
}

#[expect(clippy::print_stderr, reason = "all but results goes there")]
fn failed(error: &Error, code: u8) -> ExitCode {
    eprintln!("equipoise-gpu: {error}");
    if let Some(help) = error.help() {
        eprintln!("  {help}");
    }
    ExitCode::from(code)
}

/// Opens a GPU behind a [`Watch`].
fn open(name: &str) -> Result<Opened> {
    let (driver, host): (Box<dyn Driver>, bool) = if name == "host" {
        let Some((driver, _)) = support::host_gpu::host_driver() else {
            return Err(Error::invalid("--device host: it needs a C++ compiler, and the sources"));
        };
        (driver, true)
    } else {
        let config = DeviceConfig::try_from(name.to_owned())
            .map_err(|error| Error::invalid(format!("--device: {error}")).with_help("or `host`, which needs no GPU"))?;
        let DeviceConfig::Cuda(number) = config else {
            return Err(Error::invalid(format!("--device: expected `cuda:N` or `host`, got `{name}`")));
        };
        (device::open_driver(number)?, false)
    };
    let book = Arc::<Book>::default();
    let gpu = Gpu::new(Box::new(Watch { driver, book: book.clone() }));
    say(&format!("on {}", gpu.facts()?));
    Ok(Opened { gpu, book, host })
}

#[expect(clippy::print_stderr, reason = "all but results goes there")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Writes a line of results.
fn print(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
    written.map_err(|source| Error::Io { action: "write", path: "the standard output".into(), source })
}

/// All comparisons; whether all have passed.
fn check(opened: &Opened, json: bool) -> Result<bool> {
    let extent = if opened.host { Extent::Small } else { Extent::Whole };
    let (mut passed, mut count, mut written) = (0, 0, Ok(()));
    let mut on_each = |each: Comparison| {
        count += 1;
        passed += usize::from(each.passed());
        if let Some(failure) = &each.failure {
            say(&format!("{} in {}: {failure}", each.name, each.dtype));
        }
        if written.is_ok() {
            written = print(&line(&each, json));
        }
    };
    compare(&Device::Gpu(opened.gpu.clone()), &mut on_each, extent);
    written?;
    say(&format!("{passed} of {count} comparisons are within their tolerance"));
    Ok(passed == count && count > 0)
}

fn line(each: &Comparison, json: bool) -> String {
    let Comparison { name, dtype, error, tolerance, failure } = each;
    if json {
        let mut line = json!({
            "name": name, "dtype": dtype, "error": error, "tolerance": tolerance, "passed": each.passed(),
        });
        if let Some(failure) = failure {
            line["failure"] = json!(failure);
        }
        return line.to_string();
    }
    let verdict = if each.passed() { "" } else { "  WRONG" };
    format!("{dtype:4} {error:9.2e} of {tolerance:.0e}  {name}{verdict}")
}

fn measure(opened: &Opened, bench: &bench::Arguments, json: bool) -> Result<bool> {
    let result = bench::run(opened, bench)?;
    print(&if json { result.to_string() } else { format!("{result:#}") })?;
    Ok(true)
}
