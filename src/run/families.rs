//! What can be done with each family of models: for people who choose one, and for the documentation.

use crate::adapter::{ADAPTER_CONFIG, ADAPTER_TENSORS, AdapterConfig};
use crate::export::lint::{self, AdapterFacts, BaseFacts, Layout, Server, Settings, Severity, TensorFact};
use crate::models::{FamilyFacts, families};
use crate::nn::LoraConfig;
use crate::weights::gguf::architecture::Architecture;
use serde::Serialize;
use std::collections::BTreeSet;

/// What can be done with a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyReport {
    /// Hugging Face's name of the architecture.
    pub model_type: &'static str,
    /// Models of it.
    pub models: &'static str,
    /// The linear modules that `all-linear` adapts, by the last parts of their names.
    pub modules: Vec<&'static str>,
    /// GGUF's name of the architecture where GGUF is read and written; else it is a Hugging Face folder that is read.
    pub gguf: Option<&'static str>,
    /// Servers in whose way no rule of `lint` stands, for an adapter on all linear modules.
    pub servers: Vec<Server>,
}

/// All families, by their names.
pub fn family_reports() -> Vec<FamilyReport> {
    families().map(|facts| report(&facts)).collect()
}

fn report(facts: &FamilyFacts) -> FamilyReport {
    let last = |path: &&'static str| path.rsplit('.').next().unwrap_or(path);
    let gguf = Architecture::of_model_type(facts.model_type).map(|row| row.gguf);
    let adapter = adapter(facts);
    let takes = |server: &Server| {
        let findings = lint::lint(&adapter, &[*server], &Settings::default());
        // Those that want GGUF need a name for the architecture there.
        let converted = gguf.is_some() || ![Server::LlamaCpp, Server::Ollama].contains(server);
        converted && findings.iter().all(|finding| finding.severity == Severity::Note)
    };
    FamilyReport {
        model_type: facts.model_type,
        models: facts.models,
        modules: facts.modules.iter().map(last).collect(),
        gguf,
        servers: Server::ALL.into_iter().filter(takes).collect(),
    }
}

/// An adapter on all linear modules of a small model of the family.
fn adapter(facts: &FamilyFacts) -> AdapterFacts {
    const WIDTH: usize = 64;
    let config = AdapterConfig {
        base_model_name_or_path: "org/base".into(),
        base_sha256: None,
        lora: LoraConfig::default(),
        nested: false,
    };
    let paths: BTreeSet<String> =
        (0..2).flat_map(|layer| facts.modules.iter().map(move |path| format!("model.layers.{layer}.{path}"))).collect();
    let pair = |path: &String| {
        let shapes = [("lora_A", vec![config.lora.r, WIDTH]), ("lora_B", vec![WIDTH, config.lora.r])];
        shapes.map(|(part, shape)| TensorFact::new(format!("base_model.model.{path}.{part}.weight"), shape, "F32"))
    };
    let base = BaseFacts {
        model_type: facts.model_type.into(),
        layers: Some(2),
        modules: paths.iter().map(|path| (path.clone(), (WIDTH, WIDTH))).collect(),
        ..BaseFacts::default()
    };
    AdapterFacts {
        config: config.to_json(&paths).as_object().cloned().unwrap_or_default(),
        tensors: paths.iter().flat_map(pair).collect(),
        files: [ADAPTER_CONFIG, ADAPTER_TENSORS].map(str::to_owned).into(),
        weight_files: vec![ADAPTER_TENSORS.to_owned()],
        base: Some(base),
        ..AdapterFacts::new(Layout::Planned)
    }
}
