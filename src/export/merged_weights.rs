//! `W + scale·B·A`, tensor by tensor and panel by panel: what a merge writes, whatever the format.
//!
//! No tensor is ever whole in memory: a few panels of rows are, for each thread.

use crate::adapter::AdapterBundle;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::{self, Model};
use crate::nn::{QuantizationConfig, peft_name};
use crate::ops::dequantize::dequantize;
use crate::ops::numbers;
use crate::ops::simd::vectorized;
use crate::weight_type::WeightType;
use crate::weights::{Base, TensorInfo};
use candle_core::Tensor;
use candle_core::quantized::QTensor;
use half::{bf16, f16};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;

/// Numbers of a panel: 1 MiB of `f32`, so that a machine of many threads stays small too.
const PANEL: usize = 1 << 18;

/// The most panels at a time, however many threads there are.
const PIECES: usize = 64;

/// The weights of a base with an adapter added.
pub struct MergedWeights<'a> {
    base: &'a Base,
    /// The types that matrices were held in while the adapter was trained, where those are not the stored ones.
    held: BTreeMap<String, WeightType>,
    updates: BTreeMap<String, Update>,
    /// What is added to the weights of norms.
    shift: f32,
}

/// The update of one matrix.
struct Update {
    /// `[r, in]`
    a: Tensor,
    /// `[out, r]`
    b: Tensor,
    r: usize,
    scale: f32,
}

impl<'a> MergedWeights<'a> {
    /// The weights of `base`, held as `quantization` says, with the adapter's updates.
    ///
    /// # Errors
    /// When the base is of an architecture that is not known, or the adapter holds something else than its linear layers'.
    pub fn new(base: &'a Base, quantization: QuantizationConfig, adapter: &AdapterBundle) -> Result<Self> {
        let lora = Some(&adapter.config.lora);
        let Model { report: plan, .. } = models::load(base, quantization, lora, 0, &Device::Cpu, true)?;
        let mut updates = BTreeMap::new();
        for module in adapter.modules() {
            if !plan.linear.contains(&module) {
                let message =
                    format!("the module `{module}` cannot be merged: it is not a linear layer of the decoder's");
                return Err(Error::invalid(message).with_help("export the adapter by itself: --to peft"));
            }
            // The bundle's own tensors, contiguous and in f32.
            let tensor = |part: &str| adapter.tensors[&peft_name(&module, part)].clone();
            let (r, scale) = (adapter.config.lora.r, adapter.config.lora.scale() as f32);
            updates.insert(format!("{module}.weight"), Update { a: tensor("lora_A"), b: tensor("lora_B"), r, scale });
        }
        let mut held = plan.held;
        held.retain(|name, dtype| base.tensor(name).is_some_and(|(_, stored)| stored != *dtype));
        Ok(Self { base, held, updates, shift: 0.0 })
    }

    /// The weights of `base` as they are.
    pub(super) fn unchanged(base: &'a Base) -> Self {
        Self { base, held: BTreeMap::new(), updates: BTreeMap::new(), shift: 0.0 }
    }

    /// Adds a number to the weights of all norms, in f32: some families keep them less 1 in one form of file, and not in another.
    pub(super) fn shift_norms(&mut self, by: f32) {
        self.shift = by;
    }

