//! `AdamW` (arXiv 1711.05101) whose whole state can be saved: candle's keeps its moments to itself.

use crate::error::{Error, Result};
use crate::nn::AdapterParams;
use crate::train::TrainingConfig;
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// First and second moments in `f32` for each adapter tensor, and how many updates they have seen.
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    updates: usize,
    moments: BTreeMap<String, (Tensor, Tensor)>,
}

const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";

impl AdamW {
    /// Zero moments for each tensor.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn new(config: &TrainingConfig, params: &AdapterParams) -> Result<Self> {
        let moments = params.iter().map(|(name, variable)| {
            let zeros = variable.as_tensor().zeros_like()?.to_dtype(DType::F32)?;
            Ok((name.to_owned(), (zeros.clone(), zeros)))
        });
        Ok(Self {
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            epsilon: config.adam_epsilon,
            weight_decay: config.weight_decay,
            updates: 0,
            moments: moments.collect::<Result<_>>()?,
        })
    }

    /// One update: `m = β₁m + (1-β₁)g`, `v = β₂v + (1-β₂)g²`,
    /// `θ = θ·(1 - lr·λ) - lr·(m/(1-β₁ᵗ)) / (√(v/(1-β₂ᵗ)) + ε)`, as PyTorch's `AdamW` orders it.
    ///
    /// # Errors
    /// When a gradient is missing or of another shape.
    pub fn update(
        &mut self,
        params: &AdapterParams,
        gradients: &BTreeMap<String, Tensor>,
        learning_rate: f64,
    ) -> Result<()> {
        self.updates += 1;
        let correction1 = 1.0 - self.beta1.powi(self.updates as i32);
        let correction2 = 1.0 - self.beta2.powi(self.updates as i32);
        for (name, variable) in params.iter() {
            let (Some(gradient), Some((m, v))) = (gradients.get(name), self.moments.get_mut(name)) else {
                return Err(Error::invalid(format!("internal: `{name}` has no gradient")));
            };
            *m = ((&*m * self.beta1)? + (gradient * (1.0 - self.beta1))?)?;
            *v = ((&*v * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?;
            let denominator = ((v.sqrt()? / correction2.sqrt())? + self.epsilon)?;
            let step = (&*m / denominator)?;
            let kept = (variable.as_tensor().detach() * (1.0 - learning_rate * self.weight_decay))?;
            variable.set(&(kept - (step * (learning_rate / correction1))?)?)?;
        }
        Ok(())
    }

    /// How many updates were made.
    pub const fn updates(&self) -> usize {
        self.updates
    }

    /// The moments, as `exp_avg.<name>` and `exp_avg_sq.<name>`.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let named = self
            .moments
            .iter()
            .flat_map(|(name, (m, v))| [(format!("{FIRST}{name}"), m.clone()), (format!("{SECOND}{name}"), v.clone())]);
        named.collect()
    }

    /// Takes back what [`Self::state`] and [`Self::updates`] gave.
    ///
    /// # Errors
    /// When a moment is missing or of another shape; `path` is named.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, updates: usize, path: &Path) -> Result<()> {
        for (name, (m, v)) in &mut self.moments {
            for (prefix, moment) in [(FIRST, m), (SECOND, v)] {
                let name = format!("{prefix}{name}");
                let saved = state.get(&name).filter(|saved| saved.dims() == moment.dims());
                let saved =
                    saved.ok_or_else(|| Error::file(path, format!("`{name}` is missing or of another shape")))?;
                *moment = saved.to_device(moment.device())?;
            }
        }
        self.updates = updates;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn two_updates_match_pytorch() {
        // torch.optim.AdamW([1., -2.], lr=0.1, weight_decay=0.1), gradients [0.5, -1.] and then [1., 1.].
        let mut params = AdapterParams::default();
        params.insert("w".into(), Var::new(&[1f32, -2.0], &Device::Cpu).unwrap());
        let config = TrainingConfig { weight_decay: 0.1, ..TrainingConfig::default() };
        let mut adamw = AdamW::new(&config, &params).unwrap();
        for gradient in [[0.5f32, -1.0], [1.0, 1.0]] {
            let gradient = Tensor::new(&gradient, &Device::Cpu).unwrap();
            adamw.update(&params, &BTreeMap::from([("w".into(), gradient)]), 0.1).unwrap();
        }
        let got = params.get("w").unwrap().to_vec1::<f32>().unwrap();
        for (got, expected) in got.iter().zip([0.784_581_84_f32, -1.866_463_2]) {
            assert!((got - expected).abs() < 1e-6, "{got} is not {expected}");
        }
    }
}
