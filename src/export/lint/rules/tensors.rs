//! Names, shapes and types of tensors.

use super::super::Server::{LlamaCpp, MistralRs, Mlx, Ollama, Peft, Sglang, Tgi, Vllm};
use super::super::facts::{AdapterFacts, TensorFact};
use super::super::names::TensorKind;
use super::super::{Rule, Settings, Severity};
use super::{Check, facts_only, listed};
use std::collections::BTreeMap;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "adapter-in-names",
        servers: &[Vllm, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/utils.py, llama.cpp convert_lora_to_gguf.py",
        why: "names end in `lora_A.weight` and `lora_B.weight`; the adapter's own name does not stand between",
        fix: "save it with PEFT's `save_pretrained`, which takes the name out, not from `state_dict`",
        check: facts_only!(adapter_in_names),
    },
    Rule {
        name: "adapter-in-names-ignored",
        servers: &[Tgi, Peft],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py, PEFT utils/save_and_load.py",
        why: "tensors are looked up as `lora_A.weight` and `lora_B.weight`; others are passed over",
        fix: "save it with PEFT's `save_pretrained`, which takes the adapter's name out, not from `state_dict`",
        check: facts_only!(adapter_in_names),
    },
    Rule {
        name: "prefix-missing",
        servers: &[Tgi, Peft],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py, PEFT utils/save_and_load.py",
        why: "tensors are looked up as `base_model.model.` and the module's path; others are passed over",
        fix: "rename the tensors to begin with `base_model.model.`",
        check: facts_only!(|facts: &AdapterFacts| {
            named(facts, |tensor| !tensor.parsed.prefixed && is_part(tensor.parsed.kind))
        }),
    },
    Rule {
        name: "wrapped-names",
        servers: &[MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, llama.cpp convert_lora_to_gguf.py",
        why: "no module of the base has such a path",
        fix: "rename the tensors to `base_model.model.` and the module's path in the base",
        check: facts_only!(wrapped_names),
    },
    Rule {
        name: "wrapped-names-ignored",
        servers: &[Vllm, Tgi, Peft],
        severity: Severity::Wrong,
        source: "vLLM lora/model_manager.py, TGI adapters/lora.py, PEFT utils/save_and_load.py",
        why: "no module of the base has such a path; the base alone answers",
        fix: "rename the tensors to `base_model.model.` and the module's path in the base",
        check: facts_only!(wrapped_names),
    },
    Rule {
        name: "embedding-saved",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/utils.py, mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, \
                 llama.cpp convert_lora_to_gguf.py",
        why: "PEFT saves the whole embedding with an adapter when tokens were added; it is not part of a LoRA to them",
        fix: "merge it into its base; or, where no token was added, save it with `save_embedding_layers=False`",
        check: facts_only!(embedding_saved),
    },
    Rule {
        name: "embedding-saved-ignored",
        servers: &[Sglang, Tgi],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/lora.py, TGI adapters/lora.py",
        why: "PEFT saves the whole embedding with an adapter when tokens were added; they pass over it",
        fix: "merge it into its base; or, where no token was added, save it with `save_embedding_layers=False`",
        check: facts_only!(embedding_saved),
    },
    Rule {
        name: "embedding-adapted",
        servers: &[MistralRs],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs",
        why: "an adapted embedding is not supported",
        fix: "train without `embed_tokens`",
        check: facts_only!(|facts: &AdapterFacts| {
            named(facts, |tensor| matches!(tensor.parsed.kind, TensorKind::EmbeddingA | TensorKind::EmbeddingB))
        }),
    },
    Rule {
        name: "not-lora",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/utils.py, mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, \
                 llama.cpp convert_lora_to_gguf.py",
        why: "a tensor that is not a LoRA matrix is an error",
        fix: "save the adapter alone, with PEFT's `save_pretrained`",
        check: facts_only!(not_lora),
    },
    Rule {
        name: "norm-ignored",
        servers: &[Vllm, MistralRs],
        severity: Severity::Refused,
        source: "vLLM lora/utils.py, mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs",
        why: "a normalization's weight in an adapter is an error",
        fix: "merge it into its base, or leave the tensor out",
        check: facts_only!(norms),
    },
    Rule {
        name: "norm-passed-over",
        servers: &[Sglang, Tgi, LlamaCpp, Ollama],
        severity: Severity::Wrong,
        source: "llama.cpp src/llama-adapter.cpp, TGI adapters/lora.py",
        why: "a normalization's weight in an adapter is passed over",
        fix: "merge it into its base",
        check: facts_only!(norms),
    },
    Rule {
        name: "unpaired",
        servers: &[Vllm, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Refused,
        source: "mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, llama.cpp convert_lora_to_gguf.py",
        why: "an update is made of both matrices",
        fix: "save the adapter anew; a tensor is missing",
        check: facts_only!(unpaired),
    },
    Rule {
        name: "unpaired-ignored",
        servers: &[Sglang, Tgi, Peft],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/mem_pool.py, TGI adapters/lora.py, PEFT utils/save_and_load.py",
        why: "a module with one matrix only is not adapted",
        fix: "save the adapter anew; a tensor is missing",
        check: facts_only!(unpaired),
    },
    Rule {
        name: "rank-mismatch",
        servers: &[Sglang, MistralRs, Mlx, Peft],
        severity: Severity::Refused,
        source: "SGLang srt/lora/mem_pool.py, mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, \
                 PEFT utils/save_and_load.py",
        why: "matrices that are not of the rank in the configuration do not fit what was made for them",
        fix: "put the adapter_config.json of this training beside the tensors",
        check: facts_only!(rank_mismatch),
    },
    Rule {
        name: "rank-mismatch-ignored",
        servers: &[Vllm, Tgi, LlamaCpp, Ollama],
        severity: Severity::Wrong,
        source: "vLLM lora/peft_helper.py, TGI adapters/lora.py, llama.cpp src/llama-adapter.h",
        why: "vLLM and TGI divide alpha by the configuration's rank, llama.cpp by the matrices'",
        fix: "put the adapter_config.json of this training beside the tensors",
        check: facts_only!(rank_mismatch),
    },
    Rule {
        name: "shape-mismatch",
        servers: &[Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx, Peft],
        severity: Severity::Refused,
        source: "SGLang srt/lora/mem_pool.py, mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs, \
                 llama.cpp src/llama-adapter.cpp, PEFT utils/save_and_load.py",
        why: "the matrices do not fit the base's module",
        fix: "serve it on the base that it was trained on",
        check: facts_only!(shape_mismatch),
    },
    Rule {
        name: "vllm-shape-mismatch",
        servers: &[Vllm],
        severity: Severity::Wrong,
        source: "vLLM lora/layers/base_linear.py",
        why: "matrices that are smaller than the base's module are copied into a corner of it; larger ones are an error",
        fix: "serve it on the base that it was trained on",
        check: facts_only!(shape_mismatch),
    },
    Rule {
        name: "integer-tensors",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx, Peft],
        severity: Severity::Wrong,
        source: "vLLM lora/lora_model.py, SGLang srt/lora/utils.py, TGI adapters/lora.py",
        why: "integers are taken for the numbers themselves; no server reads the scales of a quantized adapter",
        fix: "save the adapter in F32, F16 or BF16",
        check: facts_only!(|facts: &AdapterFacts| {
            let integer = |tensor: &TensorFact| tensor.dtype.starts_with(['I', 'U']) || tensor.dtype == "BOOL";
            named(facts, integer)
        }),
    },
];

