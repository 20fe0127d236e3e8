//! `AdamW` (arXiv 1711.05101) whose whole state can be saved: candle's keeps its moments to itself.

use super::backward::GradientSums;
use crate::error::{Error, Result};
use crate::nn::AdapterParams;
use crate::ops::cuda::{AdamWFactors, AdapterMemory};
use crate::train::TrainingConfig;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Shape, Tensor};
use rayon::prelude::*;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// First and second moments in `f32` for each adapter tensor, and how many updates they have seen.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    updates: usize,
    /// On a GPU they are empty: its memory has them.
    moments: BTreeMap<String, Moments>,
    gpu: Option<Arc<AdapterMemory>>,
}

/// The running means of a tensor's gradient and of its square.
struct Moments {
    shape: Shape,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// A running mean, to be written: no copy of all is made for it.
pub struct Moment<'a> {
    shape: &'a Shape,
    numbers: Cow<'a, [f32]>,
}

impl View for Moment<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of_val(&*self.numbers)
    }
}

const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";

impl AdamW {
    /// Zero moments for each tensor.
    pub fn new(config: &TrainingConfig, params: &AdapterParams) -> Self {
        let gpu = params.memory().cloned();
        let moments = params.iter().map(|(name, variable)| {
            let zeros = if gpu.is_some() { Vec::new() } else { vec![0f32; variable.elem_count()] };
            let moments = Moments { shape: variable.shape().clone(), first: zeros.clone(), second: zeros };
            (name.to_owned(), moments)
        });
        Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.weight_decay,
            updates: 0,
            moments: moments.collect(),
            gpu,
        }
    }

    /// One update with the gradients times `factor`: `m = β₁m + (1-β₁)g`, `v = β₂v + (1-β₂)g²`,
    /// `θ = θ·(1 - lr·λ) - lr·(m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε)`, as PyTorch's `AdamW` orders it.
    ///
    /// # Errors
    /// When a gradient is missing or of another shape, or a GPU refuses.
    pub fn update(
        &mut self,
        params: &AdapterParams,
        gradients: &GradientSums<'_>,
        factor: f64,
        learning_rate: f64,
    ) -> Result<()> {
        self.updates += 1;
        let factors = self.factors(factor, learning_rate);
        let gradients = match gradients {
            GradientSums::Cpu(gradients) => gradients,
            GradientSums::Gpu(memory) => return Ok(memory.update(factors)?),
        };
        self.moments.par_iter_mut().try_for_each(|(name, moments)| {
            let (Some(variable), Some(gradient)) = (params.get(name), gradients.get(name)) else {
                return Err(Error::invalid(format!("internal: `{name}` has no gradient")));
            };
            let moments = RefCell::new(moments);
            Ok(variable.as_tensor().inplace_op1(&Update { moments, gradient, factors })?)
        })
    }

    fn factors(&self, gradient: f64, learning_rate: f64) -> AdamWFactors {
        AdamWFactors {
            gradient: gradient as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            correction: (1.0 - self.beta2.powi(self.updates as i32)).sqrt() as f32,
            epsilon: self.epsilon as f32,
            step: (learning_rate / (1.0 - self.beta1.powi(self.updates as i32))) as f32,
            kept: (1.0 - learning_rate * self.weight_decay) as f32,
        }
    }

    /// How many updates were made.
    pub const fn updates(&self) -> usize {
        self.updates
    }

    /// The moments, as `exp_avg.<name>` and `exp_avg_sq.<name>`.
    ///
    /// # Errors
    /// When a GPU refuses.
    pub fn moments(&self) -> Result<Vec<(String, Moment<'_>)>> {
        let on_gpu = self.gpu.as_ref().map(|memory| memory.moments()).transpose()?;
        let mut all = Vec::with_capacity(2 * self.moments.len());
        let [mut firsts, mut seconds] = on_gpu.unwrap_or_default();
        for (name, Moments { shape, first, second }) in &self.moments {
            for (prefix, held, on_gpu) in [(FIRST, first, &mut firsts), (SECOND, second, &mut seconds)] {
                let numbers = on_gpu.remove(name).map_or(Cow::Borrowed(&held[..]), Cow::Owned);
                all.push((format!("{prefix}{name}"), Moment { shape, numbers }));
            }
        }
        Ok(all)
    }

    /// [`Self::moments`] as tensors.
    ///
    /// # Errors
    /// As there.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let tensor = |(name, Moment { shape, numbers }): (String, Moment<'_>)| {
            Ok((name, Tensor::from_slice(&numbers, shape, &Device::Cpu)?))
        };
        self.moments()?.into_iter().map(tensor).collect()
    }

    /// Takes back what [`Self::state`] and [`Self::updates`] gave.
    ///
    /// # Errors
    /// When a moment is missing or of another shape; `path` is named.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, updates: usize, path: &Path) -> Result<()> {
        let saved = |prefix: &str, name: &str, shape: &Shape| -> Result<Vec<f32>> {
            let name = format!("{prefix}{name}");
            let saved = state.get(&name).filter(|saved| saved.dims() == shape.dims());
            let saved = saved.ok_or_else(|| Error::file(path, format!("`{name}` is missing or of another shape")))?;
            Ok(saved.flatten_all()?.to_vec1()?)
        };
        for (name, moments) in &mut self.moments {
            moments.first = saved(FIRST, name, &moments.shape)?;
            moments.second = saved(SECOND, name, &moments.shape)?;
        }
        if let Some(memory) = &self.gpu {
            let of = |take: fn(&mut Moments) -> Vec<f32>, moments: &mut BTreeMap<String, Moments>| {
                moments.iter_mut().map(|(name, moments)| (name.clone(), take(moments))).collect::<BTreeMap<_, _>>()
            };
            let first = of(|moments| std::mem::take(&mut moments.first), &mut self.moments);
            let second = of(|moments| std::mem::take(&mut moments.second), &mut self.moments);
            memory.set_moments([&first, &second])?;
        }
        self.updates = updates;
        Ok(())
    }
}

