//! Whole runs on a GPU, on kernels that are compiled for the CPU: what a user meets beside the steps.

use crate::support::host_gpu::host_gpu;
use crate::support::workplace::Workplace;
use equipoise::device::Device;
use equipoise::recipe::Recipe;
use equipoise::run::{self, RunOptions, Summary};
use equipoise::train::{Event, Observer};
use equipoise::{Error, Result};
use std::sync::atomic::Ordering;

/// What a run said.
#[derive(Default)]
struct Heard {
    notes: Vec<String>,
    losses: Vec<f64>,
    stop_after: Option<usize>,
}

impl Observer for Heard {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Note(note) => self.notes.push(note.clone()),
            Event::Step { metrics, .. } => self.losses.push(metrics.objective_loss),
            _ => {}
        }
    }

    fn stop_requested(&self) -> bool {
        self.stop_after.is_some_and(|steps| self.losses.len() >= steps)
    }
}

/// A recipe of the workplace, with paths that hold from anywhere.
fn recipe(place: &Workplace, settings: &[&str]) -> Recipe {
    let path = |name: &str| place.path(name).display().to_string();
    let mut all = vec![
        format!("data.train={}", path("train.jsonl")),
        format!("data.validation={}", path("validation.jsonl")),
        "data.max_seq_len=48".to_owned(),
        "data.overlong=truncate".to_owned(),
        "training.max_steps=2".to_owned(),
        "training.eval_steps=2".to_owned(),
        "compute=bf16".to_owned(),
    ];
    all.extend(settings.iter().map(|setting| match setting.strip_prefix("output_dir=") {
        Some(name) => format!("output_dir={}", path(name)),
        None => (*setting).to_owned(),
    }));
    Recipe::load(&place.path("trial.yaml"), &all).unwrap()
}

fn train(recipe: &Recipe, device: &Device, resume: bool, heard: &mut Heard) -> Result<Summary> {
    let options = RunOptions { resume, device: Some(device.clone()), ..RunOptions::default() };
    run::train(recipe, &options, heard)
}

#[test]
fn a_run_on_a_gpu_learns_as_on_the_cpu_and_goes_on_to_the_same_bytes() {
    let Some((gpu, _)) = host_gpu() else { return };
    let place = Workplace::new();
    let (mut on_cpu, mut on_gpu) = (Heard::default(), Heard::default());
    train(&recipe(&place, &["output_dir=cpu"]), &Device::Cpu, false, &mut on_cpu).unwrap();
    let summary = train(&recipe(&place, &["output_dir=gpu"]), &gpu, false, &mut on_gpu).unwrap();
    assert_eq!(on_gpu.losses.len(), 2);
    for (got, expected) in on_gpu.losses.iter().zip(&on_cpu.losses) {
        assert!((got / expected - 1.0).abs() < 1e-2, "losses {got} and {expected}");
    }
    assert!(summary.peak_gpu_memory.is_some_and(|peak| peak > 1 << 20));
    assert!(summary.sample.is_some(), "it wrote a text");

    let stopped = recipe(&place, &["output_dir=stopped"]);
    let mut heard = Heard { stop_after: Some(1), ..Heard::default() };
    assert!(train(&stopped, &gpu, false, &mut heard).unwrap().interrupted);
    train(&stopped, &gpu, true, &mut Heard::default()).unwrap();
    place.assert_same("gpu", "stopped");
}

