//! Reading a LoRA adapter from a GGUF file, as llama.cpp's `convert_lora_to_gguf.py` or an export wrote it.

use super::halves::Halves;
use super::patterns::Pattern;
use super::read::RawAdapter;
use crate::error::{Error, Result};
use crate::nn::peft_name;
use crate::ops::dequantize::dequantize;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::gguf::{AdapterFile, open_adapter, rows};
use crate::weights::{Base, RawTensor};
use candle_core::{Device, Tensor};
use serde_json::Value;
use std::path::Path;

const HUB: &str = "https://huggingface.co/";

/// Reads what the file holds, under PEFT's names. With the base, rows of q and k come into Hugging Face's order; without it
/// they stay in llama.cpp's, for the file does not say of how many heads they are.
///
/// llama.cpp scales each module by `alpha / r`, and by 1 where alpha is missing or 0.
pub(super) fn read(path: &Path, base: Option<&Base>) -> Result<RawAdapter> {
    let file = open_adapter(path)?;
    let architecture = architecture(&file, base)?;
    let alpha = alpha(&file)?;
    if let Some(error) = file.unread() {
        return Err(error);
    }
    let mut adapter = RawAdapter { file: path.to_owned(), base_model: base_id(&file)?, ..RawAdapter::default() };
    let mut halves = Halves::default();
    for name in file.tensor_names() {
        if name.ends_with("_norm.weight") {
            tracing::warn!("{}: `{name}` is left out, as llama.cpp leaves it out", path.display());
            continue;
        }
        let part = [(".lora_a", "lora_A"), (".lora_b", "lora_B")]
            .into_iter()
            .find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, part)));
        let Some((weight, part)) = part else {
            return Err(Error::file(
                path,
                format!("`{name}` is not a tensor of LoRA: it ends in neither `.lora_a` nor `.lora_b`"),
            ));
        };
        if weight == "token_embd.weight" {
            return Err(Error::file(path, "changes the embeddings, which is not supported"));
        }
        if let Some((whole, half)) = architecture.half_of(weight) {
            halves.add(whole.strip_suffix(".weight").unwrap_or(&whole), half, part, tensor(file.read(name)?, None)?);
            continue;
        }
        let known = architecture.hugging_face_name(weight);
        let Some(module) = known.as_deref().and_then(|name| name.strip_suffix(".weight")) else {
            return Err(Error::file(path, format!("changes `{weight}`, which a {} has not", architecture.model_type)));
        };
        let raw = file.read(name)?;
        let r = raw.shape.get(usize::from(part == "lora_B")).copied().unwrap_or(0);
        adapter.r = adapter.r.max(r);
        if part == "lora_A" {
            adapter.rank_pattern.push((Pattern::exactly(module), r));
            if alpha.is_none() {
                adapter.alpha_pattern.push((Pattern::exactly(module), r as f64));
            }
        }
        let heads = base.filter(|_| part == "lora_B" && architecture.is_permuted(&format!("{module}.weight")));
        let tensor = tensor(raw, heads.map(|base| heads_of(base, module)))?;
        adapter.tensors.insert(peft_name(module, part), tensor);
    }
    halves.join(path, alpha, &mut adapter)?;
    adapter.lora_alpha = alpha.unwrap_or(adapter.r as f64);
    // Of an adapter whose modules are alike, the configuration alone says the scale.
    if adapter.rank_pattern.iter().all(|(_, r)| *r == adapter.r) {
        adapter.rank_pattern.clear();
        adapter.alpha_pattern.clear();
    }
    Ok(adapter)
}

/// The row of the architecture, which must be the base's.
fn architecture(file: &AdapterFile, base: Option<&Base>) -> Result<&'static Architecture> {
    let own = file.metadata().string("general.architecture")?.unwrap_or("none");
    if let Some(base) = base {
        return Architecture::of_base(base).filter(|row| row.gguf == own).ok_or_else(|| {
            let (base, kind) = (base.path().display(), base.model_type());
            let message = format!("is an adapter for `{own}`, but {base} is of `{kind}`");
            Error::file(file.path(), message).with_help("name the base that the adapter was trained on")
        });
    }
    Architecture::of_gguf(own).ok_or_else(|| {
        Error::file(file.path(), format!("is an adapter for `{own}`, an architecture that is not known here"))
    })
}

fn alpha(file: &AdapterFile) -> Result<Option<f64>> {
    match file.metadata().float("adapter.lora.alpha")? {
        None | Some(0.0) => Ok(None),
        Some(alpha) if alpha.is_finite() && alpha > 0.0 => Ok(Some(alpha)),
        Some(alpha) => Err(Error::file(
            file.path(),
            format!("metadata `adapter.lora.alpha`: expected a number above 0, got {alpha}"),
        )),
    }
}

/// The Hub id that the file names as its base.
fn base_id(file: &AdapterFile) -> Result<String> {
    let url = file.metadata().string("general.base_model.0.repo_url")?;
    let id = url.and_then(|url| url.strip_prefix(HUB)).filter(|id| id.split('/').count() == 2);
    Ok(id.unwrap_or_default().to_owned())
}

/// The numbers of a tensor; of rows in llama.cpp's order brought into Hugging Face's. Rows that are not of so many heads stay:
/// their shape is not the base's, which is found elsewhere.
fn tensor(raw: RawTensor, heads: Option<usize>) -> Result<Tensor> {
    let RawTensor { shape, dtype, bytes } = raw;
    let rows = shape.first().copied().unwrap_or(0);
    // A row is whole blocks, so the order of rows is one of bytes.
    let ordered = heads.and_then(|heads| rows::to_hugging_face(&bytes, rows, heads)).unwrap_or(bytes);
    let mut values = vec![0f32; shape.iter().product()];
    dequantize(dtype, &ordered, &mut values);
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn heads_of(base: &Base, module: &str) -> usize {
    let number = |key: &str| base.config().get(key).and_then(Value::as_u64);
    let queries = number("num_attention_heads");
    let heads = if module.ends_with("k_proj") { number("num_key_value_heads").or(queries) } else { queries };
    heads.unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterBundle;
    use crate::nn::TargetModules;
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
                let AdapterBundle { config, tensors: read } = AdapterBundle::load(&path, &base).unwrap();
                assert_eq!((config.lora.r, config.lora.lora_alpha), (2, expected));
                assert_eq!(config.base_model_name_or_path, "");
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
            AdapterBundle::load(&path, &base).unwrap_err().to_string()
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
        assert!(refused(&[], &f32()[..1]).contains("down_proj.lora_B.weight: expected [4, 2], missing"));
        assert!(refused(&[], &f32()[1..]).contains("down_proj.lora_A.weight"));
        assert!(refused(&[], &[]).contains("holds no tensor"));
        let one = |name: &'static str| vec![(name, quantized(&[1, 32], &[0.0; 32], GgmlDType::F32))];
        assert!(refused(&[], &one("blk.0.ffn_down.weight")).contains("is not a tensor of LoRA"));
        assert!(refused(&[], &one("blk.7.ffn_down.weight.lora_a")).contains("model.layers.7.mlp.down_proj"));
        assert!(refused(&[], &one("token_embd.weight.lora_a")).contains("changes the embeddings"));
        let mut nan = f32();
        nan[0].1 = quantized(&[2, 32], &[f32::NAN; 64], GgmlDType::F32);
        assert!(refused(&[], &nan).contains("not finite"));
        let mut wide = f32();
        wide[1].1 = quantized(&[3, 2], &[0.0; 6], GgmlDType::F32);
        assert!(refused(&[], &wide).contains("expected [4, 2], got [3, 2]"));
    }
}
