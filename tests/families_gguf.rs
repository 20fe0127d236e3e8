//! The tiny models of `tests/golden/families` against what llama.cpp's converters make of them (`tests/parity/families.py`,
//! `tests/parity/family_adapters.py`): opened they are the model of the folder, and written by us they are the same file.

use crate::support::workplace::Workplace;
use crate::support::{golden, json};
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use equipoise::adapter::AdapterBundle;
use equipoise::export::gguf::{AdapterFacts, hyperparameters, is_left_out, write_adapter, write_base};
use equipoise::export::{FloatType, GgufType};
use equipoise::ops::dequantize::dequantize;
use equipoise::weight_type::WeightType;
use equipoise::weights::{Base, RawTensor};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The families that llama.cpp has an architecture for, with what its file cannot say of the model.
const FAMILIES: &[(&str, &[&str])] = &[
    ("qwen2", &[]),
    ("qwen3", &[]),
    ("qwen3_yarn", &[]),
    ("qwen3_vl", &["model_type"]),
    ("mistral_window", &["model_type", "sliding_window"]),
    ("nemo", &["model_type"]),
    ("ministral3", &[]),
    ("smollm3", &[]),
    ("granite", &[]),
    ("granitemoehybrid", &["model_type"]),
    ("gemma2", &["query_pre_attn_scalar"]),
    ("gemma3", &["query_pre_attn_scalar"]),
    ("gemma3_text", &[]),
    ("olmo2", &[]),
    ("olmo3", &[]),
    ("exaone4", &[]),
    ("phi3", &[]),
    ("phi3_longrope", &[]),
    ("glm4", &[]),
    ("seed_oss", &[]),
];

/// Keys that say what a model computes. What is not in a file is the class's own, [`defaults`].
const KEYS: &[&str] = &[
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "sliding_window",
    "layer_types",
    "partial_rotary_factor",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "hidden_activation",
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "no_rope_layers",
    "attention_out_bias",
    "original_max_position_embeddings",
];

fn folder(name: &str) -> PathBuf {
    golden("families").join(name)
}

fn open(name: &str) -> (Base, Base) {
    (Base::open(&folder(name)).unwrap(), Base::open(&folder(name).join("model.gguf")).unwrap())
}

/// A configuration in the form of older versions, one key each; rotation of layers with a window under its own keys.
fn plain(config: &Map<String, Json>) -> Map<String, Json> {
    let mut plain = config.clone();
    plain.retain(|_, value| !value.is_null());
    let dict = ["rope_parameters", "rope_scaling"].iter().find_map(|key| plain.get(*key)?.as_object().cloned());
    let mut rope = dict.unwrap_or_default();
    if let (Some(full), Some(sliding)) = (rope.get("full_attention").cloned(), rope.get("sliding_attention").cloned()) {
        rope.clone_from(full.as_object().unwrap());
        if sliding["rope_theta"] != rope["rope_theta"] {
            plain.insert("rope_local_base_freq".into(), sliding["rope_theta"].clone());
        }
    }
    for key in ["rope_theta", "partial_rotary_factor", "original_max_position_embeddings"] {
        if let Some(value) = rope.remove(key) {
            plain.entry(key).or_insert(value);
        }
    }
    let kind = rope.remove("rope_type").or_else(|| rope.remove("type")).unwrap_or(json!("default"));
    for key in ["type", "mrope_section", "mrope_interleaved", "max_position_embeddings"] {
        rope.remove(key);
    }
    rope.insert("kind".into(), kind);
    plain.insert("rope".into(), Json::Object(rope));
    let layers = plain["num_hidden_layers"].as_u64().unwrap();
    let period = plain.get("sliding_window_pattern").and_then(Json::as_u64);
    if let Some(period) = period.filter(|_| !plain.contains_key("layer_types")) {
        let kinds = (1..=layers).map(|layer| if layer % period == 0 { "full_attention" } else { "sliding_attention" });
        plain.insert("layer_types".into(), kinds.collect());
    }
    plain
}

