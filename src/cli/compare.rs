//! `equipoise compare`: evaluations of the same items beside each other.

use super::output::{Stdout, columns, printable};
use crate::error::Result;
use crate::run::{self, CompareRequest, CompareRow, Comparison};
use crate::statistics::{MAX_RESAMPLES, Resampling, p_text};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Folders or results files of `equipoise eval --output-path` or of `lm_eval` (with `--log_samples`); the baseline first. The
    /// folder of an adapter's evaluation alone: the adapter against its base; beside others it stands for the adapter.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Compare these tasks alone; separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Compare these metrics alone; separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    metrics: Vec<String>,
    /// A field of the documents (a gene, a passage): items that share its value are not independent.
    #[arg(long, value_name = "FIELD")]
    cluster: Option<String>,
    /// Leave out the items of this file (JSON Lines with `task`, `doc_id` and, maybe, `doc_hash`), as `equipoise data --against-out`
    /// writes those that stand in training rows.
    #[arg(long, value_name = "FILE")]
    without: Option<PathBuf>,
    /// Bootstrap resamples and random sign flips.
    #[arg(long, value_name = "N", default_value = "10000", value_parser = resamples)]
    resamples: usize,
    /// The confidence level of intervals.
    #[arg(long, value_name = "SHARE", default_value = "0.95", value_parser = confidence)]
    confidence: f64,
    /// The seed of resamples and sign flips.
    #[arg(long, value_name = "N", default_value = "1234")]
    seed: u64,
    /// Print JSON on stdout, one object.
    #[arg(long)]
    pub json: bool,
}

fn resamples(text: &str) -> Result<usize, String> {
    let fits = |number: &usize| (100..=MAX_RESAMPLES).contains(number);
    text.parse().ok().filter(fits).ok_or_else(|| format!("expected a whole number from 100 to {MAX_RESAMPLES}"))
}

fn confidence(text: &str) -> Result<f64, String> {
    let fits = |share: &f64| *share > 0.0 && *share < 1.0;
    text.parse().ok().filter(fits).ok_or_else(|| "expected a share between 0 and 1, such as 0.95".into())
}

pub(super) fn run(args: &CompareArgs) -> Result<u8> {
    let request = CompareRequest {
        runs: args.runs.clone(),
        tasks: args.tasks.clone(),
        metrics: args.metrics.clone(),
        cluster: args.cluster.clone(),
        without: args.without.clone(),
        resampling: Resampling { resamples: args.resamples, confidence: args.confidence, seed: args.seed },
    };
    let comparison = run::compare(&request)?;
    let mut stdout = Stdout::new();
    if args.json {
        stdout.json("comparison", &comparison);
    } else {
        stdout.text(&printable(&text(&comparison)));
    }
    stdout.finish()?;
    Ok(0)
}

fn text(comparison: &Comparison) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (i, run) in comparison.runs.iter().enumerate() {
        let what = if i == 0 { "baseline".to_owned() } else { format!("candidate {i}") };
        lines.push(format!("{what}  {} ({})", run.model, run.path.display()));
    }
    lines.push(String::new());
    lines.push(columns(&table(comparison)));
    if !comparison.calibration.is_empty() {
        lines.extend([String::new(), columns(&calibration(comparison))]);
    }
    lines.push(String::new());
    let several = comparison.rows.iter().any(|row| row.paired.clusters.is_some());
    let clusters = if several { ", drawn and flipped by clusters" } else { "" };
    lines.push(format!(
        "differences: candidate minus baseline, ± paired standard error, with BCa bootstrap intervals at {}%; p: sign-flip test; \
         Holm: over the tasks of a metric{clusters}",
        100.0 * comparison.confidence
    ));
    lines.push("detectable: the least difference that these items show with 80% power at p < 0.05".into());
    lines.extend(comparison.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n") + "\n"
}

fn table(comparison: &Comparison) -> Vec<Vec<String>> {
    let several = comparison.runs.len() > 2;
    let clustered = comparison.rows.iter().any(|row| row.paired.clusters.is_some());
    let mut header = vec!["task", "metric", "items"];
    header.extend(clustered.then_some("clusters"));
    header.extend(several.then_some("run"));
    header.extend(["baseline", "candidate", "difference", "interval", "p", "Holm", "McNemar", "detectable"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    rows.extend(comparison.rows.iter().map(|row| cells(row, several, clustered)));
    rows
}

fn cells(row: &CompareRow, several: bool, clustered: bool) -> Vec<String> {
    let paired = &row.paired;
    let optional = |of: Option<String>| of.unwrap_or_default();
    let filter = if row.filter == "none" { String::new() } else { format!(" ({})", row.filter) };
    let arrow = if row.higher_is_better { "↑" } else { "↓" };
    let mut cells = vec![row.task.clone(), format!("{}{filter} {arrow}", row.metric), paired.items.to_string()];
    cells.extend(clustered.then(|| optional(paired.clusters.map(|count| count.to_string()))));
    cells.extend(several.then(|| row.candidate_run.to_string()));
    cells.extend([format!("{:.4}", paired.baseline), format!("{:.4}", paired.candidate)]);
    let stderr = optional(paired.stderr.map(|stderr| format!(" ± {stderr:.4}")));
    cells.push(format!("{:+.4}{stderr}", paired.difference));
    cells.push(optional(paired.bca.or(paired.percentile).map(|interval| interval.to_string())));
    cells.push(optional(paired.permutation.map(|test| p_text(test.p))));
    cells.push(optional(row.p_holm.map(p_text)));
    cells.push(optional(
        paired.mcnemar.map(|test| format!("{} ({} : {})", p_text(test.p), test.only_baseline, test.only_candidate)),
    ));
    cells.push(optional(paired.least_detectable.map(|least| format!("{least:.4}"))));
    cells
}

fn calibration(comparison: &Comparison) -> Vec<Vec<String>> {
    let header = ["task", "run", "accuracy", "NLL", "Brier", "ECE", "AURC"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for row in &comparison.calibration {
        let run = if row.run == 0 { "baseline".to_owned() } else { format!("candidate {}", row.run) };
        let numbers = [row.accuracy, row.nll, row.brier, row.ece, row.aurc].map(|number| format!("{number:.4}"));
        rows.push([vec![row.task.clone(), run], numbers.to_vec()].concat());
    }
    rows
}
