//! A folder with a few rows and a recipe on the embedded base, and the binary at work in it.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Dropout, accumulation, validation and a checkpoint at each step: all that a resumed run must get right.
const RECIPE: &str = "\
name: trial
base:
  model: BASE
quantization:
  type: q8_0
lora:
  r: 4
  lora_alpha: 8
  lora_dropout: 0.1
objective:
  type: bft
data:
  train: train.jsonl
  validation: validation.jsonl
  max_seq_len: 64
  overlong: truncate
training:
  max_steps: 4
  micro_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 0.01
  eval_steps: 2
  save_steps: 1
device: cpu
output_dir: out
";

/// The embedded base.
pub fn embedded_base() -> PathBuf {
    example("base")
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gene_ontology").join(name)
}

/// All that stands below a folder: path → bytes, of files; folders have none. Empty where there is no folder.
pub type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

pub fn snapshot(folder: &Path) -> Snapshot {
    let mut all = Snapshot::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(snapshot(&path));
            all.insert(path, Vec::new());
        } else {
            all.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    all
}

pub struct Workplace {
    folder: TempDir,
}

/// A refusal, as `--json` tells it.
pub struct Refusal {
    pub code: i32,
    /// The error as JSON text: message, help and, where there is one, the place.
    pub text: String,
}

impl Refusal {
    /// The exit code, and phrases that the error must hold.
    #[track_caller]
    pub fn says(&self, code: i32, phrases: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for phrase in phrases {
            assert!(self.text.contains(phrase), "no `{phrase}` in {}", self.text);
        }
    }
}

impl Workplace {
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        for (name, rows) in [("train.jsonl", 24), ("validation.jsonl", 6)] {
            let text = std::fs::read_to_string(example(name)).unwrap();
            place.write(name, text.split_inclusive('\n').take(rows).collect::<String>());
        }
        place.write("trial.yaml", RECIPE.replace("BASE", embedded_base().to_str().unwrap()));
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// The task `mine.yaml`: questions with two choices, of which in turn the first and the second is right.
    pub fn write_task(&self, questions: usize) {
        let task = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n\
                    output_type: multiple_choice\ndoc_to_text: \"{{question}}\"\n\
                    doc_to_choice: [\" one gene\", \" a process\"]\ndoc_to_target: answer\n";
        let row = |i: usize| format!("{{\"question\": \"What is {i}?\", \"answer\": {}}}\n", i % 2);
        self.write("mine.yaml", task);
        self.write("rows.jsonl", (0..questions).map(row).collect::<String>());
    }

    /// A copy of the embedded base, to be damaged: the folder `base`.
    pub fn copy_base(&self) -> PathBuf {
        let folder = self.path("base");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(embedded_base()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder
    }

    /// A tiny random model of a family of `tests/golden/families` with a tokenizer: the folder `base`.
    pub fn copy_family(&self, family: &str) -> PathBuf {
        let (families, folder) = (super::golden("families"), self.path("base"));
        std::fs::create_dir(&folder).unwrap();
        for from in [families.join(family), families.join("tokenizers/byte_level")] {
            for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
                std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
            }
        }
        folder
    }

