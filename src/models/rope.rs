//! Rotary frequencies, as `config.json` asks for them.
//!
//! `rope_scaling` goes before `rope_parameters`, the `rope_theta` in them before the one at the top, and `rope_type` before
//! `type`, as in transformers 5. A base's configuration says each of them once: see `weights`. `rope_parameters` may have an object
//! for each type of layer.

use super::config::Config;
use crate::error::{Error, Result};
use crate::nn::{LongRope, Rope, Temperature};
use serde_json::{Map, Value};
use std::f64::consts::TAU;

/// What a family takes where nothing is said.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    pub theta: f64,
    /// The key of the configuration's top that says it.
    pub theta_key: &'static str,
    /// Share of a head that rotates, in families whose heads may rotate in part.
    pub partial: Option<f64>,
    /// The positions that the model was made for at first, where the class has a default of its own for them.
    pub original: Option<usize>,
}

/// The rotation of the layers of a type, for heads of this width.
///
/// `factors`: what a GGUF file stores instead of the `llama3` parameters; frequencies are divided by it.
///
/// # Errors
/// For kinds of scaling that are not known here, and for missing parameters.
pub(super) fn rope(
    config: &Config<'_>,
    layer_type: Option<&str>,
    defaults: RopeDefaults,
    head_dim: usize,
    factors: Option<&[f32]>,
) -> Result<Rope> {
    let parameters = Parameters::of(config, layer_type, defaults.original)?;
    config.ignore(&["original_max_position_embeddings", "rope_theta", defaults.theta_key]);
    let theta = match parameters.number("rope_theta")? {
        Some(theta) => theta,
        None => config.number(defaults.theta_key)?.unwrap_or(defaults.theta),
    };
    // Whether a family's heads rotate in part is the family's matter: only then the key is read at the top.
    let proportional = parameters.kind()? == "proportional";
    let partial = match (defaults.partial, parameters.number("partial_rotary_factor")?) {
        (Some(default), None) => config.number("partial_rotary_factor")?.unwrap_or(default),
        (None, Some(partial)) if partial != 1.0 && !proportional => {
            let message = format!(
                "{}.partial_rotary_factor is {partial}, but heads of this family rotate as a whole",
                parameters.key
            );
            return Err(config.error(message).with_help("remove the key: transformers ignores it here"));
        }
        (_, partial) => partial.unwrap_or(1.0),
    };
    if partial > 1.0 {
        return Err(config.error(format!("partial_rotary_factor: expected at most 1, got {partial}")));
    }
    if proportional {
        return parameters.proportional(theta, partial, head_dim);
    }
    let width = (head_dim as f64 * partial) as usize;
    if width < 2 || !width.is_multiple_of(2) {
        let message =
            format!("partial_rotary_factor: {partial} of {head_dim} must give an even number of rotated dimensions");
        return Err(config.error(message));
    }
    let plain: Vec<f64> = (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect();
    let mut rope = parameters.scaled(&plain, theta, factors.is_some())?;
    if let Some(factors) = factors {
        if factors.len() != width / 2 || factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            let message = format!("rope_freqs.weight: expected {} positive factors, got {}", width / 2, factors.len());
            return Err(Error::invalid(message));
        }
        for (frequency, (plain, factor)) in rope.frequencies.iter_mut().zip(plain.iter().zip(factors)) {
            *frequency = (plain / f64::from(*factor)) as f32;
        }
    }
    let long = rope.long.iter().flat_map(|long| &long.frequencies);
    if !rope.frequencies.iter().chain(long).all(|frequency| frequency.is_finite()) || !rope.factor.is_finite() {
        let from = if parameters.maps.is_empty() { "" } else { &format!(" and {}", parameters.key) };
        return Err(config.error(format!("rope_theta ({theta}){from}: the RoPE frequencies are not finite")));
    }
    if let Some(beta) = parameters.number("llama_4_scaling_beta")? {
        rope.temperature = Some(Temperature { beta: beta as f32, original: parameters.original_length()? as usize });
    }
    Ok(rope)
}

