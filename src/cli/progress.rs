//! A run as it goes: a bar on a terminal, lines elsewhere, JSON for programs.

use super::interrupt::{Interrupt, Say};
use super::output::{Stdout, Table, count, printable, say, width};
use super::step_line::StepLine;
use crate::error::Result;
use crate::train::metrics::{RunHeader, StepMetrics, Validation};
use crate::train::{Event, Health, MetricForBest, Observer, Verdict};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// On no terminal a line is written each time so many parts of the run are done.
const LINES_A_RUN: usize = 10;

/// What people see on stderr.
enum Screen {
    Nothing,
    Lines,
    Bar(SharedBar),
}

/// The bar on the screen, if there is one: a signal's handler writes above it.
#[derive(Clone, Default)]
struct SharedBar(Arc<Mutex<Option<ProgressBar>>>);

impl SharedBar {
    fn get(&self) -> Option<ProgressBar> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another bar in its place, or none. `new` must not have been drawn yet: two bars on the screen erase each other's
    /// lines.
    fn set(&self, new: Option<ProgressBar>) {
        let old = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), new);
        if let Some(old) = old {
            old.finish_and_clear();
        }
    }

    fn say(&self, line: &str) {
        match self.get() {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }
}

/// Shows a run on stderr, and as JSON on stdout if asked to.
pub(super) struct Progress {
    screen: Screen,
    json: Option<Stdout>,
    interrupt: Option<Interrupt>,
    objective: String,
    metric: MetricForBest,
    total_steps: usize,
    first_step: usize,
    last_step: usize,
    /// Whether steps are being taken.
    in_steps: bool,
}

