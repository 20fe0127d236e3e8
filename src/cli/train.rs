//! `equipoise train`: runs a recipe, and says what came of it.

use super::interrupt::Interrupt;
use super::output::{Stdout, Table, bytes, count, duration, printable, quoted};
use super::progress::Progress;
use super::{INTERRUPTED, RecipeArgs};
use crate::error::{Error, Result};
use crate::run::{self, RunOptions, Sample, Summary, Uploaded};
use crate::train::{MetricForBest, Verdict};
use clap::Args;
use std::fmt::Write as _;
use std::path::Path;

#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Go on from the last checkpoint in the output folder.
    #[arg(long)]
    resume: bool,
    /// Remove the run that the output folder holds, and begin again.
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn run(args: &TrainArgs) -> Result<u8> {
    let recipe = args.recipe.load()?;
    let options =
        RunOptions { offline: args.recipe.offline, resume: args.resume, overwrite: args.overwrite, device: None };
    let mut progress = Progress::new(args.recipe.json, args.quiet).interruptible(Interrupt::listen);
    let outcome = run::train(&recipe, &options, &mut progress);
    // The bar goes first, so that it is not drawn over the error.
    let written = progress.finish();
    let summary = outcome?;
    written?;
    let mut stdout = Stdout::new();
    if args.recipe.json {
        stdout.json("summary", &summary);
    } else {
        stdout.text(&render(&summary, &resume_command(args)));
    }
    stdout.finish()?;
    if let Some(Uploaded::Failed { message, help }) = summary.uploaded {
        return Err(Error::Hub { message, help });
    }
    if let Some(health) = summary.health.filter(|_| summary.fails) {
        return Err(Error::Diverged {
            message: format!("training ruined the model: {}", health.numbers()),
            help: Some(
                "lower training.learning_rate, and begin again with `--overwrite`; `training.fail_on_divergence: false` lets \
                 such a run end with exit code 0"
                    .into(),
            ),
        });
    }
    Ok(if summary.interrupted || summary.tasks_interrupted { INTERRUPTED } else { 0 })
}

/// The command that goes on with an interrupted run: the same one, with `--resume`.
fn resume_command(args: &TrainArgs) -> String {
    let mut command = format!("equipoise train {}", quoted(&args.recipe.recipe.display().to_string()));
    for set in &args.recipe.set {
        let _ = write!(command, " --set {}", quoted(set));
    }
    if let Some(device) = args.recipe.device {
        let _ = write!(command, " --device {}", String::from(device));
    }
    if args.recipe.offline {
        command.push_str(" --offline");
    }
    command + " --resume"
}

fn render(summary: &Summary, resume: &str) -> String {
    let mut table = Table::default();
    ending_rows(&mut table, summary);
    validation_rows(&mut table, summary);
    if !summary.tasks.is_empty() {
        let lines: Vec<String> = summary.tasks.iter().map(|task| format!("{} {}", task.name(), task.text())).collect();
        table.row("tasks", printable(&lines.join("\n")));
    }
    if let Some(forgetting) = &summary.forgetting {
        table.row("general text", forgetting.text());
    }
    if summary.steps > summary.resumed_after {
        table.row("memory", memory_text(summary));
    }
    let files: Vec<String> = summary.files.iter().map(|file| file.display().to_string()).collect();
    table.row("written", printable(&files.join("\n")));
    if let Some(sample) = &summary.sample {
        table.row("", " ");
        let before = if summary.begins_with_adapter { "base alone" } else { "before" };
        sample_rows(&mut table, sample, before);
        table.row("", " ");
    }
    next_rows(&mut table, summary, resume);
    let uploaded = match &summary.uploaded {
        Some(Uploaded::Done(uploaded)) => super::upload::render(uploaded),
        _ => String::new(),
    };
    table.render() + &uploaded
}

/// What was held at the most, beside what was estimated: of steps, so that without one there is nothing to compare.
fn memory_text(summary: &Summary) -> String {
    let measured = match (summary.peak_gpu_memory, summary.peak_memory) {
        (Some(peak), _) => format!("{} of the GPU's at the peak", bytes(peak)),
        (None, Some(peak)) => format!("{} at the peak", bytes(peak)),
        (None, None) => "not measured here".into(),
    };
    format!("{measured}; estimated before: {}", bytes(summary.estimated_memory))
}

/// What was done, and which adapter came of it.
fn ending_rows(table: &mut Table, summary: &Summary) {
    let (label, text) = ending_text(summary);
    table.row(label, text);
    let of_step = match summary.adapter_step {
        step if step == summary.steps || summary.interrupted => String::new(),
        step => format!(", of step {step}, where {} was best", summary.metric_for_best_model.name()),
    };
    let parameters = count(summary.adapter_parameters);
    if summary.interrupted && summary.steps == 0 {
        table.row("adapter", "none yet");
        return;
    }
    table.row("adapter", format!("{} ({parameters} parameters{of_step})", summary.adapter_dir.display()));
}

