//! Gemma 3, MedGemma, FunctionGemma: a Gemma 2 without caps, with normalized queries and keys, and two rotations: one of the layers that
//! slide, one of those that see everything.
//!
//! Source: arXiv 2503.19786, and `modeling_gemma3.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names, QkNormKind};
use super::gemma2::{self, gemma};
use super::rope::{RopeDefaults, rope};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    models: "Gemma 3, MedGemma, FunctionGemma",
    names: Names::SANDWICH,
    defaults: DEFAULTS,
    describe: decoder,
};

/// Those of the class.
const DEFAULTS: Defaults = Defaults { positions: 131_072, theta: 1e6, ..gemma2::DEFAULTS };

fn decoder(config: &Config<'_>, _: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::without_rope(config, &DEFAULTS)?;
    gemma(config, &mut decoder)?;
    decoder.qk_norm = Some(QkNormKind::Head);
    if let Some(cap) = config.number("attn_logit_softcapping")? {
        return Err(config.error(format!(
            "attn_logit_softcapping: expected null, got {cap}: Gemma 3 does not cap attention scores"
        )));
    }
    decoder.logits_softcap = config.number("final_logit_softcapping")?;
    if config.flag("use_bidirectional_attention")? == Some(true) {
        return Err(config.error("use_bidirectional_attention: a model that sees what follows is not supported"));
    }
    let (layers, head_dim) = (decoder.dimensions.layers, decoder.dimensions.head_dim);
    let period = config.count("sliding_window_pattern")?.unwrap_or(6);
    let sliding = config.sliding_layers(layers, |i| !(i + 1).is_multiple_of(period))?;
    decoder.slide(config.count("sliding_window")?.unwrap_or(4096), &sliding);

    let local = RopeDefaults { theta: 1e4, theta_key: "rope_local_base_freq", ..DEFAULTS.rope() };
    decoder.ropes = vec![
        rope(config, Some("full_attention"), DEFAULTS.rope(), head_dim, None)?,
        rope(config, Some("sliding_attention"), local, head_dim, None)?,
    ];
    for (kind, sliding) in decoder.kinds.iter_mut().zip(sliding) {
        kind.rope = Some(usize::from(sliding));
    }
    Ok(decoder)
}
