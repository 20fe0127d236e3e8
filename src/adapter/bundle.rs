//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.

use super::tensors::{read_tensors, serialize_tensors};
use crate::error::{Error, Result};
use crate::fs;
use crate::nn::{LoraConfig, TargetModules};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";

/// What `adapter_config.json` says, as far as it decides the mathematics.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// A Hub id, or the path of the base as the recipe gave it.
    pub base_model_name_or_path: String,
    /// Rank, scale and targets.
    pub lora: LoraConfig,
}

/// An adapter: its configuration and its tensors under PEFT's names.
pub struct AdapterBundle {
    /// The configuration.
    pub config: AdapterConfig,
    /// `base_model.model.<module>.lora_A.weight` `[r, in]` and `lora_B` `[out, r]`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl AdapterConfig {
    /// The file's contents: every key of PEFT's, sorted. Rank-stabilised scaling is folded into `lora_alpha`
    /// (`α·√r` with `use_rslora: false` is the same mathematics), since several servers do not read `use_rslora`.
    pub fn to_json(&self, target_modules: &BTreeSet<String>) -> Value {
        let lora = &self.lora;
        let alpha = if lora.use_rslora { lora.lora_alpha * (lora.r as f64).sqrt() } else { lora.lora_alpha };
        let alpha = if alpha.fract() == 0.0 { json!(alpha as u64) } else { json!(alpha) };
        // PEFT keeps a Hub id and its revision apart.
        let name = self.base_model_name_or_path.as_str();
        let (base, revision) = match name.split_once('@') {
            Some((id, revision)) if !Path::new(name).exists() => (id, Some(revision)),
            _ => (name, None),
        };
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
            ("layers_to_transform", Value::Null),
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
            ("target_modules", json!(target_modules)),
            ("task_type", json!("CAUSAL_LM")),
            ("trainable_token_indices", Value::Null),
            ("use_dora", json!(false)),
            ("use_rslora", json!(false)),
        ]);
        json!(entries)
    }

    fn from_json(map: &Map<String, Value>, path: &Path) -> Result<Self> {
        let wrong = |key: &str, expected: &str| {
            let got = map.get(key).map_or("nothing".to_owned(), Value::to_string);
            Error::file(path, format!("`{key}`: expected {expected}, got {got}"))
        };
        if map.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(wrong("peft_type", "\"LORA\""));
        }
        for key in ["use_dora", "lora_bias", "fan_in_fan_out"] {
            if map.get(key).is_some_and(|value| value == &json!(true)) {
                return Err(wrong(key, "false (it is not supported)"));
            }
        }
        for key in ["modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication"] {
            let unused = |value: &Value| value.is_null() || value == &json!({}) || value == &json!([]);
            if !map.get(key).is_none_or(unused) {
                return Err(wrong(key, "nothing (it is not supported)"));
            }
        }
        if map.get("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none") {
            return Err(wrong("bias", "\"none\""));
        }
        let r = map.get("r").and_then(Value::as_u64).filter(|r| (1..=LoraConfig::MAX_R as u64).contains(r));
        let alpha = map.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| *alpha > 0.0);
        let lora = LoraConfig {
            r: r.ok_or_else(|| wrong("r", "a whole number of at least 1"))? as usize,
            lora_alpha: alpha.ok_or_else(|| wrong("lora_alpha", "a number above 0"))?,
            lora_dropout: map.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            use_rslora: map.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            target_modules: TargetModules::Names(Vec::new()),
        };
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default();
        let base = match (text("base_model_name_or_path"), text("revision")) {
            (base, "") => base.to_owned(),
            (base, revision) => format!("{base}@{revision}"),
        };
        Ok(Self { base_model_name_or_path: base, lora })
    }
}

impl AdapterBundle {
    /// The last parts of the names of the modules that have tensors.
    pub fn target_modules(&self) -> BTreeSet<String> {
        let module = |name: &String| name.rsplit('.').nth(2).map(str::to_owned);
        self.tensors.keys().filter_map(module).collect()
    }

