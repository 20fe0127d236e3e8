//! Which architectures GGUF names how: one row each. A new architecture is a new row.
//!
//! A norm's name says little: what GGUF calls `ffn_norm` stands before the MLP, `post_attention_norm` after attention in some
//! families and before the MLP in another. Each row has its own names, as `gguf-py/gguf/tensor_mapping.py` maps them and as the
//! runtime (`src/models/*.cpp`) uses them.

use crate::weights::Base;

/// How llama.cpp writes one architecture.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `general.architecture`.
    pub gguf: &'static str,
    /// Hugging Face's `model_type`.
    pub model_type: &'static str,
    /// transformers' class.
    pub class: &'static str,
    /// Whether the rows of q and k are in llama.cpp's order (see [`super::rows`]).
    pub permuted: bool,
    /// Whether norms multiply by `1 + w` in Hugging Face's files, and by `w` in GGUF's, where the 1 is added already.
    pub norms_include_one: bool,
    /// Whether some of a head's numbers may stay unrotated.
    pub partial_rotary: bool,
    /// The tensors of a layer: GGUF's name after `blk.N.`, Hugging Face's after `model.layers.N.`.
    layer: &'static [&'static [Name]],
    /// Modules of Hugging Face's whose rows GGUF has in two tensors of as many rows.
    halved: &'static [(&'static str, [&'static str; 2])],
}

/// GGUF's name, and Hugging Face's.
type Name = (&'static str, &'static str);

const ATTENTION: &[Name] = &[
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
];
const FUSED_ATTENTION: &[Name] = &[("attn_qkv", "self_attn.qkv_proj"), ("attn_output", "self_attn.o_proj")];
const HEAD_NORMS: &[Name] = &[("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];
const MLP: &[Name] = &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")];
const FUSED_MLP: &[Name] = &[("ffn_up", "mlp.gate_up_proj"), ("ffn_down", "mlp.down_proj")];

/// Before each branch.
const NORMS: &[Name] = &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];
/// Before and after each branch.
const GEMMA_NORMS: &[Name] = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const GLM4_NORMS: &[Name] = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_self_attn_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_mlp_layernorm"),
];
/// After each branch only.
const POST_NORMS: &[Name] =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];
/// Before each branch, the MLP's under a name that elsewhere means another place.
const SEED_OSS_NORMS: &[Name] =
    &[("attn_norm", "input_layernorm"), ("post_attention_norm", "post_attention_layernorm")];

const OUTER: &[Name] = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// What most are like.
const QWEN: Architecture = Architecture {
    gguf: "qwen2",
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    permuted: false,
    norms_include_one: false,
    partial_rotary: false,
    layer: &[NORMS, ATTENTION, HEAD_NORMS, MLP],
    halved: &[],
};
const LLAMA: Architecture =
    Architecture { gguf: "llama", model_type: "llama", class: "LlamaForCausalLM", permuted: true, ..QWEN };
const GEMMA: Architecture = Architecture {
    gguf: "gemma2",
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    norms_include_one: true,
    layer: &[GEMMA_NORMS, ATTENTION, HEAD_NORMS, MLP],
    ..QWEN
};
const OLMO: Architecture = Architecture {
    gguf: "olmo2",
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    layer: &[POST_NORMS, ATTENTION, HEAD_NORMS, MLP],
    ..QWEN
};

