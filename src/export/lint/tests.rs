//! Each rule on an adapter that it is about, and on one that it is not about.

use super::*;
use crate::adapter::{AdapterBundle, AdapterConfig};
use crate::nn::LoraConfig;
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const MODULES: [(&str, usize, usize); 7] = [
    ("self_attn.q_proj", 64, 64),
    ("self_attn.k_proj", 32, 64),
    ("self_attn.v_proj", 32, 64),
    ("self_attn.o_proj", 64, 64),
    ("mlp.gate_proj", 128, 64),
    ("mlp.up_proj", 128, 64),
    ("mlp.down_proj", 64, 128),
];

fn base() -> BaseFacts {
    let layer = |n: usize| MODULES.map(|(path, out, width)| (format!("model.layers.{n}.{path}"), (out, width)));
    let mut modules: BTreeMap<String, (usize, usize)> = (0..2).flat_map(layer).collect();
    modules.insert("model.embed_tokens".into(), (100, 64));
    let (vocabulary, layers) = (Some(100), Some(2));
    BaseFacts { model_type: "llama".into(), vocabulary, layers, tied: true, modules, ..BaseFacts::default() }
}

fn config() -> AdapterConfig {
    AdapterConfig {
        base_model_name_or_path: "org/base".into(),
        base_sha256: None,
        nested: false,
        lora: LoraConfig::default(),
    }
}

/// An adapter as we write it, r=16 on the seven modules of a two-layer Llama.
fn clean() -> AdapterFacts {
    let targets: BTreeSet<String> =
        MODULES.iter().map(|(path, ..)| path.rsplit('.').next().unwrap().to_owned()).collect();
    let Value::Object(map) = config().to_json(&targets) else { unreachable!() };
    let base = base();
    let pair = |(path, (out, width)): (&String, &(usize, usize))| {
        [("lora_A", vec![16, *width]), ("lora_B", vec![*out, 16])]
            .map(|(part, shape)| TensorFact::new(format!("base_model.model.{path}.{part}.weight"), shape, "F32"))
    };
    AdapterFacts {
        config: map,
        tensors: base.modules.iter().filter(|(path, _)| path.contains("layers")).flat_map(pair).collect(),
        files: ["adapter_config.json", "adapter_model.safetensors", "README.md"].map(str::to_owned).into(),
        weight_files: vec!["adapter_model.safetensors".into()],
        base: Some(base),
        ..AdapterFacts::new(Layout::Peft)
    }
}

fn set(facts: &mut AdapterFacts, key: &str, value: Value) {
    facts.config.insert(key.to_owned(), value);
}

fn add(facts: &mut AdapterFacts, name: &str, shape: &[usize]) {
    facts.tensors.push(TensorFact::new(name, shape.to_vec(), "F32"));
}

fn add_pair(facts: &mut AdapterFacts, module: &str, width: usize, out: usize) {
    add(facts, &format!("base_model.model.{module}.lora_A.weight"), &[16, width]);
    add(facts, &format!("base_model.model.{module}.lora_B.weight"), &[out, 16]);
}

fn keep(facts: &mut AdapterFacts, which: impl Fn(&str) -> bool) {
    facts.tensors.retain(|tensor| which(&tensor.name));
}

fn rename(facts: &mut AdapterFacts, from: &str, to: &str) {
    for tensor in &mut facts.tensors {
        *tensor = TensorFact::new(tensor.name.replace(from, to), tensor.shape.clone(), tensor.dtype.clone());
    }
}

fn gguf(facts: &mut AdapterFacts, alpha: f64) {
    *facts = AdapterFacts::new(Layout::Gguf);
    facts.weight_files = vec!["a.gguf".into()];
    for (key, value) in [
        ("general.type", json!("adapter")),
        ("adapter.type", json!("lora")),
        ("general.architecture", json!("llama")),
        ("adapter.lora.alpha", json!(alpha)),
    ] {
        set(facts, key, value);
    }
    add(facts, "blk.0.attn_q.weight.lora_a", &[16, 64]);
    add(facts, "blk.0.attn_q.weight.lora_b", &[64, 16]);
}

