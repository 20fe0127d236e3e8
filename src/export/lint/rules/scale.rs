//! Rank and scale.

use super::super::Server::{LlamaCpp, MistralRs, Mlx, Ollama, Peft, Sglang, Tgi, Vllm};
use super::super::facts::AdapterFacts;
use super::super::{Rule, Settings, Severity};
use super::{Check, Found, facts_only, key, listed, shown};
use crate::adapter::vllm_rank;

/// vLLM's `--max-lora-rank`, if nothing is said.
const VLLM_DEFAULT: usize = 16;
/// mistral.rs's `--lora-max-rank`, if nothing is said.
const MISTRALRS_DEFAULT: usize = 256;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "config-incomplete",
        servers: &[Vllm, Sglang, MistralRs, LlamaCpp, Mlx],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, SGLang srt/lora/lora_config.py, mistral.rs mistralrs-quant/src/lora/mod.rs, \
                 llama.cpp convert_lora_to_gguf.py",
        why: "rank and alpha are needed for the scale, and are looked up without a default",
        fix: "add what is missing to adapter_config.json, as it was in training",
        check: facts_only!(incomplete),
    },
    Rule {
        name: "config-defaults",
        servers: &[Tgi, Ollama, Peft],
        severity: Severity::Wrong,
        source: "PEFT tuners/lora/config.py, Ollama convert/convert.go",
        why: "a missing `r` or `lora_alpha` is taken for 8 (Ollama: the update is not scaled at all)",
        fix: "add what is missing to adapter_config.json, as it was in training",
        check: facts_only!(incomplete),
    },
    Rule {
        name: "alpha-zero",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx, Peft],
        severity: Severity::Wrong,
        source: "llama.cpp src/llama-adapter.h; elsewhere the scale is lora_alpha / r",
        why: "the adapter is scaled to nothing; llama.cpp and Ollama take 0 for 'unscaled'",
        fix: "write the `lora_alpha` of training",
        check: facts_only!(|facts: &AdapterFacts| {
            let alpha = facts.number("lora_alpha").filter(|alpha| *alpha <= 0.0)?;
            Some(format!("`lora_alpha` is {alpha}").into())
        }),
    },
    Rule {
        name: "vllm-max-rank",
        servers: &[Vllm],
        severity: Severity::Note,
        source: "vLLM config/lora.py",
        why: "without a flag vLLM takes adapters of rank 16 at most",
        fix: "start it with a higher `--max-lora-rank`",
        check: |facts, settings| {
            let r = facts.highest_rank().filter(|_| settings.max_rank.is_none())?;
            let fits = vllm_rank(r).filter(|_| r > VLLM_DEFAULT)?;
            Some(Found::with_fix(rank_is(facts, r), format!("start vLLM with `--max-lora-rank {fits}`")))
        },
    },
    Rule {
        name: "vllm-rank-limit",
        servers: &[Vllm],
        severity: Severity::Refused,
        source: "vLLM config/lora.py",
        why: "its `--max-lora-rank` takes 1, 8, 16, 32, 64, 128, 256, 320 and 512, and nothing higher",
        fix: "train with an `r` of 512 at most, or merge the adapter into its base",
        check: facts_only!(|facts: &AdapterFacts| {
            let r = facts.highest_rank().filter(|&r| vllm_rank(r).is_none())?;
            Some(rank_is(facts, r).into())
        }),
    },
    Rule {
        name: "rank-over-limit",
        servers: &[Vllm, Sglang, MistralRs],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, SGLang srt/lora/mem_pool.py, mistral.rs mistralrs-core/src/adapter/runtime.rs",
        why: "an adapter over the rank that the server was started for is refused",
        fix: "start the server for a higher rank, or train with a lower `r`",
        check: |facts, settings| {
            let (r, limit) = facts.highest_rank().zip(settings.max_rank).filter(|(r, limit)| r > limit)?;
            Some(format!("{}, the server takes {limit} at most", rank_is(facts, r)).into())
        },
    },
    Rule {
        name: "mistralrs-max-rank",
        servers: &[MistralRs],
        severity: Severity::Note,
        source: "mistral.rs mistralrs-core/src/adapter/runtime.rs",
        why: "without a flag mistral.rs takes adapters of rank 256 at most",
        fix: "start it with a higher `--lora-max-rank`",
        check: |facts, settings| {
            let r = facts.highest_rank().filter(|&r| settings.max_rank.is_none() && r > MISTRALRS_DEFAULT)?;
            Some(Found::with_fix(rank_is(facts, r), format!("start mistral.rs with `--lora-max-rank {r}`")))
        },
    },
    Rule {
        name: "tgi-rank-padding",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py and its punica kernels, LoRAX adapters/lora.py and utils/punica.py",
        why: "ranks are padded to 8 or to a multiple of 16, and the padded rank then stands in `lora_alpha / r` of every kind \
              of module after the first",
        fix: "train with an `r` of 8, 16, 32 or 64 (on several GPUs, of 8 for each at least)",
        check: facts_only!(|facts: &AdapterFacts| {
            let r = facts.rank().filter(|&r| r != 8 && r % 16 != 0)?;
            (facts.tensors.is_empty() || facts.leaves().len() > 1).then(|| rank_is(facts, r).into())
        }),
    },
    Rule {
        name: "rslora-ignored",
        servers: &[Sglang, LlamaCpp, Ollama],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/lora.py, llama.cpp convert_lora_to_gguf.py, Ollama convert/convert.go",
        why: "they do not read `use_rslora`, and scale by lora_alpha / r",
        fix: "write `\"use_rslora\": false` and a `lora_alpha` of alpha·√r, which is the same everywhere",
        check: facts_only!(|facts: &AdapterFacts| {
            let found = key(facts, "use_rslora")?.what;
            let (alpha, r) = facts.number("lora_alpha").zip(facts.rank())?;
            let folded = alpha * (r as f64).sqrt();
            let fix = format!(
                "write `\"use_rslora\": false` and `\"lora_alpha\": {folded}` (alpha·√r), which is the same everywhere; \
                 Equipoise writes its adapters so"
            );
            Some(Found::with_fix(found, fix))
        }),
    },
    Rule {
        name: "rank-pattern",
        servers: &[Sglang, Mlx],
        severity: Severity::Refused,
        source: "SGLang srt/lora/mem_pool.py, mlx-lm mlx_lm/tuner/utils.py",
        why: "they have one rank for all modules, and matrices of another do not fit",
        fix: "train with one rank for all modules",
        check: facts_only!(|facts: &AdapterFacts| pattern(facts, "rank_pattern", "r")),
    },
    Rule {
        name: "rank-pattern-ignored",
        servers: &[Tgi],
        severity: Severity::Wrong,
        source: "TGI adapters/lora.py",
        why: "it scales every module by lora_alpha / r, with the one `r` of the configuration",
        fix: "train with one rank for all modules",
        check: facts_only!(|facts: &AdapterFacts| pattern(facts, "rank_pattern", "r")),
    },
    Rule {
        name: "alpha-pattern-ignored",
        servers: &[Sglang, Tgi, LlamaCpp, Ollama, Mlx],
        severity: Severity::Wrong,
        source: "SGLang srt/lora/lora.py (its later versions refuse), TGI adapters/lora.py, llama.cpp convert_lora_to_gguf.py",
        why: "they scale every module by the one `lora_alpha` of the configuration",
        fix: "train with one alpha for all modules",
        check: facts_only!(|facts: &AdapterFacts| pattern(facts, "alpha_pattern", "lora_alpha")),
    },
    Rule {
        name: "vllm-patterns",
        servers: &[Vllm],
        severity: Severity::Note,
        source: "vLLM lora/peft_helper.py",
        why: "current versions read rank and alpha patterns; those of 2025 scale every module by the one alpha and rank",
        fix: "serve it with vLLM 0.33 or later",
        check: facts_only!(|facts: &AdapterFacts| {
            pattern(facts, "rank_pattern", "r").or_else(|| pattern(facts, "alpha_pattern", "lora_alpha"))
        }),
    },
];

/// `r is 24`, or whose rank it is.
fn rank_is(facts: &AdapterFacts, r: usize) -> String {
    if facts.rank() == Some(r) { format!("`r` is {r}") } else { format!("`rank_pattern` goes up to {r}") }
}

fn incomplete(facts: &AdapterFacts) -> Check {
    let missing = [("r", facts.rank().is_none()), ("lora_alpha", facts.number("lora_alpha").is_none())];
    let names = listed(missing.into_iter().filter_map(|(name, missing)| missing.then_some(name)))?;
    Some(format!("no number in adapter_config.json for {names}").into())
}

/// A pattern with at least one value that is not the default's.
fn pattern(facts: &AdapterFacts, name: &str, default: &str) -> Check {
    let pattern = facts.truthy(name)?;
    let usual = facts.number(default);
    let differs = pattern.as_object().is_none_or(|map| map.values().any(|value| value.as_f64() != usual));
    differs.then(|| format!("`{name}` is {}", shown(pattern)).into())
}
