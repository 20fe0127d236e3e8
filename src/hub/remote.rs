//! Asking the Hub and downloading into its cache, through hf-hub's blocking client. It does not own which files are wanted.

use super::cache::is_commit;
use super::{FetchProgress, Kind, Reference};
use crate::error::{Error, Result};
use hf_hub::progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeAny;
use hf_hub::{HFClientBuilder, HFClientSync, HFError, HFResult};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// How long the Hub may be silent before we give up; hf-hub itself would wait for ever.
const PATIENCE: Duration = Duration::from_mins(2);
/// Tries after the first one.
const RETRIES: usize = 2;

/// One repository on the Hub.
pub(super) struct Remote<'a> {
    reference: &'a Reference,
    endpoint: Option<&'a str>,
    client: HFClientSync,
}

impl<'a> Remote<'a> {
    /// A client that writes to `cache`. Nothing is asked yet.
    pub fn open(reference: &'a Reference, cache: &Path, endpoint: Option<&'a str>) -> Result<Self> {
        let mut builder = HFClientBuilder::new().cache_dir(cache).retry_max_attempts(RETRIES);
        if let Some(endpoint) = endpoint {
            builder = builder.endpoint(endpoint);
        }
        let client = builder.build_sync().map_err(|error| hub_error(reference, endpoint, error))?;
        Ok(Self { reference, endpoint, client })
    }

    /// A revision's commit and its files.
    pub fn describe(&self, revision: &str) -> HFResult<(String, Vec<String>)> {
        let (client, reference, revision) = (self.client.clone(), self.reference.clone(), revision.to_string());
        let ask = move |_| {
            let Reference { kind, owner, name, .. } = reference;
            match kind {
                Kind::Model => {
                    let info = client.model(owner, name).info().revision(revision).send()?;
                    Ok((info.sha, info.siblings))
                }
                Kind::Dataset => {
                    let info = client.dataset(owner, name).info().revision(revision).send()?;
                    Ok((info.sha, info.siblings))
                }
            }
        };
        let (commit, files) = patiently(|_| {}, ask)?;
        let commit = commit.filter(|commit| is_commit(commit));
        let commit = commit.ok_or_else(|| HFError::malformed_response("the answer names no commit"))?;
        Ok((commit, files.unwrap_or_default().into_iter().map(|file| file.rfilename).collect()))
    }

    /// Downloads a file of a commit, unless it is in the cache; returns its place there.
    pub fn download(&self, commit: &str, name: &str, progress: &mut dyn FnMut(FetchProgress)) -> Result<PathBuf> {
        let kind = match self.reference.kind {
            Kind::Model => RepoTypeAny::Model,
            Kind::Dataset => RepoTypeAny::Dataset,
        };
        let repository = self.client.repository(kind, &self.reference.owner, &self.reference.name);
        let (commit, file) = (commit.to_string(), name.to_string());
        let mut total = 0;
        let on_event = |event: DownloadEvent| {
            let mut report = |done, total| progress(FetchProgress { file: name.to_string(), done, total });
            match event {
                DownloadEvent::Start { total_bytes, .. } => {
                    total = total_bytes;
                    report(0, total);
                }
                DownloadEvent::Progress { files } => {
                    for file in files {
                        let done = if file.status == FileStatus::Complete { total } else { file.bytes_completed };
                        report(done, total);
                    }
                }
                DownloadEvent::AggregateProgress { bytes_completed, .. } => report(bytes_completed.min(total), total),
                DownloadEvent::Complete => {}
            }
        };
        let send =
            move |events| repository.download_file().filename(file).revision(commit).progress(Forward(events)).send();
        patiently(on_event, send).map_err(|error| self.explain(error))
    }

    /// The error in our words.
    pub fn explain(&self, error: HFError) -> Error {
        hub_error(self.reference, self.endpoint, error)
    }
}

/// Sends what hf-hub reports on its own thread to ours, where the caller's closure lives.
struct Forward(Sender<DownloadEvent>);

impl ProgressHandler for Forward {
    fn on_progress(&self, event: &ProgressEvent) {
        if let ProgressEvent::Download(event) = event {
            let _ = self.0.send(event.clone());
        }
    }
}

