//! Runs that go on, longer or judged otherwise: what changes, what stays, and what they say of it.

use super::runs::events;
use crate::support::workplace::Workplace;
use serde_json::Value;

/// A run may become longer, and save or measure otherwise, where that changes no step that is done: the same bytes as if it had been
/// so from the beginning.
#[test]
fn a_run_is_made_longer_where_that_changes_nothing_that_was() {
    let place = Workplace::new();
    let schedule =
        ["training.lr_scheduler=constant", "training.warmup_steps=2", "training.load_best_model_at_end=false"];
    let with = |more: &[&'static str]| [&schedule[..], more].concat();
    place.train(&with(&["training.max_steps=8", "output_dir=whole"]));
    place.train(&with(&["training.max_steps=4", "output_dir=longer", "training.eval_steps=3"]));
    let more = ["training.max_steps=8", "output_dir=longer", "training.save_total_limit=5", "--resume"];
    let output = place.train(&with(&more));
    let notes: Vec<String> = events(&output, "note").iter().map(|note| note["text"].to_string()).collect();
    for change in ["training.max_steps: 8 (was 4)", "training.eval_steps: 2 (was 3)", "training.save_total_limit: 5"] {
        assert!(notes.iter().any(|note| note.contains(change)), "{change}: {notes:?}");
    }
    assert!(place.adapter("whole") == place.adapter("longer"));
    // A finished run says so, and takes no step.
    let output = place.train(&with(&more));
    let summary = &events(&output, "summary")[0];
    assert_eq!((&summary["was_finished"], &summary["steps"]), (&true.into(), &8.into()));
    assert!(events(&output, "step").is_empty());
    assert!(place.adapter("whole") == place.adapter("longer"));
}

#[test]
fn a_run_whose_past_would_be_another_does_not_go_on() {
    let place = Workplace::new();
    place.train(&["training.max_steps=4"]);
    // A cosine over more steps has other rates from the second step on.
    let refused = place.failure(&["training.max_steps=8", "--resume"]);
    refused.says(2, &["another learning rate", "lr_scheduler: constant", "lora.init_from"]);
    place.failure(&["training.max_steps=2", "--resume"]).says(2, &["step 4", "ends after 2"]);
    place.failure(&["training.learning_rate=0.02"]).says(2, &["training.learning_rate: 0.02 (was 0.01)"]);
    place.failure(&["lora.r=8", "--resume"]).says(2, &["lora.r: 8 (was 4)"]);
}

/// The warmup's default is a share of the steps, so that a longer run has another one: the refusal names the key that keeps it.
#[test]
fn a_longer_run_is_told_the_warmup_that_makes_it_possible() {
    let place = Workplace::new();
    let schedule =
        ["training.lr_scheduler=constant", "training.warmup_ratio=0.5", "training.load_best_model_at_end=false"];
    let with = |more: &[&'static str]| [&schedule[..], more].concat();
    place.train(&with(&["training.max_steps=4"]));
    let refused = place.failure(&with(&["training.max_steps=8", "--resume"]));
    refused.says(2, &["another learning rate", "training.warmup_steps=2` keeps it", "lora.init_from"]);
    // A finished run says so before anyone tries.
    let output = place.train(&with(&["training.max_steps=4", "--resume"]));
    let summary = &events(&output, "summary")[0];
    assert_eq!(summary["longer"], "--set training.max_steps=N --set training.warmup_steps=2");
    place.train(&with(&["training.max_steps=8", "training.warmup_steps=2", "--resume"]));
    place.train(&with(&["training.max_steps=8", "training.warmup_steps=2", "output_dir=whole"]));
    assert!(place.adapter("whole") == place.adapter("out"));
    // Under a cosine there is no such way.
    let output = place.train(&["output_dir=cosine"]);
    assert_eq!(events(&output, "summary")[0].get("longer"), None);
}

/// Steps and seconds are of the same process.
#[test]
fn a_run_that_goes_on_counts_its_own_steps() {
    let place = Workplace::new();
    let schedule = ["training.lr_scheduler=constant", "training.warmup_steps=0"];
    place.train(&[&schedule[..], &["training.max_steps=4"]].concat());
    let mut command = place.training(&[&schedule[..], &["training.max_steps=6", "--resume"]].concat());
    let output = command.output().unwrap();
    let summary = &events(&output, "summary")[0];
    assert_eq!((&summary["steps"], &summary["resumed_after"]), (&6.into(), &4.into()));
    let args = ["train", "trial.yaml", "--resume", "--set", "training.max_steps=7"];
    let sets: Vec<&str> = schedule.iter().flat_map(|set| ["--set", set]).collect();
    let output = place.command(&[&args[..], &sets].concat()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("1 of 7 steps in"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let output = place.command(&[&args[..], &sets].concat()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("all 7 steps were done") && !text.contains("estimated before"), "{text}");
}

/// The best of the validations so far, by another number than the run was judged by.
fn best_by(lines: &[Value], key: &str) -> u64 {
    let of = |line: &Value| line[key].as_f64().unwrap() * if key.starts_with("token") { 1.0 } else { -1.0 };
    let trained = lines.iter().filter(|line| line["type"] == "validation" && line["step"] != 0);
    let best = trained.reduce(|best, line| if of(line) > of(best) { line } else { best });
    best.unwrap()["step"].as_u64().unwrap()
}

/// Under another `metric_for_best_model` the best is another one, also of the validations that were before.
#[test]
fn a_run_that_is_judged_otherwise_finds_its_best_anew() {
    let place = Workplace::new();
    let settings = [
        "training.lr_scheduler=constant",
        "training.warmup_steps=0",
        "training.eval_steps=1",
        "training.save_total_limit=20",
        "compute=f32",
    ];
    let with = |more: &[&'static str]| [&settings[..], more].concat();
    let metric = "training.metric_for_best_model";
    let judged = ["training.metric_for_best_model=cross_entropy", "training.metric_for_best_model=objective_loss"];
    place.train(&with(&["training.max_steps=6", judged[0]]));
    let lines = place.metrics("out");
    let (before, after) = (best_by(&lines, "cross_entropy"), best_by(&lines, "objective_loss"));
    assert_ne!(before, after, "the settings above are chosen so that the two differ");
    // What was not kept cannot be the end of the run.
    let kept = place.path(&format!("out/checkpoints/step-{after:06}"));
    let aside = place.path("aside");
    std::fs::rename(&kept, &aside).unwrap();
    assert_ne!(after, 6, "the last step's checkpoint is needed to go on");
    let refused = place.failure(&with(&["training.max_steps=6", judged[1], "--resume"]));
    refused.says(2, &[metric, "was cross_entropy", "was not kept", "load_best_model_at_end: false"]);
    std::fs::rename(&aside, &kept).unwrap();
    let output = place.train(&with(&["training.max_steps=6", judged[1], "--resume"]));
    let summary = &events(&output, "summary")[0];
    assert_eq!((&summary["best_step"], &summary["adapter_step"]), (&after.into(), &after.into()));
    place.train(&with(&["training.max_steps=6", judged[1], "output_dir=whole"]));
    assert!(place.adapter("out") == place.adapter("whole"));
    // Without its lines a run cannot know.
    std::fs::remove_file(place.path("out/metrics.jsonl")).unwrap();
    let refused = place.failure(&with(&["training.max_steps=6", judged[1], "--resume"]));
    refused.says(2, &[metric, "metrics.jsonl", "not known", "was cross_entropy"]);
}