    /// Writes both files into `folder`, each whole or not at all.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let (config, tensors) = (folder.join(CONFIG), folder.join(TENSORS));
        let bytes = serialize_tensors(&self.tensors, &tensors)?;
        fs::write_atomic(&tensors, &bytes)?;
        let mut text = serde_json::to_string_pretty(&self.config.to_json(&self.target_modules()))
            .map_err(|error| Error::invalid(format!("internal: {error}")))?;
        text.push('\n');
        fs::write_atomic(&config, text.as_bytes())?;
        Ok(vec![config, tensors])
    }

    /// The tensors' rank against the configuration's, before anything is allocated by it.
    fn check_rank(&self, path: &Path) -> Result<()> {
        let r = self.config.lora.r;
        for (name, tensor) in &self.tensors {
            let rank = match (name.ends_with("lora_A.weight"), tensor.dims()) {
                (true, [rank, _]) | (false, [_, rank]) => Some(*rank),
                _ => None,
            };
            if rank != Some(r) {
                let message = format!("`{name}` has the shape {:?}, which is not of rank {r}", tensor.dims());
                return Err(
                    Error::file(path, message).with_help("adapter_config.json and the tensors do not belong together")
                );
            }
        }
        Ok(())
    }

    /// Reads an adapter folder, ours or PEFT's.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the adapter is of a kind that is not supported (`DoRA`, patterns, biases).
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        if !path.is_file() {
            return Err(Error::file(folder, format!("is no adapter's folder: there is no {CONFIG} in it")).with_help(
                "name a folder that `train` wrote (a run that was interrupted has none yet), or a PEFT folder",
            ));
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let map: Map<String, Value> =
            serde_json::from_slice(&bytes).map_err(|error| Error::file(&path, format!("is no adapter's: {error}")))?;
        let mut config = AdapterConfig::from_json(&map, &path)?;
        let path = folder.join(TENSORS);
        let mut bundle = Self { config: config.clone(), tensors: read_tensors(&path)? };
        config.lora.target_modules = TargetModules::Names(bundle.target_modules().into_iter().collect());
        bundle.config = config;
        bundle.check_rank(&path)?;
        check_finite(&bundle.tensors, &path)?;
        Ok(bundle)
    }
}

fn check_finite(tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
    for (name, tensor) in tensors {
        let sum = tensor.to_dtype(DType::F64)?.abs()?.sum_all()?.to_scalar::<f64>()?;
        if !sum.is_finite() {
            return Err(Error::file(path, format!("the tensor `{name}` holds a number that is not finite"))
                .with_help("the file is damaged, or was written by a run that diverged"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn bundle(use_rslora: bool) -> AdapterBundle {
        let a = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], &Device::Cpu).unwrap();
        let lora = LoraConfig { r: 4, lora_alpha: 8.0, use_rslora, ..LoraConfig::default() };
        let config = AdapterConfig { base_model_name_or_path: "org/base".into(), lora };
        let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
        let tensors =
            BTreeMap::from([(name("lora_A"), a.clone()), (name("lora_B"), a.t().unwrap().contiguous().unwrap())]);
        AdapterBundle { config, tensors }
    }

    #[test]
    fn what_is_saved_loads_again_and_rank_stabilised_scaling_is_folded() {
        let folder = tempfile::tempdir().unwrap();
        for (use_rslora, alpha) in [(false, 8.0), (true, 16.0)] {
            let saved = bundle(use_rslora);
            saved.save(folder.path()).unwrap();
            let loaded = AdapterBundle::load(folder.path()).unwrap();
            assert_eq!(loaded.config.lora.lora_alpha, alpha);
            assert!((loaded.config.lora.scale() - saved.config.lora.scale()).abs() < 1e-12, "the same mathematics");
            assert_eq!(loaded.config.lora.target_modules, TargetModules::Names(vec!["q_proj".into()]));
            for (name, tensor) in &saved.tensors {
                assert_eq!(tensor.to_vec2::<f32>().unwrap(), loaded.tensors[name].to_vec2::<f32>().unwrap());
            }
        }
    }

    #[test]
    fn a_revision_of_the_hub_stands_in_a_key_of_its_own_as_peft_wants_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = bundle(false);
        saved.config.base_model_name_or_path = "org/base@v1".into();
        saved.save(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(CONFIG)).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["base_model_name_or_path"], &json["revision"]), (&json!("org/base"), &json!("v1")));
        assert_eq!(AdapterBundle::load(folder.path()).unwrap().config.base_model_name_or_path, "org/base@v1");
    }

    #[test]
    fn kinds_that_are_not_supported_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        bundle(false).save(folder.path()).unwrap();
        let path = folder.path().join(CONFIG);
        let text = std::fs::read_to_string(&path).unwrap().replace("\"use_dora\": false", "\"use_dora\": true");
        std::fs::write(&path, text).unwrap();
        let error = AdapterBundle::load(folder.path()).err().unwrap().to_string();
        assert!(error.contains("use_dora"), "{error}");
    }
}