/// What a family's class takes where the file says nothing, and what stands for a folder's own way of saying it.
fn defaults(model_type: &str, config: &mut Map<String, Json>) {
    let number = |config: &Map<String, Json>, key: &str| config[key].as_u64().unwrap();
    let gemma3 = [("num_attention_heads", 8), ("num_key_value_heads", 4), ("max_position_embeddings", 131_072)];
    if model_type.starts_with("gemma3") {
        for (key, value) in gemma3 {
            config.entry(key).or_insert(json!(value));
        }
        config.entry("query_pre_attn_scalar").or_insert(json!(256));
        config.entry("rms_norm_eps").or_insert(json!(1e-6));
        config.entry("hidden_activation").or_insert(json!("gelu_pytorch_tanh"));
        config.entry("rope_theta").or_insert(json!(1e6));
        config.entry("rope_local_base_freq").or_insert(json!(1e4));
        let layers = number(config, "num_hidden_layers");
        let kinds = (1..=layers).map(|layer| if layer % 6 == 0 { "full_attention" } else { "sliding_attention" });
        config.entry("layer_types").or_insert(kinds.collect());
    }
    let width = number(config, "hidden_size") / number(config, "num_attention_heads");
    config.entry("head_dim").or_insert(json!(width));
    let gemma = model_type.starts_with("gemma");
    config.entry("tie_word_embeddings").or_insert(json!(gemma));
    let biased = ["qwen2", "glm4", "seed_oss"].contains(&model_type);
    config.entry("attention_bias").or_insert(json!(biased));
    let full: Json = (0..number(config, "num_hidden_layers")).map(|_| "full_attention").collect();
    if model_type == "exaone4" {
        config.entry("layer_types").or_insert(full);
    } else if !gemma && model_type != "olmo3" {
        // All layers alike.
        config.remove("layer_types");
    }
    if config.get("use_sliding_window") == Some(&json!(false)) {
        config.remove("sliding_window");
    }
    if let Some(width) = config.get("shared_intermediate_size").cloned() {
        config.insert("intermediate_size".into(), width);
    }
    if config.get("partial_rotary_factor") == Some(&json!(1.0)) {
        config.remove("partial_rotary_factor");
    }
    if model_type != "phi3" {
        config.remove("original_max_position_embeddings");
    }
}

/// Whether two values are the same, numbers as f32 has them.
fn same(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-6 * b.abs()
        }
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| same(value, other)))
        }
        _ => a == b,
    }
}

#[test]
fn files_of_the_converter_say_what_the_folders_say() {
    for (name, unsaid) in FAMILIES {
        let (of_folder, of_file) = open(name);
        let (mut expected, mut got) = (plain(of_folder.config()), plain(of_file.config()));
        defaults(of_folder.model_type(), &mut expected);
        defaults(of_folder.model_type(), &mut got);
        for key in
            KEYS.iter().filter(|key| !unsaid.contains(key)).chain(&["rope", "rope_theta", "rope_local_base_freq"])
        {
            let (expected, got) = (expected.get(*key), got.get(*key));
            let equal = match (expected, got) {
                (Some(expected), Some(got)) => same(got, expected),
                (None, None) => true,
                // Of layers without a window nothing depends on it.
                (None, Some(_)) => *key == "rope_local_base_freq",
                (Some(_), None) => false,
            };
            assert!(equal, "{name}: {key}: {got:?}, but the folder says {expected:?}");
        }
        let ones = of_file.config().get("norms_include_one").is_some();
        assert_eq!(ones, name.starts_with("gemma"), "{name}");
    }
    let kind = |name: &str| open(name).1.model_type().to_owned();
    assert_eq!(
        ["qwen3_vl", "nemo", "granitemoehybrid", "gemma3"].map(kind),
        ["qwen3", "llama", "granite", "gemma3_text"]
    );
}

fn numbers(raw: &RawTensor) -> Vec<f32> {
    let mut numbers = vec![0.0; raw.shape.iter().product()];
    dequantize(raw.dtype, &raw.bytes, &mut numbers);
    numbers
}

/// The tensor of a folder as the names of its family have it, where the file is read as another.
fn of_family(base: &Base, name: &str) -> Vec<f32> {
    if base.tensor(name).is_some() {
        return numbers(&base.read(name).unwrap());
    }
    let other = |to: &str, from: &str| name.contains(from).then(|| name.replace(from, to));
    if let Some(down) = other("shared_mlp.output_linear", "mlp.down_proj") {
        return numbers(&base.read(&down).unwrap());
    }
    let (whole, upper) = match other("shared_mlp.input_linear", "mlp.gate_proj") {
        Some(whole) => (whole, true),
        None => (other("shared_mlp.input_linear", "mlp.up_proj").unwrap(), false),
    };
    let both = numbers(&base.read(&whole).unwrap());
    if upper { both[..both.len() / 2].to_vec() } else { both[both.len() / 2..].to_vec() }
}

