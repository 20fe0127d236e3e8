//! PEFT's folder: what `vLLM`, `SGLang`, TGI, `LoRAX` and mistral.rs take beside a base.

use super::{FloatType, Job, Output, Prefix, TOKENIZER_FILES};
use crate::adapter::{AdapterBundle, AdapterConfig};
use crate::error::Result;
use crate::weights::CHAT_TEMPLATES_FOLDER;
use std::path::Path;

/// Files of the adapter's own folder that go along.
const COMPANIONS: &[&str] = &["README.md", "recipe.yaml"];

pub(super) fn export(job: &Job<'_>, out: &mut Output<'_>) -> Result<()> {
    let dtype = job.options.dtype.unwrap_or(FloatType::F32);
    let folder = out.folder().to_owned();
    let own = job.adapter.config.nested;
    let nested = job.options.prefix.map_or(own, |prefix| prefix == Prefix::Multimodal);
    let config = AdapterConfig { nested, ..job.adapter.config.clone() };
    let adapter = AdapterBundle { config, tensors: job.adapter.tensors.clone() };
    for path in adapter.save(&folder, dtype.candle())? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        out.adopt(&name)?;
    }
    for _ in &job.adapter.tensors {
        out.count(dtype.weight_type());
    }
    // The card loads the base's own class, in which these names do nothing.
    let other_class = nested != own;
    if other_class {
        let class = if nested { "a multimodal" } else { "a text-only" };
        out.note(format!(
            "the modules are named as in {class} model; README.md is not copied, because it loads the base's own class"
        ));
    }
    if job.path.is_dir() {
        let companions = COMPANIONS.iter().filter(|name| !other_class || **name != "README.md");
        for name in companions.chain(TOKENIZER_FILES) {
            out.copy_if_there(job.path, name)?;
        }
        let named = std::fs::read_dir(job.path.join(CHAT_TEMPLATES_FOLDER)).into_iter().flatten().flatten();
        let mut named: Vec<_> = named.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        named.sort();
        for name in named.iter().filter(|name| Path::new(name).extension().is_some_and(|kind| kind == "jinja")) {
            out.copy_if_there(job.path, &format!("{CHAT_TEMPLATES_FOLDER}/{name}"))?;
        }
    }
    Ok(())
}
