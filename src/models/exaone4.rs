//! EXAONE 4: norms behind the branches alone, queries and keys normalized by head; where layers slide, only those have positions.
//!
//! Source: `modeling_exaone4.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names, QkNormKind};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "exaone4",
    models: "EXAONE 4",
    names: Names::POST_NORM,
    defaults: DEFAULTS,
    describe: decoder,
};

const DEFAULTS: Defaults = Defaults { epsilon: 1e-5, ..Defaults::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    decoder.qk_norm = Some(QkNormKind::Head);
    let layers = decoder.dimensions.layers;
    let window = if config.has("sliding_window") { config.count("sliding_window")? } else { Some(4096) };
    // A number, or a word such as LLLG with L for the layers that slide, over and over.
    let pattern = config.value("sliding_window_pattern");
    let word = pattern.and_then(serde_json::Value::as_str).filter(|word| !word.is_empty()).map(str::as_bytes);
    let period = pattern.and_then(serde_json::Value::as_u64).map_or(4, |period| period.max(1) as usize);
    let in_pattern = |i: usize| word.map_or(!(i + 1).is_multiple_of(period), |word| word[i % word.len()] == b'L');
    let slides = |i: usize| window.is_some() && in_pattern(i);
    let sliding = config.sliding_layers(layers, slides)?;
    if let Some(window) = window {
        decoder.slide(window, &sliding);
        for (kind, sliding) in decoder.kinds.iter_mut().zip(sliding) {
            kind.rope = sliding.then_some(0);
        }
    }
    Ok(decoder)
}
