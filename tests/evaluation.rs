//! The recipe's `evaluation`: tasks of a run, the metric that chooses its best adapter, and what was forgotten.

use crate::support::workplace::{Running, Workplace, snapshot};
use serde_json::Value;

const TASKS: [&str; 2] = ["evaluation.tasks=[mine.yaml]", "training.learning_rate=0.05"];

fn place() -> Workplace {
    let place = Workplace::new();
    place.write_task(12);
    place
}

/// The last line of a command's JSON.
fn last(output: &std::process::Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(String::from_utf8_lossy(&output.stdout).lines().last().unwrap()).unwrap()
}

fn validations(place: &Workplace, out: &str) -> Vec<Value> {
    place.metrics(out).into_iter().filter(|line| line["type"] == "validation").collect()
}

#[test]
fn a_run_ends_with_the_scores_that_eval_gives_its_adapter() {
    let place = place();
    let summary = last(&place.train(&TASKS));
    let evaluated = place.command(&["eval", "out", "--tasks", "mine.yaml", "--json", "--quiet"]).output().unwrap();
    let text = String::from_utf8(evaluated.stdout).unwrap();
    let [base, adapter] = ["base", "adapter"].map(|what| {
        let of = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        text.lines().map(of).find(|line| line["what"] == what).unwrap()
    });
    let rows = summary["tasks"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "acc and acc_norm");
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((&row["value"], &row["stderr"]), (&adapter["rows"][i]["value"], &adapter["rows"][i]["stderr"]));
        assert_eq!((&row["base"], &row["items"]), (&base["rows"][i]["value"], &Value::from(12)));
    }
    // Once, at the end: a validation has none of them.
    assert!(validations(&place, "out").iter().all(|validation| validation.get("tasks").is_none()));
    // What was written compares.
    let compared = last(&place.command(&["compare", "out/eval", "--json"]).output().unwrap());
    let difference = rows[0]["value"].as_f64().unwrap() - rows[0]["base"].as_f64().unwrap();
    assert!((compared["rows"][0]["difference"].as_f64().unwrap() - difference).abs() < 1e-12, "{compared}");
    let card = std::fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(card.contains("| mine acc ↑ | 12 | ") && card.contains("Perplexity of a short general text: "), "{card}");
    // The tasks' documents are not sent along.
    let plan =
        place.command(&["upload", "out", "--repo", "me/mine", "--base-model", "org/base", "--dry-run", "--json"]);
    let plan = String::from_utf8({ plan }.output().unwrap().stdout).unwrap();
    assert!(plan.contains("answers to tasks") && !plan.contains("samples_mine"), "{plan}");
    // `--overwrite` begins anew, without the old answers; without tasks there are none.
    place.train(&["--overwrite", "evaluation.general_text=false"]);
    assert!(!place.path("out/eval").exists());
    let card = std::fs::read_to_string(place.path("out/README.md")).unwrap();
    assert!(!card.contains("general text") && !card.contains("mine acc"), "{card}");
}

#[test]
fn the_best_adapter_by_a_task_is_the_one_that_a_run_ends_with() {
    let place = place();
    let wanted = [&TASKS[..], &["training.metric_for_best_model=mine/acc_norm", "training.eval_steps=1"]].concat();
    let summary = last(&place.train(&wanted));
    let of = |validation: &Value| {
        let score = validation["tasks"].as_array().unwrap().iter().find(|score| score["metric"] == "acc_norm").unwrap();
        score["value"].as_f64().unwrap()
    };
    let all = validations(&place, "out");
    assert_eq!(all.len(), 5, "before training and after each of four steps");
    // Ties go to the first; the untrained adapter does not count.
    let best = all[1..].iter().map(of).fold(f64::MIN, f64::max);
    let first = all[1..].iter().find(|validation| of(validation) == best).unwrap();
    assert_eq!(summary["best_step"], first["step"]);
    assert_eq!(summary["adapter_step"], first["step"]);
    let row = summary["tasks"].as_array().unwrap().iter().find(|row| row["metric"] == "acc_norm").unwrap();
    assert_eq!((row["value"].as_f64().unwrap(), row["base"].as_f64().unwrap()), (best, of(&all[0])));
    // It says that the score is of the items that chose, where it is better by them.
    let verdict = summary["verdict"].as_str().unwrap();
    assert!(verdict.contains("by mine/acc_norm"), "{verdict}");
    assert_eq!(verdict.contains("the same score chose the adapter"), best > of(&all[0]), "{verdict}");
    // Under another metric the earlier validations may lack what is asked for.
    let other = place.train(&["output_dir=plain", "training.max_steps=2", "training.save_steps=1"]);
    assert!(other.status.success());
    let refused =
        [&wanted[..], &["output_dir=plain", "training.max_steps=2", "training.learning_rate=0.01", "--resume"]];
    place.failure(&refused.concat()).says(2, &["which is best by mine/acc_norm is not known", "token_probability"]);
}

