//! Runs: what they show, how they end, and how they go on.

use super::Case;
use crate::support::workplace::{Running, Workplace, embedded_base, refusal};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::process::Output;

/// The events of a kind in a run's JSON.
pub(super) fn events(output: &Output, kind: &str) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == kind).collect()
}

/// A run of the case "diverged looks fine" on the embedded base.
fn diverging(case: &Case, settings: &[&str]) -> Output {
    let base = format!("base.model={}", embedded_base().display());
    let mut all = vec!["train", "recipe.yaml", "--json", "--overwrite", "--set", base.as_str()];
    all.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    case.command(&all).output().unwrap()
}

/// unsloth 712, alpaca-lora 391, `LlamaFactory` 8004 and 4031: "loss drops to 0". Under `bft` and `dft` the loss falls to 0 when the
/// model is destroyed, at a rate of 3e-2, of 1e-1, and of 1e3, where all logits become the same.
#[test]
fn a_run_that_ruins_the_model_says_so_and_fails() {
    let case = Case::new("09-diverged-looks-fine");
    for settings in [
        &["objective.type=bft"][..],
        &["objective.type=dft"],
        &["training.learning_rate=1e-1"],
        &["training.learning_rate=1e3", "training.max_steps=12"],
        &["data.validation_split=0.25", "data.packing=true"],
    ] {
        let output = diverging(&case, settings);
        let refused = refusal(&output);
        refused.says(1, &["training ruined the model: cross-entropy", "the base alone", "training.learning_rate"]);
        let health = events(&output, "health");
        assert_eq!(health.last().unwrap()["verdict"], "ruined", "{settings:?}");
        let summary = &events(&output, "summary")[0];
        assert_eq!((&summary["fails"], &summary["health"]["verdict"]), (&true.into(), &"ruined".into()));
        // At once: long before the end.
        let warned = health.iter().find(|health| health["verdict"] == "ruined").unwrap()["step"].as_u64().unwrap();
        assert!(warned <= 12, "{settings:?}: first said after step {warned}");
        // What the run shows goes up, as the model does down.
        let steps = events(&output, "step");
        let of = |step: &Value| step["cross_entropy"].as_f64().unwrap();
        assert!(of(steps.last().unwrap()) > of(&steps[0]) + 1.0, "{settings:?}");
        assert!(steps.last().unwrap()["token_accuracy"].as_f64().unwrap() < 0.2);
    }
    let output = diverging(&case, &["training.fail_on_divergence=false"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(events(&output, "summary")[0]["fails"], false);
}

/// A run that goes through a bad stretch and recovers, and one that learns, are not failures; neither is a base that guesses itself.
#[test]
fn a_run_that_is_sound_at_its_end_is_no_failure() {
    let case = Case::new("09-diverged-looks-fine");
    for settings in [
        &["objective.type=sft"][..],
        &["training.learning_rate=2e-3"],
        &["objective.type=dft", "training.learning_rate=1e-3"],
        &["base.model=../tiny-base", "training.learning_rate=1e-2", "training.max_steps=20", "data.overlong=truncate"],
    ] {
        let output = diverging(&case, settings);
        assert_eq!(output.status.code(), Some(0), "{settings:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(events(&output, "summary")[0]["fails"], false);
    }
}

/// An adapter that is ruined already is found from the first step on: its own first step is not a yardstick.
#[test]
fn a_run_that_begins_with_a_ruined_adapter_says_so() {
    let case = Case::new("09-diverged-looks-fine");
    diverging(&case, &["training.fail_on_divergence=false"]);
    let settings = ["lora.init_from=out", "output_dir=again", "training.learning_rate=1e-5", "training.max_steps=6"];
    let output = diverging(&case, &settings);
    refusal(&output).says(1, &["training ruined the model"]);
    assert!(events(&output, "health")[0]["step"].as_u64().unwrap() <= 3);
}

/// What was measured before training is the adapter that a run began with, and nothing says that it is the base alone.
#[test]
fn a_run_that_begins_with_an_adapter_is_compared_with_that() {
    let place = Workplace::new();
    let card = |out: &str| std::fs::read_to_string(place.path(out).join("README.md")).unwrap();
    let verdict = |output: &Output| events(output, "summary")[0]["verdict"].to_string();
    let output = place.train(&["training.learning_rate=1e-3"]);
    assert!(verdict(&output).contains("the base alone"), "{}", verdict(&output));
    assert!(card("out").contains("| | the base alone | with the adapter |"), "{}", card("out"));
    let more = ["lora.init_from=out", "output_dir=more", "training.learning_rate=1e-3", "data.sample_in_card=true"];
    let output = place.train(&more);
    let (verdict, card) = (verdict(&output), card("more"));
    assert!(verdict.contains("the adapter it began with") && !verdict.contains("base alone"), "{verdict}");
    assert!(card.contains("| | the adapter it began with | with the adapter |"), "{card}");
    // What a sample and a general text are measured beside is the base.
    assert_eq!(card.matches("base alone").count(), 2, "{card}");
    assert!(card.contains("The base alone:"), "{card}");
    let first = &events(&output, "validation")[0];
    let trained = place.metrics("out").into_iter().rfind(|line| line["type"] == "validation").unwrap();
    assert_eq!((&first["step"], &first["cross_entropy"]), (&0.into(), &trained["cross_entropy"]));
}

/// A step may have a handful of tokens: by themselves they tell nothing.
#[test]
fn the_final_comparison_is_on_enough_rows() {
    let place = Workplace::new();
    let few = ["training.micro_batch_size=1", "training.gradient_accumulation_steps=1", "training.max_steps=3"];
    let output = place.train(&few);
    let step = &events(&output, "step")[2];
    assert!(step["supervised_tokens"].as_u64().unwrap() < 64, "{step}");
    let health = &events(&output, "summary")[0]["health"];
    let tokens = health["supervised_tokens"].as_u64().unwrap();
    assert!((256..400).contains(&tokens), "{health}");
    // No more than there are.
    place.write("train.jsonl", "{\"prompt\": \"one\", \"completion\": \" two\"}\n");
    let output = place.train(&[&few[..], &["--overwrite", "data.validation=null"]].concat());
    let health = &events(&output, "summary")[0]["health"];
    assert!((1..64).contains(&health["supervised_tokens"].as_u64().unwrap()), "{health}");
}

/// A card goes to others, with the folder: no row of the data is in it, unless the recipe says so.
#[test]
fn a_card_has_no_row_of_the_data_unless_it_is_asked_for() {
    let place = Workplace::new();
    let rows = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    place.write("train.jsonl", rows + "{\"instruction\": \"Define.\", \"input\": \"x\", \"output\": \"\"}\n");
    let card = |settings: &[&str]| {
        let output = place.train(settings);
        let sample = events(&output, "summary")[0]["sample"].clone();
        let prompt = sample["prompt"].as_str().unwrap().trim().to_owned();
        let last = prompt.lines().rfind(|line| !line.trim().is_empty()).unwrap().to_owned();
        (std::fs::read_to_string(place.path("out/README.md")).unwrap(), last, sample["reference"].to_string())
    };
    let (text, prompt, reference) = card(&[]);
    assert!(!text.contains("## Sample") && text.contains("your prompt"), "{text}");
    assert!(!text.contains(&prompt) && !text.contains(reference.trim_matches('"')), "{text}");
    assert!(text.contains(", 1 with nothing to learn |"), "{text}");
    // It may change when a run goes on, even after its end.
    let (text, prompt, _) = card(&["--resume", "data.sample_in_card=true"]);
    assert!(text.contains("## Sample") && text.contains(&prompt), "{text}");
}

/// A key of `metrics.jsonl` means the same in each line; the first line says what ran.
#[test]
fn metrics_have_one_meaning_each_and_a_header() {
    let place = Workplace::new();
    let settings = ["data.overlong=drop", "data.max_seq_len=56", "training.max_steps=2"];
    let output = place.train(&settings);
    let text = std::fs::read_to_string(place.path("out/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let header = &lines[0];
    assert_eq!((&header["type"], &header["objective"]), (&"run".into(), &"bft".into()));
    assert_eq!(header["metric_for_best_model"], "token_probability");
    assert_eq!((&header["total_steps"], &header["resumed_after"]), (&2.into(), &0.into()));
    let rows = |key: &str| header[key].as_u64().unwrap();
    assert_eq!(rows("train_rows") + rows("validation_rows") + rows("dropped_rows"), 30);
    assert!(rows("dropped_rows") > 0);
    for line in &lines {
        assert!(line.get("loss").is_none(), "{line}");
        assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
        if line["type"] != "run" {
            assert!(line["cross_entropy"].as_f64().unwrap() > 1.0 && line["objective_loss"].as_f64().unwrap() < 1.0);
            assert!((0.0..=1.0).contains(&line["token_accuracy"].as_f64().unwrap()));
        }
    }
    // What was estimated before covers what was taken, on a system that tells.
    let summary = &events(&output, "summary")[0];
    if let Some(peak) = summary["peak_memory"].as_u64() {
        let estimated = summary["estimated_memory"].as_u64().unwrap();
        assert!(peak <= estimated && estimated < 2 * peak, "{estimated} bytes were estimated, {peak} taken");
    }
    // A checkpoint's files are for the same people.
    let folder = place.path("out/checkpoints/step-000002");
    let mode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().permissions();
    assert_eq!(mode("optimizer.safetensors"), mode("adapter_model.safetensors"));
    // The untrained adapter is the base, and what is best is counted from training on.
    assert_eq!(
        (&lines[1]["type"], &lines[1]["step"], &lines[1]["best"]),
        (&"validation".into(), &0.into(), &false.into())
    );
    let warnings = events(&output, "warning");
    assert!(
        warnings.iter().any(|line| line["text"].as_str().unwrap().contains("of the data is left out")),
        "{warnings:?}"
    );
    assert_eq!(events(&output, "run")[0]["recipe_sha256"], header["recipe_sha256"]);
    // Of the file beside it: with the schedule and all else.
    let recipe = std::fs::read(place.path("out/recipe.yaml")).unwrap();
    assert_eq!(header["recipe_sha256"], format!("{:x}", Sha256::digest(recipe)));
    assert!(events(&output, "step")[0]["seconds_left"].as_f64().unwrap() > 0.0);
}

/// Which checkpoint is best follows the key, and the verdict says which number decided.
#[test]
fn the_number_that_decides_can_be_chosen() {
    let place = Workplace::new();
    for (objective, metric, name) in [
        ("bft", "", "token probability"),
        ("sft", "", "cross-entropy"),
        ("bft", "training.metric_for_best_model=cross_entropy", "cross-entropy"),
        ("dft", "training.metric_for_best_model=token_accuracy", "token accuracy"),
    ] {
        let objective = format!("objective.type={objective}");
        let mut settings = vec![objective.as_str(), "--overwrite", "training.eval_steps=1"];
        settings.extend(Some(metric).filter(|metric| !metric.is_empty()));
        let output = place.train(&settings);
        let summary = &events(&output, "summary")[0];
        assert!(summary["verdict"].as_str().unwrap().contains(name), "{summary}");
        let key = summary["metric_for_best_model"].as_str().unwrap();
        let of = |line: &Value| line[key].as_f64().unwrap() * if key == "cross_entropy" { -1.0 } else { 1.0 };
        let validations = events(&output, "validation");
        let trained = validations.iter().filter(|line| line["step"] != 0);
        let best = trained.fold(None, |best: Option<&Value>, line| match best {
            Some(best) if of(line) <= of(best) => Some(best),
            _ => Some(line),
        });
        assert_eq!(summary["best_step"], best.unwrap()["step"], "{objective:?} {metric}");
        assert_eq!(summary["adapter_step"], summary["best_step"]);
    }
}

/// What was trained until Ctrl-C is of use: its checkpoint is an adapter.
#[test]
fn a_checkpoint_is_an_adapter() {
    let place = Workplace::new();
    let mut running = Running::start(place.training(&["training.max_steps=400", "training.eval_steps=0"]));
    running.wait_for("step", 2);
    running.signal("INT");
    let (code, stderr) = running.end();
    assert_eq!(code, Some(130), "{stderr}");
    let mut steps: Vec<_> =
        std::fs::read_dir(place.path("out/checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    steps.sort();
    let checkpoint = steps.pop().unwrap().display().to_string();
    let generate = |folder: &str| place.command(&["generate", folder, "--raw", "--json", "Define"]).output().unwrap();
    let output = generate(&checkpoint);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The run's own folder holds no adapter yet, and says where one is.
    let name = std::path::Path::new(&checkpoint).file_name().unwrap().to_str().unwrap().to_owned();
    refusal(&generate("out")).says(2, &["has not ended", &name]);
    let export = ["export", checkpoint.as_str(), "--to", "peft", "--out", "exported", "--json"];
    let output = place.command(&export).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let more = [format!("lora.init_from={checkpoint}"), "output_dir=on".into(), "training.max_steps=1".into()];
    place.train(&more.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn what_a_run_takes_is_said_before_it() {
    let place = Workplace::new();
    let output = place.command(&["check", "trial.yaml", "--json"]).output().unwrap();
    let check: Value = serde_json::from_slice(&output.stdout).unwrap();
    let time = &check["time"];
    assert_eq!(time["validations"], 3, "before training, and after steps 2 and 4");
    for key in ["tokens_per_second", "step_seconds", "validation_seconds"] {
        assert!(time[key].as_f64().unwrap() > 0.0, "{time}");
    }
    let of = |key: &str| time[key].as_f64().unwrap();
    assert!(of("total_seconds") > 4.0 * of("step_seconds") + 3.0 * of("validation_seconds"));
}

/// Warnings of a recipe that will not do what it was meant to.
#[test]
fn settings_without_effect_are_warned_of() {
    let place = Workplace::new();
    let warned = |settings: &[&str], says: &str| {
        let output = place.train(&[settings, &["--overwrite", "training.max_steps=1"]].concat());
        let warnings = events(&output, "warning");
        assert!(warnings.iter().any(|line| line["text"].as_str().unwrap().contains(says)), "{says}: {warnings:?}");
    };
    warned(&["data.validation=null", "training.early_stopping_patience=2"], "stops nothing");
    warned(&["lora.r=512"], "wide: a rank over the width adds nothing");
    warned(&["data.validation=null", "data.validation_split=0.01"], "too few to tell");
}
