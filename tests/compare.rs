//! `equipoise compare`: on files as lm-eval 0.4.13 writes them, with numbers that were worked out by hand, and on its own.

use crate::support::golden;
use crate::support::workplace::{Workplace, embedded_base, refusal};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A task of an evaluation: its name, its version, and for each item whether it is right and the log-likelihoods of two choices, of
/// which the second is right.
type Task<'a> = (&'a str, f64, &'a [(u8, [f64; 2])]);

/// Writes an evaluation as `lm_eval --log_samples --output_path` does.
fn evaluation(place: &Workplace, folder: &str, date: f64, tasks: &[Task<'_>], question: &str) {
    let path = place.path(folder);
    std::fs::create_dir_all(&path).unwrap();
    let stamp = "2026-11-27T05-12-33.123456";
    let of = |value: &dyn Fn(&Task<'_>) -> Value| {
        Value::Object(tasks.iter().map(|task| (task.0.to_owned(), value(task))).collect())
    };
    let results = json!({
        "results": of(&|_| json!({"acc,none": 0.5})),
        "configs": of(&|task| json!({"task": task.0})),
        "versions": of(&|task| json!(task.1)),
        "higher_is_better": of(&|_| json!({"acc": true})),
        "date": date,
        "model_name": folder,
    });
    std::fs::write(path.join(format!("results_{stamp}.json")), results.to_string()).unwrap();
    for (task, _, items) in tasks {
        let mut lines = String::new();
        for (id, (right, scores)) in items.iter().enumerate() {
            let line = json!({
                "doc_id": id,
                "doc": {"question": question, "gene": format!("G{}", id / 2)},
                "target": "1",
                "arguments": {
                    "gen_args_0": {"arg_0": question, "arg_1": " no"},
                    "gen_args_1": {"arg_0": question, "arg_1": " yes"},
                },
                "resps": scores.map(|score| json!([[score.to_string(), "False"]])),
                "filtered_resps": scores.map(|score| json!([score.to_string(), "False"])),
                "filter": "none",
                "metrics": ["acc"],
                "doc_hash": format!("{question}-{id}"),
                "prompt_hash": "p",
                "target_hash": "t",
                "acc": f64::from(*right),
            });
            let _ = writeln!(lines, "{line}");
        }
        std::fs::write(path.join(format!("samples_{task}_{stamp}.jsonl")), lines).unwrap();
    }
}

/// Items that are right or wrong, with even odds.
fn items(right: &[u8]) -> Vec<(u8, [f64; 2])> {
    right.iter().map(|&right| (right, [-1.0, -1.0])).collect()
}

fn compared(place: &Workplace, arguments: &[&str]) -> Value {
    let output = place.command(&[&["compare", "--json"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn near(value: &Value, expected: f64) {
    let value = value.as_f64().unwrap();
    assert!((value - expected).abs() < 1e-12, "{value} is not {expected}");
}

#[test]
fn runs_on_the_same_items_are_compared_item_by_item() {
    let place = Workplace::new();
    // Ten items that one run alone has right, two of them the baseline; two that both have.
    let before = items(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    let after = items(&[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    let same = items(&[1, 0, 1]);
    evaluation(&place, "before", 1.0, &[("first", 1.0, &before), ("second", 2.0, &same)], "Q");
    evaluation(&place, "after", 2.0, &[("first", 1.0, &after), ("second", 2.0, &same)], "Q");
    let comparison = compared(&place, &["before", "after"]);
    assert_eq!(comparison["baseline"], "before");
    let [first, second] = &comparison["rows"].as_array().unwrap()[..] else { panic!("{comparison}") };
    near(&first["baseline"], 4.0 / 12.0);
    near(&first["candidate"], 10.0 / 12.0);
    near(&first["difference"], 0.5);
    // Of differences that are twice -1, eight times 1 and twice 0: √(((10 - 12·0.25)/11)/12).
    near(&first["stderr"], (7.0_f64 / 11.0 / 12.0).sqrt());
    // Twice the chance of two heads or fewer of ten coins; the sign-flip test of ±1 is the same.
    near(&first["mcnemar"]["p"], 112.0 / 1024.0);
    assert_eq!((&first["mcnemar"]["only_baseline"], &first["mcnemar"]["only_candidate"]), (&json!(2), &json!(8)));
    near(&first["permutation"]["p"], 112.0 / 1024.0);
    near(&first["p_holm"], 2.0 * 112.0 / 1024.0);
    // (1.959964 + 0.841621) times the standard error.
    let least = first["least_detectable"].as_f64().unwrap();
    assert!((least - 2.801_585 * (7.0_f64 / 11.0 / 12.0).sqrt()).abs() < 1e-5, "{least}");
    let (low, high) = (first["bca"]["low"].as_f64().unwrap(), first["bca"]["high"].as_f64().unwrap());
    assert!(low < 0.5 && low > -0.3 && high > 0.5 && high <= 1.0, "{low} {high}");
    near(&second["difference"], 0.0);
    near(&second["p_holm"], 1.0);

    let text = place.command(&["compare", "before", "after", "--tasks", "first"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for phrase in ["+0.5000 ± 0.2303", "0.1094 (2 : 8)", "baseline"] {
        assert!(text.contains(phrase), "no `{phrase}` in {text}");
    }
    // Under clusters of two, six pairs of signs; four differ.
    let clustered = compared(&place, &["before", "after", "--tasks", "first", "--cluster", "gene"]);
    let row = &clustered["rows"][0];
    assert_eq!((&row["clusters"], &row["mcnemar"]), (&json!(6), &Value::Null));
    // Sums -2, 2, 2, 2, 2, 0: of 2⁵ signs those with a sum of at least 6 are the five with one minus, and none: 6, twice.
    near(&row["permutation"]["p"], 12.0 / 32.0);
}

#[test]
fn probabilities_of_choices_are_held_against_what_is_right() {
    let place = Workplace::new();
    // ln(3) apart: probabilities 1/4 and 3/4, once for the right choice and once against it.
    let three = 3.0_f64.ln();
    let items = [(1, [-2.0 - three, -2.0]), (0, [-2.0, -2.0 - three])];
    evaluation(&place, "one", 1.0, &[("task", 1.0, &items)], "Q");
    evaluation(&place, "two", 1.0, &[("task", 1.0, &items)], "Q");
    let row = &compared(&place, &["one", "two"])["calibration"][0];
    near(&row["accuracy"], 0.5);
    near(&row["nll"], -(0.75_f64.ln() + 0.25_f64.ln()) / 2.0);
    near(&row["brier"], 0.0625 + 0.5625);
    near(&row["ece"], 0.25);
}

#[test]
fn runs_that_do_not_compare_are_refused_with_what_differs() {
    let place = Workplace::new();
    let two = items(&[1, 0]);
    evaluation(&place, "a", 1.0, &[("task", 1.0, &two)], "Q");
    evaluation(&place, "others", 1.0, &[("task", 1.0, &two)], "R");
    evaluation(&place, "more", 1.0, &[("task", 1.0, &items(&[1, 0, 1]))], "Q");
    evaluation(&place, "newer", 1.0, &[("task", 1.1, &two)], "Q");
    evaluation(&place, "elsewhere", 1.0, &[("another", 1.0, &two)], "Q");
    evaluation(&place, "alone", 1.0, &[("task", 1.0, &two)], "Q");
    evaluation(&place, "damaged", 1.0, &[("task", 1.0, &two)], "Q");
    std::fs::remove_file(place.path("alone/samples_task_2026-11-27T05-12-33.123456.jsonl")).unwrap();
    place.write("damaged/samples_task_2026-11-27T05-12-33.123456.jsonl", "{\"doc_id\": 0}\n");
    std::fs::create_dir(place.path("empty")).unwrap();
    for (arguments, phrases) in [
        (&["a", "others"][..], &["document 0 of `task` is another one", "the same items"][..]),
        (&["a", "more"], &["has 3 items of `task`", "has 2", "--limit"]),
        (&["a", "newer"], &["version 1.1", "version 1.0"]),
        (&["a", "elsewhere"], &["no task in common", "--tasks"]),
        (&["a", "alone"], &["no samples of the task `task`", "--log_samples"]),
        (&["a", "damaged"], &["samples_task", "line 1", "metrics"]),
        (&["a"], &["only one evaluation", "BASELINE CANDIDATE"]),
        (&["a", "empty"], &["empty", "results_*.json"]),
        (&["a", "nowhere"], &["nowhere"]),
        (&["a", "a", "--tasks", "tusk"], &["no task `tusk`", "it has task"]),
        (&["a", "a", "--metrics", "f1"], &["do not both have the metric `f1`", "compared: acc"]),
        (&["a", "a", "--cluster", "genome"], &["no field `genome`", "line 1"]),
    ] {
        let output = place.command(&[&["compare", "--json"], arguments].concat()).output().unwrap();
        let refusal = refusal(&output);
        assert!([1, 2].contains(&refusal.code), "{}", refusal.text);
        for phrase in phrases {
            assert!(refusal.text.contains(phrase), "no `{phrase}` in {}", refusal.text);
        }
    }
}

/// The folder of an adapter's evaluation holds its base's: the base is the baseline.
#[test]
fn an_adapter_is_compared_with_its_base_by_their_one_folder() {
    let place = Workplace::new();
    place.write_task(20);
    // A calibration error is of all items together, also where the task does not say so.
    let metrics = "metric_list: [{metric: acc}, {metric: ece}, {metric: aurc}, {metric: brier_score}]\n";
    place.write("mine.yaml", std::fs::read_to_string(place.path("mine.yaml")).unwrap() + metrics);
    let (adapter, base) = (golden("peft_adapter"), embedded_base());
    let mut eval = place.command(&["eval", adapter.to_str().unwrap(), "--base", base.to_str().unwrap()]);
    let done = eval.args(["--tasks", "mine.yaml", "--output-path", "out", "--quiet"]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let comparison = compared(&place, &["out"]);
    assert_eq!(comparison["baseline"], base.to_str().unwrap());
    let metrics: Vec<&Value> = comparison["rows"].as_array().unwrap().iter().map(|row| &row["metric"]).collect();
    assert_eq!(metrics, ["acc", "brier_score"]);
    let of_all = place.command(&["compare", "out", "--metrics", "ece", "--json"]).output().unwrap();
    refusal(&of_all)
        .says(2, &["`ece` is a number of all items together", "metrics that are compared: acc, brier_score"]);
    assert_eq!(comparison["rows"][0]["candidate_model"], adapter.to_str().unwrap());
    // What `eval` says of each is what is compared.
    let text = String::from_utf8(done.stdout).unwrap();
    let row = &comparison["rows"][0];
    for run in ["baseline", "candidate"] {
        assert!(text.contains(&format!("{:.4}", row[run].as_f64().unwrap())), "{row} is not in {text}");
    }
    assert_eq!(comparison["calibration"].as_array().unwrap().len(), 2);
    // The base again, later: it is the baseline all the same. Beside another folder it is the adapter that counts.
    let again = ["eval", base.to_str().unwrap(), "--tasks", "mine.yaml", "--output-path", "out", "--quiet"];
    assert!(place.command(&again).output().unwrap().status.success());
    assert_eq!(compared(&place, &["out"])["baseline"], base.to_str().unwrap());
    let beside = compared(&place, &["out", "out"]);
    assert_eq!(beside["runs"].as_array().unwrap().len(), 2);
    assert_eq!(beside["baseline"], adapter.to_str().unwrap());
}