/// Runs a call that blocks on a thread of its own, and gives up when it has been silent for [`PATIENCE`]. The thread is
/// then left to itself: nothing can stop it, and it holds nothing that we need.
fn patiently<T: Send + 'static>(
    mut on_event: impl FnMut(DownloadEvent),
    call: impl FnOnce(Sender<DownloadEvent>) -> HFResult<T> + Send + 'static,
) -> HFResult<T> {
    let (events, received) = channel();
    let (answer, answered) = channel();
    let run = move || {
        let _ = answer.send(call(events));
    };
    std::thread::Builder::new().name("hub".into()).spawn(run)?;
    let mut heard = Instant::now();
    loop {
        match received.recv_timeout(Duration::from_millis(50)) {
            Ok(event) => {
                heard = Instant::now();
                on_event(event);
                continue;
            }
            // No event can come any more: wait for the answer itself.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(1)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        match answered.try_recv() {
            Ok(result) => return result,
            Err(TryRecvError::Disconnected) => {
                return Err(HFError::Other("the request stopped without an answer".into()));
            }
            Err(TryRecvError::Empty) if heard.elapsed() > PATIENCE => {
                return Err(HFError::Other(format!("no answer for {} seconds", PATIENCE.as_secs())));
            }
            Err(TryRecvError::Empty) => {}
        }
    }
}

/// Whether the Hub could not be asked, rather than said no.
pub(super) fn is_transient(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } | HFError::Other(_) | HFError::Xet { .. } | HFError::RateLimited { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

/// The error in our words. Addresses lose what follows `?`: that part can be a signature.
fn hub_error(reference: &Reference, endpoint: Option<&str>, error: HFError) -> Error {
    let hub = endpoint
        .map_or_else(|| std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".into()), String::from);
    let noun = reference.kind.noun();
    let page = format!("{hub}/{}{reference}", reference.kind.prefix());
    let token = "set HF_TOKEN, or log in with `hf auth login`";
    let (message, help) = match error {
        HFError::AuthRequired { context } if is_gated(context.error_code.as_deref()) => (
            format!("{reference} is gated: the Hub gives it only to those who have accepted its terms"),
            format!("accept them at {page}, then {token}"),
        ),
        HFError::AuthRequired { .. } => (
            format!(
                "the Hub refuses {reference} (401): it does not exist, or it is private and the token is missing or wrong"
            ),
            format!("check the name at {page}; for a private {noun} {token}"),
        ),
        HFError::Forbidden { .. } => (
            format!("the Hub refuses {reference} (403): it is gated or private, and this token has no access"),
            format!("ask for access at {page}, and give the token the right to read gated repositories"),
        ),
        HFError::RepoNotFound { .. } => {
            (format!("there is no {noun} {reference} on the Hub (404)"), format!("check the name at {page}"))
        }
        HFError::RevisionNotFound { revision, context, .. } => {
            if context.and_then(|context| context.error_code).is_some_and(|code| code == "RepoNotFound") {
                (format!("there is no {noun} {reference} on the Hub (404)"), format!("check the name at {page}"))
            } else {
                (
                    format!("there is no {noun} {reference} on the Hub, or no revision `{revision}` of it (404)"),
                    format!("check name and revision at {page}"),
                )
            }
        }
        HFError::EntryNotFound { path, .. } => {
            (format!("{reference} has no file `{path}` (404)"), format!("see {page}/tree/{}", reference.revision))
        }
        HFError::RateLimited { .. } => (
            format!("{reference}: the Hub asks us to wait (429, too many requests)"),
            format!("try again later; {token} to get a larger share"),
        ),
        HFError::Io(error) => (
            format!("{reference}: the cache cannot be written: {error}"),
            "free some space, or set HF_HOME to another disk".into(),
        ),
        error @ HFError::Request { .. } => (
            format!("{reference}: the Hub at {hub} cannot be reached ({})", without_queries(&innermost(&error))),
            format!("check the network; with a copy in the cache use --offline, or {}", reference.kind.instead()),
        ),
        error => (
            format!("{reference}: the Hub at {hub} cannot be used: {}", without_queries(&chain(&error))),
            format!("check the network; with a copy in the cache use --offline, or {}", reference.kind.instead()),
        ),
    };
    Error::Hub { message, help: Some(help) }
}

fn is_gated(code: Option<&str>) -> bool {
    code.is_some_and(|code| code.eq_ignore_ascii_case("GatedRepo"))
}

/// The cause of all causes: that a name does not resolve, that nobody listens.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    // What stands before it only says that a request was made.
    text.strip_prefix("failed to lookup address information: ").map_or(text.clone(), String::from)
}

/// The error and its causes: "error sending request" alone does not say that a name did not resolve.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Cuts the query of every address in a text.
fn without_queries(text: &str) -> String {
    let mut words = text.split(' ').map(|word| match word.split_once('?') {
        Some((address, _)) if address.contains("://") => address,
        _ => word,
    });
    let first = words.next().unwrap_or_default().to_string();
    words.fold(first, |text, word| text + " " + word)
}