    /// The binary in this folder, with nothing of the caller's environment that changes what it says.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Cargo names it to tests; an example, which has no use for it, is to compile all the same.
        let mut command = Command::new(option_env!("CARGO_BIN_EXE_equipoise").unwrap_or("equipoise"));
        command.current_dir(self.folder.path()).args(arguments).stdin(Stdio::null());
        command.env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1").env_remove("EQUIPOISE_LOG");
        command.env("EQUIPOISE_CACHE", self.path("cache"));
        for name in ["LD_LIBRARY_PATH", "EQUIPOISE_CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH"]
        {
            command.env_remove(name);
        }
        command
    }

    /// `train` with these arguments behind it; a word with `=` in it is a `--set`.
    pub fn training(&self, arguments: &[&str]) -> Command {
        let mut all = vec!["train", "trial.yaml", "--json"];
        for argument in arguments {
            if argument.contains('=') {
                all.push("--set");
            }
            all.push(argument);
        }
        self.command(&all)
    }

    /// Trains to the end.
    #[track_caller]
    pub fn train(&self, arguments: &[&str]) -> Output {
        let output = self.training(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Trains to an error: what it says. Nobody may see a panic.
    #[track_caller]
    pub fn failure(&self, arguments: &[&str]) -> Refusal {
        refusal(&self.training(arguments).output().unwrap())
    }

    /// As [`Self::failure`], for what must be refused before anything is written: nothing in the folder changes.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str]) -> Refusal {
        let before = snapshot(self.folder.path());
        let refusal = self.failure(arguments);
        let after = snapshot(self.folder.path());
        let changed: Vec<_> = before.iter().filter(|(path, bytes)| after.get(*path) != Some(bytes)).collect();
        assert!(
            changed.is_empty(),
            "changed or removed: {:?}",
            changed.iter().map(|(path, _)| path).collect::<Vec<_>>()
        );
        let new: Vec<_> = after.keys().filter(|path| !before.contains_key(*path)).collect();
        assert!(new.is_empty(), "left behind: {new:?}");
        refusal
    }

    pub fn adapter(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.path(out).join("adapter_model.safetensors")).unwrap()
    }

    /// The lines of `metrics.jsonl`, but those of runs' beginnings, without what the clock and the memory decide.
    pub fn metrics(&self, out: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(out).join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
            line.retain(|key, _| !["tokens_per_second", "time"].contains(&key.as_str()) && !key.starts_with("peak_"));
            Value::Object(line)
        };
        text.lines().map(line).filter(|line| line["type"] != "run").collect()
    }

    /// The same adapter to the bit, the same metrics, and nothing half-written.
    #[track_caller]
    pub fn assert_same(&self, one: &str, other: &str) {
        assert!(self.adapter(one) == self.adapter(other), "the adapters of {one} and {other} differ");
        assert_eq!(self.metrics(one), self.metrics(other));
        self.assert_no_litter();
    }

    #[track_caller]
    pub fn assert_no_litter(&self) {
        let all = snapshot(self.folder.path());
        let is_litter = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".tmp-");
        let litter: Vec<_> = all.keys().filter(is_litter).collect();
        assert!(litter.is_empty(), "half-written: {litter:?}");
    }
}

/// The error in `output`.
#[track_caller]
pub fn refusal(output: &Output) -> Refusal {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(!stderr.trim().is_empty(), "people get an error too");
    let text = stdout.lines().rfind(|line| line.contains("\"event\":\"error\"")).unwrap_or_default().to_owned();
    assert!(!text.is_empty(), "no error: {stdout}{stderr}");
    Refusal { code: output.status.code().unwrap(), text }
}

/// A run in the background, whose JSON is read as it comes. It is killed when it goes out of scope.
pub struct Running {
    pub child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for an event, if need be of a step at or after `step`.
    #[track_caller]
    pub fn wait_for(&mut self, event: &str, step: u64) {
        for line in self.lines.by_ref() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if line["event"] == event && line["step"].as_u64().unwrap_or(0) >= step {
                return;
            }
        }
        panic!("the run ended before `{event}`");
    }

    /// Sends a signal: `INT`, `TERM` or `KILL`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    /// As [`Self::signal`], where the run may be over already.
    pub fn signal_if_running(&self, name: &str) {
        let _ = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).output();
    }

    /// Waits for the end, 60 seconds at most; the exit code (`None` after a signal) and stderr.
    #[track_caller]
    pub fn end(&mut self) -> (Option<i32>, String) {
        let mut stderr = self.child.stderr.take().unwrap();
        let text = std::thread::spawn(move || std::io::read_to_string(&mut stderr).unwrap_or_default());
        let begin = Instant::now();
        for line in self.lines.by_ref() {
            drop(line);
        }
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_mins(1), "the run does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = self.child.wait().unwrap().code();
        (code, text.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
