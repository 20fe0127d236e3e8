//! From what a file holds to an adapter that fits its base: ranks, names and shapes are checked, and what differs from module
//! to module is folded into the matrices.

use super::bundle::AdapterBundle;
use super::config::{AdapterConfig, Targets, last_part, plain_name, split};
use super::patterns::{Pattern, TargetRule};
use crate::error::{Error, Result, ShapeMismatch};
use crate::nn::{LoraConfig, TargetModules, peft_name};
use crate::weights::Base;
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// An adapter as its file has it, under PEFT's names, before it is held against a base.
#[derive(Debug, Default)]
pub(super) struct RawAdapter {
    pub base_model: String,
    pub base_sha256: Option<String>,
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    pub lora_dropout: f64,
    /// Ranks and alphas of single modules.
    pub rank_pattern: Vec<(Pattern, usize)>,
    pub alpha_pattern: Vec<(Pattern, f64)>,
    /// To which modules the configuration gives an adapter.
    pub targets: TargetRule,
    pub tensors: BTreeMap<String, Tensor>,
    /// The file of the tensors, for messages.
    pub file: PathBuf,
}

/// The two matrices of a module.
#[derive(Default)]
struct Pair {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

impl RawAdapter {
    /// What is known without tensors and base; for modules that differ among themselves, of the highest rank.
    ///
    /// # Errors
    /// When a pattern cannot be tried.
    pub fn lora(&self, modules: &BTreeSet<String>) -> Result<LoraConfig> {
        let ranks: Vec<usize> = modules.iter().map(|module| self.rank_of(module)).collect::<Result<_>>()?;
        let r = ranks.iter().copied().max().unwrap_or(self.r);
        // The scale of a uniform adapter stays what its configuration says.
        let mut uniform = ranks.iter().all(|rank| *rank == r);
        for module in modules {
            uniform = uniform && self.alpha_of(module)?.is_none();
        }
        let (lora_alpha, use_rslora) = if uniform { (self.lora_alpha, self.use_rslora) } else { (r as f64, false) };
        Ok(LoraConfig {
            r,
            lora_alpha,
            use_rslora,
            lora_dropout: self.lora_dropout,
            target_modules: TargetModules::Names(modules.iter().cloned().collect()),
            init_from: None,
        })
    }

    fn rank_of(&self, module: &str) -> Result<usize> {
        Ok(first_match(&self.rank_pattern, module)?.unwrap_or(self.r))
    }

    fn alpha_of(&self, module: &str) -> Result<Option<f64>> {
        first_match(&self.alpha_pattern, module)
    }

    fn scale_of(&self, module: &str) -> Result<f64> {
        let (r, alpha) = (self.rank_of(module)? as f64, self.alpha_of(module)?.unwrap_or(self.lora_alpha));
        Ok(alpha / if self.use_rslora { r.sqrt() } else { r })
    }

    /// Leaves out the tensors of modules that the configuration gives no adapter, as PEFT does when it loads one.
    ///
    /// # Errors
    /// When nothing is left, or a pattern cannot be tried.
    pub fn keep_targets(&mut self) -> Result<()> {
        let modules = self.modules()?;
        let mut others = BTreeSet::new();
        for module in &modules {
            if !self.targets.includes(module)? {
                others.insert(module.as_str());
            }
        }
        let Some(first) = others.first() else { return Ok(()) };
        if others.len() == modules.len() {
            let message = format!(
                "holds tensors of {} modules, the first is `{first}`; its configuration names none of them",
                modules.len()
            );
            return Err(Error::file(&self.file, message)
                .with_help("`target_modules`, `exclude_modules` and `layers_to_transform` of adapter_config.json decide which are used"));
        }
        tracing::warn!(
            "{}: of {} modules the tensors of {} are left out, as PEFT leaves them out: adapter_config.json does not name \
             them (the first is `{first}`)",
            self.file.display(),
            modules.len(),
            others.len()
        );
        let others: BTreeSet<String> = others.into_iter().map(str::to_owned).collect();
        let mut tensors = std::mem::take(&mut self.tensors);
        tensors.retain(|name, _| self.module_of(name).is_ok_and(|(module, _)| !others.contains(module)));
        self.tensors = tensors;
        Ok(())
    }

