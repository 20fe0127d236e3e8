//! Fetching, against a stand-in for the Hub on this machine. Nothing here reaches the real one.

use super::*;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The newest commit of the Hub's Parquet copies.
pub(super) const CONVERTED: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A Hub of a few repositories, one connection at a time. It stops when it is dropped. A dataset is named
/// `datasets/org/name`, and its Parquet copies `datasets/org/name@converted`.
pub(super) struct Hub {
    pub address: String,
    pub requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

type Files = BTreeMap<String, Vec<u8>>;

impl Hub {
    pub fn start(repositories: &[(&str, &[(&str, &str)])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let files = |list: &[(&str, &str)]| {
            list.iter().map(|(name, text)| ((*name).into(), text.as_bytes().to_vec())).collect()
        };
        let repositories: BTreeMap<String, Files> =
            repositories.iter().map(|(name, list)| ((*name).to_string(), files(list))).collect();
        let seen = requests.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read_request(&stream);
                if request == "STOP" {
                    break;
                }
                let response = answer(&repositories, &request);
                if !request.is_empty() {
                    seen.lock().unwrap().push(request);
                }
                let _ = stream.write_all(&response);
            }
        });
        Self { address, requests, thread: Some(thread) }
    }

    fn fetch(
        &self,
        model: &str,
        file: Option<&str>,
        offline: bool,
        cache: &Path,
    ) -> Result<(PathBuf, Vec<FetchProgress>)> {
        fetch_with(&format!("http://{}", self.address), model, file, offline, cache)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let _ = stream.write_all(b"STOP\r\n\r\n");
        }
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn fetch_with(
    endpoint: &str,
    model: &str,
    file: Option<&str>,
    offline: bool,
    cache: &Path,
) -> Result<(PathBuf, Vec<FetchProgress>)> {
    let config = BaseConfig { model: model.into(), file: file.map(String::from) };
    let place = Place { endpoint: Some(endpoint.into()), cache: Some(cache.into()) };
    let mut seen = Vec::new();
    let path = fetch_from(&config, &FetchOptions { offline }, &mut |progress| seen.push(progress), &place)?;
    Ok((path, seen))
}

/// The first line, without the protocol's version.
fn read_request(stream: &TcpStream) -> String {
    let mut lines = BufReader::new(stream).lines().map_while(std::result::Result::ok);
    let first = lines.next().unwrap_or_default();
    lines.find(String::is_empty);
    first.trim_end_matches(" HTTP/1.1").to_string()
}

fn respond(status: &str, headers: &str, body: &[u8], head: bool) -> Vec<u8> {
    let length = body.len();
    let mut response =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n").into_bytes();
    if !head {
        response.extend_from_slice(body);
    }
    response
}

fn answer(repositories: &BTreeMap<String, Files>, request: &str) -> Vec<u8> {
    let (method, path) = request.split_once(' ').unwrap_or(("", ""));
    let head = method == "HEAD";
    let missing = |code: &str| respond("404 Not Found", &format!("X-Error-Code: {code}\r\n"), b"", head);
    if let Some(rest) = path.strip_prefix("/api/") {
        let (name, revision) = rest.split_once("/revision/").unwrap();
        let name = name.strip_prefix("models/").unwrap_or(name);
        if name.ends_with("org/private") {
            return respond("401 Unauthorized", "", b"", head);
        }
        let converted = revision == "refs%2Fconvert%2Fparquet";
        let (key, commit) = if converted { (format!("{name}@converted"), CONVERTED) } else { (name.into(), COMMIT) };
        let Some(files) = repositories.get(&key) else {
            return missing(if converted { "RevisionNotFound" } else { "RepoNotFound" });
        };
        if revision == "nowhere" {
            return missing("RevisionNotFound");
        }
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "id": name, "sha": commit, "siblings": siblings }).to_string();
        return respond("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), head);
    }
    let (name, rest) = path[1..].split_once("/resolve/").unwrap();
    let (commit, file) = rest.split_once('/').unwrap();
    if name.ends_with("org/gated") {
        return respond("403 Forbidden", "X-Error-Code: GatedRepo\r\n", b"", head);
    }
    let key = if commit == CONVERTED { format!("{name}@converted") } else { name.into() };
    match repositories.get(&key).and_then(|files| files.get(file)) {
        Some(body) => {
            let tag = format!("{name}-{file}").replace('/', "-");
            let headers = format!("ETag: \"{tag}\"\r\nX-Repo-Commit: {commit}\r\n");
            respond("200 OK", &headers, body, head)
        }
        None => missing("EntryNotFound"),
    }
}

