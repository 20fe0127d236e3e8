//! `equipoise upload`: a folder to the Hub, in one commit.

use super::output::{Stdout, Table, bytes, printable, say};
use super::progress::Progress;
use crate::error::Result;
use crate::hub::{UploadOptions, UploadPlan, UploadSummary, UploadedFile};
use crate::run::{self, UploadRequest};
use clap::Args;
use std::path::PathBuf;

/// How many files a summary lists.
const SHOWN: usize = 12;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct UploadArgs {
    /// What to upload: a folder that `train` or `export` wrote.
    folder: PathBuf,
    /// The repository: user/name, or organisation/name. It is created where there is none.
    #[arg(long, value_name = "USER/NAME")]
    repo: String,
    /// The branch, created where there is none; main by default.
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
    /// Open a pull request instead of committing to the branch.
    #[arg(long)]
    pr: bool,
    /// A repository that is created is public. One that exists stays as it is.
    #[arg(long)]
    public: bool,
    /// The base's Hub id, in place of the one that the folder names.
    #[arg(long, value_name = "ORG/NAME")]
    base_model: Option<String>,
    /// The licence for the card, by the Hub's name: apache-2.0, mit, cc-by-4.0, other.
    #[arg(long, value_name = "ID")]
    license: Option<String>,
    /// The commit's message.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
    /// Show what would be sent; send and ask nothing.
    #[arg(long)]
    dry_run: bool,
    /// Refuse to use the network; for --dry-run.
    #[arg(long)]
    offline: bool,
    /// Print JSON on stdout, one object a line.
    #[arg(long)]
    pub json: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(args: &UploadArgs) -> Result<u8> {
    let request = UploadRequest {
        folder: args.folder.clone(),
        options: UploadOptions {
            repo: args.repo.clone(),
            private: !args.public,
            revision: args.revision.clone(),
            create_pr: args.pr,
            message: args.message.clone(),
            base_model: args.base_model.clone(),
            license: args.license.clone(),
            endpoint: None,
        },
        offline: args.offline,
    };
    let mut stdout = Stdout::new();
    if args.dry_run {
        let plan = run::plan_upload(&request)?;
        if args.json {
            stdout.json("plan", &plan);
        } else {
            for note in &plan.notes {
                say(&format!("note: {}", printable(note)));
            }
            stdout.text(&render_plan(&plan));
            if let Some(card) = &plan.card {
                stdout.text(&format!("\nthe card, README.md:\n\n{}\n", printable(card.trim_end())));
            }
        }
        stdout.finish()?;
        return Ok(0);
    }
    let mut progress = Progress::new(args.json, args.quiet);
    let outcome = run::upload(&request, &mut progress);
    // The bar goes first, so that it is not drawn over the error.
    let written = progress.finish();
    let summary = outcome?;
    written?;
    if args.json {
        stdout.json("summary", &summary);
    } else {
        stdout.text(&render(&summary));
    }
    stdout.finish()?;
    Ok(0)
}

fn render_plan(plan: &UploadPlan) -> String {
    let mut table = Table::default();
    table.row("repository", &plan.repo);
    let line = |file: &crate::hub::PlannedFile| {
        let made = if file.made_for_upload { ", made for the upload" } else { "" };
        format!("{} ({}{made})", file.path, bytes(file.bytes))
    };
    table.row("would send", printable(&plan.files.iter().map(line).collect::<Vec<_>>().join("\n")));
    if !plan.left_out.is_empty() {
        let left: Vec<String> = plan.left_out.iter().map(|left| format!("{} ({})", left.path, left.why)).collect();
        table.row("stays here", printable(&left.join("\n")));
    }
    table.row("in all", bytes(plan.files.iter().map(|file| file.bytes).sum()));
    table.row(
        "",
        "nothing was sent and the Hub was not asked; of these files an upload skips what the repository already has",
    );
    table.render()
}

/// What came of an upload, as rows that a run's summary has too.
pub(super) fn render(summary: &UploadSummary) -> String {
    let mut table = Table::default();
    if summary.committed {
        let all: u64 = summary.uploaded.iter().map(|file| file.bytes).sum();
        let there = all.saturating_sub(summary.bytes_sent);
        let there = if there > 0 { format!("; {} of it had arrived before", bytes(there)) } else { String::new() };
        table.row("uploaded", format!("{}{there}", counted(&summary.uploaded)));
        table.row("", printable(&listed(&summary.uploaded)));
    } else {
        table.row("uploaded", "nothing: the repository has all of it");
    }
    if !summary.skipped.is_empty() && summary.committed {
        table.row("skipped", format!("{}, there already", counted(&summary.skipped)));
    }
    if let Some(commit) = &summary.commit {
        table.row("commit", printable(commit));
    }
    let private = match (summary.private, summary.created) {
        (Some(true), true) => " (new, private)",
        (Some(false), true) => " (new, public)",
        (Some(true), false) => " (private)",
        (Some(false), false) => " (public)",
        (None, _) => "",
    };
    table.row("address", format!("{}{private}", printable(&summary.url)));
    table
        .row("next", format!("the page has the command for each server; to get it back: hf download {}", summary.repo));
    table.render()
}

fn counted(files: &[UploadedFile]) -> String {
    let plural = if files.len() == 1 { "" } else { "s" };
    format!("{} file{plural}, {}", files.len(), bytes(files.iter().map(|file| file.bytes).sum()))
}

fn listed(files: &[UploadedFile]) -> String {
    let mut lines: Vec<String> =
        files.iter().take(SHOWN).map(|file| format!("{} ({})", file.path, bytes(file.bytes))).collect();
    if files.len() > SHOWN {
        lines.push(format!("and {} more", files.len() - SHOWN));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{LeftOut, PlannedFile};

    fn file(path: &str, bytes: u64) -> UploadedFile {
        UploadedFile { path: path.into(), bytes }
    }

    #[test]
    fn the_summary_says_what_went_where() {
        let mut summary = UploadSummary {
            repo: "anna/go-definitions".into(),
            url: "https://huggingface.co/anna/go-definitions".into(),
            commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
            committed: true,
            created: true,
            private: Some(true),
            uploaded: vec![file("README.md", 3100), file("adapter_model.safetensors", 3_500_000)],
            bytes_sent: 3_503_100,
            skipped: vec![file("recipe.yaml", 812)],
            left_out: 2,
        };
        insta::assert_snapshot!("uploaded", render(&summary));
        (summary.committed, summary.created, summary.uploaded) = (false, false, Vec::new());
        insta::assert_snapshot!("nothing_to_do", render(&summary));
    }

    #[test]
    fn the_plan_says_what_would_go() {
        let planned = |path: &str, bytes, made_for_upload| PlannedFile { path: path.into(), bytes, made_for_upload };
        let plan = UploadPlan::of(
            "anna/go-definitions",
            vec![planned("README.md", 3100, true), planned("adapter_model.safetensors", 3_500_000, false)],
            vec![LeftOut { path: "train.jsonl".into(), why: "data" }],
        );
        insta::assert_snapshot!("plan", render_plan(&plan));
    }
}