/// What fits is found on the way: the same result to the rounding, and it is said.
#[test]
fn a_full_gpu_takes_smaller_micro_batches() {
    let Some((gpu, _)) = host_gpu() else { return };
    let place = Workplace::new();
    let settings = [
        "training.micro_batch_size=4",
        "training.gradient_accumulation_steps=1",
        "training.gradient_checkpointing=layer",
        "compute=f32",
    ];
    let with = |more: &[&'static str]| recipe(&place, &[&settings[..], more].concat());
    let mut plain = Heard::default();
    let summary = train(&with(&["output_dir=plain"]), &gpu, false, &mut plain).unwrap();
    assert!(plain.notes.iter().all(|note| !note.contains("memory is full")), "{:?}", plain.notes);
    let peak = summary.peak_gpu_memory.unwrap() as usize;
    let fixed = fixed_bytes(&place, &gpu);
    // On a GPU that has no more than this.
    let within = |bytes: usize, recipe: &Recipe| {
        let Some((gpu, limits)) = host_gpu() else { panic!("there was one") };
        limits.memory.store(bytes, Ordering::Relaxed);
        let mut heard = Heard::default();
        train(recipe, &gpu, false, &mut heard).unwrap();
        heard
    };

    let tight = within(fixed + (peak - fixed) * 3 / 4, &with(&["output_dir=tight"]));
    let said = tight.notes.join("\n");
    assert!(said.contains("micro-batches of 2"), "{said}");
    assert_eq!(plain.losses.len(), tight.losses.len());
    for (got, expected) in tight.losses.iter().zip(&plain.losses) {
        assert!((got / expected - 1.0).abs() < 1e-5, "losses {got} and {expected}");
    }

    // What is kept goes first, and then the bytes are the same.
    let all = with(&["output_dir=kept", "training.gradient_checkpointing=none"]);
    let said = within(peak + peak / 4, &all).notes.join("\n");
    assert!(said.contains("computed again") && !said.contains("micro-batches of"), "{said}");
    place.assert_same("plain", "kept");
}

/// What the trial's weights, adapter and optimizer take, whatever its rows are.
fn fixed_bytes(place: &Workplace, gpu: &Device) -> usize {
    // `check` times some rows: short ones, for kernels take long on the CPU.
    let recipe = recipe(place, &["training.micro_batch_size=1", "data.max_seq_len=32"]);
    let options = RunOptions { device: Some(gpu.clone()), ..RunOptions::default() };
    let estimate = run::check(&recipe, &options, &mut Heard::default()).unwrap().memory;
    (estimate.weights + estimate.adapter_and_optimizer) as usize
}

#[test]
fn a_gpu_too_small_for_one_row_or_for_the_weights_is_an_error_that_says_what_would_fit() {
    let Some((gpu, _)) = host_gpu() else { return };
    let place = Workplace::new();
    let wanted = recipe(&place, &["output_dir=none", "training.micro_batch_size=1", "data.max_seq_len=64"]);
    let fixed = fixed_bytes(&place, &gpu);
    drop(gpu);
    let fails = |limit: usize| -> Error {
        let _ = std::fs::remove_dir_all(place.path("none"));
        let Some((gpu, limits)) = host_gpu() else { panic!("there was one") };
        limits.memory.store(limit, Ordering::Relaxed);
        train(&wanted, &gpu, false, &mut Heard::default()).unwrap_err()
    };
    let row = fails(fixed + (fixed >> 3));
    assert!(row.to_string().contains("GPU's memory is full"), "{row}");
    assert!(row.help().unwrap_or_default().contains("gradient_checkpointing: offload"), "{row:?}");
    assert_eq!(row.exit_code(), 2);
    for limit in [fixed / 2, 0] {
        let weights = fails(limit);
        assert!(weights.to_string().contains("the weights take"), "{weights}");
    }
    assert!(!place.path("none").exists(), "nothing was written before it was known");
}

/// What a run says it will take is what it takes: not less, and not far more.
#[test]
fn the_estimate_of_a_gpus_memory_holds() {
    for settings in [
        &["training.gradient_checkpointing=layer"][..],
        &["training.gradient_checkpointing=none"],
        &["training.gradient_checkpointing=offload", "compute=f32"],
        &["training.gradient_checkpointing=layer", "quantization.type=q4_0", "training.micro_batch_size=4"],
    ] {
        let Some((gpu, _)) = host_gpu() else { return };
        let place = Workplace::new();
        let more = [
            "output_dir=out",
            "training.max_steps=1",
            "training.gradient_accumulation_steps=1",
            "training.eval_steps=0",
            "data.max_seq_len=64",
        ];
        let recipe = recipe(&place, &[&more[..], settings].concat());
        let summary = train(&recipe, &gpu, false, &mut Heard::default()).unwrap();
        let (estimate, peak) = (summary.estimated_memory, summary.peak_gpu_memory.unwrap());
        assert!(peak <= estimate, "{settings:?}: {peak} bytes were taken, {estimate} estimated");
        assert!(estimate <= 2 * peak, "{settings:?}: {peak} bytes were taken, {estimate} estimated");
    }
}

/// Also with norms behind the branches, windows, caps and factors.
#[test]
fn the_estimate_of_a_gpus_memory_holds_for_families() {
    for family in ["gemma2", "granite", "olmo3", "phi3"] {
        let Some((gpu, _)) = host_gpu() else { return };
        let place = Workplace::new();
        let base = format!("base.model={}", place.copy_family(family).display());
        let settings = [
            base.as_str(),
            "quantization.type=none",
            "data.chat_template=chatml",
            "output_dir=out",
            "training.max_steps=1",
            "training.gradient_accumulation_steps=1",
            "training.eval_steps=0",
            "data.max_seq_len=256",
        ];
        let summary = train(&recipe(&place, &settings), &gpu, false, &mut Heard::default()).unwrap();
        let (estimate, peak) = (summary.estimated_memory, summary.peak_gpu_memory.unwrap());
        assert!(peak <= estimate, "{family}: {peak} bytes were taken, {estimate} estimated");
        assert!(estimate <= 2 * peak, "{family}: {peak} bytes were taken, {estimate} estimated");
    }
}