    /// The modules that have tensors.
    ///
    /// # Errors
    /// For tensors that are not LoRA matrices under PEFT's names.
    pub fn modules(&self) -> Result<BTreeSet<String>> {
        self.tensors.keys().map(|name| self.module_of(name).map(|(module, _)| module.to_owned())).collect()
    }

    /// `base_model.model.<module>.lora_A.weight` → module, and whether it is A.
    fn module_of<'a>(&self, name: &'a str) -> Result<(&'a str, bool)> {
        let stem = name.strip_suffix(".weight");
        let part = |part: &str| stem.and_then(|stem| stem.strip_suffix(part));
        let found = part(".lora_A").map(|module| (module, true)).or_else(|| Some((part(".lora_B")?, false)));
        let Some((module, is_a)) = found else {
            let message = format!("holds the tensor `{name}`, which is not a matrix of plain LoRA (lora_A or lora_B)");
            return Err(Error::file(&self.file, message).with_help(
                "adapters with trained embeddings, biases, DoRA vectors or whole modules are not supported",
            ));
        };
        let module = module.strip_prefix("base_model.model.").ok_or_else(|| {
            Error::file(
                &self.file,
                format!("the tensor `{name}` does not begin with `base_model.model.`, as PEFT's do"),
            )
            .with_help("save the adapter with PEFT's save_pretrained")
        })?;
        Ok((module, is_a))
    }

