//! Uploading, against a stand-in for the Hub on this machine. Nothing here reaches the real one.

use super::plan::tests::adapter_folder;
use super::stand_in::{FaultKind, StandIn};
use super::tests::told;
use super::token::Token;
use super::upload::{UploadOptions, UploadProgress, UploadSummary, upload_as};
use crate::error::{Error, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const TOKEN: &str = "hf_a_secret_of_this_test";
/// A megabyte and a bit, so that a cut falls into the middle.
const LARGE: usize = 1_300_000;

struct Place {
    hub: StandIn,
    folder: PathBuf,
    _temporary: TempDir,
}

impl Place {
    fn new() -> Self {
        let (place, folder) = adapter_folder("org/base");
        let bytes: Vec<u8> = (0..LARGE).map(|at| (at * 31 % 251) as u8).collect();
        std::fs::write(folder.join("adapter_model.safetensors"), bytes).unwrap();
        Self { hub: StandIn::start(TOKEN), folder, _temporary: place }
    }

    fn options(&self) -> UploadOptions {
        UploadOptions { repo: "me/mine".into(), endpoint: Some(self.hub.endpoint.clone()), ..UploadOptions::default() }
    }

    fn upload(&self) -> Result<UploadSummary> {
        self.upload_with(&self.options()).0
    }

    fn upload_with(&self, options: &UploadOptions) -> (Result<UploadSummary>, Vec<UploadProgress>) {
        upload(&self.folder, options, TOKEN)
    }

    fn weights(&self) -> Vec<u8> {
        std::fs::read(self.folder.join("adapter_model.safetensors")).unwrap()
    }

    /// All is there, in as many commits.
    #[track_caller]
    fn assert_there(&self, commits: usize) {
        assert_eq!(self.hub.file("me/mine", "main", "adapter_model.safetensors").as_ref(), Some(&self.weights()));
        let config = std::fs::read(self.folder.join("adapter_config.json")).unwrap();
        assert_eq!(self.hub.file("me/mine", "main", "adapter_config.json"), Some(config));
        assert!(self.hub.file("me/mine", "main", "README.md").is_some());
        let state = self.hub.state.lock().unwrap();
        assert_eq!(state.commits.len(), commits);
        assert_eq!(state.wrong_tokens, Vec::<String>::new(), "the token goes to the Hub, and to no store");
    }
}

fn upload(folder: &Path, options: &UploadOptions, token: &str) -> (Result<UploadSummary>, Vec<UploadProgress>) {
    let mut seen = Vec::new();
    let token = || Ok(Token::new(token).unwrap());
    let summary = upload_as(folder, options, &token, Duration::from_millis(1), &mut |progress| seen.push(progress));
    (summary, seen)
}

fn notes(seen: &[UploadProgress]) -> String {
    let note = |progress: &UploadProgress| match progress {
        UploadProgress::Note(text) => Some(text.clone()),
        _ => None,
    };
    seen.iter().filter_map(note).collect::<Vec<_>>().join("\n")
}

fn paths(files: &[super::UploadedFile]) -> Vec<&str> {
    files.iter().map(|file| file.path.as_str()).collect()
}

const ALL: [&str; 4] = ["README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.yaml"];

#[test]
fn a_folder_arrives_in_one_commit_and_is_not_sent_twice() {
    let place = Place::new();
    let (summary, seen) = place.upload_with(&place.options());
    let summary = summary.unwrap();
    assert_eq!(paths(&summary.uploaded), ALL);
    assert!(summary.committed && summary.created && summary.private == Some(true) && summary.skipped.is_empty());
    assert_eq!(summary.url, format!("{}/me/mine", place.hub.endpoint));
    place.assert_there(1);
    {
        let state = place.hub.state.lock().unwrap();
        assert!(state.repositories["me/mine"].private, "private unless said otherwise");
        assert_eq!(state.commits[0]["summary"], "Upload with Equipoise");
        assert_eq!(state.verified.len(), 1);
    }
    let large = |progress: &&UploadProgress| matches!(progress, UploadProgress::Bytes { what, .. } if what == "uploading adapter_model.safetensors");
    assert!(seen.iter().filter(large).count() > 3);
    assert_eq!(
        seen.iter().rfind(large),
        Some(&UploadProgress::Bytes {
            what: "uploading adapter_model.safetensors".into(),
            done: LARGE as u64,
            total: LARGE as u64
        })
    );

    let sent = place.hub.bytes("PUT ");
    let again = place.upload().unwrap();
    assert_eq!((again.committed, again.uploaded.len(), paths(&again.skipped)), (false, 0, ALL.to_vec()));
    assert_eq!(again.commit, summary.commit);
    assert_eq!(
        (place.hub.bytes("PUT "), place.hub.count("/commit/")),
        (sent, 1),
        "nothing is sent, nothing is committed"
    );

    std::fs::write(place.folder.join("NOTES.md"), "More to say.").unwrap();
    let more = place.upload().unwrap();
    assert_eq!((paths(&more.uploaded), more.bytes_sent, more.skipped.len()), (vec!["NOTES.md"], 12, 4));
    place.assert_there(2);
}

#[test]
fn large_files_go_in_parts_where_the_store_wants_them() {
    let place = Place::new();
    place.hub.state.lock().unwrap().part = Some(LARGE / 3);
    // One part breaks: the others are not sent again.
    place.hub.fault("/2?signature", FaultKind::Cut(1000)).fault("/4?signature", FaultKind::Status(500, "", ""));
    place.upload().unwrap();
    place.assert_there(1);
    assert_eq!(
        (place.hub.count("/1?signature"), place.hub.count("/2?signature"), place.hub.count("/4?signature")),
        (1, 2, 2)
    );
    assert_eq!((place.hub.count("/complete"), place.hub.count("objects/batch")), (1, 1));
}

#[test]
fn a_flaky_line_is_no_reason_to_fail() {
    for (on, kind) in [
        ("whoami", FaultKind::Status(503, "", "")),
        ("GET /api/models", FaultKind::Status(500, "", "")),
        ("GET /api/models", FaultKind::Cut(0)),
        ("repos/create", FaultKind::LoseAnswer),
        ("paths-info", FaultKind::Status(504, "", "")),
        ("preupload", FaultKind::Status(429, "Retry-After: 0\r\n", "slow down")),
        ("objects/batch", FaultKind::Status(502, "", "")),
        ("PUT /store", FaultKind::Cut(LARGE / 2)),
        ("PUT /store", FaultKind::Status(503, "", "SlowDown")),
        ("PUT /store", FaultKind::Status(403, "", "expired")),
        ("PUT /store", FaultKind::LoseAnswer),
        ("verify", FaultKind::Cut(3)),
        ("/commit/", FaultKind::Cut(10)),
        ("/commit/", FaultKind::Status(429, "Retry-After: 0\r\n", "")),
        ("/commit/", FaultKind::LoseAnswer),
    ] {
        let place = Place::new();
        place.hub.fault(on, kind);
        let (summary, seen) = place.upload_with(&place.options());
        let summary = summary.unwrap_or_else(|error| panic!("{on}: {}", told(&error)));
        assert!(summary.committed && paths(&summary.uploaded) == ALL, "{on}: {summary:?}");
        place.assert_there(1);
        assert!(!notes(&seen).is_empty(), "{on}: one is told");
    }
}

#[test]
fn retry_after_is_honoured() {
    let place = Place::new();
    place.hub.fault("objects/batch", FaultKind::Status(429, "Retry-After: 1\r\n", ""));
    let begin = std::time::Instant::now();
    let (summary, seen) = place.upload_with(&place.options());
    summary.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert!(notes(&seen).contains("the Hub asks us to wait; trying again in 1 s"), "{}", notes(&seen));

    // A wait that nobody sits through is an error that says how long.
    let place = Place::new();
    place.hub.fault("whoami", FaultKind::Status(429, "Retry-After: 3600\r\n", ""));
    assert!(told(&place.upload().unwrap_err()).contains("wait 3600 seconds"));
}

#[test]
fn a_further_run_sends_only_what_is_missing() {
    let place = Place::new();
    let second: Vec<u8> = (0..LARGE).map(|at| (at * 7 % 253) as u8).collect();
    std::fs::write(place.folder.join("second.safetensors"), second).unwrap();
    let state = place.hub.state.clone();
    // The line is gone in the middle of the first file, for good.
    for _ in 0..9 {
        place.hub.fault("PUT /store", FaultKind::Cut(LARGE / 3));
    }
    let error = place.upload().unwrap_err();
    assert!(told(&error).contains("what has arrived is not sent a second time"), "{}", told(&error));
    assert_eq!(state.lock().unwrap().commits.len(), 0, "no half commit");
    state.lock().unwrap().faults.clear();

    // Now the first one passes, and the second is cut.
    let (before, before_bytes) = (place.hub.count("PUT /store"), place.hub.bytes("PUT /store"));
    let second = std::fs::read(place.folder.join("second.safetensors")).unwrap();
    let oid = format!("{:x}", Sha256::digest(second));
    let of_second: &'static str = Box::leak(format!("PUT /store/{oid}").into_boxed_str());
    for _ in 0..9 {
        place.hub.fault(of_second, FaultKind::Cut(LARGE / 3));
    }
    place.upload().unwrap_err();
    assert_eq!(place.hub.count("PUT /store") - before, 10);
    assert_eq!(place.hub.bytes("PUT /store") - before_bytes, LARGE + 9 * (LARGE / 3));
    state.lock().unwrap().faults.clear();

    let before = place.hub.bytes("PUT /store");
    let summary = place.upload().unwrap();
    assert_eq!(place.hub.bytes("PUT /store") - before, LARGE, "the first file is there");
    assert_eq!(summary.uploaded.len(), 5);
    assert!(summary.bytes_sent < LARGE as u64 + 10_000, "{}", summary.bytes_sent);
    place.assert_there(1);
}

#[test]
fn somebody_elses_commit_is_kept_and_ours_goes_on_top() {
    let place = Place::new();
    place.upload().unwrap();
    std::fs::write(place.folder.join("NOTES.md"), "Ours.").unwrap();
    // The other one changes a file that we were about to pass over.
    place.hub.fault("/commit/", FaultKind::Commit("recipe.yaml", "theirs"));
    place
        .hub
        .state
        .lock()
        .unwrap()
        .repositories
        .get_mut("me/mine")
        .unwrap()
        .branches
        .get_mut("main")
        .unwrap()
        .insert("theirs.md".into(), (b"x".to_vec(), false));
    let (summary, seen) = place.upload_with(&place.options());
    assert_eq!(paths(&summary.unwrap().uploaded), ["NOTES.md", "recipe.yaml"]);
    assert!(notes(&seen).contains("somebody else committed meanwhile"), "{}", notes(&seen));
    assert!(place.hub.file("me/mine", "main", "theirs.md").is_some());
    assert_ne!(place.hub.file("me/mine", "main", "recipe.yaml"), Some(b"theirs".to_vec()));

    std::fs::write(place.folder.join("NOTES.md"), "Ours again.").unwrap();
    place.hub.fault("/commit/", FaultKind::Status(409, "", "")).fault("/commit/", FaultKind::Status(409, "", ""));
    assert!(told(&place.upload().unwrap_err()).contains("somebody else keeps committing"));
}

#[test]
fn branches_and_pull_requests() {
    let place = Place::new();
    let error = place.upload_with(&UploadOptions { create_pr: true, ..place.options() }).0.unwrap_err();
    assert!(told(&error).contains("does not find the repository"), "no pull request on nothing: {}", told(&error));
    place.upload().unwrap();

    std::fs::write(place.folder.join("NOTES.md"), "For v2.").unwrap();
    let (summary, seen) = place.upload_with(&UploadOptions { revision: Some("feature/v2".into()), ..place.options() });
    let summary = summary.unwrap();
    assert!(summary.url.ends_with("/me/mine/tree/feature%2Fv2") && notes(&seen).contains("feature/v2 is created"));
    assert!(place.hub.file("me/mine", "main", "NOTES.md").is_none());
    assert_eq!(place.hub.file("me/mine", "feature/v2", "NOTES.md").unwrap(), b"For v2.");

    let message = Some("A title\n\nAnd more.".into());
    let summary = place.upload_with(&UploadOptions { create_pr: true, message, ..place.options() }).0.unwrap();
    assert!(summary.url.ends_with("/me/mine/discussions/1"), "{}", summary.url);
    assert!(
        place.hub.file("me/mine", "main", "NOTES.md").is_none()
            && place.hub.file("me/mine", "refs/pr/1", "NOTES.md").is_some()
    );
    {
        let state = place.hub.state.lock().unwrap();
        assert_eq!(state.preuploads.last().unwrap()["query"], "create_pr=1");
        let commit = state.commits.last().unwrap();
        assert_eq!((&commit["summary"], &commit["description"]), (&json!("A title"), &json!("And more.")));
    }

    // Where the answer is lost, a second pull request would be worse than an error.
    place.hub.fault("/commit/", FaultKind::LoseAnswer);
    let error = place.upload_with(&UploadOptions { create_pr: true, ..place.options() }).0.unwrap_err();
    assert!(told(&error).contains("/me/mine/discussions"), "{}", told(&error));
    assert_eq!(place.hub.state.lock().unwrap().repositories["me/mine"].pull_requests, 2);
}

#[test]
fn what_a_repository_is_stays_so_and_one_is_told() {
    let place = Place::new();
    let public = UploadOptions { private: false, ..place.options() };
    let summary = place.upload_with(&public).0.unwrap();
    assert!(summary.private == Some(false) && !place.hub.state.lock().unwrap().repositories["me/mine"].private);
    let (summary, seen) = place.upload_with(&place.options());
    assert_eq!(summary.unwrap().private, Some(false));
    assert!(notes(&seen).contains("me/mine exists and is public; it stays so"), "{}", notes(&seen));

    place.hub.state.lock().unwrap().ignored = vec!["NOTES.md"];
    std::fs::write(place.folder.join("NOTES.md"), "x").unwrap();
    let (summary, seen) = place.upload_with(&public);
    assert!(!summary.unwrap().committed && notes(&seen).contains(".gitignore keeps out: NOTES.md"), "{}", notes(&seen));
}

#[test]
fn without_the_right_to_write_no_byte_is_sent() {
    let place = Place::new();
    let refused = |who| {
        place.hub.state.lock().unwrap().who = who;
        let error = place.upload().unwrap_err();
        assert!(matches!(error, Error::Hub { .. }));
        told(&error)
    };
    assert!(refused(json!({"name": "me", "auth": {"accessToken": {"role": "read"}}})).contains("can only read"));
    assert!(
        refused(json!({"name": "other", "orgs": [], "auth": {"accessToken": {"role": "write"}}})).contains("not me")
    );
    let scoped = json!({"global": [], "scoped": [{"entity": {"name": "me"}, "permissions": ["repo.content.read"]}]});
    assert!(
        refused(json!({"name": "me", "auth": {"accessToken": {"role": "fineGrained", "fineGrained": scoped}}}))
            .contains("fine-grained")
    );
    let (summary, _) = upload(&place.folder, &place.options(), "hf_wrong_token");
    assert!(told(&summary.unwrap_err()).contains("does not accept the token (401)"));
    let none = || Err(Error::Hub { message: "there is none".into(), help: None });
    assert!(upload_as(&place.folder, &place.options(), &none, Duration::ZERO, &mut |_| {}).is_err());
    let state = place.hub.state.lock().unwrap();
    assert!(
        state.requests.iter().all(|(line, bytes)| line == "GET /api/whoami-v2" && *bytes == 0),
        "{:?}",
        state.requests
    );
}

#[test]
fn what_cannot_be_sent_is_found_before_anybody_is_asked() {
    let place = Place::new();
    std::os::unix::fs::symlink("/etc/hosts", place.folder.join("hosts.json")).unwrap();
    assert!(place.upload().unwrap_err().to_string().contains("outside of the folder"));
    std::fs::remove_file(place.folder.join("hosts.json")).unwrap();
    std::fs::write(place.folder.join("README.md"), "---\ntags: lora\n---\n").unwrap();
    assert!(place.upload().unwrap_err().to_string().contains("`tags` must be a list"));
    std::fs::remove_file(place.folder.join("README.md")).unwrap();
    for repo in ["mine", "../mine", "me/mine/..", "https://huggingface.co/me/mine"] {
        assert!(place.upload_with(&UploadOptions { repo: repo.into(), ..place.options() }).0.is_err());
    }
    assert!(place.hub.state.lock().unwrap().requests.is_empty());
    std::fs::write(place.folder.join("notes.md"), format!("my token is {TOKEN}")).unwrap();
    assert!(place.upload().unwrap_err().to_string().contains("holds your token"));
    assert_eq!(place.hub.count(""), place.hub.count("whoami"), "only the token was asked about");
}

/// Every refusal there is: each says what happened and what to do, and the token is in none of them, nor in what is told on
/// the way.
#[test]
fn refusals_are_in_our_words_and_never_show_the_token() {
    const ECHO: &str = "Invalid token hf_a_secret_of_this_test";
    for (on, status, phrases) in [
        ("whoami", 401, ["does not accept the token (401)", "settings/tokens"]),
        ("whoami", 500, ["failure of its own (500)", "not sent a second time"]),
        ("GET /api/models", 401, ["does not accept the token (401)", "settings/tokens"]),
        ("GET /api/models", 403, ["refuses the repository (403)", "may not write to me's"]),
        ("repos/create", 403, ["refuses creating the repository (403)", "may not write to me's"]),
        ("repos/create", 402, ["no room left", "billing"]),
        ("paths-info", 418, ["(418)", "fix what it says"]),
        ("preupload", 403, ["refuses the files (403)", "--repo"]),
        ("preupload", 429, ["asks us to wait (429", "then run the same command again"]),
        ("objects/batch", 403, ["refuses the large files (403)", "--repo"]),
        ("objects/batch", 404, ["does not find the large files (404)", "check the name"]),
        ("PUT /store", 413, ["too large (413)", "shards"]),
        ("PUT /store", 503, ["failure of its own (503)", "not sent a second time"]),
        ("verify", 422, ["refuses the large files (422)", "fix what it says"]),
        ("/commit/", 403, ["refuses the commit (403)", "settings/tokens"]),
        ("/commit/", 400, ["refuses the commit (400)", "fix what it says"]),
        ("/commit/", 503, ["failure of its own (503)", "not sent a second time"]),
    ] {
        let place = Place::new();
        for _ in 0..60 {
            place.hub.fault(on, FaultKind::Status(status, "X-Secret: 1\r\n", ECHO));
        }
        let (summary, seen) = place.upload_with(&place.options());
        let error = summary.unwrap_err();
        let text = told(&error);
        assert!(phrases.iter().all(|phrase| text.contains(phrase)), "{on} {status}: {text}");
        let all = format!("{error:?} {text} {seen:?}");
        assert!(!all.contains(TOKEN) && !all.contains("signature="), "{on} {status}: {all}");
        assert!(text.contains("me/mine"), "{text}");
    }
    for (on, bytes) in [("whoami", 0), ("GET /api", 0), ("PUT /store", 1000), ("/commit/", 5)] {
        let place = Place::new();
        for _ in 0..60 {
            place.hub.fault(on, FaultKind::Cut(bytes));
        }
        let (summary, seen) = place.upload_with(&place.options());
        let error = summary.unwrap_err();
        let all = format!("{error:?} {} {seen:?}", told(&error));
        assert!(all.contains("broke") && all.contains("not sent a second time"), "{on}: {all}");
        assert!(!all.contains(TOKEN) && !all.contains("signature="), "{on}: {all}");
    }
}

#[test]
fn a_hub_that_is_none_is_no_riddle() {
    let place = Place::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = UploadOptions { endpoint: Some(format!("http://{closed}")), ..place.options() };
    let text = told(&place.upload_with(&options).0.unwrap_err());
    assert!(text.contains("broke") && text.contains("refused") && text.contains("check the network"), "{text}");
    let options = UploadOptions { endpoint: Some("no address".into()), ..place.options() };
    assert!(told(&place.upload_with(&options).0.unwrap_err()).contains("HF_ENDPOINT"));
}
