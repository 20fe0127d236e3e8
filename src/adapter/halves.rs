//! Modules that are one in Hugging Face's form and two tensors in GGUF's: their updates, put together again.

use super::patterns::Pattern;
use super::read::RawAdapter;
use crate::error::{Error, Result};
use crate::nn::peft_name;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// A and B of one half.
#[derive(Default)]
struct Half {
    a: Option<Tensor>,
    b: Option<Tensor>,
}

/// Halves by module.
#[derive(Default)]
pub(super) struct Halves(BTreeMap<String, [Half; 2]>);

impl Halves {
    /// Adds `lora_A` or `lora_B` of a half.
    pub fn add(&mut self, module: &str, half: usize, part: &str, tensor: Tensor) {
        let half = &mut self.0.entry(module.to_owned()).or_default()[half];
        *(if part == "lora_A" { &mut half.a } else { &mut half.b }) = Some(tensor);
    }

    /// Puts the modules into the adapter. `alpha` is that of the file, by which each half is scaled with `alpha / r`, and with 1
    /// where there is none.
    ///
    /// # Errors
    /// When a half lacks A or B, or their shapes contradict each other.
    pub fn join(self, path: &Path, alpha: Option<f64>, adapter: &mut RawAdapter) -> Result<()> {
        for (module, halves) in self.0 {
            let missing =
                || Error::file(path, format!("`{module}`: of a half of its rows `lora_a` or `lora_b` is missing"));
            let pairs = halves.into_iter().map(|half| match (half.a, half.b) {
                (Some(a), Some(b)) => Ok(Some((a, b))),
                (None, None) => Ok(None),
                _ => Err(missing()),
            });
            let pairs: Vec<Option<(Tensor, Tensor)>> = pairs.collect::<Result<_>>()?;
            let [gate, up] = pairs.try_into().map_err(|_| missing())?;
            let (a, b) = pair(gate, up, alpha.is_some()).map_err(|error| {
                Error::file(path, format!("`{module}`: the halves of its rows do not fit each other: {error}"))
            })?;
            let r = a.dim(0)?;
            adapter.r = adapter.r.max(r);
            adapter.rank_pattern.push((Pattern::exactly(&module), r));
            if alpha.is_none() {
                adapter.alpha_pattern.push((Pattern::exactly(&module), r as f64));
            }
            adapter.tensors.insert(peft_name(&module, "lora_A"), a);
            adapter.tensors.insert(peft_name(&module, "lora_B"), b);
        }
        Ok(())
    }
}

/// A and B of the whole. Where both halves have the same A, it is theirs, and the rows of B stand one below the other. Else
/// the ranks add up: `[A₁; A₂]` and `[B₁ 0; 0 B₂]`; what a half's scale was more than the whole's is in its B.
fn pair(
    gate: Option<(Tensor, Tensor)>,
    up: Option<(Tensor, Tensor)>,
    scaled_by_rank: bool,
) -> candle_core::Result<(Tensor, Tensor)> {
    let zeros = |(a, b): &(Tensor, Tensor)| Ok::<_, candle_core::Error>((a.clone(), b.zeros_like()?));
    let ((gate_a, gate_b), (up_a, up_b)) = match (gate, up) {
        (Some(gate), Some(up)) => (gate, up),
        (Some(gate), None) => {
            let up = zeros(&gate)?;
            (gate, up)
        }
        (None, Some(up)) => (zeros(&up)?, up),
        (None, None) => candle_core::bail!("both are missing"),
    };
    let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    if gate_a.dims() == up_a.dims() && numbers(&gate_a)? == numbers(&up_a)? {
        return Ok((gate_a, Tensor::cat(&[&gate_b, &up_b], 0)?));
    }
    let (gate_r, up_r) = (gate_a.dim(0)?, up_a.dim(0)?);
    let scaled = |b: Tensor, r: usize| {
        let factor = if scaled_by_rank { (gate_r + up_r) as f64 / r.max(1) as f64 } else { 1.0 };
        b * factor
    };
    let (gate_b, up_b) = (scaled(gate_b, gate_r)?, scaled(up_b, up_r)?);
    let above = gate_b.pad_with_zeros(1, 0, up_r)?;
    let below = up_b.pad_with_zeros(1, gate_r, 0)?;
    Ok((Tensor::cat(&[&gate_a, &up_a], 0)?, Tensor::cat(&[&above, &below], 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn matrix(rows: usize, columns: usize, first: f32) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|i| first + i as f32).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    }

    fn product(a: &Tensor, b: &Tensor, scale: f64) -> Vec<Vec<f32>> {
        (b.matmul(a).unwrap() * scale).unwrap().to_vec2().unwrap()
    }

    /// Whatever the halves are, the whole's update is theirs, one below the other.
    #[test]
    fn the_update_of_the_whole_is_that_of_the_halves() {
        let (a, other) = (matrix(2, 5, 0.0), matrix(3, 5, 7.0));
        let (b, of_other) = (matrix(4, 2, 1.0), matrix(4, 3, -2.0));
        let nothing = vec![vec![0.0; 5]; 4];
        for (gate, up, rank) in [
            (Some((&a, &b)), Some((&a, &matrix(4, 2, 9.0))), 2),
            (Some((&a, &b)), Some((&other, &of_other)), 5),
            (None, Some((&other, &of_other)), 3),
            (Some((&a, &b)), None, 2),
        ] {
            let mut halves = Halves::default();
            let mut expected = Vec::new();
            for (number, half) in [gate, up].into_iter().enumerate() {
                let Some((a, b)) = half else {
                    expected.extend(nothing.clone());
                    continue;
                };
                halves.add("m", number, "lora_A", a.clone());
                halves.add("m", number, "lora_B", b.clone());
                expected.extend(product(a, b, 6.0 / a.dim(0).unwrap() as f64));
            }
            let mut adapter = RawAdapter::default();
            halves.join(Path::new("x"), Some(6.0), &mut adapter).unwrap();
            assert_eq!(adapter.r, rank);
            let [a, b] = ["lora_A", "lora_B"].map(|part| &adapter.tensors[&peft_name("m", part)]);
            for (got, expected) in
                product(a, b, 6.0 / rank as f64).into_iter().flatten().zip(expected.into_iter().flatten())
            {
                assert!((got - expected).abs() < 1e-3, "{got} {expected}");
            }
        }
        let mut halves = Halves::default();
        halves.add("m", 0, "lora_A", a);
        assert!(
            halves.join(Path::new("x"), None, &mut RawAdapter::default()).unwrap_err().to_string().contains("missing")
        );
    }
}
