//! A run as it goes: a bar on a terminal, lines elsewhere, JSON for programs.

use super::interrupt::Interrupt;
use super::output::{Stdout, bytes, duration, printable, say};
use crate::error::Result;
use crate::train::metrics::{StepMetrics, Validation};
use crate::train::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// On no terminal a line is written each time so many parts of the run are done.
const LINES_A_RUN: usize = 10;

/// What people see on stderr.
enum Screen {
    Nothing,
    Lines,
    Bar(Option<ProgressBar>),
}

/// Shows a run on stderr, and as JSON on stdout if asked to.
pub(super) struct Progress {
    screen: Screen,
    json: Option<Stdout>,
    interrupt: Option<Interrupt>,
    total_steps: usize,
    first_step: usize,
    last_step: usize,
    began: Instant,
}

impl Progress {
    /// An observer for a command with `--json` and `--quiet`, that asks the run to stop when `interrupt` says so.
    pub fn new(json: bool, quiet: bool, interrupt: Option<Interrupt>) -> Self {
        let screen = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Screen::Nothing,
            (false, true) => Screen::Bar(None),
            (false, false) if json => Screen::Nothing,
            (false, false) => Screen::Lines,
        };
        let json = json.then(Stdout::new);
        Self { screen, json, interrupt, total_steps: 0, first_step: 0, last_step: 0, began: Instant::now() }
    }

    /// Takes the bar off the screen.
    ///
    /// # Errors
    /// When the JSON could not be written.
    pub fn finish(&mut self) -> Result<()> {
        if let Screen::Bar(bar) = &mut self.screen
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
        self.json.as_mut().map_or(Ok(()), Stdout::finish)
    }

    fn say(&self, line: &str) {
        match &self.screen {
            Screen::Nothing => {}
            Screen::Bar(Some(bar)) => bar.suspend(|| say(line)),
            Screen::Lines | Screen::Bar(None) => say(line),
        }
    }

    /// Puts a bar in the place of the one before. `new` must not have been drawn yet: two bars on the screen erase each other's
    /// lines.
    fn show_bar(&mut self, new: &ProgressBar) {
        if let Screen::Bar(bar) = &mut self.screen {
            if let Some(old) = bar.take() {
                old.finish_and_clear();
            }
            *bar = Some(new.clone());
        }
    }

    fn phase(&mut self, name: &str) {
        if let Screen::Bar(Some(bar)) = &self.screen
            && self.last_step < self.total_steps
        {
            // Training goes on after this phase, a validation for instance.
            bar.set_message(printable(name));
        } else if matches!(self.screen, Screen::Bar(_)) {
            let spinner = ProgressBar::new_spinner().with_message(printable(name));
            self.show_bar(&spinner);
            spinner.enable_steady_tick(Duration::from_millis(120));
        } else {
            self.say(&printable(name));
        }
    }

    /// Bytes on their way: a bar, or elsewhere a line at the beginning of a file.
    fn bytes(&mut self, what: &str, done: u64, total: u64) {
        match &self.screen {
            Screen::Bar(Some(bar)) if bar.prefix() == what => {
                bar.set_length(total);
                bar.set_position(done);
            }
            Screen::Bar(_) => {
                let style = ProgressStyle::with_template("{prefix} {bar:24} {bytes}/{total_bytes}  {eta} left")
                    .expect("the template is well-formed");
                let bar = ProgressBar::new(total).with_style(style.progress_chars("━╸ "));
                self.show_bar(&bar.with_prefix(what.to_owned()));
            }
            Screen::Lines if done == 0 && what != "tokenizing" => self.say(&printable(what)),
            Screen::Lines | Screen::Nothing => {}
        }
    }

    fn start(&mut self, step: usize, total_steps: usize) {
        self.total_steps = total_steps;
        self.first_step = step;
        self.last_step = step;
        self.began = Instant::now();
        if matches!(self.screen, Screen::Bar(_)) {
            let style =
                ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}").expect("the template is well-formed");
            let bar = ProgressBar::new(total_steps as u64).with_style(style.progress_chars("━╸ "));
            self.show_bar(&bar.with_position(step as u64));
        } else if step > 0 {
            self.say(&format!("going on after step {step} of {total_steps}"));
        }
    }

    fn step(&mut self, metrics: &StepMetrics) {
        self.last_step = metrics.step;
        let left = self.seconds_left(metrics.step);
        match &self.screen {
            Screen::Nothing | Screen::Bar(None) => {}
            Screen::Bar(Some(bar)) => {
                bar.set_position(metrics.step as u64);
                bar.set_message(step_text(metrics, left));
            }
            Screen::Lines => {
                let part = |step: usize| step * LINES_A_RUN / self.total_steps.max(1);
                let first = metrics.step == self.first_step + 1;
                if first || part(metrics.step) > part(metrics.step.saturating_sub(1)) {
                    self.say(&format!("step {}/{}  {}", metrics.step, self.total_steps, step_text(metrics, left)));
                }
            }
        }
    }

    /// From the mean time of this run's steps so far.
    fn seconds_left(&self, step: usize) -> Option<f64> {
        let done = step.checked_sub(self.first_step).filter(|&done| done > 0)?;
        let each = self.began.elapsed().as_secs_f64() / done as f64;
        Some(each * self.total_steps.saturating_sub(step) as f64)
    }
}

