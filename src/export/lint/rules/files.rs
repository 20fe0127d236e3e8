//! What lies in a PEFT folder, and where it says that its base is.

use super::super::Server::{LlamaCpp, MistralRs, Mlx, Ollama, Peft, Sglang, Tgi, Vllm};
use super::super::facts::{AdapterFacts, Layout};
use super::super::read::TENSORS;
use super::super::{Rule, Settings, Severity};
use super::{Check, Found, cut, facts_only, listed};
use std::fmt::Write as _;
use std::path::Path;

/// Architectures that Equipoise trains and mlx-lm does not have.
const NOT_IN_MLX: [&str; 1] = ["ministral"];

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "no-tensors",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx, Peft],
        severity: Severity::Refused,
        source: "vLLM lora/lora_model.py, TGI utils/adapter.py, PEFT utils/save_and_load.py",
        why: "there is nothing to load",
        fix: "put the adapter_model.safetensors of the training beside adapter_config.json",
        check: facts_only!(|facts: &AdapterFacts| {
            facts.weight_files.is_empty().then(|| format!("there is no {TENSORS} in the folder").into())
        }),
    },
    Rule {
        name: "no-lora",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx, Peft],
        severity: Severity::Wrong,
        source: "vLLM lora/lora_model.py, mistral.rs mistralrs-quant/src/lora/dynamic/loader.rs (which refuses)",
        why: "an adapter without tensors is the base",
        fix: "save the adapter anew; its trainer wrote an empty file",
        check: facts_only!(|facts: &AdapterFacts| {
            let headers = facts.layout == Layout::Peft && facts.weight_files.iter().any(|name| !is_pickle(name));
            let empty = headers && facts.tensors.is_empty();
            empty.then(|| "the file of tensors holds none".to_owned().into())
        }),
    },
    Rule {
        name: "pickle",
        servers: &[Tgi, MistralRs, Ollama, Mlx],
        severity: Severity::Refused,
        source: "TGI utils/adapter.py, mistral.rs mistralrs-core/src/adapter/runtime.rs, Ollama convert/reader.go",
        why: "they read safetensors only",
        fix: "load it with PEFT and save it with `safe_serialization=True`",
        check: facts_only!(pickle),
    },
    Rule {
        name: "pickle-read",
        servers: &[Vllm, Sglang, LlamaCpp, Peft],
        severity: Severity::Note,
        source: "vLLM lora/lora_model.py, llama.cpp convert_lora_to_gguf.py",
        why: "they read pickle files, which was not checked here: no tensor of it is looked at",
        fix: "load it with PEFT and save it with `safe_serialization=True`",
        check: facts_only!(pickle),
    },
    Rule {
        name: "sharded",
        servers: &[Vllm, MistralRs, LlamaCpp, Mlx, Peft],
        severity: Severity::Refused,
        source: "vLLM lora/lora_model.py, mistral.rs mistralrs-core/src/adapter/runtime.rs, \
                 llama.cpp convert_lora_to_gguf.py, PEFT utils/save_and_load.py",
        why: "they read one file of that name, adapter_model.safetensors",
        fix: "write all tensors into one adapter_model.safetensors",
        check: facts_only!(|facts: &AdapterFacts| {
            let parts = facts.weight_files.iter().filter(|name| name.as_str() != TENSORS && !is_pickle(name)).count();
            (parts > 0).then(|| format!("the tensors are in {parts} files such as `{}`", facts.weight_files[0]).into())
        }),
    },
    Rule {
        name: "other-safetensors",
        servers: &[Sglang, Tgi, Ollama],
        severity: Severity::Note,
        source: "SGLang srt/lora/lora.py, TGI utils/hub.py, Ollama convert/reader.go",
        why: "they read every .safetensors file of the folder, whatever it is called",
        fix: "move the other files elsewhere",
        check: facts_only!(|facts: &AdapterFacts| {
            let other = |name: &&String| name.ends_with(".safetensors") && !facts.weight_files.contains(name);
            Some(
                format!(
                    "beside the adapter's there are {}",
                    listed(facts.files.iter().filter(other).map(String::as_str))?
                )
                .into(),
            )
        }),
    },
    Rule {
        name: "added-tokens",
        servers: &[Sglang],
        severity: Severity::Refused,
        source: "SGLang srt/lora/lora_manager.py",
        why: "adapters that add tokens to the vocabulary are refused",
        fix: "merge it into its base; or, where no token was added, remove added_tokens.json",
        check: facts_only!(|facts: &AdapterFacts| {
            let size = facts.base.as_ref()?.vocabulary? as u64;
            let added = facts.added_tokens.iter().filter(|(_, id)| **id >= size).map(|(token, _)| token.as_str());
            Some(format!("added_tokens.json has {}, beyond the base's {size} tokens", listed(added)?).into())
        }),
    },
    Rule {
        name: "added-tokens-unchecked",
        servers: &[Sglang],
        severity: Severity::Note,
        source: "SGLang srt/lora/lora_config.py, srt/lora/lora_manager.py",
        why: "tokens beyond the base's vocabulary are refused, and the base is not known here",
        fix: "name the base with `--base`; or, where no token was added, remove added_tokens.json",
        check: facts_only!(|facts: &AdapterFacts| {
            let known = facts.base.as_ref().is_some_and(|base| base.vocabulary.is_some());
            let added = listed(facts.added_tokens.keys().map(String::as_str))?;
            (!known).then(|| format!("added_tokens.json has {added}").into())
        }),
    },
    Rule {
        name: "chat-template",
        servers: &[Vllm, Sglang, Tgi, MistralRs, LlamaCpp, Ollama, Mlx],
        severity: Severity::Note,
        source: "none of the servers reads a template from an adapter's folder",
        why: "they render conversations with the base's chat template, and the adapter was trained with its own",
        fix: "give the server that file (vLLM, SGLang, mistral.rs, mlx-lm: `--chat-template`; llama.cpp: \
               `--chat-template-file`; TGI: `--tokenizer-config-path`; Ollama: `TEMPLATE` in the Modelfile)",
        check: facts_only!(|facts: &AdapterFacts| {
            let file = "chat_template.jinja";
            facts.files.contains(file).then(|| format!("the adapter has a {file} of its own").into())
        }),
    },
    Rule {
        name: "base-missing",
        servers: &[LlamaCpp, Peft],
        severity: Severity::Note,
        source: "llama.cpp convert_lora_to_gguf.py, PEFT auto.py",
        why: "they take the base from `base_model_name_or_path`, which says nothing",
        fix: "name the base (llama.cpp: `--base FOLDER`; PEFT: load the base and give it to `PeftModel.from_pretrained`)",
        check: facts_only!(|facts: &AdapterFacts| {
            let named = facts.text("base_model_name_or_path").is_some_and(|base| !base.is_empty());
            (!named).then(|| "`base_model_name_or_path` is missing or empty".to_owned().into())
        }),
    },
    Rule {
        name: "base-local",
        servers: &[Tgi, LlamaCpp, Peft],
        severity: Severity::Note,
        source: "TGI utils/adapter.py, llama.cpp convert_lora_to_gguf.py, PEFT auto.py",
        why: "they look for the base there; elsewhere than on this machine that fails (TGI: goes unchecked)",
        fix: "name the base on the Hub in `base_model_name_or_path`, or give the server its own copy \
               (llama.cpp: `--base FOLDER`)",
        check: facts_only!(|facts: &AdapterFacts| {
            let base = facts.text("base_model_name_or_path").filter(|base| is_path(base))?;
            Some(format!("`base_model_name_or_path` is the path `{}`", cut(base, 120)).into())
        }),
    },
    Rule {
        name: "llamacpp-folder",
        servers: &[LlamaCpp],
        severity: Severity::Note,
        source: "llama.cpp src/llama-adapter.cpp",
        why: "`--lora` takes a GGUF file, not a folder",
        fix: "make one with `equipoise export --to gguf-adapter`, or with llama.cpp's convert_lora_to_gguf.py",
        check: facts_only!(folder),
    },
    Rule {
        name: "mlx-folder",
        servers: &[Mlx],
        severity: Severity::Note,
        source: "mlx-lm mlx_lm/tuner/utils.py",
        why: "it reads adapters.safetensors, with transposed matrices, and `num_layers` and `lora_parameters`",
        fix: "make such a folder with `equipoise export --to mlx`",
        check: facts_only!(folder),
    },
    Rule {
        name: "mlx-architecture",
        servers: &[Mlx],
        severity: Severity::Refused,
        source: "mlx-lm mlx_lm/utils.py (MODEL_REMAPPING), mlx_lm/models",
        why: "it has no model of this architecture",
        fix: "serve the adapter with another program",
        check: facts_only!(|facts: &AdapterFacts| {
            let model_type = &facts.base.as_ref()?.model_type;
            let unknown = NOT_IN_MLX.contains(&model_type.as_str());
            unknown.then(|| format!("the base is of the architecture `{model_type}`").into())
        }),
    },
    Rule {
        name: "ollama-folder",
        servers: &[Ollama],
        severity: Severity::Note,
        source: "Ollama convert/convert.go, convert/convert_llama_adapter.go, convert/convert_gemma2_adapter.go",
        why: "`ADAPTER folder` is converted for Llama and Gemma 2 bases only, takes a whole-numbered lora_alpha only, and \
              for Llama reorders the rows of q and k in lora_A, where llama.cpp needs them reordered in lora_B",
        fix: "make a GGUF adapter with `equipoise export --to gguf-adapter`, and name that file after `ADAPTER`",
        check: facts_only!(ollama_folder),
    },
];

