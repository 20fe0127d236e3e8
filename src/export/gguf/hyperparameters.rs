//! The keys of a model's own numbers, from `config.json`: what all families have, and what each has besides.
//!
//! Source: `conversion/*.py` of llama.cpp. It reads configurations through transformers, so that a key which a file leaves out has
//! the default of its class; those that matter are here.

use super::rope::{Rope, RopeClass};
use super::tensors;
use crate::error::{Error, Result};
use crate::weights::Base;
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json};
use std::path::PathBuf;

type Written = Vec<(&'static str, Value)>;

/// The width of a head where `head_dim` is not given.
#[derive(Clone, Copy)]
enum Width {
    /// The class has none; the file says nothing either, and readers divide.
    Unsaid,
    /// The class divides by itself, so the file says it.
    Divided,
    /// The class's own.
    Own(u32),
}

/// What is particular to a `model_type`.
struct Family {
    model_type: &'static str,
    width: Width,
    epsilon: f64,
    rope: RopeClass,
    /// Whether the file repeats the size of the vocabulary and the width that rotates, as Llama's and its children's do.
    repeats: bool,
    more: fn(&Keys<'_>, &Rope) -> Result<Written>,
}

const fn theta(theta: f64) -> RopeClass {
    RopeClass { theta, original_length: None }
}

const LLAMA: Family = Family {
    model_type: "llama",
    width: Width::Divided,
    epsilon: 1e-6,
    rope: theta(1e4),
    repeats: true,
    more: nothing,
};
const QWEN2: Family = Family { model_type: "qwen2", width: Width::Unsaid, repeats: false, ..LLAMA };
const GEMMA2: Family = Family { model_type: "gemma2", width: Width::Own(256), more: gemma2, ..QWEN2 };

const FAMILIES: &[Family] = &[
    LLAMA,
    Family { model_type: "mistral", ..LLAMA },
    Family { model_type: "ministral3", width: Width::Own(128), epsilon: 1e-5, more: ministral3, ..LLAMA },
    Family { model_type: "smollm3", width: Width::Unsaid, rope: theta(2e6), more: smollm3, ..LLAMA },
    Family { model_type: "granite", width: Width::Unsaid, more: granite, ..LLAMA },
    Family { model_type: "granitemoehybrid", width: Width::Unsaid, more: granite_hybrid, ..LLAMA },
    QWEN2,
    Family { model_type: "qwen3", width: Width::Own(128), ..QWEN2 },
    Family { model_type: "qwen3_vl_text", width: Width::Own(128), rope: theta(5e5), more: qwen3_vl, ..QWEN2 },
    GEMMA2,
    Family { model_type: "gemma3_text", rope: theta(1e6), more: gemma3, ..GEMMA2 },
    Family { model_type: "olmo2", epsilon: 1e-5, ..QWEN2 },
    Family { model_type: "olmo3", epsilon: 1e-5, rope: theta(5e5), more: olmo3, ..QWEN2 },
    Family { model_type: "exaone4", epsilon: 1e-5, more: exaone4, ..QWEN2 },
    Family {
        model_type: "phi3",
        epsilon: 1e-5,
        rope: RopeClass { original_length: Some(4096), ..QWEN2.rope },
        more: phi3,
        ..QWEN2
    },
    Family { model_type: "glm4", width: Width::Own(128), epsilon: 1.5625e-7, more: glm4, ..QWEN2 },
    Family { model_type: "seed_oss", width: Width::Own(128), ..QWEN2 },
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
    let keys = Keys { base, path: base.path().join("config.json"), config: base.config() };
    let all = keys.all(family(architecture.model_type)?)?;
    Ok(all.into_iter().map(|(key, value)| (format!("{}.{key}", architecture.gguf), value)).collect())
}

fn family(model_type: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
        Error::invalid(format!("the keys of a GGUF file of `{model_type}` are not known"))
            .with_help("export the merged model instead: `--to merged`")
    })
}

/// What the class of a base takes for rotation where its configuration says nothing.
///
/// # Errors
/// When the base's architecture is not written as GGUF.
pub(super) fn rope_class(base: &Base) -> Result<RopeClass> {
    Ok(family(tensors::architecture(base)?.model_type)?.rope)
}

/// Typed access to `config.json`.
pub(super) struct Keys<'a> {
    base: &'a Base,
    path: PathBuf,
    config: &'a Map<String, Json>,
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
    fn width(&self, family: &Family) -> Result<u32> {
        let divided = || Ok(self.number("hidden_size")? / self.number("num_attention_heads")?);
        match (self.optional("head_dim")?, family.width) {
            (Some(width), _) | (None, Width::Own(width)) => Ok(width),
            (None, Width::Unsaid | Width::Divided) => divided(),
        }
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
        let rope = Rope::of(self.config, family.rope)?;
        let width = self.width(family)?;
        let mut keys = vec![
            ("block_count", Value::U32(self.number("num_hidden_layers")?)),
            ("context_length", Value::U32(self.number("max_position_embeddings")?)),
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
        let epsilon = self.float("rms_norm_eps")?.unwrap_or(family.epsilon);
        keys.push(("attention.layer_norm_rms_epsilon", Value::F32(epsilon as f32)));
        if self.get("head_dim").is_some() || !matches!(family.width, Width::Unsaid) {
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
    let width = keys.width(&QWEN2)?;
    let mut written = vec![
        ("rope.scaling.original_context_length", Value::U32(rope.original_length()?)),
        ("rope.dimension_count", Value::U32(rope.rotated(width, 1.0)?)),
        // llama.cpp knows Phi-4 by this 0.
        ("attention.sliding_window", Value::U32(keys.optional("sliding_window")?.unwrap_or(0))),
    ];
    if rope.is_longrope() {
        written.push(("rope.scaling.attn_factor", Value::F32(rope.longrope_factor()? as f32)));
    }
    Ok(written)
}

fn glm4(keys: &Keys<'_>, rope: &Rope) -> Result<Written> {
    let width = keys.optional("head_dim")?.unwrap_or(128);
    Ok(vec![("rope.dimension_count", Value::U32(rope.rotated(width, 0.5)?))])
}
