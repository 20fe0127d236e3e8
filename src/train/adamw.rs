//! `AdamW` (arXiv 1711.05101) whose whole state can be saved: candle's keeps its moments to itself.

use crate::error::{Error, Result};
use crate::nn::AdapterParams;
use crate::ops::numbers;
use crate::train::TrainingConfig;
use candle_core::{Device, Shape, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// First and second moments in `f32` for each adapter tensor, and how many updates they have seen.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    updates: usize,
    moments: BTreeMap<String, Moments>,
}

/// The running means of a tensor's gradient and of its square.
struct Moments {
    shape: Shape,
    first: Vec<f32>,
    second: Vec<f32>,
}

/// The numbers of one update that are the same for all tensors.
#[derive(Clone, Copy)]
struct Factors {
    gradient: f32,
    beta1: f32,
    beta2: f32,
    /// `1 - beta`, rounded once: in `f32`, `1 - 0.999` is wrong in the fifth digit.
    rest1: f32,
    rest2: f32,
    /// `√(1 - β₂ᵗ)`
    correction: f32,
    epsilon: f32,
    /// `lr / (1 - β₁ᵗ)`
    step: f32,
    /// `1 - lr·λ`
    kept: f32,
}

const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";

impl AdamW {
    /// Zero moments for each tensor.
    pub fn new(config: &TrainingConfig, params: &AdapterParams) -> Self {
        let moments = params.iter().map(|(name, variable)| {
            let zeros = vec![0f32; variable.elem_count()];
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
        }
    }

    /// One update with the gradients times `factor`: `m = β₁m + (1-β₁)g`, `v = β₂v + (1-β₂)g²`,
    /// `θ = θ·(1 - lr·λ) - lr·(m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε)`, as PyTorch's `AdamW` orders it.
    ///
    /// # Errors
    /// When a gradient is missing or of another shape.
    pub fn update(
        &mut self,
        params: &AdapterParams,
        gradients: &BTreeMap<String, Tensor>,
        factor: f64,
        learning_rate: f64,
    ) -> Result<()> {
        self.updates += 1;
        let factors = Factors {
            gradient: factor as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rest1: (1.0 - self.beta1) as f32,
            rest2: (1.0 - self.beta2) as f32,
            correction: (1.0 - self.beta2.powi(self.updates as i32)).sqrt() as f32,
            epsilon: self.epsilon as f32,
            step: (learning_rate / (1.0 - self.beta1.powi(self.updates as i32))) as f32,
            kept: (1.0 - learning_rate * self.weight_decay) as f32,
        };
        self.moments.par_iter_mut().try_for_each(|(name, moments)| {
            let (Some(variable), Some(gradient)) = (params.get(name), gradients.get(name)) else {
                return Err(Error::invalid(format!("internal: `{name}` has no gradient")));
            };
            let [values, gradient] = [variable.as_tensor(), gradient].map(|tensor| tensor.to_device(&Device::Cpu));
            let (mut values, gradient) = (numbers(&values?)?.to_vec(), gradient?);
            moments.update(&mut values, &numbers(&gradient)?, factors);
            Ok(variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?)
        })
    }

    /// How many updates were made.
    pub const fn updates(&self) -> usize {
        self.updates
    }

    /// The moments, as `exp_avg.<name>` and `exp_avg_sq.<name>`.
    ///
    /// # Errors
    /// Never on the CPU.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (prefix, moment) in [(FIRST, &moments.first), (SECOND, &moments.second)] {
                let tensor = Tensor::from_slice(moment, &moments.shape, &Device::Cpu)?;
                state.insert(format!("{prefix}{name}"), tensor);
            }
        }
        Ok(state)
    }

    /// Takes back what [`Self::state`] and [`Self::updates`] gave.
    ///
    /// # Errors
    /// When a moment is missing or of another shape; `path` is named.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, updates: usize, path: &Path) -> Result<()> {
        for (name, moments) in &mut self.moments {
            for (prefix, moment) in [(FIRST, &mut moments.first), (SECOND, &mut moments.second)] {
                let name = format!("{prefix}{name}");
                let saved = state.get(&name).filter(|saved| *saved.shape() == moments.shape);
                let saved =
                    saved.ok_or_else(|| Error::file(path, format!("`{name}` is missing or of another shape")))?;
                *moment = saved.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
            }
        }
        self.updates = updates;
        Ok(())
    }
}

impl Moments {
    fn update(&mut self, values: &mut [f32], gradient: &[f32], f: Factors) {
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
    use candle_core::Var;

    #[test]
    fn two_updates_match_pytorch() {
        // torch.optim.AdamW([1., -2.], lr=0.1, weight_decay=0.1), gradients [0.5, -1.] and then [1., 1.].
        let mut params = AdapterParams::default();
        params.insert("w".into(), Var::new(&[1f32, -2.0], &Device::Cpu).unwrap());
        let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
        let mut adamw = AdamW::new(&config, &params);
        for gradient in [[0.5f32, -1.0], [1.0, 1.0]] {
            let gradient = Tensor::new(&gradient, &Device::Cpu).unwrap();
            adamw.update(&params, &BTreeMap::from([("w".into(), gradient)]), 1.0, 0.1).unwrap();
        }
        let got = params.get("w").unwrap().to_vec1::<f32>().unwrap();
        for (got, expected) in got.iter().zip([0.784_581_84_f32, -1.866_463_2]) {
            assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
        }
    }
}