#[test]
fn files_of_the_converter_hold_the_tensors_of_the_folders() {
    for (name, _) in FAMILIES {
        let (of_folder, of_file) = open(name);
        let shift = if name.starts_with("gemma") { 1.0 } else { 0.0 };
        let mut seen = 0;
        for tensor in of_file.tensor_names().filter(|tensor| !tensor.starts_with("rope_")) {
            let mut expected = of_family(&of_folder, tensor);
            if tensor.ends_with("norm.weight") {
                for value in &mut expected {
                    *value += shift;
                }
            }
            assert!(numbers(&of_file.read(tensor).unwrap()) == expected, "{name}: {tensor}");
            seen += expected.len();
        }
        let mut all: Vec<&str> = of_folder.tensor_names().filter(|tensor| !is_left_out(&of_folder, tensor)).collect();
        if of_file.tensor("lm_head.weight").is_none() {
            all.retain(|tensor| *tensor != "lm_head.weight");
        }
        let size = |tensor: &&str| of_folder.tensor(tensor).unwrap().0.iter().product::<usize>();
        assert_eq!(seen, all.iter().map(size).sum::<usize>(), "{name}");
    }
}

/// A file's metadata under the architecture's name.
fn own_keys(content: &Content) -> BTreeMap<String, String> {
    let architecture = content.metadata["general.architecture"].to_string().unwrap().clone();
    let own = content.metadata.iter().filter(|(key, _)| key.starts_with(&format!("{architecture}.")));
    own.map(|(key, value)| (key.clone(), format!("{value:?}"))).collect()
}

/// Shape, type and the hash of the bytes of each tensor.
type Tensors = BTreeMap<String, (Vec<usize>, GgmlDType, String)>;

fn contents(path: &Path) -> (Content, Tensors) {
    let mut file = File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let describe = |name: &String| {
        let tensor = content.tensor(&mut File::open(path).unwrap(), name, &Device::Cpu).unwrap();
        let hash = format!("{:x}", Sha256::digest(tensor.data().unwrap()));
        (name.clone(), (tensor.shape().dims().to_vec(), tensor.dtype(), hash))
    };
    let tensors = content.tensor_infos.keys().map(describe).collect();
    (content, tensors)
}

/// What the converter writes of Granite 4 though nothing of it is there: experts and layers of state space.
const NOT_OURS: &[&str] = &["expert", "ssm"];

/// transformers' classes have these, and a runtime takes them from the file alone.
#[test]
fn what_config_json_leaves_out_is_written_as_the_class_has_it() {
    for (family, positions, epsilon, theta) in
        [("qwen3", 32768, 1e-6, 1e4), ("glm4", 131_072, 1.5625e-7, 1e4), ("smollm3", 32768, 1e-6, 2e6)]
    {
        let place = Workplace::new();
        let path = place.copy_family(family).join("config.json");
        let mut config = json(&path);
        let keys = config.as_object_mut().unwrap();
        for key in ["max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling"] {
            keys.remove(key);
        }
        std::fs::write(&path, config.to_string()).unwrap();
        let written: BTreeMap<_, _> =
            hyperparameters(&Base::open(&place.path("base")).unwrap()).unwrap().into_iter().collect();
        for (key, expected) in [
            ("context_length", Value::U32(positions)),
            ("attention.layer_norm_rms_epsilon", Value::F32(epsilon)),
            ("rope.freq_base", Value::F32(theta)),
        ] {
            assert_eq!(
                format!("{:?}", written[&format!("{family}.{key}")]),
                format!("{expected:?}"),
                "{family}: {key}"
            );
        }
    }
}

#[test]
fn folders_become_the_files_of_the_converter() {
    let target = tempfile::tempdir().unwrap();
    for (name, _) in FAMILIES {
        let path = target.path().join(format!("{name}.gguf"));
        let (base, _) = open(name);
        let mut metadata = hyperparameters(&base).unwrap();
        let architecture = metadata[0].0.split_once('.').unwrap().0.to_owned();
        metadata.push(("general.architecture".into(), Value::String(architecture.clone())));
        write_base(&path, &base, &metadata, GgufType::Float(FloatType::BF16)).unwrap();
        let (ours, our_tensors) = contents(&path);
        let (theirs, their_tensors) = contents(&folder(name).join("model.gguf"));
        assert_eq!(our_tensors, their_tensors, "{name}");
        let (mut ours, mut theirs) = (own_keys(&ours), own_keys(&theirs));
        theirs.retain(|key, _| !NOT_OURS.contains(&key.split('.').nth(1).unwrap().split('_').next().unwrap()));
        // One number for all layers where theirs has it for each.
        let kv = format!("{architecture}.attention.head_count_kv");
        if theirs[&kv].starts_with("Array") {
            theirs.insert(kv.clone(), ours[&kv].clone());
        }
        // What both take where nothing is said; and the type of scaling where the configuration has it under its old name, `type`.
        let more = [("gemma2.rope.freq_base", "F32(10000.0)"), ("phi3.rope.scaling.type", "String(\"longrope\")")];
        ours.retain(|key, value| theirs.contains_key(key) || !more.contains(&(key.as_str(), value.as_str())));
        assert_eq!(ours, theirs, "{name}");
    }
}

