//! From what a file holds to an adapter that fits its base: ranks, names and shapes are checked, and what differs from module
//! to module is folded into the matrices.

use super::bundle::AdapterBundle;
use super::config::{AdapterConfig, Targets, last_part, split};
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
    pub tensors: BTreeMap<String, Tensor>,
    /// The file of the tensors, for messages.
    pub file: PathBuf,
}

/// A key of PEFT's `rank_pattern` or `alpha_pattern`: the end of a module's name.
#[derive(Debug)]
pub(super) struct Pattern(String);

impl Pattern {
    /// PEFT reads regular expressions here; what people and programs write are names, and only those are read.
    pub fn new(key: &str, path: &Path) -> Result<Self> {
        let name = key.strip_prefix('^').unwrap_or(key).replace("\\.", ".");
        if name.contains(|c: char| "\\^$*+?()[]{}|".contains(c)) {
            let message =
                format!("`rank_pattern` and `alpha_pattern`: `{key}` is a regular expression; names are read");
            return Err(
                Error::file(path, message).with_help("write a module a key, such as model.layers.3.mlp.up_proj")
            );
        }
        Ok(Self(name))
    }

    fn matches(&self, module: &str) -> bool {
        module.strip_suffix(self.0.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }
}

/// The two matrices of a module.
#[derive(Default)]
struct Pair {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

impl RawAdapter {
    /// What is known without tensors and base; for modules that differ among themselves, of the highest rank.
    pub fn lora(&self, modules: &BTreeSet<String>) -> LoraConfig {
        let r = modules.iter().map(|module| self.rank_of(module)).max().unwrap_or(self.r);
        // The scale of a uniform adapter stays what its configuration says.
        let uniform = modules.iter().all(|module| self.rank_of(module) == r && self.alpha_of(module).is_none());
        let (lora_alpha, use_rslora) = if uniform { (self.lora_alpha, self.use_rslora) } else { (r as f64, false) };
        LoraConfig {
            r,
            lora_alpha,
            use_rslora,
            lora_dropout: self.lora_dropout,
            target_modules: TargetModules::Names(modules.iter().cloned().collect()),
            init_from: None,
        }
    }

    fn rank_of(&self, module: &str) -> usize {
        self.rank_pattern.iter().find(|(pattern, _)| pattern.matches(module)).map_or(self.r, |(_, r)| *r)
    }

    fn alpha_of(&self, module: &str) -> Option<f64> {
        self.alpha_pattern.iter().find(|(pattern, _)| pattern.matches(module)).map(|(_, alpha)| *alpha)
    }

    fn scale_of(&self, module: &str) -> f64 {
        let (r, alpha) = (self.rank_of(module) as f64, self.alpha_of(module).unwrap_or(self.lora_alpha));
        alpha / if self.use_rslora { r.sqrt() } else { r }
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
            let message = format!("holds the tensor `{name}`, which is no matrix of plain LoRA (lora_A or lora_B)");
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
        if let Some(module) = pairs.keys().find(|module| !(1..=LoraConfig::MAX_R).contains(&self.rank_of(module))) {
            let message =
                format!("`{module}` is of rank {}; expected 1 to {}", self.rank_of(module), LoraConfig::MAX_R);
            return Err(Error::file(&self.file, message).with_help("the file is damaged; fetch it again"));
        }
        self.check_modules(&pairs, base)?;
        let modules: BTreeSet<String> = pairs.keys().cloned().collect();
        let mut lora = self.lora(&modules);
        if !((lora.scale() as f32).is_finite() && lora.scale() as f32 > 0.0) {
            let message = format!("scales by {:e}, which f32 cannot hold", lora.scale());
            return Err(Error::file(&self.file, message).with_help("is `lora_alpha` what it should be?"));
        }
        let mut tensors = BTreeMap::new();
        for (module, pair) in pairs {
            let [a, b] = self.uniform(&module, pair, &lora)?;
            tensors.insert(peft_name(&module, "lora_A"), a);
            tensors.insert(peft_name(&module, "lora_B"), b);
        }
        check_finite(&tensors, &self.file)?;
        lora.target_modules = TargetModules::Names(target_names(&modules, base));
        let config = AdapterConfig { base_model_name_or_path: self.base_model, base_sha256: self.base_sha256, lora };
        Ok(AdapterBundle { config, tensors })
    }

    /// All that is wrong with shapes, in one report.
    fn check_modules(&self, pairs: &BTreeMap<String, Pair>, base: &Base) -> Result<()> {
        let mut mismatches = Vec::new();
        let mut unknown = Vec::new();
        for (module, pair) in pairs {
            let Some((&[out, inputs], _)) = base.tensor(&format!("{module}.weight")) else {
                unknown.push(module.as_str());
                continue;
            };
            let r = self.rank_of(module);
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
        if unknown.first() == Some(&"lm_head") {
            return Err(Error::file(
                &self.file,
                "adapts the head, which the base shares with its embeddings: not supported",
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
        let factor = self.scale_of(module) / lora.scale();
        if (factor - 1.0).abs() > 1e-12 {
            b = (b * factor)?;
        }
        Ok([a.contiguous()?, b.contiguous()?])
    }
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
