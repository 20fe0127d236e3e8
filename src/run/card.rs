//! The adapter's companions: the base's tokenizer, so that `AutoTokenizer` loads the folder, and the card.

use super::output::OutputFolder;
use super::prepare::Prepared;
use super::report::Sample;
use super::{MeasuredAtEnd, TaskChange};
use crate::adapter::{
    CardFacts, CardKind, CardRows, CardSample, CardTask, CardValidation, hub_id, model_card, published_base,
};
use crate::data::{DataConfig, DataReport, Sources};
use crate::error::{Error, Result};
use crate::export::tokenizer_files;
use crate::fs;
use crate::hub::dataset_id;
use crate::recipe::Recipe;
use crate::train::{Event, FitSummary, Observer};
use std::path::{Path, PathBuf};

/// The base as the adapter names it: the recipe's `hub.base` or its Hub id where one is known, else its path.
pub(super) fn base_name(recipe: &Recipe, prepared: &Prepared) -> String {
    let said = recipe.hub.as_ref().and_then(|hub| hub.base.clone());
    said.or_else(|| published_base(&recipe.base.model, &prepared.base)).unwrap_or_else(|| recipe.base.model.clone())
}

/// Writes the tokenizer's files. That they cannot be made does not spoil a run that is done.
///
/// # Errors
/// When the disk refuses.
pub(super) fn write_tokenizer(
    prepared: &Prepared,
    out: &OutputFolder,
    observer: &mut dyn Observer,
) -> Result<Vec<PathBuf>> {
    let files = match tokenizer_files(&prepared.base, prepared.chat_template.as_deref()) {
        Ok(files) => files,
        Err(error) => {
            observer.event(&Event::Note(format!("the tokenizer is not written beside the adapter: {error}")));
            return Ok(Vec::new());
        }
    };
    let mut written = Vec::new();
    for (name, bytes) in files {
        let path = out.path().join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        fs::write_atomic(&path, &bytes)?;
        written.push(path);
    }
    Ok(written)
}

/// Writes the card.
///
/// # Errors
/// When the disk refuses.
pub(super) fn write_card(
    recipe: &Recipe,
    prepared: &Prepared,
    fit: &FitSummary,
    (sample, at_end): (Option<&Sample>, &MeasuredAtEnd),
    out: &OutputFolder,
) -> Result<PathBuf> {
    let measured = super::of_adapter(fit);
    let objective = serde_json::to_value(recipe.objective.kind).ok();
    let validation = measured.map(|(before, after)| CardValidation {
        cross_entropy: (before.cross_entropy, after.cross_entropy),
        token_accuracy: (before.token_accuracy, after.token_accuracy),
        token_probability: (before.token_probability, after.token_probability),
        objective_loss: (before.objective_loss, after.objective_loss),
    });
    let hub = recipe.hub.as_ref();
    let (datasets, validation_dataset) = hub_datasets(&recipe.data);
    let text = model_card(&CardFacts {
        kind: CardKind::Adapter,
        name: &recipe.name,
        repo: hub.map(|hub| hub.repo.as_str()),
        base_model: &base_name(recipe, prepared),
        multimodal: prepared.base.wrapper().is_some(),
        r: Some(recipe.lora.r),
        objective: objective.as_ref().and_then(serde_json::Value::as_str),
        rows: Some(rows(&recipe.data, &prepared.dataset.report)),
        training: training(recipe, prepared, fit),
        validation,
        verdict: super::verdict(recipe, fit).map(|verdict| sentence(&verdict)),
        began_with: super::began_with(recipe),
        raw: prepared.dataset.report.conversations == 0,
        // A row may be somebody's: it goes into a file that is made to be sent only where the recipe says so.
        tasks: at_end.tasks.iter().map(task).collect(),
        general_text: at_end.forgetting.map(|of| (of.base_perplexity, of.perplexity)),
        sample: sample.filter(|_| recipe.data.sample_in_card).map(shown),
        validation_dataset: validation_dataset.as_deref(),
        datasets: &datasets,
        license: hub.and_then(|hub| hub.license.as_deref()),
        language: hub.and_then(|hub| hub.language.as_deref()),
        recipe: Some(&recipe.to_short_yaml()?),
    });
    let path = out.path().join("README.md");
    fs::write_atomic(&path, text.as_bytes())?;
    Ok(path)
}

