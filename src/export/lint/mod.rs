//! What servers refuse in an adapter, or load and compute otherwise: named rules, each with the reason and the fix.
//!
//! A rule looks at [`AdapterFacts`]: configuration, names and shapes of tensors, files, and the base. They come from a
//! folder, or from a recipe before anything is trained. No tensor is read, so that a number that is not finite is not found.
//!
//! The rules were read in the loaders of vLLM 0.33.0, `SGLang` 0.5.23, Text Generation Inference (January 2026), `LoRAX` (May
//! 2026), mistral.rs and mlx-lm and Ollama (August 2026), llama.cpp as of llama-cpp-python 0.3.36, and PEFT 0.21.2.

mod facts;
mod header;
mod names;
mod read;
mod rules;
mod server;

pub use facts::{AdapterFacts, BaseFacts, Layout, TensorFact};
pub use names::{TensorKind, TensorName};
pub use server::Server;

use rules::Found;
use serde::Serialize;

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The server does not load the adapter.
    Refused,
    /// The server loads it, and computes something else than was trained, without an error.
    Wrong,
    /// The server serves it as it should once a flag is given or a step is taken.
    Note,
}

impl Severity {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Wrong => "wrong",
            Self::Note => "note",
        }
    }
}

/// What the caller knows of the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// The highest rank that the server was started for (vLLM's `--max-lora-rank`); without it, a flag is advised.
    pub max_rank: Option<usize>,
}

/// One thing that some servers do not take.
pub struct Rule {
    /// A stable name in kebab-case.
    pub name: &'static str,
    /// Whom it concerns.
    pub servers: &'static [Server],
    /// What happens there.
    pub severity: Severity,
    /// Where that was read: project and file.
    pub source: &'static str,
    /// What the servers' loader does.
    pub why: &'static str,
    /// What to do.
    pub fix: &'static str,
    check: fn(&AdapterFacts, &Settings) -> Option<Found>,
}

/// What a rule found in an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// What it means.
    pub severity: Severity,
    /// Whom it concerns, of those asked for.
    pub servers: Vec<Server>,
    /// What was found, with the value.
    pub found: String,
    /// What the servers' loader does.
    pub why: &'static str,
    /// What to do.
    pub fix: String,
    /// Where that was read.
    pub source: &'static str,
}

/// All rules there are.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    rules::all()
}

/// What `servers` would make of an adapter: what they refuse first, then what they get wrong, then notes.
pub fn lint(facts: &AdapterFacts, servers: &[Server], settings: &Settings) -> Vec<Finding> {
    let mut findings: Vec<Finding> = rules::of(facts.layout)
        .into_iter()
        .filter_map(|rule| {
            let asked = |server: &Server| rule.servers.contains(server);
            let servers: Vec<Server> = Server::ALL.into_iter().filter(|s| servers.contains(s)).filter(asked).collect();
            let found = (!servers.is_empty()).then(|| (rule.check)(facts, settings)).flatten()?;
            Some(Finding {
                rule: rule.name,
                severity: rule.severity,
                servers,
                found: found.what,
                why: rule.why,
                fix: found.fix.unwrap_or_else(|| rule.fix.to_owned()),
                source: rule.source,
            })
        })
        .collect();
    findings.sort_by_key(|finding| finding.severity);
    findings
}

#[cfg(test)]
mod tests;
