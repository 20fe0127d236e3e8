//! What a run keeps and when it ends.

use crate::support::tensors;
use crate::support::workplace::Workplace;

#[test]
fn a_run_that_gets_worse_stops_early_keeps_its_best_and_ends_with_it() {
    let place = Workplace::new();
    // A rate so high that the second step spoils what the first has learnt.
    place.train(&[
        "compute=f32",
        "objective.type=sft",
        "training.learning_rate=0.05",
        "training.lr_scheduler=constant",
        "training.warmup_ratio=0",
        "training.max_steps=30",
        "training.eval_steps=1",
        "training.early_stopping_patience=3",
    ]);
    let metrics = place.metrics("out");
    let losses: Vec<f64> = metrics
        .iter()
        .filter(|line| line["type"] == "validation")
        .map(|line| line["cross_entropy"].as_f64().unwrap())
        .collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = losses.iter().position(|&loss| loss == least).unwrap();
    assert!(best > 0, "something was learnt: {losses:?}");
    assert_eq!(losses.len(), best + 4, "three validations without a new best end the run: {losses:?}");

    let mut kept: Vec<String> = std::fs::read_dir(place.path("out/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort();
    let step = |step: usize| format!("step-{step:06}");
    assert_eq!(kept, [step(best), step(best + 2), step(best + 3)], "the best and the last two are kept");

    let written = tensors(&place.path("out/adapter_model.safetensors"));
    let saved = tensors(&place.path(&format!("out/checkpoints/{}/adapter_model.safetensors", step(best))));
    let last = tensors(&place.path(&format!("out/checkpoints/{}/adapter_model.safetensors", step(best + 3))));
    let numbers = |t: &candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(written.len(), saved.len());
    for (name, tensor) in &written {
        assert_eq!(numbers(tensor), numbers(&saved[name]), "{name} is that of the best step");
    }
    let differs = |name: &String| numbers(&written[name]) != numbers(&last[name]);
    assert!(written.keys().all(differs), "and not that of the last");
}

#[test]
fn each_objective_lowers_its_own_loss() {
    for objective in ["sft", "dft", "bft"] {
        let place = Workplace::new();
        place.train(&[
            &format!("objective.type={objective}"),
            "compute=f32",
            "lora.lora_dropout=0",
            "training.learning_rate=0.003",
            "training.max_steps=16",
            "training.eval_steps=0",
            "training.save_steps=0",
        ]);
        let losses = losses(&place, "out");
        assert_eq!(losses.len(), 16);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[10..]) < 0.95 * mean(&losses[..6]), "{objective}: {losses:?}");
    }
}

/// The losses of a run's steps.
fn losses(place: &Workplace, out: &str) -> Vec<f64> {
    let metrics = place.metrics(out);
    metrics.iter().filter(|line| line["type"] == "step").map(|line| line["objective_loss"].as_f64().unwrap()).collect()
}

#[test]
fn bf16_learns_what_f32_learns() {
    let place = Workplace::new();
    for compute in ["f32", "bf16"] {
        let (compute, out) = (format!("compute={compute}"), format!("output_dir={compute}"));
        place.train(&[
            &compute,
            &out,
            "training.learning_rate=0.003",
            "training.max_steps=12",
            "training.eval_steps=0",
        ]);
    }
    let (exact, rounded) = (losses(&place, "f32"), losses(&place, "bf16"));
    assert_eq!((exact.len(), rounded.len()), (12, 12));
    assert_ne!(exact, rounded, "they are two types");
    for (a, b) in rounded.iter().zip(&exact) {
        assert!((a / b - 1.0).abs() < 2e-2, "{rounded:?} are far from {exact:?}");
    }
}

/// `auto` is one of the two, and a report says which.
#[test]
fn the_type_that_a_run_computes_in_is_said() {
    let place = Workplace::new();
    let said = |compute: &str| {
        let compute = format!("compute={compute}");
        let output = place.command(&["check", "trial.yaml", "--json", "--set", &compute]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        report["device"].as_str().unwrap().to_owned()
    };
    let (exact, rounded) = (said("f32"), said("bf16"));
    assert!(exact.starts_with("cpu, ") && exact.contains(" f32 ("), "{exact}");
    assert!(rounded.starts_with("cpu, ") && rounded.contains(" bf16 ("), "{rounded}");
    assert!([exact, rounded].contains(&said("auto")));
    place.refused(&["compute=fp8"]).says(2, &["compute", "fp8", "bf16"]);
}

/// Memory decides how many layers keep their activations, and what a run may take is believed.
#[test]
fn a_memory_budget_decides_what_is_kept() {
    let place = Workplace::new();
    let plan = |settings: &[&str]| {
        let mut arguments = vec!["check", "trial.yaml", "--json"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        let output = place.command(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap();
        (number(&report["kept_layers"]), number(&report["layers"]), number(&report["memory"]["total"]) >> 20, report)
    };
    let (all, layers, most, _) = plan(&["training.gradient_checkpointing=none"]);
    let (none, _, least, _) = plan(&["training.gradient_checkpointing=layer"]);
    assert_eq!((all, none), (layers, 0));
    assert!(least < most, "recompute saves nothing by the estimate: {least} MiB of {most}");
    assert_eq!(plan(&[]).0, layers, "this machine has room for a toy");
    // What the process itself takes is measured, and not the same to the byte each time.
    assert_eq!(plan(&[&format!("training.max_memory_mb={}", most + 8)]).0, layers);
    let (kept, _, total, report) = plan(&["training.max_memory_mb=1"]);
    assert_eq!(kept, 0);
    assert!(total.abs_diff(least) <= 8, "{total} MiB, and {least} with `layer`");
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("training.max_memory_mb"), "it says that the budget is too small: {warnings}");
    place.refused(&["training.max_memory_mb=0"]).says(2, &["training.max_memory_mb", "at least 1"]);
}