fn mlx(facts: &mut AdapterFacts) {
    *facts = AdapterFacts::new(Layout::Mlx);
    facts.weight_files = vec!["adapters.safetensors".into()];
    set(facts, "num_layers", json!(2));
    set(facts, "lora_parameters", json!({"rank": 16, "scale": 2.0, "dropout": 0.0}));
    add(facts, "model.layers.0.self_attn.q_proj.lora_a", &[64, 16]);
    add(facts, "model.layers.0.self_attn.q_proj.lora_b", &[16, 64]);
}

type Case = (&'static str, fn(&mut AdapterFacts));

/// A rule, and a change to a clean adapter that triggers it.
const CASES: &[Case] = &[
    ("names-of-text-alone", |f| f.base.as_mut().unwrap().multimodal = Some("Gemma3".into())),
    ("mlx-architecture", |f| f.base.as_mut().unwrap().model_type = "ministral".into()),
    ("peft-type", |f| set(f, "peft_type", json!("LOHA"))),
    ("peft-type-missing", |f| set(f, "peft_type", Value::Null)),
    ("dora", |f| set(f, "use_dora", json!(true))),
    ("dora", |f| add(f, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", &[64])),
    ("dora-ignored", |f| set(f, "use_dora", json!(true))),
    ("modules-to-save", |f| set(f, "modules_to_save", json!(["lm_head"]))),
    ("modules-to-save-ignored", |f| set(f, "modules_to_save", json!(["score"]))),
    ("bias", |f| set(f, "bias", json!("all"))),
    ("bias-ignored", |f| set(f, "bias", json!("lora_only"))),
    ("lora-bias", |f| set(f, "lora_bias", json!(true))),
    ("lora-bias-ignored", |f| add(f, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias", &[64])),
    ("trainable-tokens", |f| set(f, "trainable_token_indices", json!([1]))),
    ("trainable-tokens-ignored", |f| {
        add(f, "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", &[1, 64]);
    }),
    ("layer-replication", |f| set(f, "layer_replication", json!([[0, 2], [1, 2]]))),
    ("layer-replication-ignored", |f| set(f, "layer_replication", json!([[0, 2], [1, 2]]))),
    ("init-changes-base", |f| set(f, "init_lora_weights", json!("pissa_niter_4"))),
    ("vllm-init", |f| set(f, "init_lora_weights", json!("loftq"))),
    ("mistralrs-init", |f| set(f, "init_lora_weights", json!("LoRA_GA"))),
    ("mistralrs-init", |f| set(f, "init_lora_weights", json!(3))),
    ("alora", |f| set(f, "alora_invocation_tokens", json!([1, 2]))),
    ("alora-ignored", |f| set(f, "alora_invocation_tokens", json!([1, 2]))),
    ("qalora", |f| set(f, "use_qalora", json!(true))),
    ("bdlora", |f| set(f, "use_bdlora", json!({"nblocks": 2}))),
    ("kasa", |f| set(f, "kasa_config", json!({"beta": 1e-4}))),
    ("kasa-ignored", |f| set(f, "kasa_config", json!({"beta": 1e-4}))),
    ("arrow-ignored", |f| set(f, "arrow_config", json!({"top_k": 3}))),
    ("mistralrs-unsupported", |f| set(f, "ensure_weight_tying", json!(true))),
    ("mistralrs-null", |f| set(f, "rank_pattern", Value::Null)),
    ("fan-in-fan-out", |f| set(f, "fan_in_fan_out", json!(true))),
    ("task-type", |f| set(f, "task_type", json!("SEQ_CLS"))),
    ("task-type-unknown", |f| set(f, "task_type", json!("POETRY"))),
    ("config-incomplete", |f| set(f, "lora_alpha", json!("16"))),
    ("config-defaults", |f| set(f, "r", Value::Null)),
    ("alpha-zero", |f| set(f, "lora_alpha", json!(0))),
    ("vllm-max-rank", |f| set(f, "r", json!(24))),
    ("vllm-rank-limit", |f| set(f, "rank_pattern", json!({"q_proj": 600}))),
    ("mistralrs-max-rank", |f| set(f, "r", json!(257))),
    ("tgi-rank-padding", |f| set(f, "r", json!(4))),
    ("tgi-rank-padding", |f| set(f, "r", json!(24))),
    ("rslora-ignored", |f| set(f, "use_rslora", json!(true))),
    ("rank-pattern", |f| set(f, "rank_pattern", json!({"q_proj": 32}))),
    ("rank-pattern-ignored", |f| set(f, "rank_pattern", json!({"q_proj": 32}))),
    ("alpha-pattern-ignored", |f| set(f, "alpha_pattern", json!({"q_proj": 64}))),
    ("vllm-patterns", |f| set(f, "alpha_pattern", json!({"q_proj": 64}))),
    ("target-modules-missing", |f| set(f, "target_modules", json!([]))),
    ("sglang-target-pattern", |f| set(f, "target_modules", json!(".*_proj"))),
    ("peft-layers-pattern", |f| set(f, "layers_pattern", json!("h"))),
    ("mistralrs-target-parameters", |f| set(f, "target_parameters", json!(["mlp.router.weight"]))),
    ("vllm-target-parameters", |f| set(f, "target_parameters", json!(["mlp.experts.gate_up_proj"]))),
    ("target-parameters", |f| set(f, "target_parameters", json!(["mlp.experts.gate_up_proj"]))),
    ("target-parameters-ignored", |f| set(f, "target_parameters", json!(["mlp.experts.gate_up_proj"]))),
    ("tgi-modules-ignored", |f| add_pair(f, "lm_head", 64, 100)),
    ("tgi-partial-layers", |f| keep(f, |name| !name.contains("layers.1.mlp.up_proj"))),
    ("tgi-partial-layers", |f| keep(f, |name| name.contains("layers.0."))),
    ("sglang-modules", |f| add_pair(f, "model.layers.0.mlp.router", 64, 8)),
    ("sglang-query-value", |f| keep(f, |name| !name.contains("v_proj"))),
    ("sglang-query-value", |f| keep(f, |name| !name.contains("q_proj"))),
    ("sglang-up-without-gate", |f| keep(f, |name| !name.contains("gate_proj"))),
    ("mistralrs-embedding-head", |f| add_pair(f, "lm_head", 64, 100)),
    ("llamacpp-tied-head", |f| add_pair(f, "lm_head", 64, 100)),
    ("unknown-module", |f| add_pair(f, "model.layers.0.mlp.router", 64, 8)),
    ("unknown-module-kind", |f| add_pair(f, "model.layers.2.mlp.up_proj", 64, 128)),
    ("unknown-module-ignored", |f| add_pair(f, "model.layers.0.mlp.router", 64, 8)),
    ("vllm-module-ignored", |f| rename(f, ".model.layers", ".decoder.layers")),
    ("undeclared-module", |f| set(f, "target_modules", json!(["q_proj"]))),
    ("undeclared-module-ignored", |f| set(f, "target_modules", json!(["proj"]))),
    ("adapter-in-names", |f| rename(f, "lora_A.weight", "lora_A.default.weight")),
    ("adapter-in-names-ignored", |f| rename(f, "lora_B.weight", "lora_B.default.weight")),
    ("prefix-missing", |f| rename(f, "base_model.model.", "")),
    ("wrapped-names", |f| rename(f, "base_model.model.model.", "base_model.model.")),
    ("wrapped-names-ignored", |f| rename(f, "base_model.model.", "base_model.model._orig_mod.")),
    ("embedding-saved", |f| add(f, "base_model.model.model.embed_tokens.weight", &[101, 64])),
    ("embedding-saved-ignored", |f| add(f, "base_model.model.lm_head.weight", &[101, 64])),
    ("embedding-adapted", |f| add(f, "base_model.model.model.embed_tokens.lora_embedding_A", &[16, 100])),
    ("not-lora", |f| add(f, "base_model.model.model.layers.0.self_attn.q_proj.weight", &[64, 64])),
    ("norm-ignored", |f| add(f, "base_model.model.model.layers.0.input_layernorm.weight", &[64])),
    ("norm-passed-over", |f| add(f, "base_model.model.model.norm.weight", &[64])),
    ("unpaired", |f| keep(f, |name| !name.ends_with("layers.0.self_attn.q_proj.lora_B.weight"))),
    ("unpaired-ignored", |f| keep(f, |name| !name.ends_with("layers.0.self_attn.q_proj.lora_A.weight"))),
    ("rank-mismatch", |f| set(f, "r", json!(32))),
    ("rank-mismatch-ignored", |f| set(f, "r", json!(8))),
    ("shape-mismatch", |f| f.tensors[0].shape[1] += 1),
    ("vllm-shape-mismatch", |f| f.tensors[1].shape[0] -= 1),
    ("integer-tensors", |f| f.tensors[0].dtype = "I8".into()),
    ("no-tensors", |f| f.weight_files.clear()),
    ("no-lora", |f| f.tensors.clear()),
    ("pickle", |f| f.weight_files = vec!["adapter_model.bin".into()]),
    ("pickle-read", |f| f.weight_files = vec!["adapter_model.bin".into()]),
    ("sharded", |f| f.weight_files = vec!["adapter_model-00001-of-00001.safetensors".into()]),
    ("other-safetensors", |f| _ = f.files.insert("optimizer.safetensors".into())),
    ("added-tokens", |f| _ = f.added_tokens.insert("<new>".into(), 100)),
    ("added-tokens-unchecked", |f| {
        f.base = None;
        f.added_tokens.insert("<new>".into(), 1);
    }),
    ("chat-template", |f| _ = f.files.insert("chat_template.jinja".into())),
    ("base-missing", |f| set(f, "base_model_name_or_path", Value::Null)),
    ("base-local", |f| set(f, "base_model_name_or_path", json!("/models/base"))),
    ("format-gguf", |f| gguf(f, 32.0)),
    ("format-mlx", mlx),
    ("ollama-mlx", mlx),
    ("mlx-config", |f| {
        mlx(f);
        set(f, "lora_parameters", json!({"rank": 16, "scale": null}));
    }),
    ("mlx-tensors", |f| {
        mlx(f);
        add(f, "model.layers.0.self_attn.q_proj.lora_A.weight", &[64, 16]);
    }),
    ("gguf-kind", |f| {
        gguf(f, 32.0);
        set(f, "general.type", json!("model"));
    }),
    ("gguf-alpha", |f| gguf(f, 0.0)),
    ("gguf-tensors", |f| {
        gguf(f, 32.0);
        f.tensors.pop();
    }),
];

/// Rules that a clean folder has too, and what rids it of them; and the one that needs a setting.
const ALWAYS: [&str; 3] = ["llamacpp-folder", "mlx-folder", "ollama-folder"];
const WITH_SETTING: &str = "rank-over-limit";

fn names(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().map(|finding| finding.rule).collect()
}

fn all(facts: &AdapterFacts) -> Vec<Finding> {
    lint(facts, &Server::ALL, &Settings::default())
}

#[test]
fn an_adapter_as_we_write_it_needs_nothing_but_its_conversions() {
    let findings = all(&clean());
    assert_eq!(names(&findings), ALWAYS.into());
    assert!(findings.iter().all(|finding| finding.severity == Severity::Note));
    let served = [Server::Vllm, Server::Sglang, Server::Tgi, Server::MistralRs, Server::Peft];
    assert_eq!(lint(&clean(), &served, &Settings::default()), []);
}

#[test]
fn each_rule_finds_what_it_is_about_and_names_whom_it_concerns() {
    for (name, change) in CASES {
        let rule = rules().find(|rule| rule.name == *name).unwrap_or_else(|| panic!("no rule {name}"));
        let mut facts = clean();
        change(&mut facts);
        let findings = all(&facts);
        let finding = findings.iter().find(|finding| finding.rule == *name);
        let finding = finding.unwrap_or_else(|| panic!("{name} is not among {:?}", names(&findings)));
        assert_eq!(finding.servers, rule.servers, "{name}");
        for text in [&finding.found, finding.why, &finding.fix, finding.source] {
            assert!(text.len() > 6 && !text.contains("  "), "{name}: {text}");
        }
        for server in Server::ALL {
            let alone = lint(&facts, &[server], &Settings::default());
            assert_eq!(names(&alone).contains(name), rule.servers.contains(&server), "{name}, {server}");
        }
    }
}

#[test]
fn every_rule_is_tried_and_has_a_name_of_its_own() {
    let tried: BTreeSet<&str> = CASES.iter().map(|(name, _)| *name).chain(ALWAYS).chain([WITH_SETTING]).collect();
    let named: Vec<&str> = rules().map(|rule| rule.name).collect();
    assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), tried);
    assert_eq!(named.len(), tried.len(), "a name is there twice");
    for rule in rules() {
        assert!(rule.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", rule.name);
        assert!(!rule.servers.is_empty() && rule.servers.is_sorted(), "{}", rule.name);
    }
}

#[test]
fn good_files_of_other_formats_have_nothing_wrong_for_those_who_read_them() {
    let mut facts = clean();
    gguf(&mut facts, 32.0);
    assert_eq!(lint(&facts, &[Server::LlamaCpp, Server::Ollama], &Settings::default()), []);
    mlx(&mut facts);
    assert_eq!(lint(&facts, &[Server::Mlx], &Settings::default()), []);
}

#[test]
fn ranks_are_held_against_what_the_server_was_started_for() {
    let mut facts = clean();
    set(&mut facts, "r", json!(48));
    let vllm = |max_rank| lint(&facts, &[Server::Vllm], &Settings { max_rank });
    let unset = vllm(None);
    let flag = unset.iter().find(|finding| finding.rule == "vllm-max-rank").unwrap();
    assert!(flag.fix.contains("--max-lora-rank 64"), "{}", flag.fix);
    assert!(!names(&vllm(Some(64))).contains("vllm-max-rank"));
    assert!(!names(&vllm(Some(64))).contains(WITH_SETTING));
    let refused = vllm(Some(32));
    let over = refused.iter().find(|finding| finding.rule == WITH_SETTING).unwrap();
    assert_eq!(over.severity, Severity::Refused);
    assert!(over.found.contains("48") && over.found.contains("32"), "{}", over.found);
    // Padding moves nothing where only one kind of module is adapted.
    set(&mut facts, "r", json!(4));
    keep(&mut facts, |name| name.contains("o_proj"));
    assert!(!names(&all(&facts)).contains("tgi-rank-padding"));
}

#[test]
fn the_mend_of_rank_stabilised_scaling_is_the_folded_alpha() {
    let mut facts = clean();
    set(&mut facts, "use_rslora", json!(true));
    let findings = all(&facts);
    let finding = findings.iter().find(|finding| finding.rule == "rslora-ignored").unwrap();
    assert!(finding.fix.contains("`\"lora_alpha\": 128`"), "{}", finding.fix);
}

#[test]
fn harmless_values_of_the_same_keys_are_left_alone() {
    let mut facts = clean();
    for (key, value) in [
        ("init_lora_weights", json!("gaussian")),
        ("modules_to_save", json!([])),
        ("rank_pattern", json!({"q_proj": 16})),
        ("alpha_pattern", json!({"q_proj": 32})),
        ("layers_to_transform", json!([0, 1])),
        ("velora_config", json!({"x": 1})),
        ("layer_replication", json!([])),
        ("peft_version", json!("0.21.2")),
        ("task_type", Value::Null),
    ] {
        set(&mut facts, key, value);
    }
    facts.added_tokens.insert("<|im_end|>".into(), 2);
    // q and v alone are packed by every server.
    keep(&mut facts, |name| name.contains("q_proj") || name.contains("v_proj"));
    assert_eq!(names(&all(&facts)), ALWAYS.into());
}

#[test]
fn the_worst_comes_first() {
    let mut facts = clean();
    set(&mut facts, "use_dora", json!(true));
    set(&mut facts, "r", json!(24));
    let severities: Vec<Severity> = all(&facts).iter().map(|finding| finding.severity).collect();
    assert!(severities.is_sorted() && severities.len() > 4, "{severities:?}");
}

/// `adapter_config.json` as PEFT itself writes it (`tests/parity/peft_configs.py`), with the tensors of a plain adapter.
#[test]
fn configurations_of_peft_are_understood() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lint");
    let expected: [(&str, &[&str]); 8] = [
        ("plain", &[]),
        ("dora", &["dora", "dora-ignored"]),
        (
            "rslora_rank_pattern",
            &[
                "rslora-ignored",
                "rank-pattern",
                "rank-pattern-ignored",
                "alpha-pattern-ignored",
                "vllm-patterns",
                "vllm-max-rank",
            ],
        ),
        ("modules_to_save", &["modules-to-save", "modules-to-save-ignored"]),
        ("pissa", &["init-changes-base", "vllm-init", "mistralrs-init"]),
        (
            "bias_and_tokens",
            &["bias", "bias-ignored", "lora-bias", "lora-bias-ignored", "trainable-tokens", "trainable-tokens-ignored"],
        ),
        ("alora", &["alora", "alora-ignored"]),
        ("target_parameters", &["target-parameters", "target-parameters-ignored", "vllm-target-parameters"]),
    ];
    for (name, rules) in expected {
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let mut facts = clean();
        facts.config = serde_json::from_str(&text).unwrap();
        let expected: BTreeSet<&str> = rules.iter().copied().chain(ALWAYS).collect();
        assert_eq!(names(&all(&facts)), expected, "{name}");
    }
}

/// A saved adapter on the disk.
fn saved(folder: &Path, lora: LoraConfig) {
    let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let r = lora.r;
    let pair = |(path, out, width): &(&str, usize, usize)| {
        let name = |part: &str| format!("base_model.model.model.layers.0.{path}.{part}.weight");
        [(name("lora_A"), zeros((r, *width))), (name("lora_B"), zeros((*out, r)))]
    };
    let tensors = MODULES.iter().flat_map(pair).collect();
    AdapterBundle { config: AdapterConfig { lora, ..config() }, tensors }.save(folder, DType::F32).unwrap();
}

#[test]
fn a_saved_folder_is_read_without_its_tensors() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), LoraConfig { use_rslora: true, ..LoraConfig::default() });
    let facts = AdapterFacts::read(folder.path()).unwrap();
    assert_eq!((facts.layout, facts.tensors.len(), facts.rank()), (Layout::Peft, 14, Some(16)));
    assert_eq!(facts.tensors[0].dtype, "F32");
    assert_eq!(names(&all(&facts)), ALWAYS.into(), "rank-stabilised scaling is folded");
    // In parts, as some trainers write it.
    let part = "adapter_model-00001-of-00001.safetensors";
    std::fs::rename(folder.path().join("adapter_model.safetensors"), folder.path().join(part)).unwrap();
    let facts = AdapterFacts::read(folder.path()).unwrap();
    assert_eq!((facts.tensors.len(), names(&all(&facts)).contains("sharded")), (14, true));
}