pub(super) fn told(error: &Error) -> String {
    format!("{error} | {}", error.help().unwrap_or_default())
}

const SMALL: (&str, &[(&str, &str)]) = (
    "org/small",
    &[
        ("config.json", "{}"),
        ("tokenizer.json", "{\"a\": 1}"),
        ("model.safetensors", "weights"),
        ("pytorch_model.bin", "pickle"),
        ("modeling.py", "code"),
        ("README.md", "text"),
    ],
);

#[test]
fn a_model_is_fetched_once_and_found_again_without_network() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[SMALL]);
    let (path, progress) = hub.fetch("org/small", None, false, cache.path()).unwrap();
    assert_eq!(path, cache.path().join("models--org--small/snapshots").join(COMMIT));
    let mut names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), b"weights");
    let last = progress.iter().rfind(|progress| progress.file == "model.safetensors").unwrap();
    assert_eq!((last.done, last.total), (7, 7));

    let before = hub.requests.lock().unwrap().len();
    assert_eq!(hub.fetch("org/small", None, true, cache.path()).unwrap().0, path);
    assert_eq!(hub.fetch(&format!("org/small@{COMMIT}"), None, true, cache.path()).unwrap().0, path);
    assert_eq!(hub.requests.lock().unwrap().len(), before, "offline asks nobody");
    assert_eq!(hub.fetch("org/small@main", None, false, cache.path()).unwrap().0, path);
    assert_eq!(hub.requests.lock().unwrap().len(), before + 1, "only the commit is asked for, the files are here");

    let endpoint = format!("http://{}", hub.address);
    drop(hub);
    let again = fetch_with(&endpoint, "org/small", None, false, cache.path()).unwrap();
    assert_eq!(again.0, path, "a Hub that is down does not matter when the model is here");
}

#[test]
fn shards_come_with_their_index_and_nothing_else() {
    let cache = tempfile::tempdir().unwrap();
    let index =
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let sharded: &[(&str, &str)] = &[
        ("config.json", "{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", "1"),
        ("model-2.safetensors", "2"),
        ("other.safetensors", "3"),
    ];
    let hostile = &[("config.json", "{}"), ("model.safetensors.index.json", r#"{"weight_map": {"a": "../../x"}}"#)];
    let hub = Hub::start(&[("org/sharded", sharded), ("org/hostile", hostile)]);
    let (path, _) = hub.fetch("org/sharded", None, false, cache.path()).unwrap();
    assert!(path.join("model-2.safetensors").is_file() && !path.join("other.safetensors").exists());
    std::fs::remove_file(path.join("model-2.safetensors")).unwrap();
    let message = told(&hub.fetch("org/sharded", None, true, cache.path()).unwrap_err());
    assert!(message.contains("lacks model-2.safetensors"), "{message}");
    let message = told(&hub.fetch("org/hostile", None, false, cache.path()).unwrap_err());
    assert!(message.contains("`../../x`, which the repository does not have"), "{message}");
}

#[test]
fn gguf_repositories_need_a_file() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("org/gguf", &[("m.Q4_K_M.gguf", "q4"), ("m.Q8_0.gguf", "q8")])]);
    let message = told(&hub.fetch("org/gguf", None, false, cache.path()).unwrap_err());
    assert!(message.contains("`base.file` must say") && message.contains("m.Q4_K_M.gguf, m.Q8_0.gguf"), "{message}");
    let message = told(&hub.fetch("org/gguf", Some("n.gguf"), false, cache.path()).unwrap_err());
    assert!(message.contains("has no `n.gguf`") && message.contains("m.Q8_0.gguf"), "{message}");
    let (path, _) = hub.fetch("org/gguf", Some("m.Q8_0.gguf"), false, cache.path()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"q8");
    assert_eq!(hub.fetch("org/gguf", Some("m.Q8_0.gguf"), true, cache.path()).unwrap().0, path);
    let message = told(&hub.fetch("org/gguf", Some("m.Q4_K_M.gguf"), true, cache.path()).unwrap_err());
    assert!(message.contains("`m.Q4_K_M.gguf` is not in the cache"), "{message}");
    for hostile in ["../x.gguf", "/x.gguf", "a//x.gguf", "model.safetensors", "..\\x.gguf"] {
        let message = told(&hub.fetch("org/gguf", Some(hostile), false, cache.path()).unwrap_err());
        assert!(message.contains("is not the name of a GGUF file"), "{message}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[
        SMALL,
        ("org/gated", SMALL.1),
        ("org/pickle", &[("config.json", "{}"), ("pytorch_model.bin", "")]),
    ]);
    let told = |model: &str, offline| told(&hub.fetch(model, None, offline, cache.path()).unwrap_err());
    assert!(told("org/nothing", false).contains("there is no model org/nothing on the Hub (404)"));
    assert!(told("org/small@nowhere", false).contains("no revision `nowhere`"));
    let gated = told("org/gated", false);
    assert!(gated.contains("(403)") && gated.contains("ask for access") && gated.contains("/org/gated"), "{gated}");
    assert!(told("org/pickle", false).contains("no model in safetensors"));
    let offline = told("org/small", true);
    assert!(offline.contains("not in the cache") && offline.contains(cache.path().to_str().unwrap()), "{offline}");
    assert!(offline.contains("hf download org/small"), "{offline}");
    assert!(!cache.path().join("models--org--gated/refs").exists(), "an incomplete snapshot is not noted");
}

