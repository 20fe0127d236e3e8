//! What a comparison of objectives says: means over seeds, and paired tests over items.

use super::files::Kept;
use super::{ObjectiveRun, ResultRow, TaskSet};
use crate::error::Result;
use crate::eval::{RecordedItem, RecordedRun};
use crate::objectives::Prior;
use crate::run::card::sentence;
use crate::statistics::{PairedComparison, Resampling, compare_paired, holm, mean, p_text, sample_standard_deviation};
use crate::train::MetricForBest;
use crate::train::metrics::Validation;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// A number of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeanAndSpread {
    /// The mean over seeds.
    pub mean: f64,
    /// The sample standard deviation over seeds; `None` of one.
    pub sd: Option<f64>,
}

/// An objective at its learning rate, over its seeds.
#[derive(Debug, Clone, Serialize)]
pub struct ObjectiveSummary {
    /// The objective.
    pub objective: String,
    /// The learning rate.
    pub learning_rate: f64,
    /// The seeds with a result.
    pub seeds: Vec<u64>,
    /// Runs that broke off, or whose adapter ruins the model.
    pub bad_runs: usize,
    /// Cross-entropy of the held-out rows, in nats a token.
    pub cross_entropy: Option<MeanAndSpread>,
    /// Share of the held-out tokens that the model ranks first.
    pub token_accuracy: Option<MeanAndSpread>,
    /// Mean probability of the held-out tokens.
    pub token_probability: Option<MeanAndSpread>,
    /// Perplexity of a general text.
    pub general_text: Option<MeanAndSpread>,
    /// `(Σw)² / (n·Σw²)` of the tokens' weights in training.
    pub effective_token_share: Option<MeanAndSpread>,
    /// Global norm of the gradient before clipping.
    pub grad_norm: Option<MeanAndSpread>,
    /// Tokens a second.
    pub tokens_per_second: Option<MeanAndSpread>,
    /// Each metric of each task.
    pub tasks: Vec<TaskSummary>,
}

/// A metric of a task under an objective: an item's score is its mean over seeds.
#[derive(Debug, Clone, Serialize)]
pub struct TaskSummary {
    /// The task.
    pub task: String,
    /// The metric.
    pub metric: String,
    /// The filter.
    pub filter: String,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Over seeds.
    pub score: Option<MeanAndSpread>,
    /// Beside the first objective; none for that one itself.
    pub against_first: Option<PairedComparison>,
    /// The p value of that, adjusted by Holm over the objectives and tasks of this metric.
    pub p_holm: Option<f64>,
    /// Beside the base alone.
    pub against_base: Option<PairedComparison>,
}

/// A comparison of objectives.
#[derive(Debug, Clone, Serialize)]
pub struct ObjectivesReport {
    /// The recipe's name.
    pub name: String,
    /// The base, as the recipe names it.
    pub base: String,
    /// The device and the type of products.
    pub device: String,
    /// Rows that are trained on.
    pub train_rows: usize,
    /// Rows that are held out.
    pub validation_rows: usize,
    /// Rows, or packs, of an optimizer step.
    pub rows_per_step: usize,
    /// The learning rates that were tried; the recipe's for all where it is empty.
    pub learning_rates: Vec<f64>,
    /// By which number on the held-out rows, with the first seed, one was chosen.
    pub select_by: MetricForBest,
    /// Documents of each task, where not all were asked about.
    pub limit: Option<f64>,
    /// The held-out rows under the base alone; `None` where runs begin with an adapter.
    pub before: Option<Validation>,
    /// The tasks on the base alone.
    pub base_tasks: Vec<ResultRow>,
    /// Each objective at its learning rate.
    pub objectives: Vec<ObjectiveSummary>,
    /// Each run, those of the search for learning rates among them.
    pub runs: Vec<ObjectiveRun>,
    /// The folder.
    pub output: std::path::PathBuf,
    /// Equipoise's version.
    pub version: String,
}

