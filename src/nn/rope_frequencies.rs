//! The frequencies of rotary embeddings, as `config.json` asks for them.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::f64::consts::TAU;

/// Frequencies in radians per token, one for each pair of a head's numbers: `theta^(-2i/head_dim)`, then scaled as
/// `rope_scaling` (or transformers 5's `rope_parameters`) says: `linear`, or `llama3`.
///
/// `factors`: what a GGUF file stores instead of the `llama3` parameters; frequencies are divided by it.
///
/// # Errors
/// For kinds of scaling that are not known here, and for missing parameters.
pub fn rope_frequencies(config: &Map<String, Value>, head_dim: usize, factors: Option<&[f32]>) -> Result<Vec<f32>> {
    let scaling = ["rope_parameters", "rope_scaling"]
        .iter()
        .find_map(|key| config.get(*key).filter(|value| !value.is_null()).map(|value| (key, value)));
    let scaling = match scaling {
        Some((_, Value::Object(scaling))) => Some(scaling),
        Some((key, other)) => {
            return Err(Error::invalid(format!("config.json: {key}: expected an object, got {other}")));
        }
        None => None,
    };
    let known = |value: &&Value| !value.is_null();
    let given = config.get("rope_theta").filter(known).or_else(|| scaling?.get("rope_theta")).filter(known);
    let theta = given.map_or(Some(1e4), Value::as_f64).filter(|theta| *theta > 0.0).ok_or_else(|| {
        Error::invalid(format!(
            "config.json: rope_theta: expected a number above 0, got {}",
            given.unwrap_or(&Value::Null)
        ))
    })?;
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    if let Some(factors) = factors {
        if factors.len() != head_dim / 2 || factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(Error::invalid(format!(
                "rope_freqs.weight: expected {} positive factors, got {}",
                head_dim / 2,
                factors.len()
            )));
        }
        return Ok(plain.zip(factors).map(|(frequency, &factor)| (frequency / f64::from(factor)) as f32).collect());
    }
    let kind = scaling.and_then(|s| s.get("rope_type").or_else(|| s.get("type"))).and_then(Value::as_str);
    let parameter = |name: &str| -> Result<f64> {
        let value = scaling.and_then(|s| s.get(name)).and_then(Value::as_f64).filter(|value| *value > 0.0);
        value.ok_or_else(|| Error::invalid(format!("config.json: rope_scaling.{name}: expected a number above 0")))
    };
    match kind.unwrap_or("default") {
        "default" => Ok(plain.map(|frequency| frequency as f32).collect()),
        "linear" => {
            let factor = parameter("factor")?;
            Ok(plain.map(|frequency| (frequency / factor) as f32).collect())
        }
        "llama3" => {
            let scale = Llama3 {
                factor: parameter("factor")?,
                low: parameter("low_freq_factor")?,
                high: parameter("high_freq_factor")?,
                context: parameter("original_max_position_embeddings")?,
            };
            Ok(plain.map(|frequency| scale.apply(frequency) as f32).collect())
        }
        other => Err(Error::invalid(format!(
            "config.json: rope_scaling of type `{other}` is not supported; supported are: default, linear, llama3"
        ))),
    }
}

/// Llama 3.1's scaling: long waves are stretched, short ones kept, those between blended.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3 {
    fn apply(&self, frequency: f64) -> f64 {
        let wavelength = TAU / frequency;
        if wavelength < self.context / self.high {
            return frequency;
        }
        if wavelength > self.context / self.low {
            return frequency / self.factor;
        }
        let blend = (self.context / wavelength - self.low) / (self.high - self.low);
        (1.0 - blend) * frequency / self.factor + blend * frequency
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let config = json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
        let config = config.as_object().unwrap();
        let plain = json!({"rope_theta": 500_000.0});
        let plain = rope_frequencies(plain.as_object().unwrap(), 128, None).unwrap();
        let scaled = rope_frequencies(config, 128, None).unwrap();
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0), "some lie between");
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let config = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
        let error = rope_frequencies(config.as_object().unwrap(), 64, None).unwrap_err();
        assert!(error.to_string().contains("yarn"), "{error}");
    }
}
