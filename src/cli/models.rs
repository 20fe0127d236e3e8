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
    let mut text = String::from(
        "| `model_type` | models | `all-linear` | GGUF in and out | servers |\n| --- | --- | --- | --- | --- |\n",
    );
    for family in families {
        let code = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let gguf = family.gguf.map_or_else(|| "no".to_owned(), |name| format!("`{name}`"));
        let servers: Vec<_> = family.servers.iter().map(|server| server.name()).collect();
        let (modules, servers) = (code(&family.modules), servers.join(", "));
        let _ = writeln!(text, "| `{}` | {} | {modules} | {gguf} | {servers} |", family.model_type, family.models);
    }
    text
}
