//! Granite 3, and the dense ones of Granite 4: a Llama with constant factors on embeddings, scores, branches and logits.
//!
//! Source: `modeling_granite.py` and `modeling_granitemoehybrid.py` of transformers.

use super::config::Config;
use super::decoder::{Decoder, Defaults, Family, Names};
use crate::error::Result;
use crate::nn::Builder;

pub(super) const FAMILY: Family = Family {
    model_type: "granite",
    models: "Granite 3",
    names: Names::LLAMA,
    defaults: Defaults::LLAMA,
    describe: decoder,
};
pub(super) const FOUR: Family = Family {
    model_type: "granitemoehybrid",
    models: "Granite 4 without experts and state spaces",
    names: NAMES,
    defaults: Defaults::LLAMA,
    describe: four,
};

/// Granite 4 has gates and ups in one layer.
const NAMES: Names = Names { gate_up: &["shared_mlp.input_linear"], down: "shared_mlp.output_linear", ..Names::LLAMA };

fn decoder(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &Defaults::LLAMA, builder)?;
    multiply(config, &mut decoder)?;
    Ok(decoder)
}

/// Granite 4 without experts and without state spaces.
fn four(config: &Config<'_>, builder: &Builder<'_>) -> Result<Decoder> {
    let mut decoder = Decoder::new(config, &Defaults::LLAMA, builder)?;
    let layers = decoder.dimensions.layers;
    if config.value("num_local_experts").and_then(serde_json::Value::as_u64).unwrap_or(8) != 0 {
        return Err(config.error("num_local_experts: a Granite 4 with experts is not supported; expected 0"));
    }
    for key in ["layer_types", "layers_block_type"] {
        let types = config.value(key).and_then(serde_json::Value::as_array);
        match types {
            Some(types)
                if types.len() == layers
                    && types.iter().all(|kind| kind == "attention" || kind == "full_attention") => {}
            None if key == "layer_types" => continue,
            _ => {
                return Err(
                    config.error(format!("{key}: expected {layers} layers of attention; others are not supported"))
                );
            }
        }
        break;
    }
    config.ignore_prefix("mamba_");
    config.ignore(&["num_experts_per_tok", "time_step_limit"]);
    match config.text("normalization_function")? {
        None | Some("rmsnorm") => {}
        Some(other) => return Err(config.error(format!("normalization_function: expected rmsnorm, got {other}"))),
    }
    decoder.dimensions.intermediate = config.size("shared_intermediate_size")?;
    if config.text("position_embedding_type")? != Some("rope") {
        for kind in &mut decoder.kinds {
            kind.rope = None;
        }
    }
    multiply(config, &mut decoder)?;
    Ok(decoder)
}

fn multiply(config: &Config<'_>, decoder: &mut Decoder) -> Result<()> {
    decoder.embedding_factor = config.number("embedding_multiplier")?.unwrap_or(1.0);
    decoder.scale = Some(config.number("attention_multiplier")?.unwrap_or(1.0));
    decoder.residual_factor = config.number("residual_multiplier")?.unwrap_or(1.0);
    decoder.logits_factor = 1.0 / config.number("logits_scaling")?.unwrap_or(1.0);
    Ok(())
}