#[test]
fn damaged_and_hostile_files_are_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), LoraConfig::default());
    let path = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let message = || AdapterFacts::read(folder.path()).unwrap_err().to_string();
    for length in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(message().contains("adapter_model.safetensors"), "{length}: {}", message());
    }
    let mut claims = bytes.clone();
    claims[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&path, claims).unwrap();
    assert!(message().contains("claims 18446744073709551615 bytes"), "{}", message());
    std::fs::write(&path, &bytes).unwrap();

    let path = folder.path().join("adapter_config.json");
    for text in ["", "[]", "{\"r\": NaN}", "\u{0}", &"[".repeat(100_000)] {
        std::fs::write(&path, text).unwrap();
        assert!(message().contains("is not a JSON object"), "{}", message());
    }
    std::fs::write(&path, "{}").unwrap();
    let found = names(&all(&AdapterFacts::read(folder.path()).unwrap()));
    assert!(found.contains("config-incomplete") && found.contains("peft-type-missing"), "{found:?}");
    std::fs::write(folder.path().join("added_tokens.json"), "{\"<x>\": -1}").unwrap();
    assert!(message().contains("added_tokens.json: `<x>`"), "{}", message());
    std::fs::remove_file(&path).unwrap();
    assert!(message().contains("there is no adapter_config.json"), "{}", message());
    assert!(AdapterFacts::read(Path::new("/nowhere")).unwrap_err().to_string().contains("no such folder"));
}

