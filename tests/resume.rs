//! However a run is stopped, it ends in the same bytes; and a run that is no longer the same does not go on.

use crate::support::workplace::{Running, Workplace, refusal, snapshot};
use equipoise::recipe::Recipe;
use equipoise::rng::Rng;
use equipoise::run::{self, RunOptions};
use equipoise::train::{Event, Observer};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const STEPS: &str = "training.max_steps=9";

#[test]
fn two_runs_and_the_ways_to_compute_one_end_in_the_same_bytes() {
    let place = Workplace::new();
    for compute in ["f32", "bf16"] {
        let train = |out: &str, more: &[&str]| {
            let (compute, out) = (format!("compute={compute}"), format!("output_dir={out}-{compute}"));
            place.train(&[&[compute.as_str(), out.as_str()], more].concat());
        };
        train("once", &[]);
        train("again", &[]);
        place.assert_same(&format!("once-{compute}"), &format!("again-{compute}"));
        // Recomputing activations changes memory and time, no bit.
        train("none", &["training.gradient_checkpointing=none"]);
        train("layer", &["training.gradient_checkpointing=layer"]);
        place.assert_same(&format!("none-{compute}"), &format!("layer-{compute}"));
        place.assert_same(&format!("once-{compute}"), &format!("layer-{compute}"));
        train("tight", &["training.max_memory_mb=1"]);
        place.assert_same(&format!("once-{compute}"), &format!("tight-{compute}"));
        // Nor does the number of threads.
        train("alone", &["--threads", "1"]);
        train("crowd", &["--threads", "5"]);
        place.assert_same(&format!("once-{compute}"), &format!("alone-{compute}"));
        place.assert_same(&format!("once-{compute}"), &format!("crowd-{compute}"));
    }
    assert!(place.adapter("once-f32") != place.adapter("once-bf16"), "they are two types");
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() {
    let place = Workplace::new();
    // Only the interrupt writes a checkpoint.
    let settings = [STEPS, "training.save_steps=0", "training.eval_steps=0"];
    place.train(&settings);
    for (signal, out) in [("INT", "output_dir=interrupted"), ("TERM", "output_dir=terminated")] {
        let arguments = [settings.as_slice(), &[out]].concat();
        let mut run = Running::start(place.training(&arguments));
        run.wait_for("step", 3);
        run.signal(signal);
        let (code, stderr) = run.end();
        assert_eq!(code, Some(130), "{stderr}");
        let out = out.strip_prefix("output_dir=").unwrap();
        assert!(place.path(out).join("checkpoints").is_dir() && !place.path(out).join("adapter_config.json").exists());
        place.train(&[arguments.as_slice(), &["--resume"]].concat());
        place.assert_same("out", out);
    }
}

#[test]
fn a_run_killed_at_any_moment_goes_on_to_the_same_bytes() {
    let place = Workplace::new();
    let begin = Instant::now();
    place.train(&[STEPS]);
    let whole = begin.elapsed();
    let mut rng = Rng::new(8);
    for _ in 0..3 {
        let out = format!("output_dir=killed-{}", rng.below(1 << 32));
        // At a random moment of a whole run: a resumed one may be over by then, and is then finished.
        let moments: Vec<Duration> = (0..3).map(|_| whole.mul_f64(rng.uniform())).collect();
        for moment in &moments {
            let run = Running::start(place.training(&[STEPS, &out, "--resume"]));
            std::thread::sleep(*moment);
            run.signal_if_running("KILL");
        }
        place.train(&[STEPS, &out, "--resume"]);
        place.assert_same("out", out.strip_prefix("output_dir=").unwrap());
    }
}

/// Kills a run as soon as a file of a checkpoint that is being written shows itself.
#[test]
fn a_run_killed_within_a_checkpoint_goes_on_to_the_same_bytes() {
    let place = Workplace::new();
    place.train(&[STEPS]);
    let checkpoints = place.path("killed/checkpoints");
    let mut caught = 0;
    for _ in 0..20 {
        let mut run = Running::start(place.training(&[STEPS, "output_dir=killed", "--resume"]));
        let begun = || {
            let entries = std::fs::read_dir(&checkpoints).into_iter().flatten().flatten();
            entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"))
        };
        while !begun() && run.child.try_wait().unwrap().is_none() {
            std::hint::spin_loop();
        }
        run.signal_if_running("KILL");
        drop(run);
        caught += usize::from(begun());
        if caught == 2 {
            break;
        }
        if !std::path::Path::new(&checkpoints).join("step-000001").exists()
            || place.path("killed/adapter_model.safetensors").exists()
        {
            // The run was over before it was caught: once more from the beginning.
            let _ = std::fs::remove_dir_all(place.path("killed"));
        }
    }
    assert!(caught > 0, "no checkpoint was caught half-written");
    place.train(&[STEPS, "output_dir=killed", "--resume"]);
    place.assert_same("out", "killed");
}

#[test]
fn another_recipe_or_other_data_do_not_go_on() {
    let place = Workplace::new();
    place.write("trial.yaml", std::fs::read_to_string(place.path("trial.yaml")).unwrap() + "compute: f32\n");
    place.train(&[]);
    let seed = ["training.seed=7", "training.learning_rate=0.02", "--resume"];
    let differ =
        ["another recipe", "training.seed: 7 (was 42)", "training.learning_rate: 0.02 (was 0.01)", "output_dir"];
    place.refused(&seed).says(2, &differ);
    place.refused(&seed[..2]).says(2, &differ);
    place.refused(&["compute=bf16", "--resume"]).says(2, &["another recipe", r#"compute: \"bf16\" (was \"f32\")"#]);

    let rows = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    let fewer: String = rows.split_inclusive('\n').skip(1).collect();
    place.write("train.jsonl", fewer);
    place.refused(&["--resume"]).says(2, &["tokenized data changed", "step-000004", "put back what changed"]);
    place.write("train.jsonl", rows);

    // Where the adapter goes decides nothing of what it is.
    let (adapter, metrics) = (place.adapter("out"), place.metrics("out"));
    place.train(&["name=renamed", "--resume"]);
    assert!(place.adapter("out") == adapter && place.metrics("out") == metrics);
}

#[test]
fn a_finished_run_stays_as_it_is() {
    let place = Workplace::new();
    place.train(&[]);
    let before = snapshot(&place.path("out"));
    place.train(&["--resume"]);
    assert!(snapshot(&place.path("out")) == before);
    place.refused(&[]).says(2, &["holds a run of this recipe", "--resume", "--overwrite", "output_dir"]);
    place.train(&["--overwrite"]);
    assert!(place.adapter("out") == before[&place.path("out/adapter_model.safetensors")]);
}

#[test]
fn a_folder_takes_one_run_at_a_time() {
    let place = Workplace::new();
    let settings = ["training.max_steps=100000", "training.save_steps=0", "training.eval_steps=0"];
    let mut first = Running::start(place.training(&settings));
    first.wait_for("step", 1);
    for more in [&[][..], &["--resume"], &["--overwrite"]] {
        let refusal = place.failure(&[&settings, more].concat());
        refusal.says(2, &["another process is training into this folder", "output_dir"]);
    }
    first.wait_for("step", 3);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_goes_on() {
    let place = Workplace::new();
    place.train(&[]);
    let adapter = place.adapter("out");
    let metrics = place.metrics("out");
    let last = place.path("out/checkpoints/step-000004");
    for name in ["adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"] {
        let whole = std::fs::read(last.join(name)).unwrap();
        std::fs::write(last.join(name), &whole[..whole.len() / 2]).unwrap();
        place.refused(&["--resume"]).says(2, &[name, "damaged", "remove", "step-000004", "the checkpoint before"]);
        std::fs::remove_file(last.join(name)).unwrap();
        place.refused(&["--resume"]).says(2, &[name, "damaged", "remove", "step-000004"]);
        std::fs::write(last.join(name), whole).unwrap();
    }
    std::fs::remove_dir_all(last).unwrap();
    place.train(&["--resume"]);
    assert!(place.adapter("out") == adapter);
    assert_eq!(place.metrics("out"), metrics);
}

/// A small disk, mounted for a test.
struct Disk(PathBuf);

impl Disk {
    fn set(&self, options: &str) -> bool {
        let arguments = ["-t", "tmpfs", "-o", options, "tmpfs", self.0.to_str().unwrap()];
        Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_freed_space_goes_on() {
    let place = Workplace::new();
    place.train(&[STEPS]);
    std::fs::create_dir(place.path("disk")).unwrap();
    let disk = Disk(place.path("disk"));
    // A checkpoint takes some 820 KB: the first fits, and the second no more.
    if !disk.set("size=1500k") {
        println!("skipped: a small disk cannot be mounted here");
        return;
    }
    let refusal = place.failure(&[STEPS, "output_dir=disk/out"]);
    refusal.says(2, &["the disk is full", "step-000002", "the checkpoint of step 1 stands", "--resume"]);
    let kept = std::fs::read_dir(place.path("disk/out/checkpoints")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(kept, ["step-000001"], "nothing half-written");
    assert!(disk.set("remount,size=16m"));
    place.train(&[STEPS, "output_dir=disk/out", "--resume"]);
    place.assert_same("out", "disk/out");
}

/// A finished run has nothing to write, and what `--overwrite` removes makes room.
#[test]
fn a_full_disk_is_no_end_of_a_finished_run_and_overwriting_makes_its_room() {
    let place = Workplace::new();
    std::fs::create_dir(place.path("disk")).unwrap();
    let disk = Disk(place.path("disk"));
    if !disk.set("size=4m") {
        println!("skipped: a small disk cannot be mounted here");
        return;
    }
    let settings = ["output_dir=disk/out", "training.save_steps=0", "training.eval_steps=0", "data.validation=null"];
    place.train(&settings);
    let before = snapshot(&place.path("disk/out"));
    // Less is left than a run takes: the disk takes what fits, and then no more.
    std::fs::write(place.path("disk/rest"), vec![0_u8; 300 << 10]).unwrap();
    let _ = std::fs::write(place.path("disk/filler"), vec![0_u8; 8 << 20]);
    std::fs::remove_file(place.path("disk/rest")).unwrap();
    place.train(&[&settings[..], &["--resume"]].concat());
    assert!(snapshot(&place.path("disk/out")) == before);
    place.failure(&[&settings[..2], &["output_dir=disk/other"]].concat()).says(2, &["are free on its disk"]);
    let many =
        ["objectives", "trial.yaml", "--objectives", "sft", "--seeds", "90", "--json", "--output-path", "disk/many"];
    refusal(&place.command(&many).output().unwrap()).says(2, &["are free on its disk; 90 adapters", "--output-path"]);
    assert!(!place.path("disk/many").exists());
    place.train(&[&settings[..], &["--overwrite"]].concat());
    assert!(place.adapter("disk/out") == before[&place.path("disk/out/adapter_model.safetensors")]);
}

/// As a full disk, for those who may not mount one: files may not grow beyond what the optimizer's state needs.
#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_one_before() {
    let place = Workplace::new();
    let arguments = [STEPS, "output_dir=limited", "training.save_steps=4"];
    place.train(&[STEPS, "output_dir=free", "training.save_steps=4"]);
    let mut run = Running::start(place.training(&arguments));
    run.wait_for("saved", 2);
    run.signal("KILL");
    run.end();
    let before = snapshot(&place.path("limited/checkpoints"));
    let whole = place.training(&[arguments.as_slice(), &["--resume"]].concat());
    // In units of 512 bytes: the adapter's 274 KB pass, the optimizer's 550 KB do not. Twice that where sh counts in KiB.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 540; trap '' XFSZ; exec \"$@\"", "sh"]).arg(whole.get_program());
    limited.args(whole.get_args()).current_dir(whole.get_current_dir().unwrap());
    let output = limited.output().unwrap();
    if output.status.success() {
        println!("skipped: this shell counts the limit otherwise");
        return;
    }
    crate::support::workplace::refusal(&output).says(2, &["cannot write", "safetensors", "File too large"]);
    assert!(snapshot(&place.path("limited/checkpoints")) == before, "the old checkpoint stays, and no litter");
    place.train(&[arguments.as_slice(), &["--resume"]].concat());
    place.assert_same("free", "limited");
}

/// Asks to stop within the validation after a step.
struct StopsWithin {
    validation: usize,
    step: usize,
    stops: bool,
}

impl Observer for StopsWithin {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Step { metrics, .. } => self.step = metrics.step,
            Event::Validating { done, .. } => self.stops |= *done > 0 && self.step == self.validation,
            Event::Validation(validation) => assert_ne!(validation.step, self.validation, "it was broken off"),
            _ => {}
        }
    }

    fn stop_requested(&self) -> bool {
        self.stops
    }
}

/// A validation may take as long as many steps: a stop does not wait for it, and it is done when the run goes on.
#[test]
fn a_stop_within_a_validation_goes_on_to_the_same_bytes() {
    let place = Workplace::new();
    let path = |name: &str| place.path(name).display().to_string();
    let load = |out: &str| {
        let settings = [
            format!("data.train={}", path("train.jsonl")),
            format!("data.validation={}", path("validation.jsonl")),
            format!("output_dir={}", path(out)),
            "training.save_steps=0".to_owned(),
        ];
        Recipe::load(&place.path("trial.yaml"), &settings).unwrap()
    };
    run::train(&load("out"), &RunOptions::default(), &mut ()).unwrap();
    for (validation, out) in [(0, "before"), (2, "between"), (4, "behind")] {
        let recipe = load(out);
        let again = RunOptions { resume: true, ..RunOptions::default() };
        // Twice: what goes on may be stopped there as well.
        for options in [&RunOptions::default(), &again] {
            let step = if options.resume { validation } else { 0 };
            let summary = run::train(&recipe, options, &mut StopsWithin { validation, step, stops: false }).unwrap();
            assert!(summary.interrupted && !summary.was_finished, "{validation}");
            assert_eq!(summary.steps, validation);
            let saved = place.path(&format!("{out}/checkpoints/step-{validation:06}/trainer_state.json"));
            assert_eq!(saved.is_file(), validation > 0);
            assert!(place.metrics(out).iter().all(|line| line["type"] != "validation" || line["step"] != validation));
        }
        let summary = run::train(&recipe, &again, &mut ()).unwrap();
        assert!(!summary.interrupted && !summary.was_finished, "{validation}");
        place.assert_same("out", out);
        assert!(run::train(&recipe, &again, &mut ()).unwrap().was_finished);
        place.assert_same("out", out);
    }
}

/// Stops after a step.
struct StopsAfter(usize, bool);

impl Observer for StopsAfter {
    fn event(&mut self, event: &Event) {
        self.1 |= matches!(event, Event::Step { metrics, .. } if metrics.step == self.0);
    }

    fn stop_requested(&self) -> bool {
        self.1
    }
}

/// Checkpoints of a multimodal base have the multimodal model's names. A rate that ruins the adapter makes the best checkpoint an
/// early one, which is loaded at the end.
#[test]
fn a_run_on_a_multimodal_base_goes_on_and_ends_with_its_best_checkpoint() {
    for family in ["gemma3", "ministral3", "qwen3_vl"] {
        let place = Workplace::new();
        place.copy_family(family);
        let path = |name: &str| place.path(name).display().to_string();
        let load = |out: &str| {
            let settings = [
                format!("base.model={}", path("base")),
                format!("data.train={}", path("train.jsonl")),
                format!("data.validation={}", path("validation.jsonl")),
                format!("output_dir={}", path(out)),
                "quantization.type=none".to_owned(),
                "data.chat_template=chatml".to_owned(),
                "data.max_seq_len=256".to_owned(),
                "training.learning_rate=0.5".to_owned(),
                "training.metric_for_best_model=cross_entropy".to_owned(),
                "compute=f32".to_owned(),
                "training.eval_steps=1".to_owned(),
            ];
            Recipe::load(&place.path("trial.yaml"), &settings).unwrap()
        };
        let summary = run::train(&load("out"), &RunOptions::default(), &mut ()).unwrap();
        let best = summary.best_step;
        assert!(best.is_some_and(|best| best < 4), "{family}: {best:?}");
        let recipe = load("stopped");
        assert!(run::train(&recipe, &RunOptions::default(), &mut StopsAfter(3, false)).unwrap().interrupted);
        run::train(&recipe, &RunOptions { resume: true, ..RunOptions::default() }, &mut ()).unwrap();
        place.assert_same("out", "stopped");
    }
}