#[test]
fn a_run_that_is_stopped_within_its_tasks_goes_on_to_the_same_numbers() {
    let place = place();
    place.write_task(300);
    let steps = ["training.metric_for_best_model=mine/acc", "training.eval_steps=2", "evaluation.batch_tokens=16"];
    let wanted = [&TASKS[..], &steps].concat();
    let whole = last(&place.train(&[&wanted[..], &["output_dir=whole"]].concat()));
    let mut running = Running::start(place.training(&wanted));
    running.wait_for("step", 2);
    // Of the tasks: the event has no step.
    running.wait_for("items", 0);
    running.signal("INT");
    assert_eq!(running.end().0, Some(130));
    let stopped = validations(&place, "out");
    assert_eq!(stopped.len(), 1, "the validation after step 2 is still to come");
    let summary = last(&place.train(&[&wanted[..], &["--resume"]].concat()));
    place.assert_same("whole", "out");
    assert_eq!((&whole["tasks"], &whole["forgetting"]), (&summary["tasks"], &summary["forgetting"]));
    // Stopped within the tasks at the end, the adapter stands and `--resume` answers the rest.
    let at_end = [&TASKS[..], &["output_dir=end", "evaluation.batch_tokens=16"]].concat();
    let mut running = Running::start(place.training(&at_end));
    running.wait_for("items", 0);
    running.signal("INT");
    assert_eq!(running.end().0, Some(130));
    assert!(place.path("end/adapter_model.safetensors").exists() && place.path("end/README.md").exists());
    let summary = last(&place.train(&[&at_end[..], &["--resume"]].concat()));
    assert_eq!(summary["tasks"].as_array().unwrap().len(), 2);
    let left: Vec<_> = snapshot(&place.path("end/eval")).into_keys().collect();
    assert!(left.iter().all(|path| !path.to_string_lossy().contains(".part")), "{left:?}");
}

#[test]
fn scores_of_other_questions_do_not_choose_the_best_adapter() {
    let place = place();
    let metric = ["training.metric_for_best_model=mine/acc", "training.eval_steps=1", "training.lr_scheduler=constant"];
    let wanted = [&TASKS[..], &metric].concat();
    let begun = [&wanted[..], &["training.max_steps=2", "training.warmup_steps=0"]].concat();
    place.train(&[&begun[..], &["evaluation.limit=1"]].concat());
    let longer = [&wanted[..], &["training.max_steps=4", "training.warmup_steps=0", "--resume"]].concat();
    place.failure(&longer).says(2, &["the tasks or their documents changed", "mine/acc", "evaluation"]);
    place.train(&[&longer[..], &["evaluation.limit=1"]].concat());
    // By a number of the rows, other questions are no matter.
    let by_rows = [&longer[..], &["training.metric_for_best_model=cross_entropy", "training.max_steps=5"]].concat();
    place.train(&by_rows);
    // Their answers alone stand there, and what is not of the run stays.
    let samples = snapshot(&place.path("out/eval")).into_keys();
    assert_eq!(samples.filter(|path| path.to_string_lossy().contains("samples_")).count(), 2, "base and adapter, once");
    place.write("out/eval/notes.txt", "mine");
    place.train(&["--overwrite"]);
    let left: Vec<_> = snapshot(&place.path("out/eval")).into_keys().collect();
    assert_eq!(left, [place.path("out/eval/notes.txt")]);
}

