//! Which modules are adapted.

use super::super::Server::{LlamaCpp, MistralRs, Mlx, Ollama, Peft, Sglang, Tgi, Vllm};
use super::super::facts::{AdapterFacts, TensorFact};
use super::super::names::TensorKind;
use super::super::{Rule, Settings, Severity};
use super::{Check, facts_only, listed, shown};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The kinds of modules that Text Generation Inference applies adapters to.
const TGI_MODULES: [&str; 10] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "c_proj", "c_fc"];

/// Those that `SGLang` has room for, by the names in checkpoints.
const SGLANG_MODULES: [&str; 33] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "out_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
    "in_proj",
    "in_proj_qkvz",
    "in_proj_qkv",
    "in_proj_q",
    "in_proj_k",
    "in_proj_v",
    "in_proj_z",
    "x_proj",
    "q_a_proj",
    "kv_a_proj_with_mqa",
    "q_b_proj",
    "kv_b_proj",
    "fc1_latent_proj",
    "fc2_latent_proj",
    "wq_b",
    "wk",
    "weights_proj",
    "w1",
    "w2",
    "w3",
    "embed_tokens",
    "lm_head",
    "unembed_tokens",
];

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "names-of-text-alone",
        servers: &[Vllm, Peft],
        severity: Severity::Wrong,
        source: "vLLM lora/model_manager.py, and its open issues 34186 and 48019; PEFT utils/save_and_load.py",
        why: "they load the multimodal model, whose modules have other names, and ignore tensors that match none: the adapter \
              loads and does nothing",
        fix: "re-export with `--to peft`, which uses the multimodal model's module names",
        check: facts_only!(|facts: &AdapterFacts| {
            let class = facts.base.as_ref()?.multimodal.as_ref()?;
            let of_text = |tensor: &&TensorFact| tensor.parsed.module.starts_with("model.layers.");
            let name = &facts.tensors.iter().find(of_text)?.name;
            Some(format!("`{name}` is named as in a text-only model, but the base is a {class}").into())
        }),
    },
    Rule {
        name: "target-modules-missing",
        servers: &[Vllm, Sglang, MistralRs],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, SGLang srt/lora/lora_config.py, mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "they look the key up without a default (mistral.rs also refuses an empty one)",
        fix: "list the adapted modules in `target_modules`",
        check: facts_only!(|facts: &AdapterFacts| {
            let missing = facts.truthy("target_modules").is_none() && facts.truthy("target_parameters").is_none();
            missing.then(|| "`target_modules` is missing or names nothing".to_owned().into())
        }),
    },
    Rule {
        name: "sglang-target-pattern",
        servers: &[Sglang],
        severity: Severity::Refused,
        source: "SGLang srt/lora/utils.py",
        why: "it takes a list of names, or the word `all-linear`, but no pattern",
        fix: "write the names of the modules as a list",
        check: facts_only!(|facts: &AdapterFacts| {
            let pattern = facts.text("target_modules").filter(|word| !matches!(*word, "all-linear" | "all"))?;
            Some(format!("`target_modules` is {}", shown(&Value::from(pattern))).into())
        }),
    },
    Rule {
        name: "peft-layers-pattern",
        servers: &[Tgi, Peft],
        severity: Severity::Refused,
        source: "PEFT tuners/lora/config.py",
        why: "PEFT, with which they read the configuration, takes `layers_to_transform` and `layers_pattern` only with a list \
              of modules, and the latter only with the former",
        fix: "write the modules as a list, or the layers into the pattern",
        check: facts_only!(|facts: &AdapterFacts| {
            let (layers, pattern) = (facts.value("layers_to_transform"), facts.truthy("layers_pattern"));
            let text = facts.text("target_modules").is_some();
            let wrong = text && (layers.is_some() || pattern.is_some()) || pattern.is_some() && layers.is_none();
            wrong.then(|| {
                "`layers_to_transform` or `layers_pattern` does not go with `target_modules`".to_owned().into()
            })
        }),
    },
    Rule {
        name: "mistralrs-target-parameters",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "of parameters it adapts the experts' gate_up_proj and down_proj only",
        fix: "train `target_modules`, or the experts alone",
        check: facts_only!(|facts: &AdapterFacts| {
            let experts = |parameter: &Value| {
                let name = parameter.as_str().unwrap_or_default();
                let of = name.strip_suffix(".gate_up_proj").or_else(|| name.strip_suffix(".down_proj"));
                of.is_some_and(|of| of == "experts" || of.ends_with(".experts"))
            };
            let others = parameters(facts)?.iter().any(|parameter| !experts(parameter));
            others.then(|| target_parameters(facts)).flatten()
        }),
    },
    Rule {
        name: "vllm-target-parameters",
        servers: &[Vllm],
        severity: Severity::Note,
        source: "vLLM lora/lora_model.py, lora/model_manager.py",
        why: "fused experts are read for mixture models that vLLM holds fused, and as others than that for none",
        fix: "look at the first answers, and see `enable_mixed_moe_lora_format` in vLLM's documentation",
        check: facts_only!(target_parameters),
    },
    Rule {
        name: "target-parameters",
        servers: &[Sglang, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "SGLang srt/lora/utils.py, llama.cpp convert_lora_to_gguf.py",
        why: "PEFT names such tensors after the module that holds the parameters, which they do not know",
        fix: "merge it into its base with PEFT, or train `target_modules`",
        check: facts_only!(target_parameters),
    },
    Rule {
        name: "target-parameters-ignored",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI utils/adapter.py",
        why: "it applies adapters to attention and dense MLPs only, and passes over the rest",
        fix: "merge it into its base with PEFT, or train `target_modules`",
        check: facts_only!(target_parameters),
    },
    Rule {
        name: "tgi-modules-ignored",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI models/__init__.py, LoRAX models/flash_llama.py (which has lm_head too)",
        why: "it applies adapters to q, k, v, o, gate, up and down_proj (and qkv_proj, c_proj, c_fc), and passes over the rest",
        fix: "train these modules only",
        check: facts_only!(|facts: &AdapterFacts| {
            let known = |tensor: &TensorFact| {
                TGI_MODULES.contains(&tensor.parsed.leaf()) && !tensor.parsed.is_expert() && tensor.parsed.is_matrix()
            };
            of_modules(facts, |tensor| !known(tensor))
        }),
    },
    Rule {
        name: "tgi-partial-layers",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py, LoRAX adapters/lora.py",
        why: "a kind of module that lacks its matrices in one layer is left out in all layers",
        fix: "train all layers, or none, of each kind of module",
        check: facts_only!(partial_layers),
    },
    Rule {
        name: "sglang-modules",
        servers: &[Sglang],
        severity: Severity::Refused,
        source: "SGLang srt/lora/utils.py, srt/lora/mem_pool.py",
        why: "it has room for the linear layers of attention and MLP, the embedding and the head, under known names only",
        fix: "train these modules only",
        check: facts_only!(|facts: &AdapterFacts| {
            of_modules(facts, |tensor| !SGLANG_MODULES.contains(&tensor.parsed.leaf()))
        }),
    },
    Rule {
        name: "sglang-query-value",
        servers: &[Sglang],
        severity: Severity::Refused,
        source: "SGLang srt/lora/lora.py",
        why: "it packs q, k and v of a layer into one: q needs v, k and v need q; only k may be missing",
        fix: "train q_proj and v_proj together, or neither with k_proj",
        check: facts_only!(|facts: &AdapterFacts| {
            lacking(facts, |has| {
                let (q, k, v) = (has("q_proj"), has("k_proj"), has("v_proj"));
                q && !v || !q && (k || v)
            })
        }),
    },
    Rule {
        name: "sglang-up-without-gate",
        servers: &[Sglang],
        severity: Severity::Refused,
        source: "SGLang srt/lora/lora.py",
        why: "it packs gate and up of an MLP into one, and finds no place for up alone",
        fix: "train gate_proj together with up_proj",
        check: facts_only!(|facts: &AdapterFacts| lacking(facts, |has| has("up_proj") && !has("gate_proj"))),
    },
    Rule {
        name: "mistralrs-embedding-head",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs",
        why: "it adapts neither the embedding nor the head",
        fix: "train without `embed_tokens` and `lm_head`",
        check: facts_only!(|facts: &AdapterFacts| {
            of_modules(facts, |tensor| matches!(tensor.parsed.leaf(), "lm_head" | "embed_tokens"))
        }),
    },
    Rule {
        name: "llamacpp-tied-head",
        servers: &[LlamaCpp],
        severity: Severity::Refused,
        source: "llama.cpp convert_lora_to_gguf.py",
        why: "the base's head is its embedding, so that there is no head in the GGUF file to adapt",
        fix: "train without `lm_head`",
        check: facts_only!(|facts: &AdapterFacts| {
            facts.base.as_ref().filter(|base| base.tied)?;
            of_modules(facts, |tensor| tensor.parsed.leaf() == "lm_head" && tensor.parsed.is_matrix())
        }),
    },
    Rule {
        name: "unknown-module",
        servers: &[MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, llama.cpp src/llama-adapter.cpp, \
                 mlx-lm mlx_lm/tuner/utils.py",
        why: "matrices of a module that the base does not have are refused",
        fix: "serve it on the base that it was trained on",
        check: facts_only!(|facts: &AdapterFacts| unknown_module(facts, |_| true)),
    },
    Rule {
        name: "unknown-module-kind",
        servers: &[Vllm, Sglang],
        severity: Severity::Refused,
        source: "vLLM lora/lora_model.py, SGLang srt/lora/lora.py, srt/lora/mem_pool.py",
        why: "matrices for a kind of module, or a layer, that the base does not have are refused",
        fix: "serve it on the base that it was trained on",
        check: facts_only!(|facts: &AdapterFacts| unknown_module(facts, |tensor| unknown_kind(facts, tensor))),
    },
    Rule {
        name: "vllm-module-ignored",
        servers: &[Vllm],
        severity: Severity::Wrong,
        source: "vLLM lora/lora_model.py, lora/model_manager.py",
        why: "it checks the last part of a module's name only; what lies elsewhere than in the base is not applied",
        fix: "rename the tensors to `base_model.model.` and the module's path in the base",
        check: facts_only!(|facts: &AdapterFacts| unknown_module(facts, |tensor| !unknown_kind(facts, tensor))),
    },
    Rule {
        name: "unknown-module-ignored",
        servers: &[Tgi, Peft],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py, PEFT utils/save_and_load.py",
        why: "matrices of a module that the base does not have are passed over",
        fix: "serve it on the base that it was trained on",
        check: facts_only!(|facts: &AdapterFacts| unknown_module(facts, |_| true)),
    },
    Rule {
        name: "undeclared-module",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs",
        why: "matrices of a module that `target_modules` does not name are refused",
        fix: "add the module to `target_modules`",
        check: facts_only!(undeclared),
    },
    Rule {
        name: "undeclared-module-ignored",
        servers: &[Peft],
        severity: Severity::Wrong,
        source: "PEFT utils/save_and_load.py",
        why: "matrices of a module that `target_modules` does not name are passed over",
        fix: "add the module to `target_modules`",
        check: facts_only!(undeclared),
    },
];

fn parameters(facts: &AdapterFacts) -> Option<&Vec<Value>> {
    facts.truthy("target_parameters")?.as_array()
}

fn target_parameters(facts: &AdapterFacts) -> Check {
    let value = facts.truthy("target_parameters")?;
    Some(format!("`target_parameters` is {}", shown(value)).into())
}

/// LoRA's matrices, embeddings' included, of the modules that are not as a server wants them.
fn of_modules(facts: &AdapterFacts, unwanted: impl Fn(&TensorFact) -> bool) -> Check {
    // What PEFT names after the parameters' module has rules of its own.
    if facts.truthy("target_parameters").is_some() {
        return None;
    }
    let kinds = [TensorKind::A, TensorKind::B, TensorKind::EmbeddingA, TensorKind::EmbeddingB];
    let tensors = facts.tensors.iter().filter(|tensor| kinds.contains(&tensor.parsed.kind) && unwanted(tensor));
    let modules: BTreeSet<&str> = tensors.map(|tensor| tensor.parsed.leaf()).collect();
    Some(format!("modules {}", listed(modules)?).into())
}

fn partial_layers(facts: &AdapterFacts) -> Check {
    let layers = facts.layers();
    let mut seen: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for tensor in facts.tensors.iter().filter(|tensor| tensor.parsed.is_matrix() && !tensor.parsed.is_expert()) {
        if let Some(layer) = tensor.parsed.layer().filter(|_| TGI_MODULES.contains(&tensor.parsed.leaf())) {
            seen.entry(tensor.parsed.leaf()).or_default().insert(layer);
        }
    }
    let (module, has) = seen.into_iter().find(|(_, has)| has.len() < layers)?;
    Some(format!("`{module}` has matrices in {} of {layers} layers", has.len()).into())
}

/// A layer's part (attention or MLP) whose set of adapted modules is not as wanted.
fn lacking(facts: &AdapterFacts, wrong: impl Fn(&dyn Fn(&str) -> bool) -> bool) -> Check {
    let mut parts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for tensor in facts.tensors.iter().filter(|tensor| tensor.parsed.is_matrix() && !tensor.parsed.is_expert()) {
        parts.entry(tensor.parsed.parent()).or_default().insert(tensor.parsed.leaf());
    }
    let (part, has) = parts.into_iter().find(|(_, has)| wrong(&|leaf: &str| has.contains(leaf)))?;
    Some(format!("`{part}` has matrices for {} only", listed(has)?).into())
}

/// Modules with matrices that the base does not have under that path, those of `which`.
fn unknown_module(facts: &AdapterFacts, which: impl Fn(&TensorFact) -> bool) -> Check {
    let modules = &facts.base.as_ref()?.modules;
    if modules.is_empty() {
        return None;
    }
    // A head that is the embedding has no tensor of its own.
    let known = |module: &str| modules.contains_key(module) || module == "lm_head";
    let plain = |tensor: &&TensorFact| {
        let parsed = &tensor.parsed;
        parsed.is_matrix() && !parsed.is_expert() && !known(&parsed.module) && which(tensor)
    };
    let unknown: BTreeSet<&str> =
        facts.tensors.iter().filter(plain).map(|tensor| tensor.parsed.module.as_str()).collect();
    Some(format!("modules {}", listed(unknown)?).into())
}

/// Whether no layer of the base has a module of that last name, or the base has fewer layers.
fn unknown_kind(facts: &AdapterFacts, tensor: &TensorFact) -> bool {
    let Some(base) = &facts.base else { return false };
    let leaf = tensor.parsed.leaf();
    let beyond = tensor.parsed.layer().zip(base.layers).is_some_and(|(layer, layers)| layer >= layers);
    beyond || base.modules.keys().all(|path| path.rsplit('.').next() != Some(leaf))
}

fn undeclared(facts: &AdapterFacts) -> Check {
    let targets: Vec<&str> = facts.truthy("target_modules")?.as_array()?.iter().filter_map(Value::as_str).collect();
    let declared = |module: &str| {
        let ends =
            |target: &&str| module.strip_suffix(*target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        targets.iter().any(ends)
    };
    if facts.truthy("target_parameters").is_some() {
        return None;
    }
    let tensors = facts.tensors.iter().filter(|tensor| tensor.parsed.is_matrix() && !declared(&tensor.parsed.module));
    let modules: BTreeSet<&str> = tensors.map(|tensor| tensor.parsed.leaf()).collect();
    Some(format!("matrices of {}, which `target_modules` does not name", listed(modules)?).into())
}
