//! The metadata of a whole model: carried over from a GGUF base, or made from a Hugging Face folder as llama.cpp's
//! `convert_hf_to_gguf.py` makes them.

use super::{hub_id, hyperparameters, tensors, tokenizer};
use crate::error::{Error, Result};
use crate::weight_type::WeightType;
use crate::weights::{Base, ChatTemplates};
use candle_core::quantized::gguf_file::Value;
use serde_json::{Map, Value as Json};
use std::path::Path;

/// llama.cpp's number of the layout of its quantized blocks.
const QUANTIZATION_VERSION: u32 = 2;

/// What a base does not say of the file to be written.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts<'a> {
    /// The model's name, for people.
    pub name: &'a str,
    /// The type of most weights.
    pub dtype: WeightType,
    /// What the model was made from; written when it is an id of the Hub.
    pub base_model: Option<&'a str>,
    /// The licence, as the Hub writes it: `apache-2.0`.
    pub license: Option<&'a str>,
    /// The chat template (Jinja) in place of the base's.
    pub chat_template: Option<&'a str>,
}

/// llama.cpp's number of a file whose weights are mostly of this type (`general.file_type`); of the K-quants the one where all
/// weights are, `Q4_K_S` and so on.
pub const fn file_type(dtype: WeightType) -> u32 {
    match dtype {
        WeightType::F32 => 0,
        WeightType::F16 => 1,
        WeightType::Q4_0 => 2,
        WeightType::Q4_1 => 3,
        // Nothing is written in the latter three.
        WeightType::Q8_0 | WeightType::Q8_1 | WeightType::Q8K | WeightType::Nf4 => 7,
        WeightType::Q5_0 => 8,
        WeightType::Q5_1 => 9,
        WeightType::Q2K => 10,
        WeightType::Q3K => 11,
        WeightType::Q4K => 14,
        WeightType::Q5K => 16,
        WeightType::Q6K => 18,
        WeightType::Iq4Nl => 25,
        WeightType::Iq4Xs => 30,
        WeightType::BF16 => 32,
    }
}

/// The metadata of a GGUF file of this model, in the order to write them.
///
/// # Errors
/// When the base's architecture, rotary scaling or tokenizer cannot be said in GGUF, or its configuration lacks something.
pub fn metadata(base: &Base, facts: &ModelFacts) -> Result<Vec<(String, Value)>> {
    match base.gguf_metadata() {
        Some(metadata) => Ok(carried_over(metadata.values(), facts)),
        None => from_folder(base, facts),
    }
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

/// A GGUF base's own keys, with those replaced that the new file says otherwise.
fn carried_over(values: &[(String, Value)], facts: &ModelFacts) -> Vec<(String, Value)> {
    let ancestors = facts.base_model.map(hub_id::base_model).unwrap_or_default();
    let dropped = |key: &str| {
        // How the base was quantized and split says nothing of the new file.
        key.starts_with("quantize.")
            || key.starts_with("split.")
            || (key.starts_with("general.base_model.") && !ancestors.is_empty())
            || (key == "general.license" && facts.license.is_some())
            || (key.starts_with("tokenizer.chat_template") && facts.chat_template.is_some())
            || matches!(key, "general.name" | "general.file_type" | "general.quantization_version")
    };
    let mut all = Vec::with_capacity(values.len() + 8);
    for (key, value) in values {
        if key == "general.architecture" {
            all.push((key.clone(), value.clone()));
            all.extend(general(facts));
            all.extend(ancestors.iter().cloned());
            all.push(("general.file_type".into(), Value::U32(file_type(facts.dtype))));
            all.push(("general.quantization_version".into(), Value::U32(QUANTIZATION_VERSION)));
        } else if !dropped(key) {
            all.push((key.clone(), value.clone()));
        }
    }
    all.extend(facts.chat_template.map(|template| ("tokenizer.chat_template".into(), text(template))));
    all
}

/// What the facts say under `general`, but for the file's type.
fn general(facts: &ModelFacts) -> Vec<(String, Value)> {
    let mut keys = vec![("general.name".to_string(), text(facts.name))];
    keys.extend(facts.license.map(|license| ("general.license".into(), text(license))));
    keys
}

fn from_folder(base: &Base, facts: &ModelFacts) -> Result<Vec<(String, Value)>> {
    let architecture = tensors::architecture(base)?.gguf;
    let mut all: Vec<(String, Value)> =
        vec![("general.architecture".into(), text(architecture)), ("general.type".into(), text("model"))];
    all.extend(sampling(base.path())?);
    all.extend(general(facts));
    all.push(("general.size_label".into(), Value::String(size_label(parameters(base)))));
    all.extend(facts.base_model.map(hub_id::base_model).unwrap_or_default());
    all.extend(hyperparameters(base)?);
    all.push(("general.file_type".into(), Value::U32(file_type(facts.dtype))));
    all.push(("general.quantization_version".into(), Value::U32(QUANTIZATION_VERSION)));
    all.extend(tokenizer::keys(base)?);
    match facts.chat_template {
        Some(template) => all.push(("tokenizer.chat_template".into(), text(template))),
        None => all.extend(templates(base.chat_templates())),
    }
    Ok(all)
}

/// Chat templates as llama.cpp's converter writes them: those with names under these, with a list of the names, and the default
/// one without.
fn templates(templates: &ChatTemplates) -> Vec<(String, Value)> {
    let plain = |name: &str| -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
    };
    let named: Vec<(String, &str)> = templates.named().map(|(name, template)| (plain(name), template)).collect();
    let mut keys: Vec<(String, Value)> =
        named.iter().map(|(name, template)| (format!("tokenizer.chat_template.{name}"), text(template))).collect();
    if !named.is_empty() {
        let names = named.iter().map(|(name, _)| text(name)).collect();
        keys.push(("tokenizer.chat_templates".into(), Value::Array(names)));
    }
    keys.extend(templates.plain().map(|template| ("tokenizer.chat_template".to_string(), text(template))));
    keys
}

