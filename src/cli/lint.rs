//! `equipoise lint`: what servers would make of an adapter.

use super::output::{Stdout, Table, printable};
use super::progress::Progress;
use crate::error::Result;
use crate::export::lint::{Finding, Server, Settings};
use crate::run::{self, LintRequest, LintSummary, ServerReport};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use std::fmt::Write as _;
use std::path::PathBuf;

/// The exit code when a server refuses the adapter or gets it wrong.
const FOUND: u8 = 1;

#[derive(Debug, Args)]
pub(super) struct LintArgs {
    /// The adapter: a folder that `train` wrote, a PEFT or mlx-lm folder, or a .gguf adapter.
    adapter: PathBuf,
    /// The servers to check it for, separated by commas; by default all.
    #[arg(long = "for", value_name = "SERVER,...", value_delimiter = ',', value_parser = server())]
    servers: Vec<Server>,
    /// The highest rank that the server is started for; without it, the flag to give is named.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rank: Option<u32>,
    /// The base that the server has: a folder, a .gguf file or a Hub id. By default the one that the adapter names, where it
    /// is on this machine.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Use only what is on this machine; fetch nothing.
    #[arg(long)]
    offline: bool,
    /// Print one JSON object on stdout.
    #[arg(long)]
    pub json: bool,
}

fn server() -> impl TypedValueParser<Value = Server> {
    // LoRAX has TGI's loader.
    let value = |server: Server| match server {
        Server::Tgi => PossibleValue::new(server.name()).alias("lorax"),
        server => PossibleValue::new(server.name()),
    };
    PossibleValuesParser::new(Server::ALL.map(value)).try_map(|name| name.parse::<Server>())
}

pub(super) fn run(args: &LintArgs) -> Result<u8> {
    let request = LintRequest {
        adapter: args.adapter.clone(),
        servers: if args.servers.is_empty() { Server::ALL.to_vec() } else { args.servers.clone() },
        settings: Settings { max_rank: args.max_rank.map(|rank| rank as usize) },
        base: args.base.clone(),
        offline: args.offline,
    };
    let mut progress = Progress::new(false, true);
    let outcome = run::lint(&request, &mut progress);
    progress.finish()?;
    let summary = outcome?;
    let mut stdout = Stdout::new();
    if args.json {
        stdout.json("lint", &summary);
    } else {
        stdout.text(&render(&summary));
    }
    stdout.finish()?;
    Ok(if summary.is_clean() { 0 } else { FOUND })
}

fn render(summary: &LintSummary) -> String {
    let mut table = Table::default();
    for report in &summary.servers {
        table.row(report.server.name(), verdict(report));
    }
    let mut text = table.render();
    if summary.base.is_none() {
        text.push_str("\nthe base is not at hand: modules and shapes were not compared with it; `--base` names one\n");
    }
    for group in groups(&summary.findings) {
        text.push_str(&group_text(&group));
    }
    text
}

fn verdict(report: &ServerReport) -> String {
    let of = |count: usize, what: &str| (count > 0).then(|| format!("{count} {what}"));
    let notes = if report.notes == 1 { "note" } else { "notes" };
    let parts = [of(report.refused, "refused"), of(report.wrong, "wrong"), of(report.notes, notes)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match (report.refused + report.wrong, parts.is_empty()) {
        (_, true) => "ok".to_owned(),
        (0, false) => format!("ok, {}", parts.join(", ")),
        _ => parts.join(", "),
    }
}

/// Findings of the same thing in one group: three servers that all want another form of the adapter.
fn groups(findings: &[Finding]) -> Vec<Vec<&Finding>> {
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in findings {
        let same =
            |group: &&mut Vec<&Finding>| (group[0].severity, &group[0].found) == (finding.severity, &finding.found);
        match groups.iter_mut().find(same) {
            Some(group) => group.push(finding),
            None => groups.push(vec![finding]),
        }
    }
    groups
}

fn group_text(group: &[&Finding]) -> String {
    let servers = |finding: &Finding| finding.servers.iter().map(|server| server.name()).collect::<Vec<_>>().join(", ");
    let names: Vec<String> = group.iter().map(|finding| format!("{} ({})", finding.rule, servers(finding))).collect();
    let mut text = String::new();
    let _ = writeln!(text, "\n{}: {}", group[0].severity.name(), names.join(", "));
    let _ = writeln!(text, "  found  {}", printable(&group[0].found).replace('\n', " "));
    for finding in group {
        let of = if group.len() > 1 { format!("{}: ", servers(finding)) } else { String::new() };
        let _ = writeln!(text, "  why    {of}{}", finding.why);
        let _ = writeln!(text, "  fix    {}", printable(&finding.fix));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::lint::Severity;

    #[test]
    fn the_report_reads_well() {
        let report = |server, refused, wrong, notes| ServerReport { server, refused, wrong, notes };
        let summary = LintSummary {
            adapter: "adapters/x".into(),
            base: None,
            servers: vec![
                report(Server::Vllm, 1, 0, 1),
                report(Server::Tgi, 0, 1, 0),
                report(Server::LlamaCpp, 0, 0, 2),
                report(Server::Peft, 0, 0, 0),
            ],
            findings: vec![Finding {
                rule: "dora",
                severity: Severity::Refused,
                servers: vec![Server::Vllm],
                found: "`use_dora` is \u{1b}true".into(),
                why: "it cannot be applied",
                fix: "train without DoRA".into(),
                source: "a file",
            }],
        };
        insta::assert_snapshot!(render(&summary));
    }
}
