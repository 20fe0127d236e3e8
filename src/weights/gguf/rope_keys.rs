//! Rotary scaling of GGUF's metadata as `rope_scaling` of `config.json`.

use super::keys::Keys;
use crate::error::Result;
use serde_json::{Value, json};

/// `rope_scaling`; `None` where nothing is scaled. The scaling of `longrope` is in tensors, which the family reads.
///
/// As llama.cpp has it: a factor without a type is linear, and old files have it under another name.
pub(super) fn scaling(keys: &Keys<'_>) -> Result<Option<Value>> {
    let kind = keys.string("rope.scaling.type")?.unwrap_or("linear");
    let factor = match keys.float("rope.scaling.factor")? {
        None => keys.float("rope.scale_linear")?,
        factor => factor,
    };
    let factor = factor.filter(|factor| !["none", "longrope"].contains(&kind) && *factor != 0.0 && *factor != 1.0);
    let Some(factor) = factor else { return Ok(None) };
    let mut scaling = json!({ "rope_type": kind, "factor": factor });
    if let Some(length) = keys.number("rope.scaling.original_context_length")? {
        scaling["original_max_position_embeddings"] = length.into();
    }
    if kind == "yarn" {
        yarn(keys, factor, &mut scaling)?;
    }
    Ok(Some(scaling))
}

fn yarn(keys: &Keys<'_>, factor: f64, scaling: &mut Value) -> Result<()> {
    for (name, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
        if let Some(value) = keys.float(&format!("rope.scaling.{key}"))? {
            scaling[name] = value.into();
        }
    }
    // 0 would scale as `linear` does, and what lies between blends both.
    if let Some(share) = keys.float("rope.scaling.yarn_ext_factor")?.filter(|share| *share != 1.0) {
        return Err(keys.unsupported("rope.scaling.yarn_ext_factor", share));
    }
    // What cosines and sines are multiplied by. One key says the whole of it; the other, where it stands alone, a factor besides
    // the usual.
    let whole = keys.float("rope.scaling.yarn_attn_factor")?;
    let besides = keys.float("rope.scaling.attn_factor")?.filter(|besides| *besides != 1.0);
    let scale = |m: f64| if factor > 1.0 { (0.1 * m).mul_add(factor.ln(), 1.0) } else { 1.0 };
    // The runtime divides by what this one gives, and assumes 1 for the numerator.
    let all = keys.float("rope.scaling.yarn_log_multiplier")?.filter(|all| *all != 0.0);
    let usual = scale(1.0) / all.map_or(1.0, scale);
    if let Some(factor) = whole.or_else(|| Some(usual * besides?)) {
        scaling["attention_factor"] = factor.into();
    }
    if let Some(all) = all {
        scaling["mscale"] = json!(1.0);
        scaling["mscale_all_dim"] = all.into();
    }
    Ok(())
}
