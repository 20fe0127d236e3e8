//! A task's documents: from files, or from a dataset on the Hub.

use super::WantedTasks;
use crate::data::source::RowReader;
use crate::error::{Error, Result};
use crate::eval::{Documents, Prepared, TaskConfig};
use crate::hub::{self, DatasetConfig, FetchOptions};
use crate::train::{Event, Observer};
use serde_json::Value;
use std::path::PathBuf;

/// Reads a task's documents.
pub(super) fn prepare(config: TaskConfig, wanted: &WantedTasks<'_>, observer: &mut dyn Observer) -> Result<Prepared> {
    observer.event(&Event::Phase(format!("reading {}", config.task)));
    let split = config.evaluated_split().unwrap_or_default().to_owned();
    let documents = documents(&config, &split, usize::MAX, wanted.offline, observer)?;
    let (examples, count) = (config.num_fewshot.unwrap_or(0) > 0, config.num_fewshot.unwrap_or(0));
    let given = config.fewshot_config.as_ref().and_then(|fewshot| fewshot.samples.clone());
    let fewshot = match (config.fewshot_split().map(str::to_owned), given) {
        // One more: a document is not an example for itself.
        (Some(of), _) if examples && of == split => documents.clone().first(count + 1),
        (Some(of), _) if examples => self::documents(&config, &of, count + 1, wanted.offline, observer)?,
        (None, Some(samples)) if examples => Documents::new(samples),
        _ => Documents::default(),
    };
    Prepared::new(config, documents, fewshot, wanted.limit)
}

/// The first so many documents of a split: of files, or of a dataset on the Hub.
fn documents(
    config: &TaskConfig,
    split: &str,
    most: usize,
    offline: bool,
    observer: &mut dyn Observer,
) -> Result<Documents> {
    let task = &config.task;
    let missing = |what: String| {
        Error::invalid(format!("task `{task}`: {what}")).with_help(
            "write `dataset_path: json` and `dataset_kwargs: {data_files: {test: FILE}}`, or a dataset's Hub id as `dataset_path`",
        )
    };
    let Some(path) = config.dataset_path.as_deref() else { return Err(missing("it has no `dataset_path`".into())) };
    let files = if ["json", "csv", "parquet"].contains(&path) {
        let given = config.dataset_kwargs.as_ref().and_then(|kwargs| kwargs.get("data_files"));
        let of_split = match given {
            Some(Value::Object(splits)) => splits.get(split).cloned(),
            other => other.cloned(),
        };
        match of_split {
            Some(Value::String(file)) => vec![PathBuf::from(file)],
            Some(Value::Array(files)) => files.iter().filter_map(Value::as_str).map(PathBuf::from).collect(),
            _ => return Err(missing(format!("`dataset_kwargs.data_files` has no split `{split}`"))),
        }
    } else {
        let dataset = DatasetConfig { id: path, split: Some(split), subset: config.dataset_name.as_deref() };
        hub::fetch_dataset(&dataset, &[split], &FetchOptions::for_data(offline), &mut |progress| {
            let what = format!("fetching {}", progress.file);
            observer.event(&Event::Bytes { what, done: progress.done, total: progress.total });
        })?
    };
    let mut rows = Vec::new();
    for file in &files {
        let mut reader = RowReader::open(file)?;
        while rows.len() < most {
            let Some(row) = reader.next_row()? else { break };
            rows.push(row.parse(file)?);
        }
    }
    Ok(Documents::new(rows))
}
