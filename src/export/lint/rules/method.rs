//! Kinds of adapters: what PEFT trains beyond two matrices a layer.

use super::super::Server::{LlamaCpp, MistralRs, Mlx, Ollama, Peft, Sglang, Tgi, Vllm};
use super::super::facts::AdapterFacts;
use super::super::names::TensorKind;
use super::super::{Rule, Settings, Severity};
use super::{Check, facts_only, key, listed, shown};
use serde_json::Value;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "peft-type",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "SGLang srt/lora/lora.py, mistral.rs mistralrs-quant/src/lora/mod.rs, vLLM lora/utils.py",
        why: "only LoRA's two matrices are applied; tensors of other methods have names that are not known",
        fix: "merge it into its base with PEFT, or train a LoRA adapter",
        check: facts_only!(|facts: &AdapterFacts| {
            let kind = facts.text("peft_type").filter(|kind| !kind.eq_ignore_ascii_case("LORA"))?;
            Some(format!("`peft_type` is {}", shown(&Value::from(kind))).into())
        }),
    },
    Rule {
        name: "peft-type-missing",
        servers: &[Sglang, Peft],
        severity: Severity::Refused,
        source: "SGLang srt/lora/lora.py, PEFT peft_model.py",
        why: "they look this key up to tell what the adapter is",
        fix: "add `\"peft_type\": \"LORA\"` to adapter_config.json",
        check: facts_only!(|facts: &AdapterFacts| {
            facts.text("peft_type").is_none().then(|| "`peft_type` is missing".to_owned().into())
        }),
    },
    Rule {
        name: "dora",
        servers: &[Vllm, Sglang, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, SGLang srt/lora/lora_manager.py, mistral.rs mistralrs-quant/src/lora/mod.rs, \
                 llama.cpp convert_lora_to_gguf.py",
        why: "DoRA rescales the merged weight by a trained magnitude, which they cannot apply",
        fix: "merge it into its base with PEFT, or train without DoRA",
        check: facts_only!(dora),
    },
    Rule {
        name: "dora-ignored",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py",
        why: "it looks for lora_A and lora_B only, and leaves DoRA's magnitudes out",
        fix: "merge it into its base with PEFT, or train without DoRA",
        check: facts_only!(dora),
    },
    Rule {
        name: "modules-to-save",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs, llama.cpp convert_lora_to_gguf.py",
        why: "whole modules beside the LoRA are not loaded (vLLM: other than `score` and `classifier`)",
        fix: "merge it into its base with PEFT, or train without `modules_to_save`",
        check: facts_only!(|facts: &AdapterFacts| {
            let classifiers = ["classifier", "score"].map(Value::from);
            let list = facts.truthy("modules_to_save")?.as_array()?;
            let others = list.iter().any(|module| !classifiers.contains(module));
            others.then(|| key(facts, "modules_to_save")).flatten()
        }),
    },
    Rule {
        name: "modules-to-save-ignored",
        servers: &[Sglang, Tgi],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/lora.py, TGI adapters/lora.py",
        why: "they pass over whole modules in the file, so that the base's untrained ones answer",
        fix: "merge it into its base with PEFT, or train without `modules_to_save`",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "modules_to_save")),
    },
    Rule {
        name: "bias",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs, llama.cpp convert_lora_to_gguf.py",
        why: "an adapter's own biases are not loaded",
        fix: "merge it into its base with PEFT, or train with `bias: none`",
        check: facts_only!(bias),
    },
    Rule {
        name: "bias-ignored",
        servers: &[Sglang, Tgi],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/mem_pool.py, TGI adapters/lora.py",
        why: "they have no place for an adapter's own biases, and leave them out",
        fix: "merge it into its base with PEFT, or train with `bias: none`",
        check: facts_only!(bias),
    },
    Rule {
        name: "lora-bias",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs, llama.cpp convert_lora_to_gguf.py",
        why: "a bias of lora_B is not loaded",
        fix: "merge it into its base with PEFT",
        check: facts_only!(lora_bias),
    },
    Rule {
        name: "lora-bias-ignored",
        servers: &[Sglang, Tgi],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/mem_pool.py, TGI adapters/lora.py",
        why: "they have no place for a bias of lora_B, and leave it out",
        fix: "merge it into its base with PEFT",
        check: facts_only!(lora_bias),
    },
    Rule {
        name: "trainable-tokens",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/utils.py, mistral.rs mistralrs-quant/src/lora/mod.rs, llama.cpp convert_lora_to_gguf.py",
        why: "single trained rows of the embedding are not loaded",
        fix: "merge it into its base with PEFT",
        check: facts_only!(trainable_tokens),
    },
    Rule {
        name: "trainable-tokens-ignored",
        servers: &[Sglang, Tgi],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/lora.py, TGI adapters/lora.py",
        why: "they pass over single trained rows of the embedding",
        fix: "merge it into its base with PEFT",
        check: facts_only!(trainable_tokens),
    },
    Rule {
        name: "layer-replication",
        servers: &[Vllm, Sglang, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs, SGLang srt/lora/lora.py, \
                 llama.cpp src/llama-adapter.cpp",
        why: "the base that they serve has its own layers only, not the repeated ones",
        fix: "write the model with its repeated layers to a folder of its own, and serve that",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "layer_replication")),
    },
    Rule {
        name: "layer-replication-ignored",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py",
        why: "it does not repeat the layers, and passes over what belongs to those that it lacks",
        fix: "write the model with its repeated layers to a folder of its own, and serve that",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "layer_replication")),
    },
    Rule {
        name: "init-changes-base",
        servers: &[Sglang, Tgi, LlamaCpp, Ollama, Mlx],
        severity: Severity::Wrong,
        source: "PEFT tuners/lora/layer.py; none of the servers reads the key",
        why: "PEFT takes the initial matrices out of the base's weights as it loads such an adapter; these servers do not, \
              and so add them twice",
        fix: "convert it with PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`; or, where the \
               served base has the changed weights, set `init_lora_weights` to true",
        check: facts_only!(|facts: &AdapterFacts| init(facts, changes_base)),
    },
    Rule {
        name: "vllm-init",
        servers: &[Vllm],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py",
        why: "of the initialisations with a name it takes gaussian, eva, orthogonal, mica and lora_ga: others change the base",
        fix: "convert it with PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`; or, where the \
               served base has the changed weights, set `init_lora_weights` to true",
        check: facts_only!(|facts: &AdapterFacts| {
            init(facts, |name| !matches!(name, "gaussian" | "eva" | "orthogonal" | "mica" | "lora_ga"))
        }),
    },
    Rule {
        name: "mistralrs-init",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "initialisations that change the base's weights are refused by name, as are values that are neither a word nor a flag",
        fix: "convert it with PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`; or, where the \
               served base has the changed weights, set `init_lora_weights` to true",
        check: facts_only!(|facts: &AdapterFacts| {
            let value = facts.value("init_lora_weights")?;
            let refused = |name: &str| changes_base(name) || name == "lora_ga";
            if value.is_boolean() || value.is_string() {
                return init(facts, refused);
            }
            Some(format!("`init_lora_weights` is {}", shown(value)).into())
        }),
    },
    Rule {
        name: "alora",
        servers: &[Vllm, MistralRs],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "an activated LoRA works from its invocation on only, which they cannot do",
        fix: "serve it with llama.cpp or PEFT, or train a LoRA adapter",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "alora_invocation_tokens")),
    },
    Rule {
        name: "alora-ignored",
        servers: &[Sglang, Tgi, Ollama, Mlx],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/lora_config.py, TGI adapters/lora.py, Ollama convert/convert.go",
        why: "they do not read the invocation, and apply the adapter to every token",
        fix: "serve it with llama.cpp or PEFT, or train a LoRA adapter",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "alora_invocation_tokens")),
    },
    Rule {
        name: "qalora",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "lora_A is of pooled inputs, so that it does not fit the base's layers",
        fix: "serve it with PEFT, or train a LoRA adapter",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "use_qalora")),
    },
    Rule {
        name: "bdlora",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "block-diagonal matrices are stored without their zeros, so that they do not fit the base's layers",
        fix: "serve it with PEFT, or train a LoRA adapter",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "use_bdlora")),
    },
    Rule {
        name: "kasa",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "PEFT tuners/lora/variants.py, vLLM lora/utils.py, llama.cpp convert_lora_to_gguf.py",
        why: "KaSA has a diagonal between the matrices, whose tensors they do not know",
        fix: "merge it into its base with PEFT",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "kasa_config")),
    },
    Rule {
        name: "kasa-ignored",
        servers: &[Sglang, Tgi],
        severity: Severity::Wrong,
        source: "PEFT tuners/lora/variants.py, SGLang srt/lora/lora_config.py, TGI adapters/lora.py",
        why: "KaSA takes components out of the base and has a diagonal between the matrices; they do neither",
        fix: "merge it into its base with PEFT",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "kasa_config")),
    },
    Rule {
        name: "arrow-ignored",
        servers: &[Vllm, Sglang, Tgi, LlamaCpp, Ollama, Mlx],
        severity: Severity::Wrong,
        source: "PEFT tuners/lora/arrow.py; none of the servers reads the key",
        why: "Arrow routes each token to some of several adapters; they know nothing of it",
        fix: "serve it with PEFT",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "arrow_config")),
    },
    Rule {
        name: "mistralrs-unsupported",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "it refuses a configuration with this key, whatever the tensors are",
        fix: "where the adapter is a plain LoRA all the same, take the key out of adapter_config.json",
        check: facts_only!(|facts: &AdapterFacts| {
            ["arrow_config", "monteclora_config", "ensure_weight_tying", "megatron_config"]
                .into_iter()
                .find_map(|name| key(facts, name))
        }),
    },
    Rule {
        name: "mistralrs-null",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/mod.rs",
        why: "it takes these keys with a value, or not at all",
        fix: "take the key out of adapter_config.json",
        check: facts_only!(|facts: &AdapterFacts| {
            let keys = [
                "rank_pattern",
                "alpha_pattern",
                "use_rslora",
                "use_dora",
                "lora_bias",
                "bias",
                "use_qalora",
                "ensure_weight_tying",
            ];
            let null = listed(keys.into_iter().filter(|key| facts.config.get(*key).is_some_and(Value::is_null)))?;
            Some(format!("null: {null}").into())
        }),
    },
    Rule {
        name: "fan-in-fan-out",
        servers: &[LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "llama.cpp convert_lora_to_gguf.py, Ollama convert/convert.go, mlx-lm mlx_lm/tuner/lora.py",
        why: "the base keeps its weights transposed (GPT-2's kind), and the matrices end up on the wrong sides",
        fix: "merge it into its base with PEFT, and convert that",
        check: facts_only!(|facts: &AdapterFacts| key(facts, "fan_in_fan_out")),
    },
    Rule {
        name: "task-type",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Note,
        source: "PEFT utils/peft_types.py",
        why: "the adapter was trained for another task than to write text",
        fix: "serve its base for that task (vLLM: `--runner pooling` for classifiers), not for generation",
        check: facts_only!(|facts: &AdapterFacts| {
            let task = facts.text("task_type").filter(|task| *task != "CAUSAL_LM" && TASKS.contains(task))?;
            Some(format!("`task_type` is {task}").into())
        }),
    },
    Rule {
        name: "task-type-unknown",
        servers: &[Tgi, Peft],
        severity: Severity::Refused,
        source: "PEFT config.py",
        why: "PEFT, with which they read the configuration, refuses a task that it does not know",
        fix: "write `\"task_type\": \"CAUSAL_LM\"`",
        check: facts_only!(|facts: &AdapterFacts| {
            let task =
                facts.value("task_type").filter(|task| !task.as_str().is_some_and(|task| TASKS.contains(&task)))?;
            Some(format!("`task_type` is {}", shown(task)).into())
        }),
    },
];