const fn is_part(kind: TensorKind) -> bool {
    matches!(kind, TensorKind::A | TensorKind::B | TensorKind::EmbeddingA | TensorKind::EmbeddingB)
}

/// The tensors of which `which` holds.
fn named(facts: &AdapterFacts, which: impl Fn(&TensorFact) -> bool) -> Check {
    let names = facts.tensors.iter().filter(|tensor| which(tensor)).map(|tensor| tensor.name.as_str());
    Some(format!("tensors {}", listed(names)?).into())
}

fn adapter_in_names(facts: &AdapterFacts) -> Check {
    named(facts, |tensor| tensor.parsed.adapter.is_some())
}

/// Wrappers of a trainer that are still in the path, a second prefix, or an inner model's path without its `model.`.
fn wrapped_names(facts: &AdapterFacts) -> Check {
    named(facts, |tensor| {
        let path = &tensor.parsed.module;
        let wrapper = |part: &str| matches!(part, "_orig_mod" | "_fsdp_wrapped_module" | "_checkpoint_wrapped_module");
        let inner = tensor.parsed.prefixed && (path.starts_with("layers.") || path.starts_with("h."));
        is_part(tensor.parsed.kind)
            && (inner || path.starts_with("base_model.") || path.starts_with("module.") || path.split('.').any(wrapper))
    })
}

