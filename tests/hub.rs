//! Uploads by the binary, to a stand-in for the Hub: what people see, what arrives, and that the token is nowhere.

use crate::support::stand_in::{FaultKind, StandIn};
use crate::support::workplace::{Workplace, snapshot};
use serde_json::{Value, json};
use std::process::{Command, Output};

const TOKEN: &str = "hf_never_to_be_seen";

/// The binary with network, but only to the stand-in.
fn online(place: &Workplace, hub: &StandIn, arguments: &[&str]) -> Command {
    let mut command = place.command(arguments);
    command.env_remove("HF_HUB_OFFLINE").env("HF_ENDPOINT", &hub.endpoint).env("HF_TOKEN", TOKEN);
    command.env_remove("HF_TOKEN_PATH").env_remove("HF_HUB_DISABLE_IMPLICIT_TOKEN");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What it said; the token is not in it, and in no file.
#[track_caller]
fn said(place: &Workplace, output: &Output) -> (String, String) {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(!stdout.contains(TOKEN) && !stderr.contains(TOKEN), "{stdout}{stderr}");
    for (path, bytes) in snapshot(&place.path(".")) {
        let holds = bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
        assert!(!holds, "the token is in {}", path.display());
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    (stdout, stderr)
}

const SHORT: [&str; 3] = ["--set", "training.max_steps=1", "--quiet"];

/// A workplace with an adapter in `out`.
fn trained() -> Workplace {
    let place = Workplace::new();
    let output = place.command(&[&["train", "trial.yaml"], &SHORT[..]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    place
}

#[test]
fn an_adapter_is_uploaded_by_hand() {
    let (place, hub) = (trained(), StandIn::start(TOKEN));
    let arguments = ["upload", "out", "--repo", "me/mine", "--base-model", "org/base", "--license", "mit"];
    let output = online(&place, &hub, &arguments).output().unwrap();
    let (stdout, stderr) = said(&place, &output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    for phrase in ["uploaded", "adapter_model.safetensors", "(new, private)", "/me/mine", "commit"] {
        assert!(stdout.contains(phrase), "{phrase}: {stdout}");
    }
    let weights = std::fs::read(place.path("out/adapter_model.safetensors")).unwrap();
    assert_eq!(hub.file("me/mine", "main", "adapter_model.safetensors"), Some(weights));
    let config: Value = serde_json::from_slice(&hub.file("me/mine", "main", "adapter_config.json").unwrap()).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/base");
    let card = text(&hub.file("me/mine", "main", "README.md").unwrap());
    for phrase in [
        "base_model: org/base",
        "license: mit",
        "vllm serve org/base --enable-lora",
        "trial=me/mine",
        "for `org/base`",
        "Results",
    ] {
        assert!(card.contains(phrase), "{phrase}\n{card}");
    }
    for name in ["README.md", "recipe.yaml", "adapter_config.json", "metrics.jsonl"] {
        let sent = text(&hub.file("me/mine", "main", name).unwrap());
        assert!(!sent.contains(env!("CARGO_MANIFEST_DIR")), "{name} tells where things lie here\n{sent}");
    }
    assert!(hub.file("me/mine", "main", "train.jsonl").is_none() && hub.file("me/mine", "main", ".lock").is_none());

    let output = online(&place, &hub, &arguments).output().unwrap();
    assert!(said(&place, &output).0.contains("nothing: the repository has all of it"));
    assert_eq!(hub.state.lock().unwrap().commits.len(), 1);
}

#[test]
fn the_token_is_in_no_log_however_loud() {
    let (place, hub) = (trained(), StandIn::start(TOKEN));
    hub.fault("objects/batch", FaultKind::Status(500, "", "no")).fault("PUT /store", FaultKind::Cut(10));
    hub.fault("verify", FaultKind::LoseAnswer).fault("/commit/", FaultKind::Commit("theirs.md", "theirs"));
    let mut command = online(&place, &hub, &["-vvv", "upload", "out", "--repo", "me/mine", "--json"]);
    let output = command.env("EQUIPOISE_LOG", "trace").output().unwrap();
    let (stdout, _) = said(&place, &output);
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["committed"]), (&json!("summary"), &json!(true)), "{stdout}");
    assert!(hub.file("me/mine", "main", "theirs.md").is_some());
    assert!(hub.bytes("PUT /store") > 10 && hub.count("/commit/") == 2);
    assert!(stdout.lines().any(|line| line.contains("note") && line.contains("base_model_name_or_path")), "{stdout}");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_sent() {
    let (place, hub) = (trained(), StandIn::start(TOKEN));
    let refused = |command: &mut Command, code: i32, phrases: &[&str]| {
        let output = command.output().unwrap();
        let (_, stderr) = said(&place, &output);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let words = stderr.split_whitespace().filter(|word| *word != "|").collect::<Vec<_>>().join(" ");
        assert!(phrases.iter().all(|phrase| words.contains(phrase)), "{phrases:?}: {stderr}");
    };
    let arguments = ["upload", "out", "--repo", "me/mine"];
    refused(
        online(&place, &hub, &arguments).env_remove("HF_TOKEN"),
        1,
        &["there is none", "HF_TOKEN", "hf auth login"],
    );
    refused(online(&place, &hub, &arguments).env("HF_HUB_OFFLINE", "1"), 2, &["needs the network", "HF_HUB_OFFLINE"]);
    refused(&mut online(&place, &hub, &["upload", "nowhere", "--repo", "me/mine"]), 2, &["nowhere"]);
    refused(&mut online(&place, &hub, &["upload", "out", "--repo", "mine"]), 2, &["USER/mine"]);
    assert_eq!(hub.count(""), 0, "nobody was asked");
    hub.state.lock().unwrap().who["auth"]["accessToken"]["role"] = "read".into();
    refused(&mut online(&place, &hub, &arguments), 1, &["can only read", "write"]);
    assert_eq!(hub.count(""), 1);

    // A rehearsal needs neither token nor network.
    let output = place.command(&["upload", "out", "--repo", "me/mine", "--dry-run"]).output().unwrap();
    let (stdout, stderr) = said(&place, &output);
    assert!(output.status.success(), "{stderr}");
    for phrase in ["adapter_model.safetensors", "checkpoints (the run's state)", "nothing was sent"] {
        assert!(stdout.contains(phrase), "{phrase}: {stdout}");
    }
    assert!(stderr.contains("base_model_name_or_path"), "{stderr}");
}

#[test]
fn a_recipe_uploads_what_it_trained() {
    let (place, hub) = (Workplace::new(), StandIn::start(TOKEN));
    let train = |more: &[&str]| {
        let all = [&["train", "trial.yaml", "--set", "hub={repo: me/mine, base: org/base}"], &SHORT[..], more].concat();
        let output = online(&place, &hub, &all).output().unwrap();
        let (stdout, stderr) = said(&place, &output);
        (output.status.code(), stdout, stderr)
    };
    hub.state.lock().unwrap().who["auth"]["accessToken"]["role"] = "read".into();
    let (code, _, stderr) = train(&[]);
    assert!(code == Some(1) && stderr.contains("can only read"), "{stderr}");
    assert!(!place.path("out").exists(), "found out before the first step");
    hub.state.lock().unwrap().who["auth"]["accessToken"]["role"] = "write".into();

    let (code, stdout, stderr) = train(&[]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("trained") && stdout.contains("/me/mine (new, private)"), "{stdout}");
    let card = text(&hub.file("me/mine", "main", "README.md").unwrap());
    assert!(card.contains("base_model: org/base") && card.contains("vllm serve org/base"), "{card}");

    // A refused upload does not lose the run.
    for _ in 0..9 {
        hub.fault("/commit/", FaultKind::Status(403, "", "no more commits today"));
    }
    let (code, stdout, stderr) = train(&["--overwrite", "--set", "training.learning_rate=0.001"]);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("trained") && place.path("out/adapter_model.safetensors").is_file());
    for phrase in
        ["was not uploaded", "no more commits today", "equipoise upload out --repo me/mine --base-model org/base"]
    {
        assert!(stderr.split_whitespace().collect::<Vec<_>>().join(" ").contains(phrase), "{phrase}: {stderr}");
    }

    // Without network the run goes on, and says what is left to do.
    let asked = hub.count("");
    let all = ["train", "trial.yaml", "--set", "hub={repo: me/mine}", "--set", "training.max_steps=1", "--overwrite"];
    let output = place.command(&all).output().unwrap();
    let (_, stderr) = said(&place, &output);
    assert!(
        output.status.success() && stderr.contains("not uploaded; afterwards: equipoise upload out --repo me/mine"),
        "{stderr}"
    );
    assert_eq!(hub.count(""), asked);
}
