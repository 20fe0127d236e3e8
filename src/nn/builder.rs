//! From a base's tensors to layers: shapes are checked, weights quantized, adapters created.

use super::linear::{Linear, LoraAdapter};
use super::lora_config::{LoraConfig, is_end_of};
use super::params::{AdapterParams, initial_a, peft_names};
use super::quantization::{QuantizationConfig, QuantizationType, fallback_of};
use crate::device::Device;
use crate::error::{Error, Result, ShapeMismatch};
use crate::ops::dequantize::dequantize;
use crate::ops::{FrozenVector, FrozenWeight};
use crate::rng::name_key;
use crate::weight_type::WeightType;
use crate::weights::{Base, RawTensor};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device as Place, Tensor, Var};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// What building a model has found out.
#[derive(Debug, Clone, Default)]
pub struct BuildReport {
    /// Numbers in the frozen tensors.
    pub parameters: usize,
    /// Bytes that they take in memory.
    pub bytes: u64,
    /// How many matrices are held in each type.
    pub types: BTreeMap<String, usize>,
    /// How many modules have an adapter, or under a plan would have one.
    pub adapter_modules: usize,
    /// Numbers in all adapters.
    pub adapter_parameters: usize,
    /// The target modules that were found, by the last part of their names.
    pub target_modules: BTreeSet<String>,
    /// All linear modules, by the last part of their names.
    pub modules: BTreeSet<String>,
    /// The paths of all linear modules.
    pub linear: BTreeSet<String>,
    /// The types that the matrices are held in, by the names of the tensors.
    pub held: BTreeMap<String, WeightType>,
    /// Things a user should know: fallback types and the like.
    pub notes: BTreeSet<String>,
}

#[derive(Default)]
struct State {
    params: AdapterParams,
    mismatches: Vec<ShapeMismatch>,
    /// The first needed tensor that cannot be read.
    unread: Option<Error>,
    report: BuildReport,
}

/// Hands out layers by name, and keeps account.
///
/// A *plan* checks shapes and counts; it reads no weight and creates no adapter: its layers are hollow.
pub struct Builder<'a> {
    base: &'a Base,
    quantization: QuantizationConfig,
    lora: Option<&'a LoraConfig>,
    seed: u64,
    device: &'a Device,
    plan: bool,
    state: RefCell<State>,
}

impl<'a> Builder<'a> {
    /// A builder that reads weights, or under `plan` only checks them. Without `lora`, no adapter is created.
    ///
    /// # Errors
    /// When a GGUF file is to be quantized once more.
    pub fn new(
        base: &'a Base,
        quantization: QuantizationConfig,
        lora: Option<&'a LoraConfig>,
        seed: u64,
        device: &'a Device,
        plan: bool,
    ) -> Result<Self> {
        if base.is_gguf() && !matches!(quantization.kind, QuantizationType::Auto | QuantizationType::None) {
            return Err(Error::invalid(format!(
                "quantization.type: {} is a GGUF file, whose weights are kept in the types that they are stored in",
                base.path().display()
            ))
            .with_help("remove the key, or give a Hugging Face folder as the base"));
        }
        Ok(Self { base, quantization, lora, seed, device, plan, state: RefCell::default() })
    }

    /// Whether no weight is read.
    pub const fn is_plan(&self) -> bool {
        self.plan
    }

