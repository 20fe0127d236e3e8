//! Evaluations of the same items beside each other: paired tests, and calibration.

use super::left_out::{self, LeftOut};
use crate::error::{Error, Result};
use crate::eval::{RecordedItem, RecordedItems, RecordedRun};
use crate::statistics::{
    Binning, CALIBRATION_BINS, PairedComparison, Predictions, Resampling, compare_paired, holm, number_clusters,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What is compared, and how.
#[derive(Debug, Clone)]
pub struct CompareRequest {
    /// Results files, or folders that hold them: the baseline first.
    pub runs: Vec<PathBuf>,
    /// These tasks alone; all that the runs have in common where it is empty.
    pub tasks: Vec<String>,
    /// These metrics alone; all where it is empty.
    pub metrics: Vec<String>,
    /// A field of the documents: items that share its value are one cluster.
    pub cluster: Option<String>,
    /// A JSON Lines file of items that are left out.
    pub without: Option<PathBuf>,
    /// How intervals and tests are drawn.
    pub resampling: Resampling,
}

/// Runs on the same items.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The first run's model.
    pub baseline: String,
    /// The results file of each run.
    pub runs: Vec<RunName>,
    /// A metric of a task, of a candidate against the baseline.
    pub rows: Vec<CompareRow>,
    /// How well the probabilities of choices fit, by task and run.
    pub calibration: Vec<CalibrationRow>,
    /// What a reader should know: tasks and metrics that are left out, prompts that differ.
    pub notes: Vec<String>,
    /// The share of intervals that hold the true value.
    pub confidence: f64,
}

/// A run that is compared.
#[derive(Debug, Clone, Serialize)]
pub struct RunName {
    /// Its model.
    pub model: String,
    /// Its results file.
    pub path: PathBuf,
}

/// A metric of a task.
#[derive(Debug, Clone, Serialize)]
pub struct CompareRow {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// The candidate's place among the runs.
    pub candidate_run: usize,
    /// The candidate's model.
    pub candidate_model: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The comparison, candidate minus baseline.
    #[serde(flatten)]
    pub paired: PairedComparison,
    /// The sign-flip test's p value, adjusted by Holm over the tasks that have this metric.
    pub p_holm: Option<f64>,
}

/// Probabilities of choices against what is right: softmax of their log-likelihoods.
#[derive(Debug, Clone, Serialize)]
pub struct CalibrationRow {
    /// The task.
    pub task: String,
    /// The run's place.
    pub run: usize,
    /// The run's model.
    pub model: String,
    /// Share of right answers.
    pub accuracy: f64,
    /// Negative log-likelihood of the right choice, in nats.
    pub nll: f64,
    /// Brier score, summed over choices.
    pub brier: f64,
    /// Expected calibration error over 15 bins of equal width.
    pub ece: f64,
    /// Area under the risk-coverage curve.
    pub aurc: f64,
}

