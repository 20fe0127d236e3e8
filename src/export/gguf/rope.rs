//! Rotary embeddings in metadata: linear and `YaRN` scaling are keys; Llama 3's is a tensor of factors.

use crate::error::{Error, Result};
use candle_core::quantized::gguf_file::Value as Metadatum;
use serde_json::{Map, Value};
use std::f32::consts::PI;

/// The tensor of factors, under the same name in GGUF and for [`crate::weights::Base`].
pub const ROPE_FREQS: &str = "rope_freqs.weight";

/// What `config.json` says of scaling, `rope_parameters` (transformers 5) before `rope_scaling`.
fn scaling(config: &Map<String, Value>) -> Result<Option<&Map<String, Value>>> {
    let keys = ["rope_parameters", "rope_scaling"].iter();
    let Some((key, value)) = keys.filter_map(|key| Some((key, config.get(*key)?))).find(|(_, value)| !value.is_null())
    else {
        return Ok(None);
    };
    let wrong = || Error::invalid(format!("config.json: {key}: expected an object, got {value}"));
    value.as_object().map(Some).ok_or_else(wrong)
}

fn kind(scaling: &Map<String, Value>) -> &str {
    scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str).unwrap_or("default")
}

fn above_zero(scaling: &Map<String, Value>, key: &str) -> Result<f64> {
    scaling
        .get(key)
        .and_then(Value::as_f64)
        .filter(|value| *value > 0.0)
        .ok_or_else(|| Error::invalid(format!("config.json: rope_scaling.{key}: expected a number above 0")))
}

/// `theta` of `config.json`.
pub(super) fn theta(config: &Map<String, Value>) -> Result<f64> {
    let nested = scaling(config)?.and_then(|scaling| scaling.get("rope_theta"));
    let known = |value: &&Value| !value.is_null();
    let given = config.get("rope_theta").filter(known).or(nested).filter(known);
    given.map_or(Some(1e4), Value::as_f64).filter(|theta| *theta > 0.0).ok_or_else(|| {
        Error::invalid(format!(
            "config.json: rope_theta: expected a number above 0, got {}",
            given.unwrap_or(&Value::Null)
        ))
    })
}

/// The keys of scaling, after the architecture's name.
///
/// # Errors
/// For kinds that llama.cpp has no keys for, and for missing parameters.
pub(super) fn keys(config: &Map<String, Value>) -> Result<Vec<(&'static str, Metadatum)>> {
    let Some(scaling) = scaling(config)? else { return Ok(Vec::new()) };
    let float = |key: &str| above_zero(scaling, key).map(|value| Metadatum::F32(value as f32));
    let text = |text: &str| Metadatum::String(text.into());
    match kind(scaling) {
        // Llama 3's is in `ROPE_FREQS`.
        "default" | "llama3" => Ok(Vec::new()),
        "linear" => Ok(vec![("rope.scaling.type", text("linear")), ("rope.scaling.factor", float("factor")?)]),
        "yarn" => {
            let length = ["original_max_position_embeddings", "max_position_embeddings"]
                .iter()
                .zip([scaling, config])
                .find_map(|(key, map)| map.get(*key)?.as_u64())
                .and_then(|length| u32::try_from(length).ok())
                .ok_or_else(|| {
                    Error::invalid(
                        "config.json: rope_scaling.original_max_position_embeddings: expected a whole number",
                    )
                })?;
            let mut keys = vec![
                ("rope.scaling.type", text("yarn")),
                ("rope.scaling.factor", float("factor")?),
                ("rope.scaling.original_context_length", Metadatum::U32(length)),
            ];
            for (key, names) in [
                ("rope.scaling.yarn_ext_factor", &["extrapolation_factor"][..]),
                ("rope.scaling.yarn_attn_factor", &["attention_factor", "attn_factor"]),
                ("rope.scaling.yarn_beta_fast", &["beta_fast"]),
                ("rope.scaling.yarn_beta_slow", &["beta_slow"]),
            ] {
                let value = names.iter().find_map(|name| scaling.get(*name)?.as_f64());
                keys.extend(value.map(|value| (key, Metadatum::F32(value as f32))));
            }
            Ok(keys)
        }
        other => Err(Error::invalid(format!("config.json: rope_scaling of type `{other}` cannot be written as GGUF"))
            .with_help("export the merged model instead: `--to merged`")),
    }
}

/// Llama 3's scaling as the factors of [`ROPE_FREQS`], one for each pair of a head's numbers, by which frequencies are
/// divided: 1 for short waves, `factor` for long ones, blended between. `None` for every other kind of scaling.
///
/// Computed in `f32` step by step, as llama.cpp's converter does it.
///
/// # Errors
/// For missing parameters.
pub fn rope_freqs(config: &Map<String, Value>, head_dim: usize) -> Result<Option<Vec<f32>>> {
    let Some(scaling) = scaling(config)?.filter(|scaling| kind(scaling) == "llama3") else { return Ok(None) };
    let parameter = |key: &str| above_zero(scaling, key);
    let factor = parameter("factor")?;
    let (low, high) = (parameter("low_freq_factor")?, parameter("high_freq_factor")?);
    let context = parameter("original_max_position_embeddings")?;
    let (theta, width) = (theta(config)? as f32, head_dim as f32);
    let factors = (0..head_dim / 2).map(|i| {
        let frequency = 1.0 / theta.powf(2.0 * i as f32 / width);
        let wavelength = 2.0 * PI / frequency;
        if wavelength < (context / high) as f32 {
            1.0
        } else if wavelength > (context / low) as f32 {
            factor as f32
        } else {
            let smooth = (context as f32 / wavelength - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    });
    Ok(Some(factors.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::rope_frequencies;
    use serde_json::json;

    #[test]
    fn factors_of_llama3_give_the_frequencies_of_its_parameters() {
        let config = json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let config = config.as_object().unwrap();
        let factors = rope_freqs(config, 64).unwrap().unwrap();
        assert_eq!((factors.len(), factors[0], factors[31]), (32, 1.0, 32.0));
        let from_parameters = rope_frequencies(config, 64, None).unwrap();
        let from_factors = rope_frequencies(config, 64, Some(&factors)).unwrap();
        for (a, b) in from_parameters.iter().zip(&from_factors) {
            assert!((a - b).abs() <= 1e-5 * a, "{a} {b}");
        }
    }

    #[test]
    fn linear_and_yarn_become_keys_and_others_are_refused() {
        let of = |scaling: Value| {
            let config = json!({"rope_theta": 1e4, "rope_scaling": scaling});
            keys(config.as_object().unwrap()).map(|keys| format!("{keys:?}"))
        };
        assert_eq!(of(json!(null)).unwrap(), "[]");
        let linear = of(json!({"type": "linear", "factor": 4})).unwrap();
        assert!(
            linear.contains("\"rope.scaling.type\", String(\"linear\")") && linear.contains("F32(4.0)"),
            "{linear}"
        );
        let yarn =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32});
        let yarn = of(yarn).unwrap();
        assert!(yarn.contains("U32(32768)") && yarn.contains("yarn_beta_fast\", F32(32.0)"), "{yarn}");
        assert!(of(json!("linear")).unwrap_err().to_string().contains("expected an object"));
        assert!(of(json!({"rope_type": "longrope"})).unwrap_err().to_string().contains("longrope"));
        assert!(of(json!({"rope_type": "linear"})).unwrap_err().to_string().contains("rope_scaling.factor"));
    }
}
