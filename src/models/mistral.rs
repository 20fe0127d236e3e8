//! Mistral, Mistral Nemo, BioMistral, and Ministral: a Llama with a window.
//!
//! Source: arXiv 2310.06825, and `modeling_mistral.py`, `modeling_ministral.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    models: "Mistral, Nemo, Mistral Small, BioMistral",
    names: Names::LLAMA,
    defaults: DEFAULTS,
    describe: decoder,
};
pub(super) const MINISTRAL: Family = Family {
    model_type: "ministral",
    models: "Ministral 8B",
    names: Names::LLAMA,
    defaults: DEFAULTS,
    describe: decoder,
};

/// Those of the class.
pub(super) const DEFAULTS: Defaults = Defaults { positions: 131_072, ..Defaults::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    // The class has a window where none is named; `null` is none.
    let window = if config.has("sliding_window") { config.count("sliding_window")? } else { Some(4096) };
    let sliding = config.sliding_layers(decoder.dimensions.layers, |_| window.is_some())?;
    if let Some(window) = window {
        decoder.slide(window, &sliding);
    }
    Ok(decoder)
}
