//! Items of tasks that stand in the rows to train on.

use super::eval::{TaskSet, WantedTasks};
use crate::data::{Dataset, Encoder, Scaffold};
use crate::error::{Error, Result};
use crate::eval::{Found, Index, Items, RowMatch, Tally, document_hash};
use crate::fs::write_atomic;
use crate::train::{Event, Observer};
use rayon::prelude::*;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// Rows by which their template is known, evenly spaced.
const SAMPLED_ROWS: usize = 64;
/// Rows that are searched at the same time.
const CHUNK: usize = 1024;

/// Which tasks are searched for in a recipe's rows.
#[derive(Debug, Clone)]
pub struct AgainstRequest {
    /// Names of tasks, groups and tags, or YAML files.
    pub tasks: Vec<String>,
    /// Folders and files with more tasks.
    pub include: Vec<PathBuf>,
    /// A JSON Lines file for the contaminated items.
    pub output: Option<PathBuf>,
}

/// What was found of tasks in the rows to train on.
#[derive(Debug, Clone, Serialize)]
pub struct ContaminationReport {
    /// Each task in numbers.
    pub tasks: Vec<TaskContamination>,
    /// The items that were found, in the order of the tasks and of their documents.
    pub items: Vec<ContaminatedItem>,
    /// Seconds of the search.
    pub seconds: f64,
    /// The file that has the items, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<PathBuf>,
}

/// A task in numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskContamination {
    /// The task.
    pub task: String,
    /// Its items.
    pub items: usize,
    /// Those of which at least one 13-gram stands in a row; of a short item, all of it.
    pub overlapping: usize,
    /// Those that are a row but for a few words. Most overlap too.
    pub near_duplicates: usize,
    /// Those that were searched for, and not found in either way.
    pub clean: usize,
    /// Those that are too short to judge: neither contaminated nor clean.
    pub too_short: usize,
}

/// An item that stands in the rows to train on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContaminatedItem {
    /// The task.
    pub task: String,
    /// The document's number, from 0.
    pub doc_id: usize,
    /// The document's hash, as in the samples of an evaluation.
    pub doc_hash: String,
    /// The share of its 13-grams that stand in some row.
    pub overlap: f64,
    /// Whether it is the nearest row but for a few words.
    pub near_duplicate: bool,
    /// The Jaccard index with the nearest row, by 5-grams.
    pub jaccard: f64,
    /// The nearest row.
    pub row: RowPlace,
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RowPlace {
    /// The file.
    pub file: String,
    /// Its line there, or its number, from 1.
    pub line: u32,
}

/// Items that are to be searched for.
pub(super) struct Suspects<'a> {
    request: &'a AgainstRequest,
    tasks: TaskSet,
    /// The text of each item, behind the number of its task.
    texts: Vec<(usize, String)>,
}

impl<'a> Suspects<'a> {
    /// All items of the tasks: question and right answer, without description and few-shot examples.
    ///
    /// # Errors
    /// When a task is not known, or its documents cannot be read.
    pub fn read(request: &'a AgainstRequest, offline: bool, observer: &mut dyn Observer) -> Result<Self> {
        let AgainstRequest { tasks, include, .. } = request;
        let wanted = WantedTasks { names: tasks, include, num_fewshot: Some(0), limit: None, offline };
        let tasks = TaskSet::read(&wanted, observer)?;
        let mut texts = Vec::new();
        for (number, task) in tasks.tasks.iter().enumerate() {
            for id in 0..task.documents.len() {
                texts.push((number, task.question_and_answer(id)?));
            }
        }
        Ok(Self { request, tasks, texts })
    }

    /// Searches the rows to train on for them, and writes the file that was asked for.
    ///
    /// # Errors
    /// When tokens cannot be read, or the file cannot be written.
    pub fn search(
        self,
        dataset: &Dataset,
        encoder: &Encoder,
        observer: &mut dyn Observer,
    ) -> Result<ContaminationReport> {
        let start = Instant::now();
        let rows = &dataset.train;
        let scaffold = if dataset.report.conversations > 0 { encoder.scaffold() } else { Some(Scaffold::default()) };
        let scaffold = scaffold.unwrap_or_else(|| {
            observer.event(&Event::Warning(
                "the chat template does not write a question and its answer alone: its own words stay in the rows, and copies that go \
                 over them may be missed"
                    .to_owned(),
            ));
            Scaffold::default()
        });
        let text = |row: usize| encoder.said(&rows.get(row)?.input_ids, &scaffold);
        let sampled = rows.len().min(SAMPLED_ROWS);
        let sample: Vec<String> = (0..sampled).map(|i| text(i * rows.len() / sampled)).collect::<Result<_>>()?;
        let items = Items::new(&self.texts, &sample);
        let index = Index::new(&items);
        let mut tally = Tally::new(&index);
        for begin in (0..rows.len()).step_by(CHUNK) {
            observer.event(&Event::Items { what: "searching rows".into(), done: begin, total: rows.len() });
            let chunk: Vec<usize> = (begin..rows.len().min(begin + CHUNK)).collect();
            let matches: Vec<RowMatch> =
                chunk.par_iter().map(|row| Ok(index.search(&text(*row)?))).collect::<Result<_>>()?;
            for (row, of_row) in chunk.into_iter().zip(&matches) {
                tally.add(row, of_row);
            }
        }
        let mut report = self.report(&tally.finish(), dataset);
        if let Some(path) = &self.request.output {
            write_atomic(path, &lines(&report.items)?)?;
            report.output = Some(path.clone());
        }
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    fn report(&self, found: &[Found], dataset: &Dataset) -> ContaminationReport {
        let (mut tasks, mut items, mut begin) = (Vec::new(), Vec::new(), 0);
        for task in &self.tasks.tasks {
            let name = &task.config.task;
            let of_task = &found[begin..begin + task.documents.len()];
            begin += of_task.len();
            let count = |is: &dyn Fn(&Found) -> bool| of_task.iter().filter(|found| is(found)).count();
            tasks.push(TaskContamination {
                task: name.clone(),
                items: of_task.len(),
                overlapping: count(&|found| found.overlap > 0.0),
                near_duplicates: count(&Found::near_duplicate),
                clean: count(&|found| found.judged && !found.contaminated()),
                too_short: count(&|found| !found.judged),
            });
            for (doc_id, found) in of_task.iter().enumerate().filter(|(_, found)| found.contaminated()) {
                let Some(row) = found.row else { continue };
                let file = dataset.file_of(&dataset.train, row);
                items.push(ContaminatedItem {
                    task: name.clone(),
                    doc_id,
                    doc_hash: document_hash(task, doc_id),
                    overlap: found.overlap,
                    near_duplicate: found.near_duplicate(),
                    jaccard: found.jaccard,
                    row: RowPlace {
                        file: file.map(|path| path.display().to_string()).unwrap_or_default(),
                        line: dataset.train.entry(row).line,
                    },
                });
            }
        }
        ContaminationReport { tasks, items, seconds: 0.0, output: None }
    }
}

/// JSON Lines.
fn lines(items: &[ContaminatedItem]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for item in items {
        serde_json::to_writer(&mut bytes, item)
            .map_err(|error| Error::invalid(format!("internal: no JSON can be written: {error}")))?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}
