//! `equipoise eval`: tasks on a model, as lm-evaluation-harness has them.

use super::device;
use super::interrupt::Interrupt;
use super::output::{Stdout, bytes, columns, duration, printable, say};
use super::progress::Progress;
use crate::device::DeviceConfig;
use crate::error::{Error, Result};
use crate::nn::QuantizationType;
use crate::ops::ComputeConfig;
use crate::run::{self, EvalRequest, LeftOutItems, ModelResults, RestReport, ResultRow};
use crate::train::metrics::TaskScore;
use clap::Args;
use serde::Deserialize;
use serde::de::value::{Error as ValueError, StrDeserializer};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct EvalArgs {
    /// What is evaluated: an adapter (beside its base), a model's folder, a .gguf file, or a Hub id.
    model: String,
    /// Tasks, groups and tags by name, patterns such as `mmlu_*`, or YAML files; separated by commas.
    #[arg(long, value_name = "NAMES", required = true, value_delimiter = ',')]
    tasks: Vec<String>,
    /// A folder or file with more tasks (YAML with lm-eval's keys); may be given several times.
    #[arg(long, alias = "include_path", value_name = "PATH")]
    include_path: Vec<PathBuf>,
    /// Few-shot examples before each question.
    #[arg(long, alias = "num_fewshot", value_name = "N")]
    num_fewshot: Option<usize>,
    /// The first N documents of each task alone; below 1, that share of them.
    #[arg(long, value_name = "N", value_parser = limit)]
    limit: Option<f64>,
    /// The folder for results and samples, in lm-eval's layout. Without it, the table is all.
    #[arg(long, alias = "output_path", value_name = "FOLDER")]
    output_path: Option<PathBuf>,
    /// Go on with the unfinished evaluation in the folder of `--output-path`.
    #[arg(long)]
    resume: bool,
    /// Put prompts through the model's chat template.
    #[arg(long, alias = "apply_chat_template")]
    apply_chat_template: bool,
    /// Under a chat template, put few-shot examples into one turn with the question.
    #[arg(long, alias = "fewshot_as_one_turn", requires = "apply_chat_template")]
    fewshot_as_one_turn: bool,
    /// A system message, before a task's own description.
    #[arg(long, alias = "system_instruction", value_name = "TEXT")]
    system_instruction: Option<String>,
    /// Another base than the adapter names.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Hold the frozen weights in this type (`none`, `q8_0`, `q4_k`, …); by default as an adapter was trained, or as a base is stored.
    #[arg(long, value_name = "TYPE", value_parser = quantization)]
    quantization: Option<QuantizationType>,
    /// The type of products: auto, f32 or bf16. lm-eval's numbers to many digits need f32.
    #[arg(long, value_name = "TYPE", default_value = "auto", value_parser = compute)]
    compute: ComputeConfig,
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: DeviceConfig,
    /// Tokens of a forward pass, about.
    #[arg(long, value_name = "N", default_value = "2048", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: u32,
    /// The most tokens of a prompt with its answer: longer prompts lose their beginning, as in lm-eval.
    #[arg(long, alias = "max_length", value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    max_length: Option<u32>,
    /// Show how the model chooses in multiple choices: balanced accuracy, calibration, and how often each place is taken.
    #[arg(long)]
    choices: bool,
    /// Ask multiple choices again with their options in all cyclic orders. Takes as many times as long as there are options.
    #[arg(long)]
    option_shifts: bool,
    /// Report the scores without the items of this file too (JSON Lines with `task` and `doc_id`), such as `equipoise data
    /// --against-out` writes.
    #[arg(long, value_name = "FILE")]
    without: Option<PathBuf>,
    /// Decides the draws of bootstrapped standard errors.
    #[arg(long, value_name = "N", default_value = "1234")]
    seed: u64,
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

pub(super) fn limit(text: &str) -> Result<f64, String> {
    let fits = |number: &f64| *number > 0.0 && number.is_finite() && (*number < 1.0 || number.fract() == 0.0);
    text.parse().ok().filter(fits).ok_or_else(|| "expected a whole number, or a share below 1".into())
}

fn named<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, String> {
    T::deserialize(StrDeserializer::<ValueError>::new(text)).map_err(|error| error.to_string())
}

fn quantization(text: &str) -> Result<QuantizationType, String> {
    named(&text.to_lowercase())
}

fn compute(text: &str) -> Result<ComputeConfig, String> {
    named(text)
}

pub(super) fn run(args: &EvalArgs) -> Result<u8> {
    let request = EvalRequest {
        model: args.model.clone(),
        base: args.base.clone(),
        tasks: args.tasks.clone(),
        include: args.include_path.clone(),
        num_fewshot: args.num_fewshot,
        limit: args.limit,
        output: args.output_path.clone(),
        resume: args.resume,
        apply_chat_template: args.apply_chat_template,
        fewshot_as_multiturn: !args.fewshot_as_one_turn,
        system_instruction: args.system_instruction.clone(),
        quantization: args.quantization,
        compute: args.compute,
        device: args.device,
        batch_tokens: args.batch_tokens as usize,
        max_length: args.max_length.map(|tokens| tokens as usize),
        option_shifts: args.option_shifts,
        without: args.without.clone(),
        seed: args.seed,
        offline: args.offline,
    };
    let mut progress = Progress::new(args.json, args.quiet).interruptible(Interrupt::listen);
    let outcome = run::evaluate(&request, &mut progress);
    let written = progress.finish();
    let outcome = outcome.map_err(|error| match (error, &args.output_path) {
        (Error::Interrupted, Some(folder)) => {
            say(&format!("what was answered is in {}; the same command with `--resume` goes on", folder.display()));
            Error::Interrupted
        }
        (error, _) => error,
    });
    let results = outcome?;
    written?;
    let mut stdout = Stdout::new();
    if args.json {
        for result in &results {
            stdout.json("evaluation", result);
        }
    } else {
        let all: Vec<_> = results.iter().map(|of| (of.what, &of.rows[..])).collect();
        stdout.text(&table(&all));
        if args.choices || args.option_shifts {
            stdout.text(&choices(&results));
        }
        stdout.text(&rest(&results));
        stdout.text("\n");
        stdout.text(&summary(&results));
    }
    stdout.finish()?;
    Ok(0)
}

fn number(value: f64, stderr: Option<f64>) -> String {
    stderr.map_or_else(|| format!("{value:.4}"), |stderr| format!("{value:.4} ± {stderr:.4}"))
}

/// A row for each metric: the base, the adapter, and what a guess and a constant answer get.
fn table(results: &[(&str, &[ResultRow])]) -> String {
    let Some((_, first)) = results.first() else { return String::new() };
    let mut header = vec!["task".to_owned(), "metric".into(), "items".into()];
    header.extend(results.iter().map(|(what, _)| (*what).to_owned()));
    if results.len() > 1 {
        header.push("difference".into());
    }
    header.extend(["chance".into(), "best constant".into()]);
    let mut rows = vec![header];
    for (i, row) in first.iter().enumerate() {
        let of_each: Vec<&TaskScore> = results.iter().filter_map(|(_, rows)| Some(&rows.get(i)?.score)).collect();
        let TaskScore { metric, filter, higher_is_better, items, .. } = &row.score;
        let filter = if filter == "none" { String::new() } else { format!(" ({filter})") };
        let arrow = if *higher_is_better { "↑" } else { "↓" };
        let mut cells = vec![row.alias.clone(), format!("{metric}{filter} {arrow}"), items.to_string()];
        cells.extend(of_each.iter().map(|of| number(of.value, of.stderr)));
        if let [base, adapter] = of_each[..] {
            cells.push(format!("{:+.4}", adapter.value - base.value));
        }
        let floor = |of: Option<f64>| of.map_or_else(String::new, |of| format!("{of:.4}"));
        cells.extend([floor(row.chance), floor(row.best_constant)]);
        rows.push(cells);
    }
    columns(&rows)
}

/// The same without the items that a list names.
fn rest(results: &[ModelResults]) -> String {
    let of_each: Vec<(&str, &RestReport)> =
        results.iter().filter_map(|of| Some((of.what, of.rest.as_ref()?))).collect();
    let Some((_, first)) = of_each.first() else { return String::new() };
    let left_out: Vec<String> = first
        .left_out
        .iter()
        .map(|LeftOutItems { task, left_out, items }| {
            let all = if left_out == items { ", which are all" } else { "" };
            format!("{task}: {left_out} of {items} items are left out{all}")
        })
        .collect();
    let head = format!("\n\nwithout the items of {}\n{}", first.without, left_out.join("\n"));
    if first.rows.is_empty() {
        return head;
    }
    let rows: Vec<(&str, &[ResultRow])> = of_each.iter().map(|(what, of)| (*what, &of.rows[..])).collect();
    format!("{head}\n\n{}", table(&rows))
}

/// How each model chooses: a table of numbers, a line of places, and a line of shifts.
fn choices(results: &[ModelResults]) -> String {
    let mut rows: Vec<Vec<String>> =
        vec![["task", "", "items", "accuracy", "balanced", "NLL", "Brier", "ECE", "AURC"].map(str::to_owned).to_vec()];
    let (mut lines, percent) = (Vec::new(), |share: f64| format!("{:.1}%", 100.0 * share));
    for (of, report) in results.iter().flat_map(|of| of.choices.iter().map(move |report| (of, report))) {
        let numbers = [report.accuracy, report.balanced_accuracy, report.nll, report.brier, report.ece, report.aurc];
        let mut cells = vec![report.alias.clone(), of.what.to_owned(), report.items.to_string()];
        cells.extend(numbers.map(|number| format!("{number:.4}")));
        rows.push(cells);
        let places = report.places.iter().map(|place| {
            format!("{} {} (right {})", quoted_choice(&place.choice), percent(place.taken), percent(place.right))
        });
        lines.push(format!("{}, {}: takes {}", report.alias, of.what, places.collect::<Vec<_>>().join(", ")));
        if let Some(shifts) = &report.shifts {
            let each: Vec<String> = shifts.accuracy.iter().map(|accuracy| format!("{accuracy:.4}")).collect();
            lines.push(format!(
                "  options shifted by 0, 1, …: accuracy {}; mean {:.4}; the same option under all orders: {}",
                each.join(", "),
                shifts.mean,
                percent(shifts.consistent)
            ));
        }
    }
    if rows.len() == 1 {
        return "\n\nno task is a multiple choice with one right choice in each document".to_owned();
    }
    format!("\n\n{}\n\n{}", columns(&rows), printable(&lines.join("\n")))
}

/// A choice, short enough for a line.
fn quoted_choice(choice: &str) -> String {
    const MOST: usize = 24;
    if choice.chars().count() <= MOST {
        choice.to_owned()
    } else {
        choice.chars().take(MOST - 1).chain(['…']).collect()
    }
}

fn summary(results: &[ModelResults]) -> String {
    let mut lines = Vec::new();
    for of in results {
        let rate = of.items as f64 / of.seconds.max(1e-9);
        let memory = of.peak_memory.map_or_else(String::new, |peak| format!(", {} at most", bytes(peak)));
        lines.push(format!(
            "\n{} ({}): {} items in {}, {rate:.1} items/s{memory}",
            of.model,
            of.what,
            of.items,
            duration(of.seconds)
        ));
        lines.extend(of.files.iter().map(|file| format!("  {}", file.display())));
    }
    lines.join("\n") + "\n"
}
