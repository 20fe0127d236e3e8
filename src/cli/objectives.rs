//! `equipoise objectives`: a recipe under several objectives.

use super::RecipeArgs;
use super::interrupt::Interrupt;
use super::output::{Stdout, columns, say};
use super::progress::Progress;
use crate::error::{Error, Result};
use crate::run::{self, EvalRequest, MeanAndSpread, ObjectivesReport, ObjectivesRequest, TaskSummary};
use crate::statistics::p_text;
use crate::train::MetricForBest;
use crate::train::metrics::Validation;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(super) struct ObjectivesArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// The objectives, separated by commas; the others are compared with the first. With settings: `bft:group_normalized`,
    /// `bft:token_weight_floor=0.1+normalize_weights=true`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "sft,dft,bft,bft:group_normalized,eaft")]
    objectives: Vec<String>,
    /// Runs of each objective: the recipe's seed, and those that follow.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(1..=100))]
    seeds: u16,
    /// Try these learning rates with the first seed, and take each objective's best; without it all have the recipe's.
    #[arg(long, value_name = "RATES", value_delimiter = ',', value_parser = rate)]
    learning_rates: Vec<f64>,
    /// By which number on the held-out rows a learning rate is best: `token_accuracy`, `cross_entropy` or `token_probability`.
    #[arg(long, value_name = "METRIC", default_value = "token_accuracy", value_parser = metric)]
    select_by: MetricForBest,
    /// Tasks that each adapter is evaluated on, as `equipoise eval` takes them; by default those of the recipe's `evaluation`.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    tasks: Vec<String>,
    /// A folder or file with more tasks; may be given several times.
    #[arg(long, alias = "include_path", value_name = "PATH")]
    include_path: Vec<PathBuf>,
    /// Few-shot examples before each question.
    #[arg(long, alias = "num_fewshot", value_name = "N")]
    num_fewshot: Option<usize>,
    /// The first N documents of each task alone; below 1, that share of them.
    #[arg(long, value_name = "N", value_parser = super::eval::limit)]
    limit: Option<f64>,
    /// Put the tasks' prompts through the model's chat template.
    #[arg(long, alias = "apply_chat_template")]
    apply_chat_template: bool,
    /// Tokens of a forward pass of the tasks, about; by default the recipe's `evaluation.batch_tokens`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch_tokens: Option<u32>,
    /// The folder for runs and tables; by default the recipe's output folder, with `-objectives` behind.
    #[arg(long, alias = "output_path", value_name = "FOLDER")]
    output_path: Option<PathBuf>,
    /// Go on with the comparison in that folder; objectives and seeds may be added.
    #[arg(long)]
    resume: bool,
    /// Show no progress.
    #[arg(short, long)]
    quiet: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| *rate > 0.0 && *rate < 1.0)
        .ok_or_else(|| "expected a rate such as 2e-4".into())
}

fn metric(text: &str) -> Result<MetricForBest, String> {
    match text {
        "token_accuracy" => Ok(MetricForBest::TokenAccuracy),
        "cross_entropy" => Ok(MetricForBest::CrossEntropy),
        "token_probability" => Ok(MetricForBest::TokenProbability),
        _ => Err("expected token_accuracy, cross_entropy or token_probability".into()),
    }
}

