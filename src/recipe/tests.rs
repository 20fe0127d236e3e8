use super::*;
use crate::error::Located;
use crate::export::lint::Server;
use crate::nn::TargetModules;
use crate::objectives::ObjectiveKind;
use proptest::prelude::*;

const LEAST: &str = "base:\n  model: org/name\ndata:\n  train: rows.jsonl\n";

fn parse(text: &str) -> Result<Recipe> {
    Recipe::parse(text, Path::new("recipes/x.yaml"), &[])
}

fn set(overrides: &[&str]) -> Result<Recipe> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    Recipe::parse(LEAST, Path::new("recipes/x.yaml"), &overrides)
}

#[track_caller]
fn located(result: Result<Recipe>) -> Located {
    match result {
        Err(Error::Located(located)) => *located,
        other => panic!("expected a located error, got {other:?}"),
    }
}

/// The least recipe with `more` below it: the message, the blamed stretch of the line, and the help.
#[track_caller]
fn blamed(more: &str) -> (String, String, String) {
    let error = located(parse(&format!("{LEAST}{more}")));
    let stretch = error.text.chars().skip(error.column - 1).take(error.width).collect();
    (error.message, stretch, error.help.unwrap_or_default())
}

#[test]
fn the_least_recipe_has_the_defaults() {
    let recipe = parse(LEAST).unwrap();
    assert_eq!(recipe.name, "x");
    assert_eq!(recipe.output_dir, Path::new("adapters/x"));
    assert_eq!(recipe.training, TrainingConfig::default());
    assert_eq!(recipe.lora, LoraConfig::default());
    assert_eq!(recipe.device, DeviceConfig::Auto);
    assert_eq!(recipe.objective.kind, ObjectiveKind::Sft);
}

/// A recipe with BFT's settings and no type meant BFT: it does not train under the default without a word.
#[test]
fn settings_of_an_objective_want_its_type() {
    for (settings, key, types) in [
        ("group_size: 64", "group_size", "`type: bft`"),
        ("sample_weighting: none", "sample_weighting", "`type: bft`"),
        ("alpha: 0.5", "alpha", "`type: eaft` or `type: asft`"),
        ("q: 1", "q", "`type: prob`"),
    ] {
        let (message, stretch, help) = blamed(&format!("objective:\n  {settings}\n"));
        assert!(message.contains(&format!("objective.{key}: does nothing without `objective.type`")), "{message}");
        assert!(settings.ends_with(&stretch) && help.contains(types), "{stretch}: {help}");
    }
    assert_eq!(parse(&format!("{LEAST}objective: {{}}\n")).unwrap(), parse(LEAST).unwrap());
    // What is proposed for the keys of others has the type, and is read.
    for (theirs, ours) in [
        ("bft_group_size: 8", "type: bft\n  group_size: 8"),
        ("asft_alpha: 0.5", "type: asft\n  alpha: 0.5"),
        ("eaft_alpha: 1\neaft_k: 5", "type: eaft\n  alpha: 1\n  k: 5"),
        ("prob_threshold: 0.2", "type: profit\n  threshold: 0.2"),
        ("use_eaft_loss: true\neaft_alpha: 1", "type: eaft\n  alpha: 1"),
    ] {
        let help = blamed(&format!("{theirs}\n")).2;
        let written = help.split_once("write:\n").unwrap().1;
        assert_eq!(written, format!("objective:\n  {ours}"), "{theirs}");
        parse(&format!("{LEAST}{written}\n")).unwrap();
    }
    // Of one that is switched off, and of two at once, none is written.
    for theirs in
        ["use_eaft_loss: false\neaft_alpha: 1", "bft_group_size: 8\neaft_alpha: 1", "eaft_alpha: 1\nasft_alpha: 2"]
    {
        let help = blamed(&format!("{theirs}\n")).2;
        assert!(!help.contains("write:") && help.contains("this is `objective."), "{help}");
    }
    let typed = parse(&format!("{LEAST}objective:\n  group_size: 64\n  type: bft\n")).unwrap();
    assert_eq!((typed.objective.kind, typed.objective.group_size), (ObjectiveKind::Bft, 64));
}

