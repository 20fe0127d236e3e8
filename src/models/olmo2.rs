//! OLMo 2 and 3: norms behind the branches alone, queries and keys normalized over all heads; the third with a window in three of
//! four layers.
//!
//! Source: arXiv 2501.00656, and `modeling_olmo2.py`, `modeling_olmo3.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names, QkNormKind};
use super::rope::rope;
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family =
    Family { model_type: "olmo2", models: "OLMo 2", names: Names::POST_NORM, defaults: DEFAULTS, describe: decoder };
pub(super) const THIRD: Family = Family {
    model_type: "olmo3",
    models: "OLMo 3",
    names: Names::POST_NORM,
    defaults: THIRD_DEFAULTS,
    describe: third,
};

const DEFAULTS: Defaults = Defaults { epsilon: 1e-5, ..Defaults::LLAMA };
const THIRD_DEFAULTS: Defaults = Defaults { theta: 5e5, ..DEFAULTS };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &DEFAULTS, builder)?;
    decoder.qk_norm = Some(QkNormKind::All);
    Ok(decoder)
}

fn third(config: &Config<'_>, _: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::without_rope(config, &THIRD_DEFAULTS)?;
    decoder.qk_norm = Some(QkNormKind::All);
    let (layers, head_dim) = (decoder.dimensions.layers, decoder.dimensions.head_dim);
    let sliding = config.sliding_layers(layers, |i| !(i + 1).is_multiple_of(4))?;
    decoder.slide(config.count("sliding_window")?.unwrap_or(4096), &sliding);
    decoder.ropes = vec![
        rope(config, Some("full_attention"), THIRD_DEFAULTS.rope(), head_dim, None)?,
        rope(config, Some("sliding_attention"), THIRD_DEFAULTS.rope(), head_dim, None)?,
    ];
    for (kind, sliding) in decoder.kinds.iter_mut().zip(sliding) {
        kind.rope = Some(usize::from(sliding));
    }
    Ok(decoder)
}
