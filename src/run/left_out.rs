//! Items that a comparison or an evaluation leaves out: those that stand in training rows, say.

use crate::error::{Error, Result};
use crate::eval::{Prepared, RecordedItems, document_hash};
use crate::fs::read_within;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The most bytes of such a file.
const MOST: u64 = 1 << 30;
/// How a note ends where nothing is left of a task.
pub(super) const ALL: &str = "which are all";

/// A line of the file. What else it has is for people.
#[derive(Debug, Deserialize)]
struct Line {
    task: String,
    doc_id: u64,
    #[serde(default)]
    doc_hash: Option<String>,
}

/// The number of a line that names an item, and the document's hash where it has one.
type NamedAt = (usize, Option<String>);

/// Items to leave out, by task.
#[derive(Debug)]
pub(super) struct LeftOut {
    path: PathBuf,
    /// By the document's number: the lines that name it.
    tasks: BTreeMap<String, BTreeMap<u64, Vec<NamedAt>>>,
}

impl LeftOut {
    /// Reads a file of JSON Lines with `task`, `doc_id` and, maybe, `doc_hash`.
    ///
    /// # Errors
    /// When it cannot be read, with the line that is no such object.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_within(path, MOST)?;
        let mut tasks: BTreeMap<String, BTreeMap<u64, Vec<_>>> = BTreeMap::new();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let Line { task, doc_id, doc_hash } = serde_json::from_slice(line).map_err(|error| {
                Error::file(path, format!("line {}: is not an item: {error}", number + 1))
                    .with_help("expected lines such as {\"task\": \"pubmedqa\", \"doc_id\": 3}, as `equipoise data --against-out` writes them")
            })?;
            tasks.entry(task).or_default().entry(doc_id).or_default().push((number + 1, doc_hash));
        }
        Ok(Self { path: path.to_owned(), tasks })
    }

    /// Takes the items of a task out of all runs; what a reader should know of it. Items that the runs do not have are ignored.
    ///
    /// # Errors
    /// When an item's document has another hash than the file says.
    pub fn leave_out(&self, task: &str, runs: &mut [RecordedItems]) -> Result<Option<String>> {
        let Some(named) = self.tasks.get(task) else { return Ok(None) };
        let (mut all, mut out) = (BTreeSet::new(), BTreeSet::new());
        for RecordedItems { path, filters } in runs {
            for items in filters.values_mut() {
                for item in &*items {
                    all.insert(item.id);
                    if let Some(lines) = named.get(&item.id) {
                        self.check(lines, (task, item.id, &item.hashes[0]), path.display())?;
                        out.insert(item.id);
                    }
                }
                items.retain(|item| !named.contains_key(&item.id));
            }
        }
        let (out, all) = (out.len(), all.len());
        let behind = if out == all { format!(", {ALL}") } else { String::new() };
        Ok(Some(format!("{task}: {out} of {all} items are left out, by {}{behind}", self.path.display())))
    }

    /// Those of a task's documents that are left out.
    ///
    /// # Errors
    /// When one has another hash than the file says.
    pub fn among(&self, task: &Prepared) -> Result<BTreeSet<usize>> {
        let mut out = BTreeSet::new();
        for (&id, lines) in self.tasks.get(&task.config.task).into_iter().flatten() {
            let Some(id) = usize::try_from(id).ok().filter(|&id| id < task.documents.len()) else { continue };
            self.check(lines, (&task.config.task, id as u64, &document_hash(task, id)), "the task's data")?;
            out.insert(id);
        }
        Ok(out)
    }

    /// What a reader should know where some items are of no document that the tasks have.
    pub fn strangers(&self, has: impl Fn(&str, u64) -> bool) -> Option<String> {
        let all = self.tasks.values().map(BTreeMap::len).sum::<usize>();
        let items = self.tasks.iter().flat_map(|(task, items)| items.keys().map(move |id| (task, *id)));
        let mut strangers = items.filter(|(task, id)| !has(task, *id));
        let (task, id) = strangers.next()?;
        let count = 1 + strangers.count();
        let path = self.path.display();
        Some(format!("{path}: {count} of {all} items are not among these tasks, such as document {id} of `{task}`"))
    }

    fn check(
        &self,
        lines: &[NamedAt],
        (task, id, known): (&str, u64, &str),
        place: impl std::fmt::Display,
    ) -> Result<()> {
        let differing = |(line, hash): &NamedAt| Some((*line, hash.clone().filter(|hash| hash != known)?));
        let Some((line, hash)) = lines.iter().find_map(differing) else { return Ok(()) };
        let message = format!(
            "line {line}: document {id} of `{task}` has the hash {hash} here, and {known} in {place}: they are not of the same documents"
        );
        Err(Error::file(&self.path, message).with_help(
            "find the items anew, with the task and the data that were evaluated: `equipoise data RECIPE --against TASK --against-out FILE`",
        ))
    }
}
