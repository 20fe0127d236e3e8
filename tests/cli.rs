//! The binary as people meet it: what it prints where, and its exit codes.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn equipoise(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
    command.current_dir(folder).args(arguments).env_remove("EQUIPOISE_LOG").stdin(Stdio::null());
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    equipoise(folder, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What stderr says to `check` of this recipe; nothing may be on stdout, and the exit code is 2.
fn report(recipe: &str, overrides: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.yaml"), recipe).unwrap();
    let mut arguments = vec!["check", "mine.yaml"];
    for set in overrides {
        arguments.extend(["--set", set]);
    }
    let output = run(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    text(&output.stderr)
}

const GOOD: &str = "base:\n  model: org/name\ndata:\n  train: rows.jsonl\n";

#[test]
fn a_recipe_of_another_trainer_is_translated() {
    insta::assert_snapshot!(report(
        "base_model: HuggingFaceTB/SmolLM2-135M\n\
         load_in_4bit: true\n\
         adapter: qlora\n\
         datasets:\n  - path: rows.jsonl\n    type: alpaca\n\
         val_set_size: 0.05\n\
         sequence_len: 2048\n\
         sample_packing: true\n\
         lora_r: 32\n\
         lora_alpha: 16\n\
         lora_target_modules: [q_proj, v_proj]\n\
         micro_batch_size: 2\n\
         num_epochs: 4\n\
         optimizer: adamw_bnb_8bit\n\
         lr_scheduler: cosine\n\
         learning_rate: 0.0002\n\
         bf16: auto\n\
         wandb_project: mine\n\
         frobnicate: 1\n",
        &[]
    ));
}

#[test]
fn mistakes_are_shown_in_their_line() {
    insta::assert_snapshot!(
        "misspelt_key",
        report(&format!("{GOOD}training:\n  lerning_rate: 1e-4\n  epochs: 2\n"), &[])
    );
    insta::assert_snapshot!("wrong_type", report(&format!("{GOOD}training:\n  learning_rate: fast\n"), &[]));
    insta::assert_snapshot!("wrong_word", report(&format!("{GOOD}quantization: {{type: nf4}}\n"), &[]));
    insta::assert_snapshot!(
        "out_of_range",
        report(&format!("{GOOD}lora:\n  r: 16\n  lora_dropout: 1.5 # much\n"), &[])
    );
    insta::assert_snapshot!("tab", report("base:\n\tmodel: org/name\n", &[]));
    insta::assert_snapshot!("twice", report(&format!("{GOOD}name: a\nname: b\n"), &[]));
    insta::assert_snapshot!("empty", report("", &[]));
    insta::assert_snapshot!("no_data", report("base: {model: org/name}\n", &[]));
    insta::assert_snapshot!("bad_override", report(GOOD, &["lora.r=8", "training.epochs=-1"]));
    insta::assert_snapshot!("foreign_override", report(GOOD, &["lora_target=all"]));
}

#[test]
fn a_missing_recipe_is_answered_with_those_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("other.yaml"), GOOD).unwrap();
    let output = run(folder.path(), &["train", "mine.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(text(&output.stderr));
}

#[test]
fn errors_are_json_on_stdout_if_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.yaml"), "base: {}\n").unwrap();
    for command in ["check", "train"] {
        let output = run(folder.path(), &[command, "mine.yaml", "--json"]);
        assert_eq!(output.status.code(), Some(2));
        let event: serde_json::Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
        assert_eq!((event["event"].as_str(), event["line"].as_u64()), (Some("error"), Some(1)), "{event}");
        assert!(!output.stderr.is_empty(), "people get a message too");
    }
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let cases: &[&[&str]] = &[
        &[],
        &["trian"],
        &["train"],
        &["train", "x.yaml", "--device", "gpu"],
        &["generate"],
        &["generate", "x", "hi", "--top-k", "5"],
        &["generate", "x", "hi", "--max-tokens", "0"],
        &["generate", "x", "hi", "--temperature", "-1"],
        &["generate", "x", "hi", "--temperature", "nan"],
        &["generate", "x", "hi", "--top-p", "1.5"],
    ];
    for arguments in cases {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    let output = run(folder.path(), &["train", "x.yaml", "--json", "--max-steps", "1"]);
    let event: serde_json::Value = serde_json::from_str(text(&output.stdout).trim()).unwrap();
    assert_eq!((output.status.code(), event["event"].as_str()), (Some(2), Some("error")));
    assert!(event["message"].as_str().unwrap().contains("--max-steps"), "{event}");
    for arguments in [["--help"].as_slice(), &["train", "--help"], &["--version"]] {
        assert_eq!(run(folder.path(), arguments).status.code(), Some(0));
    }
    let version = run(folder.path(), &["--version"]);
    assert_eq!(text(&version.stdout), format!("equipoise {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_empty_or_broken_prompt_on_stdin_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (prompt, expected) in [(b"\n".as_slice(), "is empty"), (b"\xff\xfe", "not UTF-8")] {
        let mut child = equipoise(folder.path(), &["generate", "nowhere", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(prompt).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(expected), "{}", text(&output.stderr));
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.yaml"), "base: {}\n").unwrap();
    let mut child = equipoise(folder.path(), &["check", "mine.yaml", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "the recipe's error stands");
    assert!(!text(&output.stderr).contains("stdout"), "{}", text(&output.stderr));
}

#[test]
fn lint_ends_with_1_when_a_server_asked_for_does_not_serve_the_adapter_as_it_should() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lint =
        |arguments: &[&str]| run(home, &[&["lint", "tests/golden/peft_adapter", "--offline"], arguments].concat());
    let good = lint(&["--for", "vllm,peft"]);
    assert_eq!((good.status.code(), text(&good.stderr)), (Some(0), String::new()));
    assert!(text(&good.stdout).starts_with("vllm  ok\npeft  ok"), "{}", text(&good.stdout));
    let wrong = lint(&["--for", "lorax", "--json"]);
    assert_eq!(wrong.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&wrong.stdout).unwrap();
    assert_eq!((&json["event"], &json["findings"][0]["rule"]), (&"lint".into(), &"tgi-rank-padding".into()));
    let unknown = lint(&["--for", "vlm"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("vllm, sglang, tgi, mistralrs, llamacpp, ollama, mlx, peft"));
    let missing = run(home, &["lint", "tests/golden"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("adapter_config.json"));
}