fn step_text(metrics: &StepMetrics, left: Option<f64>) -> String {
    let mut text = format!(
        "loss {:.4}  lr {:.2e}  {:.0} tokens/s",
        metrics.loss, metrics.learning_rate, metrics.tokens_per_second
    );
    if let Some(memory) = metrics.peak_gpu_memory {
        let _ = write!(text, "  GPU {}", bytes(memory));
    } else if let Some(memory) = metrics.peak_memory {
        let _ = write!(text, "  {}", bytes(memory));
    }
    if let Some(left) = left.filter(|left| *left > 0.0) {
        let _ = write!(text, "  {} left", duration(left));
    }
    text
}

fn validation_text(validation: &Validation) -> String {
    let when = match validation.step {
        0 => "before training".to_owned(),
        step => format!("after step {step}"),
    };
    let best = if validation.best && validation.step > 0 { ", the best so far" } else { "" };
    let accuracy = validation.token_accuracy * 100.0;
    format!("validation {when}: loss {:.4}{best}; {accuracy:.1}% of the tokens ranked first", validation.loss)
}

impl Observer for Progress {
    fn event(&mut self, event: &Event) {
        if let Some(stdout) = &mut self.json {
            write_json(stdout, event);
        }
        match event {
            Event::Phase(name) => self.phase(name),
            Event::Bytes { what, done, total } => self.bytes(what, *done, *total),
            Event::Note(text) => self.say(&format!("note: {}", printable(text))),
            Event::Start { step, total_steps } => self.start(*step, *total_steps),
            Event::Step(metrics) => self.step(metrics),
            Event::Validation(validation) => self.say(&validation_text(validation)),
            Event::Skipped { step, skipped } => {
                self.say(&format!(
                    "step {step} skipped: its loss or gradient is not finite ({skipped} skipped so far)"
                ));
            }
            Event::Saved { step, path } => self.say(&format!("saved step {step} in {}", path.display())),
            Event::EarlyStop { step, best_step } => {
                self.say(&format!("stopped early after step {step}: validation was best after step {best_step}"));
            }
            Event::Interrupted { step } => self.say(&format!("interrupted after step {step}, saved")),
        }
    }

    fn stop_requested(&self) -> bool {
        self.interrupt.as_ref().is_some_and(Interrupt::requested)
    }
}

fn write_json(stdout: &mut Stdout, event: &Event) {
    match event {
        Event::Phase(name) => stdout.json("phase", &json!({ "name": name })),
        // A line for each piece of a download would drown the rest.
        Event::Bytes { .. } => return,
        Event::Note(text) => stdout.json("note", &json!({ "text": text })),
        Event::Start { step, total_steps } => {
            stdout.json("start", &json!({ "step": step, "total_steps": total_steps }))
        }
        Event::Step(metrics) => stdout.json("step", metrics),
        Event::Validation(validation) => stdout.json("validation", validation),
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
    use crate::objectives::ObjectiveMetrics;

    #[test]
    fn a_step_and_a_validation_read_well() {
        let metrics = StepMetrics {
            step: 20,
            epoch: 0.5,
            loss: 1.234_56,
            cross_entropy: 2.0,
            learning_rate: 1.97e-3,
            grad_norm: 1.0,
            tokens: 100,
            supervised_tokens: 50,
            tokens_per_second: 1234.5,
            peak_memory: Some(812 << 20),
            peak_gpu_memory: None,
            objective: ObjectiveMetrics::default(),
        };
        assert_eq!(step_text(&metrics, Some(130.0)), "loss 1.2346  lr 1.97e-3  1234 tokens/s  812 MiB  2m 10s left");
        let mut validation = Validation {
            step: 0,
            loss: 2.5,
            objective_loss: 1.0,
            token_accuracy: 0.412,
            supervised_tokens: 9,
            best: true,
        };
        assert_eq!(
            validation_text(&validation),
            "validation before training: loss 2.5000; 41.2% of the tokens ranked first"
        );
        validation.step = 50;
        assert!(validation_text(&validation).starts_with("validation after step 50: loss 2.5000, the best so far;"));
    }
}
