//! `equipoise data --against`: items of tasks in training rows; and `--without` of `equipoise compare` and `equipoise eval` on what is left.

use crate::support::golden;
use crate::support::workplace::{Workplace, embedded_base, refusal};
use equipoise::eval::words;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;
use std::process::Output;

/// What each question begins with: more than 13 words that no item has for itself.
const TEMPLATE: &str =
    "Read what stands below with care, think of each of its terms, and then say in a few words what it describes.";

/// Long texts that have no five words in common: each of two definitions.
fn texts() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gene_ontology/train.jsonl");
    let rows = std::fs::read_to_string(path).unwrap();
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut outputs: Vec<String> = rows.map(|row| row["output"].as_str().unwrap().to_owned()).collect();
    let mut seen = HashSet::new();
    outputs.retain(|text| {
        let words = words(text);
        let shingles: Vec<Vec<String>> = words.windows(5).map(<[String]>::to_vec).collect();
        let is_new = words.len() > 30 && shingles.iter().all(|shingle| !seen.contains(shingle));
        seen.extend(if is_new { shingles } else { Vec::new() });
        is_new
    });
    outputs.chunks_exact(2).take(12).map(|texts| texts.join(" ")).collect()
}

/// A task of six items, of which four are long. Of the training rows the second is its first item in capitals, the third its second
/// but for a word, and the fourth has a sentence of its third.
fn place() -> Workplace {
    let place = Workplace::new();
    place.write(
        "mine.yaml",
        format!(
            "task: mine\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: rows.jsonl}}}}\ntest_split: test\n\
             output_type: multiple_choice\ndescription: \"Say what it is.\"\ndoc_to_text: \"{TEMPLATE}\\n{{{{question}}}}\"\n\
             doc_to_choice: [\" one gene\", \" a process\"]\ndoc_to_target: answer\n"
        ),
    );
    let texts = texts();
    let item = |text: &str| json!({"question": text, "answer": 1}).to_string() + "\n";
    let items = [&texts[0], &texts[1], &texts[2], &texts[3], "Which organelle makes proteins?", "What?"];
    place.write("rows.jsonl", items.map(item).concat());
    let row = |text: String| json!({"instruction": text, "output": "a process"}).to_string() + "\n";
    let mut rows: Vec<String> = texts[4..].iter().map(|text| row(format!("{TEMPLATE} {text}"))).collect();
    rows.insert(1, row(format!("{TEMPLATE} {}", texts[0].to_uppercase())));
    let words: Vec<&str> = texts[1].split(' ').collect();
    let changed = [&words[..9], &["otherwise"], &words[10..]].concat().join(" ");
    rows.insert(2, row(format!("{TEMPLATE} {changed}")));
    let words: Vec<&str> = texts[2].split(' ').collect();
    rows.insert(3, row(format!("It is said: {}.", words[2..18].join(" "))));
    place.write("train.jsonl", rows.concat());
    place
}

fn data<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["data", "trial.yaml", "--set", "data.max_seq_len=512", "--against", "mine.yaml"], more].concat()
}

