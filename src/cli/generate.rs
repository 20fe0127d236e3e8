//! `equipoise generate`: text from a trained adapter.

use super::device;
use super::output::{Stdout, duration, printable, say};
use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::models::Sampling;
use crate::run::{self, GenerateRequest};
use crate::train::{Event, Observer};
use clap::Args;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// The most bytes of a prompt on stdin.
const MAX_PROMPT: u64 = 1 << 20;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct GenerateArgs {
    /// The adapter: a folder that `train` wrote, or a PEFT LoRA folder.
    adapter: PathBuf,
    /// What to answer; `-`, or nothing in a pipe, reads it from stdin.
    prompt: Option<String>,
    /// Leave the adapter out, for comparison.
    #[arg(long)]
    base_only: bool,
    /// Another base model than the adapter names: a folder, a .gguf file or a Hub id.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// A system message.
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Give the prompt to the model as it is, without the chat template.
    #[arg(long)]
    raw: bool,
    /// The most tokens to write.
    #[arg(long, value_name = "N", default_value = "256", value_parser = at_least_one)]
    max_tokens: usize,
    /// How freely to sample; 0 takes the likeliest token each time.
    #[arg(long, value_name = "T", default_value = "0", value_parser = temperature)]
    temperature: f64,
    /// Sample among the K likeliest tokens.
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Sample among the likeliest tokens that together have probability P.
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f64>,
    /// Decides the sampling.
    #[arg(long, value_name = "N", default_value = "42")]
    seed: u64,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: DeviceConfig,
    /// Use only what is on this machine; fetch nothing.
    #[arg(long)]
    offline: bool,
    /// Print one JSON object on stdout, at the end.
    #[arg(long)]
    pub json: bool,
}

/// Shows nothing but what a user should know: the text is what was asked for.
struct NotesOnly;

impl Observer for NotesOnly {
    fn event(&mut self, event: &Event) {
        if let Event::Note(text) = event {
            say(&format!("note: {}", printable(text)));
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "expected a whole number, at least 1".into())
}

fn temperature(text: &str) -> Result<f64, String> {
    let fits = |number: &f64| number.is_finite() && *number >= 0.0;
    text.parse().ok().filter(fits).ok_or_else(|| "expected a number, at least 0".into())
}

fn probability(text: &str) -> Result<f64, String> {
    let fits = |number: &f64| *number > 0.0 && *number <= 1.0;
    text.parse().ok().filter(fits).ok_or_else(|| "expected a number above 0, at most 1".into())
}

pub(super) fn run(args: &GenerateArgs) -> Result<u8> {
    if args.temperature == 0.0 && (args.top_k.is_some() || args.top_p.is_some()) {
        let message = "--top-k and --top-p choose what is sampled among, but at temperature 0 nothing is sampled";
        return Err(Error::invalid(message).with_help("add --temperature 0.7"));
    }
    let request = GenerateRequest {
        adapter: args.adapter.clone(),
        base: args.base.clone(),
        base_only: args.base_only,
        system: args.system.clone(),
        raw: args.raw,
        prompt: prompt(args.prompt.as_deref())?,
        max_tokens: args.max_tokens,
        sampling: Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed },
        offline: args.offline,
        device: args.device,
    };
    let mut stdout = Stdout::new();
    // On a terminal the model must not move the cursor; in a file its text stands as it is.
    let terminal = std::io::stdout().is_terminal();
    let mut ends_line = false;
    let summary = run::generate(&request, &mut NotesOnly, &mut |text| {
        if !args.json && !text.is_empty() {
            ends_line = text.ends_with('\n');
            stdout.text(&if terminal { printable(text) } else { text.to_owned() });
        }
        true
    });
    if args.json {
        stdout.json("generate", &summary?).finish()?;
        return Ok(0);
    }
    if !ends_line && summary.is_ok() {
        stdout.text("\n");
    }
    let summary = summary?;
    stdout.finish()?;
    if terminal && std::io::stderr().is_terminal() {
        let end = if summary.finished_by_eos { "" } else { "; cut by --max-tokens" };
        say(&format!("({} tokens in {}{end})", summary.tokens, duration(summary.seconds)));
    }
    Ok(0)
}

/// The prompt from the command line or from stdin, less the line break at its end.
fn prompt(argument: Option<&str>) -> Result<String> {
    let stdin = std::io::stdin();
    match argument {
        Some(prompt) if prompt != "-" => return Ok(prompt.to_owned()),
        None if stdin.is_terminal() => {
            return Err(
                Error::invalid("no prompt").with_help("equipoise generate ADAPTER \"PROMPT\", or pipe the prompt in")
            );
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    stdin.lock().take(MAX_PROMPT + 1).read_to_end(&mut bytes).map_err(Error::io("read", "stdin"))?;
    if bytes.len() as u64 > MAX_PROMPT {
        return Err(Error::file("stdin", "the prompt is over 1 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::file("stdin", "the prompt is not UTF-8 text"))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Error::invalid("the prompt on stdin is empty"));
    }
    Ok(text.to_owned())
}
