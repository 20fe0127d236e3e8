//! Llama: pre-normalized attention with rotary positions and grouped queries, and a gated MLP.
//!
//! Llama 1 to 3, SmolLM2, TinyLlama and what else calls itself `llama`. Source: arXiv 2302.13971, and
//! `modeling_llama.py` of transformers for names and shapes.

use super::{CausalLm, Dimensions};
use crate::error::{Error, Result};
use crate::nn::{Builder, DecoderLayer, rope_frequencies};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The most layers, and the largest of the other sizes, that are believed.
const MAX_LAYERS: usize = 1 << 12;
const MAX_SIZE: usize = 1 << 24;

#[derive(Debug, Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    /// What transformers takes where nothing is said.
    #[serde(default = "epsilon")]
    rms_norm_eps: f64,
    #[serde(default = "positions")]
    max_position_embeddings: usize,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
}

const fn epsilon() -> f64 {
    1e-6
}

const fn positions() -> usize {
    2048
}

impl Config {
    fn read(config: &Map<String, Value>) -> Result<Self> {
        let config: Self = serde_json::from_value(Value::Object(config.clone()))
            .map_err(|error| Error::invalid(format!("config.json of a llama model: {error}")))?;
        config.check_sizes()?;
        match config.hidden_act.as_deref() {
            None | Some("silu" | "swish") => Ok(config),
            Some(other) => {
                Err(Error::invalid(format!("config.json: hidden_act `{other}` is not supported; expected `silu`")))
            }
        }
    }

    fn check_sizes(&self) -> Result<()> {
        let d = self.dimensions();
        let wrong = |what: String| Err(Error::invalid(format!("config.json of a llama model: {what}")));
        for (key, size, most) in [
            ("num_hidden_layers", d.layers, MAX_LAYERS),
            ("hidden_size", d.hidden, MAX_SIZE),
            ("intermediate_size", d.intermediate, MAX_SIZE),
            ("num_attention_heads", d.heads, MAX_SIZE),
            ("num_key_value_heads", d.kv_heads, MAX_SIZE),
            ("head_dim", d.head_dim, MAX_SIZE),
            ("vocab_size", d.vocabulary, MAX_SIZE),
            ("max_position_embeddings", d.max_positions, MAX_SIZE),
        ] {
            if !(1..=most).contains(&size) {
                return wrong(format!("{key}: expected 1 to {most}, got {size}"));
            }
        }
        // Rotary positions pair the numbers of a head, and products pair those of a row.
        for (key, size) in [("head_dim", d.head_dim), ("hidden_size", d.hidden), ("intermediate_size", d.intermediate)]
        {
            if !size.is_multiple_of(2) {
                return wrong(format!("{key}: expected an even number, got {size}"));
            }
        }
        if !d.heads.is_multiple_of(d.kv_heads) {
            return wrong(format!(
                "num_attention_heads: expected a multiple of num_key_value_heads = {}, got {}",
                d.kv_heads, d.heads
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return wrong(format!("rms_norm_eps: expected a number above 0, got {}", self.rms_norm_eps));
        }
        Ok(())
    }

    fn dimensions(&self) -> Dimensions {
        Dimensions {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or_else(|| self.hidden_size / self.num_attention_heads.max(1)),
            vocabulary: self.vocab_size,
            max_positions: self.max_position_embeddings,
        }
    }
}

/// Builds the model from `config.json` and a base's tensors.
///
/// # Errors
/// For a configuration that is not a Llama's; what [`Builder`] finds is in its `finish`.
pub(super) fn build(json: &Map<String, Value>, builder: &Builder<'_>) -> Result<CausalLm> {
    let config = Config::read(json)?;
    let dimensions = config.dimensions();
    // In a folder it is a leftover, which transformers leaves alone.
    let factors = if builder.is_gguf() && builder.has("rope_freqs.weight") {
        Some(builder.tensor("rope_freqs.weight", &[dimensions.head_dim / 2])?.to_vec1::<f32>()?)
    } else {
        None
    };
    // A plan reads no tensor, and so has no factors to check.
    let frequencies = rope_frequencies(json, dimensions.head_dim, factors.as_deref().filter(|_| !builder.is_plan()))?;

    let matrix = |name: &str| builder.matrix(name, config.vocab_size, config.hidden_size, true);
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    // Tied weights are stored once, under either name. That they are tied may go without saying, but not against it.
    let both = builder.has(embedding) && builder.has(head);
    let tied = config.tie_word_embeddings.unwrap_or(!both);
    let embed_tokens = matrix(if tied && !builder.has(embedding) { head } else { embedding })?;
    let lm_head = builder.on_device(&if tied { embed_tokens.clone() } else { matrix(head)? })?;

    let layers = (0..dimensions.layers).map(|i| layer(builder, i, &config)).collect::<Result<_>>()?;
    let norm = builder.vector("model.norm.weight", dimensions.hidden)?;
    let epsilon = config.rms_norm_eps;
    Ok(CausalLm { dimensions, epsilon, frequencies, embed_tokens, layers, norm, lm_head, adapter_memory: None })
}

fn layer(builder: &Builder<'_>, index: usize, config: &Config) -> Result<DecoderLayer> {
    let d = config.dimensions();
    let path = |name: &str| format!("model.layers.{index}.{name}");
    let (query, key) = (d.heads * d.head_dim, d.kv_heads * d.head_dim);
    let (attention_bias, mlp_bias) = (("attention_bias", config.attention_bias), ("mlp_bias", config.mlp_bias));
    let linear = |name: &str, inputs, outputs, (setting, said): (&str, Option<bool>)| {
        let path = path(name);
        // transformers leaves a bias out that the configuration denies, llama.cpp adds it.
        if !builder.is_gguf() && said != Some(true) && builder.has_numbers(&format!("{path}.bias"), outputs)? {
            let said = said.map_or("does not set", |_| "denies");
            let message = format!(
                "`{path}.bias` is not zero, but config.json {said} `{setting}`: transformers leaves it out, others add it"
            );
            return Err(Error::invalid(message).with_help(format!(
                "set `{setting}` to true in config.json if the model was made with it, or remove these tensors"
            )));
        }
        builder.linear(&path, inputs, outputs)
    };
    Ok(DecoderLayer {
        index,
        shape: d.attention(),
        epsilon: config.rms_norm_eps,
        input_norm: builder.vector(&path("input_layernorm.weight"), d.hidden)?,
        qkv: [
            linear("self_attn.q_proj", d.hidden, query, attention_bias)?,
            linear("self_attn.k_proj", d.hidden, key, attention_bias)?,
            linear("self_attn.v_proj", d.hidden, key, attention_bias)?,
        ],
        o: linear("self_attn.o_proj", query, d.hidden, attention_bias)?,
        post_attention_norm: builder.vector(&path("post_attention_layernorm.weight"), d.hidden)?,
        gate_up: [
            linear("mlp.gate_proj", d.hidden, d.intermediate, mlp_bias)?,
            linear("mlp.up_proj", d.hidden, d.intermediate, mlp_bias)?,
        ],
        down: linear("mlp.down_proj", d.intermediate, d.hidden, mlp_bias)?,
    })
}
