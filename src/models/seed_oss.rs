//! Seed-OSS: a Llama whose queries, keys and values have biases.
//!
//! Source: `modeling_seed_oss.py` of transformers. Its dropout of attention's probabilities in training is left out.

use super::config::Config;
use super::decoder::{Bias, Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family =
    Family { model_type: "seed_oss", models: "Seed-OSS", names: Names::LLAMA, defaults: DEFAULTS, describe: decoder };

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), positions: 524_288, ..Defaults::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    let qkv = config.flag("attention_bias")? != Some(false);
    let o = config.flag("attention_out_bias")?;
    decoder.biases[0] = Bias::Key("attention_bias", Some(qkv));
    decoder.biases[1] = Bias::Key("attention_out_bias", o);
    Ok(decoder)
}
