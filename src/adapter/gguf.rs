//! A LoRA adapter from a GGUF file, as llama.cpp's `convert_lora_to_gguf.py` or an export wrote it, under PEFT's names.

use super::bundle::AdapterConfig;
use crate::error::{Error, Result};
use crate::nn::{LoraConfig, TargetModules};
use crate::weights::Base;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::gguf::{AdapterFile, open_adapter, rows};
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const HUB: &str = "https://huggingface.co/";

/// Reads an adapter for `base`: rows of q and k in Hugging Face's order, all tensors in f32.
///
/// llama.cpp scales by `alpha / r`, and by 1 where alpha is missing or 0; the configuration says the same as `lora_alpha`.
///
/// # Errors
/// When the file is damaged, no LoRA adapter, for another architecture or of other shapes than the base, of several ranks, or
/// holds what PEFT's linear layers have no place for.
pub fn read(path: &Path, base: &Base) -> Result<(AdapterConfig, BTreeMap<String, Tensor>)> {
    let file = open_adapter(path)?;
    let architecture = check_architecture(&file, base)?;
    let (mut tensors, mut modules, mut rank) = (BTreeMap::new(), BTreeSet::new(), None);
    for name in file.tensor_names() {
        if name.ends_with("_norm.weight") {
            tracing::warn!("{}: `{name}` is left out, as llama.cpp leaves it out", path.display());
            continue;
        }
        let Some(weight) = name.strip_suffix(".lora_a") else {
            let partner = name.strip_suffix(".lora_b").map(|weight| format!("{weight}.lora_a"));
            match partner {
                Some(partner) if file.tensor(&partner).is_some() => continue,
                Some(partner) => return Err(Error::file(path, format!("has `{name}`, but no `{partner}`"))),
                None => {
                    return Err(Error::file(
                        path,
                        format!("`{name}` is no tensor of LoRA: no `.lora_a`, no `.lora_b`"),
                    ));
                }
            }
        };
        let pair = Pair { file: &file, base, architecture, weight };
        let (module, r) = pair.check()?;
        if rank.is_some_and(|rank| rank != r) {
            return Err(Error::file(
                path,
                format!("has several ranks: `{name}` has {r}, others {}", rank.unwrap_or(0)),
            )
            .with_help(
                "PEFT folders of one rank are read; such an adapter can be merged into its base with llama.cpp",
            ));
        }
        rank = Some(r);
        modules.extend(module.rsplit('.').next().map(String::from));
        for (suffix, part) in [("lora_a", "lora_A"), ("lora_b", "lora_B")] {
            tensors.insert(format!("base_model.model.{module}.{part}.weight"), pair.read(suffix, &module)?);
        }
    }
    let r = rank.ok_or_else(|| Error::file(path, "holds no tensors of LoRA"))?;
    let lora = LoraConfig {
        r,
        lora_alpha: alpha(&file, r)?,
        lora_dropout: 0.0,
        use_rslora: false,
        target_modules: TargetModules::Names(modules.into_iter().collect()),
    };
    Ok((AdapterConfig { base_model_name_or_path: base_name(&file, base)?, lora }, tensors))
}

/// The row of the architecture, which must be the base's.
fn check_architecture(file: &AdapterFile, base: &Base) -> Result<&'static Architecture> {
    let own = file.metadata().string("general.architecture")?.unwrap_or("none");
    match Architecture::of_model_type(base.model_type()) {
        Some(row) if row.gguf == own => Ok(row),
        _ => Err(Error::file(
            file.path(),
            format!("is an adapter for `{own}`, but {} is of `{}`", base.path().display(), base.model_type()),
        )
        .with_help("name the base that the adapter was trained on")),
    }
}

fn alpha(file: &AdapterFile, r: usize) -> Result<f64> {
    match file.metadata().float("adapter.lora.alpha")? {
        None | Some(0.0) => Ok(r as f64),
        Some(alpha) if alpha.is_finite() && alpha > 0.0 => Ok(alpha),
        Some(alpha) => Err(Error::file(
            file.path(),
            format!("metadata `adapter.lora.alpha`: expected a number above 0, got {alpha}"),
        )),
    }
}

/// The Hub id that the file names as its base, or the base's place.
fn base_name(file: &AdapterFile, base: &Base) -> Result<String> {
    let url = file.metadata().string("general.base_model.0.repo_url")?;
    let id = url.and_then(|url| url.strip_prefix(HUB)).filter(|id| id.split('/').count() == 2);
    Ok(id.map_or_else(|| base.path().display().to_string(), String::from))
}

