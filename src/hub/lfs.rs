//! Large files: git's LFS protocol as the Hub speaks it, in one piece or in parts. It does not own which files are large.

use super::folder::Content;
use super::line::{Line, Refusal};
use reqwest::blocking::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

const TYPE: &str = "application/vnd.git-lfs+json";
/// Files of one question.
const BATCH: usize = 100;
/// Addresses anew for one file.
const ADDRESSES: usize = 3;
/// The most parts of a file.
const MOST_PARTS: usize = 10_000;
/// Bytes that are read, and told, at once.
const PIECE: usize = 1 << 16;

/// A large file.
pub(super) struct Object<'a> {
    /// SHA-256 in hexadecimal.
    pub oid: &'a str,
    pub size: u64,
    pub content: &'a Content,
}

/// What is told while bytes go.
pub(super) trait Watch {
    /// So many bytes of this file are there.
    fn bytes(&mut self, oid: &str, done: u64);
    /// It is tried again after this.
    fn wait(&mut self, refusal: &Refusal, pause: Duration);
}

/// Brings objects to the store, each unless it is there; returns the ids of those that were sent.
pub(super) fn upload(
    line: &Line,
    repo: &str,
    branch: &str,
    objects: &[Object<'_>],
    watch: &mut dyn Watch,
) -> Result<HashSet<String>, Refusal> {
    let mut sent = HashSet::new();
    for objects in objects.chunks(BATCH) {
        let mut actions = batch(line, repo, branch, objects, watch)?;
        for object in objects {
            if send(line, repo, branch, object, actions.remove(object.oid), watch)? {
                sent.insert(object.oid.to_owned());
            }
        }
    }
    Ok(sent)
}

/// Where to send what; no entry for what the store has.
fn batch(
    line: &Line,
    repo: &str,
    branch: &str,
    objects: &[Object<'_>],
    watch: &mut dyn Watch,
) -> Result<BTreeMap<String, Value>, Refusal> {
    let list: Vec<Value> = objects.iter().map(|object| json!({"oid": object.oid, "size": object.size})).collect();
    // Not `xet`: that is another protocol, with a service of its own.
    let question = json!({
        "operation": "upload", "transfers": ["basic", "multipart"], "objects": list, "hash_algo": "sha256",
        "ref": {"name": branch},
    });
    let ask = || {
        let request = line.post(&format!("/{repo}.git/info/lfs/objects/batch")).header("Accept", TYPE);
        line.json(request.header("Content-Type", TYPE).body(question.to_string()))
    };
    let mut answer = line.patiently(&mut |refusal, pause| watch.wait(refusal, pause), ask)?;
    if answer["transfer"].as_str().is_some_and(|transfer| !matches!(transfer, "basic" | "multipart")) {
        return Err(Refusal::malformed("this Hub takes large files through another protocol than LFS"));
    }
    let Some(list) = answer["objects"].as_array_mut() else {
        return Err(Refusal::malformed("the answer on large files lists none"));
    };
    let (mut actions, mut known) = (BTreeMap::new(), HashSet::new());
    for entry in list {
        let oid = entry["oid"].as_str().unwrap_or_default().to_owned();
        if let Some(error) = entry.get("error") {
            let status = error["code"].as_u64().and_then(|code| u16::try_from(code).ok());
            let message = line.clean(error["message"].as_str().unwrap_or_default());
            return Err(Refusal { status: status.or(Some(400)), retry_after: None, message });
        }
        if entry["actions"]["upload"].is_object() {
            actions.insert(oid.clone(), entry["actions"].take());
        }
        known.insert(oid);
    }
    if objects.iter().all(|object| known.contains(object.oid)) {
        Ok(actions)
    } else {
        Err(Refusal::malformed("the answer on large files does not list all of them"))
    }
}

/// Sends one object, unless there is nothing to do for it; asks for other addresses when these do not work, since they expire.
fn send(
    line: &Line,
    repo: &str,
    branch: &str,
    object: &Object<'_>,
    mut actions: Option<Value>,
    watch: &mut dyn Watch,
) -> Result<bool, Refusal> {
    for last in (0..ADDRESSES).rev() {
        let Some(action) = actions else { return Ok(false) };
        match transfer(line, object, &action, watch) {
            Ok(()) => return Ok(true),
            // An address that has expired is refused with 403.
            Err(refusal) if last > 0 && (refusal.is_transient() || matches!(refusal.status, Some(403 | 404 | 410))) => {
                watch.wait(&refusal, Duration::ZERO);
                actions = batch(line, repo, branch, std::slice::from_ref(object), watch)?.remove(object.oid);
            }
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(false)
}

fn transfer(line: &Line, object: &Object<'_>, action: &Value, watch: &mut dyn Watch) -> Result<(), Refusal> {
    let upload = &action["upload"];
    let Some(address) = upload["href"].as_str() else {
        return Err(Refusal::malformed("the answer on large files names no address"));
    };
    let header = &upload["header"];
    match &header["chunk_size"] {
        Value::Null => {
            put(line, object, address, 0, object.size, Some(header), watch)?;
        }
        size => in_parts(line, object, address, header, size, watch)?,
    }
    let Some(address) = action["verify"]["href"].as_str() else { return Ok(()) };
    let ask = || {
        let mut request = line.post_to(address)?.header("Accept", TYPE).header("Content-Type", TYPE);
        for (name, value) in headers(&action["verify"]["header"]) {
            request = request.header(name, value);
        }
        line.send(request.body(json!({"oid": object.oid, "size": object.size}).to_string()))
    };
    line.patiently(&mut |refusal, pause| watch.wait(refusal, pause), ask).map(|_| ())
}

/// Parts that arrived are not sent again, whatever becomes of the others.
fn in_parts(
    line: &Line,
    object: &Object<'_>,
    completion: &str,
    header: &Value,
    size: &Value,
    watch: &mut dyn Watch,
) -> Result<(), Refusal> {
    let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|size| *size > 0);
    let mut addresses: Vec<(usize, &str)> = header
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, address)| Some((name.parse().ok()?, address.as_str()?)))
        .collect();
    addresses.sort_unstable();
    let numbered = addresses.iter().enumerate().all(|(at, (number, _))| *number == at + 1);
    let Some(size) = size.filter(|size| {
        numbered && addresses.len() <= MOST_PARTS && object.size.div_ceil(*size) == addresses.len() as u64
    }) else {
        return Err(Refusal::malformed("the addresses of a file's parts do not fit its size"));
    };
    let mut parts = Vec::new();
    for (number, address) in addresses {
        let begin = (number as u64 - 1) * size;
        let Some(tag) = put(line, object, address, begin, size.min(object.size - begin), None, watch)? else {
            return Err(Refusal::malformed("the store gives a part of a file no name"));
        };
        parts.push(json!({"partNumber": number, "etag": tag}));
    }
    let complete = json!({"oid": object.oid, "parts": parts}).to_string();
    let ask = || {
        let request = line.post_to(completion)?.header("Accept", TYPE).header("Content-Type", TYPE);
        line.send(request.body(complete.clone()))
    };
    line.patiently(&mut |refusal, pause| watch.wait(refusal, pause), ask).map(|_| ())
}

/// Sends a stretch of a file; returns the store's name for it.
fn put(
    line: &Line,
    object: &Object<'_>,
    address: &str,
    begin: u64,
    bytes: u64,
    header: Option<&Value>,
    watch: &mut dyn Watch,
) -> Result<Option<String>, Refusal> {
    let mut tries = 0;
    loop {
        let answer = put_once(line, object, address, begin, bytes, header, watch);
        let refusal = match answer {
            // A failure of the whole is tried again with another address, a few times.
            Err(refusal) if refusal.is_transient() && tries < 2 => refusal,
            answer => return answer,
        };
        let pause = refusal.retry_after.unwrap_or(line.first_wait * 2u32.pow(tries)).min(Duration::from_mins(5));
        watch.wait(&refusal, pause);
        std::thread::sleep(pause);
        tries += 1;
    }
}

fn put_once(
    line: &Line,
    object: &Object<'_>,
    address: &str,
    begin: u64,
    bytes: u64,
    header: Option<&Value>,
    watch: &mut dyn Watch,
) -> Result<Option<String>, Refusal> {
    let unreadable = |error: std::io::Error| Refusal::malformed(&format!("the file cannot be read: {error}"));
    let file = object.content.open(begin).map_err(unreadable)?.take(bytes);
    let (events, received) = channel();
    let mut request = line.put_to(address, bytes)?;
    for (name, value) in header.map(headers).unwrap_or_default() {
        request = request.header(name, value);
    }
    let request = request.body(Body::sized(Counted { file, events, done: 0 }, bytes));
    watch.bytes(object.oid, begin);
    // The body is read on another thread; here is where the watcher lives.
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || line.send(request));
        loop {
            match received.recv_timeout(Duration::from_millis(100)) {
                Ok(done) => watch.bytes(object.oid, begin + done),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if answer.is_finished() {
                break;
            }
        }
        let response = answer.join().map_err(|_| Refusal::malformed("the request stopped without an answer"))??;
        watch.bytes(object.oid, begin + bytes);
        Ok(response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(String::from))
    })
}

/// Text headers that go with an address; those that steer the parts are none.
fn headers(value: &Value) -> Vec<(&str, &str)> {
    let all = value.as_object().into_iter().flatten();
    all.filter(|(name, _)| !name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
        .collect()
}

/// Tells how much of it was read.
struct Counted<R> {
    file: R,
    events: Sender<u64>,
    done: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = into.len().min(PIECE);
        let read = self.file.read(&mut into[..most])?;
        self.done += read as u64;
        // Nobody listens any more once the request has failed.
        let _ = self.events.send(self.done);
        Ok(read)
    }
}
