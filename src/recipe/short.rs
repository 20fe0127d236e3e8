//! A recipe with the keys alone that differ from their defaults: what somebody chose, for people to read.

use super::{Recipe, RecipeFile};
use crate::error::{Error, Result};
use serde_yaml::Value;

impl Recipe {
    /// The recipe as YAML, without the keys that have their defaults. It means the same. The objective stands there always: it is what a
    /// reader looks for, and its settings mean nothing without it.
    ///
    /// # Errors
    /// Never for a valid recipe.
    pub fn to_short_yaml(&self) -> Result<String> {
        let failed = |error: serde_yaml::Error| Error::invalid(format!("internal: {error}"));
        let file = self.to_file();
        let least = RecipeFile { output_dir: None, name: None, ..serde_yaml::from_str(LEAST).map_err(failed)? };
        let (own, mut default) =
            (serde_yaml::to_value(&file).map_err(failed)?, serde_yaml::to_value(&least).map_err(failed)?);
        if let Some(Value::Mapping(objective)) = default.get_mut("objective") {
            objective.remove("type");
        }
        let mut short = without(&own, &default).unwrap_or(own);
        if let Value::Mapping(map) = &mut short {
            map.remove("output_dir");
        }
        whole_numbers(&mut short);
        serde_yaml::to_string(&short).map_err(failed)
    }
}

const LEAST: &str = "base: {model: ''}\ndata: {train: ''}\n";

/// What of `own` differs from `default`.
fn without(own: &Value, default: &Value) -> Option<Value> {
    match (own, default) {
        (Value::Mapping(own), Value::Mapping(default)) => {
            let differing = own.iter().filter_map(|(key, value)| {
                let kept = default.get(key).map_or_else(|| Some(value.clone()), |default| without(value, default))?;
                Some((key.clone(), kept))
            });
            Some(differing.collect::<serde_yaml::Mapping>()).filter(|map| !map.is_empty()).map(Value::Mapping)
        }
        _ => (own != default).then(|| own.clone()),
    }
}

/// `32` for `32.0`.
pub(super) fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(float) = number.as_f64().filter(|x| number.is_f64() && x.fract() == 0.0 && x.abs() < 1e15) {
                *value = Value::Number((float as i64).into());
            }
        }
        Value::Sequence(all) => all.iter_mut().for_each(whole_numbers),
        Value::Mapping(map) => map.iter_mut().for_each(|(_, value)| whole_numbers(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn only_what_was_chosen_is_there_and_it_means_the_same() {
        let text = "base:\n  model: org/base\nlora:\n  lora_alpha: 64\ndata:\n  train: rows.jsonl\ntraining:\n  learning_rate: 7e-4\n";
        let recipe = Recipe::parse(text, Path::new("x.yaml"), &["lora.r=16".into()]).unwrap();
        let short = recipe.to_short_yaml().unwrap();
        assert_eq!(
            short,
            "name: x\nbase:\n  model: org/base\nlora:\n  lora_alpha: 64\nobjective:\n  type: sft\ndata:\n  train: rows.jsonl\ntraining:\n  learning_rate: 0.0007\n"
        );
        assert_eq!(Recipe::parse(&short, Path::new("y.yaml"), &[]).unwrap().hash(), recipe.hash());
        // BFT's settings stay under `sft`, and the type is written: without it they could not be read back.
        let text = "base:\n  model: org/base\nobjective:\n  type: bft\n  group_size: 64\ndata:\n  train: rows.jsonl\n";
        let recipe = Recipe::parse(text, Path::new("x.yaml"), &["objective.type=sft".into()]).unwrap();
        let short = recipe.to_short_yaml().unwrap();
        assert!(short.contains("objective:\n  type: sft\n  group_size: 64\n"), "{short}");
        assert_eq!(Recipe::parse(&short, Path::new("y.yaml"), &[]).unwrap().hash(), recipe.hash());
    }
}