/// What this process did, which may have gone on with an earlier one's run.
fn ending_text(summary: &Summary) -> (&'static str, String) {
    let Summary { steps, total_steps, resumed_after, .. } = *summary;
    let taken = steps - resumed_after.min(steps);
    let counted = |n: usize| format!("{n} {}", if n == 1 { "step" } else { "steps" });
    let time = duration(summary.seconds);
    let timed = match taken {
        0 => String::new(),
        _ => format!(" in {time} ({:.0} tokens/s)", summary.tokens_per_second),
    };
    let skipped = match summary.skipped {
        0 => String::new(),
        skipped => format!(", {skipped} skipped as not finite"),
    };
    match (summary.interrupted, taken) {
        (true, 0) if steps == 0 => ("interrupted", "before the first step: nothing was trained".into()),
        (true, 0) => ("interrupted after", format!("{} of {total_steps}{skipped}; none was taken now", counted(steps))),
        (true, _) if resumed_after > 0 => {
            ("interrupted after", format!("{} of {total_steps}{skipped}; {taken} of them now,{timed}", counted(steps)))
        }
        (true, _) => ("interrupted after", format!("{}{skipped}{timed}", counted(steps))),
        (false, 0) if summary.was_finished => {
            ("finished", format!("before: all {} were done, and none was taken now", counted(steps)))
        }
        (false, 0) if steps > 0 => {
            ("finished", format!("all {} were done before; what was left to do took {time}", counted(steps)))
        }
        (false, _) => {
            let of = if resumed_after > 0 { format!("{taken} of {}", counted(steps)) } else { counted(steps) };
            let early = if summary.stopped_early { ", stopped early," } else { "" };
            ("trained", format!("{of}{early}{skipped}{timed}"))
        }
    }
}

fn validation_rows(table: &mut Table, summary: &Summary) {
    let known = [&summary.best_validation, &summary.last_validation, &summary.first_validation];
    let Some(after) = known.into_iter().flatten().find(|validation| validation.step == summary.adapter_step) else {
        // A run that was interrupted may have had no time for its first.
        if summary.last_validation.is_none() && !summary.interrupted {
            table.row("validation", "none; `data.validation` names rows for it");
            if let Some(health) = summary.health.filter(|health| health.verdict != Verdict::Healthy) {
                table.row("training rows", health.numbers());
            }
        }
        return;
    };
    let first = summary.first_validation.as_ref().filter(|first| first.step != after.step);
    let decides = &summary.metric_for_best_model;
    // Under `sft` the objective's loss is the cross-entropy.
    let is_shown =
        |of: &&MetricForBest| *of != decides && (summary.objective != "sft" || **of != MetricForBest::ObjectiveLoss);
    for metric in std::iter::once(decides).chain(MetricForBest::NUMBERS.iter().filter(is_shown)) {
        let before = first.map_or(String::new(), |first| format!("{} → ", metric.text(first)));
        table.row(metric.name_under(&summary.objective), format!("{before}{}", metric.text(after)));
    }
    if let Some(verdict) = &summary.verdict {
        table.row("verdict", verdict.clone());
    }
}

/// What to run next.
fn next_rows(table: &mut Table, summary: &Summary, resume: &str) {
    let generate = generate_command(&summary.adapter_dir, summary.sample.as_ref());
    if summary.interrupted {
        table.row("go on", resume);
        if summary.steps == 0 {
            return;
        }
        table.row("or use it", format!("as it is: {generate}"));
        return;
    }
    if summary.health.is_some_and(|health| health.verdict == Verdict::Ruined) {
        table.row(
            "next",
            "train again with a lower `training.learning_rate` and `--overwrite`, or take an earlier checkpoint",
        );
        return;
    }
    if summary.tasks_interrupted {
        table.row("go on", format!("the adapter is done; to finish its tasks: {resume}"));
    }
    table.row("next", generate);
    if summary.was_finished {
        let new = format!("a new run with `lora.init_from: {}`", summary.output_dir.display());
        let longer = summary.longer.as_ref().map(|settings| format!("a longer run: `--resume {settings}`; or "));
        table.row("train on", format!("{}{new}", longer.unwrap_or_default()));
    }
}

fn sample_rows(table: &mut Table, sample: &Sample, before: &str) {
    let shown = |text: &str| match printable(text.trim()) {
        text if text.is_empty() => "(nothing)".to_owned(),
        text => text,
    };
    table.row("prompt", shown(&sample.prompt));
    table.row("reference", shown(&sample.reference));
    table.row(before, shown(&sample.before));
    table.row("after", shown(&sample.after));
}

