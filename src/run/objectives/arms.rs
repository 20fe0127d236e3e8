//! What is compared: objectives by name, learning rates, seeds; and the recipe of each run.

use super::ObjectivesRequest;
use crate::error::{Error, Result};
use crate::objectives::{ObjectiveConfig, ObjectiveKind};
use crate::recipe::Recipe;
use serde_yaml::{Mapping, Value};
use std::path::{Path, PathBuf};

/// The most characters of an objective with its settings: learning rate and seed follow in the name of a run.
const MOST_NAME: usize = 64;

/// An objective under the name that it was asked for by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Named {
    pub name: String,
    pub config: ObjectiveConfig,
}

/// A run of the comparison.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arm {
    pub objective: Named,
    pub learning_rate: f64,
    pub seed: u64,
}

/// The objectives of a list, each `TYPE`, `TYPE:TOKEN_WEIGHTING`, or `TYPE:KEY=VALUE+KEY=VALUE` with keys of the recipe's `objective`.
/// What is not said is as in the recipe, where that has this type, else as by default.
pub(super) fn named(list: &[String], recipe: &Recipe) -> Result<Vec<Named>> {
    let objectives: Vec<Named> = list.iter().map(|text| parse(text.trim(), recipe)).collect::<Result<_>>()?;
    for (i, objective) in objectives.iter().enumerate() {
        if let Some(other) = objectives[..i].iter().find(|other| other.config == objective.config) {
            let name = &other.name;
            let what =
                if *name == objective.name { "is named twice".to_owned() } else { format!("is the same as `{name}`") };
            return Err(mistaken(&objective.name, &what));
        }
    }
    if objectives.is_empty() {
        return Err(Error::invalid("--objectives: names none").with_help("write `--objectives sft,dft,bft`"));
    }
    Ok(objectives)
}

fn mistaken(text: &str, what: &str) -> Error {
    Error::invalid(format!("--objectives: `{text}` {what}")).with_help(
        "write a type of the recipe's `objective.type` (sft, dft, bft, eaft, asft, profit, prob), or one with settings: \
         `bft:group_normalized`, `bft:token_weight_floor=0.1+normalize_weights=true`",
    )
}

fn parse(text: &str, recipe: &Recipe) -> Result<Named> {
    let (kind, settings) = text.split_once(':').map_or((text, None), |(kind, settings)| (kind, Some(settings)));
    let kind: ObjectiveKind =
        serde_yaml::from_value(Value::from(kind)).map_err(|_| mistaken(text, "is not an objective"))?;
    let start = if recipe.objective.kind == kind {
        recipe.objective.clone()
    } else {
        ObjectiveConfig { kind, ..ObjectiveConfig::default() }
    };
    let failed = |error: serde_yaml::Error| mistaken(text, &format!("cannot be read: {error}"));
    let mut keys: Mapping = match serde_yaml::to_value(&start).map_err(failed)? {
        Value::Mapping(keys) => keys,
        _ => Mapping::new(),
    };
    let mut set = Vec::new();
    for setting in settings.into_iter().flat_map(|settings| settings.split('+')) {
        let (key, value) = setting.split_once('=').unwrap_or(("token_weighting", setting));
        keys.insert(key.into(), serde_yaml::from_str(value).map_err(failed)?);
        set.push(key);
    }
    let config: ObjectiveConfig = serde_yaml::from_value(Value::Mapping(keys)).map_err(failed)?;
    config.validate().map_err(|error| mistaken(text, &format!("has a setting that does not go: {error}")))?;
    let of_bft = |key: &str| ["token_weighting", "sample_weighting", "group_size", "gamma"].contains(&key);
    let unused = config.unused_keys();
    let is_unused = |key: &&str| unused.contains(key) || kind != ObjectiveKind::Bft && of_bft(key);
    if let Some(key) = set.into_iter().find(|key| is_unused(key)) {
        return Err(mistaken(text, &format!("sets `{key}`, which does nothing under `{}`", kind.name())));
    }
    if text.len() > MOST_NAME {
        return Err(mistaken(text, &format!("is too long for a folder's name: {MOST_NAME} characters at most")));
    }
    Ok(Named { name: text.to_owned(), config })
}

impl Arm {
    /// A name for its folder.
    fn folder(&self) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let objective: String = self.objective.name.chars().map(fits).collect();
        format!("{objective}-lr{:e}-seed{}", self.learning_rate, self.seed)
    }

    /// Where it lies in the comparison's folder.
    pub fn place(&self) -> PathBuf {
        Path::new("runs").join(self.folder())
    }

    /// The recipe of this run. It ends with its last adapter, so that no objective is judged by a choice of its own, and all have the
    /// same held-out rows.
    pub fn recipe(&self, recipe: &Recipe, output: &Path) -> Recipe {
        let mut own = recipe.clone();
        let name = self.folder();
        own.output_dir = output.join(self.place());
        own.name = name;
        own.objective = self.objective.config.clone();
        own.hub = None;
        own.data.sample_in_card = false;
        // The comparison asks its tasks itself.
        own.evaluation.tasks.clear();
        own.evaluation.eval_strategy = None;
        own.data.validation_seed = held_out_by(recipe);
        let training = &mut own.training;
        (training.seed, training.learning_rate) = (self.seed, self.learning_rate);
        (training.eval_steps, training.early_stopping_patience) = (0, 0);
        (training.load_best_model_at_end, training.fail_on_divergence) = (false, false);
        training.metric_for_best_model = Some(crate::train::MetricForBest::CrossEntropy);
        own
    }
}

/// Which seed chooses the held-out rows of all runs; `None` where they are rows of their own.
pub(super) fn held_out_by(recipe: &Recipe) -> Option<u64> {
    let seed = recipe.data.validation_seed.unwrap_or(recipe.training.seed);
    (recipe.data.validation_split > 0.0).then_some(seed)
}

/// The seeds of a comparison: the recipe's, and those that follow.
pub(super) fn seeds(recipe: &Recipe, request: &ObjectivesRequest) -> Vec<u64> {
    (0..request.seeds as u64).map(|i| recipe.training.seed.wrapping_add(i)).collect()
}
