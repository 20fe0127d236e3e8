//! The command line: arguments in, text and an exit code out. Only here is anything printed.
//!
//! stdout is data, stderr is for people. Exit codes: 0 done, 1 failed, 2 input that the user can fix, 130 interrupted.

mod check;
mod compare;
mod data;
mod eval;
mod export;
mod generate;
mod interrupt;
mod lint;
mod models;
mod objectives;
mod output;
mod progress;
mod report;
mod step_line;
mod train;
mod upload;
mod verify;

use crate::device::{DeviceConfig, explain};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use clap::{ArgAction, Args, Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// The exit code after an interrupt, as shells have it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Fine-tune LoRA adapters on a frozen, quantized base model, under Balanced Fine-Tuning or another objective.
#[derive(Debug, Parser)]
#[command(name = "equipoise", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Say more on stderr; twice for still more (`EQUIPOISE_LOG` takes a filter such as `equipoise=debug`).
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Threads to compute with; by default one for each core.
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    threads: Option<NonZeroUsize>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train the adapter that a recipe describes.
    Train(train::TrainArgs),
    /// Say what a recipe would do: model, adapter, data, steps and memory, without training.
    Check(check::CheckArgs),
    /// Say what a recipe's data amounts to, and show rows as the model sees them.
    Data(data::DataArgs),
    /// Measure a model on tasks, as lm-evaluation-harness has them; an adapter beside its base.
    Eval(eval::EvalArgs),
    /// Compare evaluations of the same items: paired tests, intervals, calibration.
    Compare(compare::CompareArgs),
    /// Train a recipe under several objectives, and compare what came of them.
    Objectives(objectives::ObjectivesArgs),
    /// Write text with a trained adapter.
    Generate(generate::GenerateArgs),
    /// Write an adapter in the forms that inference servers take, or merge it.
    Export(export::ExportArgs),
    /// Compare exports with base and adapter.
    Verify(verify::VerifyArgs),
    /// Say what servers would refuse in an adapter, or load and get wrong.
    Lint(lint::LintArgs),
    /// List the families of models that can be trained, and what can be done with each.
    Models(models::ModelsArgs),
    /// Upload an adapter or a model to the Hugging Face Hub, in one commit.
    Upload(upload::UploadArgs),
}

/// What every command on a recipe takes.
#[derive(Debug, Args)]
struct RecipeArgs {
    /// The recipe, a YAML file.
    recipe: PathBuf,
    /// Override a key of the recipe; may be given several times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Where to compute: auto, cpu, cuda or cuda:N; takes precedence over the recipe's `device`.
    #[arg(long, value_parser = device)]
    device: Option<DeviceConfig>,
    /// Use only what is on this machine; fetch nothing.
    #[arg(long)]
    offline: bool,
    /// Print JSON on stdout, one object a line.
    #[arg(long)]
    json: bool,
}

impl RecipeArgs {
    fn load(&self) -> Result<Recipe> {
        let mut overrides = self.set.clone();
        overrides.extend(self.device.map(|device| format!("device={}", String::from(device))));
        Recipe::load(&self.recipe, &overrides)
    }
}

fn device(text: &str) -> Result<DeviceConfig, String> {
    DeviceConfig::try_from(text.to_owned())
}

fn threads(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "it must be a whole number, at least 1; leave `--threads` out to have one for each core")
}

/// Runs the command that the process was started with; returns its exit code.
pub fn main() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to the end is not a failure.
            let _ = error.print();
            if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
                let _ = output::Stdout::new().json("error", &report::as_json(&mistaken(&error))).finish();
            }
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    log_to_stderr(cli.verbose);
    if let Some(threads) = cli.threads {
        // It fails only where a pool was made before, in a process that runs several commands.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global();
    }
    let (outcome, json) = match &cli.command {
        Command::Train(args) => (train::run(args), args.recipe.json),
        Command::Check(args) => (check::run(args), args.recipe.json),
        Command::Data(args) => (data::run(args), args.recipe.json),
        Command::Eval(args) => (eval::run(args), args.json),
        Command::Compare(args) => (compare::run(args), args.json),
        Command::Objectives(args) => (objectives::run(args), args.recipe.json),
        Command::Generate(args) => (generate::run(args), args.json),
        Command::Export(args) => (export::run(args), args.json),
        Command::Verify(args) => (verify::run(args), args.json),
        Command::Lint(args) => (lint::run(args), args.json),
        Command::Models(args) => (models::run(args), args.json),
        Command::Upload(args) => (upload::run(args), args.json),
    };
    outcome.unwrap_or_else(|error| {
        let error = explain(error);
        if json {
            let _ = output::Stdout::new().json("error", &report::as_json(&error)).finish();
        }
        output::say(report::render(&error, &report::Look::of_stderr()).trim_end_matches('\n'));
        error.exit_code()
    })
}

/// A mistake in the arguments as an error: its first line, and the others as what to do.
fn mistaken(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let (first, more) = text.split_once('\n').unwrap_or((&text, ""));
    let more: Vec<_> = more.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Error::invalid(first.trim_start_matches("error: ")).with_help(more.join("; "))
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        // hf-hub reports its own tries; ours end in an error that says more.
        0 => "warn,hf_hub=off",
        1 => "equipoise=info,warn,hf_hub=off",
        2 => "equipoise=debug,info",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("EQUIPOISE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colors = output::colors(&std::io::stderr());
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colors)
        // It would panic where nobody reads stderr any more.
        .log_internal_errors(false);
    // A second subscriber can only be ours, in a process that runs several commands.
    let _ = subscriber.try_init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_threads_are_refused_with_what_to_do() {
        let error = |n| Cli::try_parse_from(["equipoise", "check", "x.yaml", "--threads", n]).unwrap_err().to_string();
        for n in ["0", "two", ""] {
            let error = error(n);
            assert!(error.contains("at least 1") && error.contains("leave `--threads` out"), "{error}");
        }
    }
}
