//! The keys of a model's own numbers, from `config.json`: what all families have, and what each has besides.
//!
//! Source: `conversion/*.py` of llama.cpp. It reads configurations through transformers, so that a key which a file leaves out has
//! the default of its class.

use super::rope::Rope;
use super::tensors;
use crate::error::{Error, Result};
use crate::models::{self, Defaults};
use crate::weights::Base;
use crate::weights::gguf::architecture::Architecture;
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json};
use std::path::PathBuf;

type Written = Vec<(&'static str, Value)>;

/// What is particular to a `model_type` in the file; what its class takes by default is known to [`models`].
struct Family {
    model_type: &'static str,
    /// Whether the file says the width of a head even where it is hidden size over heads.
    says_width: bool,
    /// Whether the file repeats the size of the vocabulary and the width that rotates, as Llama's and its children's do.
    repeats: bool,
    more: fn(&Keys<'_>, &Rope) -> Result<Written>,
}

const LLAMA: Family = Family { model_type: "llama", says_width: true, repeats: true, more: nothing };
const QWEN2: Family = Family { model_type: "qwen2", says_width: false, repeats: false, ..LLAMA };

const FAMILIES: &[Family] = &[
    LLAMA,
    Family { model_type: "mistral", ..LLAMA },
    Family { model_type: "ministral3", more: ministral3, ..LLAMA },
    Family { model_type: "smollm3", says_width: false, more: smollm3, ..LLAMA },
    Family { model_type: "granite", says_width: false, more: granite, ..LLAMA },
    Family { model_type: "granitemoehybrid", says_width: false, more: granite_hybrid, ..LLAMA },
    QWEN2,
    Family { model_type: "qwen3", ..QWEN2 },
    Family { model_type: "qwen3_vl_text", more: qwen3_vl, ..QWEN2 },
    Family { model_type: "gemma2", more: gemma2, ..QWEN2 },
    Family { model_type: "gemma3_text", more: gemma3, ..QWEN2 },
    Family { model_type: "olmo2", ..QWEN2 },
    Family { model_type: "olmo3", more: olmo3, ..QWEN2 },
    Family { model_type: "exaone4", more: exaone4, ..QWEN2 },
    Family { model_type: "phi3", more: phi3, ..QWEN2 },
    Family { model_type: "glm4", more: glm4, ..QWEN2 },
    Family { model_type: "seed_oss", ..QWEN2 },
];

#[expect(clippy::unnecessary_wraps, reason = "as its neighbours in the table")]
fn nothing(_: &Keys<'_>, _: &Rope) -> Result<Written> {
    Ok(Vec::new())
}

/// The keys of the model's own numbers, under the architecture's name.
///
/// # Errors
/// When the base's architecture is not written as GGUF, its configuration lacks something, or GGUF cannot say what it says.
pub fn hyperparameters(base: &Base) -> Result<Vec<(String, Value)>> {
    let architecture = tensors::architecture(base)?;
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == architecture.model_type) else {
        return Err(unknown(architecture));
    };
    let defaults = class_defaults(architecture)?;
    let keys = Keys { base, path: base.path().join("config.json"), config: base.config(), defaults };
    let all = keys.all(family)?;
    Ok(all.into_iter().map(|(key, value)| (format!("{}.{key}", architecture.gguf), value)).collect())
}

/// What the class of an architecture takes where its configuration says nothing.
///
/// # Errors
/// When it is no family of [`models`].
pub(super) fn class_defaults(architecture: &Architecture) -> Result<&'static Defaults> {
    models::defaults(architecture.model_type).ok_or_else(|| unknown(architecture))
}

fn unknown(architecture: &Architecture) -> Error {
    Error::invalid(format!("the keys of a GGUF file of `{}` are not known", architecture.model_type))
        .with_help("export the merged model instead: `--to merged`")
}