#[test]
fn numbers_are_numbers_however_they_are_written() {
    for (text, value) in
        [("1e-4", 1e-4), ("2e-4", 2e-4), ("2.0E-4", 2e-4), ("1E-4", 1e-4), ("1", 1.0), (".5", 0.5), ("+0.1", 0.1)]
    {
        let recipe = parse(&format!("{LEAST}training:\n  learning_rate: {text}\n")).expect(text);
        assert_eq!(recipe.training.learning_rate, value, "{text}");
    }
    assert_eq!(parse(&format!("{LEAST}training:\n  epochs: 3\n")).unwrap().training.epochs, 3.0);
}

#[test]
fn harmless_oddities_are_read() {
    let windows = format!("\u{feff}# Grüße\r\n{}", LEAST.replace('\n', "\r\n"));
    assert_eq!(parse(&windows).unwrap(), parse(LEAST).unwrap());
    let empty_sections = format!("---\n{LEAST}lora:\n  # r: 8\ntraining: ~\n");
    assert_eq!(parse(&empty_sections).unwrap(), parse(LEAST).unwrap());
    let tags = LEAST.replace("base:", "base: !x").replace("org/name", "!!str org/name") + "lora: !y {r: !z 16}\n";
    assert_eq!(parse(&tags).unwrap(), parse(LEAST).unwrap());
    let anchors = "base: {model: &m org/name}\ndata: {train: rows.jsonl}\nname: x\n";
    assert_eq!(parse(anchors).unwrap(), parse(LEAST).unwrap());
}

#[test]
fn the_resolved_recipe_loads_again_to_the_same() {
    let recipe = set(&[
        "name=other.name-2",
        "lora.target_modules=[q_proj, v_proj]",
        "training.learning_rate=3.3e-5",
        "training.max_steps=7",
        "data.validation=v.jsonl",
        "device=cuda:1",
        "compute=bf16",
        "output_dir=/tmp/a b",
        "quantization.type=q4_k",
    ])
    .unwrap();
    let yaml = recipe.to_yaml().unwrap();
    assert!(yaml.contains("adam_beta2: 0.999"), "{yaml}");
    assert_eq!(Recipe::parse(&yaml, Path::new("recipes/x.yaml"), &[]).unwrap(), recipe);
}

#[test]
fn overrides_apply_in_order_and_make_sections() {
    let recipe =
        set(&["lora.r=8", "training={seed: 1, epochs: 2}", "training.seed=2", "lora.target_modules=[q_proj]"]).unwrap();
    assert_eq!((recipe.lora.r, recipe.training.seed, recipe.training.epochs), (8, 2, 2.0));
    assert_eq!(recipe.lora.target_modules, TargetModules::Names(vec!["q_proj".into()]));
}

