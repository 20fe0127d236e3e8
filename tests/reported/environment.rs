//! What the environment says of the Hub and of paths (case 20), and names as people copy them.

use super::Case;
use crate::support::workplace::refusal;
use serde_json::Value;
use std::net::TcpListener;
use std::process::{Command, Output};

/// `data` on a base that only the case's cache has; the network is not forbidden by `HF_HUB_OFFLINE`.
fn command(case: &Case, more: &[&str]) -> Command {
    let mut all = vec!["data", "recipe.yaml", "--json"];
    all.extend(more);
    let mut command = case.command(&all);
    command.env_remove("HF_HUB_OFFLINE").env_remove("HF_HOME").env("HOME", case.path("home"));
    command
}

#[track_caller]
fn one_row(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["rows"].as_array().unwrap().len(), 1);
}

/// As `huggingface_hub/constants.py` expands them.
#[test]
fn homes_and_variables_in_paths_are_expanded() {
    let case = Case::new("20-hf-home");
    for (name, value) in [
        ("HF_HOME", "~/hf"),
        ("HF_HOME", "$HOME/hf"),
        ("HF_HOME", "${HOME}/hf"),
        ("HF_HUB_CACHE", "~/hf/hub"),
        ("HUGGINGFACE_HUB_CACHE", "$HOME/hf/hub"),
        ("HF_HOME", "$PLACE"),
    ] {
        let mut command = command(&case, &["--offline"]);
        command.env(name, value).env("PLACE", case.path("home/hf"));
        one_row(&command.output().unwrap());
    }
    let cache = case.path("home/.cache");
    std::fs::create_dir(&cache).unwrap();
    std::fs::rename(case.path("home/hf"), cache.join("huggingface")).unwrap();
    for (name, value) in
        [("XDG_CACHE_HOME", "~/.cache"), ("XDG_CACHE_HOME", ""), ("HF_HOME", ""), ("HF_HUB_CACHE", " ")]
    {
        one_row(&command(&case, &["--offline"]).env(name, value).output().unwrap());
    }
    assert!(!case.path("~").exists(), "no folder of that name is made");
}

/// Whoever listens in the Hub's place is not asked.
#[test]
fn no_variable_that_forbids_the_network_is_overlooked() {
    let case = Case::new("20-hf-home");
    for (name, value) in [("TRANSFORMERS_OFFLINE", "1"), ("TRANSFORMERS_OFFLINE", "ON"), ("HF_HUB_OFFLINE", "Yes")] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let hub = format!("http://{}/", listener.local_addr().unwrap());
        let mut command = command(&case, &[]);
        command.env("HF_HOME", "~/hf").env("HF_ENDPOINT", hub).env(name, value);
        one_row(&command.output().unwrap());
        assert!(listener.accept().is_err(), "{name}={value}: somebody was asked");
    }
}

/// An id as a page's address, with a slash, a scheme, a revision.
#[test]
fn an_id_may_be_copied_from_the_browser() {
    let case = Case::new("20-hf-home");
    for name in [
        "https://huggingface.co/org/tiny",
        "https://huggingface.co/org/tiny/tree/main",
        "hf.co/org/tiny",
        "huggingface.co/org/tiny?show=files",
        "hf://org/tiny",
        "org/tiny/",
        "org/tiny@main",
    ] {
        let set = format!("base.model={name}");
        let mut command = command(&case, &["--offline", "--set", &set]);
        one_row(&command.env("HF_HOME", "~/hf").output().unwrap());
    }
    let mut command = command(&case, &["--offline", "--set", "base.model=models/org/tiny"]);
    let error = refusal(&command.env("HF_HOME", "~/hf").output().unwrap());
    assert!(error.text.contains("for the model on the Hub write `org/tiny`"), "{}", error.text);
}

/// Paths of a recipe, as `os.path.expanduser` and `expandvars` would have them.
#[test]
fn paths_of_a_recipe_are_expanded() {
    let case = Case::new("20-hf-home");
    let snapshot = "hf/hub/models--org--tiny/snapshots/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    std::fs::copy(case.path("rows.jsonl"), case.path("home/rows.jsonl")).unwrap();
    let base = format!("base.model=~/{snapshot}");
    for data in
        ["data.train=~/rows.jsonl", "data.train=$HOME/rows.jsonl", "data.train=[{path: \"${HOME}/rows.jsonl\"}]"]
    {
        one_row(&command(&case, &["--set", &base, "--set", data]).output().unwrap());
    }
    let error = refusal(&command(&case, &["--set", "data.train=$NOT_SET/rows.jsonl"]).output().unwrap());
    assert!(error.text.contains("the variable NOT_SET is not set"), "{}", error.text);
}

/// One sentence, not the libraries' chain of causes; and with a slash at the end of `HF_ENDPOINT` the address has one.
#[test]
fn without_a_hub_one_sentence_says_so() {
    let case = Case::new("20-hf-home");
    let mut command = command(&case, &["--set", "base.model=org/other"]);
    let output = command.env("HF_ENDPOINT", "http://127.0.0.1:9/").env("HF_HOME", "~/hf").output().unwrap();
    let error = refusal(&output);
    assert_eq!(error.code, 1);
    let said: Value = serde_json::from_str(&error.text).unwrap();
    let message = said["message"].as_str().unwrap();
    assert!(message.contains("http://127.0.0.1:9 cannot be reached"), "{message}");
    assert!(message.len() < 120 && !message.contains("error sending request"), "{message}");
}
