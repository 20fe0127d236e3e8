//! An adapter: read from any format that is known, written in PEFT's.

use super::config::AdapterConfig;
use super::format::AdapterFormat;
use super::peft::{BASE_SHA256, CONFIG, TENSORS};
use super::tensors::{read_tensors, write_adapter};
use super::{gguf, mlx, peft};
use crate::error::{Error, Result};
use crate::fs;
use crate::weights::Base;
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// An adapter: its configuration and its tensors under PEFT's names.
#[derive(Debug, Clone)]
pub struct AdapterBundle {
    /// The configuration.
    pub config: AdapterConfig,
    /// `base_model.model.<module>.lora_A.weight` `[r, in]` and `lora_B` `[out, r]`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl AdapterBundle {
    /// The names of the modules that have tensors, such as `model.layers.0.self_attn.q_proj`.
    pub fn modules(&self) -> BTreeSet<String> {
        let module = |name: &String| {
            let name = name.strip_prefix("base_model.model.")?;
            Some(name.rsplitn(3, '.').nth(2)?.to_owned())
        };
        self.tensors.keys().filter_map(module).collect()
    }

    /// Writes PEFT's two files into `folder`, each whole or not at all; the tensors in `dtype`, a floating
    /// type.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, folder: &Path, dtype: DType) -> Result<Vec<PathBuf>> {
        let (config, tensors) = (folder.join(CONFIG), folder.join(TENSORS));
        let mut metadata = vec![("format", "pt")];
        metadata.extend(self.config.base_sha256.as_deref().map(|hash| (BASE_SHA256, hash)));
        fs::write_atomic_with(&tensors, |temporary| {
            let file = File::create(temporary).map_err(Error::io("create", &tensors))?;
            let mut file = BufWriter::new(file);
            write_adapter(&mut file, &self.stored(), dtype, &metadata, &tensors)?;
            file.flush().map_err(Error::io("write", &tensors))
        })?;
        let mut text = serde_json::to_string_pretty(&self.config.to_json(&self.modules()))
            .map_err(|error| Error::invalid(format!("internal: {error}")))?;
        text.push('\n');
        fs::write_atomic(&config, text.as_bytes())?;
        Ok(vec![config, tensors])
    }

    /// Whether the folder's two files hold this adapter already, with the same numbers in `f32`.
    pub fn stands_in(&self, folder: &Path) -> bool {
        let json = std::fs::read(folder.join(CONFIG)).ok();
        let json = json.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
        if json != Some(self.config.to_json(&self.modules())) {
            return false;
        }
        let Ok(there) = read_tensors(&folder.join(TENSORS)) else { return false };
        let numbers = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).ok();
        let same = |(name, tensor): (&String, &Tensor)| {
            there.get(name).is_some_and(|it| it.dims() == tensor.dims() && numbers(it) == numbers(tensor))
        };
        there.len() == self.tensors.len() && self.stored().iter().all(same)
    }

    /// The tensors under the names that files have.
    fn stored(&self) -> BTreeMap<String, Tensor> {
        self.tensors.iter().map(|(name, tensor)| (self.config.stored_name(name), tensor.clone())).collect()
    }

    /// Reads an adapter: PEFT's folder (ours or another's), mlx-lm's, or llama.cpp's GGUF file. It is checked against the
    /// base that it is for. Ranks and alphas of single modules are folded into the matrices.
    ///
    /// # Errors
    /// When a file is missing or damaged, the adapter is of a kind that is not supported (`DoRA`, biases, whole modules), or
    /// it does not fit the base.
    pub fn load(path: &Path, base: &Base) -> Result<Self> {
        match AdapterFormat::of(path)? {
            AdapterFormat::Peft => peft::read(path)?.fit(base),
            AdapterFormat::Mlx => mlx::read(path, Some(base))?.fit(base),
            AdapterFormat::Gguf => gguf::read(path, Some(base))?.fit(base),
        }
    }
}
