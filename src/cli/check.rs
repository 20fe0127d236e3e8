//! `equipoise check`: what a recipe would do, without doing it.

use super::RecipeArgs;
use super::output::{Stdout, Table, bytes, colors, count, duration, printable};
use super::progress::Progress;
use crate::data::{DataReport, Lengths};
use crate::error::Result;
use crate::run::{self, BaseReport, CheckReport, RunOptions, TimeEstimate};
use clap::Args;
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
    let mut progress = Progress::new(false, args.recipe.json);
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

fn base_text(base: &BaseReport) -> String {
    let types: Vec<String> =
        base.quantization.iter().map(|(kind, tensors)| format!("{tensors} tensors {kind}")).collect();
    let mut lines = vec![
        base.model.clone(),
        format!("{}, {} parameters, {} in memory", base.model_type, count(base.parameters), bytes(base.weights_bytes)),
        types.join(", "),
    ];
    lines.extend(base.notes.iter().map(|note| format!("note: {note}")));
    lines.retain(|line| !line.is_empty());
    lines.join("\n")
}

/// What the run will take of memory, part by part, and what it keeps.
fn memory_text(report: &CheckReport) -> String {
    let memory = &report.memory;
    let mut parts = String::new();
    for (name, size) in [
        ("program, tokenizer, small pieces", memory.program),
        ("weights", memory.weights),
        ("adapter and optimizer", memory.adapter_and_optimizer),
        ("activations, gradients, head", memory.activations + memory.head),
        ("cuBLAS", memory.workspace),
    ] {
        if size > 0 {
            let _ = writeln!(parts, "{:>9}  {name}", bytes(size));
        }
    }
    let _ = write!(parts, "{:>9}  in all, estimated", bytes(memory.total));
    let _ = write!(
        parts,
        "\n{}",
        match report.kept_layers {
            kept if kept == report.layers => "activations of all layers are kept".to_owned(),
            0 => "activations are computed again, a layer at a time".to_owned(),
            kept => format!("activations of {kept} of {} layers are kept, the others computed again", report.layers),
        }
    );
    parts
}

fn render(report: &CheckReport, colors: bool) -> String {
    let mut table = Table::default();
    table.row("base", printable(&base_text(&report.base)));
    let adapter = &report.adapter;
    table.row(
        "adapter",
        printable(&format!(
            "{} parameters in {} modules, {}, trained under {}\n{}",
            count(adapter.parameters),
            adapter.modules,
            bytes(adapter.bytes),
            report.objective,
            adapter.target_modules.join(", ")
        )),
    );
    table.row("data", printable(&data_text(&report.data)));
    if !report.tasks.is_empty() {
        let tasks: Vec<String> =
            report.tasks.iter().map(|(task, items)| format!("{task}: {items} documents")).collect();
        table.row("tasks", printable(&tasks.join("\n")));
    }
    table.row("steps", format!("{}, of which {} warmup", report.steps, report.warmup_steps));
    table.row("time", report.time.as_ref().map_or("not known".to_owned(), time_text));
    table.row("memory", memory_text(report));
    table.row("device", printable(&report.device));
    if let Some(advice) = &report.advice {
        table.row("advice", printable(advice));
    }
    if !report.libraries.is_empty() {
        let libraries = report.libraries.iter().map(|(name, path)| format!("{name}: {}", path.display()));
        table.row("libraries", printable(&libraries.collect::<Vec<_>>().join("\n")));
    }
    let mut text = table.render();
    text.push_str(&preview(&report.preview, colors));
    for warning in &report.warnings {
        let _ = writeln!(text, "\nwarning: {}", printable(warning));
    }
    text
}

fn time_text(time: &TimeEstimate) -> String {
    let speed = format!("steps of {}, {:.0} tokens/s", duration(time.step_seconds), time.tokens_per_second);
    let validations = match time.validations {
        0 => String::new(),
        n => format!("; {n} validations of {}", duration(time.validation_seconds)),
    };
    format!("about {}: {speed}{validations}", duration(time.total_seconds))
}

fn data_text(data: &DataReport) -> String {
    let share = 100.0 * data.supervised_tokens as f64 / data.tokens.max(1) as f64;
    let Lengths { min, p50, p90, max } = data.lengths;
    let formats: Vec<&str> = data.sources.iter().map(|source| source.format.as_str()).collect();
    let mut text = format!(
        "{}\n{} rows: {} to train on, {} to validate on\n{} tokens to train on, {} of them learnt ({share:.0}%)\n\
         {min} to {max} tokens a row, half of them up to {p50}, 90% up to {p90}",
        distinct(&formats).join("\n"),
        data.rows,
        data.train_rows,
        data.validation_rows,
        count(data.tokens),
        count(data.supervised_tokens),
    );
    let _ = match (data.dropped, data.truncated) {
        (0, 0) => write!(text, "\nno row is over `data.max_seq_len`"),
        (dropped, cut) => write!(text, "\nover `data.max_seq_len`: {dropped} rows left out, {cut} cut"),
    };
    text
}

/// The texts without those that stood before.
fn distinct<'a>(texts: &[&'a str]) -> Vec<&'a str> {
    let mut distinct: Vec<&str> = Vec::new();
    for text in texts {
        if !distinct.contains(text) {
            distinct.push(text);
        }
    }
    distinct
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
    use crate::data::SourceReport;
    use crate::run::AdapterReport;
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
            objective: "bft".into(),
            data: DataReport {
                sources: vec![SourceReport {
                    format: "chat (by the first row's field `messages`)".into(),
                    ..SourceReport::default()
                }],
                rows: 1000,
                train_rows: 947,
                validation_rows: 50,
                tokens: 61_000,
                supervised_tokens: 30_500,
                dropped: 3,
                lengths: Lengths { min: 12, p50: 61, p90: 140, max: 1800 },
                ..DataReport::default()
            },
            preview: vec![("Define: autophagy\n".into(), false), ("A \u{1b}process.".into(), true)],
            steps: 200,
            warmup_steps: 6,
            time: Some(TimeEstimate {
                tokens_per_second: 412.3,
                step_seconds: 2.4,
                validations: 3,
                validation_seconds: 7.5,
                total_seconds: 511.0,
            }),
            memory: MemoryEstimate {
                program: 40 << 20,
                weights: 144 << 20,
                adapter_and_optimizer: 75 << 20,
                activations: 396 << 20,
                head: 0,
                workspace: 0,
                total: 655 << 20,
            },
            kept_layers: 12,
            layers: 30,
            device: "cpu".into(),
            prior: None,
            tasks: vec![("PubMedQA".into(), 500)],
            task_tokens: 200_000,
            advice: Some("the base knows some of the held-out answers".into()),
            libraries: Vec::new(),
            warnings: vec!["data.max_seq_len is above what the model was trained for".into()],
        };
        insta::assert_snapshot!(render(&report, false));
        assert!(render(&report, true).contains("\u{1b}[32;4mA \u{fffd}process.\u{1b}[0m"));
    }
}