#[test]
fn a_score_that_is_not_finite_is_never_the_best() {
    let place = place();
    // One word of many tokens: its perplexity overflows.
    let text = serde_json::json!({"text": "acgt".repeat(400)}).to_string() + "\n";
    place.write("text.jsonl", text);
    let task = "task: long\ndataset_path: json\ndataset_kwargs: {data_files: {test: text.jsonl}}\ntest_split: test\n\
                output_type: loglikelihood_rolling\ndoc_to_target: text\n";
    place.write("long.yaml", task);
    let wanted = [
        "evaluation.tasks=[long.yaml]",
        "training.metric_for_best_model=long/word_perplexity",
        "training.eval_steps=1",
        "training.learning_rate=1e-5",
    ];
    let summary = last(&place.train(&wanted));
    let scores: Vec<Value> =
        validations(&place, "out").iter().map(|validation| validation["tasks"][0]["value"].clone()).collect();
    assert!(scores.iter().all(Value::is_null), "{scores:?}");
    assert_eq!((&summary["best_step"], &summary["adapter_step"]), (&Value::Null, &4.into()));
    assert_eq!(summary["verdict"], "long/word_perplexity, which decides, is not a finite number");
}

#[test]
fn a_general_text_has_the_perplexity_that_eval_gives_it() {
    let place = place();
    // A step has twice as many tokens as the base has positions: a window of the text has all of these.
    let large = ["training.micro_batch_size=24", "data.max_seq_len=256"];
    let summary = last(&place.train(&[&large[..], &["training.learning_rate=0.05"]].concat()));
    let forgetting = &summary["forgetting"];
    let text = include_str!("../src/eval/general_text.txt").trim_end();
    place.write("text.jsonl", serde_json::json!({"text": text}).to_string() + "\n");
    let task = "task: general\ndataset_path: json\ndataset_kwargs: {data_files: {test: text.jsonl}}\ntest_split: test\n\
                output_type: loglikelihood_rolling\ndoc_to_target: text\n";
    place.write("general.yaml", task);
    let evaluated = place.command(&["eval", "out", "--tasks", "general.yaml", "--json", "--quiet"]).output().unwrap();
    let lines = String::from_utf8(evaluated.stdout).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let tokens = forgetting["tokens"].as_f64().unwrap();
    for (what, key) in [("base", "base_perplexity"), ("adapter", "perplexity")] {
        let of = lines.iter().find(|line| line["what"] == what).unwrap();
        let bits = of["rows"].as_array().unwrap().iter().find(|row| row["metric"] == "bits_per_byte").unwrap();
        let nats = bits["value"].as_f64().unwrap() * std::f64::consts::LN_2 * text.len() as f64;
        let perplexity = (nats / tokens).exp();
        let ours = forgetting[key].as_f64().unwrap();
        assert!((ours / perplexity - 1.0).abs() < 1e-9, "{what}: {ours}, and {perplexity} by eval");
    }
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_written() {
    let place = place();
    let metric = "training.metric_for_best_model=mine/acc";
    for (settings, phrases) in [
        (vec![metric], vec!["names no task", "tasks: [mine]"]),
        (vec![TASKS[0], metric, "evaluation.eval_strategy=end"], vec!["measures it once", "steps"]),
        (
            vec![TASKS[0], "training.metric_for_best_model=mine/f1"],
            vec!["has the metric `mine/f1`", "`mine/acc`, `mine/acc_norm`"],
        ),
        (vec!["evaluation.tasks=[none_such]"], vec!["none_such"]),
        (vec!["evaluation.eval_strategy=steps"], vec!["evaluation.eval_strategy", "there are no tasks"]),
        (vec![TASKS[0], "evaluation.limit=-1"], vec!["evaluation.limit", "whole number"]),
        (vec![TASKS[0], "evaluation.eval_strategy=steps", "data.validation=null"], vec!["holds out no rows"]),
        (vec!["evaluation.taks=[mine.yaml]"], vec!["`taks`", "tasks"]),
        (vec!["evaluation.tasks={a: 1}"], vec!["a name, or a list of names"]),
        (vec![TASKS[0], "training.metric_for_best_model=mine/acc,strict"], vec!["has the metric `mine/acc,strict`"]),
        (vec!["training.metric_for_best_model=accuracy_of_mine"], vec!["TASK/METRIC"]),
        (vec!["evaluation.tasks=[none_such]"], vec!["evaluation.include_path"]),
    ] {
        place.refused(&settings).says(2, &phrases);
    }
    place.write("rows.jsonl", "{\"question\": \"Which?\", \"answer\": 7}\n");
    place.refused(&[TASKS[0]]).says(2, &["task `mine`, document 0", "the target 7"]);
    let check = place.command(&["check", "trial.yaml", "--json", "--set", TASKS[0]]).output().unwrap();
    assert!(!check.status.success(), "`check` finds it too");
}

#[test]
fn a_comparison_of_objectives_has_the_recipes_tasks_and_what_was_forgotten() {
    let place = place();
    let arguments =
        ["objectives", "trial.yaml", "--objectives", "sft", "--seeds", "1", "--json", "--output-path", "out"];
    let settings = ["--set", TASKS[0], "--set", "evaluation.limit=6"];
    let output = place.command(&[&arguments[..], &settings].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table: Value = serde_json::from_slice(&std::fs::read(place.path("out/objectives.json")).unwrap()).unwrap();
    assert_eq!((&table["base_tasks"][0]["task"], &table["base_tasks"][0]["items"]), (&"mine".into(), &6.into()));
    let run = &table["runs"][0];
    // As the run itself has it.
    let recipe = format!("out/{}/recipe.yaml", run["folder"].as_str().unwrap());
    let alone = place.command(&["train", &recipe, "--set", "output_dir=again", "--json"]).output().unwrap();
    assert_eq!(last(&alone)["forgetting"], run["forgetting"]);
    let perplexity = run["forgetting"]["perplexity"].as_f64().unwrap();
    assert_eq!(table["objectives"][0]["general_text"]["mean"].as_f64().unwrap(), perplexity);
    let markdown = std::fs::read_to_string(place.path("out/objectives.md")).unwrap();
    assert!(markdown.contains("| general text |") && markdown.contains(&format!("| {perplexity:.2} |")), "{markdown}");
}

#[test]
fn options_are_asked_in_all_orders() {
    let place = place();
    // One of three options is always right, wherever it stands: what prefers a place is right in a third of all orders.
    let task = "task: orders\ndataset_path: json\ndataset_kwargs: {data_files: {test: orders.jsonl}}\ntest_split: test\n\
                output_type: multiple_choice\ndoc_to_text: \"{{question}} A. {{choices[0]}} B. {{choices[1]}} C. {{choices[2]}} Answer:\"\n\
                doc_to_choice: [A, B, C]\ndoc_to_target: answer\nmetric_list: [{metric: acc}, {metric: balanced_accuracy}, {metric: nll}, \
                {metric: ece}, {metric: aurc}, {metric: brier_score}]\n";
    place.write("orders.yaml", task);
    let row = |i: usize| serde_json::json!({"question": format!("Which is {i}?"), "choices": ["a gene", "a cell", "a process"], "answer": i % 3});
    place.write("orders.jsonl", (0..9).map(|i| row(i).to_string() + "\n").collect::<String>());
    let base = crate::support::workplace::embedded_base();
    let arguments = ["eval", base.to_str().unwrap(), "--tasks", "orders.yaml", "--option-shifts"];
    let output = place.command(&[&arguments[..], &["--json", "--quiet"]].concat()).output().unwrap();
    let report = last(&output);
    let choices = &report["choices"][0];
    // The metrics of the table and of the report are the same numbers.
    for (row, key) in
        report["rows"].as_array().unwrap().iter().zip(["accuracy", "balanced_accuracy", "nll", "ece", "aurc", "brier"])
    {
        let (table, report) = (row["value"].as_f64().unwrap(), choices[key].as_f64().unwrap());
        assert!((table - report).abs() < 1e-9, "{key}: {table} and {report}");
    }
    let taken: f64 = choices["places"].as_array().unwrap().iter().map(|place| place["taken"].as_f64().unwrap()).sum();
    assert!((taken - 1.0).abs() < 1e-12 && choices["places"][2]["choice"] == "C", "{choices}");
    let shifts: Vec<f64> =
        choices["shifts"]["accuracy"].as_array().unwrap().iter().map(|accuracy| accuracy.as_f64().unwrap()).collect();
    assert_eq!((shifts.len(), shifts[0]), (3, choices["accuracy"].as_f64().unwrap()));
    // The same by hand: the documents of the second order are those of a task of their own.
    let moved = |i: usize| serde_json::json!({"question": format!("Which is {i}?"), "choices": ["a process", "a gene", "a cell"], "answer": (i + 1) % 3});
    place.write("orders.jsonl", (0..9).map(|i| moved(i).to_string() + "\n").collect::<String>());
    let by_hand = last(&place.command(&[&arguments[..4], &["--json", "--quiet"]].concat()).output().unwrap());
    assert_eq!(by_hand["rows"][0]["value"].as_f64().unwrap(), shifts[1]);
    let shown = String::from_utf8(place.command(&arguments).output().unwrap().stdout).unwrap();
    assert!(shown.contains("the same option under all orders") && shown.contains("balanced"), "{shown}");
    // Yes and no stand in no field: that is said.
    let output =
        place.command(&["eval", base.to_str().unwrap(), "--tasks", "mine.yaml", "--option-shifts"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.contains("not every document has a field that holds them"), "{stderr}");
    // Options that no prompt shows have no order: all shifts would be the same.
    place.write(
        "orders.yaml",
        task.replace("doc_to_choice: [A, B, C]", "doc_to_choice: choices")
            .replace(" A. {{choices[0]}} B. {{choices[1]}} C. {{choices[2]}}", ""),
    );
    let output = place.command(&arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && stderr.contains("no prompt shows them"), "{stderr}");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!shown.contains("under all orders"), "{shown}");
}

/// A file of a folder that cannot be read is in the way of its own task alone.
#[test]
fn other_tasks_of_a_folder_may_be_broken() {
    let place = Workplace::new();
    let choices =
        "output_type: multiple_choice\ndoc_to_text: \"{{question}}\"\ndoc_to_choice: choices\ndoc_to_target: answer\n";
    let write = |name: &str, text: &str| {
        let path = place.path("tasks").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("rows.jsonl", "{\"question\": \"What?\", \"choices\": [\"a\", \"b\"], \"answer\": 1}\n");
    let data = "dataset_path: json\ndataset_kwargs: {data_files: {test: tasks/rows.jsonl}}\ntest_split: test\n";
    write("mine.yaml", &format!("task: mine\n{data}{choices}"));
    write("theirs/python.yaml", "task: theirs\nprocess_docs: !function utils.process\n");
    write("theirs/broken.yaml", "task: [\n");
    let base = crate::support::workplace::embedded_base();
    let eval = |task: &str| {
        let arguments = ["eval", base.to_str().unwrap(), "--include-path", "tasks", "--tasks", task];
        let done = place.command(&arguments).output().unwrap();
        // A terminal's width breaks lines.
        let words = String::from_utf8_lossy(&done.stderr).replace(['|', '\n'], " ");
        (done.status.code(), words.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let (code, said) = eval("mine");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = eval("theirs");
    assert!(code == Some(2) && said.contains("python.yaml") && said.contains("Python"), "{said}");
    // Nor is a tag, a pattern or a group scored over fewer tasks than it names.
    write("theirs/python.yaml", "task: theirs # not ours\ntag: some\nprocess_docs: !function utils.process\n");
    write("mine.yaml", &format!("task: mine\ntag: [some]\n{data}{choices}"));
    write("group.yaml", "group: both\ntask: [mine, theirs]\n");
    for task in ["some", "*e*s", "both"] {
        let (code, said) = eval(task);
        assert!(code == Some(2) && said.contains("python.yaml") && said.contains("Python"), "{task}: {said}");
    }
    // A later file of the name takes its place.
    write("zz.yaml", &format!("task: theirs\n{data}{choices}"));
    let (code, said) = eval("both");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("broken.yaml") && said.contains("the file is ignored, with any task in it"), "{said}");
    std::fs::remove_file(place.path("tasks/zz.yaml")).unwrap();
    let (code, said) = eval("thing");
    assert!(code == Some(2) && said.contains("there is no task `thing`"), "{said}");
    assert!(said.contains("these files cannot be read: tasks/theirs/broken.yaml,"), "{said}");
}