    /// The base that is merged into.
    pub fn base(&self) -> &'a Base {
        self.base
    }

    /// All tensors of the base, under Hugging Face's names, in their order, with the types that they are stored in.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        let info = |name: &str| {
            let (shape, dtype) = self.base.tensor(name)?;
            Some(TensorInfo { name: name.to_owned(), shape: shape.to_vec(), dtype })
        };
        self.base.tensor_names().filter_map(info).collect()
    }

    /// Whether the tensor differs from what the base stores.
    pub fn is_changed(&self, name: &str) -> bool {
        self.updates.contains_key(name) || self.held.contains_key(name)
    }

    /// Gives the bytes of some rows of a tensor (a vector is one row) in `dtype`, in pieces from the first to the last. What the
    /// merge does not change and is stored in that type comes as it is stored. A piece is of a multiple of `height` rows, and
    /// `arrange` may bring the rows of each piece into another order.
    ///
    /// # Errors
    /// When the base cannot be read, or holds a number that is not finite or does not fit the type; and what `write` answers.
    pub fn stream(
        &self,
        tensor: &TensorInfo,
        rows: Range<usize>,
        dtype: WeightType,
        height: usize,
        arrange: &(dyn Fn(Vec<u8>, usize) -> Result<Vec<u8>> + Sync),
        write: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let columns = tensor.shape.last().unwrap_or(&1);
        let panel = (PANEL / columns.max(&1)).max(1).next_multiple_of(height.max(1));
        let starts: Vec<usize> = rows.clone().step_by(panel).collect();
        for group in starts.chunks((2 * rayon::current_num_threads()).min(PIECES)) {
            let pieces: Vec<Vec<u8>> = group
                .par_iter()
                .map(|&start| {
                    let range = start..(start + panel).min(rows.end);
                    let count = range.len();
                    arrange(self.panel(tensor, range, dtype)?, count)
                })
                .collect::<Result<_>>()?;
            for piece in pieces {
                write(&piece)?;
            }
        }
        Ok(())
    }

    fn panel(&self, tensor: &TensorInfo, rows: Range<usize>, dtype: WeightType) -> Result<Vec<u8>> {
        let bytes = self.base.read_rows(&tensor.name, rows.clone())?;
        let matrix = tensor.shape.len() > 1;
        if matrix && dtype == tensor.dtype && !self.is_changed(&tensor.name) {
            return Ok(bytes);
        }
        let columns = *tensor.shape.last().unwrap_or(&1);
        let mut values = vec![0f32; rows.len() * columns];
        dequantize(tensor.dtype, &bytes, &mut values);
        self.check_finite(&tensor.name, &values)?;
        if let Some(held) = self.held.get(&tensor.name) {
            let bytes = encode(&values, columns, *held)?;
            dequantize(*held, &bytes, &mut values);
        }
        if let Some(update) = self.updates.get(&tensor.name) {
            update.add(rows, columns, &mut values)?;
            self.check_finite(&tensor.name, &values)?;
        }
        if self.shift != 0.0 && !matrix && tensor.name.ends_with("norm.weight") {
            for value in &mut values {
                *value += self.shift;
            }
        }
        let bytes = encode(&values, columns, dtype)?;
        check_range(&bytes, dtype, &tensor.name)?;
        Ok(bytes)
    }

    fn check_finite(&self, name: &str, values: &[f32]) -> Result<()> {
        if values.iter().all(|x| x.is_finite()) {
            return Ok(());
        }
        Err(Error::file(self.base.path(), format!("the tensor `{name}` holds a number that is not finite"))
            .with_help("the file is damaged, or was written by a run that diverged; fetch it again"))
    }
}

impl Update {
    /// Adds rows of `B·A` to `values`.
    fn add(&self, rows: Range<usize>, columns: usize, values: &mut [f32]) -> Result<()> {
        let (a, b) = (numbers(&self.a)?, numbers(&self.b)?);
        for (row, out) in rows.zip(values.chunks_exact_mut(columns)) {
            let b = &b[row * self.r..][..self.r];
            for (b, a) in b.iter().zip(a.chunks_exact(columns)) {
                add_scaled(b * self.scale, a, out);
            }
        }
        Ok(())
    }
}

vectorized! {
    /// `out += b·a`. Products and sums are not fused: a merge has the same bits on every machine.
    fn add_scaled(b: f32, a: &[f32], out: &mut [f32]) {
        for (out, a) in out.iter_mut().zip(a) {
            *out += b * a;
        }
    }
}

/// Refuses 16-bit numbers that overflowed.
pub(super) fn check_range(bytes: &[u8], dtype: WeightType, name: &str) -> Result<()> {
    let mut numbers = bytes.as_chunks().0.iter();
    let (overflows, fix) = match dtype {
        WeightType::F16 => (numbers.any(|x| !f16::from_le_bytes(*x).is_finite()), "take bf16 or f32"),
        WeightType::BF16 => (numbers.any(|x| !bf16::from_le_bytes(*x).is_finite()), "take f32"),
        _ => (false, ""),
    };
    if overflows {
        let message = format!("the tensor `{name}` holds numbers beyond what {} can hold", super::type_name(dtype));
        return Err(Error::invalid(message).with_help(fix));
    }
    Ok(())
}

/// Rows in a type.
///
/// # Errors
/// When the rows are not whole blocks.
pub(super) fn encode(values: &[f32], columns: usize, dtype: WeightType) -> Result<Vec<u8>> {
    Ok(match dtype {
        WeightType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        WeightType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        WeightType::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        blocks => {
            let Some(kind) = blocks.candle() else {
                return Err(Error::invalid(format!("nothing is written in {}", super::type_name(blocks))));
            };
            let tensor =
                Tensor::from_slice(values, (values.len() / columns.max(1), columns), &candle_core::Device::Cpu)?;
            QTensor::quantize(&tensor, kind)?.data()?.into_owned()
        }
    })
}
