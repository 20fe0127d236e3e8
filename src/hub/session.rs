//! The Hub's answers, one question after the other, and its refusals in our words. hf-hub asks about repositories and
//! branches; what it cannot do is asked here (CONTRIBUTING.md says what and why).

use super::hash::{Hashed, LARGEST_REGULAR};
use super::lfs;
use super::line::{Line, Refusal};
use super::token;
use super::upload::{UploadOptions, UploadProgress};
use crate::error::{Error, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClientBuilder, HFClientSync, HFError, split_id};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Read;
use std::time::Duration;

/// Files of one question.
const CHUNK: usize = 256;
/// The most bytes that are put into the commit itself.
const MOST_REGULAR: u64 = 64 << 20;

type Progress<'p> = &'p mut dyn FnMut(UploadProgress);

/// One upload's talk with the Hub.
pub(super) struct Session<'a> {
    pub line: Line,
    hub: HFClientSync,
    pub options: &'a UploadOptions,
}

/// The repository.
pub(super) struct Repository {
    pub created: bool,
    pub private: Option<bool>,
}

/// Where the branch stands.
pub(super) struct Head {
    pub commit: Option<String>,
}

/// How a file goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub large: bool,
    pub ignored: bool,
}

/// A commit that was made.
pub(super) struct Made {
    pub commit: Option<String>,
    pub pull_request: Option<String>,
}

impl<'a> Session<'a> {
    pub fn open(line: Line, options: &'a UploadOptions) -> Result<Self> {
        // hf-hub's own tries do not wait as the Hub asks; ours do.
        let builder = HFClientBuilder::new().endpoint(&line.endpoint).token(line.token.secret()).retry_max_attempts(0);
        let client = reqwest::Client::builder()
            .user_agent(concat!("equipoise/", env!("CARGO_PKG_VERSION")))
            .timeout(Duration::from_mins(2))
            .build()
            .map_err(HFError::from);
        let hub = client.and_then(|client| builder.client(client).build_sync());
        let hub = hub.map_err(|error| {
            let message = format!("no connection can be made: {}", line.refusal(error).message);
            Error::Hub { message, help: Some("check HF_ENDPOINT".into()) }
        })?;
        Ok(Self { line, hub, options })
    }

    fn api(&self, what: &str) -> String {
        format!("/api/models/{}/{what}/{}", self.options.repo, self.options.branch().replace('/', "%2F"))
    }

    /// The repository's page.
    pub fn page(&self) -> String {
        let page = format!("{}/{}", self.line.endpoint, self.options.repo);
        match self.options.branch() {
            "main" => page,
            branch => format!("{page}/tree/{}", branch.replace('/', "%2F")),
        }
    }

    fn ask<T>(&self, progress: Progress<'_>, ask: impl FnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
        self.line.patiently(&mut |refusal, pause| progress(waiting(refusal, pause)), ask)
    }

    /// Whom the token belongs to, and what it may do.
    pub fn check_token(&self, progress: Progress<'_>) -> Result<()> {
        let who = self.ask(progress, || self.line.json(self.line.get("/api/whoami-v2")));
        let who = who.map_err(|refusal| self.explain(&refusal, "the question about the token"))?;
        token::check(&who, &self.options.repo, self.options.create_pr, &self.line.endpoint)
    }

    /// The repository, created where there is none, and its branch likewise.
    pub fn find_or_create(&self, progress: Progress<'_>) -> Result<Repository> {
        let (owner, name) = split_id(&self.options.repo);
        let look = || self.hub.model(owner, name).info().send().map_err(|error| self.line.refusal(error));
        let repository = match self.ask(progress, look) {
            Ok(info) => {
                if let Some(private) = info.private.filter(|private| *private != self.options.private) {
                    let (is, wanted) = if private { ("private", "public") } else { ("public", "private") };
                    progress(UploadProgress::Note(format!(
                        "{} exists and is {is}; it stays so. To make it {wanted}: {}/settings",
                        self.options.repo,
                        self.page()
                    )));
                }
                Repository { created: false, private: info.private }
            }
            Err(refusal) if refusal.status == Some(404) && !self.options.create_pr => {
                self.create(progress)?;
                Repository { created: true, private: Some(self.options.private) }
            }
            Err(refusal) => return Err(self.explain(&refusal, "the repository")),
        };
        let branch = self.options.branch();
        if branch != "main" && self.branch_is_missing(progress)? {
            progress(UploadProgress::Note(format!("the branch {branch} is created")));
            let create =
                || self.hub.model(owner, name).create_branch().branch(branch).send().map_err(|e| self.line.refusal(e));
            match self.ask(progress, create) {
                Err(refusal) if refusal.status != Some(409) => return Err(self.explain(&refusal, "the branch")),
                _ => {}
            }
        }
        Ok(repository)
    }

