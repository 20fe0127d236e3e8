//! A LoRA adapter as a GGUF file, for llama.cpp's `--lora` and Ollama's `ADAPTER`.
//!
//! The file has the names and the row order of the base's own GGUF: `lora_b` of q and k is permuted where the base's weights are.

use super::metadata::file_type;
use super::tensors::{self, Placement};
use super::writer::GgufWriter;
use super::{hub_id, placements};
use crate::adapter::AdapterBundle;
use crate::error::{Error, Result};
use crate::fs;
use crate::weight_type::WeightType;
use crate::weights::{Base, TensorInfo};
use candle_core::quantized::gguf_file::Value;
use candle_core::{DType, Tensor};
use half::f16;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const PREFIX: &str = "base_model.model.";

/// What an adapter does not say of its file.
#[derive(Debug, Clone, Copy)]
pub struct AdapterFacts<'a> {
    /// The adapter's name, for people.
    pub name: &'a str,
    /// `F32` or `F16`.
    pub dtype: WeightType,
}

/// The metadata of an adapter's file. llama.cpp scales by `alpha / r`, whatever PEFT's configuration says of rank-stabilised
/// scaling, so `adapter.lora.alpha` is the adapter's own scale times its rank.
///
/// # Errors
/// When the base's architecture is not written as GGUF.
pub fn adapter_metadata(base: &Base, bundle: &AdapterBundle, facts: &AdapterFacts) -> Result<Vec<(String, Value)>> {
    let text = |text: &str| Value::String(text.into());
    let lora = &bundle.config.lora;
    let mut all: Vec<(String, Value)> = vec![
        ("general.architecture".into(), text(tensors::architecture(base)?.gguf)),
        ("general.type".into(), text("adapter")),
        ("adapter.type".into(), text("lora")),
        ("general.name".into(), text(facts.name)),
    ];
    all.extend(hub_id::base_model(&bundle.config.base_model_name_or_path));
    all.push(("general.file_type".into(), Value::U32(file_type(facts.dtype))));
    all.push(("adapter.lora.alpha".into(), Value::F32((lora.scale() * lora.r as f64) as f32)));
    all.push(("general.quantization_version".into(), Value::U32(2)));
    Ok(all)
}

/// Writes an adapter as a GGUF file, whole or not at all.
///
/// # Errors
/// When a tensor has no partner, no place in the base, another shape than its place, or numbers that the type cannot hold;
/// when the base's architecture is not written as GGUF; and when the disk refuses.
pub fn write_adapter(path: &Path, base: &Base, bundle: &AdapterBundle, facts: &AdapterFacts) -> Result<()> {
    if !matches!(facts.dtype, WeightType::F32 | WeightType::F16) {
        return Err(Error::invalid(format!("an adapter's tensors are written as F32 or F16, not {:?}", facts.dtype)));
    }
    let metadata = adapter_metadata(base, bundle, facts)?;
    let parts = parts(base, bundle)?;
    let info =
        |part: &Part| TensorInfo { name: part.name.clone(), shape: part.tensor.dims().to_vec(), dtype: facts.dtype };
    fs::write_atomic_with(path, |temporary| {
        let out = BufWriter::new(File::create(temporary).map_err(Error::io("create", path))?);
        let mut writer = GgufWriter::new(out, path, &metadata, parts.iter().map(info).collect())?;
        for part in &parts {
            writer.begin(&part.name)?;
            writer.write(&part.bytes(facts.dtype)?)?;
        }
        writer.finish().map(drop)
    })
}

/// One tensor of the file.
struct Part {
    name: String,
    tensor: Tensor,
    /// Of `lora_b`: how the rows go.
    placement: Option<Placement>,
}

/// All tensors in the order of the file, each A before its B: llama.cpp's tools count on that.
fn parts(base: &Base, bundle: &AdapterBundle) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (name, tensor) in &bundle.tensors {
        let Some(module) = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(A).or(name.strip_suffix(B)))
        else {
            return Err(Error::invalid(format!("adapter: `{name}` is not a tensor of LoRA that GGUF can hold"))
                .with_help("an adapter's GGUF file holds `lora_A` and `lora_B` of linear layers only"));
        };
        if name.ends_with(B) {
            if !bundle.tensors.contains_key(&format!("{PREFIX}{module}{A}")) {
                return Err(Error::invalid(format!("adapter: `{name}` has no `lora_A` beside it")));
            }
            continue;
        }
        let b = bundle.tensors.get(&format!("{PREFIX}{module}{B}"));
        let b = b.ok_or_else(|| Error::invalid(format!("adapter: `{name}` has no `lora_B` beside it")))?;
        let weight = format!("{module}.weight");
        check_shapes(base, &weight, tensor, b)?;
        // Where a module is two tensors, both take all of A, and each its rows of B.
        for place in placements(base, &weight)? {
            let rows = b.narrow(0, place.rows.start, place.rows.len())?;
            parts.push(Part { name: format!("{}.lora_a", place.name), tensor: tensor.clone(), placement: None });
            parts.push(Part { name: format!("{}.lora_b", place.name), tensor: rows, placement: Some(place) });
        }
    }
    if parts.is_empty() {
        return Err(Error::invalid("the adapter holds no tensors"));
    }
    Ok(parts)
}

