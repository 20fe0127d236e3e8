//! Downloading from the Hub into its cache, through hf-hub's blocking client.

use super::cache::{Cache, INDEX, is_commit, shards};
use super::{FetchProgress, Reference};
use crate::error::{Error, Result};
use hf_hub::progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClientBuilder, HFError, HFRepositorySync, HFResult};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

/// What is fetched besides weights, where the repository has it.
const SIDE_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// How long the Hub may be silent before we give up; hf-hub itself would wait for ever.
const PATIENCE: Duration = Duration::from_mins(2);
/// Tries after the first one.
const RETRIES: usize = 2;

type Repository = HFRepositorySync<RepoTypeModel>;

/// Fetches a model's files, or one GGUF file, and returns the snapshot's folder, or that file.
pub(super) fn fetch(
    reference: &Reference,
    file: Option<&str>,
    cache: &Cache,
    endpoint: Option<&str>,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<PathBuf> {
    let explain = |error: HFError| hub_error(reference, endpoint, error);
    let mut builder = HFClientBuilder::new().cache_dir(&cache.root).retry_max_attempts(RETRIES);
    if let Some(endpoint) = endpoint {
        builder = builder.endpoint(endpoint);
    }
    let client = builder.build_sync().map_err(explain)?;
    let repository = client.model(&reference.owner, &reference.name);
    let (commit, files) = match describe(&repository, &reference.revision) {
        Ok(described) => described,
        Err(error) if is_transient(&error) => {
            // The Hub is down, but the model may be here.
            return cache
                .find(file)
                .inspect(|_| tracing::warn!("{reference}: {error}; the cached copy is used"))
                .map_err(|_| explain(error));
        }
        Err(error) => return Err(explain(error)),
    };
    let wanted = choose(reference, file, &files)?;
    let mut path = PathBuf::new();
    let mut download = |name: &str| -> Result<PathBuf> {
        download(&repository, &commit, name, progress).map_err(|error| hub_error(reference, endpoint, error))
    };
    for name in &wanted {
        path = download(name)?;
        if name == INDEX {
            for shard in shards(&path)? {
                // Only what the repository lists: an index must not send us anywhere else.
                if !files.contains(&shard) {
                    return Err(Error::Hub {
                        message: format!("{reference}: {INDEX} names `{shard}`, which the repository does not have"),
                        help: Some("the repository is incomplete; tell its owner, or take another one".into()),
                    });
                }
                download(&shard)?;
            }
        }
    }
    cache.note_revision(&commit)?;
    Ok(if file.is_some() { path } else { cache.snapshot(&commit) })
}

/// The revision's commit and its files.
fn describe(repository: &Repository, revision: &str) -> HFResult<(String, Vec<String>)> {
    let (repository, revision) = (repository.clone(), revision.to_string());
    let info = patiently(|_| {}, move |_| repository.info().revision(revision).send())?;
    let commit = info.sha.filter(|sha| is_commit(sha));
    let commit = commit.ok_or_else(|| HFError::malformed_response("the answer names no commit"))?;
    Ok((commit, info.siblings.unwrap_or_default().into_iter().map(|file| file.rfilename).collect()))
}

/// The files to fetch; shards come with their index.
fn choose(reference: &Reference, file: Option<&str>, files: &[String]) -> Result<Vec<String>> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let is_gguf = |name: &&String| name.to_ascii_lowercase().ends_with(".gguf");
    let ggufs: Vec<&str> = files.iter().filter(is_gguf).map(String::as_str).collect();
    let listed = if ggufs.is_empty() { "none".to_string() } else { ggufs.join(", ") };
    let error = |message: String, help: String| Error::Hub { message, help: Some(help) };
    if let Some(file) = file {
        return if has(file) {
            Ok(vec![file.to_string()])
        } else {
            let message = format!("base.file: {reference} has no `{file}`");
            Err(error(message, format!("its GGUF files are: {listed}")))
        };
    }
    let weights = ["model.safetensors", INDEX].into_iter().find(|name| has(name));
    let (Some(weights), true) = (weights, has("config.json")) else {
        if !ggufs.is_empty() {
            let message = format!("{reference} holds GGUF files; `base.file` must say which one to take");
            return Err(error(message, format!("its GGUF files are: {listed}")));
        }
        let message = format!("{reference} holds no model in safetensors (config.json and model.safetensors)");
        return Err(error(message, "take a repository that has them; pickle files (.bin) are not read".into()));
    };
    let side = SIDE_FILES.iter().filter(|name| has(name)).map(|name| (*name).to_string());
    Ok(side.chain([weights.to_string()]).collect())
}

fn download(
    repository: &Repository,
    commit: &str,
    name: &str,
    progress: &mut dyn FnMut(FetchProgress),
) -> HFResult<PathBuf> {
    let (repository, commit, file) = (repository.clone(), commit.to_string(), name.to_string());
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
    patiently(on_event, move |events| {
        repository.download_file().filename(file).revision(commit).progress(Forward(events)).send()
    })
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
fn is_transient(error: &HFError) -> bool {
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
    let page = format!("{hub}/{reference}");
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
            format!("check the name at {page}; for a private model {token}"),
        ),
        HFError::Forbidden { .. } => (
            format!("the Hub refuses {reference} (403): it is gated or private, and this token has no access"),
            format!("ask for access at {page}, and give the token the right to read gated repositories"),
        ),
        HFError::RepoNotFound { .. } => {
            (format!("there is no model {reference} on the Hub (404)"), format!("check the name at {page}"))
        }
        HFError::RevisionNotFound { revision, context, .. } => {
            if context.and_then(|context| context.error_code).is_some_and(|code| code == "RepoNotFound") {
                (format!("there is no model {reference} on the Hub (404)"), format!("check the name at {page}"))
            } else {
                (
                    format!("there is no model {reference} on the Hub, or no revision `{revision}` of it (404)"),
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
        error => (
            format!("{reference}: the Hub at {hub} cannot be used: {}", without_queries(&chain(&error))),
            "check the network; with a copy in the cache use --offline, or name a local folder as base".into(),
        ),
    };
    Error::Hub { message, help: Some(help) }
}

fn is_gated(code: Option<&str>) -> bool {
    code.is_some_and(|code| code.eq_ignore_ascii_case("GatedRepo"))
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
