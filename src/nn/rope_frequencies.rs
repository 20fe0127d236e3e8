//! The frequencies of rotary embeddings, as `config.json` asks for them.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::f64::consts::TAU;

/// Frequencies in radians per token, one for each pair of a head's numbers: `theta^(-2i/head_dim)`, then scaled: `linear`, or
/// `llama3`.
///
/// `rope_scaling` goes before `rope_parameters`, the `rope_theta` in them before the one at the top, and `rope_type` before
/// `type`, as in transformers 5. A base's configuration says each of them once: see `weights`.
///
/// `factors`: what a GGUF file stores instead of the `llama3` parameters; frequencies are divided by it.
///
/// # Errors
/// For kinds of scaling that are not known here, and for missing parameters.
pub fn rope_frequencies(config: &Map<String, Value>, head_dim: usize, factors: Option<&[f32]>) -> Result<Vec<f32>> {
    let rope = Rope::of(config)?;
    let theta = rope.theta()?;
    let plain = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64));
    let scaled: Vec<f64> = match rope.kind()? {
        "default" => plain.collect(),
        // The factors are what these parameters come to.
        "llama3" if factors.is_some() => plain.collect(),
        "linear" => {
            let factor = rope.parameter("factor")?;
            plain.map(|frequency| frequency / factor).collect()
        }
        "llama3" => {
            let scale = Llama3 {
                factor: rope.parameter("factor")?,
                low: rope.parameter("low_freq_factor")?,
                high: rope.parameter("high_freq_factor")?,
                context: rope.original_length()?,
            };
            plain.map(|frequency| scale.apply(frequency)).collect()
        }
        other => {
            return Err(Error::invalid(format!(
                "config.json: {} of type `{other}` is not supported; supported are: default, linear, llama3",
                rope.key
            )));
        }
    };
    let Some(factors) = factors else { return Ok(scaled.into_iter().map(|frequency| frequency as f32).collect()) };
    if factors.len() != head_dim / 2 || factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
        return Err(Error::invalid(format!(
            "rope_freqs.weight: expected {} positive factors, got {}",
            head_dim / 2,
            factors.len()
        )));
    }
    Ok(scaled.into_iter().zip(factors).map(|(frequency, &factor)| (frequency / f64::from(factor)) as f32).collect())
}

/// What `config.json` says of rotary embeddings.
struct Rope<'a> {
    config: &'a Map<String, Value>,
    /// The key whose object counts.
    key: &'static str,
    scaling: Option<&'a Map<String, Value>>,
}

impl<'a> Rope<'a> {
    fn of(config: &'a Map<String, Value>) -> Result<Self> {
        let object = |key: &'static str| match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
            Some(other) => Err(Error::invalid(format!("config.json: {key}: expected an object, got {other}"))),
        };
        let (scaling, parameters) = (object("rope_scaling")?, object("rope_parameters")?);
        Ok(match scaling {
            Some(_) => Self { config, key: "rope_scaling", scaling },
            None if parameters.is_some() => Self { config, key: "rope_parameters", scaling: parameters },
            None => Self { config, key: "rope_scaling", scaling: None },
        })
    }

    fn inner(&self, name: &str) -> Option<&'a Value> {
        self.scaling?.get(name).filter(|value| !value.is_null())
    }

    fn outer(&self, name: &str) -> Option<&'a Value> {
        self.config.get(name).filter(|value| !value.is_null())
    }

    fn theta(&self) -> Result<f64> {
        let (inner, outer) = (self.inner("rope_theta"), self.outer("rope_theta"));
        let given = inner.or(outer);
        given.map_or(Some(1e4), Value::as_f64).filter(|theta| *theta > 0.0 && theta.is_finite()).ok_or_else(|| {
            let got = given.unwrap_or(&Value::Null);
            Error::invalid(format!("config.json: rope_theta: expected a number above 0, got {got}"))
        })
    }

    fn kind(&self) -> Result<&'a str> {
        match self.inner("rope_type").or_else(|| self.inner("type")) {
            None => Ok("default"),
            Some(kind) => kind.as_str().ok_or_else(|| {
                Error::invalid(format!("config.json: {}.rope_type: expected a name, got {kind}", self.key))
            }),
        }
    }

    fn parameter(&self, name: &str) -> Result<f64> {
        let value = self.inner(name).and_then(Value::as_f64).filter(|value| *value > 0.0);
        value.ok_or_else(|| Error::invalid(format!("config.json: {}.{name}: expected a number above 0", self.key)))
    }

    /// The positions that the model was made for before its waves were stretched. transformers takes those of the
    /// configuration's top first, and all positions where none are said.
    fn original_length(&self) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        let known = |value: &Value| value.as_f64().filter(|value| *value > 0.0);
        match self.outer(KEY).and_then(known) {
            Some(length) => Ok(length),
            None if self.inner(KEY).is_some() => self.parameter(KEY),
            None => self.outer("max_position_embeddings").and_then(known).map_or_else(|| self.parameter(KEY), Ok),
        }
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
