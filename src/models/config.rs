//! `config.json` as a family's file reads it: each key by its name, with an account of what was read.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// The most layers, and the largest of the other sizes, that are believed.
const MAX_LAYERS: usize = 1 << 12;
const MAX_SIZE: usize = 1 << 24;

/// Keys that say nothing of what a decoder computes.
const HARMLESS: &str = "architectures attention_dropout attn_implementation audio_config audio_token_id auto_map bos_token_id \
    boi_token_index cls_token_id dtype embd_pdrop eoi_token_index eos_token_id hidden_dropout id2label image_seq_length \
    image_token_id image_token_index initializer_range is_decoder is_encoder_decoder label2id max_length min_length \
    mm_tokens_per_image model_type multimodal_projector_bias name_or_path num_labels num_logits_to_keep \
    output_attentions output_hidden_states output_router_logits pad_token_id pretraining_tp problem_type projector_hidden_act \
    quantization_config resid_pdrop residual_dropout return_dict router_aux_loss_coef sep_token_id spatial_merge_size temperature \
    text_config tokenizer_class top_k top_p torch_dtype transformers_version unk_token_id use_cache video_token_id vision_config \
    vision_end_token_id vision_feature_layer vision_start_token_id vocab_file attn_pdrop attention_probs_dropout_prob \
    use_flash_attention use_flash_attention_2 use_flash_attn flash_attention fp32_attention";

/// Parts of names of keys that say what a decoder computes.
const ARITHMETIC: &str = "activation alibi altup attention attn bias bidirectional chunk clip_qkv conv expert gate head_dim \
    interleav kv_shared laurel layer mamba moe multiplier nope norm parallel per_layer position rope rotary router \
    scal sink sliding softcap sparse ssm temperature window";

/// Keys by their names.
#[derive(Debug)]
pub(super) struct Config<'a> {
    map: &'a Map<String, Value>,
    model_type: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Config<'a> {
    pub const fn new(map: &'a Map<String, Value>, model_type: &'a str) -> Self {
        Self { map, model_type, read: RefCell::new(BTreeSet::new()) }
    }

    /// The family.
    pub const fn model_type(&self) -> &'a str {
        self.model_type
    }

    /// An error about this configuration.
    pub fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::invalid(format!("config.json of a {} model: {what}", self.model_type))
    }

    /// The value of a key; none for `null`.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.error(format!("{key}: expected {expected}, got {value}")))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A number above 0.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number above 0", |value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }

    /// A whole number above 0.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let most = if key == "num_hidden_layers" { MAX_LAYERS } else { MAX_SIZE };
        self.typed(key, &format!("1 to {most}"), |value| {
            value.as_u64().map(|x| x as usize).filter(|x| (1..=most).contains(x))
        })
    }

    /// A size that the model must have.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.error(format!("missing field `{key}`")))
    }

    /// Whether the key is there, if only as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Keys that mean nothing under the values of others.
    pub fn ignore(&self, keys: &[&str]) {
        self.read.borrow_mut().extend(keys.iter().map(|&key| key.to_owned()));
    }

    /// As [`Self::ignore`], all keys that begin so.
    pub fn ignore_prefix(&self, prefix: &str) {
        self.read.borrow_mut().extend(self.map.keys().filter(|key| key.starts_with(prefix)).cloned());
    }

    /// A number above 0; where the key is not there, the class's default, and none for `null`.
    pub fn number_or(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        if self.has(key) { self.number(key) } else { Ok(default) }
    }

    /// A list of so many numbers.
    pub fn numbers(&self, key: &str, count: usize) -> Result<Option<Vec<f64>>> {
        self.typed(key, &format!("{count} numbers"), |value| {
            let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            numbers.filter(|numbers| numbers.len() == count)
        })
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a name", Value::as_str)
    }

    pub fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.filter(|object| !object.is_empty()))
    }

    /// Whether each of the layers slides: by `layer_types`, else by `slides`.
    pub fn sliding_layers(&self, layers: usize, slides: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(types) = self.typed("layer_types", "a list", Value::as_array)? else {
            return Ok((0..layers).map(slides).collect());
        };
        if types.len() != layers {
            return Err(self.error(format!("layer_types: expected {layers} types, got {}", types.len())));
        }
        let kind = |kind: &Value| match kind.as_str() {
            Some("full_attention" | "attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(self.error(format!(
                "layer_types: layers of type {kind} are not supported; supported are: full_attention, sliding_attention"
            ))),
        };
        types.iter().map(kind).collect()
    }

    /// Fails for a key that was not read and by its name changes what the model computes.
    pub fn check_unread(&self) -> Result<()> {
        let read = self.read.borrow();
        for (key, value) in self.map {
            let known = read.contains(key) || HARMLESS.split_ascii_whitespace().any(|harmless| harmless == key);
            if known || key.starts_with('_') || is_neutral(key, value) {
                continue;
            }
            if ARITHMETIC.split_ascii_whitespace().any(|part| key.contains(part)) {
                let message = format!(
                    "`{key}` is {value}: this may change what the model computes, and it is not known for `{}`",
                    self.model_type
                );
                return Err(self.error(message).with_help(
                    "use a newer version, or a base of another family; if the key means nothing, remove it from config.json",
                ));
            }
        }
        Ok(())
    }
}

/// Whether a value switches nothing on.
fn is_neutral(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => {
            let factor = ["multiplier", "scal", "factor"].iter().any(|part| key.contains(part));
            number.as_f64() == Some(0.0) || (factor && number.as_f64() == Some(1.0))
        }
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
    }
}
