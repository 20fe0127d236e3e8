//! Phi 3, 3.5 and 4: a Llama whose queries, keys and values are one linear layer, and gates and ups another; long texts have rotations
//! of their own.
//!
//! Source: arXiv 2404.14219, and `modeling_phi3.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family =
    Family { model_type: "phi3", models: "Phi-3, 3.5, 4, 4-mini", names: NAMES, defaults: DEFAULTS, describe: decoder };

const DEFAULTS: Defaults =
    Defaults { positions: 4096, epsilon: 1e-5, partial: Some(1.0), original: Some(4096), ..Defaults::LLAMA };
const NAMES: Names = Names { qkv: &["self_attn.qkv_proj"], gate_up: &["mlp.gate_up_proj"], ..Names::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    // Phi-4-mini says that every layer is alike.
    if config.count("full_attn_mod")?.is_some_and(|period| period != 1) {
        return Err(config.error("full_attn_mod: layers of two kinds are not supported; expected 1"));
    }
    if let Some(window) = config.count("sliding_window")? {
        let layers = decoder.dimensions.layers;
        decoder.slide(window, &vec![true; layers]);
    }
    Ok(decoder)
}
