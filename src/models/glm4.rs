//! GLM-4 of April 2025, and GLM-Z1: norms before and behind the branches, gates and ups in one linear layer, the first half of a head
//! rotated, neighbour with neighbour.
//!
//! Source: `modeling_glm4.py` of transformers.

use super::config::Config;
use super::decoder::{Bias, Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family =
    Family { model_type: "glm4", models: "GLM-4-0414, GLM-Z1", names: NAMES, defaults: DEFAULTS, describe: decoder };

const DEFAULTS: Defaults =
    Defaults { head_dim: Some(128), positions: 131_072, epsilon: 1.5625e-7, partial: Some(0.5), ..Defaults::LLAMA };
const NAMES: Names = Names {
    attention: [Some("input_layernorm"), Some("post_self_attn_layernorm")],
    mlp: [Some("post_attention_layernorm"), Some("post_mlp_layernorm")],
    gate_up: &["mlp.gate_up_proj"],
    ..Names::LLAMA
};

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    decoder.ropes[0].interleaved = true;
    decoder.biases =
        [Bias::Key("attention_bias", Some(config.flag("attention_bias")? != Some(false))), Bias::Never, Bias::Never];
    Ok(decoder)
}
