//! The card's sections on use: a program that prints an answer, and the command of each server.

use super::card::{CARD_BASE, CARD_REPO, CardFacts, CardKind, hub_id};
use std::fmt::Write as _;

/// The ranks that vLLM allows.
const VLLM_RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// What vLLM is to be started with (`--max-lora-rank`) for an adapter of this rank; `None` for ranks beyond all that it takes.
pub fn vllm_rank(r: usize) -> Option<usize> {
    VLLM_RANKS.into_iter().find(|rank| *rank >= r)
}

/// A Python program, from the weights to a printed answer.
pub(super) fn usage(facts: &CardFacts<'_>) -> String {
    let repo = facts.repo.unwrap_or(CARD_REPO);
    let short = |prompt: &&str| !prompt.contains(char::is_control) && (1..=200).contains(&prompt.chars().count());
    let prompt = facts.sample.map(|sample| sample.prompt.trim()).filter(short).unwrap_or("your prompt");
    let prompt = serde_json::to_string(prompt).unwrap_or_default();
    let class = if facts.multimodal { "AutoModelForImageTextToText" } else { "AutoModelForCausalLM" };
    let (imports, load) = match facts.kind {
        CardKind::Gguf => return String::new(),
        CardKind::Merged => (
            format!("from transformers import {class}, AutoTokenizer"),
            format!("model = {class}.from_pretrained(\"{repo}\", dtype=\"auto\", device_map=\"auto\")"),
        ),
        CardKind::Adapter => {
            let base = hub_id(facts.base_model).unwrap_or(CARD_BASE);
            let revision = facts.base_model.split_once('@').filter(|_| hub_id(facts.base_model).is_some());
            let revision = revision.map(|(_, revision)| format!(", revision=\"{revision}\"")).unwrap_or_default();
            (
                format!("from peft import PeftModel\nfrom transformers import {class}, AutoTokenizer"),
                format!(
                    "base = {class}.from_pretrained(\"{base}\"{revision}, dtype=\"auto\", device_map=\"auto\")\n\
                     model = PeftModel.from_pretrained(base, \"{repo}\")"
                ),
            )
        }
    };
    let encode = if facts.raw {
        format!("inputs = tokenizer({prompt}, return_tensors=\"pt\")")
    } else {
        format!(
            "messages = [{{\"role\": \"user\", \"content\": {prompt}}}]\n\
             inputs = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, return_dict=True, return_tensors=\"pt\"\n)"
        )
    };
    let mut text = format!(
        "\n## Use\n\n```python\n{imports}\n\ntokenizer = AutoTokenizer.from_pretrained(\"{repo}\")\n{load}\n\n{encode}\n\
         inputs = inputs.to(model.device)\noutput = model.generate(**inputs, max_new_tokens=256)\n\
         print(tokenizer.decode(output[0][inputs[\"input_ids\"].shape[1]:], skip_special_tokens=True))\n```\n"
    );
    if facts.kind == CardKind::Adapter && hub_id(facts.base_model).is_none() {
        let _ = write!(text, "\n`{CARD_BASE}` is the model that the adapter was trained on.\n");
    }
    text
}

/// How to serve what a repository holds. `base` is the base's Hub id; where there is none, the reader puts the model in.
pub(super) fn serving(kind: CardKind, repo: &str, base: Option<&str>, r: Option<usize>, name: &str) -> String {
    let commands = match kind {
        CardKind::Adapter => adapter(repo, base.unwrap_or(CARD_BASE), r, name),
        CardKind::Merged => vec![
            ("vLLM", format!("vllm serve {repo}")),
            ("SGLang", format!("python -m sglang.launch_server --model-path {repo}")),
            ("TGI", format!("text-generation-launcher --model-id {repo}")),
            ("mistral.rs", format!("mistralrs serve -m {repo}")),
            ("mlx-lm", format!("mlx_lm.server --model {repo}")),
        ],
        CardKind::Gguf => {
            vec![("llama.cpp", format!("llama-server -hf {repo}")), ("Ollama", format!("ollama run hf.co/{repo}"))]
        }
    };
    let mut text = String::from("\n## Serve\n\n```sh\n");
    for (number, (server, command)) in commands.into_iter().enumerate() {
        let _ = write!(text, "{}# {server}\n{command}\n", if number == 0 { "" } else { "\n" });
    }
    text + "```\n"
}

fn adapter(repo: &str, base: &str, r: Option<usize>, name: &str) -> Vec<(&'static str, String)> {
    let rank = r.and_then(vllm_rank).unwrap_or(16);
    let export = |target: &str| format!("equipoise export {name} --to {target} --out {name}-{target}");
    vec![
        ("vLLM", format!("vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={repo}")),
        ("SGLang", format!("python -m sglang.launch_server --model-path {base} --lora-paths {name}={repo}")),
        ("TGI", format!("text-generation-launcher --model-id {base} --lora-adapters {name}={repo}")),
        ("mistral.rs", format!("mistralrs serve -m {base} --lora {name}={repo}")),
        (
            "for the following: fetch the adapter, and write it in their form with Equipoise",
            format!("hf download {repo} --local-dir {name}"),
        ),
        (
            "llama.cpp, with the base in GGUF",
            format!(
                "{}\nllama-server -m base.gguf --lora {name}-gguf-adapter/{name}-lora.gguf",
                export("gguf-adapter")
            ),
        ),
        ("Ollama", format!("{}\ncd {name}-ollama && ollama create {name} -f Modelfile", export("ollama"))),
        ("mlx-lm", format!("{}\nmlx_lm.server --model {base} --adapter-path {name}-mlx", export("mlx"))),
        ("Equipoise", format!("equipoise generate {name} \"your prompt\"")),
    ]
}
