//! Which architectures GGUF names how: one row each. A new architecture is a new row.

/// How llama.cpp writes one architecture.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// Whether the rows of q and k are in llama.cpp's order (see [`super::rows`]).
    pub permuted: bool,
    /// The tensors of a layer: GGUF's name after `blk.N.`, Hugging Face's after `model.layers.N.`.
    layer: &'static [(&'static str, &'static str)],
}

/// Names that Llama, Mistral and Qwen share.
const LLAMA_LAYER: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const OUTER: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const ARCHITECTURES: &[Architecture] = &[
    Architecture { gguf: "llama", model_type: "llama", permuted: true, layer: LLAMA_LAYER },
    Architecture { gguf: "qwen2", model_type: "qwen2", permuted: false, layer: LLAMA_LAYER },
    Architecture { gguf: "qwen3", model_type: "qwen3", permuted: false, layer: LLAMA_LAYER },
];

impl Architecture {
    /// The row of a `general.architecture`.
    pub fn of_gguf(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|row| row.gguf == name)
    }

    /// The row of a `model_type`.
    pub fn of_model_type(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|row| row.model_type == name)
    }

    /// Hugging Face's name of a GGUF tensor; `None` for tensors that Hugging Face does not have.
    pub fn hugging_face_name(&self, gguf: &str) -> Option<String> {
        let (stem, suffix) = gguf.rsplit_once('.')?;
        if let Some((_, name)) = OUTER.iter().find(|(from, _)| *from == stem) {
            return Some(format!("{name}.{suffix}"));
        }
        let (number, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
        let (_, name) = self.layer.iter().find(|(from, _)| *from == stem)?;
        Some(format!("model.layers.{number}.{name}.{suffix}"))
    }

    /// GGUF's name of a Hugging Face tensor; `None` for tensors that GGUF does not have.
    pub fn gguf_name(&self, hugging_face: &str) -> Option<String> {
        let (stem, suffix) = hugging_face.rsplit_once('.')?;
        if let Some((name, _)) = OUTER.iter().find(|(_, from)| *from == stem) {
            return Some(format!("{name}.{suffix}"));
        }
        let (number, stem) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        let (name, _) = self.layer.iter().find(|(_, from)| *from == stem)?;
        Some(format!("blk.{number}.{name}.{suffix}"))
    }

    /// Whether the rows of the tensor of this Hugging Face name are in llama.cpp's order.
    pub fn is_permuted(&self, hugging_face: &str) -> bool {
        let module = hugging_face.rsplit_once('.').map_or("", |(stem, _)| stem);
        self.permuted && (module.ends_with(".self_attn.q_proj") || module.ends_with(".self_attn.k_proj"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        let llama = Architecture::of_gguf("llama").unwrap();
        for (gguf, hugging_face) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("output_norm.weight", "model.norm.weight"),
            ("blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ] {
            assert_eq!(llama.hugging_face_name(gguf).as_deref(), Some(hugging_face));
            assert_eq!(llama.gguf_name(hugging_face).as_deref(), Some(gguf));
        }
        assert_eq!(llama.hugging_face_name("rope_freqs.weight"), None);
        assert!(llama.is_permuted("model.layers.3.self_attn.k_proj.weight"));
        assert!(!llama.is_permuted("model.layers.3.self_attn.v_proj.weight"));
        assert!(!Architecture::of_gguf("qwen2").unwrap().is_permuted("model.layers.3.self_attn.k_proj.weight"));
    }
}
