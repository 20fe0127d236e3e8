//! The trainable tensors, under PEFT's names.

use crate::device::Gpu;
use crate::error::{Error, Result, ShapeMismatch};
use crate::ops::cuda::AdapterMemory;
use crate::rng::{Rng, key, name_key};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The one ordered map from PEFT tensor name (`base_model.model.<module>.lora_A.weight`) to variable. Optimizer, checkpoint
/// and adapter file all read it, in the order of the names.
///
/// On a GPU the numbers that are trained are in its memory; the variables are what was last assigned or downloaded.
#[derive(Debug, Clone, Default)]
pub struct AdapterParams {
    variables: BTreeMap<String, Var>,
    /// The names in the order in which they were added.
    order: Vec<String>,
    memory: Option<Arc<AdapterMemory>>,
}

/// PEFT's name of a module's tensor: `part` is `lora_A` or `lora_B`.
pub fn peft_name(module: &str, part: &str) -> String {
    format!("base_model.model.{module}.{part}.weight")
}

/// PEFT's names of a module's `A` and `B`.
pub(super) fn peft_names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|part| peft_name(module, part))
}

/// `A` of a module as training begins, `[r, inputs]`: uniform in `±1/√inputs`, as PEFT has it, a function of seed and module.
///
/// # Errors
/// When the memory is full.
pub(super) fn initial_a(seed: u64, module: &str, (r, inputs): (usize, usize)) -> Result<Tensor> {
    let bound = 1.0 / (inputs as f64).sqrt();
    let mut rng = Rng::new(key(seed, &[name_key("lora_A"), name_key(module)]));
    let a: Vec<f32> = (0..r * inputs).map(|_| (rng.uniform().mul_add(2.0, -1.0) * bound) as f32).collect();
    Ok(Tensor::from_vec(a, (r, inputs), &Device::Cpu)?)
}

impl AdapterParams {
    /// Begins anew, as a model that is built with this seed does: `A` at random, `B` zero.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn initialize(&self, seed: u64) -> Result<()> {
        for (name, variable) in self.iter() {
            let module = name.strip_prefix("base_model.model.").and_then(|name| name.strip_suffix(".lora_A.weight"));
            match module {
                Some(module) => variable.set(&initial_a(seed, module, variable.dims2()?)?)?,
                None => variable.set(&variable.zeros_like()?)?,
            }
        }
        self.upload()
    }

    /// Adds a variable.
    pub fn insert(&mut self, name: String, variable: Var) {
        self.order.push(name.clone());
        self.variables.insert(name, variable);
    }

    /// Puts the tensors into a GPU's memory: all `A` before all `B`, each in the order in which they were added, so that those of
    /// modules with one input follow each other.
    ///
    /// # Errors
    /// When the memory is full, or a tensor is no matrix.
    pub fn move_to(&mut self, gpu: &Gpu) -> Result<()> {
        let (a, b): (Vec<_>, Vec<_>) = self.order.iter().partition(|name| name.contains("lora_A"));
        let mut shapes = Vec::with_capacity(self.order.len());
        for name in a.into_iter().chain(b) {
            if let Some(variable) = self.variables.get(name) {
                shapes.push((name.as_str(), variable.dims2()?));
            }
        }
        self.memory = Some(Arc::new(AdapterMemory::new(gpu, shapes.into_iter())?));
        self.upload()
    }

    /// The adapter in a GPU's memory, if it is on one.
    pub const fn memory(&self) -> Option<&Arc<AdapterMemory>> {
        self.memory.as_ref()
    }

    /// Copies the variables to the GPU, if the adapter is on one.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn upload(&self) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        Ok(memory.set(|name| match self.variables.get(name) {
            Some(variable) => variable.flatten_all()?.to_vec1(),
            None => candle_core::bail!("internal: no tensor `{name}`"),
        })?)
    }

    /// Copies the tensors from the GPU to the variables, if the adapter is on one.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn download(&self) -> Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        for (name, numbers) in memory.get()? {
            if let Some(variable) = self.variables.get(&name) {
                variable.set(&Tensor::from_vec(numbers, variable.shape(), &Device::Cpu)?)?;
            }
        }
        Ok(())
    }

    /// The variables in the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Var)> {
        self.variables.iter().map(|(name, variable)| (name.as_str(), variable))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.variables.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty()
    }

    /// How many numbers all tensors hold.
    pub fn parameters(&self) -> usize {
        self.variables.values().map(|variable| variable.elem_count()).sum()
    }

    /// The variable of this name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.variables.get(name)
    }

    /// Sets every variable from `tensors`, which must hold these names and no other, in these shapes.
    ///
    /// # Errors
    /// [`Error::Shapes`] lists all that do not fit; then nothing was set. [`Error::File`] for tensors that nobody asked for.
    pub fn assign(&self, tensors: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        let mismatches: Vec<ShapeMismatch> = self
            .iter()
            .filter(|(name, variable)| tensors.get(*name).is_none_or(|tensor| tensor.dims() != variable.dims()))
            .map(|(name, variable)| ShapeMismatch {
                tensor: name.into(),
                expected: variable.dims().to_vec(),
                got: tensors.get(name).map(|tensor| tensor.dims().to_vec()),
            })
            .collect();
        if !mismatches.is_empty() {
            return Err(Error::Shapes { path: path.into(), mismatches });
        }
        if let Some(name) = tensors.keys().find(|name| !self.variables.contains_key(*name)) {
            return Err(Error::file(path, format!("holds the tensor `{name}`, which fits no target module"))
                .with_help("is the adapter for another base, or are its target modules not those of the recipe?"));
        }
        for (name, variable) in self.iter() {
            variable.set(&tensors[name].to_dtype(DType::F32)?)?;
        }
        self.upload()
    }

    /// The tensors as they are, to be written before anything changes them: they share the variables' memory.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn as_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.download()?;
        Ok(self.iter().map(|(name, variable)| (name.to_owned(), variable.as_tensor().clone())).collect())
    }

    /// A copy of the tensors on the CPU.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn to_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.download()?;
        self.iter().map(|(name, variable)| Ok((name.to_owned(), variable.copy()?))).collect()
    }
}
