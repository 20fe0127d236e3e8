//! What a run keeps and when it ends.

use crate::support::tensors;
use crate::support::workplace::Workplace;

#[test]
fn a_run_that_gets_worse_stops_early_keeps_its_best_and_ends_with_it() {
    let place = Workplace::new();
    // A rate so high that the second step spoils what the first has learnt.
    place.train(&[
        "objective.type=sft",
        "training.learning_rate=0.05",
        "training.lr_scheduler=constant",
        "training.warmup_ratio=0",
        "training.max_steps=30",
        "training.eval_steps=1",
        "training.early_stopping_patience=3",
    ]);
    let metrics = place.metrics("out");
    let losses: Vec<f64> =
        metrics.iter().filter(|line| line["type"] == "validation").map(|line| line["loss"].as_f64().unwrap()).collect();
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
            "lora.lora_dropout=0",
            "training.learning_rate=0.003",
            "training.max_steps=16",
            "training.eval_steps=0",
            "training.save_steps=0",
        ]);
        let steps = place.metrics("out");
        let losses: Vec<f64> =
            steps.iter().filter(|line| line["type"] == "step").map(|line| line["loss"].as_f64().unwrap()).collect();
        assert_eq!(losses.len(), 16);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[10..]) < 0.95 * mean(&losses[..6]), "{objective}: {losses:?}");
    }
}
