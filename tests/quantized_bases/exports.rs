//! What is exported of a base that is stored quantized.

use super::numbers;
use crate::support::{ALL_LINEAR, TINY, golden, lora, stir};
use equipoise::adapter::{AdapterBundle, AdapterConfig};
use equipoise::device::Device;
use equipoise::export::{self, ExportOptions, FloatType, GgufType, Job, Manifest, Reference, Target, open_export};
use equipoise::models;
use equipoise::nn::{QuantizationConfig, QuantizationType};
use equipoise::weight_type::WeightType;
use equipoise::weights::Base;
use std::path::{Path, PathBuf};

const AUTO: QuantizationConfig = QuantizationConfig { kind: QuantizationType::Auto };

/// A base with an adapter on some modules, and what both say.
struct Trained {
    base: Base,
    adapter: AdapterBundle,
    reference: Reference,
}

impl Trained {
    fn new(base: &Path, targets: &[&str]) -> Self {
        let base = Base::open(base).unwrap();
        let lora = lora(3, targets);
        let model = models::load(&base, AUTO, Some(&lora), 3, &Device::Cpu, false).unwrap();
        stir(&model);
        let config = AdapterConfig { base_model_name_or_path: "base".into(), base_sha256: None, nested: false, lora };
        let adapter = AdapterBundle { config, tensors: model.params.to_tensors().unwrap() };
        let texts = vec![(0..40).map(|i| i * 37 % TINY.vocabulary as u32).collect()];
        let reference = Reference::new(&model.lm, texts, &Device::Cpu).unwrap();
        Self { base, adapter, reference }
    }

    /// Exports, and compares with base and adapter: the largest difference of logits.
    fn export(&self, target: &str, folder: &Path, options: ExportOptions) -> (PathBuf, Manifest, f64) {
        let job = Job {
            name: "tiny",
            path: folder,
            adapter: &self.adapter,
            base_name: "base",
            base_given: false,
            original: false,
            quantization: AUTO,
            base: &self.base,
            chat_template: None,
            stop: &[],
            options,
        };
        let out = folder.join(target);
        let manifest =
            export::export(Target::find(target).unwrap(), &job, &out, false, &mut |_, _| true).unwrap().manifest;
        let again = open_export(&out, &manifest, &self.base, AUTO, &Device::Cpu).unwrap();
        let difference = self.reference.compare(&again.lm, &Device::Cpu).unwrap();
        (out, manifest, difference.max_logit_difference)
    }
}

/// A merge is of the weights that were trained on; it says nothing of bitsandbytes any more.
#[test]
fn a_merge_of_nf4_is_dequantized() {
    let folder = tempfile::tempdir().unwrap();
    let trained = Trained::new(&golden("quantized/nf4"), &ALL_LINEAR);
    let alone = trained.reference.base_alone.max_logit_difference;
    assert!(alone > 1e-2, "the adapter does something: {alone}");
    let f32 = ExportOptions { dtype: Some(FloatType::F32), quantize: None, prefix: None };
    let (out, manifest, difference) = trained.export("merged", folder.path(), f32);
    assert!(difference < 1e-4, "{difference}");
    assert_eq!(manifest.types.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["f32"]);
    let merged = Base::open(&out).unwrap();
    assert!(!merged.config().contains_key("quantization_config"));
    assert!(merged.tensor_names().eq(trained.base.tensor_names()));
    let folder = tempfile::tempdir().unwrap();
    let (_, manifest, difference) = trained.export("merged", folder.path(), ExportOptions::default());
    assert_eq!(manifest.types.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["bf16"]);
    assert!(difference < alone / 2.0, "{difference}, where the adapter does {alone}");
}

/// Of a GGUF base, what the adapter leaves alone is copied byte for byte; the rest is `q8_0`, or what is asked for.
#[test]
fn a_gguf_file_in_iq4_keeps_what_the_adapter_leaves_alone() {
    let folder = tempfile::tempdir().unwrap();
    let trained = Trained::new(&golden("quantized/iq4.gguf"), &["q_proj", "down_proj"]);
    let (out, manifest, difference) = trained.export("gguf", folder.path(), ExportOptions::default());
    let count = |name: &str| manifest.types.iter().find(|(each, _)| each == name).map(|(_, count)| *count);
    assert_eq!((count("iq4_nl"), count("iq4_xs"), count("q8_0")), (Some(5), None, Some(2)), "{:?}", manifest.types);
    assert!(difference < 0.2, "{difference}");
    let file = manifest.files.iter().find(|file| file.name.ends_with("gguf")).unwrap();
    let written = Base::open(&out.join(&file.name)).unwrap();
    for name in trained.base.tensor_names() {
        let (before, after) = (trained.base.read(name).unwrap(), written.read(name).unwrap());
        if name.contains("q_proj") || name.contains("down_proj") {
            assert_eq!(after.dtype, WeightType::Q8_0);
            assert_ne!(numbers(&before), numbers(&after));
        } else {
            assert_eq!(before, after, "{name}");
        }
    }
    // Mostly IQ4_NL.
    assert_eq!(written.gguf_metadata().unwrap().number("general.file_type").unwrap(), Some(25));

    // Asked for, everything is written anew.
    let folder = tempfile::tempdir().unwrap();
    let f16 = ExportOptions { dtype: None, quantize: Some(GgufType::Float(FloatType::F16)), prefix: None };
    let (_, manifest, difference) = trained.export("gguf", folder.path(), f16);
    assert!(manifest.types.iter().all(|(name, _)| name == "f16" || name == "f32"), "{:?}", manifest.types);
    assert!(difference < 0.05, "{difference}");
}
