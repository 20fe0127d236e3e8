//! Trains a recipe through the library, watched by an observer of one's own.
//!
//! ```sh
//! cargo run --release --example train -- recipes/quickstart.yaml
//! ```
//!
//! The adapter goes to `adapters/example`, and a run that is there is replaced.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that speaks to people")]

use equipoise::Result;
use equipoise::recipe::Recipe;
use equipoise::run::{self, RunOptions};
use equipoise::train::{Event, Observer};
use std::path::Path;
use std::process::ExitCode;

/// Prints a line for every tenth step, and for each validation.
struct Printer;

impl Observer for Printer {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Phase(name) => println!("{name}"),
            Event::Step { metrics, .. } if metrics.step % 10 == 0 => {
                println!(
                    "step {:>4}  cross-entropy {:.4}  {:.0} tokens/s",
                    metrics.step, metrics.cross_entropy, metrics.tokens_per_second
                );
            }
            Event::Validation(validation) => {
                println!("step {:>4}  validation: cross-entropy {:.4}", validation.step, validation.cross_entropy);
            }
            _ => {}
        }
    }
}

fn train(path: &Path) -> Result<()> {
    // What `--set` does on the command line.
    let recipe = Recipe::load(path, &["output_dir=adapters/example".to_owned()])?;
    let options = RunOptions { overwrite: true, ..RunOptions::default() };
    let summary = run::train(&recipe, &options, &mut Printer)?;
    println!("{} steps; the adapter is that of step {}:", summary.steps, summary.adapter_step);
    for file in &summary.files {
        println!("  {}", file.display());
    }
    Ok(())
}

fn main() -> ExitCode {
    let path = std::env::args().nth(1).unwrap_or_else(|| "recipes/quickstart.yaml".to_owned());
    match train(Path::new(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            if let Some(help) = error.help() {
                eprintln!("help: {help}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}
