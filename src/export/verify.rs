//! Whether an export says what base and adapter say: both read the same texts, and their distributions are compared.

use super::Manifest;
use crate::adapter::AdapterBundle;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::models::{self, CausalLm, Model};
use crate::nn::{QuantizationConfig, QuantizationType};
use crate::weights::Base;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// How far two models are apart on the same texts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Positions that were compared.
    pub tokens: usize,
    /// The mean of KL(reference ‖ export) over the positions, in nats.
    pub mean_kl: f64,
    /// The largest of them.
    pub max_kl: f64,
    /// The share of positions where both rank the same token first.
    pub top1_agreement: f64,
    /// The largest difference of two logits.
    pub max_logit_difference: f64,
}

/// The logits of a reference, text by text, to compare others with.
pub struct Reference {
    texts: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
    /// How far the base alone is from it: what the adapter does.
    pub base_alone: Difference,
}

impl Reference {
    /// Runs base and adapter over the texts, and the base alone.
    ///
    /// # Errors
    /// When a text has no token, or too many.
    pub fn new(lm: &CausalLm, texts: Vec<Vec<u32>>, device: &Device) -> Result<Self> {
        let logits: Vec<Vec<f32>> = texts.iter().map(|ids| Ok(lm.logits(ids, true, device)?)).collect::<Result<_>>()?;
        if logits.iter().flatten().any(|logit| !logit.is_finite()) {
            return Err(Error::invalid(
                "base and adapter give logits that are not finite: the adapter's numbers are too large",
            )
            .with_help("the run that wrote it may have diverged; --no-verify exports it all the same"));
        }
        let mut reference = Self { texts, logits, base_alone: Difference::default() };
        reference.base_alone = reference.compare_with(lm, false, device)?;
        Ok(reference)
    }

    /// Runs another model over the same texts.
    ///
    /// # Errors
    /// When it cannot read them.
    pub fn compare(&self, lm: &CausalLm, device: &Device) -> Result<Difference> {
        self.compare_with(lm, true, device)
    }

    fn compare_with(&self, lm: &CausalLm, adapter: bool, device: &Device) -> Result<Difference> {
        let vocabulary = lm.dimensions.vocabulary;
        let mut difference = Difference::default();
        let mut same = 0;
        for (ids, reference) in self.texts.iter().zip(&self.logits) {
            let logits = lm.logits(ids, adapter, device)?;
            // A vocabulary may be filled up with tokens that nobody uses.
            let of_reference = reference.len() / ids.len();
            for (p, q) in reference.chunks_exact(of_reference).zip(logits.chunks_exact(vocabulary)) {
                let common = p.len().min(q.len());
                let (p, q) = (&p[..common], &q[..common]);
                let kl = kl_divergence(p, q);
                difference.tokens += 1;
                difference.mean_kl += kl;
                difference.max_kl = difference.max_kl.max(kl);
                same += usize::from(argmax(p) == argmax(q));
                let gap = |(p, q): (&f32, &f32)| if q.is_finite() { f64::from((p - q).abs()) } else { f64::INFINITY };
                let largest = p.iter().zip(q).map(gap).fold(0.0, f64::max);
                difference.max_logit_difference = difference.max_logit_difference.max(largest);
            }
        }
        difference.mean_kl /= difference.tokens.max(1) as f64;
        difference.top1_agreement = same as f64 / difference.tokens.max(1) as f64;
        Ok(difference)
    }
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).reduce(|best, i| if logits[i] > logits[best] { i } else { best }).unwrap_or(0)
}

/// `Σ pᵢ·(log pᵢ − log qᵢ)` of two rows of logits, in nats; not below 0, which rounding alone would give.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(top) + logits.iter().map(|&x| f64::from(x - top).exp()).sum::<f64>().ln()
    };
    let (of_p, of_q) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (log_p, log_q) = (f64::from(p) - of_p, f64::from(q) - of_q);
        log_p.exp() * (log_p - log_q)
    });
    let sum: f64 = terms.sum();
    // A NaN is as far as it goes.
    if sum.is_finite() { sum.max(0.0) } else { f64::INFINITY }
}

/// The most nats of mean KL that an export of these types may be off by: what was measured on `SmolLM2` with an adapter far from
/// zero (tests/benches/EXPORT.md), with room for other models. Wrong names, orders or scales give far more; types of few bits
/// may give more too, and are then no good.
pub fn allowed_kl(manifest: &Manifest) -> f64 {
    let merged = ["merged", "gguf", "ollama"].contains(&manifest.target.as_str());
    let of_type = |name: &str| match name {
        "f32" => 1e-5,
        "f16" | "bf16" => 1e-2,
        "q8_0" => 2e-2,
        "q6_k" | "q5_0" | "q5_1" | "q5_k" => 0.1,
        "q4_0" | "q4_1" | "q4_k" | "iq4_nl" | "iq4_xs" => 0.5,
        _ => 2.0,
    };
    let worst = manifest.types.iter().map(|(name, _)| of_type(name)).fold(1e-5, f64::max);
    // The original weights differ from those of the training by these being quantized.
    if manifest.original && merged { worst.max(0.5) } else { worst }
}

/// Opens what an export wrote. An adapter is put on `base`, held as in training.
///
/// # Errors
/// When it cannot be read: nobody else could either.
pub fn open_export(
    folder: &Path,
    manifest: &Manifest,
    base: &Base,
    held: QuantizationConfig,
    device: &Device,
) -> Result<Model> {
    let whole = |path: &Path| -> Result<Model> {
        let exported = Base::open(path)?;
        let kind = if exported.is_gguf() { QuantizationType::Auto } else { QuantizationType::None };
        models::load(&exported, QuantizationConfig { kind }, None, 0, device, false)
    };
    let beside = |path: &Path| -> Result<Model> {
        let bundle = AdapterBundle::load(path, base)?;
        let model = models::load(base, held, Some(&bundle.config.lora), 0, device, false)?;
        model.params.assign(&bundle.tensors, path)?;
        Ok(model)
    };
    let gguf = || -> Result<PathBuf> {
        let is = |name: &str| Path::new(name).extension().is_some_and(|extension| extension == "gguf");
        let file = manifest.files.iter().find(|file| is(&file.name));
        file.map(|file| folder.join(&file.name)).ok_or_else(|| Error::file(folder, "holds no GGUF file"))
    };
    match manifest.target.as_str() {
        "peft" | "mlx" => beside(folder),
        "gguf-adapter" | "ollama-adapter" => beside(&gguf()?),
        "merged" => whole(folder),
        "gguf" | "ollama" => whole(&gguf()?),
        other => Err(Error::file(folder, format!("is an export for `{other}`, which this version does not know"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_the_distributions() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2·ln 2 − 1/4·ln 2 = ln 2 / 4. Logits are free of their offset.
        let p = [2f32.ln(), 0.0, 0.0];
        let q = [7.0, 7.0 + 2f32.ln(), 7.0];
        assert!((kl_divergence(&p, &q) - 2f64.ln() / 4.0).abs() < 1e-7);
        assert!(kl_divergence(&p, &p) < 1e-12);
        assert_eq!(argmax(&q), 1);
    }
}
