//! What can be done with each family of models: for people who choose one, and for the documentation.

use crate::adapter::{ADAPTER_CONFIG, ADAPTER_TENSORS, AdapterConfig};
use crate::export::lint::{self, AdapterFacts, BaseFacts, Layout, Server, Settings, Severity, TensorFact};
use crate::export::{TARGETS, Target};
use crate::models::{FamilyFacts, families};
use crate::nn::LoraConfig;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::multimodal_name;
use serde::Serialize;
use std::collections::BTreeSet;

/// Families that only multimodal models have, and the class of those.
const MULTIMODAL_ONLY: [(&str, &str); 1] = [("qwen3_vl_text", "Qwen3VLForConditionalGeneration")];

/// What can be done with a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyReport {
    /// Hugging Face's name of the architecture.
    pub model_type: &'static str,
    /// Models of it.
    pub models: &'static str,
    /// The linear modules that `all-linear` adapts, by the last parts of their names.
    pub modules: Vec<&'static str>,
    /// What it is trained on.
    pub trains: [&'static str; 2],
    /// What it is read from.
    pub reads: Vec<&'static str>,
    /// GGUF's name of the architecture, where there is one.
    pub gguf: Option<&'static str>,
    /// The targets of `export` that there are for it.
    pub exports: Vec<&'static str>,
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
    let servers: Vec<_> = Server::ALL.into_iter().filter(takes).collect();
    let written = |target: &&Target| match target.name {
        "mlx" => servers.contains(&Server::Mlx),
        _ => gguf.is_some() || !target.is_gguf(),
    };
    FamilyReport {
        model_type: facts.model_type,
        models: facts.models,
        modules: facts.modules.iter().map(last).collect(),
        // The layers have one set of parts, and each part has both.
        trains: ["cpu", "cuda"],
        reads: ["safetensors"].into_iter().chain(gguf.map(|_| "gguf")).collect(),
        gguf,
        exports: TARGETS.iter().filter(|target| written(target)).map(|target| target.name).collect(),
        servers,
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
    let multimodal = MULTIMODAL_ONLY.iter().find(|(text, _)| *text == facts.model_type).map(|(_, class)| *class);
    let name = |path: String| if multimodal.is_some() { multimodal_name(&path) } else { path };
    let layer = |layer| facts.modules.iter().map(move |path| name(format!("model.layers.{layer}.{path}")));
    let paths: BTreeSet<String> = (0..2).flat_map(layer).collect();
    let pair = |path: &String| {
        let shapes = [("lora_A", vec![config.lora.r, WIDTH]), ("lora_B", vec![WIDTH, config.lora.r])];
        shapes.map(|(part, shape)| TensorFact::new(format!("base_model.model.{path}.{part}.weight"), shape, "F32"))
    };
    let base = BaseFacts {
        model_type: facts.model_type.into(),
        layers: Some(2),
        multimodal: multimodal.map(str::to_owned),
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
