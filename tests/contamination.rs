//! `equipoise data --against`: items of tasks in the rows to train on; and the score without them.

use crate::support::workplace::{Workplace, embedded_base, refusal};
use serde_json::{Value, json};

/// A text of 40 words, of which no 13 follow each other in another one's.
fn text(name: &str) -> String {
    let words: Vec<String> = (0..40).map(|i| format!("{name}{i}")).collect();
    words.join(" ")
}

/// A task of four items: one stands in a row as it is, one with another word in its midst, one in no row, and one is short.
fn place() -> Workplace {
    let place = Workplace::new();
    place.write(
        "mine.yaml",
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\ntest_split: test\n\
         output_type: multiple_choice\ndoc_to_text: \"{{question}}\"\ndoc_to_choice: [\"yes\", \"no\"]\ndoc_to_target: answer\n",
    );
    let item = |question: &str| format!("{}\n", json!({"question": question, "answer": 0}));
    place.write("items.jsonl", item(&text("a")) + &item(&text("b")) + &item(&text("c")) + &item("Really?"));
    let row = |prompt: &str, completion: &str| format!("{}\n", json!({"prompt": prompt, "completion": completion}));
    let copied = format!("{}, YES!", text("A"));
    let changed = text("b").replace("b20", "other");
    place.write("rows.jsonl", row("What is new?", "Nothing.") + &row("Say it: ", &copied) + &row(&changed, " yes"));
    place
}

fn data(place: &Workplace, more: &[&str]) -> std::process::Output {
    let fixed = ["data", "trial.yaml", "--set", "data.train=rows.jsonl", "--set", "data.validation=null"];
    let fixed = [&fixed[..], &["--set", "data.max_seq_len=1000", "--set", "data.format=completion"]].concat();
    place.command(&[&fixed[..], more].concat()).output().unwrap()
}

#[test]
fn items_in_the_rows_are_found_and_can_be_left_out_of_a_comparison() {
    let place = place();
    let output = data(&place, &["--against", "mine.yaml", "--against-out", "found.jsonl", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let against = &report["against"];
    // Of the one with another word, 5 of 37 5-grams hold that word, and as many others stand in their place: a Jaccard index of 32/42.
    let expected =
        json!({"task": "mine", "items": 4, "overlapping": 2, "near_duplicates": 1, "clean": 1, "too_short": 1});
    assert_eq!(against["tasks"][0], expected);
    let [first, second] = &against["items"].as_array().unwrap()[..] else { panic!("{against}") };
    assert_eq!((&first["doc_id"], &first["overlap"], &first["near_duplicate"]), (&json!(0), &json!(1.0), &json!(true)));
    assert_eq!((&first["row"]["line"], &second["row"]["line"]), (&json!(2), &json!(3)));
    assert!(first["row"]["file"].as_str().unwrap().ends_with("rows.jsonl"), "{first}");
    assert_eq!((&second["doc_id"], &second["near_duplicate"]), (&json!(1), &json!(false)));
    // Of 29 13-grams of 41 words, the 13 with the changed word are not there.
    assert_eq!(second["overlap"], json!(16.0 / 29.0));
    let written = std::fs::read_to_string(place.path("found.jsonl")).unwrap();
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(Value::Array(lines), against["items"]);

    let text = String::from_utf8(data(&place, &["--against", "mine.yaml", "--show", "0"]).stdout).unwrap();
    for phrase in ["mine, document 0: 100% of its n-grams", "near duplicate of", "rows.jsonl:2", "--against-out FILE"] {
        assert!(text.contains(phrase), "no `{phrase}` in {text}");
    }

    for folder in ["one", "two"] {
        let base = embedded_base();
        let eval = ["eval", base.to_str().unwrap(), "--tasks", "mine.yaml", "--output-path", folder, "--quiet"];
        let done = place.command(&eval).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let compare = |file: &str| {
        place.command(&["compare", "one", "two", "--metrics", "acc", "--json", "--without", file]).output().unwrap()
    };
    let comparison: Value = serde_json::from_slice(&compare("found.jsonl").stdout).unwrap();
    assert_eq!(comparison["rows"][0]["items"], 2);
    let note = comparison["notes"][0].as_str().unwrap();
    assert!(note.contains("mine: 2 of 4 items are left out"), "{note}");

    let hash = first["doc_hash"].as_str().unwrap();
    place.write("other.jsonl", written.replace(hash, "0123"));
    place.write("odd.jsonl", "{\"task\": \"mine\"}\n");
    place.write("all.jsonl", (0..4).map(|i| format!("{{\"task\": \"mine\", \"doc_id\": {i}}}\n")).collect::<String>());
    place.write("theirs.jsonl", "{\"task\": \"theirs\", \"doc_id\": 0}\n");
    refusal(&compare("other.jsonl")).says(2, &["other.jsonl", "line 1", "has the hash 0123", "--against-out"]);
    refusal(&compare("odd.jsonl")).says(2, &["odd.jsonl", "line 1", "doc_id"]);
    refusal(&compare("all.jsonl")).says(2, &["all.jsonl", "leaves nothing to compare"]);
    let others: Value = serde_json::from_slice(&compare("theirs.jsonl").stdout).unwrap();
    assert_eq!(others["rows"][0]["items"], 4, "items of tasks that the runs lack say nothing");
}

#[test]
fn what_cannot_be_searched_for_is_named_and_nothing_is_written() {
    let place = place();
    for (more, phrases) in [
        (&["--against", "mein"][..], &["no task `mein`"][..]),
        (&["--against", "mine.yaml", "--against-out", "nowhere/found.jsonl"], &["nowhere"]),
        (&["--against-out", "found.jsonl"], &["--against"]),
    ] {
        let output = data(&place, &[more, &["--json"]].concat());
        let refusal = refusal(&output);
        assert!([1, 2].contains(&refusal.code), "{}", refusal.text);
        for phrase in phrases {
            assert!(refusal.text.contains(phrase), "no `{phrase}` in {}", refusal.text);
        }
        assert!(!place.path("found.jsonl").exists());
    }
}
