//! SmolLM3: a Llama of which every fourth layer has no positions.
//!
//! Source: `modeling_smollm3.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family =
    Family { model_type: "smollm3", models: "SmolLM3", names: Names::LLAMA, defaults: DEFAULTS, describe: decoder };

const DEFAULTS: Defaults = Defaults { positions: 32768, theta: 2e6, ..Defaults::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    let layers = decoder.dimensions.layers;
    let period = config.count("no_rope_layer_interval")?.unwrap_or(4);
    // 1 is a layer with positions, whatever the name says.
    let rotated = match config.numbers("no_rope_layers", layers)? {
        Some(rotated) => rotated.into_iter().map(|x| x != 0.0).collect(),
        None => (0..layers).map(|i| !(i + 1).is_multiple_of(period)).collect::<Vec<_>>(),
    };
    for (kind, rotated) in decoder.kinds.iter_mut().zip(&rotated) {
        kind.rope = rotated.then_some(0);
    }
    config.ignore(&["max_window_layers"]);
    let window = config.count("sliding_window")?.filter(|_| config.value("use_sliding_window") == Some(&true.into()));
    let sliding = config.sliding_layers(layers, |i| window.is_some() && !rotated[i])?;
    if let Some(window) = window {
        decoder.slide(window, &sliding);
    }
    Ok(decoder)
}
