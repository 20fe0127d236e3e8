//! What a recipe's data amounts to, and its rows as the model sees them; nothing is trained.

use super::contamination::{AgainstRequest, ContaminationReport, Suspects};
use super::prepare::{self, open_base};
use super::warnings::{data_warnings, template_warning};
use super::{RunOptions, output};
use crate::data::{DataReport, Rows};
use crate::error::Result;
use crate::recipe::Recipe;
use crate::train::Observer;
use serde::Serialize;
use std::time::Instant;

/// What [`data`] found.
#[derive(Debug, Clone, Serialize)]
pub struct DataSummary {
    /// The data in numbers.
    pub data: DataReport,
    /// The recipe's `data.max_seq_len`.
    pub max_seq_len: usize,
    /// Where the chat template comes from, where there is one.
    pub chat_template: Option<String>,
    /// Seconds of reading and tokenizing, or of finding the tokens of an earlier run.
    pub seconds: f64,
    /// The rows that were asked for.
    pub rows: Vec<ShownRow>,
    /// What is odd, but no error.
    pub warnings: Vec<String>,
    /// The items of tasks that stand in the rows to train on, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<ContaminationReport>,
}

/// A row as the model sees it.
#[derive(Debug, Clone, Serialize)]
pub struct ShownRow {
    /// `train` or `validation`.
    pub split: &'static str,
    /// Its number within the split, from 1.
    pub number: usize,
    /// The line of its file, from 1.
    pub line: u32,
    /// Tokens.
    pub tokens: usize,
    /// Of these, learnt.
    pub supervised: usize,
    /// Text with its special tokens, and whether it is learnt.
    pub segments: Vec<(String, bool)>,
}

/// Reads and tokenizes the data of a recipe, as [`super::train`] would, with the first `show` rows of each source. `against` names
/// tasks whose items are searched for in the rows to train on.
///
/// # Errors
/// When base or data cannot be read, as for [`super::check`]; when a task is not known, its documents cannot be read, or the file
/// for what was found cannot be written.
pub fn data(
    recipe: &Recipe,
    options: &RunOptions,
    show: usize,
    against: Option<&AgainstRequest>,
    observer: &mut dyn Observer,
) -> Result<DataSummary> {
    // What can be known without the base comes first.
    let suspects = against.map(|against| Suspects::read(against, options.offline, observer)).transpose()?;
    let base = open_base(&recipe.base, options.offline, observer)?;
    let template = prepare::named_template(&recipe.data, &base)?;
    let encoder = prepare::data_encoder(&base, &recipe.data, template.as_deref(), output::now())?;
    let start = Instant::now();
    let fitted = prepare::fitted(&recipe.data, &base, observer)?;
    let (dataset, _) = prepare::dataset(recipe, &fitted, &encoder, options.offline, observer)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    for (split, all) in [("train", &dataset.train), ("validation", &dataset.validation)] {
        // Of each source, since each may have a format or a template of its own.
        for row in all.firsts(show) {
            rows.push(shown(split, all, row, |sequence| encoder.segments(sequence))?);
        }
    }
    let chat_template = match (&recipe.data.chat_template, base.chat_template()) {
        _ if dataset.report.conversations == 0 => None,
        (Some(named), _) => Some(format!("`data.chat_template`: {named}")),
        (None, Some(_)) => Some("the base's".to_owned()),
        (None, None) => None,
    };
    let against = suspects.map(|suspects| suspects.search(&dataset, &encoder, observer)).transpose()?;
    let mut warnings = data_warnings(&dataset.report);
    warnings.extend(template_warning(&encoder, &recipe.data));
    Ok(DataSummary {
        max_seq_len: fitted.max_seq_len(),
        chat_template,
        seconds,
        rows,
        warnings,
        against,
        data: dataset.report,
    })
}

fn shown(
    split: &'static str,
    rows: &Rows,
    row: usize,
    segments: impl Fn(&crate::data::Sequence) -> Result<Vec<(String, bool)>>,
) -> Result<ShownRow> {
    let (entry, sequence) = (rows.entry(row), rows.get(row)?);
    Ok(ShownRow {
        split,
        number: row + 1,
        line: entry.line,
        tokens: sequence.len(),
        supervised: sequence.supervised(),
        segments: segments(&sequence)?,
    })
}
