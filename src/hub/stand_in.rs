//! A stand-in for the Hub that takes uploads, on this machine, with faults to order. Tests of the library and of the binary
//! share it.

use base64::Engine;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// What goes wrong, once, with the first request whose line holds `on`.
#[derive(Clone)]
pub struct Fault {
    pub on: &'static str,
    pub kind: FaultKind,
}

#[derive(Clone)]
pub enum FaultKind {
    /// This status, with these headers, and this said.
    Status(u16, &'static str, &'static str),
    /// The connection ends after so many bytes of the request's body.
    Cut(usize),
    /// The request is done, and its answer is lost.
    LoseAnswer,
    /// Somebody else commits this file just before.
    Commit(&'static str, &'static str),
}

/// What the Hub has.
#[derive(Default)]
pub struct State {
    /// Repository → what it holds.
    pub repositories: BTreeMap<String, Repository>,
    /// The store of large files.
    pub store: BTreeMap<String, Vec<u8>>,
    /// Parts of large files, by address.
    pub parts: BTreeMap<String, Vec<u8>>,
    pub verified: Vec<String>,
    pub faults: Vec<Fault>,
    /// Method and address of each request, with the bytes of its body.
    pub requests: Vec<(String, usize)>,
    /// Requests that came with a wrong token, or with the right one where it does not belong.
    pub wrong_tokens: Vec<String>,
    pub who: Value,
    pub commits: Vec<Value>,
    pub preuploads: Vec<Value>,
    /// Large files beyond this many bytes are asked for in parts.
    pub part: Option<usize>,
    pub ignored: Vec<&'static str>,
}

#[derive(Default, Clone)]
pub struct Repository {
    pub private: bool,
    /// Branch → path → contents, and whether the file is large.
    pub branches: BTreeMap<String, BTreeMap<String, (Vec<u8>, bool)>>,
    pub commits: usize,
    pub pull_requests: usize,
}

impl Repository {
    fn head(&self) -> String {
        format!("{:040x}", 0xabc0_0000 + self.commits)
    }
}

pub struct StandIn {
    pub endpoint: String,
    pub state: Arc<Mutex<State>>,
    address: String,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// `token` is whom it lets in.
    pub fn start(token: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let endpoint = format!("http://{address}");
        let who = json!({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}});
        let state = Arc::new(Mutex::new(State { who, ..State::default() }));
        let (shared, base, token) = (state.clone(), endpoint.clone(), token.to_owned());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                match Request::read(&stream, &shared) {
                    Read_::Stop => break,
                    Read_::Cut => {}
                    Read_::Request(request) => {
                        if let Some(answer) = answer(&mut shared.lock().unwrap(), &request, &base, &token) {
                            let _ = stream.write_all(&answer);
                        }
                    }
                }
            }
        });
        Self { endpoint, state, address, thread: Some(thread) }
    }

    pub fn fault(&self, on: &'static str, kind: FaultKind) -> &Self {
        self.state.lock().unwrap().faults.push(Fault { on, kind });
        self
    }

    /// How many requests had this in their line.
    pub fn count(&self, text: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|(line, _)| line.contains(text)).count()
    }

    /// The bodies' bytes of requests that had this in their line.
    pub fn bytes(&self, text: &str) -> usize {
        self.state.lock().unwrap().requests.iter().filter(|(line, _)| line.contains(text)).map(|(_, bytes)| bytes).sum()
    }

    /// A file of a branch.
    pub fn file(&self, repo: &str, branch: &str, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        let (bytes, _) = state.repositories.get(repo)?.branches.get(branch)?.get(path)?;
        Some(bytes.clone())
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let _ = stream.write_all(b"STOP\r\n\r\n");
        }
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Request {
    line: String,
    token: Option<String>,
    body: Vec<u8>,
    fault: Option<FaultKind>,
}

enum Read_ {
    Stop,
    Cut,
    Request(Request),
}

impl Request {
    fn read(stream: &TcpStream, state: &Mutex<State>) -> Read_ {
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let Some(first) = head.first() else { return Read_::Cut };
        if first == "STOP" {
            return Read_::Stop;
        }
        let header = |name: &str| {
            let of = |line: &String| {
                line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
            };
            head.iter().find_map(of)
        };
        let line = first.trim_end_matches(" HTTP/1.1").to_owned();
        let length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let fault = {
            let mut state = state.lock().unwrap();
            let at = state.faults.iter().position(|fault| line.contains(fault.on));
            at.map(|at| state.faults.remove(at).kind)
        };
        let most = if let Some(FaultKind::Cut(bytes)) = fault { bytes.min(length) } else { length };
        let mut body = vec![0; most];
        let whole = reader.read_exact(&mut body).is_ok();
        state.lock().unwrap().requests.push((line.clone(), body.len()));
        if !whole || matches!(fault, Some(FaultKind::Cut(_))) {
            return Read_::Cut;
        }
        let token = header("authorization").map(|text| text.trim_start_matches("Bearer ").to_owned());
        Read_::Request(Self { line, token, body, fault })
    }
}