    /// The adapter, if it fits `base`.
    ///
    /// # Errors
    /// When matrices are missing, of other shapes or ranks than base and configuration ask for, or not finite.
    pub fn fit(self, base: &Base) -> Result<AdapterBundle> {
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            let (module, is_a) = self.module_of(name)?;
            let pair = pairs.entry(module.to_owned()).or_default();
            *(if is_a { &mut pair.a } else { &mut pair.b }) = Some(tensor.clone());
        }
        if pairs.is_empty() {
            return Err(Error::file(&self.file, "holds no tensor").with_help("an adapter has two for each module"));
        }
        for module in pairs.keys() {
            let r = self.rank_of(module)?;
            if !(1..=LoraConfig::MAX_R).contains(&r) {
                let message = format!("`{module}` is of rank {r}; expected 1 to {}", LoraConfig::MAX_R);
                return Err(Error::file(&self.file, message).with_help("the file is damaged; fetch it again"));
            }
        }
        self.check_modules(&pairs, base).map_err(|error| self.of_another_base(error, base))?;
        let modules: BTreeSet<String> = pairs.keys().cloned().collect();
        let mut lora = self.lora(&modules)?;
        if !((lora.scale() as f32).is_finite() && lora.scale() as f32 > 0.0) {
            let message = format!("scales by {:e}, which f32 cannot hold", lora.scale());
            return Err(Error::file(&self.file, message).with_help("is `lora_alpha` what it should be?"));
        }
        let mut tensors = BTreeMap::new();
        for (module, pair) in pairs {
            let [a, b] = self.uniform(&module, pair, &lora)?;
            tensors.insert(peft_name(&plain_name(&module), "lora_A"), a);
            tensors.insert(peft_name(&plain_name(&module), "lora_B"), b);
        }
        check_finite(&tensors, &self.file)?;
        let modules: BTreeSet<String> = modules.iter().map(|module| plain_name(module)).collect();
        lora.target_modules = TargetModules::Names(target_names(&modules, base));
        let config = AdapterConfig {
            base_model_name_or_path: self.base_model,
            base_sha256: self.base_sha256,
            lora,
            nested: base.wrapper().is_some(),
        };
        Ok(AdapterBundle { config, tensors })
    }

    /// In one sentence, where the fingerprint says that the adapter was trained on another model: then shapes say no more.
    fn of_another_base(&self, error: Error, base: &Base) -> Error {
        let other = |known: &String| base.fingerprint().is_ok_and(|now| now != *known);
        if !self.base_sha256.as_ref().is_some_and(other) {
            return error;
        }
        let named = match self.base_model.as_str() {
            "" => String::new(),
            name => format!("; the adapter names {name}"),
        };
        Error::file(&self.file, format!("this adapter was trained on another model than {}", base.path().display()))
            .with_help(format!("give the model that it was trained on with `--base MODEL`{named}"))
    }

    /// All that is wrong with shapes, in one report.
    fn check_modules(&self, pairs: &BTreeMap<String, Pair>, base: &Base) -> Result<()> {
        let mut mismatches = Vec::new();
        let mut unknown = Vec::new();
        for (module, pair) in pairs {
            let Some((&[out, inputs], _)) = base.tensor(&format!("{}.weight", plain_name(module))) else {
                unknown.push(module.as_str());
                continue;
            };
            let r = self.rank_of(module)?;
            for (part, tensor, expected) in [("lora_A", &pair.a, [r, inputs]), ("lora_B", &pair.b, [out, r])] {
                let got = tensor.as_ref().map(|tensor| tensor.dims().to_vec());
                if got.as_deref() != Some(&expected) {
                    mismatches.push(ShapeMismatch {
                        tensor: peft_name(module, part),
                        expected: expected.to_vec(),
                        got,
                    });
                }
            }
        }
        if pairs.keys().any(|module| plain_name(module) == "lm_head") {
            return Err(Error::file(&self.file, "adapts the head, `lm_head`: not supported")
                .with_help("train the adapter on the linear modules of the layers alone"));
        }
        let outside = |module: &str| !plain_name(module).starts_with("model.layers.");
        let foreign = pairs.keys().find(|module| outside(module));
        if let Some(first) = foreign.filter(|_| base.wrapper().is_some()) {
            let message = format!("adapts `{first}`, which is not a layer of the text decoder: not supported");
            return Err(Error::file(&self.file, message).with_help(
                "train the adapter on the language layers alone (PEFT's `exclude_modules` leaves the others out)",
            ));
        }
        if let Some(first) = unknown.first() {
            let message = format!(
                "{} of its {} modules are not in the base {}, the first is `{first}`",
                unknown.len(),
                pairs.len(),
                base.path().display()
            );
            return Err(Error::file(&self.file, message)
                .with_help("the adapter was trained on another base; `--base MODEL` names the right one"));
        }
        if !mismatches.is_empty() {
            return Err(Error::Shapes { path: self.file.clone(), mismatches });
        }
        Ok(())
    }

    /// The matrices in `f32`, of the adapter's one rank and for its one scale: rows and columns of zeros fill them up, and B
    /// takes what the scale differs by. Of an adapter whose modules are alike nothing changes.
    fn uniform(&self, module: &str, pair: Pair, lora: &LoraConfig) -> Result<[Tensor; 2]> {
        let tensor = |tensor: Option<Tensor>| tensor.expect("shapes were checked").to_dtype(DType::F32);
        let (mut a, mut b) = (tensor(pair.a)?, tensor(pair.b)?);
        let missing = lora.r - a.dim(0)?;
        if missing > 0 {
            a = a.pad_with_zeros(0, 0, missing)?;
            b = b.pad_with_zeros(1, 0, missing)?;
        }
        let factor = self.scale_of(module)? / lora.scale();
        if (factor - 1.0).abs() > 1e-12 {
            b = (b * factor)?;
        }
        Ok([a.contiguous()?, b.contiguous()?])
    }
}

/// What the first pattern that names a module says, in the configuration's order.
fn first_match<T: Copy>(patterns: &[(Pattern, T)], module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.matches(module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Last parts of names where every such module of the base is adapted, else whole names.
fn target_names(modules: &BTreeSet<String>, base: &Base) -> Vec<String> {
    let targets = Targets::of(modules);
    let ends = |module: &str| split(module).map(|(_, rest)| rest.to_owned());
    let adapted: BTreeSet<String> = modules.iter().filter_map(|module| ends(module)).collect();
    let whole = |name: &str| {
        let module = name.strip_suffix(".weight").unwrap_or_default();
        !ends(module).is_some_and(|end| adapted.contains(&end)) || modules.contains(module)
    };
    if targets.layers.is_none()
        && targets.names.iter().all(|name| name == last_part(name))
        && base.tensor_names().all(whole)
    {
        return targets.names.into_iter().collect();
    }
    modules.iter().cloned().collect()
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
