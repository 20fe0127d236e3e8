//! Evaluation against lm-evaluation-harness, item by item. `tests/parity/lm_eval_goldens.py` made the files.

use crate::support::{golden, json, shared};
use equipoise::data::Encoder;
use equipoise::eval::{Answer, ChatSettings, Documents, Prepared, Registry, Tokens, evaluate_item, requests_of};
use equipoise::models::Score;
use equipoise::weights::Base;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the command wrote: the results, and the samples of each task.
struct Written {
    results: Value,
    samples: BTreeMap<String, Vec<Map<String, Value>>>,
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

fn read(output: &Path) -> Written {
    let [folder] = &files(output)[..] else { panic!("one model's folder, and nothing half-written") };
    read_model(folder)
}

fn read_model(folder: &Path) -> Written {
    let (mut results, mut samples) = (Value::Null, BTreeMap::new());
    for path in files(folder) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        if let Some(rest) = name.strip_prefix("samples_") {
            let task = rest.rsplit_once('_').unwrap().0.to_owned();
            samples.insert(task, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
        } else {
            assert!(name.starts_with("results_"), "{name}");
            results = serde_json::from_str(&text).unwrap();
        }
    }
    Written { results, samples }
}

/// The log-likelihoods, and whether each is greedy.
fn likelihoods(line: &Map<String, Value>) -> (Vec<f64>, String) {
    let (mut lls, mut greedy) = (Vec::new(), String::new());
    for resp in line["resps"].as_array().unwrap() {
        let number = match &resp[0] {
            Value::Array(pair) => {
                greedy.push(if pair[1] == "True" { '1' } else { '0' });
                &pair[0]
            }
            of_a_whole_text => of_a_whole_text,
        };
        lls.push(number.as_str().unwrap().parse().unwrap());
    }
    (lls, greedy)
}

/// Log-likelihoods within a thousandth; the same answer wherever the two best are further apart than two.
const NEAR: f64 = 1e-3;

fn assert_items(what: &str, golden: &[Value], lines: &[Map<String, Value>]) {
    assert_eq!(golden.len(), lines.len(), "{what}");
    for (item, line) in golden.iter().zip(lines) {
        let place = format!("{what}, document {}", item["id"]);
        assert_eq!(item["id"], line["doc_id"], "{place}");
        let (gold, target) = (item["gold"].as_str().unwrap(), line["target"].as_str().unwrap());
        assert!(target.starts_with(gold), "{place}: {target} is not {gold}");
        let prompt = line["prompt_hash"].as_str().unwrap();
        assert!(prompt.starts_with(item["prompt"].as_str().unwrap()), "{place}: another prompt");
        if let Some(expected) = item.get("text") {
            // The base's generation_config.json has `max_new_tokens: 80`, which transformers puts before lm-eval's `max_gen_toks`. Here
            // the task decides.
            let (expected, text) = (expected.as_str().unwrap(), line["resps"][0][0].as_str().unwrap());
            assert!(expected.starts_with(text) || text.starts_with(expected), "{place}: {text:?} is not {expected:?}");
            if expected != text {
                continue;
            }
            assert_eq!(item["filtered"], line["filtered_resps"][0], "{place}");
        } else {
            let (lls, greedy) = likelihoods(line);
            let expected: Vec<f64> = item["ll"].as_array().unwrap().iter().map(|ll| ll.as_f64().unwrap()).collect();
            assert_eq!(expected.len(), lls.len(), "{place}");
            for (ll, expected) in lls.iter().zip(&expected) {
                let limit = NEAR.max(expected.abs() * 1e-6);
                assert!((ll - expected).abs() < limit, "{place}: {ll} is not {expected}");
            }
            if let Some(expected) = item.get("greedy") {
                assert_eq!(*expected, greedy, "{place}");
            }
            let mut sorted = expected.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            if sorted.len() > 1 && sorted[0] - sorted[1] < 2.0 * NEAR {
                continue;
            }
        }
        for (metric, expected) in item["metrics"].as_object().unwrap() {
            let got = &line[metric];
            let near = |a: f64, b: f64| (a - b).abs() < 1e-2_f64.max(b.abs() * 1e-5);
            match (expected, got) {
                (Value::Number(a), Value::Number(b)) => {
                    assert!(near(b.as_f64().unwrap(), a.as_f64().unwrap()), "{place}: {metric} {got}, not {expected}");
                }
                (Value::Array(a), Value::Array(b)) => {
                    assert_eq!(a.len(), b.len(), "{place}: {metric}");
                    for (a, b) in a.iter().zip(b).filter(|(a, _)| a.is_number()) {
                        assert!(
                            near(b.as_f64().unwrap(), a.as_f64().unwrap()),
                            "{place}: {metric} {got}, not {expected}"
                        );
                    }
                }
                (a, b) => panic!("{place}: {metric} {b}, not {a}"),
            }
        }
    }
}

fn assert_results(what: &str, golden: &Value, got: &Value) {
    for (task, expected) in golden["results"].as_object().unwrap() {
        for (key, expected) in expected.as_object().unwrap().iter().filter(|(key, _)| key.contains(',')) {
            let got = &got["results"][task][key];
            if task.starts_with("eq_generate") || task == "eq_spaces" {
                continue; // Texts of other lengths, and an item less: see `assert_items` and `evaluated`.
            }
            let place = format!("{what}: {task} {key}: {got} instead of {expected}");
            let (Some(a), Some(b)) = (expected.as_f64(), got.as_f64()) else {
                assert_eq!(expected, got, "{place}");
                continue;
            };
            // A bootstrapped error is drawn.
            let drawn = key.contains("_stderr")
                && ["perplexity", "mcc", "f1", "median"].iter().any(|metric| key.starts_with(metric))
                || key == "acc_norm_stderr,none" && task == "eq_statements";
            let limit = if drawn { 0.2 * a.abs() } else { 1e-4 + 1e-4 * a.abs() };
            assert!((a - b).abs() <= limit, "{place}");
        }
    }
    for key in ["versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks"] {
        for (task, expected) in golden[key].as_object().unwrap() {
            let of_groups = ["higher_is_better", "n-shot"].contains(&key) && got[key].get(task).is_none();
            if !of_groups && task != "eq_spaces" {
                assert_eq!(*expected, got[key][task], "{what}: {key} of {task}");
            }
        }
    }
    for (task, expected) in golden["task_hashes"].as_object().unwrap() {
        if task != "eq_spaces" {
            assert_eq!(*expected, got["task_hashes"][task], "{what}: the hash of {task}");
        }
    }
}

/// The files of one model's evaluation; `more`: arguments besides those of the golden runs.
fn evaluated(model: &str, golden: &Value, tasks: &str, more: &[&str]) {
    for run in golden["runs"].as_array().unwrap() {
        let name = run["name"].as_str().unwrap();
        let output = tempfile::tempdir().unwrap();
        let names: Vec<&str> = run["tasks"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
        command.args(["eval", model, "--tasks", &names.join(","), "--include-path", tasks, "--compute", "f32"]);
        command.args(["--output-path", output.path().to_str().unwrap(), "--offline"]).args(more);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        for (option, value) in run["options"].as_object().unwrap() {
            match (option.as_str(), value) {
                ("fewshot_as_multiturn", Value::Bool(false)) => command.arg("--fewshot-as-one-turn"),
                ("fewshot_as_multiturn", _) => &mut command,
                (flag, Value::Bool(true)) => command.arg(format!("--{}", flag.replace('_', "-"))),
                (option, Value::String(text)) => command.args([&format!("--{}", option.replace('_', "-")), text]),
                (option, number) => command.args([format!("--{}", option.replace('_', "-")), number.to_string()]),
            };
        }
        let done = command.output().unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        let written = read(output.path());
        for (task, items) in run["items"].as_object().unwrap() {
            // lm-eval counts a target that is none of the choices as wrong; here it is a mistake (`bad_items_are_named`), and is
            // left out of the data.
            let golden: Vec<Value> =
                items.as_array().unwrap().iter().filter(|of| of["gold"] != "three").cloned().collect();
            let lines = &written.samples[task];
            // With a limit, the first of them.
            let golden = if more.is_empty() { &golden[..] } else { &golden[..lines.len()] };
            assert_items(&format!("{name}: {task}"), golden, lines);
        }
        if more.is_empty() {
            assert_results(name, run, &written.results);
        }
    }
}

#[test]
fn a_tiny_model_has_the_scores_that_lm_eval_gives_it() {
    evaluated("examples/gene_ontology/base", &json(&golden("eval/tiny.json")), "tests/golden/eval/tasks", &[]);
}

/// The same weights with a tokenizer that puts BOS before each text.
#[test]
fn a_tokenizer_that_adds_bos_has_the_scores_that_lm_eval_gives_it() {
    let base = tempfile::tempdir().unwrap();
    for folder in [crate::support::workplace::embedded_base(), golden("eval/bos")] {
        for file in files(&folder) {
            std::fs::copy(&file, base.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    evaluated(base.path().to_str().unwrap(), &json(&golden("eval/bos.json")), "tests/golden/eval/tasks", &[]);
}

/// The first items of `MMLU`'s medical subjects and `PubMedQA` on real weights.
fn real_model(model: &str, name: &str, first: &str) {
    let (Some(model), Some(data)) = (shared(model), shared("data")) else { return };
    // The tasks name the data beside the checkout; it may lie elsewhere.
    let tasks = tempfile::tempdir().unwrap();
    for file in files(&golden("eval/tasks_shared")) {
        let text = std::fs::read_to_string(&file).unwrap().replace("../shared/data", data.to_str().unwrap());
        std::fs::write(tasks.path().join(file.file_name().unwrap()), text).unwrap();
    }
    let golden = json(&golden(&format!("eval/{name}.json")));
    evaluated(model.to_str().unwrap(), &golden, tasks.path().to_str().unwrap(), &["--limit", first]);
}

#[test]
fn tinystories_has_the_scores_that_lm_eval_gives_it() {
    real_model("models/tinystories-656k-bf16", "tinystories", "20");
}

#[test]
fn smollm2_as_gguf_has_the_scores_that_lm_eval_gives_its_dequantized_weights() {
    real_model("models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2", "4");
}

/// What the built-in tasks ask, against what lm-eval's own ask of the same rows.
#[test]
fn built_in_tasks_ask_what_those_of_lm_eval_ask() {
    let base = Base::open(&crate::support::workplace::embedded_base()).unwrap();
    let special = base.special_tokens();
    let (eos, bos) = (special.eos.clone(), special.bos.clone());
    let encoder = Encoder::new(base.tokenizer().unwrap(), None, eos, bos, special.add_bos).unwrap();
    let tokens = Tokens { encoder: &encoder, prefix: 2, max_length: 4096 };
    let rows = |path: &Value| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path.as_str().unwrap());
        let text = std::fs::read_to_string(path).unwrap();
        Documents::new(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    };
    let golden = json(&golden("eval/prompts.json"));
    for (name, task) in golden["tasks"].as_object().unwrap() {
        let mut selected = Registry::built_in().select(&[name.split('/').next().unwrap().to_owned()]).unwrap();
        let mut config = selected.tasks.remove(0);
        assert_eq!(config.version(), task["version"], "{name}");
        config.num_fewshot = task["num_fewshot"].as_u64().map(|count| count as usize);
        let of_split = |split: Option<&str>| split.map_or_else(Documents::default, |split| rows(&task["data"][split]));
        let (documents, examples) = (of_split(config.evaluated_split()), of_split(config.fewshot_split()));
        let prepared = Prepared::new(config, documents, examples, None).unwrap();
        let metrics: Vec<Value> = prepared.metrics.iter().map(|of| of.metric.clone().into()).collect();
        assert_eq!(task["metrics"], Value::from(metrics), "{name}");
        for (id, item) in task["items"].as_array().unwrap().iter().enumerate() {
            let asked = requests_of(&prepared, id, &ChatSettings::default(), &tokens).unwrap();
            let score = Score { log_probability: -1.0, is_greedy: false };
            let answer = Answer::Scores(vec![score; asked.requests()]);
            let line = &evaluate_item(&prepared, &asked, &answer).unwrap().lines[0];
            for key in ["doc_hash", "prompt_hash", "target_hash"] {
                assert_eq!(line[key], item[key], "{name}, document {id}: {key}");
            }
            for (i, continuation) in item["continuations"].as_array().unwrap().iter().enumerate() {
                let arguments = &line["arguments"][format!("gen_args_{i}")];
                assert_eq!(arguments["arg_0"], item["context"], "{name}, document {id}");
                assert_eq!(arguments["arg_1"], *continuation, "{name}, document {id}");
            }
        }
    }
}

/// Runs the command in a folder of its own, with a task of these keys and rows; what it says.
fn evaluated_task(yaml: &str, rows: &str, more: &[&str]) -> (i32, String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let head = "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n";
    std::fs::write(folder.path().join("mine.yaml"), format!("{head}{yaml}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
    command.args(["eval", crate::support::workplace::embedded_base().to_str().unwrap(), "--tasks", "mine.yaml"]);
    let done = command.args(["--output-path", "out"]).args(more).current_dir(folder.path()).output().unwrap();
    // A terminal's width breaks lines.
    let said = String::from_utf8_lossy(&done.stderr).replace("\n  | ", " ");
    (done.status.code().unwrap(), said, folder)
}

const CHOICES: &str =
    "output_type: multiple_choice\ndoc_to_text: \"{{question}}\"\ndoc_to_choice: choices\ndoc_to_target: answer\n";

#[test]
fn bad_items_are_named_and_nothing_is_left() {
    let row = |choices: &str, answer: &str| {
        format!("{{\"question\": \"Q\", \"choices\": {choices}, \"answer\": {answer}}}\n")
    };
    let good = row("[\"a\", \"b\"]", "1");
    for (yaml, rows, phrases) in [
        (CHOICES, good.clone() + &row("[\"a\", \"b\"]", "2"), &["document 1", "target 2", "from 0 to 1"][..]),
        (CHOICES, good.clone() + &row("[\"a\", \"\"]", "0"), &["document 1", "choice 1 is empty"]),
        (CHOICES, good.clone() + &row("[]", "0"), &["document 1", "0 choices"]),
        (CHOICES, String::new(), &["no document"]),
        (
            "output_type: multiple_choice\ndoc_to_text: Q\ndoc_to_target: answer\n",
            good.clone(),
            &["mine.yaml", "doc_to_choice"],
        ),
        (
            &CHOICES.replace("doc_to_text", "doc_to_txt"),
            good.clone(),
            &["mine.yaml", "`doc_to_txt`", "did you mean `doc_to_text`?"],
        ),
        (
            &format!("{CHOICES}metric_list: [{{metric: acc_nrm}}]\n"),
            good.clone(),
            &["`acc_nrm`", "did you mean `acc_norm`"],
        ),
        (&format!("{CHOICES}process_docs: !function x.y\n"), good.clone(), &["mine.yaml", "Python"]),
        (&CHOICES.replace("{{question}}", "{{questin}}"), good.clone(), &["document 0", "questin", "`question`"]),
        (&format!("{CHOICES}num_fewshot: 1\n"), good.clone(), &["first_n"]),
        // A document is no example for itself, and there is no other.
        (
            &format!("{CHOICES}num_fewshot: 1\nfewshot_config: {{sampler: first_n}}\n"),
            good.clone(),
            &["1 few-shot examples are wanted, and there are 0"],
        ),
        (
            "doc_to_text: question\ndoc_to_target: answer\ngeneration_kwargs: {temperature: 0.7}\n",
            good.clone(),
            &["mine.yaml", "generation_kwargs.temperature", "do_sample: false"],
        ),
    ] {
        let (code, said, folder) = evaluated_task(yaml, &rows, &[]);
        assert_eq!(code, 2, "{said}");
        for phrase in phrases {
            assert!(said.contains(phrase), "no `{phrase}` in {said}");
        }
        assert!(!folder.path().join("out").exists(), "{said}");
    }
}

/// The files of the models below a folder, by their folders' names.
fn of_models(output: &Path) -> BTreeMap<String, Written> {
    let folders = files(output).into_iter().filter(|path| path.is_dir());
    folders.map(|folder| (folder.file_name().unwrap().to_str().unwrap().to_owned(), read_model(&folder))).collect()
}

/// An adapter is measured beside its base, and what it is merged into is the same model.
#[test]
fn an_adapter_and_its_merge_have_the_same_scores_and_its_base_others() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let done =
            Command::new(env!("CARGO_BIN_EXE_equipoise")).args(arguments).current_dir(folder.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let base = crate::support::workplace::embedded_base();
    let (base, adapter) = (base.to_str().unwrap(), golden("peft_adapter"));
    let adapter = adapter.to_str().unwrap();
    let task = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval/tasks/eq_continuation.yaml");
    let yaml = std::fs::read_to_string(task).unwrap();
    let data = golden("eval/data/continuation.jsonl");
    std::fs::write(
        folder.path().join("mine.yaml"),
        yaml.replace("tests/golden/eval/data/continuation.jsonl", data.to_str().unwrap()),
    )
    .unwrap();
    run(&[
        "export",
        adapter,
        "--base",
        base,
        "--to",
        "merged",
        "--dtype",
        "f32",
        "--out",
        "merged",
        "--no-verify",
        "-q",
    ]);
    let tasks = ["--tasks", "mine.yaml", "--limit", "6", "--compute", "f32", "--quantization", "none"];
    run(&[&["eval", adapter, "--base", base, "--output-path", "both"], &tasks[..]].concat());
    run(&[&["eval", "merged", "--output-path", "merge"], &tasks[..]].concat());
    let lls = |written: &Written| -> Vec<f64> {
        written.samples["eq_continuation"].iter().flat_map(|line| likelihoods(line).0).collect()
    };
    let both = of_models(&folder.path().join("both"));
    let of = |name: &str| lls(both.iter().find(|(folder, _)| folder.contains(name)).unwrap().1);
    let (of_base, of_adapter) = (of("gene_ontology"), of("peft_adapter"));
    let merge = of_models(&folder.path().join("merge"));
    let of_merge = lls(merge.values().next().unwrap());
    let apart = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart(&of_adapter, &of_merge) < 1e-3, "{of_adapter:?} and {of_merge:?}");
    assert!(apart(&of_adapter, &of_base) > 1e-2, "the adapter does something");
}

/// Killed anywhere, an evaluation goes on to the same files, but for the times in them.
#[test]
fn an_evaluation_that_was_killed_goes_on_to_the_same_results() {
    let row = |i: usize| {
        let choices = "[\"one gene\", \"a long process\"]";
        format!("{{\"question\": \"What is {i}?\", \"choices\": {choices}, \"answer\": {}}}\n", i % 2)
    };
    let rows: String = (0..150).map(row).collect();
    let (code, said, folder) = evaluated_task(CHOICES, &rows, &["--batch-tokens", "20"]);
    assert_eq!(code, 0, "{said}");
    let command = |output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_equipoise"));
        let base = crate::support::workplace::embedded_base();
        command.args(["eval", base.to_str().unwrap(), "--tasks", "mine.yaml", "--batch-tokens", "20"]);
        command.args(["--output-path", output]).current_dir(folder.path());
        command
    };
    let whole = read(&folder.path().join("out"));
    let mut child = command("killed").stderr(std::process::Stdio::null()).spawn().unwrap();
    let part = loop {
        let unfinished = std::fs::read_dir(folder.path().join("killed")).into_iter().flatten().flatten();
        let paths = unfinished.filter(|of| of.path().is_dir()).flat_map(|of| files(&of.path()));
        let part = paths.filter(|path| path.extension().is_some_and(|end| end == "part"));
        if let Some(part) = part.last().filter(|path| std::fs::metadata(path).is_ok_and(|file| file.len() > 3000)) {
            break part;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(part.exists(), "it was killed before its end");
    let lines = std::fs::read(&part).unwrap();
    // Where a kill may leave a line, and where it did.
    for cut in [0, 1, 1000, lines.len()] {
        let output = format!("cut at {cut}");
        let from = part.parent().unwrap();
        let to = folder.path().join(&output).join(from.file_name().unwrap());
        std::fs::create_dir_all(&to).unwrap();
        for state in files(from.parent().unwrap()).iter().filter(|path| path.is_file()) {
            std::fs::copy(state, to.with_file_name(state.file_name().unwrap())).unwrap();
        }
        std::fs::write(to.join(part.file_name().unwrap()), &lines[..cut]).unwrap();
        let done = command(&output).arg("--resume").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let mut resumed = read(&folder.path().join(&output));
        assert_eq!(resumed.samples, whole.samples, "{output}");
        for key in ["date", "total_evaluation_time_seconds"] {
            resumed.results[key] = whole.results[key].clone();
        }
        assert_eq!(resumed.results, whole.results, "{output}");
        assert_eq!(files(&to).len(), 2, "nothing half-written is left");
    }
    // Another evaluation is not gone on with.
    let done = command("killed").args(["--resume", "--limit", "3"]).output().unwrap();
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr).replace("\n  | ", " ");
    assert!(said.contains("`documents`") || said.contains("`limit`"), "{said}");
}