impl Comparison {
    /// Adds a note, once.
    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Compares evaluations of the same items with the first of them.
///
/// # Errors
/// When there are fewer than two, a file cannot be read, they have no task in common, or their items or versions differ; when the
/// items to leave out are other documents, or all that there are.
pub fn compare(request: &CompareRequest) -> Result<Comparison> {
    let mut runs = Vec::new();
    for path in &request.runs {
        let found = RecordedRun::find(path)?;
        // Beside others, the folder of an adapter's evaluation stands for the adapter.
        let first = if request.runs.len() > 1 { found.len() - 1 } else { 0 };
        runs.extend(found.into_iter().skip(first));
    }
    let [baseline, candidates @ ..] = &runs[..] else { return Err(too_few(&runs)) };
    if candidates.is_empty() {
        return Err(too_few(&runs));
    }
    let left_out = request.without.as_deref().map(LeftOut::read).transpose()?;
    let mut comparison = Comparison {
        baseline: baseline.model.clone(),
        runs: runs.iter().map(|run| RunName { model: run.model.clone(), path: run.path.clone() }).collect(),
        rows: Vec::new(),
        calibration: Vec::new(),
        notes: Vec::new(),
        confidence: request.resampling.confidence,
    };
    let mut known: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for task in tasks(&runs, request, &mut comparison.notes)? {
        check_versions(&runs, &task)?;
        let of_runs = runs.iter().map(|run| run.items(&task, request.cluster.as_deref()));
        let mut of_runs: Vec<RecordedItems> = of_runs.collect::<Result<_>>()?;
        if let Some(left_out) = &left_out {
            let items = of_runs.iter().flat_map(|of| of.filters.values().flatten());
            known.insert(task.clone(), items.map(|item| item.id).collect());
            comparison.notes.extend(left_out.leave_out(&task, &mut of_runs)?);
            if of_runs.iter().all(RecordedItems::is_empty) {
                continue;
            }
        }
        let better = &baseline.tasks[&task].higher_is_better;
        let task = Task { name: &task, of_runs: &of_runs, better, request };
        for (i, run) in runs.iter().enumerate() {
            if i > 0 {
                task.compare((i, run), &mut comparison)?;
            }
            comparison.calibration.extend(task.calibration((i, run)));
        }
    }
    let is_asked = |task: &str| request.tasks.is_empty() || request.tasks.iter().any(|name| name == task);
    let has = |task: &str, id: u64| !is_asked(task) || known.get(task).is_some_and(|items| items.contains(&id));
    comparison.notes.extend(left_out.and_then(|left_out| left_out.strangers(has)));
    if comparison.rows.is_empty() {
        return Err(nothing_to_compare(request, &runs, &comparison.notes));
    }
    adjust(&mut comparison.rows);
    Ok(comparison)
}

fn too_few(runs: &[RecordedRun]) -> Error {
    let message = match runs.first() {
        Some(run) => format!("only one evaluation is there: {}", run.path.display()),
        None => "no evaluation is named".to_owned(),
    };
    Error::invalid(message).with_help(
        "name two or more: `equipoise compare BASELINE CANDIDATE`; the folder of an adapter's evaluation holds its base's too",
    )
}

fn nothing_to_compare(request: &CompareRequest, runs: &[RecordedRun], notes: &[String]) -> Error {
    if let Some(path) = request.without.as_ref().filter(|_| notes.iter().any(|note| note.ends_with(left_out::ALL))) {
        return Error::file(path, format!("leaves nothing to compare: {}", notes.join("; ")));
    }
    // Of each metric, whether it is a mean over items in some task.
    let mut known: BTreeMap<&str, bool> = BTreeMap::new();
    for run in runs {
        for (name, task) in &run.tasks {
            for metric in task.higher_is_better.keys() {
                *known.entry(metric).or_default() |= run.is_mean(name, metric);
            }
        }
    }
    let wanted = match &request.metrics[..] {
        [] => "the runs have no metric in common that is a mean over items".to_owned(),
        [metric] if known.get(metric.as_str()) == Some(&false) => {
            format!("`{metric}` is a number of all items together, not a mean over items: it has no paired comparison")
        }
        metrics => format!("the runs do not both have the metric `{}`", metrics.join("`, `")),
    };
    let means: Vec<&str> = known.iter().filter_map(|(metric, is_mean)| is_mean.then_some(*metric)).collect();
    let error = Error::invalid(wanted);
    if means.is_empty() { error } else { error.with_help(format!("metrics that are compared: {}", means.join(", "))) }
}

/// The tasks that are compared: those that all runs have.
fn tasks(runs: &[RecordedRun], request: &CompareRequest, notes: &mut Vec<String>) -> Result<Vec<String>> {
    let has = |run: &RecordedRun, task: &String| run.tasks.contains_key(task);
    for task in &request.tasks {
        if let Some(run) = runs.iter().find(|run| !has(run, task)) {
            let known = run.tasks.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::file(&run.path, format!("has no task `{task}`")).with_help(format!("it has {known}")));
        }
    }
    let mut all: Vec<&String> = runs.iter().flat_map(|run| run.tasks.keys()).collect();
    all.sort();
    all.dedup();
    all.retain(|task| request.tasks.is_empty() || request.tasks.contains(task));
    let (common, others): (Vec<&String>, Vec<&String>) =
        all.into_iter().partition(|task| runs.iter().all(|run| has(run, task)));
    if common.is_empty() {
        return Err(
            Error::invalid("the runs have no task in common").with_help("evaluate both models with the same `--tasks`")
        );
    }
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|name| name.as_str()).collect();
        notes.push(format!("left out, since not all runs have them: {}", names.join(", ")));
    }
    Ok(common.into_iter().cloned().collect())
}

fn check_versions(runs: &[RecordedRun], task: &str) -> Result<()> {
    let [first, others @ ..] = runs else { return Ok(()) };
    let version = &first.tasks[task].version;
    for run in others {
        let its = &run.tasks[task].version;
        if its != version {
            let message = format!(
                "has version {its} of the task `{task}`, and {} has version {version}: their scores do not compare",
                first.path.display()
            );
            return Err(Error::file(&run.path, message).with_help("evaluate both models with the same version"));
        }
    }
    Ok(())
}

/// A task of all runs.
struct Task<'a> {
    name: &'a str,
    of_runs: &'a [RecordedItems],
    better: &'a BTreeMap<String, bool>,
    request: &'a CompareRequest,
}

