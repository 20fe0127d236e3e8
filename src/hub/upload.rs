//! Uploading a folder: everything is checked before a byte is sent, what the repository has is not sent again, and the rest
//! arrives in one commit.

use super::hash::{self, Hashed};
use super::line::{Line, Refusal};
use super::plan::{UploadPlan, plan};
use super::session::{Head, Session};
use super::token::{self, Token};
use crate::error::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Where a folder goes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadOptions {
    /// `user/name` or `organisation/name`.
    pub repo: String,
    /// Whether a repository that is created is private. One that exists stays as it is.
    pub private: bool,
    /// The branch; `main` by default. It is created where there is none.
    pub revision: Option<String>,
    /// Open a pull request instead of committing to the branch.
    pub create_pr: bool,
    /// The commit's message.
    pub message: Option<String>,
    /// The base's Hub id, put into what is sent in place of the one that the folder names.
    pub base_model: Option<String>,
    /// The licence, put into the card.
    pub license: Option<String>,
    /// Another Hub than `HF_ENDPOINT` names.
    pub endpoint: Option<String>,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            repo: String::new(),
            private: true,
            revision: None,
            create_pr: false,
            message: None,
            base_model: None,
            license: None,
            endpoint: None,
        }
    }
}

impl UploadOptions {
    pub(super) fn branch(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// What happens on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadProgress {
    /// A phase begins.
    Phase(String),
    /// Something that one should know.
    Note(String),
    /// Bytes are read or sent.
    Bytes {
        /// What is done with them.
        what: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// A file of the repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadedFile {
    /// Its name in the repository.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
}

/// What came of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UploadSummary {
    /// The repository.
    pub repo: String,
    /// Its page, or that of the pull request.
    pub url: String,
    /// The commit that holds everything now.
    pub commit: Option<String>,
    /// Whether a commit was made.
    pub committed: bool,
    /// Whether the repository was created.
    pub created: bool,
    /// Whether the repository is private, where the Hub says so.
    pub private: Option<bool>,
    /// What the commit holds.
    pub uploaded: Vec<UploadedFile>,
    /// Bytes that went over the line; less than `uploaded` has, where the store had some of it from a run before.
    pub bytes_sent: u64,
    /// What the repository had already, or does not want.
    pub skipped: Vec<UploadedFile>,
    /// How many files and folders stayed here.
    pub left_out: usize,
}

/// Uploads a folder to a repository of the Hub, in one commit.
///
/// In this order: options and files are checked; the token is found and asked after; all files are hashed; the repository is
/// created where there is none; files that it has are passed over; large ones go to its store, and the commit names them all.
/// A failure is tried again a few times. A further run sends only what did not arrive.
///
/// # Errors
/// As [`plan()`]; when there is no token, or it may not write there: then nothing was sent; and what the Hub or the
/// network refuse. The token is in no error.
pub fn upload(
    folder: &Path,
    options: &UploadOptions,
    progress: &mut dyn FnMut(UploadProgress),
) -> Result<UploadSummary> {
    upload_as(folder, options, &token::find, Duration::from_secs(1), progress)
}

/// Whether an upload would be let in: there is a token, and it may write to this owner's repositories.
///
/// # Errors
/// When an option is wrong, there is no token, it may not write, or the Hub cannot be asked.
pub fn check_access(options: &UploadOptions) -> Result<()> {
    options.validate("")?;
    let line = Line::open(options.endpoint.as_deref(), token::find()?, Duration::from_secs(1))?;
    Session::open(line, options)?.check_token(&mut |_| {})
}

pub(super) fn upload_as(
    folder: &Path,
    options: &UploadOptions,
    token: &dyn Fn() -> Result<Token>,
    first_wait: Duration,
    progress: &mut dyn FnMut(UploadProgress),
) -> Result<UploadSummary> {
    let plan = plan(folder, options)?;
    let session = Session::open(Line::open(options.endpoint.as_deref(), token()?, first_wait)?, options)?;
    progress(UploadProgress::Phase(format!("asking {} about the token", session.line.endpoint)));
    session.check_token(progress)?;
    // Before anything leaves the machine, not after.
    for note in &plan.notes {
        progress(UploadProgress::Note(note.clone()));
    }
    let files = hash_all(&plan, &session.line.token, progress)?;
    let repository = session.find_or_create(progress)?;
    let mut summary = UploadSummary {
        repo: options.repo.clone(),
        url: session.page(),
        commit: None,
        committed: false,
        created: repository.created,
        private: repository.private,
        uploaded: Vec::new(),
        bytes_sent: 0,
        skipped: Vec::new(),
        left_out: plan.left_out.len(),
    };
    send(&session, &files, &mut summary, progress)?;
    Ok(summary)
}

fn hash_all(plan: &UploadPlan, token: &Token, progress: &mut dyn FnMut(UploadProgress)) -> Result<Vec<Hashed>> {
    let total = plan.contents.iter().map(|file| file.size).sum();
    let mut done = 0;
    let each = plan.contents.iter().map(|file| {
        hash::hash(file.clone(), token, &mut |bytes| {
            done += bytes;
            progress(UploadProgress::Bytes { what: "hashing".into(), done, total });
        })
    });
    each.collect()
}

/// Sends and commits; once more where somebody else has committed meanwhile, since what was passed over may be gone.
fn send(
    session: &Session<'_>,
    files: &[Hashed],
    summary: &mut UploadSummary,
    progress: &mut dyn FnMut(UploadProgress),
) -> Result<()> {
    let mut asked_to_commit = false;
    for last in [false, true] {
        let head = session.head(progress)?;
        progress(UploadProgress::Phase("comparing with the repository".into()));
        let (changed, same): (Vec<&Hashed>, Vec<&Hashed>) = session.compare(files, progress)?;
        let modes = session.modes(&changed, progress)?;
        let ignored = |file: &&Hashed| modes.get(&file.file.path).is_some_and(|mode| mode.ignored);
        let (unwanted, changed): (Vec<&Hashed>, Vec<&Hashed>) = changed.into_iter().partition(ignored);
        if !unwanted.is_empty() {
            let names: Vec<&str> = unwanted.iter().map(|file| file.file.path.as_str()).collect();
            progress(UploadProgress::Note(format!("the repository's .gitignore keeps out: {}", names.join(", "))));
        }
        if changed.is_empty() {
            // After a commit whose answer was lost, everything is there.
            summary.committed = asked_to_commit;
            summary.commit = head.commit;
            if !asked_to_commit {
                summary.skipped = listed(same.into_iter().chain(unwanted));
            }
            return Ok(());
        }
        let large = |file: &&Hashed| modes.get(&file.file.path).is_some_and(|mode| mode.large);
        let (large, regular): (Vec<&Hashed>, Vec<&Hashed>) = changed.iter().copied().partition(large);
        summary.bytes_sent += session.send_large(&large, progress)?;
        summary.uploaded = listed(changed.iter().copied());
        summary.skipped = listed(same.into_iter().chain(unwanted));
        progress(UploadProgress::Phase("committing".into()));
        asked_to_commit = true;
        match session.commit(&head, &large, &regular, progress) {
            Ok(made) => {
                summary.bytes_sent += regular.iter().map(|file| file.file.size).sum::<u64>();
                summary.committed = true;
                summary.commit = made.commit;
                summary.url = made.pull_request.unwrap_or_else(|| session.page());
                return Ok(());
            }
            Err(refusal) if !last && is_conflict(&refusal) => {
                progress(UploadProgress::Note("somebody else committed meanwhile; comparing again".into()));
            }
            Err(refusal) => return Err(session.explain(&refusal, "the commit")),
        }
    }
    Err(Error::Hub { message: "the commit was not taken".into(), help: None })
}

fn is_conflict(refusal: &Refusal) -> bool {
    matches!(refusal.status, Some(409 | 412))
}

fn listed<'a>(files: impl Iterator<Item = &'a Hashed>) -> Vec<UploadedFile> {
    let of = |file: &Hashed| UploadedFile { path: file.file.path.clone(), bytes: file.file.size };
    let by_path: BTreeMap<String, UploadedFile> = files.map(|file| (file.file.path.clone(), of(file))).collect();
    by_path.into_values().collect()
}

/// The head of a repository without commits.
impl Head {
    pub(super) const EMPTY: Self = Self { commit: None };
}
