//! Gemma 2, and TxGemma: norms before and behind the branches, capped scores and logits, a window in every other layer.
//!
//! Source: arXiv 2408.00118, and `modeling_gemma2.py` of transformers.

use super::config::Config;
use super::decoder::{Bias, Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;
use crate::ops::Activation;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    models: "Gemma 2, TxGemma",
    names: Names::SANDWICH,
    defaults: DEFAULTS,
    describe: decoder,
};

/// `hidden_act` in these files is left alone.
pub(super) const DEFAULTS: Defaults = Defaults {
    head_dim: Some(256),
    positions: 8192,
    activation: ("hidden_activation", Activation::GeluTanh),
    ..Defaults::LLAMA
};

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    gemma(config, &mut decoder)?;
    decoder.softcap = config.number_or("attn_logit_softcapping", Some(50.0))?;
    decoder.logits_softcap = config.number_or("final_logit_softcapping", Some(30.0))?;
    let sliding = config.sliding_layers(decoder.dimensions.layers, |i| i.is_multiple_of(2))?;
    decoder.slide(config.count("sliding_window")?.unwrap_or(4096), &sliding);
    Ok(decoder)
}

/// What all Gemmas from the second on have.
pub(super) fn gemma(config: &Config<'_>, decoder: &mut Decoder) -> Result<()> {
    // The latter is the former once more, by another program's name.
    config.ignore(&["hidden_act", "sliding_window_size"]);
    decoder.biases[2] = Bias::Never;
    decoder.norms_without_one = config.flag("norms_include_one")? != Some(true);
    decoder.scale = Some(config.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5));
    decoder.embedding_factor = (decoder.dimensions.hidden as f64).sqrt();
    Ok(())
}
