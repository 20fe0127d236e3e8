//! `equipoise objectives`: a recipe under several objectives in one process.

use crate::support::workplace::{Running, Workplace, refusal};
use serde_json::Value;

/// The trial recipe, and a task of a few questions.
fn place() -> Workplace {
    let place = Workplace::new();
    place.write_task(12);
    place
}

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["objectives", "trial.yaml", "--json", "--tasks", "mine.yaml", "--output-path", "out"], more].concat()
}

/// The table; without what the clock decides.
fn table(place: &Workplace, folder: &str) -> Value {
    let text = std::fs::read_to_string(place.path(folder).join("objectives.json")).unwrap();
    let mut table: Value = serde_json::from_str(&text).unwrap();
    for list in ["objectives", "runs"] {
        for row in table[list].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("tokens_per_second");
        }
    }
    table["output"] = Value::Null;
    table
}

#[test]
fn each_run_is_the_one_that_train_would_make() {
    let place = place();
    let done =
        place.command(&arguments(&["--objectives", "sft,bft:group_normalized", "--seeds", "2"])).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(done.status.success() && said.contains("keys of `training` are ignored: eval_steps"), "{said}");
    let table = table(&place, "out");
    let runs = table["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        // The recipe in its folder alone gives the same adapter and the same numbers.
        let folder = format!("out/{}", run["folder"].as_str().unwrap());
        let recipe = format!("{folder}/recipe.yaml");
        let trained =
            place.command(&["train", &recipe, "--set", "output_dir=again", "--overwrite", "-q"]).output().unwrap();
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        place.assert_same(&folder, "again");
        let last = place.metrics("again").into_iter().rfind(|line| line["type"] == "validation").unwrap();
        assert_eq!(last["cross_entropy"], run["after"]["cross_entropy"]);
        assert!(!place.path(&folder).join("checkpoints").exists(), "nothing goes on from there");
        // And `eval` on it gives the same score.
        let eval = ["eval", &folder, "--tasks", "mine.yaml", "--json", "--quiet"];
        let eval = place.command(&eval).output().unwrap();
        let stdout = String::from_utf8(eval.stdout).unwrap();
        let adapter: Value = stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .find(|of: &Value| of["what"] == "adapter")
            .unwrap();
        assert_eq!(adapter["rows"][0]["value"], run["tasks"][0]["value"]);
    }
    // Rows and beginnings are the same for both objectives, and others with another seed.
    let before = |i: usize| &runs[i]["before"]["cross_entropy"];
    assert!(before(0) == before(1) && before(0) == before(2), "the base alone is the same");
    let first_step =
        |run: &Value| place.metrics(&format!("out/{}", run["folder"].as_str().unwrap()))[1]["cross_entropy"].clone();
    assert_eq!(first_step(&runs[0]), first_step(&runs[1]));
    assert_ne!(first_step(&runs[0]), first_step(&runs[2]));
    // A mean over seeds, and a paired test against the first.
    let second = &table["objectives"][1];
    let of_seeds: f64 = runs
        .iter()
        .filter(|run| run["objective"] == "bft:group_normalized")
        .map(|run| run["after"]["cross_entropy"].as_f64().unwrap())
        .sum();
    let mean = second["cross_entropy"]["mean"].as_f64().unwrap();
    assert!((mean - of_seeds / 2.0).abs() < 1e-12, "{second}");
    let paired = &second["tasks"][0]["against_first"];
    let score = |of: &Value| of["tasks"][0]["score"]["mean"].as_f64().unwrap();
    let difference = score(second) - score(&table["objectives"][0]);
    assert!((paired["difference"].as_f64().unwrap() - difference).abs() < 1e-12, "{paired}");
    assert_eq!(paired["items"], 12);
    // The tables that people read.
    let markdown = std::fs::read_to_string(place.path("out/objectives.md")).unwrap();
    for phrase in [
        "| base alone |",
        "| bft:group_normalized | ",
        "## mine: acc, 12 items",
        "## mine: acc_norm, 12 items",
        "(matched)",
        "a guess 0.5000",
        "The base knows some of the held-out answers: their",
        "Seeds: 42, 43",
    ] {
        assert!(markdown.contains(phrase), "no `{phrase}` in {markdown}");
    }
    let csv = std::fs::read_to_string(place.path("out/objectives.csv")).unwrap();
    assert_eq!(csv.lines().count(), 6, "a header, the base, four runs: {csv}");
}

