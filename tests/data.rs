//! What a user sees of data: the command, token files, packing, chat templates that are not the base's.

use crate::support::workplace::{Workplace, embedded_base, snapshot};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// `data` on the trial recipe; a word with `=` in it is a `--set`.
fn data(place: &Workplace, arguments: &[&str]) -> Value {
    let mut all = vec!["data", "trial.yaml", "--json"];
    for argument in arguments {
        if argument.contains('=') {
            all.push("--set");
        }
        all.push(argument);
    }
    let output = place.command(&all).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn rows_are_shown_as_the_model_sees_them() {
    let place = Workplace::new();
    let told = data(&place, &["--show", "2", "data.max_seq_len=256"]);
    assert_eq!((&told["data"]["train_rows"], &told["data"]["validation_rows"]), (&24.into(), &6.into()));
    let rows = told["rows"].as_array().unwrap();
    let splits: Vec<&str> = rows.iter().map(|row| row["split"].as_str().unwrap()).collect();
    assert_eq!(splits, ["train", "train", "validation", "validation"]);
    let first: Value =
        serde_json::from_str(std::fs::read_to_string(place.path("train.jsonl")).unwrap().lines().next().unwrap())
            .unwrap();
    let segments = rows[0]["segments"].as_array().unwrap();
    let learnt: String =
        segments.iter().filter(|piece| piece[1] == true).map(|piece| piece[0].as_str().unwrap()).collect();
    let given: String =
        segments.iter().filter(|piece| piece[1] == false).map(|piece| piece[0].as_str().unwrap()).collect();
    assert!(learnt.starts_with(first["output"].as_str().unwrap()), "{learnt}");
    assert!(given.contains(first["instruction"].as_str().unwrap()), "{given}");
    let text = place.command(&["data", "trial.yaml", "--set", "data.max_seq_len=256"]).output().unwrap();
    let text = String::from_utf8(text.stdout).unwrap();
    for phrase in ["alpaca (by the first row's", "24 to train on, 6 to validate on", "█", "[[", "duplicate rows"] {
        assert!(text.contains(phrase), "no `{phrase}` in {text}");
    }
}

#[test]
fn packed_and_grouped_runs_go_on_to_the_same_bytes() {
    let place = Workplace::new();
    for (name, setting) in [("packed", "data.packing=true"), ("grouped", "data.group_by_length=true")] {
        let settings = [setting, "training.max_steps=9", "data.max_seq_len=200", "training.micro_batch_size=1"];
        let (whole, part) = (format!("output_dir={name}"), format!("output_dir={name}-part"));
        place.train(&[&settings[..], &[whole.as_str()]].concat());
        place.train(&[&settings[..], &[part.as_str()]].concat());
        // As if it had been stopped in the middle of the second epoch: the last checkpoints are gone.
        let folder = place.path(&format!("{name}-part"));
        std::fs::remove_file(folder.join("adapter_model.safetensors")).unwrap();
        let mut steps: Vec<PathBuf> =
            std::fs::read_dir(folder.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
        steps.sort();
        std::fs::remove_dir_all(steps.pop().unwrap()).unwrap();
        place.train(&[&settings[..], &[part.as_str(), "--resume"]].concat());
        place.assert_same(name, &format!("{name}-part"));
    }
    assert!(place.adapter("packed") != place.adapter("grouped"));
}

#[test]
fn kept_tokens_change_no_bit_of_a_run() {
    let place = Workplace::new();
    place.train(&["output_dir=without", "data.cache=off"]);
    place.train(&["output_dir=first", "data.cache=tokens"]);
    let files = snapshot(&place.path("tokens"));
    assert_eq!(files.len(), 2, "a file for each source");
    place.train(&["output_dir=second", "data.cache=tokens"]);
    assert_eq!(snapshot(&place.path("tokens")), files);
    place.assert_same("without", "first");
    place.assert_same("first", "second");
    place.refused(&["data.cache=train.jsonl"]).says(2, &["train.jsonl", "data.cache"]);
}

#[test]
fn another_chat_template_goes_with_the_adapter() {
    let place = Workplace::new();
    let template = place.path("out/chat_template.jinja");
    place.write("own.jinja", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}");
    place.train(&["data.chat_template=own.jinja"]);
    assert_eq!(std::fs::read(&template).unwrap(), std::fs::read(place.path("own.jinja")).unwrap());
    let told = data(&place, &["data.chat_template=own.jinja"]);
    assert_eq!(told["rows"][0]["segments"][0][0].as_str().unwrap().get(..6), Some("<user>"));
    // The adapter is asked as it was taught, whatever becomes of the recipe's file.
    std::fs::remove_file(place.path("own.jinja")).unwrap();
    let ask = |more: &[&str]| {
        let arguments = [&["generate", "out", "what", "--json", "--max-tokens", "1"], more].concat();
        let told = place.command(&arguments).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        serde_json::from_slice::<Value>(&told.stdout).unwrap()["prompt_tokens"].as_u64().unwrap()
    };
    assert_ne!(ask(&[]), ask(&["--raw"]));
    place.train(&["--overwrite"]);
    assert!(!template.exists(), "the base's own template needs no file");
    place.refused(&["data.chat_template=chatmi", "output_dir=x"]).says(2, &["chatmi", "did you mean `chatml`"]);
    place.write("broken.jinja", "{% if %}");
    place
        .refused(&["data.chat_template=broken.jinja", "output_dir=x"])
        .says(2, &["data.chat_template", "broken.jinja"]);
}

#[test]
fn sources_that_contradict_themselves_are_refused_with_their_key() {
    let place = Workplace::new();
    for (setting, phrases) in [
        ("data.train={path: train.jsonl, hub: a/b}", &["data.train", "not both"][..]),
        ("data.train={weight: 2}", &["data.train", "`path` or `hub`"]),
        ("data.train=[]", &["data.train", "is empty"]),
        ("data.train={path: train.jsonl, weight: 0}", &["`weight` must be above 0"]),
        ("data.train={path: train.jsonl, limit: 0}", &["`limit` must be at least 1"]),
        ("data.train={path: train.jsonl, split: test}", &["`split`", "`hub`"]),
        ("data.train={path: train.jsonl, formt: chat}", &["unknown key `formt`", "did you mean `format`?"]),
        ("data.train={path: train.jsonl, columns: [a, a]}", &["different names"]),
        ("data.validation={path: validation.jsonl, weight: 2}", &["data.validation", "no weights"]),
        ("data.template={user: '{% if %}', assistant: x}", &["data.template.user"]),
        ("data.fields={nonsense: x}", &["data.fields", "nonsense"]),
        ("data.train=[train.jsonl, train.parquet]", &["train.parquet: there is no such file", "train.jsonl"]),
    ] {
        place.refused(&[setting]).says(2, phrases);
    }
    place.refused(&["data.packing=true", "data.group_by_length=true"]).says(2, &["data.group_by_length", "keep one"]);
}

/// Each recipe on the data that it is for, where that is at hand: all of it is read, and something is learnt of it.
#[test]
fn the_recipes_read_the_data_that_they_are_for() {
    let shared =
        std::env::var("EQUIPOISE_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into());
    let root = Path::new(&shared).join("data");
    if !root.exists() {
        println!("skipped: {} is not there", root.display());
        return;
    }
    let place = Workplace::new();
    std::os::unix::fs::symlink(&root, place.path("data")).unwrap();
    let go = "data/gene_ontology/go_bp_genesets_direct.jsonl";
    for (recipe, format, rows, set) in [
        ("medquad", "question_answer", 14_697, None),
        ("pubmedqa", "question_answer", 500, None),
        ("bioasq", "question_answer", 1983, None),
        ("gene-set-process", "template", 6882, Some(format!("data.train={go}"))),
        ("go-definitions", "template", 35_140 + 20_598, None),
        ("medical-mcq", "multiple_choice", 1089, None),
        ("gene-summaries", "text", 12_848, None),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("recipes/{recipe}.yaml"));
        let base = format!("base.model={}", embedded_base().display());
        let mut arguments = vec!["data", path.to_str().unwrap(), "--json", "--set", &base, "--set", "data.cache=off"];
        arguments.extend(["--set", "data.max_seq_len=512"]);
        arguments.extend(set.iter().flat_map(|set| ["--set", set.as_str()]));
        let output = place.command(&arguments).output().unwrap();
        assert!(output.status.success(), "{recipe}: {}", String::from_utf8_lossy(&output.stdout));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let data = &told["data"];
        assert_eq!(data["rows"], rows, "{recipe}");
        assert_eq!(data["eos_unsupervised_rows"], 0, "{recipe}");
        assert!(data["sources"][0]["format"].as_str().unwrap().starts_with(format), "{recipe}: {data}");
        assert!(data["supervised_tokens"].as_u64().unwrap() > 0, "{recipe}");
        assert_eq!(data["leaks"], 0, "{recipe}: what is held out is not learnt");
    }
}
