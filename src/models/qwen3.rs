//! Qwen 3, and the text decoder of Qwen3-VL: queries and keys are normalized by head.
//!
//! Source: arXiv 2505.09388, and `modeling_qwen3.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names, QkNormKind};
use super::qwen2::slide;
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    models: "Qwen 3, II-Medical",
    names: Names::LLAMA,
    defaults: DEFAULTS,
    describe: decoder,
};
pub(super) const VL: Family = Family {
    model_type: "qwen3_vl_text",
    models: "Qwen3-VL (text decoder)",
    names: Names::LLAMA,
    defaults: VL_DEFAULTS,
    describe: vl_decoder,
};

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), positions: 32768, ..Defaults::LLAMA };

/// Those of the class `qwen3_vl_text`.
const VL_DEFAULTS: Defaults = Defaults { positions: 128_000, theta: 5e5, ..DEFAULTS };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    decoder.qk_norm = Some(QkNormKind::Head);
    slide(config, &mut decoder)?;
    Ok(decoder)
}

/// The text of a Qwen3-VL. Its three streams of positions are the same for text.
fn vl_decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &VL_DEFAULTS, builder)?;
    decoder.qk_norm = Some(QkNormKind::Head);
    Ok(decoder)
}
