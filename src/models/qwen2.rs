//! Qwen 2 and 2.5, and R1-Distill-Qwen: a Llama whose queries, keys and values have biases.
//!
//! Source: arXiv 2407.10671, and `modeling_qwen2.py` of transformers.

use super::config::Config;
use super::decoder::{Bias, Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    models: "Qwen 2, Qwen 2.5, R1-Distill-Qwen, HuatuoGPT-o1, Baichuan-M2",
    names: Names::LLAMA,
    defaults: DEFAULTS,
    describe: decoder,
};

const DEFAULTS: Defaults = Defaults { positions: 32768, ..Defaults::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    decoder.biases = [Bias::Always, Bias::Never, Bias::Never];
    slide(config, &mut decoder)?;
    Ok(decoder)
}

/// Files name a window that is switched off; where it is on, layers from `max_window_layers` on slide.
pub(super) fn slide(config: &Config<'_>, decoder: &mut Decoder) -> Result<()> {
    let (on, window) = (config.flag("use_sliding_window")?, config.count("sliding_window")?.unwrap_or(4096));
    let first = config.value("max_window_layers").and_then(serde_json::Value::as_u64).unwrap_or(28) as usize;
    let on = on == Some(true);
    let sliding = config.sliding_layers(decoder.dimensions.layers, |i| on && i >= first)?;
    if on {
        decoder.slide(window, &sliding);
    }
    Ok(())
}
