//! The card's section on use: the command of each server.

use super::card::{CARD_BASE, CardKind};
use std::fmt::Write as _;

/// The ranks that vLLM allows.
const VLLM_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// What vLLM is to be started with (`--max-lora-rank`) for an adapter of this rank; `None` for ranks beyond all that it takes.
pub fn vllm_rank(r: usize) -> Option<usize> {
    VLLM_RANKS.into_iter().find(|rank| *rank >= r)
}

/// How to run what a repository holds. `base` is the base's Hub id; where there is none, the reader puts the model in.
pub(super) fn serving(kind: CardKind, repo: &str, base: Option<&str>, r: Option<usize>, name: &str) -> String {
    let mut text = String::from("\n## Use\n");
    let mut add = |title: &str, language: &str, code: &str| {
        let _ = write!(text, "\n{title}:\n\n```{language}\n{code}\n```\n");
    };
    match kind {
        CardKind::Adapter => adapter(repo, base.unwrap_or(CARD_BASE), r, name, &mut add),
        CardKind::Merged => {
            add("vLLM", "sh", &format!("vllm serve {repo}"));
            add("SGLang", "sh", &format!("python -m sglang.launch_server --model-path {repo}"));
            add("TGI", "sh", &format!("text-generation-launcher --model-id {repo}"));
            add("mistral.rs", "sh", &format!("mistralrs serve -m {repo}"));
            add("mlx-lm", "sh", &format!("mlx_lm.server --model {repo}"));
            add(
                "transformers",
                "python",
                &format!("from transformers import pipeline\n\npipe = pipeline(\"text-generation\", model=\"{repo}\")"),
            );
        }
        CardKind::Gguf => {
            add("llama.cpp", "sh", &format!("llama-server -hf {repo}"));
            add("Ollama", "sh", &format!("ollama run hf.co/{repo}"));
        }
    }
    if kind == CardKind::Adapter && base.is_none() {
        let _ = write!(text, "\n`{CARD_BASE}` is the model that the adapter was trained on.\n");
    }
    text
}

fn adapter(repo: &str, base: &str, r: Option<usize>, name: &str, add: &mut dyn FnMut(&str, &str, &str)) {
    let rank = r.and_then(vllm_rank).unwrap_or(16);
    let folder = format!("hf download {repo} --local-dir {name}");
    add("vLLM", "sh", &format!("vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={repo}"));
    add("SGLang", "sh", &format!("python -m sglang.launch_server --model-path {base} --lora-paths {name}={repo}"));
    add("TGI", "sh", &format!("text-generation-launcher --model-id {base} --lora-adapters {name}={repo}"));
    add("mistral.rs", "sh", &format!("mistralrs serve -m {base} --lora {name}={repo}"));
    add(
        "llama.cpp, with the base in GGUF",
        "sh",
        &format!(
            "{folder}\nequipoise export {name} --to gguf-adapter --out {name}-gguf\n\
             llama-server -m base.gguf --lora {name}-gguf/{name}-lora.gguf"
        ),
    );
    add(
        "Ollama",
        "sh",
        &format!(
            "{folder}\nequipoise export {name} --to ollama --out {name}-ollama\n\
             cd {name}-ollama && ollama create {name} -f Modelfile"
        ),
    );
    add(
        "mlx-lm",
        "sh",
        &format!(
            "{folder}\nequipoise export {name} --to mlx --out {name}-mlx\nmlx_lm.server --model {base} --adapter-path {name}-mlx"
        ),
    );
    add(
        "transformers and PEFT",
        "python",
        &format!(
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
             base = AutoModelForCausalLM.from_pretrained(\"{base}\")\n\
             model = PeftModel.from_pretrained(base, \"{repo}\")"
        ),
    );
    add("Equipoise", "sh", &format!("{folder}\nequipoise generate {name} \"your prompt\""));
}