impl ObjectivesReport {
    /// The perplexity of the general text under the base alone.
    pub fn base_general_text(&self) -> Option<f64> {
        self.runs.iter().find_map(|run| run.forgetting).map(|of| of.base_perplexity)
    }
}

impl MeanAndSpread {
    fn of(values: impl Iterator<Item = Option<f64>>) -> Option<Self> {
        let values: Vec<f64> = values.flatten().collect();
        Some(Self { mean: mean(&values)?, sd: sample_standard_deviation(&values) })
    }

    /// As `2.0767 ± 0.0939`, with this number of digits.
    pub fn text(self, digits: usize) -> String {
        let sd = self.sd.map_or_else(String::new, |sd| format!(" ± {sd:.digits$}"));
        format!("{:.digits$}{sd}", self.mean)
    }
}

/// Scores of a task's items, by item.
type Scores = Vec<f64>;

/// The report on what is done. `chosen`: each objective with its learning rate.
pub(super) fn report(
    kept: &Kept,
    chosen: &[(String, f64)],
    seeds: &[u64],
    tasks: &TaskSet,
    output: &Path,
) -> Result<ObjectivesReport> {
    let mut summaries: Vec<ObjectiveSummary> = Vec::new();
    let metrics: Vec<(String, String)> =
        tasks.metrics().map(|(task, metric)| (task.to_owned(), metric.to_owned())).collect();
    let base = scores(&output.join("base"), &metrics)?;
    let mut first: Option<Vec<Option<Scores>>> = None;
    for (objective, learning_rate) in chosen {
        let runs: Vec<&ObjectiveRun> =
            seeds.iter().filter_map(|&seed| kept.run_of(objective, *learning_rate, seed)).collect();
        let own = mean_scores(&runs, output, &metrics)?;
        let against = |other: Option<&Vec<Option<Scores>>>, i: usize| {
            let (other, own) = (other?.get(i)?.as_ref()?, own.get(i)?.as_ref()?);
            compare_paired(other, own, None, &Resampling::default())
        };
        let of_task = |(i, (task, metric)): (usize, &(String, String))| {
            let rows = |run: &&ObjectiveRun| {
                run.tasks
                    .iter()
                    .map(|row| &row.score)
                    .find(|of| of.task == *task && of.metric == *metric)
                    .map(|of| of.value)
            };
            let of_base = |row: &&ResultRow| (&row.score.task, &row.score.metric) == (task, metric);
            let of_base = kept.base().and_then(|rows| rows.iter().find(of_base)).map(|row| &row.score);
            TaskSummary {
                task: task.clone(),
                metric: metric.clone(),
                filter: of_base.map(|of| of.filter.clone()).unwrap_or_default(),
                higher_is_better: of_base.is_none_or(|of| of.higher_is_better),
                score: MeanAndSpread::of(runs.iter().map(rows)),
                against_first: against(first.as_ref(), i),
                p_holm: None,
                against_base: against(Some(&base), i),
            }
        };
        let over =
            |number: &dyn Fn(&ObjectiveRun) -> Option<f64>| MeanAndSpread::of(runs.iter().map(|run| number(run)));
        let after = |number: fn(&Validation) -> f64| over(&|run| run.after.as_ref().map(number));
        summaries.push(ObjectiveSummary {
            objective: objective.clone(),
            learning_rate: *learning_rate,
            seeds: runs.iter().filter(|run| run.failed.is_none()).map(|run| run.seed).collect(),
            bad_runs: runs.iter().filter(|run| run.failed.is_some() || run.ruined).count(),
            cross_entropy: after(|of| of.cross_entropy),
            token_accuracy: after(|of| of.token_accuracy),
            token_probability: after(|of| of.token_probability),
            general_text: over(&|run| run.forgetting.map(|of| of.perplexity)),
            effective_token_share: over(&|run| run.effective_token_share),
            grad_norm: over(&|run| run.grad_norm),
            tokens_per_second: over(&|run| run.tokens_per_second),
            tasks: metrics.iter().enumerate().map(of_task).collect(),
        });
        first.get_or_insert(own);
    }
    adjust(&mut summaries);
    Ok(ObjectivesReport {
        name: String::new(),
        base: String::new(),
        device: String::new(),
        train_rows: 0,
        validation_rows: 0,
        rows_per_step: 0,
        learning_rates: Vec::new(),
        select_by: MetricForBest::CrossEntropy,
        limit: None,
        before: None,
        base_tasks: kept.base().unwrap_or_default().to_vec(),
        objectives: summaries,
        runs: kept.runs().to_vec(),
        output: output.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// The p values of a metric, adjusted over its objectives and tasks.
fn adjust(summaries: &mut [ObjectiveSummary]) {
    let mut metrics: BTreeMap<String, Vec<&mut TaskSummary>> = BTreeMap::new();
    for of in summaries.iter_mut().flat_map(|of| &mut of.tasks) {
        metrics.entry(of.metric.clone()).or_default().push(of);
    }
    for mut tests in metrics.into_values() {
        let p_of = |of: &&mut TaskSummary| of.against_first.as_ref().and_then(|paired| paired.permutation);
        let p: Vec<f64> = tests.iter().map(|of| p_of(of).map_or(f64::NAN, |test| test.p)).collect();
        for (of, adjusted) in tests.iter_mut().zip(holm(&p)) {
            of.p_holm = (!adjusted.is_nan()).then_some(adjusted);
        }
    }
}

/// The scores of the items of each task in an evaluation's folder, as far as it is there.
fn scores(folder: &Path, metrics: &[(String, String)]) -> Result<Vec<Option<Scores>>> {
    if !folder.is_dir() {
        return Ok(vec![None; metrics.len()]);
    }
    let runs = RecordedRun::find(folder)?;
    let Some(run) = runs.last() else { return Ok(vec![None; metrics.len()]) };
    // Metrics of a task stand beside each other: its file is read once.
    let mut all = Vec::with_capacity(metrics.len());
    for of_task in metrics.chunk_by(|a, b| a.0 == b.0) {
        let task = &of_task[0].0;
        let items = run.items(task, None)?;
        for (_, metric) in of_task {
            let value = |item: &RecordedItem| item.values.get(metric).copied();
            // As in the table: under the first of the task's filters.
            let filter = run.first_filter(task, metric);
            let of_filter =
                filter.and_then(|filter| items.filters.get(filter)).or_else(|| items.filters.values().next());
            let of_filter = of_filter.filter(|_| run.is_mean(task, metric));
            all.push(of_filter.and_then(|items| items.iter().map(value).collect()));
        }
    }
    Ok(all)
}

/// Those of several runs: the mean of each item.
fn mean_scores(runs: &[&ObjectiveRun], output: &Path, metrics: &[(String, String)]) -> Result<Vec<Option<Scores>>> {
    let done = runs.iter().filter(|run| run.failed.is_none());
    let each: Vec<Vec<Option<Scores>>> =
        done.map(|run| scores(&output.join(&run.folder).join("eval"), metrics)).collect::<Result<_>>()?;
    let of_task = |i: usize| {
        let of_runs: Vec<&Scores> = each.iter().map(|run| run[i].as_ref()).collect::<Option<_>>()?;
        let items = of_runs.first()?.len();
        let item = |k: usize| of_runs.iter().map(|scores| scores.get(k)).sum::<Option<f64>>();
        (0..items).map(|k| item(k).map(|sum| sum / of_runs.len() as f64)).collect()
    };
    Ok((0..metrics.len()).map(of_task).collect())
}

/// The tables, and what they are of.
pub(super) fn markdown(report: &ObjectivesReport) -> String {
    let mut text = format!("# Objectives on `{}`\n\n", report.name);
    let rates = if report.learning_rates.is_empty() {
        "the recipe's for all objectives (matched)".to_owned()
    } else {
        let tried: Vec<String> = report.learning_rates.iter().map(|rate| format!("{rate:e}")).collect();
        format!(
            "for each objective the best of {} by held-out {} with the first seed",
            tried.join(", "),
            report.select_by.name()
        )
    };
    let seeds = report.objectives.iter().map(|of| &of.seeds).max_by_key(|seeds| seeds.len());
    let seeds: Vec<String> = seeds.into_iter().flatten().map(u64::to_string).collect();
    let _ = writeln!(
        text,
        "Base: `{}`. Rows: {} to train on, {} held out; {} in a step. Learning rate: {rates}. Seeds: {}, each with the same rows in \
         the same order and the same initial adapter for all objectives. Each run ends with its last adapter. Device: {}. Equipoise {}.\n",
        report.base,
        report.train_rows,
        report.validation_rows,
        report.rows_per_step,
        seeds.join(", "),
        report.device,
        report.version
    );
    held_out(report, &mut text);
    for i in 0..report.objectives.first().map_or(0, |of| of.tasks.len()) {
        task(report, i, &mut text);
    }
    if !report.learning_rates.is_empty() {
        grid(report, &mut text);
    }
    text.push_str(
        "± is the standard deviation over seeds; of a difference, the paired standard error over items, whose scores are means over \
         seeds. Intervals are BCa bootstrap intervals at 95%; p is the sign-flip test's, adjusted by Holm over the objectives \
         and tasks of a metric. They say how the items would vary, not how other seeds, data or bases would. General text: the perplexity of a short one, which \
         rises where a model forgets. Effective tokens: (Σw)²/(n·Σw²) of the \
         weights of a step's tokens. Bad runs broke off, or their adapter ruins the model.\n",
    );
    text
}

fn row(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn header(text: &mut String, cells: &[&str]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
    let rule: Vec<&str> = cells.iter().enumerate().map(|(i, _)| if i == 0 { "---" } else { "---:" }).collect();
    let _ = writeln!(text, "| {} |", rule.join(" | "));
}

fn spread(of: Option<MeanAndSpread>, digits: usize) -> String {
    of.map_or_else(|| "–".to_owned(), |of| of.text(digits))
}

fn held_out(report: &ObjectivesReport, text: &mut String) {
    text.push_str("## Held-out rows\n\n");
    header(
        text,
        &[
            "objective",
            "learning rate",
            "cross-entropy",
            "token accuracy",
            "token probability",
            "general text",
            "effective tokens",
            "gradient norm",
            "tokens/s",
            "bad runs",
        ],
    );
    if let Some(before) = &report.before {
        let numbers = [before.cross_entropy, before.token_accuracy, before.token_probability];
        let mut cells = vec!["base alone".to_owned(), "–".into()];
        cells.extend(numbers.map(|of| format!("{of:.4}")));
        cells.push(report.base_general_text().map_or_else(|| "–".to_owned(), |of| format!("{of:.2}")));
        cells.extend(["–", "–", "–", "–"].map(str::to_owned));
        row(text, &cells);
    }
    for of in &report.objectives {
        let cells = [
            of.objective.clone(),
            format!("{:e}", of.learning_rate),
            spread(of.cross_entropy, 4),
            spread(of.token_accuracy, 4),
            spread(of.token_probability, 4),
            spread(of.general_text, 2),
            spread(of.effective_token_share, 3),
            spread(of.grad_norm, 3),
            spread(of.tokens_per_second, 0),
            of.bad_runs.to_string(),
        ];
        row(text, &cells);
    }
    if let Some(before) = &report.before {
        let _ = writeln!(text, "\n{}", sentence(&Prior::from(before).reading()));
    }
    text.push('\n');
}

fn difference(of: Option<&PairedComparison>) -> String {
    of.map_or_else(
        || "–".to_owned(),
        |of| {
            let stderr = of.stderr.map_or_else(String::new, |stderr| format!(" ± {stderr:.4}"));
            format!("{:+.4}{stderr}", of.difference)
        },
    )
}

fn task(report: &ObjectivesReport, i: usize, text: &mut String) {
    let Some(first) = report.objectives.first() else { return };
    let Some(of_first) = first.tasks.get(i) else { return };
    let base =
        report.base_tasks.iter().find(|row| row.score.task == of_first.task && row.score.metric == of_first.metric);
    let items = base.map_or(0, |row| row.score.items);
    let limit = report.limit.map_or_else(String::new, |limit| format!(" (of `--limit {limit}`)"));
    let better = if of_first.higher_is_better { "higher" } else { "lower" };
    let _ = writeln!(text, "## {}: {}, {items} items{limit}, {better} is better\n", of_first.task, of_first.metric);
    let against = format!("against {}", first.objective);
    header(text, &["objective", "score", &against, "interval", "p", "against the base"]);
    for of in &report.objectives {
        let Some(task) = of.tasks.get(i) else { continue };
        let interval = task.against_first.as_ref().and_then(|paired| paired.bca.or(paired.percentile));
        let interval = interval.map_or_else(|| "–".to_owned(), |interval| interval.to_string());
        let p = task.p_holm.map_or_else(|| "–".to_owned(), p_text);
        let cells = [
            of.objective.clone(),
            spread(task.score, 4),
            difference(task.against_first.as_ref()),
            interval,
            p,
            difference(task.against_base.as_ref()),
        ];
        row(text, &cells);
    }
    // Items that have a number of their own are compared with the base's.
    let mut scored =
        report.objectives.iter().filter_map(|of| of.tasks.get(i)).filter(|task| task.score.is_some()).peekable();
    if scored.peek().is_some() && scored.all(|task| task.against_base.is_none()) {
        text.push_str("\nNo tests: this is a number of all items together, not a mean over them.\n");
    }
    if let Some(base) = base {
        let mut floors = vec![format!("the base alone {:.4}", base.score.value)];
        floors.extend(base.score.stderr.map(|stderr| format!("± {stderr:.4}")));
        floors.extend(base.chance.map(|chance| format!("; a guess {chance:.4}")));
        floors.extend(base.best_constant.map(|constant| format!("; the best constant answer {constant:.4}")));
        let least = report.objectives.iter().filter_map(|of| of.tasks.get(i)?.against_first.as_ref()?.least_detectable);
        let least = least.reduce(f64::max).filter(|least| *least > 0.0).map_or_else(String::new, |least| {
            format!(" The least detectable difference is {least:.4} (80% power, p < 0.05, unadjusted).")
        });
        let _ = writeln!(text, "\nFloors: {}.{least}\n", floors.join(" ").replace(" ;", ";"));
    } else {
        text.push('\n');
    }
}

fn grid(report: &ObjectivesReport, text: &mut String) {
    text.push_str("## Learning rates\n\n");
    header(text, &["objective", "learning rate", "cross-entropy", "token accuracy", "token probability", "taken"]);
    for of in &report.objectives {
        let Some(&seed) = of.seeds.first() else { continue };
        let is_tried = |run: &&ObjectiveRun| report.learning_rates.contains(&run.learning_rate);
        let runs = report.runs.iter().filter(|run| run.objective == of.objective && run.seed == seed);
        for run in runs.filter(is_tried) {
            let number = |number: fn(&Validation) -> f64| {
                run.after.as_ref().map_or_else(|| "–".to_owned(), |after| format!("{:.4}", number(after)))
            };
            let cells = [
                run.objective.clone(),
                format!("{:e}", run.learning_rate),
                number(|of| of.cross_entropy),
                number(|of| of.token_accuracy),
                number(|of| of.token_probability),
                if run.learning_rate == of.learning_rate { "yes".into() } else { String::new() },
            ];
            row(text, &cells);
        }
    }
    text.push('\n');
}