fn respond(status: u16, headers: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
    .into_bytes()
}

fn answer(state: &mut State, request: &Request, base: &str, token: &str) -> Option<Vec<u8>> {
    match &request.fault {
        Some(FaultKind::Status(status, headers, said)) => {
            return Some(respond(*status, headers, &json!({ "error": said })));
        }
        Some(FaultKind::Commit(path, text)) => {
            for repository in state.repositories.values_mut() {
                repository.commits += 1;
                let main = repository.branches.entry("main".into()).or_default();
                main.insert((*path).into(), (text.as_bytes().to_vec(), false));
            }
        }
        _ => {}
    }
    let (method, path) = request.line.split_once(' ').unwrap();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let in_store = path.starts_with("/store/");
    if request.token.as_deref() != (!in_store).then_some(token) {
        state.wrong_tokens.push(request.line.clone());
        if !in_store {
            return Some(respond(401, "", &json!({"error": "Invalid credentials in Authorization header"})));
        }
    }
    let done = if in_store {
        stored(state, path, &request.body)
    } else {
        api(state, method, path, query, &request.body, base)
    };
    (!matches!(request.fault, Some(FaultKind::LoseAnswer))).then_some(done)
}

fn stored(state: &mut State, path: &str, body: &[u8]) -> Vec<u8> {
    let name = path.trim_start_matches("/store/");
    if name.contains('/') {
        state.parts.insert(name.into(), body.to_vec());
    } else if sha256(body) == name {
        state.store.insert(name.into(), body.to_vec());
    } else {
        return respond(400, "", &json!({"error": "another hash"}));
    }
    respond(200, &format!("ETag: \"tag-{name}\"\r\n"), &json!({}))
}

fn api(state: &mut State, method: &str, path: &str, query: &str, body: &[u8], base: &str) -> Vec<u8> {
    let json_body = || serde_json::from_slice::<Value>(body).unwrap();
    if path == "/api/whoami-v2" {
        return respond(200, "", &state.who);
    }
    if path == "/api/repos/create" {
        return create(state, &json_body(), base);
    }
    if let Some(repo) = path.trim_start_matches('/').strip_suffix(".git/info/lfs/objects/batch") {
        assert!(state.repositories.contains_key(repo));
        return batch(state, &json_body(), base);
    }
    if path == "/complete" || path == "/verify" {
        return settle(state, path, &json_body());
    }
    let mut words = path.trim_start_matches("/api/models/").split('/');
    let repo = format!("{}/{}", words.next().unwrap(), words.next().unwrap_or_default());
    let (what, branch) = (words.next().unwrap_or_default(), words.next().unwrap_or("main").replace("%2F", "/"));
    let Some(repository) = state.repositories.get_mut(&repo) else {
        return respond(404, "X-Error-Code: RepoNotFound\r\n", &json!({"error": "Repository not found"}));
    };
    if what == "branch" {
        let files = repository.branches["main"].clone();
        repository.branches.insert(branch, files);
        return respond(200, "", &json!({}));
    }
    let Some(files) = repository.branches.get(&branch) else {
        return respond(404, "X-Error-Code: RevisionNotFound\r\n", &json!({"error": "Invalid rev id"}));
    };
    match (method, what) {
        ("GET", "" | "revision") => respond(
            200,
            "",
            &json!({"id": repo, "_id": "x", "private": repository.private, "sha": repository.head(), "siblings": []}),
        ),
        ("POST", "paths-info") => paths_info(files, &json_body()),
        ("POST", "preupload") => preupload(&mut state.preuploads, &state.ignored, query, &json_body()),
        ("POST", "commit") => commit(state, &repo, &branch, query, body, base),
        _ => respond(405, "", &json!({"error": format!("no {method} {path}")})),
    }
}

fn create(state: &mut State, body: &Value, base: &str) -> Vec<u8> {
    let repo = format!("{}/{}", body["organization"].as_str().unwrap(), body["name"].as_str().unwrap());
    if state.repositories.contains_key(&repo) {
        return respond(409, "", &json!({"error": "You already created this model repo"}));
    }
    let private = body["private"].as_bool().unwrap();
    let attributes = BTreeMap::from([(".gitattributes".to_owned(), (b"*.safetensors filter=lfs".to_vec(), false))]);
    let branches = BTreeMap::from([("main".to_owned(), attributes)]);
    state.repositories.insert(repo.clone(), Repository { private, branches, ..Repository::default() });
    respond(200, "", &json!({"url": format!("{base}/{repo}")}))
}

