//! What rules look at: configuration, tensors by name and shape, files, and the base. Nothing of it is a tensor's value.

use super::names::{TensorKind, TensorName};
use crate::adapter::AdapterConfig;
use crate::weights::{Base, Wrapper, multimodal_name, text_name};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What an adapter is laid out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// PEFT's folder.
    Peft,
    /// A folder that a recipe will write; nothing is on the disk yet.
    Planned,
    /// mlx-lm's folder.
    Mlx,
    /// A GGUF adapter.
    Gguf,
}

/// A tensor as a file's header has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFact {
    /// Its name in the file.
    pub name: String,
    /// The name, taken apart.
    pub parsed: TensorName,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// `F32`, `BF16` and so on, as safetensors writes it.
    pub dtype: String,
}

impl TensorFact {
    /// A tensor of that name, shape and type.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, dtype: impl Into<String>) -> Self {
        let name = name.into();
        Self { parsed: TensorName::parse(&name), name, shape, dtype: dtype.into() }
    }
}

/// What is known of the base.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BaseFacts {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// Tokens in the vocabulary.
    pub vocabulary: Option<usize>,
    /// Layers.
    pub layers: Option<usize>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Where it is the text decoder of a multimodal model: the class that servers load.
    pub multimodal: Option<String>,
    /// Path → outputs and inputs, of every module with a matrix.
    pub modules: BTreeMap<String, (usize, usize)>,
}

impl BaseFacts {
    /// What an opened base says.
    pub fn of(base: &Base) -> Self {
        let number = |key: &str| base.config().get(key).and_then(Value::as_u64).map(|number| number as usize);
        let class = |model: &Wrapper| model.architecture.clone().unwrap_or_else(|| model.model_type.clone());
        let multimodal = base.wrapper().map(class);
        let path = |module: &str| if multimodal.is_some() { multimodal_name(module) } else { module.to_owned() };
        let modules: BTreeMap<String, (usize, usize)> = base
            .tensor_names()
            .filter_map(|name| match base.tensor(name)?.0 {
                &[out, width] => Some((path(name.strip_suffix(".weight")?), (out, width))),
                _ => None,
            })
            .collect();
        let said = base.config().get("tie_word_embeddings").and_then(Value::as_bool);
        Self {
            model_type: base.model_type().to_owned(),
            vocabulary: number("vocab_size"),
            layers: number("num_hidden_layers"),
            tied: said.unwrap_or_else(|| !modules.contains_key("lm_head")),
            modules,
            multimodal,
        }
    }
}

/// All that is known of an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFacts {
    /// How it is laid out.
    pub layout: Layout,
    /// `adapter_config.json` as it stands; of a GGUF adapter, its metadata as far as they are scalars.
    pub config: Map<String, Value>,
    /// The tensors of the adapter's file, or of all its parts.
    pub tensors: Vec<TensorFact>,
    /// The names of the folder's files.
    pub files: BTreeSet<String>,
    /// The files that `tensors` come from.
    pub weight_files: Vec<String>,
    /// `added_tokens.json`: token → id.
    pub added_tokens: BTreeMap<String, u64>,
    /// The base, if it is known.
    pub base: Option<BaseFacts>,
}

impl AdapterFacts {
    /// What a run will write: the configuration as the writer has it, and two tensors for each target module of the base.
    /// `files` are those written beside them.
    pub fn planned(config: &AdapterConfig, target_modules: &BTreeSet<String>, base: &Base, files: &[&str]) -> Self {
        let Value::Object(map) = config.to_json(target_modules) else { return Self::new(Layout::Planned) };
        let base = BaseFacts::of(base);
        let r = config.lora.r;
        // Of a multimodal model the decoder alone.
        let trained = |path: &str| base.multimodal.is_none() || text_name(path).is_some() || path == "lm_head";
        let adapted = |path: &&String| {
            let name = TensorName::parse(&format!("{path}.lora_A.weight"));
            trained(path)
                && name.layer().is_some()
                && target_modules.contains(name.leaf())
                && config.lora.targets(&text_name(path).unwrap_or_else(|| (*path).clone()))
        };
        let pair = |path: &String| {
            let (out, width) = base.modules[path];
            [("lora_A", vec![r, width]), ("lora_B", vec![out, r])]
                .map(|(part, shape)| TensorFact::new(format!("base_model.model.{path}.{part}.weight"), shape, "F32"))
        };
        let tensors = base.modules.keys().filter(adapted).flat_map(pair).collect();
        let weight_files = vec![super::read::TENSORS.to_owned()];
        let files = files.iter().map(|&file| file.to_owned()).chain(weight_files.clone()).collect();
        Self { config: map, tensors, files, weight_files, base: Some(base), ..Self::new(Layout::Planned) }
    }

    /// Facts of which nothing is known but the layout.
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            config: Map::new(),
            tensors: Vec::new(),
            files: BTreeSet::new(),
            weight_files: Vec::new(),
            added_tokens: BTreeMap::new(),
            base: None,
        }
    }

    /// A key of the configuration that is there and not null.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// A key that says something: not null, false, 0, or empty.
    pub fn truthy(&self, key: &str) -> Option<&Value> {
        self.value(key).filter(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Bool(true) => true,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
        })
    }

    /// A key that holds text.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    /// A key that holds a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.value(key).and_then(Value::as_f64)
    }

    /// `r`, where it is a whole number above 0.
    pub fn rank(&self) -> Option<usize> {
        let r = self.value("r").and_then(Value::as_u64).filter(|&r| r > 0)?;
        usize::try_from(r).ok()
    }

    /// The highest rank, those of `rank_pattern` included.
    pub fn highest_rank(&self) -> Option<usize> {
        let patterns = self.value("rank_pattern").and_then(Value::as_object);
        let patterns = patterns.into_iter().flatten().filter_map(|(_, rank)| rank.as_u64()).map(|rank| rank as usize);
        patterns.chain(self.rank()).max()
    }

    /// The tensors of a kind.
    pub fn of_kind(&self, kind: TensorKind) -> impl Iterator<Item = &TensorFact> {
        self.tensors.iter().filter(move |tensor| tensor.parsed.kind == kind)
    }

    /// The last parts of the names of the modules that have matrices.
    pub fn leaves(&self) -> BTreeSet<&str> {
        self.tensors.iter().filter(|tensor| tensor.parsed.is_matrix()).map(|tensor| tensor.parsed.leaf()).collect()
    }

    /// How many layers the base has: as the base says, else up to the last that has a tensor.
    pub fn layers(&self) -> usize {
        let seen = self.tensors.iter().filter_map(|tensor| tensor.parsed.layer()).max();
        let known = self.base.as_ref().and_then(|base| base.layers);
        known.unwrap_or_else(|| seen.map_or(0, |last| last.saturating_add(1)))
    }
}
