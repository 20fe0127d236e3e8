//! Adapters that are not PEFT folders: GGUF files and mlx-lm's folders.

use super::super::Server::{LlamaCpp, MistralRs, Mlx, Ollama, Peft, Sglang, Tgi, Vllm};
use super::super::facts::{AdapterFacts, Layout};
use super::super::names::TensorKind;
use super::super::{Rule, Settings, Severity};
use super::{Check, facts_only, listed, shown};
use serde_json::Value;
use std::collections::BTreeMap;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "format-gguf",
        servers: &[Vllm, Sglang, Tgi, MistralRs, Mlx, Peft],
        severity: Severity::Refused,
        source: "vLLM lora/lora_model.py, mistral.rs mistralrs-core/src/adapter/runtime.rs, mlx-lm mlx_lm/tuner/utils.py",
        why: "they read folders with adapter_config.json, not GGUF adapters",
        fix: "serve the PEFT folder that the file was made from (mlx-lm: `equipoise export --to mlx` of it)",
        check: facts_only!(|facts: &AdapterFacts| {
            (facts.layout == Layout::Gguf).then(|| "the adapter is a GGUF file".to_owned().into())
        }),
    },
    Rule {
        name: "format-mlx",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Peft],
        severity: Severity::Refused,
        source: "vLLM lora/peft_helper.py, mistral.rs mistralrs-quant/src/lora/mod.rs, PEFT config.py",
        why: "mlx-lm's configuration has neither `r` nor `peft_type`, and its matrices lie transposed under other names",
        fix: "serve the PEFT folder that it was made from (llama.cpp: `equipoise export --to gguf-adapter` of it)",
        check: facts_only!(mlx),
    },
    Rule {
        name: "ollama-mlx",
        servers: &[Ollama],
        severity: Severity::Wrong,
        source: "Ollama convert/convert.go, convert/convert_llama_adapter.go",
        why: "it passes over mlx-lm's `scale` and applies the update unscaled, and leaves the rows of q and k in an order that \
              llama.cpp does not want",
        fix: "make a GGUF adapter of the PEFT folder with `equipoise export --to gguf-adapter`",
        check: facts_only!(mlx),
    },
    Rule {
        name: "mlx-config",
        servers: &[Mlx],
        severity: Severity::Refused,
        source: "mlx-lm mlx_lm/tuner/utils.py",
        why: "it needs `num_layers`, and `rank`, `scale` and `dropout` of `lora_parameters`",
        fix: "make the folder anew with `equipoise export --to mlx`",
        check: facts_only!(|facts: &AdapterFacts| {
            if facts.layout != Layout::Mlx || facts.text("fine_tune_type") == Some("full") {
                return None;
            }
            let inner = |key: &str| facts.value("lora_parameters").and_then(|inner| inner.get(key));
            let lacks = |key: &&str| match *key {
                "num_layers" => facts.number("num_layers").is_none(),
                key => inner(key).and_then(Value::as_f64).is_none(),
            };
            let missing = listed(["num_layers", "rank", "scale", "dropout"].into_iter().filter(lacks))?;
            Some(format!("adapter_config.json has no number for {missing}").into())
        }),
    },
    Rule {
        name: "mlx-tensors",
        servers: &[Mlx],
        severity: Severity::Refused,
        source: "mlx-lm mlx_lm/tuner/utils.py",
        why: "it reads adapters.safetensors, whose tensors are all called `lora_a`, `lora_b` or `m`",
        fix: "make the folder anew with `equipoise export --to mlx`",
        check: facts_only!(|facts: &AdapterFacts| {
            if facts.layout != Layout::Mlx || facts.text("fine_tune_type") == Some("full") {
                return None;
            }
            if facts.weight_files.iter().all(|name| name != "adapters.safetensors") {
                return Some("there is no adapters.safetensors".to_owned().into());
            }
            let known = |name: &str| matches!(name.rsplit('.').next(), Some("lora_a" | "lora_b" | "m"));
            let names = facts.tensors.iter().map(|tensor| tensor.name.as_str()).filter(|name| !known(name));
            Some(format!("tensors {}", listed(names)?).into())
        }),
    },
    Rule {
        name: "gguf-kind",
        servers: &[LlamaCpp, Ollama],
        severity: Severity::Refused,
        source: "llama.cpp src/llama-adapter.cpp",
        why: "an adapter's file says `general.type` adapter, `adapter.type` lora, and the base's `general.architecture`",
        fix: "make the file with `equipoise export --to gguf-adapter`; a model's file goes after `-m` or `FROM`",
        check: facts_only!(|facts: &AdapterFacts| {
            if facts.layout != Layout::Gguf {
                return None;
            }
            let wrong = |key: &str, wanted: &str| {
                let got = facts.value(key);
                let missing = || "missing".to_owned();
                (got.and_then(Value::as_str) != Some(wanted))
                    .then(|| format!("`{key}` is {}", got.map_or_else(missing, shown)).into())
            };
            wrong("general.type", "adapter").or_else(|| wrong("adapter.type", "lora")).or_else(|| {
                let missing = facts.text("general.architecture").is_none();
                missing.then(|| "`general.architecture` is missing".to_owned().into())
            })
        }),
    },
    Rule {
        name: "gguf-alpha",
        servers: &[LlamaCpp, Ollama],
        severity: Severity::Wrong,
        source: "llama.cpp src/llama-adapter.h",
        why: "without `adapter.lora.alpha`, or with 0, the update is applied unscaled",
        fix: "make the file anew with `equipoise export --to gguf-adapter`",
        check: facts_only!(|facts: &AdapterFacts| {
            let alpha = facts.number("adapter.lora.alpha").unwrap_or(0.0);
            let adapter = facts.text("general.type") == Some("adapter");
            (facts.layout == Layout::Gguf && adapter && alpha == 0.0)
                .then(|| "`adapter.lora.alpha` is 0 or missing".to_owned().into())
        }),
    },
    Rule {
        name: "gguf-tensors",
        servers: &[LlamaCpp, Ollama],
        severity: Severity::Refused,
        source: "llama.cpp src/llama-adapter.cpp",
        why: "its tensors are pairs, `NAME.weight.lora_a` and `NAME.weight.lora_b`, beside weights of normalizations",
        fix: "make the file anew with `equipoise export --to gguf-adapter`",
        check: facts_only!(gguf_tensors),
    },
];

fn mlx(facts: &AdapterFacts) -> Check {
    (facts.layout == Layout::Mlx).then(|| "the adapter is a folder of mlx-lm's".to_owned().into())
}

fn gguf_tensors(facts: &AdapterFacts) -> Check {
    if facts.layout != Layout::Gguf || facts.text("general.type") != Some("adapter") {
        return None;
    }
    if facts.tensors.is_empty() {
        return Some("there are no tensors".to_owned().into());
    }
    let mut halves: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unknown = Vec::new();
    for tensor in &facts.tensors {
        match tensor.parsed.kind {
            TensorKind::LowerA | TensorKind::LowerB => *halves.entry(&tensor.parsed.module).or_default() += 1,
            _ if tensor.name.ends_with("_norm.weight") => {}
            _ => unknown.push(tensor.name.as_str()),
        }
    }
    let alone = halves.into_iter().filter(|(_, count)| *count == 1).map(|(name, _)| name);
    Some(format!("tensors {}", listed(unknown.into_iter().chain(alone))?).into())
}