fn generate_command(output_dir: &Path, sample: Option<&Sample>) -> String {
    let short = |prompt: &&str| !prompt.contains(char::is_control) && prompt.chars().count() <= 200;
    let prompt = sample.map(|sample| sample.prompt.trim()).filter(short).unwrap_or("your prompt");
    let raw = if sample.is_some_and(|sample| sample.raw) { "--raw " } else { "" };
    format!("equipoise generate {raw}{} {}", quoted(&output_dir.display().to_string()), quoted(prompt))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Forgetting, ResultRow, TaskChange};
    use crate::train::metrics::{TaskScore, Validation};

    fn summary() -> Summary {
        let validation = |step, cross_entropy, token_accuracy| Validation {
            step,
            cross_entropy,
            objective_loss: cross_entropy / 20.0,
            token_accuracy,
            token_probability: token_accuracy - 0.1,
            likely_tokens: 0.0,
            supervised_tokens: 900,
            best: true,
            tasks: Vec::new(),
        };
        Summary {
            output_dir: "adapters/quickstart".into(),
            adapter_dir: "adapters/quickstart".into(),
            total_steps: 200,
            resumed_after: 0,
            was_finished: false,
            longer: None,
            begins_with_adapter: false,
            objective: "bft".into(),
            metric_for_best_model: MetricForBest::TokenProbability,
            verdict: Some("better than the base alone by token probability, which decides".into()),
            health: None,
            fails: false,
            recipe_name: "quickstart".into(),
            steps: 200,
            interrupted: false,
            stopped_early: false,
            adapter_step: 150,
            skipped: 0,
            first_validation: Some(validation(0, 3.21, 0.31)),
            last_validation: Some(validation(200, 1.98, 0.55)),
            best_step: Some(150),
            best_validation: Some(validation(150, 1.93, 0.56)),
            seconds: 151.0,
            training_seconds: 140.0,
            tokens_per_second: 5123.4,
            peak_memory: Some(812 << 20),
            peak_gpu_memory: None,
            estimated_memory: 790 << 20,
            adapter_parameters: 884_736,
            tasks: vec![TaskChange {
                after: ResultRow {
                    score: TaskScore {
                        task: "pubmedqa".into(),
                        metric: "acc".into(),
                        filter: "none".into(),
                        value: 0.582,
                        stderr: Some(0.0221),
                        higher_is_better: true,
                        items: 500,
                    },
                    alias: "pubmedqa".into(),
                    group: false,
                    chance: Some(1.0 / 3.0),
                    best_constant: Some(0.552),
                },
                base: 0.414,
                base_stderr: Some(0.022),
            }],
            tasks_interrupted: false,
            forgetting: Some(Forgetting { tokens: 480, base_perplexity: 14.2, perplexity: 15.05 }),
            sample: Some(Sample {
                prompt: "What is autophagy?".into(),
                reference: "The process in which\ncells digest parts of themselves.".into(),
                before: String::new(),
                after: "A \u{1b}[31mprocess.".into(),
                raw: false,
            }),
            files: vec!["adapters/quickstart/adapter_model.safetensors".into(), "adapters/quickstart/README.md".into()],
            uploaded: None,
        }
    }

    #[test]
    fn the_summary_says_what_came_of_it_and_what_is_next() {
        insta::assert_snapshot!(render(&summary(), "equipoise train x --resume"));
    }

    #[test]
    fn an_interrupted_run_says_how_to_go_on() {
        let mut summary = summary();
        (summary.interrupted, summary.sample, summary.peak_memory, summary.skipped) = (true, None, None, 2);
        (summary.first_validation, summary.last_validation, summary.best_validation) = (None, None, None);
        (summary.verdict, summary.forgetting) = (None, None);
        summary.tasks.clear();
        summary.adapter_dir = "adapters/quickstart/checkpoints/step-000200".into();
        insta::assert_snapshot!(render(&summary, "equipoise train recipes/quickstart.yaml --resume"));
    }

    #[test]
    fn what_this_process_did_is_told_from_what_the_run_did() {
        let mut summary = summary();
        let said = |summary: &Summary| {
            let (label, text) = ending_text(summary);
            format!("{label} {text}")
        };
        assert_eq!(said(&summary), "trained 200 steps in 2m 31s (5123 tokens/s)");
        summary.resumed_after = 195;
        assert_eq!(said(&summary), "trained 5 of 200 steps in 2m 31s (5123 tokens/s)");
        (summary.interrupted, summary.steps) = (true, 197);
        assert_eq!(said(&summary), "interrupted after 197 steps of 200; 2 of them now, in 2m 31s (5123 tokens/s)");
        summary.steps = 195;
        assert_eq!(said(&summary), "interrupted after 195 steps of 200; none was taken now");
        (summary.steps, summary.resumed_after) = (0, 0);
        assert_eq!(said(&summary), "interrupted before the first step: nothing was trained");
        assert!(!render(&summary, "again").contains("at the peak"), "no step, nothing to compare");
    }

    #[test]
    fn a_finished_run_says_how_it_is_made_longer() {
        let mut summary = summary();
        (summary.was_finished, summary.resumed_after) = (true, 200);
        let text = render(&summary, "again");
        assert!(text.contains("all 200 steps were done, and none was taken now"), "{text}");
        assert!(text.contains("a new run with `lora.init_from") && !text.contains("--resume"), "{text}");
        assert!(!text.contains("at the peak"), "{text}");
        summary.longer = Some("--set training.max_steps=N --set training.warmup_steps=6".into());
        let text = render(&summary, "again");
        assert!(
            text.contains("a longer run: `--resume --set training.max_steps=N --set training.warmup_steps=6`"),
            "{text}"
        );
    }
}
