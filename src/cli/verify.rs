//! `equipoise verify`: exports compared with base and adapter.

use super::interrupt::Interrupt;
use super::output::{Stdout, columns, say};
use super::progress::Progress;
use crate::error::{Error, Result};
use crate::export::Difference;
use crate::run::{self, Verified, VerifyRequest};
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Folders that `export` wrote.
    #[arg(required = true, value_name = "EXPORT")]
    exports: Vec<PathBuf>,
    /// Another place of the adapter than the export names.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Another place of the base that the adapter was trained on.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// A text file to compare on, one prompt a line, in place of the built-in prompts.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Fail past this mean KL divergence (nats), in place of what the types of the weights allow.
    #[arg(long, value_name = "NATS", value_parser = nats)]
    max_kl: Option<f64>,
    /// Use only what is on this machine; fetch nothing.
    #[arg(long)]
    offline: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON on stdout, one object a line.
    #[arg(long)]
    pub json: bool,
}

fn nats(text: &str) -> Result<f64, String> {
    let fits = |number: &f64| number.is_finite() && *number >= 0.0;
    text.parse().ok().filter(fits).ok_or_else(|| "expected a number, at least 0".into())
}

/// The most bytes of a file of prompts.
const MAX_PROMPTS: u64 = 1 << 20;

fn prompts(path: &Path) -> Result<Vec<String>> {
    let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_PROMPTS {
        return Err(Error::file(path, "is over 1 MiB; give a few prompts, one a line"));
    }
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if prompts.is_empty() {
        return Err(Error::file(path, "holds no prompt").with_help("write one a line"));
    }
    Ok(prompts)
}

pub(super) fn run(args: &VerifyArgs) -> Result<u8> {
    let request = VerifyRequest {
        exports: args.exports.clone(),
        adapter: args.adapter.clone(),
        base: args.base.clone(),
        prompts: args.prompts.as_deref().map(prompts).transpose()?.unwrap_or_default(),
        max_kl: args.max_kl,
        offline: args.offline,
    };
    let mut progress = Progress::new(args.json, args.quiet).interruptible(Interrupt::listen_to_leave);
    let outcome = run::verify(&request, &mut progress);
    let written = progress.finish();
    let verified = outcome?;
    written?;
    let mut stdout = Stdout::new();
    if args.json {
        for verified in &verified {
            stdout.json("verified", verified);
        }
    } else {
        stdout.text(&table(&verified));
        stdout.text("\n");
    }
    stdout.finish()?;
    Ok(exit_code(&verified, args.max_kl))
}

/// A row for each export.
pub(super) fn table(verified: &[Verified]) -> String {
    let head = ["export", "mean KL", "allowed", "max KL", "top-1", "max Δlogit", "tokens"];
    let mut rows = vec![head.map(String::from).to_vec()];
    let row = |name: &str, difference: &Difference, allowed: String, mark: &str| {
        vec![
            name.to_owned(),
            format!("{:.2e}", difference.mean_kl),
            allowed,
            format!("{:.2e}", difference.max_kl),
            format!("{:.1}%", difference.top1_agreement * 100.0),
            format!("{:.2e}", difference.max_logit_difference),
            format!("{}{mark}", difference.tokens),
        ]
    };
    for verified in verified {
        let mark = match (verified.lost, verified.passed) {
            (true, _) => "  lost",
            (false, false) => "  too far",
            _ => "",
        };
        rows.push(row(&verified.target, &verified.difference, format!("{:.0e}", verified.allowed_kl), mark));
    }
    // What the adapter does, to measure the others by.
    if let Some(verified) = verified.first() {
        rows.push(row("(base alone)", &verified.base_alone, String::new(), ""));
    }
    columns(&rows)
}

/// The exit code: 1 where an export is too far from base and adapter, which is said.
pub(super) fn exit_code(verified: &[Verified], most: Option<f64>) -> u8 {
    for verified in verified {
        let (folder, kl) = (verified.folder.display(), verified.difference.mean_kl);
        let alone = verified.base_alone.mean_kl;
        let floats = verified.types.iter().all(|(name, _)| ["f32", "f16", "bf16"].contains(&name.as_str()));
        if verified.lost && kl > alone && floats {
            say(&format!(
                "{folder}: {kl:.2e} nats of mean KL from base and adapter, further than the base alone ({alone:.2e}): the export \
                 computes something else than the model. See its notes for what the format cannot express, and check that the \
                 base is the right one. `--to peft` and `--to merged` do not have this limit"
            ));
        } else if verified.lost {
            say(&format!(
                "{folder}: {kl:.2e} nats of mean KL from base and adapter, where the base alone is {alone:.2e}: what the adapter does \
                 is lost in the rounding of the weights. Take more bits (--quantize, --dtype), or export the adapter by itself"
            ));
        } else if !verified.passed {
            let whose = if most.is_some() { "--max-kl allows" } else { "its types allow" };
            say(&format!(
                "{folder}: {kl:.2e} nats of mean KL, more than the {:.0e} that {whose}: this is not base and adapter as they were \
                 trained. Is the base the right one? Are the types of too few bits (--quantize, --dtype)?",
                verified.allowed_kl
            ));
        }
    }
    u8::from(verified.iter().any(|verified| !verified.passed))
}