impl Progress {
    /// An observer for a command with `--json` and `--quiet`.
    pub fn new(json: bool, quiet: bool) -> Self {
        let screen = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Screen::Nothing,
            (false, true) => Screen::Bar(SharedBar::default()),
            (false, false) if json => Screen::Nothing,
            (false, false) => Screen::Lines,
        };
        Self {
            screen,
            json: json.then(Stdout::new),
            interrupt: None,
            objective: String::new(),
            metric: MetricForBest::CrossEntropy,
            total_steps: 0,
            first_step: 0,
            last_step: 0,
            in_steps: false,
        }
    }

    /// Listens to Ctrl-C and other signals from now on, as `listen` has it.
    #[must_use]
    pub fn interruptible(mut self, listen: fn(Say) -> Interrupt) -> Self {
        let bar = match &self.screen {
            Screen::Bar(bar) => bar.clone(),
            Screen::Nothing | Screen::Lines => SharedBar::default(),
        };
        self.interrupt = Some(listen(Box::new(move |line| bar.say(line))));
        self
    }

    /// Takes the bar off the screen.
    ///
    /// # Errors
    /// When the JSON could not be written.
    pub fn finish(&mut self) -> Result<()> {
        if let Screen::Bar(bar) = &self.screen {
            bar.set(None);
        }
        self.json.as_mut().map_or(Ok(()), Stdout::finish)
    }

    fn say(&self, line: &str) {
        match &self.screen {
            Screen::Nothing => {}
            Screen::Bar(bar) => bar.say(line),
            Screen::Lines => say(line),
        }
    }

    fn bar(&self) -> Option<ProgressBar> {
        match &self.screen {
            Screen::Bar(bar) => bar.get(),
            Screen::Nothing | Screen::Lines => None,
        }
    }

    /// Puts a bar in the place of the one before.
    fn show_bar(&self, new: &ProgressBar) {
        if let Screen::Bar(bar) = &self.screen {
            bar.set(Some(new.clone()));
        }
    }

    fn phase(&mut self, name: &str) {
        self.in_steps = false;
        if matches!(self.screen, Screen::Bar(_)) {
            let spinner = ProgressBar::new_spinner().with_message(printable(name));
            self.show_bar(&spinner);
            spinner.enable_steady_tick(Duration::from_millis(120));
        } else {
            self.say(&printable(name));
        }
    }

    /// Bytes on their way: a bar, or elsewhere a line at the beginning of a file.
    fn bytes(&mut self, what: &str, done: u64, total: u64) {
        let quiet = what == "tokenizing";
        self.share(what, (done, total), "{prefix} {bar:24} {bytes}/{total_bytes}  {eta} left", quiet);
    }

    /// Items, as [`Self::bytes`]; between steps, a message beside the run's own bar.
    fn items(&mut self, what: &str, done: usize, total: usize) {
        if let Some(bar) = self.bar().filter(|_| self.in_steps) {
            bar.set_message(format!("{}/{}  {what}: item {done} of {total}", self.last_step, self.total_steps));
            return;
        }
        self.share(what, (done as u64, total as u64), "{prefix} {bar:24} {pos}/{len}  {eta} left", false);
    }

    fn share(&mut self, what: &str, (done, total): (u64, u64), template: &str, quiet: bool) {
        match &self.screen {
            Screen::Bar(bar) => {
                if let Some(bar) = bar.get().filter(|bar| bar.prefix() == what) {
                    bar.set_length(total);
                    bar.set_position(done);
                    return;
                }
                let style = ProgressStyle::with_template(template).expect("the template is well-formed");
                let bar = ProgressBar::new(total).with_style(style.progress_chars("━╸ "));
                self.show_bar(&bar.with_prefix(what.to_owned()));
            }
            Screen::Lines if done == 0 && !quiet => self.say(&printable(what)),
            Screen::Lines | Screen::Nothing => {}
        }
    }

    fn run(&mut self, header: &RunHeader) {
        self.objective.clone_from(&header.objective);
        self.metric.clone_from(&header.metric_for_best_model);
        self.say(header_text(header).trim_end());
    }

    fn start(&mut self, step: usize, total_steps: usize) {
        (self.total_steps, self.first_step, self.last_step) = (total_steps, step, step);
        self.in_steps = true;
        if matches!(self.screen, Screen::Bar(_)) {
            let style = ProgressStyle::with_template("{msg}").expect("the template is well-formed");
            let bar = ProgressBar::new(total_steps as u64).with_style(style);
            self.show_bar(&bar.with_position(step as u64).with_message(format!("{step}/{total_steps}")));
        }
        if step > 0 && step < total_steps {
            self.say(&format!("going on after step {step} of {total_steps}"));
        }
    }

    fn step(&mut self, metrics: &StepMetrics, seconds_left: Option<f64>) {
        self.last_step = metrics.step;
        let line = StepLine { metrics, total_steps: self.total_steps, objective: &self.objective, seconds_left };
        if let Some(bar) = self.bar() {
            let (columns, text) = line.fitting(width(&console::Term::stderr()).unwrap_or(80));
            let template = if columns > 0 { format!("{{bar:{columns}}} {{msg}}") } else { "{msg}".to_owned() };
            let style = ProgressStyle::with_template(&template).expect("the template is well-formed");
            bar.set_style(style.progress_chars("━╸ "));
            bar.set_position(metrics.step as u64);
            bar.set_message(text);
        } else if matches!(self.screen, Screen::Lines) {
            let part = |step: usize| step * LINES_A_RUN / self.total_steps.max(1);
            let first = metrics.step == self.first_step + 1;
            if first || part(metrics.step) > part(metrics.step.saturating_sub(1)) {
                self.say(&format!("step {}", line.whole()));
            }
        }
    }

    /// Rows that are measured: a validation may take as long as many steps.
    fn validating(&self, done: usize, total: usize) {
        if let Some(bar) = self.bar() {
            bar.set_message(format!("{}/{}  validating: row {done} of {total}", self.last_step, self.total_steps));
        }
    }
}

/// What runs, a line a fact.
fn header_text(header: &RunHeader) -> String {
    let rows = |n: usize| if n == 1 { "1 row".to_owned() } else { format!("{n} rows") };
    let types: Vec<&str> = header.quantization.iter().map(|(kind, _)| kind.as_str()).collect();
    let mut left_out = Vec::new();
    for (rows, why) in [
        (header.dropped_rows, "longer than `data.max_seq_len`"),
        (header.skipped_rows, "not readable"),
        (header.unlearnt_rows, "with nothing to learn"),
    ] {
        if rows > 0 {
            left_out.push(format!("{rows} {why}"));
        }
    }
    let mut left_out =
        if left_out.is_empty() { "none left out".to_owned() } else { format!("left out: {}", left_out.join(", ")) };
    if header.truncated_rows > 0 {
        left_out = format!("{left_out}; {} cut to `data.max_seq_len`", header.truncated_rows);
    }
    let share = 100.0 * header.supervised_tokens as f64 / header.tokens.max(1) as f64;
    let mut table = Table::default();
    table.row(
        "base",
        format!(
            "{} ({}, {} parameters, {})",
            header.base,
            header.model_type,
            count(header.parameters),
            types.join(", ")
        ),
    );
    table.row("device", header.device.clone());
    table
        .row("adapter", format!("{} parameters, trained under {}", count(header.adapter_parameters), header.objective));
    table.row(
        "data",
        format!("{} to train on, {} to validate on; {left_out}", rows(header.train_rows), header.validation_rows),
    );
    table.row("tokens", format!("{} to train on, {share:.0}% of them learnt", count(header.tokens)));
    let best = format!("validations are judged by {}", header.metric_for_best_model.name());
    let judged = if header.validation_rows > 0 { format!("; {best}") } else { String::new() };
    table.row("steps", format!("{}{judged}", header.total_steps));
    table.row("output", header.output_dir.clone());
    printable(&table.render())
}