/// Several `model_type`s may share a `general.architecture`; the first of them is what a file is read as, unless its metadata tell.
const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture { model_type: "mistral", class: "MistralForCausalLM", ..LLAMA },
    Architecture { gguf: "mistral3", model_type: "ministral3", class: "Ministral3ForCausalLM", ..LLAMA },
    Architecture { gguf: "smollm3", model_type: "smollm3", class: "SmolLM3ForCausalLM", ..LLAMA },
    Architecture { gguf: "granite", model_type: "granite", class: "GraniteForCausalLM", ..LLAMA },
    Architecture {
        gguf: "granite",
        model_type: "granitemoehybrid",
        class: "GraniteMoeHybridForCausalLM",
        layer: &[NORMS, ATTENTION, &[("ffn_down", "shared_mlp.output_linear")]],
        halved: &[("shared_mlp.input_linear", ["ffn_gate", "ffn_up"])],
        ..LLAMA
    },
    QWEN,
    Architecture { gguf: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", ..QWEN },
    // The text decoder of Qwen3-VL is Qwen3: of text all three streams of positions are the same.
    Architecture { gguf: "qwen3vl", model_type: "qwen3_vl_text", class: "Qwen3ForCausalLM", ..QWEN },
    GEMMA,
    Architecture { gguf: "gemma3", model_type: "gemma3_text", class: "Gemma3ForCausalLM", ..GEMMA },
    OLMO,
    Architecture { model_type: "olmo3", class: "Olmo3ForCausalLM", ..OLMO },
    Architecture { gguf: "exaone4", model_type: "exaone4", class: "Exaone4ForCausalLM", ..OLMO },
    Architecture {
        gguf: "phi3",
        model_type: "phi3",
        class: "Phi3ForCausalLM",
        partial_rotary: true,
        layer: &[NORMS, FUSED_ATTENTION, FUSED_MLP],
        ..QWEN
    },
    // Pairs of neighbours rotate, in GGUF as in Hugging Face's files.
    Architecture {
        gguf: "glm4",
        model_type: "glm4",
        class: "Glm4ForCausalLM",
        partial_rotary: true,
        layer: &[GLM4_NORMS, ATTENTION, FUSED_MLP],
        ..QWEN
    },
    Architecture {
        gguf: "seed_oss",
        model_type: "seed_oss",
        class: "SeedOssForCausalLM",
        layer: &[SEED_OSS_NORMS, ATTENTION, MLP],
        ..QWEN
    },
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

    /// The row of a base: a GGUF file says its own architecture, whatever `model_type` it is read as.
    pub fn of_base(base: &Base) -> Option<&'static Self> {
        let own = base.gguf_metadata().and_then(|metadata| metadata.string("general.architecture").ok().flatten());
        let of_type = Self::of_model_type(base.model_type());
        of_type.filter(|row| own.is_none_or(|own| row.gguf == own)).or_else(|| Self::of_gguf(own?))
    }

    fn layer_names(&self) -> impl Iterator<Item = &'static Name> {
        self.layer.iter().copied().flatten()
    }

    /// Hugging Face's name of a GGUF tensor; `None` for tensors that Hugging Face does not have, or only a part of.
    pub fn hugging_face_name(&self, gguf: &str) -> Option<String> {
        let (stem, suffix) = gguf.rsplit_once('.')?;
        if let Some((_, name)) = OUTER.iter().find(|(from, _)| *from == stem) {
            return Some(format!("{name}.{suffix}"));
        }
        let (number, stem) = stem.strip_prefix("blk.")?.split_once('.')?;
        let (_, name) = self.layer_names().find(|(from, _)| *from == stem)?;
        Some(format!("model.layers.{number}.{name}.{suffix}"))
    }

    /// Hugging Face's name of the tensor that a GGUF tensor is a half of, and which half.
    pub fn half_of(&self, gguf: &str) -> Option<(String, usize)> {
        let (number, name) = gguf.strip_prefix("blk.")?.split_once('.')?;
        let (stem, suffix) = name.rsplit_once('.')?;
        let (name, half) = self.halved.iter().find_map(|(name, parts)| {
            let half = parts.iter().position(|part| *part == stem)?;
            Some((name, half))
        })?;
        Some((format!("model.layers.{number}.{name}.{suffix}"), half))
    }

    /// GGUF's names of a Hugging Face tensor: none, one, or two that have half of the rows each.
    pub fn gguf_names(&self, hugging_face: &str) -> Vec<String> {
        self.find_names(hugging_face).unwrap_or_default()
    }

    fn find_names(&self, hugging_face: &str) -> Option<Vec<String>> {
        let (stem, suffix) = hugging_face.rsplit_once('.')?;
        if let Some((name, _)) = OUTER.iter().find(|(_, from)| *from == stem) {
            return Some(vec![format!("{name}.{suffix}")]);
        }
        let (number, stem) = stem.strip_prefix("model.layers.")?.split_once('.')?;
        if let Some((_, halves)) = self.halved.iter().find(|(from, _)| *from == stem) {
            return Some(halves.iter().map(|name| format!("blk.{number}.{name}.{suffix}")).collect());
        }
        let (name, _) = self.layer_names().find(|(_, from)| *from == stem)?;
        Some(vec![format!("blk.{number}.{name}.{suffix}")])
    }

    /// The row of the same `general.architecture` whose modules are those that GGUF's tensors are, where this row's are not.
    pub fn split(&self) -> Option<&'static Self> {
        Self::of_gguf(self.gguf).filter(|_| !self.halved.is_empty())
    }

    /// q, k and v where a file has their rows one after the other in one tensor, which Hugging Face has not.
    pub(in crate::weights) fn parts_of_qkv(&self, gguf: &str) -> Option<[String; 3]> {
        let (block, suffix) = gguf.split_once(".attn_qkv.")?;
        let part = |part: &str| self.hugging_face_name(&format!("{block}.attn_{part}.{suffix}"));
        Some([part("q")?, part("k")?, part("v")?])
    }

    /// Whether the rows of the tensor of this Hugging Face name are in llama.cpp's order.
    pub fn is_permuted(&self, hugging_face: &str) -> bool {
        let module = hugging_face.rsplit_once('.').map_or("", |(stem, _)| stem);
        self.permuted && (module.ends_with(".self_attn.q_proj") || module.ends_with(".self_attn.k_proj"))
    }

    /// Whether the tensor of this Hugging Face name is a norm's to which GGUF has added 1.
    pub fn includes_one(&self, hugging_face: &str) -> bool {
        self.norms_include_one && hugging_face.ends_with("norm.weight")
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
            assert_eq!(llama.gguf_names(hugging_face), [gguf]);
        }
        assert_eq!(llama.hugging_face_name("rope_freqs.weight"), None);
        assert!(llama.is_permuted("model.layers.3.self_attn.k_proj.weight"));
        assert!(llama.is_permuted("model.layers.3.self_attn.q_proj.bias"));
        assert!(!llama.is_permuted("model.layers.3.self_attn.v_proj.weight"));
        assert!(!Architecture::of_gguf("qwen2").unwrap().is_permuted("model.layers.3.self_attn.k_proj.weight"));
    }

    /// What a name means differs from family to family.
    #[test]
    fn norms_stand_where_each_family_has_them() {
        for (model_type, gguf, hugging_face) in [
            ("qwen3", "ffn_norm", "post_attention_layernorm"),
            ("gemma2", "ffn_norm", "pre_feedforward_layernorm"),
            ("gemma3_text", "post_attention_norm", "post_attention_layernorm"),
            ("gemma3_text", "attn_q_norm", "self_attn.q_norm"),
            ("olmo3", "post_ffw_norm", "post_feedforward_layernorm"),
            ("exaone4", "post_attention_norm", "post_attention_layernorm"),
            ("glm4", "post_attention_norm", "post_self_attn_layernorm"),
            ("glm4", "ffn_norm", "post_attention_layernorm"),
            ("glm4", "post_ffw_norm", "post_mlp_layernorm"),
            ("seed_oss", "post_attention_norm", "post_attention_layernorm"),
            ("phi3", "ffn_up", "mlp.gate_up_proj"),
            ("phi3", "attn_qkv", "self_attn.qkv_proj"),
        ] {
            let row = Architecture::of_model_type(model_type).unwrap();
            let (gguf, hugging_face) =
                (format!("blk.7.{gguf}.weight"), format!("model.layers.7.{hugging_face}.weight"));
            assert_eq!(row.hugging_face_name(&gguf).as_deref(), Some(hugging_face.as_str()), "{model_type}");
            assert_eq!(row.gguf_names(&hugging_face), [gguf], "{model_type}");
        }
        for (model_type, absent) in [("olmo2", "attn_norm"), ("olmo2", "ffn_norm"), ("seed_oss", "ffn_norm")] {
            let row = Architecture::of_model_type(model_type).unwrap();
            assert_eq!(row.hugging_face_name(&format!("blk.0.{absent}.weight")), None, "{model_type}");
        }
    }

    #[test]
    fn a_module_may_be_two_tensors_and_a_tensor_three_modules() {
        let hybrid = Architecture::of_model_type("granitemoehybrid").unwrap();
        let input = "model.layers.1.shared_mlp.input_linear.weight";
        assert_eq!(hybrid.gguf_names(input), ["blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"]);
        assert_eq!(hybrid.half_of("blk.1.ffn_up.weight"), Some((input.to_owned(), 1)));
        assert_eq!(hybrid.hugging_face_name("blk.1.ffn_up.weight"), None);
        assert_eq!(hybrid.half_of("blk.1.ffn_down.weight"), None);
        let parts = Architecture::of_gguf("qwen3").unwrap().parts_of_qkv("blk.0.attn_qkv.weight").unwrap();
        assert_eq!(parts[2], "model.layers.0.self_attn.v_proj.weight");
        assert!(Architecture::of_gguf("phi3").unwrap().parts_of_qkv("blk.0.attn_qkv.weight").is_none());
        // A file says `granite` of both.
        assert_eq!(Architecture::of_gguf("granite").unwrap().model_type, "granite");
    }
}
