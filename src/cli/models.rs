//! `equipoise models`: the families that can be trained, and what can be done with each.

use super::output::{Stdout, Table};
use crate::error::Result;
use crate::run::{FamilyReport, family_reports};
use clap::Args;
use std::fmt::Write as _;

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    /// Print the table of the documentation, in Markdown.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Print JSON on stdout, one object a line.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &ModelsArgs) -> Result<u8> {
    let families = family_reports();
    let mut stdout = Stdout::new();
    if args.json {
        for family in &families {
            stdout.json("family", family);
        }
    } else if args.markdown {
        stdout.text(&markdown(&families));
    } else {
        stdout.text(&plain(&families));
    }
    stdout.finish()?;
    Ok(0)
}

fn plain(families: &[FamilyReport]) -> String {
    let mut table = Table::default();
    for family in families {
        let gguf = family.gguf.map_or_else(|| "no GGUF".to_owned(), |name| format!("GGUF `{name}`"));
        table.row(family.model_type, format!("{}; {gguf}", family.models));
    }
    let mut text = table.render();
    text.push_str(
        "\nall are trained on the CPU and on a GPU, from a Hugging Face folder or from GGUF where it is named\n",
    );
    text
}

fn markdown(families: &[FamilyReport]) -> String {
    const COLUMNS: [&str; 11] = [
        "`model_type`",
        "models",
        "train CPU",
        "train GPU",
        "safetensors",
        "GGUF in",
        "GGUF out",
        "merged",
        "mlx",
        "Ollama",
        "servers",
    ];
    let mut text = format!("| {} |\n|{}\n", COLUMNS.join(" | "), " --- |".repeat(COLUMNS.len()));
    for family in families {
        let yes = |names: &[&str], name: &str| if names.contains(&name) { "yes" } else { "no" }.to_owned();
        let gguf =
            |there: bool| family.gguf.filter(|_| there).map_or_else(|| "no".to_owned(), |name| format!("`{name}`"));
        let servers: Vec<_> = family.servers.iter().map(|server| server.name()).collect();
        let row = [
            format!("`{}`", family.model_type),
            family.models.to_owned(),
            yes(&family.trains, "cpu"),
            yes(&family.trains, "cuda"),
            yes(&family.reads, "safetensors"),
            gguf(family.reads.contains(&"gguf")),
            gguf(family.exports.contains(&"gguf")),
            yes(&family.exports, "merged"),
            yes(&family.exports, "mlx"),
            yes(&family.exports, "ollama"),
            servers.join(", "),
        ];
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    let _ = writeln!(text, "\n| `model_type` | what `target_modules: all-linear` adapts |\n| --- | --- |");
    for (modules, families) in by_modules(families) {
        let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "| {} | {} |", code(&families), code(modules));
    }
    text
}

/// The families that have the same linear modules, the most common ones first.
fn by_modules(families: &[FamilyReport]) -> Vec<(&[&'static str], Vec<&'static str>)> {
    let mut groups: Vec<(&[&str], Vec<&str>)> = Vec::new();
    for family in families {
        match groups.iter_mut().find(|(modules, _)| *modules == family.modules) {
            Some((_, names)) => names.push(family.model_type),
            None => groups.push((&family.modules, vec![family.model_type])),
        }
    }
    groups.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    groups
}
