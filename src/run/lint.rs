//! What servers would make of an adapter that is there, and of one that a recipe will write.

use super::CHAT_TEMPLATE;
use super::prepare::open_base;
use crate::adapter::AdapterConfig;
use crate::error::Result;
use crate::export::lint::{self, AdapterFacts, BaseFacts, Finding, Layout, Server, Settings, Severity};
use crate::hub::BaseConfig;
use crate::recipe::Recipe;
use crate::train::Observer;
use crate::weights::Base;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What to check, and for whom.
#[derive(Debug, Clone)]
pub struct LintRequest {
    /// A folder of PEFT's or mlx-lm's, or a `.gguf` adapter.
    pub adapter: PathBuf,
    /// The servers.
    pub servers: Vec<Server>,
    /// What is known of them.
    pub settings: Settings,
    /// The base that they serve; by default the one that the adapter names, where it is on this machine.
    pub base: Option<String>,
    /// Fetch nothing.
    pub offline: bool,
}

/// How an adapter does with one server.
#[derive(Debug, Clone, Serialize)]
pub struct ServerReport {
    /// The server.
    pub server: Server,
    /// Findings for which it does not load the adapter.
    pub refused: usize,
    /// Findings by which it computes something else than was trained.
    pub wrong: usize,
    /// Flags to give and steps to take.
    pub notes: usize,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct LintSummary {
    /// The adapter.
    pub adapter: PathBuf,
    /// The base that its tensors were compared with, if there was one.
    pub base: Option<String>,
    /// One for each server asked for.
    pub servers: Vec<ServerReport>,
    /// Everything found, the worst first.
    pub findings: Vec<Finding>,
}

impl LintSummary {
    /// Whether every server asked for loads the adapter and computes what was trained, flags and steps apart.
    pub fn is_clean(&self) -> bool {
        self.servers.iter().all(|server| server.refused == 0 && server.wrong == 0)
    }
}

/// Checks an adapter by every rule that concerns the servers.
///
/// # Errors
/// When the adapter cannot be read, or a base was named that cannot be.
pub fn lint(request: &LintRequest, observer: &mut dyn Observer) -> Result<LintSummary> {
    let mut facts = AdapterFacts::read(&request.adapter)?;
    let base = match &request.base {
        Some(model) => {
            let config = BaseConfig { model: model.clone(), file: None };
            Some((model.clone(), open_base(&config, request.offline, observer)?))
        }
        None => own_base(&request.adapter, &facts, observer),
    };
    if has_template_of_base(&request.adapter, base.as_ref().map(|(_, base)| base)) {
        facts.files.remove(CHAT_TEMPLATE);
    }
    facts.base = base.as_ref().map(|(_, base)| BaseFacts::of(base));
    let findings = lint::lint(&facts, &request.servers, &request.settings);
    let asked = Server::ALL.into_iter().filter(|server| request.servers.contains(server));
    let servers = asked
        .map(|server| {
            let count = |severity: Severity| {
                let of = |finding: &&Finding| finding.severity == severity && finding.servers.contains(&server);
                findings.iter().filter(of).count()
            };
            let [refused, wrong, notes] = [Severity::Refused, Severity::Wrong, Severity::Note].map(count);
            ServerReport { server, refused, wrong, notes }
        })
        .collect();
    Ok(LintSummary { adapter: request.adapter.clone(), base: base.map(|(name, _)| name), servers, findings })
}

/// Whether the chat template beside an adapter is its base's own, which a server has anyway.
fn has_template_of_base(adapter: &Path, base: Option<&Base>) -> bool {
    let template = std::fs::read_to_string(adapter.join(CHAT_TEMPLATE)).ok();
    let same = template.is_some() && template.as_deref() == base.and_then(Base::chat_template);
    same || Recipe::load(&adapter.join("recipe.yaml"), &[]).is_ok_and(|recipe| recipe.data.chat_template.is_none())
}

/// The base that an adapter was trained on, where it is at hand: nothing is fetched for it, and that it is not there is no
/// error.
fn own_base(adapter: &Path, facts: &AdapterFacts, observer: &mut dyn Observer) -> Option<(String, Base)> {
    if facts.layout != Layout::Peft {
        return None;
    }
    let recipe = Recipe::load(&adapter.join("recipe.yaml"), &[]).ok();
    let config = recipe.map(|recipe| recipe.base).or_else(|| {
        let base = facts.text("base_model_name_or_path").filter(|base| !base.is_empty())?;
        let model = facts.text("revision").map_or_else(|| base.to_owned(), |revision| format!("{base}@{revision}"));
        Some(BaseConfig { model, file: None })
    })?;
    match open_base(&config, true, observer) {
        Ok(base) => Some((config.model, base)),
        Err(error) => {
            tracing::debug!(%error, "the base is not at hand");
            None
        }
    }
}

/// What the recipe's target servers would make of its adapter, as far as that is known before training.
pub(super) fn export_warnings(recipe: &Recipe, base: &Base, target_modules: &BTreeSet<String>) -> Vec<String> {
    let servers = &recipe.export.servers;
    if servers.is_empty() {
        let recommended = [8, 16, 32, 64];
        let odd = !recommended.contains(&recipe.lora.r);
        let text = format!("lora.r is {}: some servers take 8, 16, 32 and 64 only", recipe.lora.r);
        return odd.then_some(text).into_iter().collect();
    }
    let config = AdapterConfig {
        base_model_name_or_path: recipe.base.model.clone(),
        base_sha256: None,
        lora: recipe.lora.clone(),
        nested: base.wrapper().is_some(),
    };
    let files: &[&str] = if recipe.data.chat_template.is_some() { &[CHAT_TEMPLATE] } else { &[] };
    let facts = AdapterFacts::planned(&config, target_modules, base, files);
    lint::lint(&facts, servers, &Settings::default()).iter().map(warning).collect()
}

fn warning(finding: &Finding) -> String {
    let servers: Vec<&str> = finding.servers.iter().map(|server| server.name()).collect();
    let what = match finding.severity {
        Severity::Refused => "will not load the adapter",
        Severity::Wrong => "will load the adapter and compute something else",
        Severity::Note => "will need more than the adapter",
    };
    let Finding { rule, found, why, fix, .. } = finding;
    format!("export.for: {} {what}: {found}: {why}; {fix} ({rule})", servers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::AdapterBundle;

    const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/gene_ontology/base");
    const ADAPTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/peft_adapter");

    fn warnings(overrides: &[&str]) -> Vec<String> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let text = format!("base:\n  model: {BASE}\ndata:\n  train: rows.jsonl\n");
        let recipe = Recipe::parse(&text, Path::new("x.yaml"), &overrides).unwrap();
        let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let all = targets.into_iter().filter(|name| recipe.lora.targets(name)).map(str::to_owned).collect();
        export_warnings(&recipe, &Base::open(Path::new(BASE)).unwrap(), &all)
    }

    #[test]
    fn a_recipe_is_warned_of_what_its_servers_would_refuse() {
        assert_eq!(warnings(&[]), [""; 0]);
        assert_eq!(warnings(&["lora.r=7"]), ["lora.r is 7: some servers take 8, 16, 32 and 64 only"]);
        assert_eq!(warnings(&["export.for=[vllm, sglang, mistralrs]"]), [""; 0]);
        let odd = warnings(&["export.for=[vllm, tgi]", "lora.r=24", "base.model=org/base"]);
        let [wrong, flag] = &odd[..] else { panic!("{odd:?}") };
        assert!(
            wrong.starts_with("export.for: tgi will load the adapter and compute something else: `r` is 24"),
            "{wrong}"
        );
        assert!(flag.contains("vllm") && flag.contains("--max-lora-rank 32"), "{flag}");
        // Rank-stabilised scaling is folded when the adapter is written.
        assert_eq!(warnings(&["export.for=[sglang]", "lora.use_rslora=true"]), [""; 0]);
        let half = warnings(&["export.for=[sglang]", "lora.target_modules=[q_proj]"]);
        assert!(half.len() == 1 && half[0].contains("sglang will not load the adapter"), "{half:?}");
        let template = warnings(&["export.for=[vllm]", "data.chat_template=chatml"]);
        assert!(template.len() == 1 && template[0].contains("chat_template.jinja"), "{template:?}");
    }

    fn request(adapter: &Path, servers: &[Server]) -> LintRequest {
        LintRequest {
            adapter: adapter.into(),
            servers: servers.to_vec(),
            settings: Settings::default(),
            base: Some(BASE.into()),
            offline: true,
        }
    }

    #[test]
    fn an_adapter_is_held_against_its_base() {
        let summary = lint(&request(Path::new(ADAPTER), &[Server::Vllm, Server::Peft]), &mut ()).unwrap();
        assert!(summary.is_clean() && summary.base.is_some(), "{summary:?}");
        let summary = lint(&request(Path::new(ADAPTER), &[Server::Tgi]), &mut ()).unwrap();
        assert_eq!((summary.servers.len(), summary.servers[0].wrong, summary.is_clean()), (1, 1, false), "rank 4");

        // The same tensors under names of layers that the base does not have.
        let mut bundle = AdapterBundle::load(Path::new(ADAPTER), &Base::open(Path::new(BASE)).unwrap()).unwrap();
        bundle.tensors =
            bundle.tensors.into_iter().map(|(name, t)| (name.replace("layers.0.", "layers.99."), t)).collect();
        let folder = tempfile::tempdir().unwrap();
        bundle.save(folder.path(), candle_core::DType::F32).unwrap();
        let summary = lint(&request(folder.path(), &Server::ALL), &mut ()).unwrap();
        let found: Vec<&str> = summary.findings.iter().map(|finding| finding.rule).collect();
        assert!(found.contains(&"unknown-module-kind") && found.contains(&"unknown-module"), "{found:?}");
        let without = LintRequest { base: None, ..request(folder.path(), &Server::ALL) };
        std::fs::write(folder.path().join("recipe.yaml"), "base: {model: /nowhere}\ndata: {train: x}\n").unwrap();
        assert_eq!(lint(&without, &mut ()).unwrap().base, None, "that a base is not there is no error");
        assert!(lint(&LintRequest { base: Some("/nowhere".into()), ..without }, &mut ()).is_err());
    }
}