#[test]
fn items_in_training_rows_are_found_with_their_rows() {
    let place = place();
    let output = place.command(&data(&["--json", "--against-out", "found.jsonl"])).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let against = &printed["against"];
    let expected =
        json!([{"task": "mine", "items": 6, "overlapping": 3, "near_duplicates": 2, "clean": 2, "too_short": 1}]);
    assert_eq!(against["tasks"], expected, "{against}");
    let items = against["items"].as_array().unwrap();
    let of = |key: &str| items.iter().map(|item| item[key].clone()).collect::<Vec<Value>>();
    assert_eq!(of("doc_id"), [0, 1, 2]);
    assert_eq!(of("near_duplicate"), [true, true, false]);
    let lines: Vec<u64> = items.iter().map(|item| item["row"]["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 3, 4]);
    assert!(items.iter().all(|item| item["row"]["file"].as_str().unwrap().ends_with("train.jsonl")));
    let shares: Vec<f64> = items.iter().map(|item| item["overlap"].as_f64().unwrap()).collect();
    assert!(shares[0] > shares[1] && shares[1] > 0.5 && shares[2] > 0.0 && shares[2] < 0.2, "{shares:?}");
    // The file has the same items, a line each.
    let file = std::fs::read_to_string(place.path("found.jsonl")).unwrap();
    let lines: Vec<Value> = file.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(&lines, items);
    place.assert_no_litter();

    let output = place.command(&data(&[])).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for phrase in [
        "overlapping  near duplicates  clean  too short",
        "mine, document 0: ",
        "; a near duplicate of train.jsonl:3, Jaccard 0.",
        "document 2: ",
        "--against-out FILE",
    ] {
        assert!(text.contains(phrase), "no `{phrase}` in {text}");
    }
    // Without the rows in question nothing is found, though others have the task's template.
    let rows = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    place.write("clean.jsonl", rows.split_inclusive('\n').skip(4).collect::<String>());
    let output = place.command(&data(&["--json", "--set", "data.train=clean.jsonl"])).output().unwrap();
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["against"]["tasks"][0]["clean"], 5, "{printed}");
    assert_eq!(printed["against"]["items"], json!([]));
}

/// A chat template's words between question and answer hide no copy, in whatever format the rows are: not of a short item, which is
/// searched for as a whole, and a copy is a near duplicate.
#[test]
fn copies_are_found_through_a_chat_template() {
    let place = Workplace::new();
    place.write(
        "quiz.yaml",
        "task: quiz\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n\
         output_type: multiple_choice\ndoc_to_text: \"{{q}}\"\ndoc_to_choice: \"{{[a, ' none']}}\"\ndoc_to_target: 0\n",
    );
    let mut pairs: Vec<(String, String)> = [
        ("Which organelle makes ATP?", "the mitochondrion"),
        ("What carries oxygen in blood?", "haemoglobin in erythrocytes"),
        ("Who described the operon first?", "Jacob and Monod"),
    ]
    .map(|(q, a)| (q.to_owned(), a.to_owned()))
    .into();
    // A long one: its answer is a definition.
    pairs.push(("What is meant by this term of the ontology?".to_owned(), texts()[0].clone()));
    let items = pairs.iter().map(|(q, a)| json!({"q": q, "a": a}).to_string() + "\n");
    place.write("rows.jsonl", items.collect::<String>());
    for row in [
        (|q, a| json!({"instruction": q, "output": a})) as fn(&str, &str) -> Value,
        |q, a| json!({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
        |q, a| json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": q}, {"role": "assistant", "content": a}]}),
        |q, a| json!({"question": q, "answer": a}),
        |q, a| json!({"prompt": format!("{q} "), "completion": a}),
        |q, a| json!({"text": format!("{q} {a}")}),
    ] {
        let rows = pairs.iter().map(|(q, a)| row(q, a).to_string() + "\n");
        place.write("train.jsonl", rows.collect::<String>());
        let arguments = ["data", "trial.yaml", "--set", "data.max_seq_len=512", "--set", "data.validation=null"];
        let output = place.command(&[&arguments[..], &["--against", "quiz.yaml", "--json"]].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let against = serde_json::from_slice::<Value>(&output.stdout).unwrap()["against"].clone();
        let counts = &against["tasks"][0];
        assert_eq!((&counts["overlapping"], &counts["clean"]), (&json!(4), &json!(0)), "{against}");
        let long = &against["items"][3];
        assert!(long["overlap"] == 1.0 && long["near_duplicate"] == true, "{against}");
    }
}

#[test]
fn a_comparison_is_of_the_items_that_are_left() {
    let place = place();
    let written = place.command(&data(&["--against-out", "found.jsonl"])).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let (adapter, base) = (golden("peft_adapter"), embedded_base());
    let mut eval = place.command(&["eval", adapter.to_str().unwrap(), "--base", base.to_str().unwrap()]);
    let done = eval.args(["--tasks", "mine.yaml", "--output-path", "out", "--quiet"]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let compare = |more: &[&str]| place.command(&[&["compare", "out", "--json"], more].concat()).output().unwrap();
    let printed = |more: &[&str]| -> Value {
        let output = compare(more);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(printed(&[])["rows"][0]["items"], 6);
    let left = printed(&["--without", "found.jsonl"]);
    assert_eq!(left["rows"][0]["items"], 3);
    assert_eq!(left["notes"], json!(["mine: 3 of 6 items are left out, by found.jsonl"]));
    // The mean is that of the other three.
    let lines = samples(&place, "out", &base);
    let mean = lines[3..].iter().map(|line| line["acc"].as_f64().unwrap()).sum::<f64>() / 3.0;
    assert_eq!(left["rows"][0]["baseline"].as_f64().unwrap(), mean);

    // What the runs do not have is ignored, and a list need have no hashes.
    place.write("own.jsonl", "{\"task\": \"other\", \"doc_id\": 1}\n\n{\"task\": \"mine\", \"doc_id\": 5}\n{\"task\": \"mine\", \"doc_id\": 77}\n");
    let left = printed(&["--without", "own.jsonl"]);
    assert_eq!(
        (&left["rows"][0]["items"], &left["notes"][0]),
        (&json!(5), &json!("mine: 1 of 6 items are left out, by own.jsonl"))
    );
    let note = "own.jsonl: 2 of 3 items are not among these tasks, such as document 77 of `mine`";
    assert_eq!(left["notes"][1], note);
    place.write("nothing.jsonl", "");
    assert_eq!(printed(&["--without", "nothing.jsonl"])["rows"][0]["items"], 6);

    let line = |id: usize| format!("{{\"task\": \"mine\", \"doc_id\": {id}}}\n");
    let all: String = (0..6).map(line).collect();
    place.write("all.jsonl", all);
    let found = std::fs::read_to_string(place.path("found.jsonl")).unwrap();
    let hash = serde_json::from_str::<Value>(found.lines().nth(1).unwrap()).unwrap()["doc_hash"].clone();
    let hash = hash.as_str().unwrap();
    place.write("differing.jsonl", found.replace(hash, "0123abcd"));
    place.write("damaged.jsonl", "{\"task\": \"mine\", \"doc_id\": 5}\n{\"task\": \"mine\"}\n");
    for (file, phrases) in [
        ("all.jsonl", &["all.jsonl", "leaves nothing to compare", "6 of 6"][..]),
        (
            "differing.jsonl",
            &["differing.jsonl", "line 2", "document 1 of `mine`", "0123abcd", hash, "samples_mine", "--against-out"],
        ),
        ("damaged.jsonl", &["damaged.jsonl", "line 2", "doc_id", "--against-out"]),
        ("nowhere.jsonl", &["nowhere.jsonl"]),
    ] {
        refusal(&compare(&["--without", file])).says(2, phrases);
    }
}

/// The lines of a model's samples file, in the folder of an evaluation.
fn samples(place: &Workplace, output: &str, model: &Path) -> Vec<Value> {
    let folder = place.path(output).join(model.to_str().unwrap().replace('/', "__"));
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let file = files.into_iter().find(|path| path.extension().unwrap() == "jsonl").unwrap();
    std::fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The whole score stays what it is; beside it stands that of the items that are left, in a group too.
#[test]
fn an_evaluation_reports_the_score_on_the_clean_rest() {
    let place = place();
    let written = place.command(&data(&["--against-out", "found.jsonl"])).output().unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let task = std::fs::read_to_string(place.path("mine.yaml")).unwrap();
    place.write("other.yaml", task.replace("task: mine", "task: other"));
    place.write(
        "both.yaml",
        "group: both\ntask: [mine, other]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
    );
    let (adapter, base) = (golden("peft_adapter"), embedded_base());
    let eval = |more: &[&str]| {
        let mut command = place.command(&["eval", adapter.to_str().unwrap(), "--base", base.to_str().unwrap()]);
        command.args(["--tasks", "both", "--include-path", ".", "--quiet"]).args(more).output().unwrap()
    };
    let output = eval(&["--without", "found.jsonl", "--output-path", "out", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let evaluations = |output: &Output| -> Vec<Value> {
        let lines = std::str::from_utf8(&output.stdout).unwrap().lines();
        let events = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["event"] == "evaluation").collect()
    };
    let evaluated = evaluations(&output);
    let lines = samples(&place, "out", &base);
    let mean =
        |lines: &[Value]| lines.iter().map(|line| line["acc"].as_f64().unwrap()).sum::<f64>() / lines.len() as f64;
    let of = |rows: &Value, task: &str| {
        let is_it = |row: &&Value| row["task"] == task && row["metric"] == "acc";
        let row = rows.as_array().unwrap().iter().find(is_it).unwrap();
        (row["items"].as_u64().unwrap(), row["value"].as_f64().unwrap())
    };
    let of_base = &evaluated[0];
    assert_eq!((of_base["what"].as_str(), evaluated.len()), (Some("base"), 2));
    assert_eq!(of(&of_base["rows"], "mine"), (6, mean(&lines)));
    let rest = &of_base["rest"];
    let left_out = |mine: usize| json!([{"task": "mine", "left_out": mine, "items": 6}, {"task": "other", "left_out": 0, "items": 6}]);
    assert_eq!(rest["left_out"], left_out(3));
    assert_eq!(of(&rest["rows"], "mine"), (3, mean(&lines[3..])));
    let both = (3.0 * mean(&lines[3..]) + 6.0 * mean(&lines)) / 9.0;
    let (items, value) = of(&rest["rows"], "both");
    assert!(items == 9 && (value - both).abs() < 1e-12, "{rest}");
    assert!(
        rest["rows"].as_array().unwrap().iter().all(|row| row["task"] != "other"),
        "nothing of it is left out: {rest}"
    );
    // In the results file, beside what lm-eval has there.
    let files = of_base["files"].as_array().unwrap();
    let results = files.iter().find(|file| file.as_str().unwrap().contains("results_")).unwrap();
    let results: Value =
        serde_json::from_slice(&std::fs::read(place.path(results.as_str().unwrap())).unwrap()).unwrap();
    assert_eq!(results["results"]["mine"]["acc,none"], mean(&lines));
    assert_eq!(results["rest"]["results"]["mine"]["acc,none"], mean(&lines[3..]));
    assert_eq!(results["rest"]["results"]["mine"]["sample_len"], 3);

    let text = String::from_utf8(eval(&["--without", "found.jsonl"]).stdout).unwrap();
    assert!(text.contains("without the items of found.jsonl\nmine: 3 of 6 items are left out\nother: 0 of 6 items are left out\n\ntask "), "{text}");
    // A list of all items leaves no score, and one of other documents is refused before the model is read.
    let line = |id: usize| format!("{{\"task\": \"mine\", \"doc_id\": {id}}}\n");
    place.write("all.jsonl", (0..6).map(line).collect::<String>());
    let rest = evaluations(&eval(&["--without", "all.jsonl", "--json"]))[0]["rest"].clone();
    assert_eq!(rest["left_out"], left_out(6));
    // The group's is that of its other task.
    let of_group: Vec<(&Value, &Value)> =
        rest["rows"].as_array().unwrap().iter().map(|row| (&row["task"], &row["items"])).collect();
    assert_eq!(of_group, [(&json!("both"), &json!(6))]);
    // A misspelt name is said; a document beyond `--limit` is none, and two lists may be one behind the other.
    let found = std::fs::read_to_string(place.path("found.jsonl")).unwrap();
    place.write(
        "misspelt.jsonl",
        format!("{found}{found}{{\"task\": \"mien\", \"doc_id\": 0}}\n").replace('\n', "\r\n"),
    );
    let output = eval(&["--without", "misspelt.jsonl", "--limit", "2", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let note = "misspelt.jsonl: 1 of 4 items are not among these tasks, such as document 0 of `mien`";
    assert!(text.contains(note), "{text}");
    assert_eq!(evaluations(&output)[0]["rest"]["left_out"][0], json!({"task": "mine", "left_out": 2, "items": 2}));
    let hash = serde_json::from_str::<Value>(found.lines().nth(1).unwrap()).unwrap()["doc_hash"].clone();
    // A later line without a hash does not hide the first one's.
    let line = "{\"task\": \"mine\", \"doc_id\": 1}\n";
    place.write("differing.jsonl", found.replace(hash.as_str().unwrap(), "0123abcd") + line);
    place.write("damaged.jsonl", "{\"task\": \"mine\"}\n");
    for (file, phrases) in [
        ("differing.jsonl", &["differing.jsonl", "line 2", "document 1 of `mine`", "0123abcd", "--against-out"][..]),
        ("damaged.jsonl", &["damaged.jsonl", "line 1", "doc_id"]),
        ("nowhere.jsonl", &["nowhere.jsonl"]),
    ] {
        refusal(&eval(&["--without", file, "--output-path", "refused", "--json"])).says(2, phrases);
        assert!(!place.path("refused").exists(), "{file}");
    }
}

#[test]
fn what_cannot_be_searched_for_is_refused_and_nothing_is_written() {
    let place = place();
    place.write("empty.jsonl", "");
    place.write("broken.yaml", "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\ntest_split: test\ndoc_to_text: a\ndoc_to_target: b\n");
    for (arguments, phrases) in [
        (&["--against", "mein"][..], &["there is no task `mein`", "--include-path"][..]),
        (&["--against", "broken.yaml"], &["gone.jsonl"]),
        (&["--against", "mine.yaml", "--set", "data.train=empty.jsonl"], &["empty.jsonl"]),
        (&["--against", "mine.yaml", "--set", "data.train=nowhere.jsonl"], &["nowhere.jsonl"]),
    ] {
        let output =
            place.command(&[&["data", "trial.yaml", "--json", "--against-out", "found.jsonl"], arguments].concat());
        let mut output = output;
        refusal(&output.output().unwrap()).says(2, phrases);
        assert!(!place.path("found.jsonl").exists(), "{arguments:?}");
    }
    let output = place.command(&data(&["--json", "--against-out", "no/such/folder.jsonl"])).output().unwrap();
    refusal(&output).says(2, &["no/such/folder.jsonl"]);
    let output = place.command(&["data", "trial.yaml", "--json", "--against-out", "found.jsonl"]).output().unwrap();
    refusal(&output).says(2, &["--against"]);
    place.assert_no_litter();
}
