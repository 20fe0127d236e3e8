//! `equipoise data`: what a recipe's data amounts to, and its rows as the model sees them.

use super::RecipeArgs;
use super::output::{Stdout, Table, colors, columns, count, duration, printable};
use super::progress::Progress;
use crate::data::{DataReport, Lengths, RowWeights};
use crate::error::Result;
use crate::run::{self, AgainstRequest, ContaminatedItem, ContaminationReport, DataSummary, RunOptions, ShownRow};
use clap::Args;
use std::fmt::Write as _;
use std::path::PathBuf;

/// What becomes of rows whose answer begins behind the cut.
const CUT_AWAY: &str = "left out: nothing learnt is within `data.max_seq_len`";

/// How many items of a task are named.
const EXAMPLES: usize = 5;

/// The longest bar of the histogram, in characters.
const BAR: usize = 40;

#[derive(Debug, Args)]
pub(super) struct DataArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Show the first N rows of each source as the model sees them.
    #[arg(long, value_name = "N", default_value = "1")]
    show: usize,
    /// Search the rows to train on for the items of these tasks, groups and tags, or YAML files; separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    against: Vec<String>,
    /// A folder or file with more tasks (YAML with lm-eval's keys); may be given several times.
    #[arg(long, alias = "include_path", value_name = "PATH", requires = "against")]
    include_path: Vec<PathBuf>,
    /// Write the items that were found to this file (JSON Lines), for `--without` of `equipoise eval` and `equipoise compare`.
    #[arg(long, value_name = "FILE", requires = "against")]
    against_out: Option<PathBuf>,
}

pub(super) fn run(args: &DataArgs) -> Result<u8> {
    let recipe = args.recipe.load()?;
    let options = RunOptions { offline: args.recipe.offline, ..RunOptions::default() };
    let mut progress = Progress::new(false, args.recipe.json);
    let against = (!args.against.is_empty()).then(|| AgainstRequest {
        tasks: args.against.clone(),
        include: args.include_path.clone(),
        output: args.against_out.clone(),
    });
    let outcome = run::data(&recipe, &options, args.show, against.as_ref(), &mut progress);
    progress.finish()?;
    let summary = outcome?;
    let mut stdout = Stdout::new();
    if args.recipe.json {
        stdout.json("data", &summary);
    } else {
        stdout.text(&render(&summary, colors(&std::io::stdout())));
    }
    stdout.finish()?;
    Ok(0)
}

fn render(summary: &DataSummary, colors: bool) -> String {
    let data = &summary.data;
    let mut table = Table::default();
    for source in &data.sources {
        let files = if source.files == 1 { String::new() } else { format!(", {} files", source.files) };
        let weight = if source.weight == 1.0 { String::new() } else { format!(", weight {}", source.weight) };
        let mut text = format!(
            "{}\n{}{files}, {}\n{} read, {} kept{weight}",
            source.name,
            source.kind,
            source.format,
            rows_of(source.rows),
            source.kept
        );
        if let Some(cache) = &source.cache {
            let _ = write!(text, "\ntokens in {}", cache.display());
        }
        table.row(source.split, printable(&text));
    }
    let template = summary.chat_template.as_deref().unwrap_or("none: the rows are plain text");
    table.row("template", printable(template));
    table.row("rows", printable(&rows(data)));
    table.row("tokens", format!("{}\nread in {}", tokens(data), duration(summary.seconds)));
    table.row("lengths", histogram(data, summary.max_seq_len));
    if let Some(RowWeights { min, mean, max }) = data.row_weights {
        table.row("row weights", format!("from {min} to {max}, {mean:.3} on average"));
    }
    if let Some(packing) = &data.packing {
        table.row(
            "packing",
            format!(
                "{} packs an epoch, {:.1} rows each, {:.1}% full",
                packing.packs,
                packing.rows_per_pack,
                100.0 * packing.fill
            ),
        );
    }
    table.row("duplicates", printable(&twice(data)));
    if let Some(report) = &summary.against {
        table.row("against", printable(&against(report)));
    }
    let mut text = table.render();
    for row in &summary.rows {
        text.push_str(&show(row, colors));
    }
    for warning in &summary.warnings {
        let _ = writeln!(text, "\nwarning: {}", printable(warning));
    }
    text
}

fn rows_of(count: usize) -> String {
    if count == 1 { "1 row".to_owned() } else { format!("{count} rows") }
}

fn duplicates(count: usize) -> String {
    if count == 1 { "1 duplicate row".to_owned() } else { format!("{count} duplicate rows") }
}