/// A and B of one weight.
struct Pair<'a> {
    file: &'a AdapterFile,
    base: &'a Base,
    architecture: &'static Architecture,
    /// GGUF's name of the weight, such as `blk.0.attn_q.weight`.
    weight: &'a str,
}

impl Pair<'_> {
    /// Hugging Face's name of the module, and the rank, from shapes that suit the base.
    fn check(&self) -> Result<(String, usize)> {
        let path = self.file.path();
        let weight = self.weight;
        if weight == "token_embd.weight" {
            return Err(Error::file(path, "changes the embeddings, which is not supported"));
        }
        let name = self.architecture.hugging_face_name(weight);
        let (Some(name), Some((shape, _))) = (&name, name.as_ref().and_then(|name| self.base.tensor(name))) else {
            return Err(Error::file(
                path,
                format!("changes `{weight}`, which {} does not have", self.base.path().display()),
            )
            .with_help("name the base that the adapter was trained on"));
        };
        let part = |suffix: &str| self.file.tensor(&format!("{weight}.{suffix}")).map(|(shape, _)| shape);
        let (Some(a), Some(b)) = (part("lora_a"), part("lora_b")) else {
            return Err(Error::file(path, format!("has `{weight}.lora_a`, but no `{weight}.lora_b`")));
        };
        match (shape, a, b) {
            ([out, input], [r, a_in], [b_out, b_r])
                if (out, input, r) == (b_out, a_in, b_r) && (1..=LoraConfig::MAX_R).contains(r) =>
            {
                let module = name.strip_suffix(".weight").unwrap_or(name);
                Ok((module.to_string(), *r))
            }
            _ => Err(Error::file(path, format!("`{weight}` of the base is {shape:?}, but A is {a:?} and B {b:?}"))
                .with_help("name the base that the adapter was trained on")),
        }
    }

    fn read(&self, suffix: &str, module: &str) -> Result<Tensor> {
        let name = format!("{}.{suffix}", self.weight);
        let raw = self.file.read(&name)?;
        let (rows, columns) = (raw.shape[0], raw.shape[1]);
        let tensor = qtensor_from_ggml(raw.dtype, &raw.bytes, raw.shape, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let mut values = tensor.flatten_all()?.to_vec1::<f32>()?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::file(self.file.path(), format!("the tensor `{name}` holds {value}")));
        }
        if suffix == "lora_b" && self.architecture.is_permuted(&format!("{module}.weight")) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let heads = self.heads(module);
            let ordered = rows::to_hugging_face(&bytes, rows, heads).ok_or_else(|| {
                Error::file(self.file.path(), format!("tensor `{name}`: {rows} rows are not {heads} heads"))
            })?;
            let number = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            values = ordered.chunks_exact(4).map(number).collect();
        }
        Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
    }

    fn heads(&self, module: &str) -> usize {
        let number = |key: &str| self.base.config().get(key).and_then(Value::as_u64);
        let queries = number("num_attention_heads");
        let heads = if module.ends_with("k_proj") { number("num_key_value_heads").or(queries) } else { queries };
        heads.unwrap_or(0) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::test_support::{quantized, write_gguf, write_safetensors};
    use candle_core::quantized::gguf_file::Value as Metadatum;
    use candle_core::quantized::{GgmlDType, QTensor};

    const DOWN: &str = "model.layers.0.mlp.down_proj.weight";

    fn base(folder: &Path) -> Base {
        let config = r#"{"model_type": "llama", "num_attention_heads": 2, "hidden_size": 4}"#;
        std::fs::write(folder.join("config.json"), config).unwrap();
        write_safetensors(&folder.join("model.safetensors"), &[(DOWN, &[4, 32], &[0.0; 128])]);
        Base::open(folder).unwrap()
    }

    fn metadata(changed: &[(&'static str, Metadatum)]) -> Vec<(&'static str, Metadatum)> {
        let text = |text: &str| Metadatum::String(text.into());
        let mut all = vec![
            ("general.architecture", text("llama")),
            ("general.type", text("adapter")),
            ("adapter.type", text("lora")),
        ];
        all.retain(|(key, _)| changed.iter().all(|(other, _)| other != key));
        all.extend_from_slice(changed);
        all
    }

    fn pair(r: usize, a_type: GgmlDType, b_type: GgmlDType) -> Vec<(&'static str, QTensor)> {
        let values: Vec<f32> = (0..32 * r).map(|value| value as f32 / 16.0 - 1.0).collect();
        vec![
            ("blk.0.ffn_down.weight.lora_a", quantized(&[r, 32], &values, a_type)),
            ("blk.0.ffn_down.weight.lora_b", quantized(&[4, r], &values[..4 * r], b_type)),
        ]
    }

    #[test]
    fn every_type_of_number_is_read_and_a_missing_alpha_scales_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let (path, base) = (folder.path().join("a.gguf"), base(folder.path()));
        for (a_type, b_type) in [
            (GgmlDType::F32, GgmlDType::F32),
            (GgmlDType::F16, GgmlDType::BF16),
            (GgmlDType::Q8_0, GgmlDType::F16),
            (GgmlDType::Q4_0, GgmlDType::F32),
        ] {
            let tensors = pair(2, a_type, b_type);
            for (alpha, expected) in [(None, 2.0), (Some(0.0), 2.0), (Some(5.0), 5.0)] {
                let alpha: Vec<_> =
                    alpha.map(|alpha| ("adapter.lora.alpha", Metadatum::F32(alpha))).into_iter().collect();
                write_gguf(&path, &metadata(&alpha), &tensors);
                let (config, read) = super::read(&path, &base).unwrap();
                assert_eq!((config.lora.r, config.lora.lora_alpha), (2, expected));
                assert_eq!(config.base_model_name_or_path, folder.path().display().to_string());
                assert_eq!(config.lora.target_modules, TargetModules::Names(vec!["down_proj".into()]));
                for (part, (_, stored)) in ["lora_A", "lora_B"].iter().zip(&tensors) {
                    let tensor = &read[&format!("base_model.model.model.layers.0.mlp.down_proj.{part}.weight")];
                    let expected = stored.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
                    assert_eq!(tensor.to_vec2::<f32>().unwrap(), expected);
                }
            }
        }
    }

    #[test]
    fn what_is_no_lora_adapter_for_this_base_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (path, base) = (folder.path().join("a.gguf"), base(folder.path()));
        let text = |text: &str| Metadatum::String(text.into());
        let refused = |changed: &[(&'static str, Metadatum)], tensors: &[(&str, QTensor)]| {
            write_gguf(&path, &metadata(changed), tensors);
            super::read(&path, &base).unwrap_err().to_string()
        };
        let f32 = || pair(2, GgmlDType::F32, GgmlDType::F32);
        assert!(refused(&[("general.type", text("model"))], &f32()).contains("is a model"));
        let vector = [("general.type", text("x")), ("general.architecture", text("controlvector"))];
        assert!(refused(&vector, &f32()).contains("is a control vector"));
        assert!(refused(&[("adapter.type", text("ia3"))], &f32()).contains("expected `lora`, got `ia3`"));
        let tokens = Metadatum::Array(vec![Metadatum::U32(1)]);
        assert!(refused(&[("adapter.alora.invocation_tokens", tokens)], &f32()).contains("aLoRA"));
        assert!(refused(&[("general.architecture", text("qwen2"))], &f32()).contains("for `qwen2`, but"));
        assert!(refused(&[("adapter.lora.alpha", Metadatum::F32(-1.0))], &f32()).contains("above 0, got -1"));
        assert!(refused(&[("adapter.lora.alpha", text("x"))], &f32()).contains("expected a number, got String"));
        assert!(refused(&[], &f32()[..1]).contains("but no `blk.0.ffn_down.weight.lora_b`"));
        assert!(refused(&[], &f32()[1..]).contains("but no `blk.0.ffn_down.weight.lora_a`"));
        assert!(refused(&[], &[]).contains("holds no tensors"));
        let one = |name: &'static str| vec![(name, quantized(&[1, 32], &[0.0; 32], GgmlDType::F32))];
        assert!(refused(&[], &one("blk.0.ffn_down.weight")).contains("is no tensor of LoRA"));
        assert!(refused(&[], &one("blk.7.ffn_down.weight.lora_a")).contains("changes `blk.7.ffn_down.weight`, which"));
        assert!(refused(&[], &one("token_embd.weight.lora_a")).contains("changes the embeddings"));
        let mut nan = f32();
        nan[0].1 = quantized(&[2, 32], &[f32::NAN; 64], GgmlDType::F32);
        assert!(refused(&[], &nan).contains("holds NaN"));
        let mut wide = f32();
        wide[1].1 = quantized(&[3, 2], &[0.0; 6], GgmlDType::F32);
        assert!(refused(&[], &wide).contains("A is [2, 32] and B [3, 2]"));
    }
}