    fn create(&self, progress: Progress<'_>) -> Result<()> {
        progress(UploadProgress::Phase(format!("creating {}", self.options.repo)));
        let create = || {
            let create = self.hub.create_repository().repo_id(&self.options.repo).repo_type(RepoTypeModel);
            // That it exists is fine: a try before may have made it.
            create.private(self.options.private).exist_ok(true).send().map_err(|error| self.line.refusal(error))
        };
        self.ask(progress, create).map(|_| ()).map_err(|refusal| self.explain(&refusal, "creating the repository"))
    }

    fn branch_is_missing(&self, progress: Progress<'_>) -> Result<bool> {
        match self.look_at_branch(progress) {
            Ok(_) => Ok(false),
            Err(refusal) if refusal.status == Some(404) && !self.options.branch().starts_with("refs/") => Ok(true),
            Err(refusal) => Err(self.explain(&refusal, "the branch")),
        }
    }

    fn look_at_branch(&self, progress: Progress<'_>) -> Result<Head, Refusal> {
        let (owner, name) = split_id(&self.options.repo);
        let look = || {
            let info = self.hub.model(owner, name).info().revision(self.options.branch()).send();
            info.map_err(|error| self.line.refusal(error))
        };
        self.ask(progress, look).map(|info| Head { commit: info.sha })
    }

    /// The branch's newest commit.
    pub fn head(&self, progress: Progress<'_>) -> Result<Head> {
        match self.look_at_branch(progress) {
            // A repository without any commit has no branch yet.
            Err(refusal) if refusal.status == Some(404) && self.options.branch() == "main" => Ok(Head::EMPTY),
            head => head.map_err(|refusal| self.explain(&refusal, "the branch")),
        }
    }