#[test]
fn odd_configurations_make_no_rule_panic() {
    let odd =
        [json!(null), json!([]), json!([[]]), json!({}), json!({"": 1}), json!(-1), json!(1e308), json!("\u{1b}é")];
    let keys: Vec<String> = clean().config.keys().cloned().chain(["target_parameters".into()]).collect();
    for key in keys {
        for value in &odd {
            let mut facts = clean();
            set(&mut facts, &key, value.clone());
            facts.tensors.extend(
                ["", ".lora_A.weight", "layers.99999999999999999999.lora_A.weight"]
                    .map(|name| TensorFact::new(name, vec![], "F32")),
            );
            facts.tensors.push(TensorFact::new("layers.18446744073709551615.x.lora_B.weight", vec![0; 3], "F64"));
            facts.base.as_mut().unwrap().layers = None;
            let _ = all(&facts);
        }
    }
}

#[test]
fn a_gguf_adapter_is_read_by_its_header() {
    let string = |text: &str| [(text.len() as u64).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat();
    let entry = |key: &str, text: &str| [string(key), 8u32.to_le_bytes().to_vec(), string(text)].concat();
    let tensor = |name: &str, offset: u64| {
        let dims = [2u32.to_le_bytes().to_vec(), 4u64.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec()].concat();
        [string(name), dims, 0u32.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
    };
    let mut bytes = [b"GGUF".to_vec(), 3u32.to_le_bytes().to_vec()].concat();
    bytes.extend([2u64.to_le_bytes(), 4u64.to_le_bytes()].concat());
    bytes.extend(entry("general.type", "adapter"));
    bytes.extend(entry("adapter.type", "lora"));
    bytes.extend(entry("general.architecture", "llama"));
    bytes.extend([string("adapter.lora.alpha"), 6u32.to_le_bytes().to_vec(), 32f32.to_le_bytes().to_vec()].concat());
    bytes.extend(tensor("blk.0.attn_q.weight.lora_a", 0));
    bytes.extend(tensor("blk.0.attn_q.weight.lora_b", 32));
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let facts = AdapterFacts::read(&path).unwrap();
    assert_eq!((facts.layout, facts.tensors.len()), (Layout::Gguf, 2));
    assert_eq!(names(&all(&facts)), ["format-gguf"].into());
    for length in [0, 20, 60, bytes.len() - 33] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(AdapterFacts::read(&path).unwrap_err().to_string().contains("adapter.gguf"), "{length}");
    }
    let error = AdapterFacts::read(folder.path()).unwrap_err();
    assert!(error.help().unwrap().contains("adapter.gguf"), "{error}");
}
