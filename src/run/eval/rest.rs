//! The scores on what a list of items leaves of the tasks, such as those that stand in training rows.

use super::{ItemValues, Outcome, ResultRow, Run, TaskSet, result_of, row};
use crate::error::Result;
use crate::eval::{TaskResult, numbers};
use crate::run::left_out::LeftOut;
use crate::train::{Event, Observer};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The scores without some items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestReport {
    /// The list of these items.
    pub without: String,
    /// How many of each task it leaves out, and of how many, in the order of the tasks.
    pub left_out: Vec<LeftOutItems>,
    /// The tasks of which some items are left out and some are not, and the groups of tasks of which some or all are.
    pub rows: Vec<ResultRow>,
}

/// What a list leaves out of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOutItems {
    /// The task.
    pub task: String,
    /// Items that are left out.
    pub left_out: usize,
    /// All of its items.
    pub items: usize,
}

impl RestReport {
    /// What the results file says of it.
    pub(super) fn json(&self, results: &[TaskResult]) -> Value {
        let results: Map<String, Value> =
            results.iter().map(|result| (result.name.clone(), Value::Object(numbers(result)))).collect();
        json!({"without": self.without, "left_out": self.left_out, "results": results})
    }
}

/// The documents that are left out, of each task of a set.
pub(super) struct LeftOuts {
    path: String,
    of_tasks: Vec<BTreeSet<usize>>,
}

impl LeftOuts {
    /// Reads a list of items.
    ///
    /// # Errors
    /// When it cannot be read, or is of other documents.
    pub fn read(path: &Path, set: &TaskSet, observer: &mut dyn Observer) -> Result<Self> {
        let left_out = LeftOut::read(path)?;
        // Documents beyond `--limit` are the task's too.
        let has = |name: &str, id: u64| {
            let task = set.tasks.iter().find(|task| task.config.task == name);
            task.is_some_and(|task| (id as usize) < task.original)
        };
        if let Some(note) = left_out.strangers(has) {
            observer.event(&Event::Note(note));
        }
        let of_tasks = set.tasks.iter().map(|task| left_out.among(task)).collect::<Result<_>>()?;
        Ok(Self { path: path.display().to_string(), of_tasks })
    }
}

/// The values of the items that are not left out.
fn kept(values: &ItemValues, left_out: &BTreeSet<usize>) -> ItemValues {
    let mut values = values.clone();
    for all in values.iter_mut().flat_map(BTreeMap::values_mut) {
        let mut id = 0..;
        all.retain(|_| id.next().is_some_and(|id| !left_out.contains(&id)));
    }
    values
}

impl Run<'_> {
    /// The results without the items that are left out, where the request names some: as the results file has them, and as they are shown.
    pub(super) fn rest(&self, outcomes: &[Outcome]) -> Result<Option<(Vec<TaskResult>, RestReport)>> {
        let Some(LeftOuts { path, of_tasks }) = &self.questions.left_out else { return Ok(None) };
        let (mut report, mut results, mut changed) =
            (RestReport { without: path.clone(), left_out: Vec::new(), rows: Vec::new() }, Vec::new(), Vec::new());
        for (((task, asked), outcome), left_out) in
            self.tasks().iter().zip(&self.questions.asked).zip(outcomes).zip(of_tasks)
        {
            let (name, all) = (&task.config.task, task.documents.len());
            report.left_out.push(LeftOutItems { task: name.clone(), left_out: left_out.len(), items: all });
            if left_out.is_empty() {
                results.push(outcome.result.0.clone());
                continue;
            }
            changed.push(name.clone());
            let items = all - left_out.len();
            if items > 0 {
                let result = result_of(task, &kept(&outcome.values, left_out), items, self.request.seed)?;
                let floors = task.floors(asked.iter().filter(|asked| !left_out.contains(&asked.doc_id)));
                report.rows.extend(result.metrics.iter().map(|of| row(&result, of, false, floors)));
                results.push(result);
            }
        }
        let of_groups = self.groups(&results.iter().collect::<Vec<&TaskResult>>());
        for (group, (result, ..)) in self.questions.set.selected.groups.iter().zip(of_groups) {
            if group.tasks.iter().any(|task| changed.contains(task)) && result.sample_len > 0 {
                report.rows.extend(result.metrics.iter().map(|of| row(&result, of, true, None)));
                results.push(result);
            }
        }
        results.retain(|result| report.rows.iter().any(|row| row.score.task == result.name));
        Ok(Some((results, report)))
    }
}
