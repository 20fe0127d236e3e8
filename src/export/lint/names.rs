//! What an adapter's tensor is, by its name.

/// The kinds of tensors that PEFT and mlx-lm write into adapter files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorKind {
    /// `lora_A.weight`
    A,
    /// `lora_B.weight`
    B,
    /// `lora_embedding_A`
    EmbeddingA,
    /// `lora_embedding_B`
    EmbeddingB,
    /// `lora_B.bias`
    BiasOfB,
    /// `lora_magnitude_vector`, of `DoRA`.
    Magnitude,
    /// `trainable_tokens_delta`
    Tokens,
    /// A weight or bias below `base_layer`: the base's own.
    BaseLayer,
    /// A normalization's weight.
    Norm,
    /// The weight of an embedding or of the head, whole.
    Embedding,
    /// A bias of the base.
    Bias,
    /// mlx-lm's `lora_a`; also that of a GGUF adapter.
    LowerA,
    /// mlx-lm's `lora_b`; also that of a GGUF adapter.
    LowerB,
    /// Anything else.
    Other,
}

/// A tensor's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorName {
    /// The module's path in the base, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// What it is of that module.
    pub kind: TensorKind,
    /// Whether the name begins with `base_model.model.`, as PEFT's do.
    pub prefixed: bool,
    /// The adapter's name, where it stands in the tensor's (`lora_A.default.weight`).
    pub adapter: Option<String>,
}

/// How PEFT's names begin.
pub(super) const PREFIX: &str = "base_model.model.";

impl TensorName {
    /// Takes a name apart.
    pub fn parse(name: &str) -> Self {
        let (prefixed, rest) = match name.strip_prefix(PREFIX) {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let (module, kind, adapter) = split(rest);
        Self { module: module.to_owned(), kind, prefixed, adapter: adapter.map(str::to_owned) }
    }

    /// The last part of the module's path, such as `q_proj`.
    pub fn leaf(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or_default()
    }

    /// The module's path without its last part.
    pub fn parent(&self) -> &str {
        self.module.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    /// The layer's number.
    pub fn layer(&self) -> Option<usize> {
        let mut parts = self.module.split('.');
        parts.find(|part| matches!(*part, "layers" | "h" | "blocks"))?;
        parts.next()?.parse().ok()
    }

    /// Whether it belongs to an expert of a mixture.
    pub fn is_expert(&self) -> bool {
        self.module.split('.').any(|part| part == "experts")
    }

    /// Whether it is one of the two matrices of a linear layer's update.
    pub fn is_matrix(&self) -> bool {
        matches!(self.kind, TensorKind::A | TensorKind::B)
    }
}

fn split(name: &str) -> (&str, TensorKind, Option<&str>) {
    for (marker, kind) in [
        (".lora_A.", TensorKind::A),
        (".lora_B.", TensorKind::B),
        (".lora_magnitude_vector", TensorKind::Magnitude),
        (".lora_embedding_A", TensorKind::EmbeddingA),
        (".lora_embedding_B", TensorKind::EmbeddingB),
    ] {
        let Some((module, tail)) = name.rsplit_once(marker) else { continue };
        let tail = tail.trim_start_matches('.');
        return match (kind, tail) {
            (TensorKind::A | TensorKind::B, "weight") => (module, kind, None),
            (TensorKind::B, "bias") => (module, TensorKind::BiasOfB, None),
            (TensorKind::B, tail) if tail.strip_suffix(".bias").is_some() => (module, TensorKind::BiasOfB, None),
            (TensorKind::A | TensorKind::B, tail) => match tail.strip_suffix(".weight") {
                Some(adapter) => (module, kind, Some(adapter)),
                None => (module, TensorKind::Other, None),
            },
            (_, "" | "weight") => (module, kind, None),
            (_, adapter) => (module, kind, Some(adapter)),
        };
    }
    for (ending, kind) in [
        (".token_adapter.trainable_tokens_delta", TensorKind::Tokens),
        (".trainable_tokens_delta", TensorKind::Tokens),
        (".base_layer.weight", TensorKind::BaseLayer),
        (".base_layer.bias", TensorKind::Bias),
        (".lora_a", TensorKind::LowerA),
        (".lora_b", TensorKind::LowerB),
    ] {
        if let Some(module) = name.strip_suffix(ending) {
            return (module, kind, None);
        }
    }
    let Some((module, last)) = name.rsplit_once('.') else { return (name, TensorKind::Other, None) };
    let leaf = module.rsplit('.').next().unwrap_or_default();
    let kind = match (leaf, last) {
        (leaf, "weight" | "bias") if leaf.ends_with("norm") => TensorKind::Norm,
        ("embed_tokens" | "lm_head", "weight") => TensorKind::Embedding,
        (_, "bias") => TensorKind::Bias,
        _ => TensorKind::Other,
    };
    (module, kind, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_peft_writes_them() {
        let parse = |name: &str| {
            let parsed = TensorName::parse(name);
            (parsed.module, parsed.kind, parsed.adapter)
        };
        let q = "model.layers.3.self_attn.q_proj";
        let peft = |tail: &str| parse(&format!("base_model.model.{q}.{tail}"));
        let module = || q.to_owned();
        assert_eq!(peft("lora_A.weight"), (module(), TensorKind::A, None));
        assert_eq!(peft("lora_B.weight"), (module(), TensorKind::B, None));
        assert_eq!(peft("lora_B.bias"), (module(), TensorKind::BiasOfB, None));
        assert_eq!(peft("lora_A.default.weight"), (module(), TensorKind::A, Some("default".into())));
        assert_eq!(peft("lora_magnitude_vector"), (module(), TensorKind::Magnitude, None));
        assert_eq!(peft("base_layer.bias"), (module(), TensorKind::Bias, None));
        assert_eq!(peft("lora_diag"), (module(), TensorKind::Other, None));
        let embedding = "base_model.model.model.embed_tokens";
        assert_eq!(parse(&format!("{embedding}.lora_embedding_A")).1, TensorKind::EmbeddingA);
        assert_eq!(parse(&format!("{embedding}.token_adapter.trainable_tokens_delta")).1, TensorKind::Tokens);
        assert_eq!(parse(&format!("{embedding}.weight")).1, TensorKind::Embedding);
        assert_eq!(parse("model.layers.0.mlp.up_proj.lora_a").1, TensorKind::LowerA);
        for hostile in ["", ".", "lora_A.weight", ".lora_A.", "...", "base_model.model."] {
            let _ = TensorName::parse(hostile);
        }
    }

    #[test]
    fn a_name_tells_its_layer() {
        let name = TensorName::parse("base_model.model.model.layers.12.mlp.experts.3.up_proj.lora_A.weight");
        assert_eq!((name.layer(), name.leaf(), name.is_expert(), name.prefixed), (Some(12), "up_proj", true, true));
        assert_eq!(TensorName::parse("lm_head.lora_A.weight").layer(), None);
    }
}
