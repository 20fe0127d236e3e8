//! What each family's `config.json` says besides: from its own metadata, and from what llama.cpp's runtime has built in for it.
//!
//! Source: `src/models/*.cpp` of llama.cpp (the runtime) and `conversion/*.py` (which keys are written).

use super::architecture::Architecture;
use super::keys::{Keys, Tensors};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// The most layers that are believed.
const MOST_LAYERS: usize = 1 << 12;

type Config = Map<String, Value>;
type Complete = fn(&Keys<'_>, &Tensors<'_>, &mut Config) -> Result<()>;

/// `general.architecture`, and what completes its configuration.
const FAMILIES: &[(&str, Complete)] = &[
    ("qwen3vl", qwen3_vl),
    ("mistral3", mistral3),
    ("smollm3", smollm3),
    ("granite", granite),
    ("gemma2", gemma2),
    ("gemma3", gemma3),
    ("olmo2", olmo),
    ("exaone4", exaone4),
    ("phi3", phi3),
    ("glm4", glm4),
    ("seed_oss", seed_oss),
];

/// Completes a configuration.
pub(super) fn complete(row: &Architecture, keys: &Keys<'_>, tensors: &Tensors<'_>, config: &mut Config) -> Result<()> {
    match FAMILIES.iter().find(|(name, _)| *name == row.gguf) {
        // Nothing is made for layers that no file has; whoever builds the model refuses them.
        Some((_, complete)) if layers(config) <= MOST_LAYERS => complete(keys, tensors, config),
        _ => Ok(()),
    }
}