/// The most metrics of tasks in the line of a validation; `metrics.jsonl` has all.
const TASKS_SHOWN: usize = 4;

/// A validation, what decides first.
fn validation_text(validation: &Validation, metric: &MetricForBest, objective: &str) -> String {
    let when = match validation.step {
        0 => "before training".to_owned(),
        step => format!("after step {step}"),
    };
    let value = |of: &MetricForBest| of.text(validation);
    let best = if validation.best { ", the best so far" } else { "" };
    let others = [MetricForBest::CrossEntropy, MetricForBest::TokenAccuracy, MetricForBest::ObjectiveLoss];
    let others =
        others.into_iter().filter(|of| of != metric && (objective != "sft" || *of != MetricForBest::ObjectiveLoss));
    let mut others: Vec<String> = others.map(|of| format!("{} {}", of.name_under(objective), value(&of))).collect();
    let deciding = if let MetricForBest::Task(of) = metric { of.of(validation) } else { None };
    let tasks = validation.tasks.iter().filter(|of| !deciding.is_some_and(|deciding| std::ptr::eq(deciding, *of)));
    others.extend(tasks.take(TASKS_SHOWN).map(|of| {
        let filter = if of.filter == "none" { String::new() } else { format!(",{}", of.filter) };
        format!("{}/{}{filter} {:.4}", of.task, of.metric, of.value)
    }));
    format!("validation {when}: {} {}{best}; {}", metric.name_under(objective), value(metric), others.join(", "))
}

fn health_text(health: &Health) -> String {
    let numbers = health.numbers();
    match health.verdict {
        Verdict::Ruined => format!(
            "warning: step {}: training ruins the model: {numbers}. Stop it, and lower `training.learning_rate`",
            health.step
        ),
        Verdict::Worse => {
            format!("warning: step {}: the model gets worse on the rows it trains on: {numbers}", health.step)
        }
        Verdict::Healthy => format!("step {}: the model has recovered: {numbers}", health.step),
    }
}

fn interrupted_text(step: usize) -> String {
    match step {
        0 => "interrupted before the first step: nothing was trained, and nothing is saved".to_owned(),
        step => format!("interrupted after step {step}, saved"),
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        if let Some(stdout) = &mut self.json {
            write_json(stdout, event);
        }
        match event {
            Event::Phase(name) => self.phase(name),
            Event::Bytes { what, done, total } => self.bytes(what, *done, *total),
            Event::Items { what, done, total } => self.items(what, *done, *total),
            Event::Note(text) => self.say(&format!("note: {}", printable(text))),
            Event::Warning(text) => self.say(&format!("warning: {}", printable(text))),
            Event::Run(header) => self.run(header),
            Event::NextRun { what, objective } => {
                self.objective.clone_from(objective);
                self.phase(what);
            }
            Event::Start { step, total_steps } => self.start(*step, *total_steps),
            Event::Step { metrics, seconds_left } => self.step(metrics, *seconds_left),
            Event::Validating { done, total } => self.validating(*done, *total),
            Event::Validation(validation) => self.say(&validation_text(validation, &self.metric, &self.objective)),
            Event::Health(health) => self.say(&health_text(health)),
            Event::Skipped { step, skipped } => {
                self.say(&format!(
                    "step {step} skipped: its loss or gradient is not finite ({skipped} skipped so far)"
                ));
            }
            Event::Saved { step, path } => self.say(&format!("saved step {step} in {}", path.display())),
            Event::EarlyStop { step, best_step } => {
                self.say(&format!("stopped early after step {step}: validation was best after step {best_step}"));
            }
            Event::Interrupted { step } => self.say(&interrupted_text(*step)),
        }
    }

    fn stop_requested(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::requested)
    }
}