/// An update of a tensor where it lies: no copy of the adapter is made for a step.
struct Update<'a> {
    moments: RefCell<&'a mut Moments>,
    gradient: &'a [f32],
    factors: AdamWFactors,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((begin, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("internal: an adapter's tensor is not f32, or not contiguous");
        };
        self.moments.borrow_mut().update(&mut values[begin..end], self.gradient, self.factors);
        Ok(())
    }
}

impl Moments {
    fn update(&mut self, values: &mut [f32], gradient: &[f32], f: AdamWFactors) {
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            let gradient = gradient * f.gradient;
            *first = *first * f.beta1 + gradient * f.rest1;
            *second = *second * f.beta2 + gradient * gradient * f.rest2;
            *value = *value * f.kept - *first / (second.sqrt() / f.correction + f.epsilon) * f.step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Gradients;
    use candle_core::Var;

    #[test]
    fn two_updates_match_pytorch() {
        // torch.optim.AdamW([1., -2.], lr=0.1, weight_decay=0.1), gradients [0.5, -1.] and then [1., 1.].
        let mut params = AdapterParams::default();
        params.insert("w".into(), Var::new(&[1f32, -2.0], &Device::Cpu).unwrap());
        let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
        let mut adamw = AdamW::new(&config, &params);
        for gradient in [[0.5f32, -1.0], [1.0, 1.0]] {
            let mut gradients = Gradients::default();
            gradients.put("w", gradient.to_vec());
            adamw.update(&params, &GradientSums::Cpu(gradients), 1.0, 0.1).unwrap();
        }
        let got = params.get("w").unwrap().to_vec1::<f32>().unwrap();
        for (got, expected) in got.iter().zip([0.784_581_84_f32, -1.866_463_2]) {
            assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
        }
    }
}