fn embedding_saved(facts: &AdapterFacts) -> Check {
    if facts.truthy("modules_to_save").is_some() {
        return None;
    }
    named(facts, |tensor| tensor.parsed.kind == TensorKind::Embedding)
}

fn norms(facts: &AdapterFacts) -> Check {
    if facts.truthy("modules_to_save").is_some() {
        return None;
    }
    named(facts, |tensor| tensor.parsed.kind == TensorKind::Norm)
}

/// Tensors of no known kind, unless the configuration says what they are: then that has a rule of its own.
fn not_lora(facts: &AdapterFacts) -> Check {
    let plain = facts.text("peft_type").is_none_or(|kind| kind.eq_ignore_ascii_case("LORA"));
    let explained = ["modules_to_save", "kasa_config"].into_iter().any(|key| facts.truthy(key).is_some());
    if !plain || explained {
        return None;
    }
    named(facts, |tensor| matches!(tensor.parsed.kind, TensorKind::Other | TensorKind::LowerA | TensorKind::LowerB))
}

fn unpaired(facts: &AdapterFacts) -> Check {
    let mut halves: BTreeMap<(&str, bool), (&str, usize)> = BTreeMap::new();
    for tensor in &facts.tensors {
        let embedding = match tensor.parsed.kind {
            TensorKind::A | TensorKind::B => false,
            TensorKind::EmbeddingA | TensorKind::EmbeddingB => true,
            _ => continue,
        };
        halves.entry((&tensor.parsed.module, embedding)).or_insert((&tensor.name, 0)).1 += 1;
    }
    let alone = halves.into_values().filter(|(_, count)| *count == 1).map(|(name, _)| name);
    Some(format!("no other half to {}", listed(alone)?).into())
}

fn rank_mismatch(facts: &AdapterFacts) -> Check {
    let r = facts.rank().filter(|_| facts.truthy("rank_pattern").is_none())?;
    let tensor = facts.tensors.iter().find(|tensor| match (tensor.parsed.kind, tensor.shape.as_slice()) {
        (TensorKind::A | TensorKind::EmbeddingA, &[rank, _]) | (TensorKind::B | TensorKind::EmbeddingB, &[_, rank]) => {
            rank != r
        }
        _ => false,
    })?;
    Some(format!("`r` is {r}, `{}` has the shape {:?}", tensor.name, tensor.shape).into())
}

fn shape_mismatch(facts: &AdapterFacts) -> Check {
    let modules = &facts.base.as_ref()?.modules;
    let fits = |tensor: &TensorFact| {
        let Some(&(out, width)) = modules.get(&tensor.parsed.module) else { return true };
        match (tensor.parsed.kind, tensor.shape.as_slice()) {
            (TensorKind::A, &[_, got]) => got == width,
            (TensorKind::B, &[got, _]) => got == out,
            (TensorKind::A | TensorKind::B, _) => tensor.parsed.is_expert(),
            _ => true,
        }
    };
    let pooled = ["use_qalora", "use_bdlora"].into_iter().any(|key| facts.truthy(key).is_some());
    let tensor = facts.tensors.iter().find(|tensor| !pooled && !fits(tensor))?;
    let (out, width) = modules.get(&tensor.parsed.module)?;
    Some(
        format!("`{}` has the shape {:?}, the base's module takes {width} and gives {out}", tensor.name, tensor.shape)
            .into(),
    )
}