fn task(of: &TaskChange) -> CardTask {
    let with_error = |value: f64, stderr: Option<f64>| {
        stderr.map_or_else(|| format!("{value:.4}"), |stderr| format!("{value:.4} ± {stderr:.4}"))
    };
    let arrow = if of.after.score.higher_is_better { '↑' } else { '↓' };
    CardTask {
        name: format!("{} {arrow}", of.name()),
        items: of.after.score.items,
        base: with_error(of.base, of.base_stderr),
        adapter: with_error(of.after.score.value, of.after.score.stderr),
    }
}

fn shown(sample: &Sample) -> CardSample<'_> {
    CardSample { prompt: &sample.prompt, reference: &sample.reference, before: &sample.before, after: &sample.after }
}

/// A verdict as a sentence of its own.
pub(super) fn sentence(verdict: &str) -> String {
    let mut letters = verdict.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}

/// Rows in numbers. Of a file the name is given, not its folders.
fn rows(data: &DataConfig, report: &DataReport) -> CardRows {
    let name = |source: &crate::data::SourceConfig| match (&source.hub, &source.path) {
        (Some(id), _) => Some(dataset_id(id).split('@').next()?.to_owned()),
        (None, Some(path)) => Some(Path::new(path).file_name()?.to_string_lossy().into_owned()),
        (None, None) => None,
    };
    let mut sources: Vec<String> = data.train.0.iter().filter_map(name).collect();
    sources.dedup();
    let left_out = [
        (report.dropped, "too long"),
        (report.skipped, "that could not be read"),
        (report.unlearnt, "with nothing to learn"),
    ];
    CardRows {
        sources,
        train: report.train_rows,
        validation: report.validation_rows,
        left_out: left_out.into_iter().filter(|(count, _)| *count > 0).map(|(n, why)| (n, why.to_owned())).collect(),
    }
}

fn training(recipe: &Recipe, prepared: &Prepared, fit: &FitSummary) -> Vec<(&'static str, String)> {
    let (lora, training) = (&recipe.lora, &recipe.training);
    let steps = match fit.adapter_step {
        step if step == fit.state.step => step.to_string(),
        step => format!("{step} of {}, where validation was best", fit.state.step),
    };
    let rows = training.micro_batch_size * training.gradient_accumulation_steps;
    let scale = if lora.use_rslora { "√r" } else { "r" };
    let mut facts = vec![
        ("steps", format!("{steps}, of {rows} row{} each", if rows == 1 { "" } else { "s" })),
        ("learning rate", format!("{:e}", training.learning_rate)),
        (
            "LoRA",
            format!(
                "r {}, alpha {} (scaled by alpha / {scale}), dropout {}",
                lora.r, lora.lora_alpha, lora.lora_dropout
            ),
        ),
        ("longest row", format!("{} tokens at most", prepared.max_seq_len)),
        ("base held as", prepared.held()),
        ("device", prepared.device_name()),
        ("seed", training.seed.to_string()),
    ];
    let (tokens, seconds) = (fit.state.tokens, fit.state.seconds);
    if tokens > 0 && seconds > 0.0 {
        facts.insert(1, ("tokens", format!("{tokens} in {seconds:.1} s of steps")));
    }
    facts
}

/// The Hub's datasets that were trained on, and the one that the validation rows are from, if they are from one.
fn hub_datasets(data: &DataConfig) -> (Vec<String>, Option<String>) {
    let ids = |sources: &Sources| -> Vec<Option<String>> {
        let id = |hub: &String| Some(dataset_id(hub).split('@').next()?.to_owned()).filter(|id| hub_id(id).is_some());
        sources.0.iter().map(|source| source.hub.as_ref().and_then(id)).collect()
    };
    let train = ids(&data.train);
    let held_out = data.validation.as_ref().map_or_else(|| train.clone(), ids);
    let single = match held_out.as_slice() {
        [Some(id)] => Some(id.clone()),
        _ => None,
    };
    let mut train: Vec<String> = train.into_iter().flatten().collect();
    train.dedup();
    (train, single)
}