#[test]
fn an_unreachable_hub_is_no_riddle() {
    let cache = tempfile::tempdir().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch_with(&format!("http://{closed}"), "org/small", None, false, cache.path()).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }));
    let message = told(&error);
    assert!(
        message.contains("cannot be reached") && message.contains("refused") && message.contains("--offline"),
        "{message}"
    );
}

#[test]
fn local_paths_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tiny.gguf"), "x").unwrap();
    let fetch = |model: &Path, file: Option<&str>| {
        let config = BaseConfig { model: model.display().to_string(), file: file.map(String::from) };
        fetch(&config, &FetchOptions { offline: true }, &mut |_| {})
    };
    assert_eq!(fetch(folder.path(), None).unwrap(), folder.path());
    assert_eq!(fetch(folder.path(), Some("tiny.gguf")).unwrap(), folder.path().join("tiny.gguf"));
    assert!(fetch(folder.path(), Some("other.gguf")).unwrap_err().to_string().contains("`other.gguf`"));
    let message = told(&fetch(&folder.path().join("tyny.gguf"), None).unwrap_err());
    assert!(
        message.contains("no such file or folder") && message.contains("did you mean") && message.contains("tiny.gguf"),
        "{message}"
    );
    let message = told(&fetch(Path::new("./qqqqqqqq"), None).unwrap_err());
    assert!(message.contains("relative paths begin at"), "{message}");
}

#[test]
fn hub_ids_are_told_from_paths() {
    let reference = parse("HuggingFaceTB/SmolLM2-135M@refs/pr/1").unwrap();
    assert_eq!(
        (reference.to_string().as_str(), reference.revision.as_str()),
        ("HuggingFaceTB/SmolLM2-135M", "refs/pr/1")
    );
    assert_eq!(parse("org/name").unwrap().revision, "main");
    for path in [
        "name",
        "./name",
        "../x",
        "/a/b",
        "a/b/c",
        "~/x",
        "a/b.gguf",
        "org/",
        "/name",
        "org/na me",
        "o/n@../../x",
        "o/n@",
        "o/n@/x",
    ] {
        assert_eq!(parse(path), None, "{path}");
    }
}

#[test]
fn offline_is_what_people_write() {
    assert!(["1", "true", "YES", " on "].into_iter().all(environment::is_on));
    assert!(!["0", "", "false", "off"].into_iter().any(environment::is_on));
}

#[test]
fn a_folder_mistyped_as_a_hub_id_is_suspected() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("models/llama-1b")).unwrap();
    let error = or_a_folder(
        Error::Hub { message: "no".into(), help: Some("check".into()) },
        &folder.path().join("models/lama-1b"),
    );
    assert!(error.help().unwrap().starts_with("check. There is no folder"));
    assert!(error.help().unwrap().contains("did you mean") && error.help().unwrap().contains("models/llama-1b"));
}