/// The frequencies of a Llama of this configuration, in radians per token, for heads of this width; `factors` as a GGUF file stores
/// them.
///
/// # Errors
/// For kinds of scaling that are not known here, and for missing parameters.
pub fn rope_frequencies(config: &Map<String, Value>, head_dim: usize, factors: Option<&[f32]>) -> Result<Vec<f32>> {
    let config = Config::new(config, "llama");
    Ok(rope(&config, None, super::decoder::Defaults::LLAMA.rope(), head_dim, factors)?.frequencies)
}

/// What `config.json` says of the rotation of some layers.
struct Parameters<'a> {
    config: &'a Config<'a>,
    /// The key whose object counts.
    key: String,
    /// The objects that count, the first one first.
    maps: Vec<&'a Map<String, Value>>,
    /// See [`RopeDefaults::original`].
    original: Option<usize>,
}

/// Whether an object for all layers says no more than `rope_theta` at the top: then families with a rotation for each type of layer
/// can do without it.
fn repeats_the_top(parameters: &Map<String, Value>, config: &Config<'_>) -> bool {
    let same = |(key, value): (&String, &Value)| match key.as_str() {
        "rope_type" => value == "default",
        "rope_theta" => config.value("rope_theta") == Some(value),
        _ => false,
    };
    parameters.iter().all(same)
}

impl<'a> Parameters<'a> {
    fn of(config: &'a Config<'a>, layer_type: Option<&str>, original: Option<usize>) -> Result<Self> {
        let (scaling, parameters) = (config.object("rope_scaling")?, config.object("rope_parameters")?);
        let nested = parameters.is_some_and(|map| map.values().any(Value::is_object));
        let (parameters, key) = match (layer_type, nested) {
            (Some(kind), true) => {
                let inner = parameters.and_then(|map| map.get(kind)).and_then(Value::as_object);
                (inner, format!("rope_parameters.{kind}"))
            }
            (None, true) => {
                return Err(
                    config.error("rope_parameters has an object for each type of layer, of which this family has one")
                );
            }
            (Some(_), false) if scaling.is_none() && parameters.is_some_and(|map| !repeats_the_top(map, config)) => {
                return Err(config.error(
                    "rope_parameters: expected an object for each type of layer, `full_attention` and `sliding_attention`",
                ));
            }
            (Some(_), false) => (None, "rope_theta".to_owned()),
            (None, false) => (parameters, "rope_parameters".to_owned()),
        };
        // Scaling at the top is that of the layers that see everything.
        let scaling = scaling.filter(|_| layer_type != Some("sliding_attention"));
        let key = if scaling.is_some() { "rope_scaling".to_owned() } else { key };
        Ok(Self { config, key, maps: scaling.into_iter().chain(parameters).collect(), original })
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.maps.iter().find_map(|map| map.get(name).filter(|value| !value.is_null()))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number
            .map(Some)
            .ok_or_else(|| self.config.error(format!("{}.{name}: expected a number above 0, got {value}", self.key)))
    }

    fn demanded(&self, name: &str) -> Result<f64> {
        self.number(name)?.ok_or_else(|| self.config.error(format!("{}.{name}: expected a number above 0", self.key)))
    }

