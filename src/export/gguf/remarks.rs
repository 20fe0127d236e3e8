//! What llama.cpp computes otherwise than the model was made, because no key says it or the runtime does not read the key.

use crate::weights::Base;
use serde_json::Value;

/// What a user should know of a file of this base; nothing for most.
pub(super) fn remarks(base: &Base) -> Vec<String> {
    let config = base.config();
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let mut remarks = Vec::new();
    if base.model_type().starts_with("gemma") {
        let divided =
            number("hidden_size").zip(number("num_attention_heads")).map(|(hidden, heads)| (hidden / heads).floor());
        let of_27b = number("num_hidden_layers") == Some(if base.model_type() == "gemma2" { 46.0 } else { 62.0 });
        let assumed = if of_27b { divided } else { number("head_dim").or(Some(256.0)) };
        // The class's own, where the text decoder of a multimodal model leaves it out.
        let own = number("query_pre_attn_scalar").unwrap_or(256.0);
        if let Some(assumed) = assumed.filter(|assumed| *assumed != own) {
            remarks.push(format!(
                "the model scales attention scores by 1/√{own}; GGUF has no key for that, and llama.cpp uses 1/√{assumed}"
            ));
        }
    }
    let switched_off = config.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
    let ignores = match base.model_type() {
        "mistral" | "phi3" => true,
        "qwen2" | "qwen3" => !switched_off && config.contains_key("use_sliding_window"),
        "exaone4" => number("num_hidden_layers") != Some(64.0),
        _ => false,
    };
    let window =
        number("sliding_window").filter(|&window| window > 0.0 && number("max_position_embeddings") > Some(window));
    if let Some(window) = window.filter(|_| ignores) {
        remarks.push(format!(
            "some layers have a sliding window of {window} tokens; llama.cpp uses full attention there, so its outputs differ \
             on longer texts"
        ));
    }
    remarks
}
