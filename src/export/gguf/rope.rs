//! Rotary embeddings in metadata: linear and `YaRN` scaling are keys; the factors of Llama 3's and of longrope are tensors.

use crate::error::{Error, Result};
use crate::models::Defaults;
use candle_core::quantized::gguf_file::Value as Metadatum;
use serde_json::{Map, Value};
use std::f32::consts::PI;

/// The tensor of factors, under the same name in GGUF and for [`crate::weights::Base`].
pub const ROPE_FREQS: &str = "rope_freqs.weight";

const LENGTH: &str = "original_max_position_embeddings";

/// What `config.json` says of rotation, in one place: that of the layers that see everything, and of those with a window the base
/// of the frequencies where it is another.
pub(super) struct Rope {
    all: Map<String, Value>,
    local_theta: Option<Value>,
    most: Option<u64>,
}

impl Rope {
    /// Finds it: `rope_scaling` before `rope_parameters`, as transformers 5 does; the latter for all layers or for each type of
    /// them. Beside it the keys that older versions had at the top, of which the original length goes before the inner one.
    pub fn of(config: &Map<String, Value>, defaults: &Defaults) -> Result<Self> {
        let known = |key: &str| config.get(key).filter(|value| !value.is_null());
        let object = |key: &str| match known(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map.clone()).filter(|map| !map.is_empty())),
            Some(value) => Err(Error::invalid(format!("config.json: {key}: expected an object, got {value}"))),
        };
        let mut all = object("rope_parameters")?.unwrap_or_default();
        let mut local_theta = known("rope_local_base_freq").cloned();
        if let Some(Value::Object(full)) = all.get("full_attention").cloned() {
            let of_sliding = all.get("sliding_attention").and_then(|local| local.get("rope_theta")).cloned();
            local_theta = of_sliding.or(local_theta);
            all = full;
        }
        all.extend(object("rope_scaling")?.into_iter().flatten().filter(|(_, value)| !value.is_null()));
        all.retain(|_, value| !value.is_null());
        if let Some(length) = known(LENGTH).cloned().or(defaults.original.map(Value::from)) {
            all.insert(LENGTH.into(), length);
        }
        for (key, default) in [("rope_theta", Some(defaults.theta.into())), ("partial_rotary_factor", None)] {
            let other: Option<Value> = known(key).cloned().or(default);
            if let Some(value) = other.filter(|_| !all.contains_key(key)) {
                all.insert(key.into(), value);
            }
        }
        Ok(Self { all, local_theta, most: known("max_position_embeddings").and_then(Value::as_u64) })
    }

    fn kind(&self) -> &str {
        self.all.get("rope_type").or_else(|| self.all.get("type")).and_then(Value::as_str).unwrap_or("default")
    }

    /// A number, if it is given.
    pub fn float(&self, key: &str) -> Option<f64> {
        self.all.get(key).and_then(Value::as_f64)
    }

    /// Whole numbers, if they are given.
    pub fn numbers(&self, key: &str) -> Option<Vec<i32>> {
        let numbers = self.all.get(key)?.as_array()?;
        numbers.iter().map(|number| i32::try_from(number.as_i64()?).ok()).collect()
    }

    fn above_zero(&self, key: &str) -> Result<f64> {
        self.float(key)
            .filter(|value| *value > 0.0)
            .ok_or_else(|| Error::invalid(format!("config.json: rope_scaling.{key}: expected a number above 0")))
    }

    /// The base of the frequencies.
    pub fn theta(&self) -> Result<f64> {
        let given = self.all.get("rope_theta").unwrap_or(&Value::Null);
        given
            .as_f64()
            .filter(|theta| *theta > 0.0)
            .ok_or_else(|| Error::invalid(format!("config.json: rope_theta: expected a number above 0, got {given}")))
    }

    /// That of the layers with a window, where it is said.
    pub fn local_theta(&self) -> Result<Option<f64>> {
        let Some(given) = &self.local_theta else { return Ok(None) };
        given.as_f64().filter(|theta| *theta > 0.0).map(Some).ok_or_else(|| {
            Error::invalid(format!("config.json: rope_local_base_freq: expected a number above 0, got {given}"))
        })
    }

    /// The length that the model was first made for: all positions, where nothing else is said.
    pub fn original_length(&self) -> Result<u32> {
        let given = self.all.get(LENGTH).map_or(self.most, Value::as_u64);
        given.filter(|length| *length > 0).and_then(|length| u32::try_from(length).ok()).ok_or_else(|| {
            Error::invalid(format!("config.json: rope_scaling.{LENGTH}: expected a whole number above 0"))
        })
    }

    /// How many of a head's `width` numbers rotate.
    pub fn rotated(&self, width: u32, share_of_class: f64) -> Result<u32> {
        let share = self.float("partial_rotary_factor").unwrap_or(share_of_class);
        let rotated = (f64::from(width) * share) as u32;
        if rotated == 0 || rotated > width || !rotated.is_multiple_of(2) {
            return Err(Error::invalid(format!(
                "config.json: partial_rotary_factor: {share} of {width} numbers is no even number of them"
            )));
        }
        Ok(rotated)
    }

    /// Whether frequencies have factors of their own for short and for long texts. Phi's older files have other names for it.
    pub fn is_longrope(&self) -> bool {
        self.all.contains_key("long_factor") && ["longrope", "su", "yarn"].contains(&self.kind())
    }

    /// By how much positions are stretched: as given, or the ratio of all positions to the original ones.
    fn stretch(&self) -> Result<f64> {
        match (self.float("factor"), self.most) {
            (Some(_), _) | (None, None) => self.above_zero("factor"),
            (None, Some(most)) => Ok(most as f64 / f64::from(self.original_length()?)),
        }
    }

    /// What longrope multiplies cosines and sines by.
    pub fn longrope_factor(&self) -> Result<f64> {
        let (stretch, original) = (self.stretch()?, f64::from(self.original_length()?));
        let usual = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
        Ok(self.float("attention_factor").unwrap_or(usual))
    }

    /// The keys of scaling, after the architecture's name.
    ///
    /// # Errors
    /// For kinds that llama.cpp has no keys for, and for missing parameters.
    pub fn keys(&self) -> Result<Vec<(&'static str, Metadatum)>> {
        let float = |value: f64| Metadatum::F32(value as f32);
        let text = |text: &str| Metadatum::String(text.into());
        match self.kind() {
            _ if self.is_longrope() => Ok(vec![("rope.scaling.type", text("longrope"))]),
            // Llama 3's is in `ROPE_FREQS`.
            "default" | "llama3" => Ok(Vec::new()),
            "linear" => Ok(vec![
                ("rope.scaling.type", text("linear")),
                ("rope.scaling.factor", float(self.above_zero("factor")?)),
            ]),
            "yarn" => {
                let stretch = self.stretch()?;
                let mut keys = vec![
                    ("rope.scaling.type", text("yarn")),
                    ("rope.scaling.factor", float(stretch)),
                    ("rope.scaling.original_context_length", Metadatum::U32(self.original_length()?)),
                ];
                for (key, names) in [
                    ("rope.scaling.yarn_ext_factor", &["extrapolation_factor"][..]),
                    ("rope.scaling.yarn_attn_factor", &["attention_factor", "attn_factor"]),
                    ("rope.scaling.yarn_beta_fast", &["beta_fast"]),
                    ("rope.scaling.yarn_beta_slow", &["beta_slow"]),
                ] {
                    keys.extend(names.iter().find_map(|name| self.float(name)).map(|value| (key, float(value))));
                }
                keys.extend(self.besides(stretch).map(|factor| ("rope.scaling.attn_factor", float(factor))));
                Ok(keys)
            }
            other => {
                Err(Error::invalid(format!("config.json: rope_scaling of type `{other}` cannot be written as GGUF"))
                    .with_help("export the merged model instead: `--to merged`"))
            }
        }
    }

    /// By what the runtime has to multiply what it takes for cosines and sines, if that is not what the model was made with. It
    /// does not read `yarn_attn_factor` for most architectures; and of Mistral's two scales it assumes 1 for the first.
    fn besides(&self, stretch: f64) -> Option<f64> {
        let scale = |m: f64| if stretch > 1.0 { (0.1 * m).mul_add(stretch.ln(), 1.0) } else { 1.0 };
        let both = self.float("mscale").zip(self.float("mscale_all_dim"));
        let usual = match both {
            Some((_, all)) if self.all.contains_key("llama_4_scaling_beta") => scale(1.0) / scale(all),
            _ => scale(1.0),
        };
        let given = self.float("attention_factor").or_else(|| self.float("attn_factor"));
        let wanted = given.unwrap_or_else(|| both.map_or_else(|| scale(1.0), |(m, all)| scale(m) / scale(all)));
        Some(wanted / usual).filter(|factor| (factor - 1.0).abs() > 1e-6)
    }
}