    /// Whether the base is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.base.is_gguf()
    }

    /// Whether the base holds a vector of this width with a number other than zero.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub fn has_numbers(&self, name: &str, width: usize) -> Result<bool> {
        if self.base.tensor(name).is_none_or(|(shape, _)| shape != [width]) {
            return Ok(false);
        }
        Ok(floats(&self.base.read(name)?).iter().any(|number| *number != 0.0))
    }

    /// Whether the base names this tensor, even if it cannot be read.
    pub fn has(&self, name: &str) -> bool {
        self.base.tensor(name).is_some() || self.base.unread(name).is_some()
    }

    /// A small tensor in `f32`, whole.
    ///
    /// # Errors
    /// When it is missing, of another shape, or holds a non-finite number.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let fits = self.fits(name, shape);
        self.account(shape, None);
        if self.plan || !fits {
            return Ok(Tensor::zeros(1, DType::F32, &Place::Cpu)?);
        }
        let raw = self.base.read(name)?;
        let numbers = floats(&raw);
        if !numbers.iter().all(|x| x.is_finite()) {
            return Err(self.non_finite(name));
        }
        Ok(Tensor::from_vec(numbers, raw.shape, &Place::Cpu)?)
    }

    /// A small tensor as a frozen vector, on the device; a plan takes nothing of a GPU's memory.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn vector(&self, name: &str, width: usize) -> Result<FrozenVector> {
        let device = if self.plan { &Device::Cpu } else { self.device };
        Ok(FrozenVector::new(&self.tensor(name, &[width])?, device)?)
    }

    /// The weight of a normalization, on the device: `(w + plus)·factor`.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn norm(&self, name: &str, width: usize, plus: f32, factor: f32) -> Result<FrozenVector> {
        let device = if self.plan { &Device::Cpu } else { self.device };
        let mut weight = self.tensor(name, &[width])?;
        // Neither changes a bit where there is nothing to add and nothing to multiply with.
        if plus != 0.0 {
            weight = (weight + f64::from(plus))?;
        }
        if factor != 1.0 {
            weight = (weight * f64::from(factor))?;
        }
        Ok(FrozenVector::new(&weight, device)?)
    }

    /// The same matrix on the device.
    ///
    /// # Errors
    /// When the device's memory is full.
    pub fn on_device(&self, weight: &FrozenWeight) -> Result<FrozenWeight> {
        if self.plan { Ok(weight.clone()) } else { Ok(weight.to_device(self.device)?) }
    }

    /// A frozen matrix `[rows, columns]` on the CPU. `keep_precise` (embeddings and head) holds it in 8 bits at least.
    ///
    /// # Errors
    /// When it is missing, of another shape, or holds a non-finite number.
    pub fn matrix(&self, name: &str, rows: usize, columns: usize, keep_precise: bool) -> Result<FrozenWeight> {
        let fits = self.fits(name, &[rows, columns]);
        let stored = self.base.tensor(name).map_or(WeightType::F32, |(_, dtype)| dtype);
        let dtype = self.dtype_for(name, stored, columns, keep_precise);
        self.state.borrow_mut().report.held.insert(name.into(), dtype);
        self.account(&[rows, columns], Some(dtype));
        if self.plan || !fits {
            return Ok(FrozenWeight::hollow(rows, columns));
        }
        let blocks = if stored == dtype {
            self.base.read(name)?.bytes
        } else {
            self.quantized(name, (rows, columns), (stored, dtype))?.ok_or_else(|| self.non_finite(name))?
        };
        let weight = FrozenWeight::new(dtype, (rows, columns), blocks)?;
        if !weight.is_finite()? {
            return Err(self.non_finite(name));
        }
        Ok(weight)
    }

    /// The linear module at `path` (`model.layers.0.self_attn.q_proj`), with its bias if the base has one (under `biased` it must),
    /// and with an adapter if it is a target: `A` uniform in `±1/√in` (PEFT's Kaiming initialisation), `B` zero.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn linear(&self, path: &str, inputs: usize, outputs: usize, biased: bool) -> Result<Linear> {
        let weight = format!("{path}.weight");
        let fits = self.base.tensor(&weight).is_some_and(|(shape, _)| shape == [outputs, inputs]);
        let weight = self.on_device(&self.matrix(&weight, outputs, inputs, false)?)?;
        let bias = format!("{path}.bias");
        let bias = if biased || self.has(&bias) { Some(self.vector(&bias, outputs)?) } else { None };
        let name = path.rsplit('.').next().unwrap_or(path);
        let mut state = self.state.borrow_mut();
        state.report.modules.insert(name.into());
        state.report.linear.insert(path.into());
        drop(state);
        let Some(lora) = self.lora.filter(|lora| lora.targets(path)) else {
            return Ok(Linear { weight, bias, adapter: None });
        };
        let mut state = self.state.borrow_mut();
        state.report.target_modules.insert(name.into());
        state.report.adapter_modules += 1;
        state.report.adapter_parameters = state.report.adapter_parameters.saturating_add(lora.r * (inputs + outputs));
        drop(state);
        // Sizes that the files do not bear out are not to be believed.
        let adapter = match (fits, self.plan) {
            (false, _) => None,
            (true, true) => Some(LoraAdapter::hollow(lora.r, (lora.scale(), lora.lora_dropout), path)?),
            (true, false) => Some(self.adapter(path, lora, inputs, outputs)?),
        };
        Ok(Linear { weight, bias, adapter })
    }

    fn adapter(&self, path: &str, lora: &LoraConfig, inputs: usize, outputs: usize) -> Result<LoraAdapter> {
        let a = Var::from_tensor(&initial_a(self.seed, path, (lora.r, inputs))?)?;
        let b = Var::zeros((outputs, lora.r), DType::F32, &Place::Cpu)?;
        let names = peft_names(path);
        let mut state = self.state.borrow_mut();
        state.params.insert(names[0].clone(), a.clone());
        state.params.insert(names[1].clone(), b.clone());
        Ok(LoraAdapter { a, b, scale: lora.scale(), dropout: lora.lora_dropout, key: name_key(path), names })
    }

    /// Ends the building: the adapter's variables and the report.
    ///
    /// # Errors
    /// A needed tensor that cannot be read; [`Error::Shapes`] with all tensors that did not fit; a target that names no module
    /// of this model.
    pub fn finish(self) -> Result<(AdapterParams, BuildReport)> {
        let State { params, mismatches, unread, report } = self.state.into_inner();
        if let Some(error) = unread {
            return Err(error);
        }
        if !mismatches.is_empty() {
            return Err(Error::Shapes { path: self.base.path().into(), mismatches });
        }
        if let Some(super::TargetModules::Names(names)) = self.lora.map(|lora| &lora.target_modules)
            && let Some(name) = names.iter().find(|name| !report.linear.iter().any(|path| is_end_of(name, path)))
        {
            let modules: Vec<_> = report.modules.iter().map(String::as_str).collect();
            return Err(Error::invalid(format!("lora.target_modules: this model has no module `{name}`"))
                .with_help(format!("its linear modules are: {}; or write `all-linear`", modules.join(", "))));
        }
        Ok((params, report))
    }

    /// A matrix in another type than it is stored in. Slices of rows are read and quantized by all threads at once: what is
    /// stored is never whole in memory. `None` when a number is not finite.
    fn quantized(
        &self,
        name: &str,
        (rows, columns): (usize, usize),
        (stored, dtype): (WeightType, WeightType),
    ) -> Result<Option<Vec<u8>>> {
        let Some(kind) = dtype.candle() else {
            return Err(Error::invalid(format!("internal: {dtype:?} is no type to quantize to")));
        };
        let slice_rows = (1usize << 20).div_ceil(columns.max(1)).max(1);
        let mut blocks = vec![0; dtype.bytes(rows * columns)];
        let slices = blocks.par_chunks_mut(dtype.bytes(slice_rows * columns).max(1)).enumerate();
        let finite = slices.map(|(i, out)| {
            let range = i * slice_rows..((i + 1) * slice_rows).min(rows);
            let mut numbers = vec![0f32; range.len() * columns];
            dequantize(stored, &self.base.read_rows(name, range)?, &mut numbers);
            let Some(blocks) = quantize(numbers, columns, kind)? else { return Ok(false) };
            out.copy_from_slice(&blocks);
            Ok::<_, Error>(true)
        });
        Ok(finite.try_reduce(|| true, |a, b| Ok(a && b))?.then_some(blocks))
    }

    /// The type that a matrix is held in, with notes of what one might not expect.
    fn dtype_for(&self, name: &str, stored: WeightType, columns: usize, keep_precise: bool) -> WeightType {
        if self.base.is_gguf() {
            return stored;
        }
        let kind = self.quantization.kind;
        if !stored.is_float() {
            if let Some(wanted) = kind.weight_type().filter(|_| kind != QuantizationType::Auto) {
                self.note(format!(
                    "weights that are stored as {stored:?} are kept; quantization.type ({wanted:?}) is for those that are stored as floats"
                ));
            }
            return stored;
        }
        let held = kind.weight_type().map_or(stored, |wanted| self.fitting(wanted, stored, columns, keep_precise));
        if let Some(stored) = self.base.stored_as(name) {
            self.note(format!("weights that are stored as {stored} are held as {held:?}"));
        }
        held
    }

    fn fitting(&self, wanted: WeightType, stored: WeightType, columns: usize, keep_precise: bool) -> WeightType {
        let wanted = if keep_precise { WeightType::Q8_0 } else { wanted };
        if columns.is_multiple_of(wanted.block_size()) {
            return wanted;
        }
        let fallback = fallback_of(wanted);
        let (chosen, why) = if columns.is_multiple_of(fallback.block_size()) {
            (fallback, format!("is not a multiple of {}", wanted.block_size()))
        } else {
            (stored, "is not a multiple of 32".to_owned())
        };
        self.note(format!("a width of {columns} {why}: those weights are held as {chosen:?} in place of {wanted:?}"));
        chosen
    }

    fn note(&self, note: String) {
        self.state.borrow_mut().report.notes.insert(note);
    }

    /// Whether the base has the tensor in this shape; if not, that is kept for the report.
    fn fits(&self, name: &str, shape: &[usize]) -> bool {
        let got = self.base.tensor(name).map(|(got, _)| got.to_vec());
        let fits = got.as_deref() == Some(shape);
        if let Some(error) = self.base.unread(name).filter(|_| got.is_none()) {
            self.state.borrow_mut().unread.get_or_insert(error);
        } else if !fits {
            let mismatch = ShapeMismatch { tensor: name.into(), expected: shape.to_vec(), got };
            self.state.borrow_mut().mismatches.push(mismatch);
        }
        fits
    }

    fn account(&self, shape: &[usize], dtype: Option<WeightType>) {
        let numbers: usize = shape.iter().product();
        let mut state = self.state.borrow_mut();
        state.report.parameters += numbers;
        let held = dtype.unwrap_or(WeightType::F32);
        state.report.bytes += held.bytes(numbers) as u64;
        if let Some(dtype) = dtype {
            *state.report.types.entry(format!("{dtype:?}")).or_default() += 1;
        }
    }

    fn non_finite(&self, name: &str) -> Error {
        Error::file(
            self.base.path(),
            format!("the tensor `{name}` holds a number that is not finite (NaN or infinity)"),
        )
        .with_help("the file is damaged, or was written by a run that diverged; fetch it again")
    }
}

/// A small tensor's numbers.
fn floats(raw: &RawTensor) -> Vec<f32> {
    let mut numbers = vec![0f32; raw.shape.iter().product()];
    dequantize(raw.dtype, &raw.bytes, &mut numbers);
    numbers
}

/// Quantizes rows; `None` when a number is not finite. Block types can hide a NaN: the largest number of a block, which makes
/// its scale, is found by comparing.
fn quantize(rows: Vec<f32>, columns: usize, dtype: GgmlDType) -> Result<Option<Vec<u8>>> {
    if !rows.iter().all(|x| x.is_finite()) {
        return Ok(None);
    }
    let rows = Tensor::from_vec(rows, ((), columns), &Place::Cpu)?;
    Ok(Some(QTensor::quantize(&rows, dtype)?.data()?.into_owned()))
}
