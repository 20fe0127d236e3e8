//! What `adapter_config.json` says, as far as it decides the mathematics, and how it is written.

use crate::nn::LoraConfig;
use crate::weights::{multimodal_name, text_name};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Rank, scale and targets of an adapter, and the base that it names.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// A Hub id (`org/name`, or `org/name@revision`), or the path of the base as the recipe gave it; empty where the
    /// adapter names none.
    pub base_model_name_or_path: String,
    /// [`crate::weights::Base::fingerprint`] of the base that it was trained on, where that is known.
    pub base_sha256: Option<String>,
    /// Rank, scale and targets.
    pub lora: LoraConfig,
    /// Whether the base is the text decoder of a multimodal model: files then have the names that its modules have there.
    pub nested: bool,
}

impl AdapterConfig {
    /// The name that a module, or one of its tensors, has in files.
    pub fn stored_name(&self, name: &str) -> String {
        if !self.nested {
            return name.to_owned();
        }
        match name.strip_prefix("base_model.model.") {
            Some(module) => format!("base_model.model.{}", multimodal_name(module)),
            None => multimodal_name(name),
        }
    }

    /// Which modules PEFT adapts. In a multimodal model, last parts of names would name modules of the vision tower too, and
    /// `SGLang` takes no pattern: so the paths are written.
    fn targets(&self, modules: &BTreeSet<String>) -> Targets {
        if !self.nested {
            return Targets::of(modules);
        }
        Targets { names: modules.iter().map(|module| self.stored_name(module)).collect(), layers: None }
    }

    /// What servers take as `lora_alpha`: rank-stabilised scaling is folded into it (`α·√r` with `use_rslora: false` is the
    /// same mathematics), since several of them do not read `use_rslora`.
    pub fn folded_alpha(&self) -> f64 {
        let lora = &self.lora;
        if lora.use_rslora { lora.lora_alpha * (lora.r as f64).sqrt() } else { lora.lora_alpha }
    }

    /// The base's Hub id or path, and the revision, which PEFT keeps apart.
    pub fn base_and_revision(&self) -> (&str, Option<&str>) {
        let name = self.base_model_name_or_path.as_str();
        match name.split_once('@') {
            Some((id, revision)) if !Path::new(name).exists() => (id, Some(revision)),
            _ => (name, None),
        }
    }

    /// The file's contents: every key of PEFT's, sorted. `modules` are those that have tensors.
    pub fn to_json(&self, modules: &BTreeSet<String>) -> Value {
        let lora = &self.lora;
        let alpha = self.folded_alpha();
        let alpha = if alpha.fract() == 0.0 { json!(alpha as u64) } else { json!(alpha) };
        let (base, revision) = self.base_and_revision();
        let targets = self.targets(modules);
        let entries: BTreeMap<&str, Value> = BTreeMap::from([
            ("alpha_pattern", json!({})),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(base)),
            ("bias", json!("none")),
            ("exclude_modules", Value::Null),
            ("fan_in_fan_out", json!(false)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layer_replication", Value::Null),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", json!(targets.layers)),
            ("loftq_config", json!({})),
            ("lora_alpha", alpha),
            ("lora_bias", json!(false)),
            ("lora_dropout", json!(lora.lora_dropout)),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", Value::Null),
            ("peft_type", json!("LORA")),
            ("r", json!(lora.r)),
            ("rank_pattern", json!({})),
            ("revision", json!(revision)),
            ("target_modules", json!(targets.names)),
            ("task_type", json!("CAUSAL_LM")),
            ("trainable_token_indices", Value::Null),
            ("use_dora", json!(false)),
            ("use_rslora", json!(false)),
        ]);
        json!(entries)
    }
}

/// Tensors under the names that they have in a text-only model: the inverse of [`AdapterConfig::stored_name`].
pub fn plain_names<T>(tensors: BTreeMap<String, T>) -> BTreeMap<String, T> {
    tensors.into_iter().map(|(name, tensor)| (plain_name(&name), tensor)).collect()
}

/// The name of a module or one of its tensors in a text-only model: programs load a multimodal model under one name or the other,
/// and its adapters are in the wild under both.
pub(super) fn plain_name(name: &str) -> String {
    let (peft, module) = match name.strip_prefix("base_model.model.") {
        Some(module) => ("base_model.model.", module),
        None => ("", name),
    };
    text_name(module).map_or_else(|| name.to_owned(), |text| format!("{peft}{text}"))
}

/// PEFT's `target_modules` and `layers_to_transform` for a set of modules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Targets {
    pub names: BTreeSet<String>,
    pub layers: Option<BTreeSet<usize>>,
}

impl Targets {
    /// The last parts of the modules' names where every layer from the first on has the same; with a list of layers where
    /// the same are in some layers only; else the modules' whole names.
    pub fn of(modules: &BTreeSet<String>) -> Self {
        let mut by_layer: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
        for module in modules {
            let Some((layer, rest)) = split(module) else {
                return Self { names: modules.clone(), layers: None };
            };
            by_layer.entry(layer).or_default().insert(rest);
        }
        let mut sets = by_layer.values();
        let first = sets.next().cloned().unwrap_or_default();
        let names: BTreeSet<String> = first.iter().map(|name| last_part(name).to_owned()).collect();
        if names.len() != first.len() || sets.any(|set| *set != first) {
            return Self { names: modules.clone(), layers: None };
        }
        let all = by_layer.keys().copied().eq(0..by_layer.len());
        Self { names, layers: (!all).then(|| by_layer.into_keys().collect()) }
    }
}

/// `model.layers.7.self_attn.q_proj` → (7, `self_attn.q_proj`)
pub(super) fn split(module: &str) -> Option<(usize, &str)> {
    let (number, rest) = module.split_once(".layers.")?.1.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// `self_attn.q_proj` → `q_proj`
pub(super) fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(modules: &[&str]) -> (Vec<String>, Option<Vec<usize>>) {
        let targets = Targets::of(&modules.iter().map(|&module| module.to_owned()).collect());
        (targets.names.into_iter().collect(), targets.layers.map(|layers| layers.into_iter().collect()))
    }

    #[test]
    fn modules_are_named_as_peft_matches_them() {
        let [q0, v0, q1, v1] = [(0, "q"), (0, "v"), (1, "q"), (1, "v")]
            .map(|(layer, name)| format!("model.layers.{layer}.self_attn.{name}_proj"));
        let names = vec!["q_proj".to_owned(), "v_proj".to_owned()];
        assert_eq!(targets(&[&q0, &v0, &q1, &v1]), (names.clone(), None));
        assert_eq!(targets(&[&q1, &v1]), (names, Some(vec![1])));
        assert_eq!(targets(&[&q0, &v1]), (vec![q0.clone(), v1.clone()], None));
        assert_eq!(targets(&["lm_head"]), (vec!["lm_head".to_owned()], None));
    }
}