    fn kind(&self) -> Result<&'a str> {
        match self.value("rope_type").or_else(|| self.value("type")) {
            None => Ok("default"),
            Some(kind) => kind
                .as_str()
                .ok_or_else(|| self.config.error(format!("{}.rope_type: expected a name, got {kind}", self.key))),
        }
    }

    /// The positions that the model was made for before its waves were stretched. transformers takes those of the
    /// configuration's top first, and all positions where none are said.
    fn original_length(&self) -> Result<f64> {
        const KEY: &str = "original_max_position_embeddings";
        let top = self.config.number(KEY)?.or(self.original.map(|length| length as f64));
        let said = top.map_or_else(|| self.number(KEY), |top| Ok(Some(top)))?;
        match said.map_or_else(|| self.config.number("max_position_embeddings"), |length| Ok(Some(length)))? {
            Some(length) if length >= 1.0 => Ok(length),
            Some(length) => Err(self.config.error(format!("{KEY}: expected at least 1, got {length}"))),
            None => self.demanded(KEY),
        }
    }

    /// How much longer texts are than those at first.
    fn factor(&self) -> Result<f64> {
        match self.number("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.config.number("max_position_embeddings")?.unwrap_or(1.0) / self.original_length()?),
        }
    }

    fn scaled(&self, plain: &[f64], theta: f64, has_factors: bool) -> Result<Rope> {
        let rounded =
            |frequencies: &mut dyn Iterator<Item = f64>| frequencies.map(|frequency| frequency as f32).collect();
        let kind = match (self.kind()?, self.config.model_type()) {
            // The names that Phi's files had for it.
            ("su" | "yarn", "phi3") => "longrope",
            (kind, _) => kind,
        };
        Ok(match kind {
            // `dynamic` changes nothing within the positions of the model, which no text exceeds.
            "default" | "dynamic" => Rope::new(rounded(&mut plain.iter().copied())),
            // The factors are what these parameters come to.
            "llama3" if has_factors => Rope::new(rounded(&mut plain.iter().copied())),
            "linear" => {
                let factor = self.demanded("factor")?;
                Rope::new(rounded(&mut plain.iter().map(|frequency| frequency / factor)))
            }
            "llama3" => {
                let scale = Llama3 {
                    factor: self.demanded("factor")?,
                    low: self.demanded("low_freq_factor")?,
                    high: self.demanded("high_freq_factor")?,
                    context: self.original_length()?,
                };
                Rope::new(rounded(&mut plain.iter().map(|frequency| scale.apply(*frequency))))
            }
            "yarn" => {
                let mut rope = Rope::new(rounded(&mut self.yarn(plain, theta)?.into_iter()));
                rope.factor = self.yarn_factor()? as f32;
                rope
            }
            "longrope" => self.longrope(plain)?,
            other => {
                return Err(self.config.error(format!(
                    "{} of type `{other}` is not supported; supported are: default, linear, dynamic, llama3, yarn, longrope, proportional",
                    self.key
                )));
            }
        })
    }

    /// YaRN (arXiv 2309.00071): waves that turn often within the original length are kept, those that turn seldom stretched, and
    /// those between blended.
    fn yarn(&self, plain: &[f64], theta: f64) -> Result<Vec<f64>> {
        let (factor, original, width) = (self.factor()?, self.original_length()?, 2.0 * plain.len() as f64);
        let turns = |name, default| self.number(name).map(|turns| turns.unwrap_or(default));
        let pair = |turns: f64| width * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair(turns("beta_fast", 32.0)?), pair(turns("beta_slow", 1.0)?));
        if self.value("truncate").and_then(Value::as_bool) != Some(false) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretched = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        Ok(plain.iter().enumerate().map(|(i, f)| f / factor * stretched(i) + f * (1.0 - stretched(i))).collect())
    }

    /// What YaRN multiplies cosines and sines with.
    fn yarn_factor(&self) -> Result<f64> {
        if let Some(factor) = self.number("attention_factor")? {
            return Ok(factor);
        }
        let factor = self.factor()?;
        let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { (0.1 * weight).mul_add(factor.ln(), 1.0) };
        // 0 means unset, as in transformers.
        let weight = |name: &str| match self.value(name).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.number(name),
        };
        Ok(match (weight("mscale")?, weight("mscale_all_dim")?) {
            (Some(one), Some(all)) => scale(one) / scale(all),
            _ => scale(1.0),
        })
    }

    /// Pairs run over the whole head; of their frequencies only the first share is not zero.
    fn proportional(&self, theta: f64, partial: f64, head_dim: usize) -> Result<Rope> {
        let (turned, factor) = ((partial * head_dim as f64 / 2.0) as usize, self.number("factor")?.unwrap_or(1.0));
        let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64) / factor;
        let pairs = (0..head_dim / 2).map(|i| if i < turned { frequency(i) as f32 } else { 0.0 });
        Ok(Rope::new(pairs.collect()))
    }

    /// LongRoPE (arXiv 2402.13753): a factor for each pair, of two lists, of which the run's longest text decides.
    fn longrope(&self, plain: &[f64]) -> Result<Rope> {
        let list = |name: &str| {
            let numbers = self.value(name).and_then(Value::as_array);
            let numbers: Option<Vec<f64>> = numbers.and_then(|numbers| numbers.iter().map(Value::as_f64).collect());
            let numbers =
                numbers.filter(|all| all.len() == plain.len() && all.iter().all(|x| x.is_finite() && *x > 0.0));
            let numbers = numbers.ok_or_else(|| {
                self.config.error(format!("{}.{name}: expected {} numbers above 0", self.key, plain.len()))
            })?;
            Ok::<_, Error>(
                plain.iter().zip(numbers).map(|(frequency, factor)| (frequency / factor) as f32).collect::<Vec<f32>>(),
            )
        };
        let (original, factor) = (self.original_length()?, self.factor()?);
        let mut rope = Rope::new(list("short_factor")?);
        rope.long = Some(LongRope { original: original as usize, frequencies: list("long_factor")? });
        rope.factor = match self.number("attention_factor")? {
            Some(factor) => factor as f32,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt() as f32,
        };
        Ok(rope)
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
    use super::super::decoder::Defaults;
    use super::*;
    use serde_json::json;

    fn of(json: &Value, head_dim: usize) -> Result<Rope> {
        let config = Config::new(json.as_object().unwrap(), "llama");
        rope(&config, None, Defaults::LLAMA.rope(), head_dim, None)
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaled = of(
            &json!({"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
            128,
        );
        let (scaled, plain) =
            (scaled.unwrap().frequencies, of(&json!({"rope_theta": 500_000.0}), 128).unwrap().frequencies);
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0), "some lie between");
    }

    /// Unlike a partial rotation, whose pairs lie within the share that rotates.
    #[test]
    fn a_proportional_rotation_pairs_over_the_whole_head() {
        let parameters = json!({"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25});
        let rope = of(&json!({ "rope_parameters": parameters }), 64).unwrap();
        let plain = of(&json!({"rope_theta": 1e6}), 64).unwrap();
        assert_eq!(rope.frequencies.len(), 32);
        assert_eq!((&rope.frequencies[..8], &rope.frequencies[8..]), (&plain.frequencies[..8], &[0.0; 24][..]));
        let partial = json!({"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25});
        let partial = json!({ "rope_parameters": partial });
        let refused = of(&partial, 64).unwrap_err().to_string();
        assert!(refused.contains("partial_rotary_factor is 0.25"), "{refused}");
        let config = Config::new(partial.as_object().unwrap(), "glm4");
        let defaults = RopeDefaults { partial: Some(0.5), ..Defaults::LLAMA.rope() };
        let partial = super::rope(&config, None, defaults, 64, None).unwrap();
        assert_eq!(partial.frequencies.len(), 8);
        assert_ne!(partial.frequencies[1], rope.frequencies[1]);
    }

    /// The pairs that turn often stay, those that seldom do are stretched by the factor.
    #[test]
    fn yarn_stretches_long_waves_alone() {
        let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        let rope = of(&json!({"rope_theta": 1e6, "rope_scaling": scaling}), 128).unwrap();
        let plain = of(&json!({"rope_theta": 1e6}), 128).unwrap();
        assert_eq!(rope.frequencies[0], plain.frequencies[0]);
        assert_eq!(rope.frequencies[63], plain.frequencies[63] / 4.0);
        assert!((rope.factor - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6, "{}", rope.factor);
    }

    /// transformers takes the top's original length before the inner one, also where it is the class's own; and 0 for no `mscale`.
    #[test]
    fn defaults_are_those_of_transformers() {
        let scaling = json!({"rope_type": "longrope", "long_factor": [2.0, 4.0], "short_factor": [1.0, 1.0],
            "original_max_position_embeddings": 64});
        let config = json!({"max_position_embeddings": 131_072, "rope_scaling": scaling});
        let config = Config::new(config.as_object().unwrap(), "phi3");
        let defaults = RopeDefaults { original: Some(4096), ..Defaults::LLAMA.rope() };
        let rope = super::rope(&config, None, defaults, 4, None).unwrap();
        assert_eq!(rope.long.unwrap().original, 4096);
        let yarn = |all: f64| {
            let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.5,
                "mscale_all_dim": all});
            of(&json!({ "rope_scaling": scaling }), 8).unwrap().factor
        };
        assert!((yarn(0.0) - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6 && yarn(1.0) < 1.0);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let error = of(&json!({"rope_scaling": {"rope_type": "spiral", "factor": 4.0}}), 64).unwrap_err();
        assert!(error.to_string().contains("spiral"), "{error}");
    }
}