fn paths_info(files: &BTreeMap<String, (Vec<u8>, bool)>, body: &Value) -> Vec<u8> {
    let entry = |path: &Value| {
        let path = path.as_str()?;
        let (bytes, large) = files.get(path)?;
        let mut entry = json!({"type": "file", "path": path, "oid": git_blob(bytes), "size": bytes.len()});
        if *large {
            entry["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len()});
        }
        Some(entry)
    };
    let entries: Vec<Value> = body["paths"].as_array().unwrap().iter().filter_map(entry).collect();
    respond(200, "", &json!(entries))
}

fn preupload(seen: &mut Vec<Value>, ignored: &[&str], query: &str, body: &Value) -> Vec<u8> {
    let mode = |file: &Value| {
        let path = file["path"].as_str().unwrap();
        let mode = if path.ends_with(".safetensors") { "lfs" } else { "regular" };
        json!({"path": path, "uploadMode": mode, "shouldIgnore": ignored.contains(&path)})
    };
    let list: Vec<Value> = body["files"].as_array().unwrap().iter().map(mode).collect();
    seen.push(json!({"query": query, "files": body["files"]}));
    respond(200, "", &json!({ "files": list }))
}

fn batch(state: &mut State, body: &Value, base: &str) -> Vec<u8> {
    assert_eq!(body["operation"], "upload");
    assert!(body["transfers"].as_array().unwrap().iter().all(|transfer| transfer != "xet"));
    let object = |object: &Value| {
        let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
        if state.store.contains_key(oid) {
            return json!({"oid": oid, "size": size});
        }
        let verify = json!({"href": format!("{base}/verify"), "header": {"X-Verify": "1"}});
        let upload = match state.part.filter(|part| size > *part) {
            None => json!({"href": format!("{base}/store/{oid}?signature=secret")}),
            Some(part) => {
                let mut header = json!({"chunk_size": part.to_string()});
                for number in 1..=size.div_ceil(part) {
                    header[number.to_string()] = format!("{base}/store/{oid}/{number}?signature=secret").into();
                }
                json!({"href": format!("{base}/complete"), "header": header})
            }
        };
        json!({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
    };
    let objects: Vec<Value> = body["objects"].as_array().unwrap().iter().map(object).collect();
    respond(200, "", &json!({"transfer": "basic", "objects": objects}))
}

/// The end of a large file: parts put together, or looked at.
fn settle(state: &mut State, path: &str, body: &Value) -> Vec<u8> {
    let oid = body["oid"].as_str().unwrap().to_owned();
    if path == "/verify" {
        let there = state.store.get(&oid).is_some_and(|bytes| bytes.len() as u64 == body["size"]);
        state.verified.push(oid);
        return respond(if there { 200 } else { 404 }, "", &json!({"error": "not there"}));
    }
    let mut whole = Vec::new();
    for part in body["parts"].as_array().unwrap() {
        let name = format!("{oid}/{}", part["partNumber"]);
        assert_eq!(part["etag"], format!("\"tag-{name}\""));
        whole.extend_from_slice(&state.parts[&name]);
    }
    assert_eq!(sha256(&whole), oid, "the parts are those of the file");
    state.store.insert(oid, whole);
    respond(200, "", &json!({}))
}

fn commit(state: &mut State, repo: &str, branch: &str, query: &str, body: &[u8], base: &str) -> Vec<u8> {
    let lines: Vec<Value> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let repository = state.repositories.get_mut(repo).unwrap();
    if lines[0]["value"]["parentCommit"].as_str().is_some_and(|parent| parent != repository.head()) {
        return respond(412, "", &json!({"error": "A commit has happened since. Please refresh and try again."}));
    }
    let mut files = repository.branches[branch].clone();
    for line in &lines[1..] {
        let value = &line["value"];
        let contents = if line["key"] == "lfsFile" {
            match state.store.get(value["oid"].as_str().unwrap()) {
                Some(bytes) => (bytes.clone(), true),
                None => return respond(400, "", &json!({"error": "LFS pointer to nothing"})),
            }
        } else {
            assert_eq!(line["key"], "file");
            (base64::engine::general_purpose::STANDARD.decode(value["content"].as_str().unwrap()).unwrap(), false)
        };
        files.insert(value["path"].as_str().unwrap().into(), contents);
    }
    state.commits.push(lines[0]["value"].clone());
    if query == "create_pr=1" {
        repository.pull_requests += 1;
        let name = format!("refs/pr/{}", repository.pull_requests);
        repository.branches.insert(name, files);
        let url = format!("{base}/{repo}/discussions/{}", repository.pull_requests);
        return respond(
            200,
            "",
            &json!({"success": true, "commitOid": format!("{:040x}", 0xdef), "pullRequestUrl": url}),
        );
    }
    repository.commits += 1;
    let head = repository.head();
    repository.branches.insert(branch.into(), files);
    respond(200, "", &json!({"success": true, "commitOid": head, "commitUrl": format!("{base}/{repo}/commit/{head}")}))
}

fn git_blob(bytes: &[u8]) -> String {
    let mut sha1 = sha1::Sha1::new();
    sha1.update(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    format!("{:x}", sha1.finalize())
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