impl Task<'_> {
    /// Adds the comparison of a run with the first.
    fn compare(&self, (i, run): (usize, &RecordedRun), into: &mut Comparison) -> Result<()> {
        let (baseline, candidate) = (&self.of_runs[0], &self.of_runs[i]);
        for (filter, first) in &baseline.filters {
            let Some(items) = candidate.filters.get(filter) else {
                into.note(format!("{}: {} has no results under the filter `{filter}`", self.name, run.model));
                continue;
            };
            self.check_same((baseline, first), (candidate, items))?;
            if first.iter().zip(items).any(|(a, b)| a.prompt_hash != b.prompt_hash) {
                into.note(format!(
                    "{}: {} had other prompts than {} (few-shot examples, chat template or description)",
                    self.name, run.model, into.baseline
                ));
            }
            let clusters: Vec<&str> = first.iter().filter_map(|item| item.cluster.as_deref()).collect();
            let clusters = (!clusters.is_empty()).then(|| number_clusters(&clusters));
            for (metric, higher_is_better) in self.metrics(filter) {
                let values = |items: &[RecordedItem]| {
                    items.iter().map(|item| item.values.get(metric).copied()).collect::<Option<Vec<f64>>>()
                };
                let pair = values(first).zip(values(items)).filter(|_| run.is_mean(self.name, metric));
                let paired = pair.and_then(|(baseline, candidate)| {
                    compare_paired(&baseline, &candidate, clusters.as_deref(), &self.request.resampling)
                });
                let Some(paired) = paired else {
                    into.note(format!("{}: `{metric}` is no mean of the items' numbers", self.name));
                    continue;
                };
                into.rows.push(CompareRow {
                    task: self.name.to_owned(),
                    metric: metric.clone(),
                    filter: filter.clone(),
                    candidate_run: i,
                    candidate_model: run.model.clone(),
                    higher_is_better,
                    paired,
                    p_holm: None,
                });
            }
        }
        Ok(())
    }

    /// The metrics of the task, in their order, as far as they are asked for.
    fn metrics(&self, filter: &str) -> impl Iterator<Item = (&String, bool)> {
        let known = self.of_runs[0].filters.get(filter).and_then(|items| items.first());
        let named = known.into_iter().flat_map(|item| item.values.keys());
        let all = self.better.keys().chain(named.filter(|name| !self.better.contains_key(*name)));
        all.filter(|name| self.request.metrics.is_empty() || self.request.metrics.contains(name))
            .map(|name| (name, self.better.get(name).copied().unwrap_or(true)))
    }

    /// That two runs are of the same items.
    fn check_same(
        &self,
        (first, a): (&RecordedItems, &[RecordedItem]),
        (other, b): (&RecordedItems, &[RecordedItem]),
    ) -> Result<()> {
        let help =
            "a paired comparison needs the same items: evaluate both models on the same data with the same `--limit`";
        let place = first.path.display();
        if a.len() != b.len() {
            let message = format!("has {} items of `{}`, and {place} has {}", b.len(), self.name, a.len());
            return Err(Error::file(&other.path, message).with_help(help));
        }
        for (a, b) in a.iter().zip(b) {
            if (a.id, &a.hashes) != (b.id, &b.hashes) {
                let message =
                    format!("document {} of `{}` is another one than document {} in {place}", b.id, self.name, a.id);
                return Err(Error::file(&other.path, message).with_help(help));
            }
        }
        Ok(())
    }

    /// Of a run whose items are choices.
    fn calibration(&self, (i, run): (usize, &RecordedRun)) -> Option<CalibrationRow> {
        let items = self.of_runs[i].filters.values().next()?;
        let choices: Vec<&(Vec<f64>, usize)> = items.iter().map(|item| item.choices.as_ref()).collect::<Option<_>>()?;
        let scores: Vec<&[f64]> = choices.iter().map(|(scores, _)| scores.as_slice()).collect();
        let targets: Vec<usize> = choices.iter().map(|(_, target)| *target).collect();
        let predictions = Predictions::from_logits(&scores, &targets, 1.0)?;
        Some(CalibrationRow {
            task: self.name.to_owned(),
            run: i,
            model: run.model.clone(),
            accuracy: predictions.accuracy(),
            nll: predictions.nll(),
            brier: predictions.brier(),
            ece: predictions.expected_calibration_error(Binning::EqualWidth, CALIBRATION_BINS),
            aurc: predictions.aurc(),
        })
    }
}

/// Adjusts p values over the tasks of each metric of each candidate.
fn adjust(rows: &mut [CompareRow]) {
    let mut families: BTreeMap<(usize, String, String), Vec<usize>> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        families.entry((row.candidate_run, row.metric.clone(), row.filter.clone())).or_default().push(i);
    }
    for places in families.into_values() {
        let p: Vec<f64> = places.iter().map(|&i| rows[i].paired.permutation.map_or(f64::NAN, |test| test.p)).collect();
        for (i, adjusted) in places.into_iter().zip(holm(&p)) {
            rows[i].p_holm = (!adjusted.is_nan()).then_some(adjusted);
        }
    }
}