fn number(config: &Config, key: &str) -> u64 {
    config.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn layers(config: &Config) -> usize {
    number(config, "num_hidden_layers") as usize
}

/// `layer_types`, from which of them slide.
fn layer_types(sliding: &[bool]) -> Value {
    sliding.iter().map(|sliding| if *sliding { "sliding_attention" } else { "full_attention" }).collect()
}

fn set(config: &mut Config, key: &str, value: impl Into<Value>) {
    config.insert(key.into(), value.into());
}

/// The text decoder is Qwen3's.
#[expect(clippy::unnecessary_wraps, reason = "as its neighbours in the table")]
fn qwen3_vl(_: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    set(config, "model_type", "qwen3");
    Ok(())
}

/// Ministral 3, whose queries grow with their positions; or Mistral Small 3, which is a Mistral without a window.
fn mistral3(keys: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    set(config, "sliding_window", Value::Null);
    let Some(beta) = keys.float("attention.temperature_scale")?.filter(|beta| *beta != 0.0) else {
        set(config, "model_type", "mistral");
        return Ok(());
    };
    let mut rope = match config.remove("rope_scaling") {
        Some(Value::Object(rope)) => rope,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    // The length after which they grow is the original one, whatever the kind of scaling.
    let length = keys.number("rope.scaling.original_context_length")?;
    let length = length.map_or_else(|| config.get("max_position_embeddings").cloned().unwrap_or_default(), Value::from);
    rope.entry("original_max_position_embeddings").or_insert(length);
    rope.insert("rope_theta".into(), config.get("rope_theta").cloned().unwrap_or_default());
    rope.insert("llama_4_scaling_beta".into(), beta.into());
    set(config, "rope_parameters", rope);
    Ok(())
}

/// Every fourth layer has no positions; that is nowhere in the file.
#[expect(clippy::unnecessary_wraps, reason = "as its neighbours in the table")]
fn smollm3(_: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    const INTERVAL: usize = 4;
    let rotates: Vec<u8> = (1..=layers(config)).map(|layer| u8::from(!layer.is_multiple_of(INTERVAL))).collect();
    set(config, "no_rope_layers", rotates);
    set(config, "no_rope_layer_interval", INTERVAL);
    Ok(())
}

fn granite(keys: &Keys<'_>, tensors: &Tensors<'_>, config: &mut Config) -> Result<()> {
    if keys.boolean("rope.scaling.finetuned")? == Some(false) {
        // So the files say that positions are not rotated at all.
        return Err(keys.unsupported("rope.scaling.finetuned", false));
    }
    let width = number(config, "head_dim") as f64;
    // 0 and nothing both mean: as without such a factor.
    for (name, key, plain) in [
        ("embedding_multiplier", "embedding_scale", 1.0),
        ("attention_multiplier", "attention.scale", width.sqrt().recip()),
        ("residual_multiplier", "residual_scale", 1.0),
        ("logits_scaling", "logit_scale", 1.0),
    ] {
        set(config, name, keys.float(key)?.filter(|factor| *factor != 0.0).unwrap_or(plain));
    }
    set(config, "mlp_bias", tensors.record("blk.0.ffn_gate.bias").is_some());
    Ok(())
}

/// What Gemma 2 and 3 share. The divisor of scores is not in the file: the runtime knows the model by its number of layers.
fn gemma(config: &mut Config, sliding: &[bool], layers_of_27b: usize) {
    config.remove("hidden_act");
    set(config, "hidden_activation", "gelu_pytorch_tanh");
    set(config, "layer_types", layer_types(sliding));
    let divisor = if sliding.len() == layers_of_27b {
        number(config, "hidden_size") / number(config, "num_attention_heads").max(1)
    } else {
        number(config, "head_dim")
    };
    set(config, "query_pre_attn_scalar", divisor);
}

fn gemma2(keys: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    let sliding = keys.sliding_layers(layers(config), 2)?;
    gemma(config, &sliding, 46);
    set(config, "sliding_window", keys.window()?.unwrap_or(4096));
    set(config, "attn_logit_softcapping", keys.float("attn_logit_softcapping")?.unwrap_or(50.0));
    set(config, "final_logit_softcapping", keys.float("final_logit_softcapping")?.unwrap_or(30.0));
    Ok(())
}

fn gemma3(keys: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    let window = keys.window()?;
    let sliding = match window {
        Some(_) => keys.sliding_layers(layers(config), 6)?,
        None => vec![false; layers(config)],
    };
    gemma(config, &sliding, 62);
    if window.is_none() {
        // Left out it would be the class's own.
        set(config, "sliding_window", Value::Null);
    }
    // `rope_theta` and `rope_scaling` are those of the layers that see everything.
    set(config, "rope_local_base_freq", keys.float("rope.freq_base_swa")?.unwrap_or(10_000.0));
    set(config, "attn_logit_softcapping", Value::Null);
    let cap = keys.float("final_logit_softcapping")?.filter(|cap| *cap != 0.0);
    set(config, "final_logit_softcapping", cap.map_or(Value::Null, Value::from));
    Ok(())
}

/// OLMo 3 is the one with a window. Its scaling is that of the layers that see everything.
fn olmo(keys: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    if keys.window()?.is_some() {
        set(config, "model_type", "olmo3");
        set(config, "layer_types", layer_types(&keys.sliding_layers(layers(config), 4)?));
        same_local_theta(keys, config)?;
    }
    Ok(())
}

/// With a window only the layers that have it rotate.
fn exaone4(keys: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    const LAYERS_OF_32B: usize = 64;
    let count = layers(config);
    if let Some(window) = keys.window()?.or_else(|| (count == LAYERS_OF_32B).then_some(4096)) {
        set(config, "sliding_window", window);
        set(config, "layer_types", layer_types(&keys.sliding_layers(count, 4)?));
        same_local_theta(keys, config)?;
    } else {
        // Left out it would be the class's own.
        set(config, "sliding_window", Value::Null);
        set(config, "layer_types", layer_types(&vec![false; count]));
    }
    Ok(())
}

/// Refuses another base of the frequencies in layers with a window, where Hugging Face's class has one for all.
fn same_local_theta(keys: &Keys<'_>, config: &Config) -> Result<()> {
    let theta = config.get("rope_theta").and_then(Value::as_f64);
    match keys.float("rope.freq_base_swa")?.filter(|local| Some(*local) != theta) {
        Some(local) => Err(keys.unsupported("rope.freq_base_swa", local)),
        None => Ok(()),
    }
}

/// The share of a head that rotates, such that `floor(width · share)` is the number that the file has.
fn partial_rotary(keys: &Keys<'_>, config: &mut Config) -> Result<()> {
    let width = number(config, "head_dim");
    let rotated = keys.number("rope.dimension_count")?.map_or(width, u64::from);
    let mut share = rotated as f64 / width.max(1) as f64;
    if (share * width as f64) as u64 != rotated {
        share = (rotated as f64 + 0.5) / width as f64;
    }
    set(config, "partial_rotary_factor", share);
    Ok(())
}

fn phi3(keys: &Keys<'_>, tensors: &Tensors<'_>, config: &mut Config) -> Result<()> {
    partial_rotary(keys, config)?;
    set(config, "sliding_window", keys.window()?.map_or(Value::Null, Value::from));
    let most = number(config, "max_position_embeddings");
    let original = keys.number("rope.scaling.original_context_length")?.map_or(most, u64::from);
    set(config, "original_max_position_embeddings", original);
    let factors = |name: &str| tensors.numbers(&format!("rope_factors_{name}.weight"));
    let (long, short) = match (factors("long")?, factors("short")?) {
        (Some(long), Some(short)) => (long, short),
        (None, None) => return Ok(()),
        (long, _) => {
            return Err(keys.without(if long.is_none() {
                "rope_factors_long.weight"
            } else {
                "rope_factors_short.weight"
            }));
        }
    };
    // Shortest decimals of f32, so that 1.1 stays 1.1.
    let plain = |factors: Vec<f32>| -> Value {
        factors.into_iter().map(|factor| factor.to_string().parse::<f64>().unwrap_or(f64::NAN)).collect()
    };
    // Phi's class wants exactly these three, unless something must be said that does not follow from them.
    let mut scaling = json!({ "type": "longrope", "long_factor": plain(long), "short_factor": plain(short) });
    let ratio = most as f64 / original.max(1) as f64;
    let usual = if ratio > 1.0 { (1.0 + ratio.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
    let factor = keys.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
    if (factor - usual).abs() > 1e-5 * usual {
        scaling["attention_factor"] = factor.into();
    }
    set(config, "rope_scaling", scaling);
    Ok(())
}

fn glm4(keys: &Keys<'_>, _: &Tensors<'_>, config: &mut Config) -> Result<()> {
    if let Some(sections) = keys.metadata.numbers("glm4.rope.dimension_sections")?
        && sections.iter().any(|section| *section != 0)
    {
        // The vision models' q and k are in another order.
        return Err(keys.unsupported("rope.dimension_sections", format!("{sections:?}")));
    }
    partial_rotary(keys, config)
}

#[expect(clippy::unnecessary_wraps, reason = "as its neighbours in the table")]
fn seed_oss(_: &Keys<'_>, tensors: &Tensors<'_>, config: &mut Config) -> Result<()> {
    set(config, "attention_out_bias", tensors.record("blk.0.attn_output.bias").is_some());
    set(config, "mlp_bias", tensors.record("blk.0.ffn_gate.bias").is_some());
    Ok(())
}
