//! `equipoise-gpu`: compares what a GPU computes with the CPU, measures training steps on it, and estimates them without one.
//! README.md says what it prints.
//!
//! `--device host` runs comparisons and measurements small, on kernels compiled for the CPU; `--device none` on a GPU that
//! computes nothing, to time the CPU's side.

#[path = "program/bench.rs"]
mod bench;
#[path = "program/check.rs"]
mod check;
#[path = "program/model.rs"]
mod model;
#[path = "program/profile.rs"]
mod profile;
#[path = "program/step_model.rs"]
mod step_model;
#[expect(dead_code, unused_imports, clippy::unwrap_used, reason = "it is the tests': few parts of it are needed here")]
#[path = "../support/mod.rs"]
mod support;

use clap::{Args, Parser, Subcommand};
use equipoise::device::driver::Driver;
use equipoise::device::{self, DeviceConfig, Gpu};
use equipoise::error::{Error, Result};
use equipoise::ops::cuda::programs;
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use support::null_gpu::NullGpu;
use support::watch::{Book, Fault, Watch};

/// Compares and measures on a GPU.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Operations and whole steps against the CPU. Exit code 1 if one is off, 2 without a GPU, 3 if the GPU takes no more work, 4
    /// if one gave no answer in time.
    GpuCheck {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        check: check::Arguments,
    },
    /// Tokens a second, memory, and the time of each piece of work, of training steps on a model of random weights.
    GpuBench {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        bench: bench::Arguments,
    },
    /// The time that a step needs at least on some GPUs, by its bytes and operations. Needs no GPU.
    GpuModel {
        #[command(flatten)]
        bench: bench::Arguments,
    },
    /// Writes the kernels' sources, as they are compiled, into a folder.
    Sources {
        /// The folder.
        folder: PathBuf,
        /// Widths of heads that attention is written for.
        #[arg(long, value_delimiter = ',', default_value = "64,128")]
        head_dims: Vec<usize>,
    },
}

#[derive(Args)]
struct Common {
    /// JSON, an object a line.
    #[arg(long)]
    json: bool,
    /// `cuda:N`, `host` for kernels compiled for the CPU, or `none`.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// For trials of what follows a fault: the first launch of this kernel never ends.
    #[arg(long, hide = true)]
    hang_in: Option<String>,
    /// For trials: the first launch of this kernel fails, and so does all that follows.
    #[arg(long, hide = true)]
    fail_in: Option<String>,
}

/// What a GPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Real,
    /// Kernels on the CPU: all must be small.
    Host,
    /// It computes nothing.
    Null,
}

/// An open GPU, and what is noted of it.
struct Opened {
    gpu: Gpu,
    book: Arc<Book>,
    sort: Sort,
}

fn main() -> ExitCode {
    // Warnings, such as of libraries that do not fit each other.
    let level = tracing_subscriber::filter::LevelFilter::WARN;
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
    let done = match Arguments::parse().command {
        Command::GpuCheck { common, check } => {
            open(&common, check.small).map(|opened| finished(check::run(&opened, &check, common.json)))
        }
        Command::GpuBench { common, bench } => {
            open(&common, false).map(|opened| finished(measure(&opened, &bench, common.json)))
        }
        Command::GpuModel { bench } => Ok(finished(step_model::run(&bench).map(|()| 0))),
        Command::Sources { folder, head_dims } => Ok(finished(write_sources(&folder, &head_dims).map(|()| 0))),
    };
    done.unwrap_or_else(|error| failed(&error, 2))
}

fn finished(done: Result<u8>) -> ExitCode {
    done.map_or_else(|error| failed(&device::explain(error), 3), ExitCode::from)
}

#[expect(clippy::print_stderr, reason = "all but results goes there")]
fn failed(error: &Error, code: u8) -> ExitCode {
    eprintln!("equipoise-gpu: {error}");
    if let Some(help) = error.help() {
        eprintln!("  {help}");
    }
    ExitCode::from(code)
}

/// Opens a GPU behind a [`Watch`]; `apart`, with an allocation of its own for each buffer.
fn open(common: &Common, apart: bool) -> Result<Opened> {
    let name = &*common.device;
    let (driver, sort): (Box<dyn Driver>, Sort) = match name {
        "host" => {
            let Some((driver, _)) = support::host_gpu::host_driver() else {
                return Err(Error::invalid("--device host: it needs a C++ compiler, and the sources"));
            };
            (driver, Sort::Host)
        }
        "none" => (Box::<NullGpu>::default(), Sort::Null),
        _ => {
            let config = DeviceConfig::try_from(name.to_owned()).map_err(|error| {
                Error::invalid(format!("--device: {error}")).with_help("or `host` or `none`, which need no GPU")
            })?;
            let DeviceConfig::Cuda(number) = config else {
                return Err(Error::invalid(format!("--device: expected `cuda:N`, `host` or `none`, got `{name}`")));
            };
            (device::open_driver(number)?, Sort::Real)
        }
    };
    let fault = match (&common.hang_in, &common.fail_in) {
        (Some(kernel), _) => Some(Fault { kernel: kernel.clone(), hangs: true }),
        (None, Some(kernel)) => Some(Fault { kernel: kernel.clone(), hangs: false }),
        (None, None) => None,
    };
    Ok(Opened::new(driver, sort, fault, apart))
}

impl Opened {
    fn new(driver: Box<dyn Driver>, sort: Sort, fault: Option<Fault>, apart: bool) -> Self {
        let book = Arc::<Book>::default();
        let watch = Watch::new(driver, book.clone(), fault).with_buffers_apart(apart);
        Self { gpu: Gpu::new(Box::new(watch)), book, sort }
    }

    /// Says which GPU it is, and which libraries it is used through.
    fn introduce(&self, json: bool) -> Result<()> {
        let facts = self.gpu.facts()?;
        let libraries: Map<String, Value> =
            facts.libraries.iter().map(|(name, path)| (name.clone(), json!(path.display().to_string()))).collect();
        for (name, path) in &facts.libraries {
            say(&format!("{name}: {}", path.display()));
        }
        say(&format!("on {facts}"));
        if json {
            print(&json!({"event": "opened", "gpu": facts.to_string(), "libraries": libraries}).to_string())?;
        }
        Ok(())
    }
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

fn measure(opened: &Opened, bench: &bench::Arguments, json: bool) -> Result<u8> {
    opened.introduce(json)?;
    let result = bench::run(opened, bench)?;
    print(&if json { result.to_string() } else { format!("{result:#}") })?;
    Ok(0)
}

fn write_sources(folder: &std::path::Path, head_dims: &[usize]) -> Result<()> {
    let wrap = |source| Error::Io { action: "write", path: folder.into(), source };
    std::fs::create_dir_all(folder).map_err(wrap)?;
    for program in head_dims.iter().flat_map(|&head_dim| programs(head_dim)) {
        let mut name = program.name.to_owned();
        for (_, value) in &program.defines {
            name = format!("{name}-{value}");
        }
        std::fs::write(folder.join(format!("{name}.cu")), program.text()).map_err(wrap)?;
    }
    Ok(())
}