fn rows(data: &DataReport) -> String {
    let mut text = format!("{} to train on, {} to validate on", data.train_rows, data.validation_rows);
    if data.epoch_rows != data.train_rows {
        let _ = write!(text, "\n{} in an epoch, by the sources' weights", data.epoch_rows);
    }
    for (rows, what) in [
        (data.dropped, if data.truncated > 0 { CUT_AWAY } else { "left out: over `data.max_seq_len`" }),
        (data.truncated, "cut at `data.max_seq_len`"),
        (data.unlearnt, "left out: nothing in it to learn"),
    ] {
        if rows > 0 {
            let _ = write!(text, "\n{rows} {what}");
        }
    }
    for example in &data.unlearnt_examples {
        let _ = write!(text, "\n  {example}");
    }
    if data.skipped > 0 {
        let _ = write!(text, "\n{} left out: not readable", data.skipped);
    }
    for example in &data.skipped_examples {
        let _ = write!(text, "\n  {example}");
    }
    text
}

fn tokens(data: &DataReport) -> String {
    let share = 100.0 * data.supervised_tokens as f64 / data.tokens.max(1) as f64;
    let Lengths { min, p50, p90, max } = data.lengths;
    let lengths = if min == max {
        format!("{min} a row")
    } else {
        format!("{min} to {max} a row, half of the rows up to {p50}, 90% up to {p90}")
    };
    format!(
        "{} in the rows to train on, {} of them learnt ({share:.0}%)\n{lengths}",
        count(data.tokens),
        count(data.supervised_tokens),
    )
}

/// A bar a line: how many rows have how many tokens.
fn histogram(data: &DataReport, max_seq_len: usize) -> String {
    let most = data.histogram.iter().map(|bin| bin.rows).max().unwrap_or(0).max(1);
    let width = data.histogram.last().map_or(0, |bin| bin.to.to_string().len());
    let mut text = String::new();
    for bin in &data.histogram {
        let eighths = (bin.rows * BAR * 8).div_ceil(most);
        let mut bar = "█".repeat(eighths / 8);
        bar.push_str(["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8]);
        let over = if bin.from as usize > max_seq_len { "  over `data.max_seq_len`" } else { "" };
        let _ = writeln!(text, "{:>width$} to {:<width$} {bar} {}{over}", bin.from, bin.to, bin.rows);
    }
    text
}

fn twice(data: &DataReport) -> String {
    let mut text = format!("{} to train on", duplicates(data.duplicates));
    for example in &data.duplicate_examples {
        let _ = write!(text, "\n  {example}");
    }
    if data.validation_rows > 0 {
        let are = if data.leaks == 1 { "is" } else { "are" };
        let _ = write!(text, "\n{} to validate on {are} trained on too", rows_of(data.leaks));
        for example in &data.leak_examples {
            let _ = write!(text, "\n  {example}");
        }
        let have = if data.shared_prompts == 1 { "has" } else { "have" };
        let _ =
            write!(text, "\n{} more {have} the prompt of a row to train on, with another answer", data.shared_prompts);
    }
    text
}

/// Tasks whose items were searched for, in numbers, and the first items that were found.
fn against(report: &ContaminationReport) -> String {
    let header = ["task", "items", "overlapping", "near duplicates", "clean", "too short"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for of in &report.tasks {
        let counts = [of.items, of.overlapping, of.near_duplicates, of.clean, of.too_short];
        rows.push([vec![of.task.clone()], counts.map(|count| count.to_string()).to_vec()].concat());
    }
    let mut text = format!("{}\nsearched in {}", columns(&rows), duration(report.seconds));
    for task in &report.tasks {
        let items: Vec<&ContaminatedItem> = report.items.iter().filter(|item| item.task == task.task).collect();
        for item in items.iter().take(EXAMPLES) {
            let near = if item.near_duplicate { "a near duplicate of " } else { "" };
            let _ = write!(
                text,
                "\n  {}, document {}: {:.0}% of its n-grams; {near}{}:{}, Jaccard {:.2}",
                item.task,
                item.doc_id,
                100.0 * item.overlap,
                item.row.file,
                item.row.line,
                item.jaccard
            );
        }
        if items.len() > EXAMPLES {
            let _ = write!(text, "\n  {}: {} more", task.task, items.len() - EXAMPLES);
        }
    }
    if let Some(path) = &report.output {
        let _ = write!(
            text,
            "\nwritten to {}; `equipoise eval` and `compare` take it as `--without`, and score what is left",
            path.display()
        );
    } else if !report.items.is_empty() {
        text.push_str(
            "\n`--against-out FILE` writes the items, for `--without FILE` of `equipoise eval` and `compare`",
        );
    }
    text
}

/// A row as the model sees it, with what is learnt marked.
fn show(row: &ShownRow, colors: bool) -> String {
    let (open, close) = if colors { ("\u{1b}[32;4m", "\u{1b}[0m") } else { ("[[", "]]") };
    let mut text = format!(
        "\n{} row {} (line {}): {} tokens, {} of them learnt, {open}marked{close}\n",
        row.split, row.number, row.line, row.tokens, row.supervised
    );
    for (piece, learnt) in &row.segments {
        let piece = printable(piece);
        let (open, close) = if *learnt { (open, close) } else { ("", "") };
        let _ = write!(text, "{open}{piece}{close}");
    }
    text.push('\n');
    text
}