fn check_shapes(base: &Base, weight: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    let Some((shape, _)) = base.tensor(weight) else {
        let help = if weight == "lm_head.weight" {
            "the base shares its head with its embeddings, so GGUF has no place for the adapter of the head; merge it instead"
        } else {
            "the adapter was trained on another base; name that one"
        };
        return Err(
            Error::file(base.path(), format!("has no tensor `{weight}`, which the adapter changes")).with_help(help)
        );
    };
    match (shape, a.dims(), b.dims()) {
        ([out, input], [r, a_in], [b_out, b_r]) if out == b_out && input == a_in && r == b_r => Ok(()),
        _ => Err(Error::file(
            base.path(),
            format!("`{weight}` is {shape:?}, but the adapter's A is {:?} and its B {:?}", a.dims(), b.dims()),
        )
        .with_help("the adapter was trained on another base; name that one")),
    }
}

impl Part {
    fn bytes(&self, dtype: WeightType) -> Result<Vec<u8>> {
        let values = self.tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let held =
            |value: f32| if dtype == WeightType::F16 { f16::from_f32(value).is_finite() } else { value.is_finite() };
        if let Some(value) = values.iter().find(|value| !held(**value)) {
            return Err(Error::invalid(format!("adapter: `{}` holds {value}, which {dtype:?} cannot", self.name)));
        }
        let bytes: Vec<u8> = if dtype == WeightType::F16 {
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
        } else {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        match &self.placement {
            Some(placement) => placement.order(bytes, self.tensor.dims().first().copied().unwrap_or(0)),
            None => Ok(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterConfig;
    use crate::nn::LoraConfig;
    use crate::weights::gguf::{open_adapter, rows};
    use crate::weights::test_support::write_safetensors;
    use candle_core::Device;
    use std::collections::BTreeMap;

    /// A base of the shapes of attention: 9 heads and 3 key heads of 4 numbers, as in `SmolLM2`.
    fn base(folder: &Path, model_type: &str) -> Base {
        let config = format!(
            r#"{{"model_type": "{model_type}", "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36}}"#
        );
        std::fs::write(folder.join("config.json"), config).unwrap();
        let zeros = vec![0.0; 36 * 36];
        let name = |module: &str| format!("model.layers.0.{module}.weight");
        let (q, k, down) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("mlp.down_proj"));
        write_safetensors(
            &folder.join("model.safetensors"),
            &[(&q, &[36, 36], &zeros), (&k, &[12, 36], &zeros[..12 * 36]), (&down, &[36, 20], &zeros[..720])],
        );
        Base::open(folder).unwrap()
    }

    fn counting(rows: usize, columns: usize, scale: f32) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|value| (value as f32 - 7.0) * scale).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn bundle(use_rslora: bool) -> AdapterBundle {
        let name = |module: &str, part: &str| format!("base_model.model.model.layers.0.{module}.lora_{part}.weight");
        let tensors = BTreeMap::from([
            (name("self_attn.q_proj", "A"), counting(2, 36, 0.25)),
            (name("self_attn.q_proj", "B"), counting(36, 2, 0.5)),
            (name("self_attn.k_proj", "A"), counting(2, 36, 1.0)),
            (name("self_attn.k_proj", "B"), counting(12, 2, 0.125)),
            (name("mlp.down_proj", "A"), counting(2, 20, 0.5)),
            (name("mlp.down_proj", "B"), counting(36, 2, 2.0)),
        ]);
        let lora = LoraConfig { r: 2, lora_alpha: 6.0, use_rslora, ..LoraConfig::default() };
        let config =
            AdapterConfig { base_model_name_or_path: "org/small-base".into(), base_sha256: None, nested: false, lora };
        AdapterBundle { config, tensors }
    }

    #[test]
    fn an_adapter_goes_to_gguf_and_back_with_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        for (model_type, dtype) in [
            ("llama", WeightType::F32),
            ("llama", WeightType::F16),
            ("qwen2", WeightType::F32),
            ("qwen3", WeightType::F16),
        ] {
            let base = base(folder.path(), model_type);
            let bundle = bundle(false);
            write_adapter(&path, &base, &bundle, &AdapterFacts { name: "small", dtype }).unwrap();
            let AdapterBundle { config, tensors } = AdapterBundle::load(&path, &base).unwrap();
            assert_eq!(config.base_model_name_or_path, "org/small-base");
            assert_eq!((config.lora.r, config.lora.lora_alpha, config.lora.use_rslora), (2, 6.0, false));
            assert_eq!(tensors.keys().collect::<Vec<_>>(), bundle.tensors.keys().collect::<Vec<_>>());
            for (name, tensor) in &tensors {
                assert_eq!(tensor.to_vec2::<f32>().unwrap(), bundle.tensors[name].to_vec2::<f32>().unwrap(), "{name}");
            }
            let again = AdapterBundle { config, tensors };
            let second = folder.path().join("b.gguf");
            write_adapter(&second, &base, &again, &AdapterFacts { name: "small", dtype }).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&second).unwrap());
        }
    }

    #[test]
    fn rows_of_b_are_permuted_as_the_bases_and_a_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let write = |model_type: &str| {
            let base = base(folder.path(), model_type);
            write_adapter(&path, &base, &bundle(false), &AdapterFacts { name: "n", dtype: WeightType::F32 }).unwrap();
            open_adapter(&path).unwrap()
        };
        let bytes = |tensor: &Tensor| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        };
        let (q, k) = (bytes(&counting(36, 2, 0.5)), bytes(&counting(12, 2, 0.125)));
        let file = write("llama");
        assert_eq!(file.read("blk.0.attn_q.weight.lora_b").unwrap().bytes, rows::to_gguf(&q, 36, 9).unwrap());
        assert_eq!(file.read("blk.0.attn_k.weight.lora_b").unwrap().bytes, rows::to_gguf(&k, 12, 3).unwrap());
        assert_eq!(file.read("blk.0.attn_q.weight.lora_a").unwrap().bytes, bytes(&counting(2, 36, 0.25)));
        assert_eq!(file.tensor("blk.0.ffn_down.weight.lora_a").unwrap().0, [2, 20]);
        assert_eq!(file.tensor("blk.0.ffn_down.weight.lora_b").unwrap().0, [36, 2]);
        assert_eq!(write("qwen2").read("blk.0.attn_q.weight.lora_b").unwrap().bytes, q);
    }

    #[test]
    fn rank_stabilised_scaling_is_in_alpha() {
        let folder = tempfile::tempdir().unwrap();
        let base = base(folder.path(), "llama");
        let facts = AdapterFacts { name: "n", dtype: WeightType::F16 };
        let all = adapter_metadata(&base, &bundle(true), &facts).unwrap();
        let value = |key: &str| format!("{:?}", all.iter().find(|(name, _)| name == key).unwrap().1);
        assert_eq!(value("adapter.lora.alpha"), format!("F32({:?})", 6.0 * 2f32.sqrt()));
        assert_eq!(value("general.base_model.0.repo_url"), "String(\"https://huggingface.co/org/small-base\")");
        assert_eq!(value("general.file_type"), "U32(1)");
    }

    #[test]
    fn what_has_no_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        let base = base(folder.path(), "llama");
        let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), dtype| {
            let mut bundle = bundle(false);
            change(&mut bundle.tensors);
            let error = write_adapter(&path, &base, &bundle, &AdapterFacts { name: "n", dtype }).unwrap_err();
            assert!(!path.exists());
            format!("{error} | {}", error.help().unwrap_or_default())
        };
        let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
        let head = |part: &str| format!("base_model.model.lm_head.lora_{part}.weight");
        let f32 = WeightType::F32;
        assert!(refused(&|all| drop(all.remove(q)), f32).contains("has no `lora_B` beside it"));
        let narrow = |all: &mut BTreeMap<_, _>| drop(all.insert(q.to_string(), counting(35, 2, 1.0)));
        assert!(refused(&narrow, f32).contains("is [36, 36], but the adapter's A is [2, 36] and its B [35, 2]"));
        let with_head = |all: &mut BTreeMap<_, _>| {
            all.insert(head("A"), counting(2, 36, 1.0));
            all.insert(head("B"), counting(10, 2, 1.0));
        };
        assert!(refused(&with_head, f32).contains("shares its head"));
        let large = |all: &mut BTreeMap<_, _>| drop(all.insert(q.to_string(), counting(36, 2, 1e4)));
        assert!(refused(&large, WeightType::F16).contains("which F16 cannot"));
        assert!(
            refused(&|all| drop(all.insert("x".into(), counting(1, 1, 1.0))), f32)
                .contains("`x` is not a tensor of LoRA")
        );
        assert!(refused(&BTreeMap::clear, f32).contains("no tensors"));
        assert!(refused(&|_| {}, WeightType::Q8_0).contains("F32 or F16"));
    }
}