/// A JSON object of the folder; empty when there is no such file.
pub(in crate::export) fn read_json(path: &Path) -> Result<Map<String, Json>> {
    if !path.is_file() {
        return Ok(Map::new());
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, format!("cannot be read as JSON: {error}")))
}

/// How the model's authors would sample, from `generation_config.json`.
fn sampling(folder: &Path) -> Result<Vec<(String, Value)>> {
    let config = read_json(&folder.join("generation_config.json"))?;
    let mut keys = Vec::new();
    for (from, to) in [
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("temperature", "temp"),
        ("repetition_penalty", "penalty_repeat"),
    ] {
        let Some(number) = config.get(from).and_then(Json::as_f64) else { continue };
        let value = if from == "top_k" { Value::I32(number as i32) } else { Value::F32(number as f32) };
        keys.push((format!("general.sampling.{to}"), value));
    }
    Ok(keys)
}

fn parameters(base: &Base) -> u64 {
    let shapes = base.tensor_names().filter_map(|name| base.tensor(name));
    shapes.map(|(shape, _)| shape.iter().map(|&dimension| dimension as u64).product::<u64>()).sum()
}

/// A number of parameters as llama.cpp writes it: two digits at least, in thousands, millions, billions or trillions.
fn size_label(parameters: u64) -> String {
    let (scale, suffix) = match parameters {
        0..=1_000_000 => (1e-3, "K"),
        1_000_001..=1_000_000_000 => (1e-6, "M"),
        1_000_000_001..=1_000_000_000_000 => (1e-9, "B"),
        _ => (1e-12, "T"),
    };
    let scaled = parameters as f64 * scale;
    let digits = match scaled.round_ties_even() as u64 {
        0 => 0,
        whole => whole.ilog10() as usize + 1,
    };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::{quantized, write_gguf};
    use candle_core::quantized::GgmlDType;

    const FACTS: ModelFacts =
        ModelFacts { name: "new", dtype: WeightType::Q4K, base_model: None, license: None, chat_template: None };

    /// As gguf-py's `GGUFWriter.add_chat_template` writes such a list.
    #[test]
    fn templates_with_names_are_those_of_the_converter() {
        let mut all = ChatTemplates::default();
        for (name, template) in [("default", "D"), ("tool_use", "T"), ("rag-2", "R")] {
            all.insert(name, template.to_owned());
        }
        let key = |name: &str, template: &str| (format!("tokenizer.{name}"), text(template));
        let names = Value::Array(vec![text("tool_use"), text("rag_2")]);
        let expected = [
            key("chat_template.tool_use", "T"),
            key("chat_template.rag_2", "R"),
            ("tokenizer.chat_templates".to_string(), names),
            key("chat_template", "D"),
        ];
        assert_eq!(format!("{:?}", templates(&all)), format!("{expected:?}"));
    }

    #[test]
    fn sizes_are_labelled_as_llama_cpp_labels_them() {
        for (parameters, label) in [
            (134_515_008, "135M"),
            (655_872, "656K"),
            (7_241_732_096, "7.2B"),
            (1_235_814_400, "1.2B"),
            (999, "1.0K"),
            (0, "0.00K"),
            (9_960_000_000, "10B"),
            (72_706_203_648, "73B"),
        ] {
            assert_eq!(size_label(parameters), label);
        }
    }

    #[test]
    fn a_gguf_bases_keys_are_carried_over_but_for_what_is_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let old = [
            ("general.architecture", text("any")),
            ("general.name", text("old")),
            ("general.file_type", Value::U32(3)),
            ("general.base_model.count", Value::U32(1)),
            ("quantize.imatrix.file", text("x")),
            ("general.license", text("mit")),
            ("tokenizer.ggml.tokens", Value::Array(vec![text("a")])),
            ("tokenizer.chat_template", text("{{ old }}")),
        ];
        write_gguf(&path, &old, &[("a.weight", quantized(&[1], &[1.0], GgmlDType::F32))]);
        let base = Base::open(&path).unwrap();
        let keys = |facts: &ModelFacts| {
            let all = metadata(&base, facts).unwrap();
            all.into_iter().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>()
        };
        assert_eq!(
            keys(&FACTS),
            [
                "general.architecture=String(\"any\")",
                "general.name=String(\"new\")",
                "general.file_type=U32(14)",
                "general.quantization_version=U32(2)",
                "general.base_model.count=U32(1)",
                "general.license=String(\"mit\")",
                "tokenizer.ggml.tokens=Array([String(\"a\")])",
                "tokenizer.chat_template=String(\"{{ old }}\")"
            ]
        );
        let facts = ModelFacts {
            base_model: Some("org/model"),
            license: Some("apache-2.0"),
            chat_template: Some("{{ new }}"),
            ..FACTS
        };
        let new = keys(&facts);
        assert!(new.contains(&"general.license=String(\"apache-2.0\")".to_string()));
        assert!(new.contains(&"general.base_model.0.name=String(\"Model\")".to_string()));
        assert!(new.contains(&"tokenizer.chat_template=String(\"{{ new }}\")".to_string()));
        assert_eq!(new.iter().filter(|key| key.contains("license") || key.contains("template")).count(), 2);
    }
}