#[test]
fn a_comparison_that_was_killed_goes_on_to_the_same_table_and_takes_more_seeds() {
    let place = place();
    let wanted = ["--objectives", "dft,sft", "--seeds", "2", "--set", "training.save_steps=2"];
    let whole: Vec<&str> = arguments(&wanted).iter().map(|word| if *word == "out" { "whole" } else { word }).collect();
    assert!(place.command(&whole).output().unwrap().status.success());
    let mut running = Running::start(place.command(&arguments(&wanted)));
    // In the second run.
    running.wait_for("next_run", 0);
    running.wait_for("next_run", 0);
    running.wait_for("step", 3);
    let beside = place.command(&[arguments(&wanted), vec!["--resume"]].concat()).output().unwrap();
    refusal(&beside).says(2, &["another process"]);
    running.signal("KILL");
    running.end();
    let output = place.command(&arguments(&wanted)).output().unwrap();
    refusal(&output).says(2, &["holds a comparison already", "--resume"]);
    let resumed = place.command(&[arguments(&wanted), vec!["--resume"]].concat()).output().unwrap();
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert_eq!(table(&place, "whole"), table(&place, "out"));
    place.assert_no_litter();
    // A third seed is added to what is there.
    let mut more = wanted;
    more[3] = "3";
    let output = place.command(&[arguments(&more), vec!["--resume"]].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(stdout.matches("\"event\":\"next_run\"").count(), 2, "two runs alone are new");
    assert_eq!(table(&place, "out")["runs"].as_array().unwrap().len(), 6);
    // Other questions are other tasks.
    let task = std::fs::read_to_string(place.path("mine.yaml")).unwrap();
    place.write("mine.yaml", task.replace("{{question}}", "Q: {{question}}"));
    let output = place.command(&[arguments(&wanted), vec!["--resume"]].concat()).output().unwrap();
    refusal(&output).says(2, &["a task or its documents changed", "--output-path"]);
    // Another recipe is another comparison.
    let other = [arguments(&wanted), vec!["--resume", "--set", "lora.r=2"]].concat();
    refusal(&place.command(&other).output().unwrap()).says(2, &["recipe.lora.r", "--output-path"]);
}

#[test]
fn each_objective_takes_the_best_of_several_learning_rates() {
    let place = place();
    let wanted =
        ["--objectives", "sft,dft", "--seeds", "1", "--learning-rates", "1e-5,3e-2", "--select-by", "cross_entropy"];
    let done = place.command(&arguments(&wanted)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let table = table(&place, "out");
    for objective in table["objectives"].as_array().unwrap() {
        let runs = table["runs"].as_array().unwrap().iter().filter(|run| run["objective"] == objective["objective"]);
        let best = runs.min_by(|a, b| {
            let loss = |run: &Value| run["after"]["cross_entropy"].as_f64().unwrap();
            loss(a).total_cmp(&loss(b))
        });
        let best = best.unwrap();
        assert_eq!(objective["learning_rate"], best["learning_rate"]);
        assert_eq!(best["tasks"].as_array().unwrap().len(), 2, "acc and acc_norm of the one that is taken");
    }
    let evaluated = table["runs"].as_array().unwrap().iter().filter(|run| !run["tasks"].as_array().unwrap().is_empty());
    assert_eq!(evaluated.count(), 2);
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_written() {
    let place = place();
    for (more, phrases) in [
        (&["--objectives", "sft,bff"][..], &["`bff` is not an objective", "bft:group_normalized"][..]),
        (&["--objectives", "sft,sft"], &["`sft` is named twice"]),
        (&["--objectives", "bft:token_weight_flor=0.1"], &["token_weight_flor", "cannot be read"]),
        (&["--objectives", "bft:token_weight_floor=7"], &["token_weight_floor", "from 0 to 1"]),
        (&["--objectives", "sft:alpha=1"], &["`alpha`", "does nothing under `sft`"]),
        (&["--objectives", "dft:group_normalized"], &["`token_weighting`", "does nothing under `dft`"]),
        (&["--objectives", "bft,bft:token_weighting=probability"], &["is the same as `bft`"]),
        (&["--seeds", "0"], &["--seeds"]),
        (&["--set", "data.validation_seed=1"], &["data.validation_seed", "data.validation_split"]),
        (&["--learning-rates", "2"], &["a rate such as 2e-4"]),
        (&["--set", "data.validation=null"], &["holds out no rows", "validation_split"]),
    ] {
        let output = place.command(&arguments(more)).output().unwrap();
        refusal(&output).says(2, phrases);
        assert!(!place.path("out").exists(), "{more:?}");
    }
}