fn write_json(stdout: &mut Stdout, event: &Event) {
    match event {
        Event::Phase(name) => stdout.json("phase", &json!({ "name": name })),
        // A line for each piece of a download would drown the rest: of items, their beginning alone.
        Event::Items { what, done: 0, total } => stdout.json("items", &json!({ "what": what, "total": total })),
        Event::Bytes { .. } | Event::Items { .. } | Event::Validating { .. } => return,
        Event::Note(text) => stdout.json("note", &json!({ "text": text })),
        Event::Warning(text) => stdout.json("warning", &json!({ "text": text })),
        Event::Run(header) => stdout.json("run", header),
        Event::NextRun { what, objective } => stdout.json("next_run", &json!({ "what": what, "objective": objective })),
        Event::Start { step, total_steps } => {
            stdout.json("start", &json!({ "step": step, "total_steps": total_steps }))
        }
        Event::Step { metrics, seconds_left } => {
            let mut line = serde_json::to_value(metrics).unwrap_or_default();
            line["seconds_left"] = json!(seconds_left);
            stdout.json("step", &line)
        }
        Event::Validation(validation) => stdout.json("validation", validation),
        Event::Health(health) => stdout.json("health", health),
        Event::Skipped { step, skipped } => stdout.json("skipped", &json!({ "step": step, "skipped": skipped })),
        Event::Saved { step, path } => stdout.json("saved", &json!({ "step": step, "path": path })),
        Event::EarlyStop { step, best_step } => {
            stdout.json("early_stop", &json!({ "step": step, "best_step": best_step }))
        }
        Event::Interrupted { step } => stdout.json("interrupted", &json!({ "step": step })),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_validation_says_first_what_decides() {
        let mut validation = Validation {
            step: 0,
            cross_entropy: 2.5,
            objective_loss: 0.1,
            token_accuracy: 0.412,
            token_probability: 0.3061,
            likely_tokens: 0.0,
            supervised_tokens: 9,
            best: false,
            tasks: Vec::new(),
        };
        let text = |validation: &Validation, metric, objective| validation_text(validation, metric, objective);
        assert_eq!(
            text(&validation, &MetricForBest::TokenProbability, "bft"),
            "validation before training: token probability 30.6%; cross-entropy 2.5000, token accuracy 41.2%, bft loss 0.1000"
        );
        (validation.step, validation.best) = (50, true);
        assert_eq!(
            text(&validation, &MetricForBest::CrossEntropy, "sft"),
            "validation after step 50: cross-entropy 2.5000, the best so far; token accuracy 41.2%"
        );
        assert_eq!(
            text(&validation, &MetricForBest::ObjectiveLoss, "dft"),
            "validation after step 50: dft loss 0.1000, the best so far; cross-entropy 2.5000, token accuracy 41.2%"
        );
    }

    #[test]
    fn nothing_is_called_saved_before_the_first_step() {
        assert_eq!(interrupted_text(7), "interrupted after step 7, saved");
        assert!(interrupted_text(0).ends_with("nothing was trained, and nothing is saved"));
    }

    #[test]
    fn a_run_begins_with_what_it_is() {
        insta::assert_snapshot!(header_text(&RunHeader {
            name: "x".into(),
            base: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
            model_type: "llama".into(),
            parameters: 134_515_008,
            quantization: vec![("q4_k".into(), 210), ("f32".into(), 61)],
            adapter_parameters: 4_884_480,
            device: "cpu, 16 threads, bf16 (avx512)".into(),
            compute: "bf16".into(),
            objective: "bft".into(),
            metric_for_best_model: MetricForBest::TokenProbability,
            train_rows: 12_528,
            validation_rows: 255,
            dropped_rows: 1875,
            skipped_rows: 1,
            unlearnt_rows: 0,
            truncated_rows: 0,
            tokens: 2_300_000,
            supervised_tokens: 1_863_000,
            total_steps: 3132,
            resumed_after: 0,
            recipe_sha256: String::new(),
            seed: 42,
            output_dir: "adapters/x".into(),
            version: "0.1.0".into(),
        }));
    }
}
