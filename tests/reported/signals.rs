//! Signals and closed ends (case 01): a run goes on where it should, and saves where it stops. Real processes.

use super::Case;
use crate::support::workplace::Running;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const TRAIN: [&str; 9] = [
    "train",
    "recipe.yaml",
    "--overwrite",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--set",
    "training.micro_batch_size=1",
];

/// The run of the case under a shell that first says what signals do.
fn shell(case: &Case, before: &str, more: &[&str]) -> Command {
    let program = case.command(&[]).get_program().to_owned();
    let mut command = case.command(&[]);
    let environment: Vec<_> =
        command.get_envs().map(|(key, value)| (key.to_owned(), value.map(ToOwned::to_owned))).collect();
    // Whatever runs the tests may itself ignore signals, which a shell cannot undo.
    command = Command::new("env");
    command
        .current_dir(case.path(""))
        .args(["--default-signal", "sh", "-c"])
        .arg(format!("{before}\nexec \"$0\" \"$@\""))
        .arg(program);
    command.args(TRAIN).args(more).stdin(Stdio::null());
    for (key, value) in environment {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command
}

fn has_checkpoint(case: &Case) -> bool {
    let folders = std::fs::read_dir(case.path("out/checkpoints")).into_iter().flatten().flatten();
    folders.into_iter().any(|entry| entry.path().join("trainer_state.json").is_file())
}

/// What `nohup` does with SIGHUP, a script with the SIGINT of its background jobs (POSIX: an ignored signal stays ignored
/// after exec), and some supervisors with SIGTERM.
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    for (ignored, ends) in [("HUP", "TERM"), ("INT", "TERM"), ("TERM", "INT"), ("USR1", "HUP"), ("XCPU", "TERM")] {
        let case = Case::new("01-nohup");
        let mut run = Running::start(shell(&case, &format!("trap '' {ignored}"), &["--json"]));
        run.wait_for("step", 1);
        run.signal(ignored);
        run.wait_for("step", 8);
        run.signal(ends);
        assert_eq!(run.end().0, Some(130), "{ignored} is ignored, {ends} is not");
        assert!(has_checkpoint(&case), "{ends}");
    }
}

/// A closed terminal (twice: the kernel and the shell tell), SLURM's `--signal=USR1`, LSF's USR2, a limit of processor time.
#[test]
fn what_asks_to_stop_saves() {
    for signals in [&["HUP", "HUP"][..], &["USR1"], &["USR2"], &["XCPU"], &["TERM"], &["INT", "INT"]] {
        let case = Case::new("01-nohup");
        let mut run = Running::start(shell(&case, "", &["--json"]));
        run.wait_for("step", 2);
        for signal in signals {
            run.signal(signal);
        }
        assert_eq!(run.end().0, Some(130), "{signals:?}");
        assert!(has_checkpoint(&case), "{signals:?}");
    }
}

#[test]
fn a_run_that_is_suspended_goes_on() {
    let case = Case::new("01-nohup");
    let mut run = Running::start(shell(&case, "", &["--json", "--set", "training.max_steps=8"]));
    run.wait_for("step", 2);
    run.signal("STOP");
    run.signal("CONT");
    run.signal("TSTP");
    run.signal("CONT");
    run.wait_for("step", 8);
    assert_eq!(run.end().0, Some(0));
}

/// `equipoise train … --json | head -1`: that nobody reads any more is not a reason to end a run.
#[test]
fn a_reader_that_leaves_ends_no_run() {
    let case = Case::new("01-nohup");
    let mut command = shell(&case, "", &["--json", "--set", "training.max_steps=8"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with('{'), "{line}");
    assert!(child.wait().unwrap().success());
    assert_ended(&case, 8);
}

/// With stderr closed too, under a log that writes all the time.
#[test]
fn a_closed_stderr_ends_no_run() {
    let case = Case::new("01-nohup");
    let mut command = shell(&case, "", &["-vv", "--set", "training.max_steps=8"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert_ended(&case, 8);
    // Closed before it began, as some daemons do.
    let mut command = shell(&case, "exec 1>&- 2>&-", &["-vv", "--set", "training.max_steps=8"]);
    assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
    assert_ended(&case, 8);
}

fn assert_ended(case: &Case, steps: usize) {
    let metrics = std::fs::read_to_string(case.path("out/metrics.jsonl")).unwrap();
    let last = metrics.lines().filter(|line| line.contains("\"type\":\"step\"")).count();
    assert_eq!(last, steps);
    assert!(Path::new(&case.path("out/adapter_model.safetensors")).is_file());
}
