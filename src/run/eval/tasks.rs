//! Tasks by name, with their documents.

use super::documents;
use crate::error::Result;
use crate::eval::{Prepared, Registry, Selected};
use crate::train::{Event, Observer, TaskMetric};
use std::path::PathBuf;

/// Which tasks are wanted, and how much of them.
#[derive(Debug, Clone, Copy)]
pub(in crate::run) struct WantedTasks<'a> {
    /// Names of tasks, groups and tags, or YAML files.
    pub names: &'a [String],
    /// Folders and files with more tasks.
    pub include: &'a [PathBuf],
    /// In place of a task's own number of few-shot examples.
    pub num_fewshot: Option<usize>,
    /// The first so many documents of each task alone; below 1, that share of them.
    pub limit: Option<f64>,
    /// Fetch nothing.
    pub offline: bool,
}

/// Tasks with their documents, and the groups that they are in.
pub(in crate::run) struct TaskSet {
    pub selected: Selected,
    pub tasks: Vec<Prepared>,
}

impl TaskSet {
    /// Those that are wanted.
    ///
    /// # Errors
    /// When a task is not known, or its documents cannot be read.
    pub fn read(wanted: &WantedTasks<'_>, observer: &mut dyn Observer) -> Result<Self> {
        let selected = select(wanted, observer)?;
        let configs = selected.tasks.iter().cloned();
        let tasks = configs.map(|config| documents::prepare(config, wanted, observer)).collect::<Result<_>>()?;
        Ok(Self { selected, tasks })
    }

    /// The metrics of all tasks and groups, each with its filters.
    pub fn all_metrics(&self) -> Vec<(TaskMetric, Vec<String>)> {
        let of =
            |task: &str, metric: &str| TaskMetric { task: task.to_owned(), metric: metric.to_owned(), filter: None };
        let filters = |task: &Prepared| task.filter_names().map(str::to_owned).collect::<Vec<String>>();
        let tasks = self.tasks.iter().flat_map(|task| {
            task.metrics.iter().map(move |metric| (of(&task.config.task, &metric.metric), filters(task)))
        });
        let groups = self.selected.groups.iter().flat_map(|group| {
            let inside = self.tasks.iter().filter(|task| group.tasks.contains(&task.config.task));
            let mut all: Vec<String> = inside.flat_map(filters).collect();
            all.sort();
            all.dedup();
            group.metrics.iter().map(move |(metric, _)| (of(&group.name, metric), all.clone()))
        });
        tasks.chain(groups).collect()
    }

    /// Each task with each of its metrics: what a table shows.
    pub fn metrics(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tasks.iter().flat_map(|task| task.metrics.iter().map(|of| (&*task.config.task, &*of.metric)))
    }
}

fn select(wanted: &WantedTasks<'_>, observer: &mut dyn Observer) -> Result<Selected> {
    let mut registry = Registry::built_in();
    for path in wanted.include {
        registry.include(path)?;
    }
    for error in registry.nameless_files() {
        observer.event(&Event::Warning(format!("{error}; the file is ignored, with any task in it")));
    }
    let mut selected = registry.select(wanted.names)?;
    for task in &mut selected.tasks {
        match wanted.num_fewshot {
            // As in lm-eval: a task that says 0 is meant so.
            Some(count) if task.num_fewshot == Some(0) && count > 0 => observer.event(&Event::Note(format!(
                "the task `{}` says `num_fewshot: 0`: it has no few-shot examples, whatever else is asked for",
                task.task
            ))),
            wanted => task.num_fewshot = wanted.or(task.num_fewshot),
        }
    }
    Ok(selected)
}