/// Typed access to `config.json`.
pub(super) struct Keys<'a> {
    base: &'a Base,
    path: PathBuf,
    config: &'a Map<String, Json>,
    defaults: &'static Defaults,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Json> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    fn optional(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.map(Some).ok_or_else(|| self.wrong(key, "a whole number", &value.to_string()))
    }

    fn number(&self, key: &str) -> Result<u32> {
        self.optional(key)?
            .filter(|&number| number > 0)
            .ok_or_else(|| self.wrong(key, "a whole number above 0", "none"))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, "a number", &value.to_string()))
    }

    fn wrong(&self, key: &str, expected: &str, got: &str) -> Error {
        Error::file(&self.path, format!("`{key}`: expected {expected}, got {got}"))
    }

    fn unsaid(&self, what: &str) -> Error {
        Error::file(&self.path, format!("{what}: GGUF cannot express this for this architecture"))
            .with_help("export the merged model instead: `--to merged`")
    }

    /// The width of a head.
    fn width(&self) -> Result<u32> {
        match self.optional("head_dim")?.or(self.defaults.head_dim.map(|width| width as u32)) {
            Some(width) => Ok(width),
            None => Ok(self.number("hidden_size")? / self.number("num_attention_heads")?),
        }
    }

    /// How many of a head's numbers rotate.
    fn rotated(&self, rope: &Rope) -> Result<u32> {
        rope.rotated(self.width()?, self.defaults.partial.unwrap_or(1.0))
    }

    /// `max_position_embeddings`.
    fn positions(&self) -> Result<u32> {
        const KEY: &str = "max_position_embeddings";
        if self.get(KEY).is_some() { self.number(KEY) } else { Ok(self.defaults.positions as u32) }
    }

    /// Which layers see a window only, where `layer_types` or an older key says so.
    fn sliding_layers(&self, default_period: usize) -> Result<Vec<bool>> {
        let layers = self.number("num_hidden_layers")? as usize;
        let wrong =
            |key: &str, value: &Json| self.wrong(key, &format!("one for each of {layers} layers"), &value.to_string());
        if let Some(listed) = self.get("layer_types") {
            let names =
                listed.as_array().filter(|names| names.len() == layers).ok_or_else(|| wrong("layer_types", listed))?;
            return Ok(names.iter().map(|name| name == "sliding_attention").collect());
        }
        let period = match self.get("sliding_window_pattern") {
            // One letter a layer, L for those with a window, over and over.
            Some(Json::String(letters)) if !letters.is_empty() => {
                return Ok(letters.chars().cycle().take(layers).map(|letter| letter == 'L').collect());
            }
            _ => self.optional("sliding_window_pattern")?.map_or(default_period, |period| period as usize),
        };
        Ok((1..=layers).map(|layer| period == 0 || !layer.is_multiple_of(period)).collect())
    }

    /// The keys, after the architecture's name.
    fn all(&self, family: &Family) -> Result<Written> {
        let heads = self.number("num_attention_heads")?;
        let rope = Rope::of(self.config, self.defaults)?;
        let width = self.width()?;
        let mut keys = vec![
            ("block_count", Value::U32(self.number("num_hidden_layers")?)),
            ("context_length", Value::U32(self.positions()?)),
            ("embedding_length", Value::U32(self.number("hidden_size")?)),
            ("feed_forward_length", Value::U32(self.number("intermediate_size")?)),
            ("attention.head_count", Value::U32(heads)),
            ("attention.head_count_kv", Value::U32(self.optional("num_key_value_heads")?.unwrap_or(heads))),
        ];
        keys.extend(rope.keys()?);
        keys.push(("rope.freq_base", Value::F32(rope.theta()? as f32)));
        if let Some(theta) = rope.local_theta()? {
            keys.push(("rope.freq_base_swa", Value::F32(theta as f32)));
        }
        let epsilon = self.float("rms_norm_eps")?.unwrap_or(self.defaults.epsilon);
        keys.push(("attention.layer_norm_rms_epsilon", Value::F32(epsilon as f32)));
        if family.says_width || self.get("head_dim").is_some() || self.defaults.head_dim.is_some() {
            keys.extend([("attention.key_length", Value::U32(width)), ("attention.value_length", Value::U32(width))]);
        }
        if family.repeats {
            keys.push(("vocab_size", Value::U32(self.number("vocab_size")?)));
            keys.push(("rope.dimension_count", Value::U32(width)));
        }
        for (key, value) in (family.more)(self, &rope)? {
            keys.retain(|(other, _)| *other != key);
            keys.push((key, value));
        }
        Ok(keys)
    }

    /// The window, and which layers have it where that is not what the runtime takes by itself.
    fn window(&self, default: Option<u32>, period: usize, always: bool) -> Result<Written> {
        // A key that is there and null takes the window away; one that is not there leaves the class's own.
        let key = "sliding_window";
        let window = if self.config.contains_key(key) { self.optional(key)? } else { default };
        let Some(window) = window else { return Ok(Vec::new()) };
        let sliding = self.sliding_layers(period)?;
        let usual = sliding.iter().enumerate().all(|(layer, sliding)| *sliding != (layer + 1).is_multiple_of(period));
        let mut keys = vec![("attention.sliding_window", Value::U32(window))];
        if always || !usual {
            let flags = sliding.into_iter().map(Value::Bool).collect();
            keys.push(("attention.sliding_window_pattern", Value::Array(flags)));
        }
        Ok(keys)
    }

    fn softcap(&self, from: &str, default: Option<f64>, to: &'static str) -> Result<Option<(&'static str, Value)>> {
        let cap = if self.config.contains_key(from) { self.float(from)? } else { default };
        Ok(cap.map(|cap| (to, Value::F32(cap as f32))))
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as its neighbours in the table")]
fn ministral3(_: &Keys<'_>, rope: &Rope) -> Result<Written> {
    let mut keys = Vec::new();
    for (key, name) in [
        ("rope.scaling.yarn_log_multiplier", "mscale_all_dim"),
        ("attention.temperature_scale", "llama_4_scaling_beta"),
    ] {
        keys.extend(rope.float(name).map(|value| (key, Value::F32(value as f32))));
    }
    Ok(keys)
}

fn smollm3(keys: &Keys<'_>, _: &Rope) -> Result<Written> {
    let listed = keys.get("no_rope_layers").and_then(Json::as_array);
    let usual = listed.is_none_or(|listed| {
        listed.iter().enumerate().all(|(layer, rotates)| (rotates == 1) != (layer + 1).is_multiple_of(4))
    });
    let interval = keys.optional("no_rope_layer_interval")?.unwrap_or(4);
    if !usual || (listed.is_none() && interval != 4) {
        return Err(keys.unsaid("other layers than every fourth have no positions"));
    }
    Ok(Vec::new())
}

/// Of factors that are not given, those of the class: 1.
fn granite(keys: &Keys<'_>, _: &Rope) -> Result<Written> {
    let mut written = Vec::new();
    for (key, name) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        let factor = keys.float(name)?.unwrap_or(1.0);
        if factor == 0.0 {
            return Err(keys.unsaid(&format!("`{name}` is 0")));
        }
        written.push((key, Value::F32(factor as f32)));
    }
    Ok(written)
}