    /// Parts the files in those that the repository lacks or has otherwise, and those that it has just so.
    pub fn compare<'f>(
        &self,
        files: &'f [Hashed],
        progress: Progress<'_>,
    ) -> Result<(Vec<&'f Hashed>, Vec<&'f Hashed>)> {
        let mut there = HashMap::new();
        for chunk in files.chunks(CHUNK) {
            let paths: Vec<&str> = chunk.iter().map(|file| file.file.path.as_str()).collect();
            let request = || self.line.json(self.line.post(&self.api("paths-info")).json(&json!({"paths": paths})));
            let answer = match self.ask(progress, request) {
                // A repository without any commit.
                Err(refusal) if refusal.status == Some(404) => Value::Array(Vec::new()),
                answer => answer.map_err(|refusal| self.explain(&refusal, "the repository's list of files"))?,
            };
            for entry in answer.as_array().into_iter().flatten() {
                // The pointer of a large file has a name of its own, which says nothing of the contents.
                let oid = if entry["lfs"].is_object() { &entry["lfs"]["oid"] } else { &entry["oid"] };
                if let (Some(path), Some(oid)) = (entry["path"].as_str(), oid.as_str()) {
                    there.insert(path.to_owned(), oid.to_owned());
                }
            }
        }
        let same = |file: &&Hashed| {
            let oid = there.get(&file.file.path);
            oid.is_some_and(|oid| *oid == file.sha256 || file.blob.as_ref() == Some(oid))
        };
        let (same, changed) = files.iter().partition(same);
        Ok((changed, same))
    }

    /// Asks how each file shall go.
    pub fn modes(&self, files: &[&Hashed], progress: Progress<'_>) -> Result<HashMap<String, Mode>> {
        let mut modes = HashMap::new();
        let mut in_commit = 0;
        for chunk in files.chunks(CHUNK) {
            let list: Vec<Value> = chunk
                .iter()
                .map(|file| json!({"path": file.file.path, "size": file.file.size, "sample": STANDARD.encode(&file.sample)}))
                .collect();
            let request = || {
                let request = self.line.post(&self.api("preupload")).query(self.pull_request());
                self.line.json(request.json(&json!({"files": list})))
            };
            let answer = self.ask(progress, request).map_err(|refusal| self.explain(&refusal, "the files"))?;
            let answers: HashMap<&str, &Value> = answer["files"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|entry| Some((entry["path"].as_str()?, entry)))
                .collect();
            for file in chunk {
                let Some(answer) = answers.get(file.file.path.as_str()) else {
                    let refusal = Refusal::malformed("the answer on the files does not list all of them");
                    return Err(self.explain(&refusal, "the files"));
                };
                let size = file.file.size;
                // An empty file cannot go to the store, and a large one not into the commit, whatever the Hub says.
                let too_much = size > LARGEST_REGULAR || in_commit + size > MOST_REGULAR;
                let large = size > 0 && (too_much || answer["uploadMode"] == "lfs");
                in_commit += if large { 0 } else { size };
                modes.insert(file.file.path.clone(), Mode { large, ignored: answer["shouldIgnore"] == true });
            }
        }
        Ok(modes)
    }

    fn pull_request(&self) -> &[(&str, &str)] {
        if self.options.create_pr { &[("create_pr", "1")] } else { &[] }
    }

    /// Sends large files to the store; returns the bytes of those that were not there.
    pub fn send_large(&self, files: &[&Hashed], progress: Progress<'_>) -> Result<u64> {
        let mut objects: Vec<lfs::Object<'_>> = Vec::new();
        for file in files {
            // The same contents under two names are one object.
            if objects.iter().all(|object| object.oid != file.sha256) {
                objects.push(lfs::Object { oid: &file.sha256, size: file.file.size, content: &file.file.content });
            }
        }
        let of = |oid: &str| files.iter().find(|file| file.sha256 == oid);
        let mut watch = Telling { of: &of, progress };
        let sent = lfs::upload(&self.line, &self.options.repo, self.options.branch(), &objects, &mut watch)
            .map_err(|refusal| self.explain(&refusal, "the large files"))?;
        Ok(objects.iter().filter(|object| sent.contains(object.oid)).map(|object| object.size).sum())
    }

    /// One commit of all, on top of `head` and nothing else.
    pub fn commit(
        &self,
        head: &Head,
        large: &[&Hashed],
        regular: &[&Hashed],
        progress: Progress<'_>,
    ) -> Result<Made, Refusal> {
        let message = self.options.message.as_deref().unwrap_or("Upload with Equipoise");
        let (summary, description) = message.split_once('\n').unwrap_or((message, ""));
        let mut header = json!({"summary": summary.trim(), "description": description.trim()});
        if let Some(parent) = &head.commit {
            header["parentCommit"] = parent.as_str().into();
        }
        let mut body = format!("{}\n", json!({"key": "header", "value": header}));
        for file in regular {
            let content = STANDARD.encode(contents(file)?);
            let value = json!({"content": content, "path": file.file.path, "encoding": "base64"});
            let _ = writeln!(body, "{}", json!({"key": "file", "value": value}));
        }
        for file in large {
            let value = json!({"path": file.file.path, "algo": "sha256", "oid": file.sha256, "size": file.file.size});
            let _ = writeln!(body, "{}", json!({"key": "lfsFile", "value": value}));
        }
        let request = || {
            let request = self.line.post(&self.api("commit")).query(self.pull_request());
            self.line.json(request.header("Content-Type", "application/x-ndjson").body(body.clone()))
        };
        let answer = self.ask(progress, || match request() {
            // Whether it was made is not known, and a second one would be a second pull request.
            Err(lost) if self.options.create_pr && lost.status != Some(429) => Ok(Err(lost)),
            answer => answer.map(Ok),
        })??;
        let text = |key: &str| answer[key].as_str().map(|text| self.line.clean(text));
        Ok(Made { commit: text("commitOid"), pull_request: text("pullRequestUrl").filter(|_| self.options.create_pr) })
    }
}

/// A file's bytes for the commit. It was hashed before: another length means other contents.
fn contents(file: &Hashed) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    let read = file.file.content.open(0).and_then(|reader| reader.take(LARGEST_REGULAR + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 == file.file.size => Ok(bytes),
        _ => Err(Refusal { status: Some(400), ..Refusal::malformed(&format!("{} changed meanwhile", file.file.path)) }),
    }
}

fn waiting(refusal: &Refusal, pause: Duration) -> UploadProgress {
    let why = match refusal.status {
        Some(429) => "the Hub asks us to wait".into(),
        Some(status) => format!("the Hub answered {status}"),
        None => "the line broke".into(),
    };
    UploadProgress::Note(match pause.as_secs() {
        0 => format!("{why}; trying again"),
        seconds => format!("{why}; trying again in {seconds} s"),
    })
}

/// Tells the progress of a large file by its name.
struct Telling<'t, 'f> {
    of: &'t dyn Fn(&str) -> Option<&'t &'f Hashed>,
    progress: Progress<'t>,
}

impl lfs::Watch for Telling<'_, '_> {
    fn bytes(&mut self, oid: &str, done: u64) {
        if let Some(file) = (self.of)(oid) {
            let what = format!("uploading {}", file.file.path);
            (self.progress)(UploadProgress::Bytes { what, done, total: file.file.size });
        }
    }

    fn wait(&mut self, refusal: &Refusal, pause: Duration) {
        (self.progress)(waiting(refusal, pause));
    }
}