/// What `config.json` has of rotation and GGUF in tensors of f32: their names and numbers.
///
/// # Errors
/// For missing parameters, and factors that are not numbers.
pub fn rope_tensors(config: &Map<String, Value>, defaults: &Defaults) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let rope = Rope::of(config, defaults)?;
    let number = |key: &str| config.get(key).and_then(Value::as_u64).map(|number| number as usize);
    let divided = number("hidden_size").zip(number("num_attention_heads")).map(|(hidden, heads)| hidden / heads.max(1));
    let width = number("head_dim").or(defaults.head_dim).or(divided).unwrap_or(0);
    if let Some(factors) = rope_freqs(config, width, defaults)? {
        return Ok(vec![(ROPE_FREQS, factors)]);
    }
    if !rope.is_longrope() {
        return Ok(Vec::new());
    }
    let rotated = rope.rotated(width as u32, defaults.partial.unwrap_or(1.0))? as usize;
    let factors = |key: &str| {
        let numbers = rope.all.get(key).and_then(Value::as_array);
        let numbers: Option<Vec<f32>> =
            numbers.and_then(|numbers| numbers.iter().map(|number| Some(number.as_f64()? as f32)).collect());
        numbers
            .filter(|numbers| numbers.len() == rotated / 2)
            .ok_or_else(|| Error::invalid(format!("config.json: rope_scaling.{key}: expected {} numbers", rotated / 2)))
    };
    Ok(vec![
        ("rope_factors_long.weight", factors("long_factor")?),
        ("rope_factors_short.weight", factors("short_factor")?),
    ])
}