/// PEFT's tasks.
const TASKS: [&str; 6] = ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

fn first_of(facts: &AdapterFacts, kind: TensorKind) -> Check {
    let names = listed(facts.of_kind(kind).map(|tensor| tensor.name.as_str()))?;
    Some(format!("tensors {names}").into())
}

fn dora(facts: &AdapterFacts) -> Check {
    key(facts, "use_dora").or_else(|| first_of(facts, TensorKind::Magnitude))
}

fn bias(facts: &AdapterFacts) -> Check {
    let set = facts.value("bias").filter(|bias| bias.as_str() != Some("none"));
    set.map(|bias| format!("`bias` is {}", shown(bias)).into()).or_else(|| first_of(facts, TensorKind::Bias))
}

fn lora_bias(facts: &AdapterFacts) -> Check {
    key(facts, "lora_bias").or_else(|| first_of(facts, TensorKind::BiasOfB))
}

fn trainable_tokens(facts: &AdapterFacts) -> Check {
    key(facts, "trainable_token_indices").or_else(|| first_of(facts, TensorKind::Tokens))
}

/// Initialisations after which the base's weights are no longer the base's.
fn changes_base(name: &str) -> bool {
    matches!(name, "pissa" | "olora" | "corda" | "loftq") || name.starts_with("pissa_niter_")
}

fn init(facts: &AdapterFacts, refused: impl Fn(&str) -> bool) -> Check {
    let name = facts.text("init_lora_weights")?;
    refused(&name.to_lowercase()).then(|| format!("`init_lora_weights` is {}", shown(&Value::from(name))).into())
}
