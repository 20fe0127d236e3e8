//! Families that are not supported: what they would need, and which supported one is nearest.

use super::REGISTRY;
use crate::error::Error;
use crate::weights::Base;

/// `model_type`, what is missing, and the nearest supported family.
const KNOWN: &[(&str, &str, &str)] = &[
    ("apertus", "its activation (xIELU)", "llama"),
    ("bloom", "its positions (ALiBi)", "llama"),
    ("cohere", "its parallel branches", "llama"),
    ("cohere2", "its parallel branches", "llama"),
    ("deepseek_v2", "experts and latent attention", "llama"),
    ("deepseek_v3", "experts and latent attention", "llama"),
    ("ernie4_5", "its rotation of neighbours", "llama"),
    ("falcon", "its parallel branches", "llama"),
    ("falcon_h1", "state spaces (Mamba-2)", "llama"),
    ("gemma3n", "its parallel residual streams", "gemma3_text"),
    ("gemma4_text", "layers of different widths, and per-layer embeddings", "gemma3_text"),
    ("gemma4_unified_text", "layers of different widths", "gemma3_text"),
    ("glm4_moe", "experts", "glm4"),
    ("gpt2", "learnt positions and LayerNorm", "llama"),
    ("gpt_neox", "its parallel branches and LayerNorm", "llama"),
    ("gpt_oss", "experts and attention sinks", "qwen3"),
    ("granitemoe", "experts", "granite"),
    ("hunyuan_v1_dense", "normalization of queries and keys behind their rotation", "qwen3"),
    ("internlm2", "its names of tensors", "llama"),
    ("lfm2", "short convolutions", "qwen3"),
    ("llama4_text", "experts and attention in chunks", "llama"),
    ("mixtral", "experts", "mistral"),
    ("muse_glimmer_text", "gated attention", "qwen3"),
    ("nemotron_h", "state spaces (Mamba-2)", "llama"),
    ("olmo", "LayerNorm", "olmo2"),
    ("olmoe", "experts", "olmo2"),
    ("phi", "its parallel branches and LayerNorm", "phi3"),
    ("phimoe", "experts", "phi3"),
    ("qwen2_moe", "experts", "qwen2"),
    ("qwen3_5_text", "gated delta nets and gated attention", "qwen3"),
    ("qwen3_5_moe_text", "gated delta nets and experts", "qwen3"),
    ("qwen3_moe", "experts", "qwen3"),
    ("qwen3_next", "gated delta nets and experts", "qwen3"),
    ("stablelm", "LayerNorm", "llama"),
];

/// The error for a base of a family that is not in the registry.
pub(super) fn error(base: &Base) -> Error {
    let model_type = base.model_type();
    let whole =
        base.wrapper().map_or(String::new(), |whole| format!(", the text decoder of a `{}`,", whole.model_type));
    let known: Vec<_> = REGISTRY.iter().map(|family| family.model_type).collect();
    let known = known.join(", ");
    let error = |what: String| {
        Error::file(base.path(), format!("the architecture `{model_type}`{whole} is not supported{what}"))
    };
    if let Some((_, missing, nearest)) = KNOWN.iter().find(|(name, ..)| *name == model_type) {
        return error(format!(": {missing} are missing"))
            .with_help(format!("the nearest family is `{nearest}`; supported are: {known}"));
    }
    let nearest = REGISTRY.iter().map(|family| family.model_type).min_by_key(|name| distance(name, model_type));
    let help = match nearest.filter(|name| distance(name, model_type) <= 1 + model_type.len() / 3) {
        Some(nearest) => format!("the nearest family by name is `{nearest}`; supported are: {known}"),
        None => format!("supported are: {known}"),
    };
    error(String::new()).with_help(help)
}

/// How many letters two names differ by (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let changed = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}