/// Our own file of a file is that file.
#[test]
fn files_stay_what_they_are_when_they_are_written_again() {
    let target = tempfile::tempdir().unwrap();
    for (name, _) in FAMILIES {
        let (_, base) = open(name);
        let path = target.path().join("again.gguf");
        let metadata = base.gguf_metadata().unwrap().values().to_vec();
        write_base(&path, &base, &metadata, GgufType::Float(FloatType::BF16)).unwrap();
        assert_eq!(contents(&path).1, contents(&folder(name).join("model.gguf")).1, "{name}");
    }
}

fn sorted(bundle: &AdapterBundle) -> BTreeMap<&String, Vec<Vec<f32>>> {
    bundle.tensors.iter().map(|(name, tensor)| (name, tensor.to_vec2().unwrap())).collect()
}

/// Adapters go to the file that llama.cpp's converter makes, and come back as they were.
#[test]
fn adapters_are_those_of_the_converter() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("adapter.gguf");
    let expected = json(&golden("export/family_adapters.json"));
    for (name, _) in FAMILIES {
        let (base, _) = open(name);
        let bundle = AdapterBundle::load(&folder(name).join("adapter"), &base).unwrap();
        write_adapter(&path, &base, &bundle, &AdapterFacts { name, dtype: WeightType::F32 }).unwrap();
        let (content, tensors) = contents(&path);
        let described: Map<String, Json> = tensors
            .into_iter()
            .map(|(tensor, (shape, _, sha256))| (tensor, json!({"shape": shape, "sha256": sha256})))
            .collect();
        let described = json!({
            "architecture": content.metadata["general.architecture"].to_string().unwrap(),
            "tensors": described,
        });
        // The converter writes Ministral 3 itself in the place of an adapter.
        if *name != "ministral3" {
            assert_eq!(described, expected["families"][name], "{name}");
        }
        let again = AdapterBundle::load(&path, &base).unwrap();
        assert_eq!(sorted(&again), sorted(&bundle), "{name}");
        assert_eq!((again.config.lora.r, again.config.lora.lora_alpha), (2, 4.0), "{name}");
    }
}

/// Rows of q, k and v one after the other, as llama.cpp's converter writes them when it is asked to.
#[test]
fn q_k_and_v_may_be_one_tensor() {
    let target = tempfile::tempdir().unwrap();
    for name in ["qwen2", "smollm3"] {
        let path = target.path().join("fused.gguf");
        let plain = folder(name).join("model.gguf");
        let mut file = File::open(&plain).unwrap();
        let content = Content::read(&mut file).unwrap();
        let read = |name: &str| content.tensor(&mut File::open(&plain).unwrap(), name, &Device::Cpu).unwrap();
        let mut tensors = Vec::new();
        for tensor in content.tensor_infos.keys() {
            let Some((block, suffix)) = tensor.split_once(".attn_q.") else {
                if ![".attn_k.", ".attn_v."].iter().any(|part| tensor.contains(part)) {
                    tensors.push((tensor.clone(), read(tensor)));
                }
                continue;
            };
            let parts = ["q", "k", "v"]
                .map(|part| read(&format!("{block}.attn_{part}.{suffix}")).dequantize(&Device::Cpu).unwrap());
            let fused = Tensor::cat(&parts.each_ref(), 0).unwrap();
            let dtype = read(tensor).dtype();
            let fused = candle_core::quantized::QTensor::quantize(&fused, dtype).unwrap();
            tensors.push((format!("{block}.attn_qkv.{suffix}"), fused));
        }
        let metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        candle_core::quantized::gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        let (fused, plain) = (Base::open(&path).unwrap(), Base::open(&plain).unwrap());
        assert_eq!(fused.config(), plain.config());
        assert!(fused.tensor_names().eq(plain.tensor_names()));
        for tensor in plain.tensor_names() {
            assert_eq!(fused.read(tensor).unwrap(), plain.read(tensor).unwrap(), "{name}: {tensor}");
        }
        let q = "model.layers.1.self_attn.k_proj.weight";
        assert_eq!(fused.read_rows(q, 3..9).unwrap(), plain.read_rows(q, 3..9).unwrap());
    }
}
