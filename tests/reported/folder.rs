//! The adapter's folder as peers have it: tokenizer and chat template beside it, the base by its Hub id, a card to publish.
//! `tests/parity/adapter_folder.py` loads such a folder by transformers, PEFT and `huggingface_hub`.

use super::{Case, copy};
use serde_json::Value;
use std::path::Path;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[track_caller]
fn train(case: &Case, settings: &[&str]) -> Value {
    let mut all = vec!["train", "recipe.yaml", "--overwrite", "--json", "--set", "training.max_steps=2"];
    all.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let output = case.command(&all).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn base_of(case: &Case) -> Value {
    let config: Value = serde_json::from_str(&read(&case.path("out/adapter_config.json"))).unwrap();
    config["base_model_name_or_path"].clone()
}

#[test]
fn the_tokenizer_lies_beside_the_adapter() {
    let case = Case::new("10-rope-theta-twice");
    let templates = case.path("base/additional_chat_templates");
    std::fs::create_dir(&templates).unwrap();
    std::fs::write(templates.join("tool_use.jinja"), "{{ messages }}").unwrap();
    train(&case, &[]);
    for name in ["tokenizer.json", "tokenizer_config.json", "additional_chat_templates/tool_use.jinja"] {
        assert_eq!(read(&case.path("out").join(name)), read(&case.path("base").join(name)), "{name}");
    }
    // Another template goes in the place of the base's, wherever a program may look for it.
    train(&case, &["data.chat_template=alpaca"]);
    let template = read(&case.path("out/chat_template.jinja"));
    let config: Value = serde_json::from_str(&read(&case.path("out/tokenizer_config.json"))).unwrap();
    assert!(template.contains("### Response") && config["chat_template"] == template);
    // It is not a reason for a note to servers that the base's own template lies there.
    train(&case, &[]);
    let lint = case.command(&["lint", "out", "--for", "vllm", "--json"]).output().unwrap();
    assert!(
        !String::from_utf8_lossy(&lint.stdout).contains("chat-template"),
        "{}",
        String::from_utf8_lossy(&lint.stdout)
    );
}

#[test]
fn the_tokenizer_of_a_gguf_file_is_written_from_its_metadata() {
    let case = Case::new("10-rope-theta-twice");
    train(&case, &[]);
    let export = ["export", "out", "--to", "gguf", "--quantize", "f32", "--out", "gguf", "--no-verify", "--json"];
    assert!(case.command(&export).output().unwrap().status.success());
    let file = std::fs::read_dir(case.path("gguf")).unwrap().flatten().map(|entry| entry.path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|end| end == "gguf")).unwrap();
    train(&case, &[&format!("base.model={}", file.display()), "output_dir=second"]);
    let tokenizer = tokenizers::Tokenizer::from_file(case.path("second/tokenizer.json")).unwrap();
    let original = tokenizers::Tokenizer::from_file(case.path("base/tokenizer.json")).unwrap();
    let text = "<|im_start|>user\nDefine: autophagy é<|im_end|>";
    let ids = |tokenizer: &tokenizers::Tokenizer| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(ids(&tokenizer), ids(&original));
    assert!(read(&case.path("second/chat_template.jinja")).contains("<|im_start|>"));
}

/// A Hub cache's folder, an id in config.json of the same name; not the parent of a fine-tune.
#[test]
fn the_base_is_named_by_its_hub_id_where_one_is_known() {
    let case = Case::new("10-rope-theta-twice");
    let cached = case.path("hub/models--org--tiny/snapshots/abc");
    copy(&case.path("base"), &cached);
    train(&case, &[&format!("base.model={}", cached.display())]);
    assert_eq!(base_of(&case), "org/tiny");
    assert!(read(&case.path("out/README.md")).contains("base_model: org/tiny"));
    let config = read(&case.path("base/config.json")).replacen('{', "{\"_name_or_path\": \"org/Base\",", 1);
    std::fs::write(case.path("base/config.json"), config).unwrap();
    train(&case, &[]);
    assert_eq!(base_of(&case), "org/Base");
    copy(&case.path("base"), &case.path("my-fine-tune"));
    train(&case, &["base.model=my-fine-tune"]);
    assert_eq!(base_of(&case), "my-fine-tune", "its parent is another model");
    train(&case, &["base.model=my-fine-tune", "hub.repo=me/mine", "hub.base=me/fine-tune"]);
    assert_eq!(base_of(&case), "me/fine-tune", "the recipe says so");
    // The adapter is still read with the base that it was trained on.
    let output = case.command(&["generate", "out", "x", "--max-tokens", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_card_can_be_published() {
    let case = Case::new("10-rope-theta-twice");
    train(&case, &["objective.type=bft", "data.max_seq_len=100", "data.validation=null"]);
    let card = read(&case.path("out/README.md"));
    for phrase in [
        "https://arxiv.org/abs/2511.21075",
        "AutoTokenizer.from_pretrained(\"OWNER/REPO\")",
        "print(tokenizer.decode(",
        "## Intended use and limits",
        "not a medical device",
        "| rows | 1 to train on, 0 to validate on |",
        "| rows left out | 1 too long |",
        "| seed | 42 |",
    ] {
        assert!(card.contains(phrase), "{phrase}\n{card}");
    }
    let recipe = card.split("## Recipe").nth(1).unwrap();
    assert!(recipe.contains("max_seq_len: 100") && !recipe.contains("adam_beta1"), "{recipe}");
    assert!(read(&case.path("out/recipe.yaml")).contains("lora_alpha: 32\n"));
    let upload = ["upload", "out", "--repo", "me/mine", "--dry-run", "--offline", "--base-model", "org/tiny"];
    let shown = String::from_utf8(case.command(&upload).output().unwrap().stdout).unwrap();
    assert!(shown.contains("AutoModelForCausalLM.from_pretrained(\"org/tiny\""), "{shown}");
    assert!(shown.contains("PeftModel.from_pretrained(base, \"me/mine\")") && !shown.contains("OWNER/"), "{shown}");
    let json = case.command(&[&upload[..], &["--json"]].concat()).output().unwrap().stdout;
    let plan: Value = serde_json::from_slice(&json).unwrap();
    let card = plan["card"].as_str().unwrap();
    assert!(card.starts_with("---\n") && card.contains("\nbase_model: org/tiny\n---\n"), "{card}");
}

/// With the results, and the sentence that the terminal has.
#[test]
fn the_card_has_both_numbers() {
    let case = Case::new("10-rope-theta-twice");
    let summary = train(
        &case,
        &["training.learning_rate=1", "training.load_best_model_at_end=false", "data.sample_in_card=true"],
    );
    let card = read(&case.path("out/README.md"));
    assert!(card.contains("| cross-entropy (nats per token, lower is better) | 6.5130 |"), "{card}");
    assert!(card.contains("| next-token accuracy |") && card.contains("With the adapter:"), "{card}");
    assert!(card.contains(&summary["verdict"].as_str().unwrap()[1..]), "{card}");
}

/// Another model is recognised by the fingerprint, in one sentence.
#[test]
fn another_base_is_told_in_one_sentence() {
    let case = Case::new("10-rope-theta-twice");
    train(&case, &[]);
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/gene_ontology/base");
    let output = case.command(&["generate", "out", "x", "--json", "--base", other.to_str().unwrap()]).output().unwrap();
    let error = crate::support::workplace::refusal(&output);
    assert!(
        error.text.contains("was trained on another model than") && !error.text.contains("expected ["),
        "{}",
        error.text
    );
}