/// Llama 3's scaling as the factors of [`ROPE_FREQS`], one for each pair of a head's numbers, by which frequencies are
/// divided: 1 for short waves, `factor` for long ones, blended between. `None` for every other kind of scaling.
///
/// Computed in `f32` step by step, as llama.cpp's converter does it.
///
/// # Errors
/// For missing parameters.
pub fn rope_freqs(config: &Map<String, Value>, head_dim: usize, defaults: &Defaults) -> Result<Option<Vec<f32>>> {
    let rope = Rope::of(config, defaults)?;
    if rope.kind() != "llama3" {
        return Ok(None);
    }
    let parameter = |key: &str| rope.above_zero(key);
    let factor = parameter("factor")?;
    let (low, high) = (parameter("low_freq_factor")?, parameter("high_freq_factor")?);
    let context = parameter("original_max_position_embeddings")?;
    let (theta, width) = (rope.theta()? as f32, head_dim as f32);
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
        let factors = rope_freqs(config, 64, &Defaults::LLAMA).unwrap().unwrap();
        assert_eq!((factors.len(), factors[0], factors[31]), (32, 1.0, 32.0));
        let from_parameters = rope_frequencies(config, 64, None).unwrap();
        let from_factors = rope_frequencies(config, 64, Some(&factors)).unwrap();
        for (a, b) in from_parameters.iter().zip(&from_factors) {
            assert!((a - b).abs() <= 1e-5 * a, "{a} {b}");
        }
    }

    /// As `models` takes them for training: scaling before parameters, and the top's original length before theirs.
    #[test]
    fn what_is_said_twice_counts_as_in_training() {
        let defaults = crate::models::defaults("smollm3").unwrap();
        let of = |json: Value| Rope::of(json.as_object().unwrap(), defaults).unwrap();
        let yarn = json!({"rope_type": "yarn", "factor": 4.0, LENGTH: 16384});
        let rope = of(json!({"rope_scaling": yarn, LENGTH: 32768,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}));
        assert_eq!((rope.kind(), rope.float("factor"), rope.theta().unwrap()), ("yarn", Some(4.0), 5e5));
        assert_eq!(rope.original_length().unwrap(), 32768);
        assert_eq!(of(json!({})).theta().unwrap(), 2e6, "the class's own");
        let nested = json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}},
            "rope_local_base_freq": 2e4});
        let rope = of(nested);
        assert_eq!((rope.theta().unwrap(), rope.local_theta().unwrap()), (1e6, Some(2e4)));
    }

    /// The published files of Qwen 3 say `head_dim`, but a configuration without it is one of 128.
    #[test]
    fn factors_are_of_the_width_that_the_class_takes() {
        let config = json!({"hidden_size": 2048, "num_attention_heads": 32, "rope_scaling": {"rope_type": "llama3",
            "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, LENGTH: 8192}});
        for (family, pairs) in [("qwen3", 64), ("qwen2", 32)] {
            let tensors = rope_tensors(config.as_object().unwrap(), crate::models::defaults(family).unwrap()).unwrap();
            assert_eq!((tensors[0].0, tensors[0].1.len()), (ROPE_FREQS, pairs), "{family}");
        }
    }

    #[test]
    fn linear_and_yarn_become_keys_and_others_are_refused() {
        let of = |scaling: Value| {
            let config = json!({"rope_theta": 1e4, "rope_scaling": scaling});
            Rope::of(config.as_object().unwrap(), &Defaults::LLAMA)?.keys().map(|keys| format!("{keys:?}"))
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