pub(super) fn run(args: &ObjectivesArgs) -> Result<u8> {
    let recipe = args.recipe.load()?;
    let mut beside = recipe.output_dir.clone().into_os_string();
    beside.push("-objectives");
    let output = args.output_path.clone().unwrap_or_else(|| beside.into());
    let (asked, of_recipe) = (&recipe.evaluation, args.tasks.is_empty());
    let request = ObjectivesRequest {
        objectives: args.objectives.clone(),
        seeds: usize::from(args.seeds),
        learning_rates: args.learning_rates.clone(),
        select_by: args.select_by.clone(),
        eval: EvalRequest {
            model: recipe.base.model.clone(),
            base: None,
            tasks: if of_recipe { asked.tasks.clone() } else { args.tasks.clone() },
            include: args.include_path.iter().cloned().chain(asked.include_path.iter().map(PathBuf::from)).collect(),
            num_fewshot: args.num_fewshot.or(asked.num_fewshot.filter(|_| of_recipe)),
            limit: args.limit.or(asked.limit.filter(|_| of_recipe)),
            output: None,
            resume: false,
            apply_chat_template: args.apply_chat_template || of_recipe && asked.apply_chat_template,
            fewshot_as_multiturn: true,
            system_instruction: None,
            quantization: None,
            compute: recipe.compute,
            device: recipe.device,
            batch_tokens: args.batch_tokens.map_or(asked.batch_tokens, |tokens| tokens as usize),
            max_length: None,
            without: None,
            option_shifts: false,
            seed: EvalRequest::SEED,
            offline: args.recipe.offline,
        },
        output: output.clone(),
        resume: args.resume,
        offline: args.recipe.offline,
    };
    let mut progress = Progress::new(args.recipe.json, args.quiet).interruptible(Interrupt::listen);
    let outcome = run::objectives(&recipe, &request, &mut progress);
    let written = progress.finish();
    let report = match outcome {
        Err(Error::Interrupted) => {
            say(&format!("what is done is in {}; the same command with `--resume` goes on", output.display()));
            return Err(Error::Interrupted);
        }
        other => other?,
    };
    written?;
    let mut stdout = Stdout::new();
    if args.recipe.json {
        stdout.json("objectives", &report);
    } else {
        stdout.text(&text(&report));
    }
    stdout.finish()?;
    Ok(0)
}

fn text(report: &ObjectivesReport) -> String {
    let number = |of: Option<MeanAndSpread>| of.map_or_else(String::new, |of| of.text(4));
    // The first metric of each task; a line has no room for more.
    let tasks = report.objectives.first().map(|of| of.tasks.as_slice()).unwrap_or_default();
    let firsts: Vec<usize> = (0..tasks.len()).filter(|&i| i == 0 || tasks[i - 1].task != tasks[i].task).collect();
    let name = |&i: &usize| {
        let TaskSummary { task, metric, higher_is_better, .. } = &tasks[i];
        format!("{task} {metric} {}", if *higher_is_better { "↑" } else { "↓" })
    };
    let names: Vec<String> = firsts.iter().map(name).collect();
    let fixed =
        ["objective", "learning rate", "seeds", "cross-entropy", "token accuracy", "general text", "effective tokens"];
    let mut rows = vec![[fixed.map(str::to_owned).to_vec(), names.clone()].concat()];
    let mut base = vec!["base alone".to_owned(), String::new(), String::new()];
    let before = |number: fn(&Validation) -> f64| {
        report.before.as_ref().map_or_else(String::new, |before| format!("{:.4}", number(before)))
    };
    let general = report.base_general_text().map_or_else(String::new, |of| format!("{of:.2}"));
    base.extend([before(|of| of.cross_entropy), before(|of| of.token_accuracy), general, String::new()]);
    base.extend(firsts.iter().map(|&i| {
        let task = &tasks[i];
        let row =
            report.base_tasks.iter().map(|row| &row.score).find(|of| of.task == task.task && of.metric == task.metric);
        row.map_or_else(String::new, |of| format!("{:.4}", of.value))
    }));
    rows.push(base);
    for of in &report.objectives {
        let mut cells = vec![of.objective.clone(), format!("{:e}", of.learning_rate), of.seeds.len().to_string()];
        cells.extend([of.cross_entropy, of.token_accuracy].map(number));
        cells.push(of.general_text.map_or_else(String::new, |of| of.text(2)));
        cells.push(number(of.effective_token_share));
        cells.extend(firsts.iter().filter_map(|&i| of.tasks.get(i)).map(|task| {
            let p = task.p_holm.map_or_else(String::new, |p| format!(" (p {})", p_text(p)));
            format!("{}{p}", number(task.score))
        }));
        rows.push(cells);
    }
    let bad: usize = report.objectives.iter().map(|of| of.bad_runs).sum();
    let bad =
        if bad > 0 { format!("\n{bad} runs broke off or ruined the model: see the table\n") } else { String::new() };
    let folder = &report.output;
    let more = if firsts.len() < tasks.len() { "; all metrics are in objectives.md" } else { "" };
    let tests = if names.is_empty() { "" } else { "; p: against the first objective, adjusted by Holm" };
    format!(
        "{}\n\n± standard deviation over seeds{tests}{more}\n{bad}\nwritten\n  {}\n  {}\n  {}\n",
        columns(&rows),
        folder.join("objectives.md").display(),
        folder.join("objectives.csv").display(),
        folder.join("objectives.json").display(),
    )
}
