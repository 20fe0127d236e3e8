//! Ministral 3, the text decoder of Mistral 3: a Llama whose rotations are stretched (YaRN), and whose queries grow with their position.
//!
//! Source: `modeling_ministral3.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names};
use super::mistral;
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "ministral3",
    models: "Ministral 3, Devstral Small 2",
    names: Names::LLAMA,
    defaults: DEFAULTS,
    describe: decoder,
};

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), positions: 262_144, epsilon: 1e-5, ..mistral::DEFAULTS };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    if config.object("rope_parameters")?.is_none() && config.object("rope_scaling")?.is_none() {
        return Err(config.error("missing field `rope_parameters`"));
    }
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    if let Some(window) = config.count("sliding_window")? {
        let layers = decoder.dimensions.layers;
        decoder.slide(window, &config.sliding_layers(layers, |_| true)?);
    }
    Ok(decoder)
}