/// Granite 4 without layers of another kind is a Granite with another width of its MLP.
fn granite_hybrid(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    let mut written = granite(keys, rope)?;
    let attends = |kind: &Json| kind == "attention" || kind == "full_attention";
    if !keys.get("layer_types").and_then(Json::as_array).is_some_and(|kinds| kinds.iter().all(attends)) {
        return Err(keys.unsaid("not all of its layers are of attention"));
    }
    if keys.optional("num_local_experts")?.unwrap_or(8) > 0 {
        return Err(keys.unsaid("it has experts"));
    }
    written.push(("feed_forward_length", Value::U32(keys.number("shared_intermediate_size")?)));
    let rotates = keys.get("position_embedding_type").is_some_and(|kind| kind == "rope");
    written.push(("rope.scaling.finetuned", Value::Bool(rotates)));
    Ok(written)
}

/// The streams of positions of images: of text all are the same.
#[expect(clippy::unnecessary_wraps, reason = "as its neighbours in the table")]
fn qwen3_vl(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    let own = [24, 20, 20];
    let sections = rope.numbers("mrope_section").unwrap_or_else(|| own.to_vec());
    let padded = sections.into_iter().chain(std::iter::repeat(0)).take(4).map(Value::I32).collect();
    // How many layers of the image tower reach into the first ones of the decoder.
    let tower = keys.base.multimodal_config().and_then(|whole| whole.get("vision_config"));
    let depth =
        tower.and_then(|tower| tower.get("deepstack_visual_indexes")).and_then(Json::as_array).map_or(3, Vec::len);
    Ok(vec![("rope.dimension_sections", Value::Array(padded)), ("n_deepstack_layers", Value::U32(depth as u32))])
}

fn gemma2(keys: &Keys<'_>, _: &Rope) -> Result<Written> {
    let mut written = keys.window(Some(4096), 2, false)?;
    written.extend(keys.softcap("attn_logit_softcapping", Some(50.0), "attn_logit_softcapping")?);
    written.extend(keys.softcap("final_logit_softcapping", Some(30.0), "final_logit_softcapping")?);
    if written.len() < 3 {
        return Err(keys.unsaid("it has no window, or scores or logits without a cap"));
    }
    Ok(written)
}

fn gemma3(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    if keys.get("attn_logit_softcapping").is_some() {
        return Err(keys.unsaid("its scores have a cap"));
    }
    let mut written = Vec::new();
    if keys.get("sliding_window_pattern").is_none_or(|pattern| *pattern != 1) {
        written = keys.window(Some(4096), 6, false)?;
        if rope.local_theta()?.is_none() {
            written.push(("rope.freq_base_swa", Value::F32(1e4)));
        }
    }
    written.extend(keys.softcap("final_logit_softcapping", None, "final_logit_softcapping")?);
    Ok(written)
}

fn olmo3(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    let mut written = keys.window(Some(4096), 4, true)?;
    written.push(("rope.freq_base_swa", Value::F32(rope.local_theta()?.map_or_else(|| rope.theta(), Ok)? as f32)));
    Ok(written)
}

fn exaone4(keys: &Keys<'_>, _: &Rope) -> Result<Written> {
    let mut written = keys.window(Some(4096), 4, true)?;
    written.push(("vocab_size", Value::U32(keys.number("vocab_size")?)));
    Ok(written)
}

fn phi3(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    let mut written = vec![
        ("rope.scaling.original_context_length", Value::U32(rope.original_length()?)),
        ("rope.dimension_count", Value::U32(keys.rotated(rope)?)),
        // llama.cpp knows Phi-4 by this 0.
        ("attention.sliding_window", Value::U32(keys.optional("sliding_window")?.unwrap_or(0))),
    ];
    if rope.is_longrope() {
        written.push(("rope.scaling.attn_factor", Value::F32(rope.longrope_factor()? as f32)));
    }
    Ok(written)
}

fn glm4(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    Ok(vec![("rope.dimension_count", Value::U32(keys.rotated(rope)?))])
}
