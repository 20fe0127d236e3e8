//! What a user should know before training: settings that will not do what they were meant to, rows that will not teach.

use super::Prepared;
use super::lint::export_warnings;
use crate::data::{DataConfig, DataReport, Encoder, named};
use crate::recipe::Recipe;

/// With fewer learnt tokens, the noise of a validation is larger than what training changes.
const FEW_VALIDATION_TOKENS: u64 = 200;

/// The share of rows that may be left out without a warning.
const MOST_LEFT_OUT: f64 = 0.02;

impl Prepared {
    pub(super) fn warnings(&self, recipe: &Recipe) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(data_warnings(&self.dataset.report));
        warnings.extend(template_warning(&self.encoder, &recipe.data));
        warnings.extend(self.validation_warnings(recipe));
        let width = self.dimensions().hidden;
        if recipe.lora.r > width {
            let r = recipe.lora.r;
            warnings.push(format!("lora.r is {r}, and the base is {width} wide: a rank over the width adds nothing"));
        }
        for key in recipe.objective.unused_keys() {
            let name = recipe.objective.kind.name();
            warnings.push(format!("objective.{key} does nothing: `objective.type` is `{name}`"));
        }
        warnings.extend(self.memory_warnings(recipe));
        warnings.extend(export_warnings(recipe, &self.base, &self.rehearsal.report.target_modules));
        warnings
    }

    /// What the validation rows are too few to show.
    fn validation_warnings(&self, recipe: &Recipe) -> Option<String> {
        if self.dataset.validation.is_empty() {
            let stopping = match recipe.training.early_stopping_patience {
                0 => "",
                _ => ", and `training.early_stopping_patience` stops nothing",
            };
            let set = "set `data.validation` or `data.validation_split`";
            return Some(format!("there is no validation data{stopping}: {set}"));
        }
        let learnt: u64 = self.dataset.validation.entries().map(|entry| u64::from(entry.supervised)).sum();
        let rows = self.dataset.validation.len();
        (learnt < FEW_VALIDATION_TOKENS).then(|| {
            let rows =
                if rows == 1 { "one validation row has".to_owned() } else { format!("{rows} validation rows have") };
            format!("the {rows} {learnt} learnt tokens in all: too few to tell which adapter is better")
        })
    }
}

/// What a user should know of the data before it is trained on.
pub(super) fn data_warnings(report: &DataReport) -> Vec<String> {
    let mut warnings = Vec::new();
    if report.eos_unsupervised_rows > 0 {
        warnings.push(format!(
            "the model does not learn to stop in {} of the data: the last learnt token ends no turn",
            rows(report.eos_unsupervised_rows)
        ));
    }
    warnings.extend(left_out_warnings(report));
    warnings.extend(report.turn_warnings());
    warnings.extend(template_warnings(report));
    if report.leaks > 0 {
        let rows = if report.leaks == 1 { "validation row" } else { "validation rows" };
        warnings.push(format!(
            "in the training data too: {} {rows}{}; the validation loss looks better than it is",
            report.leaks,
            example(&report.leak_examples)
        ));
    }
    if report.duplicates > 0 {
        let rows = if report.duplicates == 1 { "duplicate row" } else { "duplicate rows" };
        warnings.push(format!("{} {rows}{}", report.duplicates, example(&report.duplicate_examples)));
    }
    warnings
}

/// Rows that are not trained on.
fn left_out_warnings(report: &DataReport) -> Vec<String> {
    let mut warnings = Vec::new();
    let (dropped, all) = (report.dropped, report.rows);
    if dropped as f64 > MOST_LEFT_OUT * all as f64 {
        warnings.push(format!(
            "{:.0}% of the data is left out: {dropped} of {} are longer than `data.max_seq_len`; raise it, or set `data.overlong: \
             truncate`",
            100.0 * dropped as f64 / all as f64,
            rows(all)
        ));
    }
    for (count, why, examples) in [
        (report.skipped, "not readable", &report.skipped_examples),
        (report.unlearnt, "there is nothing in them to learn", &report.unlearnt_examples),
    ] {
        if count > 0 {
            warnings.push(format!("left out, since {why}: {}{}", rows(count), example(examples)));
        }
    }
    warnings
}

/// What the chat template does not write as the data has it.
fn template_warnings(report: &DataReport) -> Vec<String> {
    let mut warnings = Vec::new();
    if report.tools_left_out > 0 {
        warnings.push(format!(
            "tools of {} are not taught: the chat template leaves them out (`data.chat_template` names another)",
            rows(report.tools_left_out)
        ));
    }
    if let (1.., Some(opening)) = (report.asked_otherwise, &report.asked_with) {
        warnings.push(format!(
            "the chat template asks with {opening:?}, and the last answer of {} does not begin with it: the answers are \
             learnt as the template writes them; give the rows thoughts (`reasoning_content`), or name a template that asks \
             without (`data.chat_template`)",
            rows(report.asked_otherwise)
        ));
    }
    if report.thoughts_left_out > 0 {
        warnings.push(format!(
            "thoughts of {} are not learnt: the chat template leaves them out (`data.chat_template` names another)",
            rows(report.thoughts_left_out)
        ));
    }
    warnings
}

fn rows(n: usize) -> String {
    if n == 1 { "1 row".to_owned() } else { format!("{n} rows") }
}

fn example(examples: &[String]) -> String {
    examples.first().map(|example| format!(" ({example})")).unwrap_or_default()
}

/// Marks of a named template that the tokenizer does not have as tokens of their own: the model reads them letter by letter.
pub(super) fn template_warning(encoder: &Encoder, data: &DataConfig) -> Option<String> {
    let name = data.chat_template.as_ref()?;
    let split = encoder.split_marks(named::find(name)?.marks);
    (!split.is_empty()).then(|| {
        format!(
            "the chat template `{name}` writes {}, which the base's tokenizer has no tokens for: it cuts them into pieces",
            split.join(", ")
        )
    })
}
