//! `equipoise check`: what a recipe would do, without doing it.

use super::RecipeArgs;
use super::output::{Stdout, Table, bytes, colors, count, printable};
use super::progress::Progress;
use crate::error::Result;
use crate::run::{self, CheckReport, RunOptions};
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
}

pub(super) fn run(args: &CheckArgs) -> Result<u8> {
    let recipe = args.recipe.load()?;
    let options = RunOptions { offline: args.recipe.offline, ..RunOptions::default() };
    // The report is the outcome, so that with --json it is all that stdout gets.
    let mut progress = Progress::new(false, args.recipe.json, None);
    let outcome = run::check(&recipe, &options, &mut progress);
    progress.finish()?;
    let report = outcome?;
    let mut stdout = Stdout::new();
    if args.recipe.json {
        stdout.json("check", &report);
    } else {
        stdout.text(&render(&report, colors(&std::io::stdout())));
    }
    stdout.finish()?;
    Ok(0)
}

fn render(report: &CheckReport, colors: bool) -> String {
    let mut table = Table::default();
    let base = &report.base;
    let types: Vec<String> =
        base.quantization.iter().map(|(kind, tensors)| format!("{tensors} tensors {kind}")).collect();
    let mut lines = vec![
        base.model.clone(),
        format!("{}, {} parameters, {} in memory", base.model_type, count(base.parameters), bytes(base.weights_bytes)),
        types.join(", "),
    ];
    lines.extend(base.notes.iter().map(|note| format!("note: {note}")));
    lines.retain(|line| !line.is_empty());
    table.row("base", printable(&lines.join("\n")));
    let adapter = &report.adapter;
    table.row(
        "adapter",
        printable(&format!(
            "{} parameters in {} modules, {}\n{}",
            count(adapter.parameters),
            adapter.modules,
            bytes(adapter.bytes),
            adapter.target_modules.join(", ")
        )),
    );
    let mut data = Vec::new();
    data_lines("", &serde_json::to_value(&report.data).unwrap_or(Value::Null), &mut data);
    table.row("data", printable(&data.join("\n")));
    table.row("steps", format!("{}, of which {} warmup", report.steps, report.warmup_steps));
    let memory = &report.memory;
    let mut parts = String::new();
    for (name, size) in [
        ("weights", memory.weights),
        ("adapter and optimizer", memory.adapter_and_optimizer),
        ("activations", memory.activations),
        ("head and loss", memory.head),
    ] {
        let _ = writeln!(parts, "{:>9}  {name}", bytes(size));
    }
    let _ = write!(parts, "{:>9}  in all, estimated", bytes(memory.total));
    table.row("memory", parts);
    table.row("device", printable(&report.device));
    let mut text = table.render();
    text.push_str(&preview(&report.preview, colors));
    for warning in &report.warnings {
        let _ = writeln!(text, "\nwarning: {}", printable(warning));
    }
    text
}

/// Names and numbers of a nested report, one line each: `train rows: 950`.
fn data_lines(name: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('_', " ");
                data_lines(&if name.is_empty() { key } else { format!("{name} {key}") }, value, lines);
            }
        }
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            let items: Vec<String> = items.iter().map(scalar).collect();
            lines.push(format!("{name}: {}", items.join(", ")));
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                data_lines(&format!("{name} {}", number + 1), item, lines);
            }
        }
        other => lines.push(if name.is_empty() { scalar(other) } else { format!("{name}: {}", scalar(other)) }),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => number.as_f64().map_or_else(String::new, |value| {
            let text = format!("{value:.3}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }),
        other => other.to_string(),
    }
}

/// The first row as the model sees it, with what is learnt marked.
fn preview(pieces: &[(String, bool)], colors: bool) -> String {
    if pieces.is_empty() {
        return String::new();
    }
    let (open, close) = if colors { ("\u{1b}[32;4m", "\u{1b}[0m") } else { ("[[", "]]") };
    let mut text = format!("\nthe first row; what is learnt is {open}marked{close}:\n");
    for (piece, learnt) in pieces {
        let piece = printable(piece);
        let (open, close) = if *learnt { (open, close) } else { ("", "") };
        let _ = write!(text, "{open}{piece}{close}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{DataReport, Lengths};
    use crate::run::{AdapterReport, BaseReport};
    use crate::train::MemoryEstimate;

    #[test]
    fn the_report_reads_well() {
        let report = CheckReport {
            base: BaseReport {
                model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
                model_type: "llama".into(),
                parameters: 134_515_008,
                weights_bytes: 144 << 20,
                quantization: vec![("q8_0".into(), 210), ("f32".into(), 61)],
                notes: vec!["the head shares the embedding's weights".into()],
            },
            adapter: AdapterReport {
                parameters: 4_884_480,
                bytes: 4_884_480 * 4,
                modules: 210,
                target_modules: vec!["q_proj".into(), "v_proj".into()],
            },
            data: serde_json::json!({
                "train": {"rows": 950, "dropped": 3, "tokens_p50": 61.5},
                "formats": ["chat"],
                "validation": null,
            }),
            preview: vec![("Define: autophagy\n".into(), false), ("A \u{1b}process.".into(), true)],
            steps: 200,
            warmup_steps: 6,
            memory: MemoryEstimate {
                weights: 144 << 20,
                adapter_and_optimizer: 75 << 20,
                activations: 300 << 20,
                head: 96 << 20,
                total: 615 << 20,
            },
            device: "cpu".into(),
            warnings: vec!["data.max_seq_len is above what the model was trained for".into()],
        };
        insta::assert_snapshot!(render(&report, false));
        assert!(render(&report, true).contains("\u{1b}[32;4mA \u{fffd}process.\u{1b}[0m"));
    }
}