fn is_pickle(name: &str) -> bool {
    !name.ends_with(".safetensors")
}

fn pickle(facts: &AdapterFacts) -> Check {
    let name = facts.weight_files.iter().find(|name| is_pickle(name))?;
    Some(format!("the tensors are in the pickle file `{name}`").into())
}

/// Whether it is a place in a file system rather than the name of a model on the Hub.
fn is_path(base: &str) -> bool {
    base.starts_with(['/', '.', '~', '\\'])
        || Path::new(base).extension().is_some_and(|extension| extension == "gguf")
        || base.matches('/').count() > 1
        || base.contains('\\')
        || Path::new(base).exists()
}

fn folder(facts: &AdapterFacts) -> Check {
    (facts.layout == Layout::Peft).then(|| "the adapter is a PEFT folder".to_owned().into())
}

fn ollama_folder(facts: &AdapterFacts) -> Check {
    let Found { mut what, fix } = folder(facts)?;
    let model_type = facts.base.as_ref().map(|base| base.model_type.as_str());
    if let Some(other) = model_type.filter(|kind| !matches!(*kind, "llama" | "mistral" | "mixtral" | "gemma2")) {
        let _ = write!(what, "; its base is of the architecture `{other}`");
    }
    if let Some(alpha) = facts.value("lora_alpha").filter(|alpha| alpha.as_u64().is_none()) {
        let _ = write!(what, "; `lora_alpha` is {alpha}");
    }
    let leaves = facts.leaves();
    if leaves.contains("q_proj") || leaves.contains("k_proj") {
        what.push_str("; q_proj or k_proj is adapted");
    }
    Some(Found { what, fix })
}