#[test]
fn a_changed_value_is_told_and_changes_the_hash_but_its_place_does_not() {
    let plain = set(&[]).unwrap();
    let moved = set(&["name=y", "output_dir=z", "export.for=[vllm, lorax]"]).unwrap();
    assert_eq!(moved.export.servers, [Server::Vllm, Server::Tgi]);
    let result = |now: &Recipe, before: &Recipe| now.differences(before, KeyKind::Result);
    assert_eq!((result(&plain, &moved), plain.hash()), (vec![], moved.hash()));
    let changed = set(&["training.seed=43", "training.max_steps=5", "lora.target_modules=[q_proj]"]).unwrap();
    assert_ne!(changed.hash(), plain.hash());
    assert_eq!(
        result(&changed, &plain),
        [r#"lora.target_modules: ["q_proj"] (was "all-linear")"#, "training.seed: 43 (was 42)"]
    );
    assert_eq!(result(&plain, &changed).len(), 2);
    // The schedule is compared step by step, and what is measured or saved may change.
    assert_eq!(changed.differences(&plain, KeyKind::Schedule), ["training.max_steps: 5 (was null)"]);
    let saved = set(&["training.save_steps=3", "training.eval_steps=2", "hub.repo=me/mine"]).unwrap();
    assert_eq!(saved.hash(), plain.hash());
    // What is said of a run has all of it: whoever has the file can compute it.
    let longer = set(&["training.max_steps=5"]).unwrap();
    assert_eq!(longer.hash(), plain.hash());
    assert_ne!(longer.sha256().unwrap(), plain.sha256().unwrap());
    let free = saved.differences(&plain, KeyKind::Free);
    assert!(free.contains(&"training.save_steps: 3 (was 0)".to_owned()) && free.len() >= 3, "{free:?}");
}

#[test]
fn unknown_keys_are_answered_with_ours() {
    let (message, stretch, help) = blamed("lora_rank: 16\n");
    assert_eq!((message.as_str(), stretch.as_str()), ("unknown key `lora_rank` at the top of the recipe", "lora_rank"));
    assert_eq!(help, "this is `lora.r` here\nwrite:\nlora:\n  r: 16");
    let (message, _, help) = blamed("lora:\n  learning_rate: 1e-3\n");
    assert_eq!(message, "unknown key `learning_rate` in section `lora`");
    assert!(help.starts_with("it belongs under `training:`\nwrite:\ntraining:\n  learning_rate: 0.001"), "{help}");
    let (_, _, help) = blamed("training:\n  lerning_rate: 1e-3\n");
    assert!(help.starts_with("did you mean `learning_rate`?\nthe keys of `training`: epochs, max_steps"), "{help}");
    let (_, _, help) = blamed("training:\n  lora:\n    r: 8\n");
    assert!(help.contains("stands at the top of the recipe"), "{help}");
    let (_, _, help) = blamed("load_in_4bit: true\ngradient_checkpointing: true\nlora_target: \"q_proj,v_proj\"\n");
    assert!(help.contains("quantization:\n  type: q4_k\ntraining:\n  gradient_checkpointing: layer\nlora:\n  target_modules: [q_proj, v_proj]"), "{help}");
    let error = located(set(&["lora_r=8"]));
    assert_eq!((error.path.to_str(), error.text.as_str(), error.width), (Some("--set"), "lora_r=8", 6));
    assert_eq!(error.help.as_deref(), Some("this is `lora.r` here\nwrite --set lora.r=8"));
}

#[test]
fn wrong_values_are_told_with_what_fits() {
    let cases = [
        (
            "training:\n  learning_rate: fast # x\n",
            "training.learning_rate: expected a number, got the string `fast`",
            "fast",
        ),
        ("training:\n  learning_rate: \"1e-4\"\n", "leave the quotes away: `learning_rate: 1e-4`", "\"1e-4\""),
        ("training:\n  warmup_ratio: 3%\n", "write `warmup_ratio: 0.03`", "3%"),
        ("training:\n  seed: 1_000\n", "write `seed: 1000`", "1_000"),
        ("training:\n  max_steps: 1e3\n", "write `max_steps: 1000`", "1e3"),
        ("training:\n  max_steps: 010\n", "write `max_steps: 10`", "010"),
        ("training:\n  max_steps: -1\n", "expected a whole number, at least 0, got the number -1", "-1"),
        ("training:\n  learning_rate:\n", "or delete the line to have the default, 0.0002", "learning_rate"),
        ("lora:\n  use_rslora: yes\n", "write `use_rslora: true`", "yes"),
        ("lora:\n  r: 16.5\n", "lora.r: expected a whole number, at least 1, got the number 16.5", "16.5"),
        ("lora:\n  target_modules: all\n", "write `all-linear`", "all"),
        ("lora:\n  target_modules: q_proj, v_proj\n", "target_modules: [q_proj, v_proj]", "q_proj, v_proj"),
        ("training:\n  lr_scheduler: cosin\n", "training.lr_scheduler: there is no `cosin`", "cosin"),
        ("training:\n  lr_scheduler: cosin\n", "did you mean `cosine`?\none of constant, linear, cosine", "cosin"),
        ("quantization:\n  type: Q4_K_M\n", "write `q4_k`", "Q4_K_M"),
        ("quantization:\n  type: 4\n", "write `q4_k`", "4"),
        ("training:\n  gradient_checkpointing: true\n", "write `layer`", "true"),
        ("objective: sft\n", "write:\nobjective:\n  type: sft", "sft"),
        ("export:\n  for: [vllm, llama.cpp]\n", "`llama.cpp` is not a server that adapters", "llama.cpp"),
        ("export:\n  for: [vllm, llama.cpp]\n", "did you mean `llamacpp`?", "llama.cpp"),
        ("export:\n  for: vllm\n", "export.for: expected a list of servers", "vllm"),
        ("export:\n  for: vllm\n", "a list goes in brackets: `for: [vllm]`", "vllm"),
        ("export:\n  for: ollamaa\n", "got the string `ollamaa`\ndid you mean `for: [ollama]`?", "ollamaa"),
        ("export:\n  for: vllm, ollamaa\n", "did you mean `for: [vllm, ollama]`?", "vllm, ollamaa"),
        ("export:\n  for: triton\n", "the servers: vllm, sglang", "triton"),
        ("device: gpu\n", "write `cuda`", "gpu"),
        ("name: 12\n", "put it in quotes: `name: \"12\"`", "12"),
        ("name: ../x\n", "name: `../x` is not a name for a folder", "../x"),
        ("lora:\n  r: 0\n", "lora.r: must be at least 1", "0"),
        ("training:\n  learning_rate: .nan\n", "training.learning_rate: must be a number above 0", ".nan"),
        ("output_dir: \"\"\n", "output_dir: is empty", "\"\""),
    ];
    for (more, expected, stretch) in cases {
        let (message, got, help) = blamed(more);
        let all = format!("{message}\n{help}");
        assert!(all.contains(expected), "{more}: {all}");
        assert_eq!(got, stretch, "{more}: {all}");
    }
}

#[test]
fn an_override_is_blamed_for_what_it_breaks() {
    let cases = [
        ("lora.r", "expected `section.key=value`"),
        ("=1", "expected `section.key=value`"),
        ("lora.r=", "expected a whole number, at least 1, got nothing"),
        ("lora.r=[1", "the value is not YAML"),
        ("lora.r=0", "lora.r: must be at least 1"),
        ("lora.r.x=1", "unknown key"),
        ("base.model.x=1", "`base.model` holds a value"),
        ("training={sed: 1}", "unknown key `sed` in section `training`"),
        ("lora.target_modules=[1]", "lora.target_modules"),
        ("device=cuda:-1", "`cuda:-1` is not a device"),
    ];
    for (text, expected) in cases {
        if text == "lora.r.x=1" {
            assert!(located(set(&["lora.r=1", text])).message.contains("`lora.r` holds a value"));
            continue;
        }
        let error = located(set(&[text]));
        assert!(error.message.contains(expected), "{text}: {}", error.message);
        assert_ne!(error.help.as_deref(), Some(""), "{text}: help that says nothing");
        assert_eq!((error.path.to_str(), error.line, error.text.as_str()), (Some("--set"), 1, text));
    }
    let deep = format!("{}=1", vec!["a"; 100_000].join("."));
    assert_eq!(located(set(&[&deep])).path, Path::new("--set"));
}

#[test]
fn what_is_no_recipe_is_told_apart() {
    let cases = [
        ("", "the recipe is empty", 1),
        ("# nothing\n", "the recipe is empty", 1),
        ("- a\n- b\n", "expected keys and values, got a list", 1),
        ("just text\n", "expected keys and values, got the string `just text`", 1),
        ("base:\n\tmodel: x\n", "a tab indents this line", 2),
        ("base:\n  model: x\n file: y\n", "not valid YAML", 3),
        ("base:\n  model: x\n  model: y\n", "the key `base.model` stands here for the second time", 3),
        ("base:\n  model: x\n---\nbase:\n", "a second document begins here", 3),
        ("base: {model: x\ndata: y\n", "not valid YAML", 2),
        ("base: {model: x}\n", "the recipe names no data", 1),
        ("# c\ndata: {train: x}\n", "the recipe names no base model", 2),
        ("base: {file: x}\ndata: {train: x}\n", "`base.model` is missing", 1),
        ("base:\ndata: {train: x}\n", "the recipe names no base model", 1),
        ("base: *x\n", "unknown anchor", 1),
    ];
    for (text, expected, line) in cases {
        let error = located(parse(text));
        assert!(error.message.contains(expected), "{text:?}: {}", error.message);
        assert_eq!(error.line, line, "{text:?}: {}", error.message);
        assert!(error.help.is_some(), "{text:?}: {}", error.message);
    }
    let glued = located(parse("base:\n  model:x\n  file: y\n"));
    assert!(glued.help.as_deref().unwrap_or_default().contains("wants a space after the `:`"), "{glued:?}");
}

#[test]
fn bombs_do_not_go_off() {
    let mut laughs = vec!["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]".to_owned()];
    for level in 1..12 {
        let below = vec![format!("*a{}", level - 1); 9].join(", ");
        laughs.push(format!("a{level}: &a{level} [{below}]"));
    }
    assert!(located(parse(&laughs.join("\n"))).help.unwrap_or_default().contains("aliases"));
    let hostile = [
        "[".repeat(500_000),
        "{a: ".repeat(200_000),
        "- ".repeat(400_000),
        "a: &x {b: *x}\n".into(),
        "a\n: ".repeat(10_000),
    ];
    let began = std::time::Instant::now();
    for text in hostile {
        assert!(parse(&text).is_err());
    }
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    let many: Vec<String> = (0..50_000).map(|number| format!("key{number}: {number}")).collect();
    let error = located(parse(&many.join("\n")));
    assert!(error.help.unwrap_or_default().lines().count() < 60);
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one.yaml"), LEAST).unwrap();
    let missing = Recipe::load(&folder.path().join("two.yaml"), &[]).unwrap_err();
    assert!(missing.help().unwrap_or_default().contains("one.yaml"), "{missing:?}");
    assert!(Recipe::load(folder.path(), &[]).unwrap_err().help().unwrap_or_default().contains("one.yaml"));
    let binary = folder.path().join("binary.yaml");
    std::fs::write(&binary, b"base:\n  model: \"\xff\"\n").unwrap();
    let error = located(Recipe::load(&binary, &[]));
    assert_eq!((error.line, error.column), (2, 11));
    let huge = folder.path().join("huge.yaml");
    std::fs::write(&huge, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Recipe::load(&huge, &[]).unwrap_err().to_string().contains("over 1 MiB"));
    let spaced = folder.path().join("my recipe.yaml");
    std::fs::write(&spaced, LEAST).unwrap();
    assert!(located(Recipe::load(&spaced, &[])).help.unwrap_or_default().contains("name: my-recipe"));
}

#[test]
fn an_upload_is_no_part_of_the_result() {
    let plain = parse(LEAST).unwrap();
    let uploaded = parse(&format!("{LEAST}hub:\n  repo: me/mine\n  license: mit\n")).unwrap();
    assert!(uploaded.hub.as_ref().unwrap().private);
    assert_eq!(plain.hash(), uploaded.hash());
    assert_eq!(uploaded.differences(&plain, KeyKind::Result), Vec::<String>::new());
    let again = Recipe::parse(&uploaded.to_yaml().unwrap(), Path::new("recipes/x.yaml"), &[]).unwrap();
    assert_eq!(again, uploaded);
}

#[test]
fn a_mistake_in_the_upload_is_shown_at_its_place() {
    let (message, stretch, help) = blamed("hub:\n  repo: mine\n");
    assert!(message.starts_with("hub.repo:") && help.contains("USER/mine"), "{message} {help}");
    assert_eq!(stretch, "mine");
    let (message, _, help) = blamed("hub:\n  private: true\n");
    assert!(message.contains("`hub.repo` is missing") && help.contains("repo, private"), "{message} {help}");
    for (key, ours) in [
        ("hub_model_id: me/mine", "hub:\n  repo: me/mine"),
        ("hub_private_repo: false", "hub:\n  private: false"),
        ("hub_revision: v2", "hub:\n  revision: v2"),
    ] {
        let (_, _, help) = blamed(&format!("{key}\n"));
        assert!(help.ends_with(ours), "{key}: {help}");
    }
    let (_, _, help) = blamed("push_to_hub: true\n");
    assert!(help.contains("`hub.repo`"), "{help}");
    let (_, _, help) = blamed("revision: v2\n");
    assert!(help.contains("base.model: org/name@revision") && help.contains("`hub.revision`"), "{help}");
    // A token in a recipe is answered, and not shown anywhere but in its own line.
    for key in ["token", "hf_token", "hub_token"] {
        let (message, _, help) = blamed(&format!("hub:\n  repo: me/mine\n  {key}: hf_secret\n"));
        assert!(help.contains("HF_TOKEN") && !format!("{message}{help}").contains("hf_secret"), "{help}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "(?s).{0,200}", set in ".{0,40}") {
        let _ = parse(&text);
        let _ = Recipe::parse(LEAST, Path::new("x.yaml"), &[set]);
    }

    #[test]
    fn arbitrary_yaml_like_text_never_panics(
        lines in prop::collection::vec("[ ]{0,4}(base|lora|training|data|r|model|lr|type|\\?|-|<<|&a|\\*a|!t)?(:|: | )(\\[|\\{|\\}|\\]|\"|'|\\||>|#|é|1e-4|-1|~|a|,|\t){0,3}", 0..12)
    ) {
        let _ = parse(&lines.join("\n"));
        let _ = parse(&format!("{LEAST}{}", lines.join("\n")));
    }

    #[test]
    fn arbitrary_values_are_refused_at_their_place(value in "[ -~]{1,30}", key in 0usize..30) {
        let keys: Vec<String> = keys::keys_of("").iter().flat_map(|section| keys::keys_of(section).iter().map(move |key| format!("{section}.{key}"))).collect();
        let text = format!("{}={value}", keys[key % keys.len()]);
        if let Err(error) = Recipe::parse(LEAST, Path::new("x.yaml"), &[text]) {
            prop_assert!(matches!(&error, Error::Located(at) if at.path == Path::new("--set")), "{error:?}");
        }
    }
}

#[test]
fn a_decimal_comma_is_answered_with_a_point() {
    for (key, typed, write) in [
        (
            "training.learning_rate",
            "0,0002",
            "a number has a decimal point, not a comma: write `learning_rate: 0.0002`",
        ),
        (
            "training.learning_rate",
            "2,5e-4",
            "a number has a decimal point, not a comma: write `learning_rate: 2.5e-4`",
        ),
        ("training.epochs", "1,5", "a number has a decimal point, not a comma: write `epochs: 1.5`"),
        ("training.epochs", "1,500", "write `epochs: 1.500`, or `epochs: 1500`"),
        ("training.epochs", "1.234,5", "a number has a decimal point, not a comma: write `epochs: 1234.5`"),
        ("training.max_steps", "1,000", "write `max_steps: 1000`"),
        ("training.max_steps", "1,000,000", "write `max_steps: 1000000`"),
        ("training.max_steps", "1_000", "write `max_steps: 1000`"),
    ] {
        let error = located(set(&[&format!("{key}={typed}")]));
        assert_eq!(error.help.as_deref(), Some(write), "{key}={typed}: {}", error.message);
        // What the help says is accepted; where it names two, both are.
        for fixed in write.split('`').filter(|text| text.contains(": ")).filter_map(|text| text.split_once(": ")) {
            if fixed.1.parse::<f64>().is_ok() && (key != "training.max_steps" || !fixed.1.contains('.')) {
                set(&[&format!("{key}={}", fixed.1)]).unwrap();
            }
        }
    }
}

#[test]
fn keys_of_others_lead_on() {
    for (key, says) in [
        ("overwrite_output_dir", "--overwrite"),
        ("lora_model_dir", "lora.init_from"),
        ("adapter_name_or_path", "lora.init_from"),
        ("greater_is_better", "training.metric_for_best_model"),
    ] {
        let error = located(parse(&format!("{LEAST}{key}: x\n")));
        let text = format!("{} {}", error.message, error.help.unwrap_or_default());
        assert!(text.contains(says), "{key}: {text}");
    }
    for (setting, says) in [
        ("device=mps", "write `cpu`"),
        ("objective.type=dpo", "preference and reward training are not built"),
        ("training.metric_for_best_model=eval_loss", "write `cross_entropy`"),
        ("lora.r=8.5", "at least 1"),
        ("training.adam_epsilon=1e-300", "got 1e-300"),
    ] {
        let error = located(set(&[setting]));
        let text = format!("{} {}", error.message, error.help.unwrap_or_default());
        assert!(text.contains(says), "{setting}: {text}");
    }
}
