//! What a turn says of whether it is learnt, under the names that trainers have for it.

use super::{Row, RowError, fields};
use crate::data::example::Role;
use serde_json::{Map, Value};

/// Names under which a turn says that it is learnt: `train` and `training` (Axolotl), `weight` (`OpenAI`), `loss` and
/// `loss_scale` (ms-swift).
const LEARNT: [&str; 7] = ["train", "training", "trainable", "weight", "loss", "loss_scale", "loss_weight"];

/// Names under which a turn says that it is not: `masked` (torchtune).
const MASKED: [&str; 2] = ["masked", "mask"];

/// Those that stand at every turn in some files; to other turns than the assistant's they say nothing.
const ANYWHERE: [&str; 6] = ["weight", "loss", "loss_scale", "loss_weight", "masked", "mask"];

/// Parts of names that sound like one of the above.
const SOUNDS: [&str; 5] = ["train", "loss", "mask", "supervis", "learn"];

/// Whether a field of a turn says if the turn is learnt.
pub(super) fn is_known(field: &str) -> bool {
    LEARNT.contains(&field) || MASKED.contains(&field)
}

/// Whether a turn says that it is learnt.
///
/// # Errors
/// When it says so in a way that is not understood here, or two things at once.
pub(super) fn of(turn: Row<'_>, role: Role) -> Result<Option<bool>, RowError> {
    let mut said: Option<(&str, bool)> = None;
    for key in LEARNT.into_iter().chain(MASKED) {
        let Some(value) = turn.given(key) else { continue };
        let Some(yes) = yes_or_no(value) else {
            return Err(turn
                .wrong_type(key, "true or false, or 0 or 1", value)
                .with_help("a turn is learnt or not; shares of a turn's loss are not supported"));
        };
        let train = yes != MASKED.contains(&key);
        if role != Role::Assistant {
            if train && !ANYWHERE.contains(&key) {
                return Err(turn
                    .error(key, "is true, and only the assistant's turns are learnt")
                    .with_help("remove it here, or use the format `template` with `completion`"));
            }
            continue;
        }
        match said {
            Some((other, before)) if before != train => {
                return Err(turn.error(key, format!("contradicts `{other}`")).with_help("keep one of the two"));
            }
            _ => said = Some((key, train)),
        }
    }
    Ok(said.map(|(_, train)| train))
}

fn yes_or_no(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(yes) => Some(*yes),
        // Tables make 1.0 of true where other rows have none.
        Value::Number(number) if number.as_f64() == Some(0.0) => Some(false),
        Value::Number(number) if number.as_f64() == Some(1.0) => Some(true),
        _ => None,
    }
}

/// Refuses what sounds as if it said what is learnt, and is not known: passing it over would learn what should not be.
/// `known` has the fields of the turn that are read. Text and other numbers are left alone.
pub(super) fn refuse_unknown(turn: &Map<String, Value>, known: impl Fn(&str) -> bool) -> Result<(), RowError> {
    for (key, value) in turn.iter().filter(|(key, _)| !known(key)) {
        let lower = key.to_lowercase();
        let sounds = SOUNDS.iter().any(|part| lower.contains(part));
        let says = yes_or_no(value).is_some() || value.as_array().is_some_and(|list| !list.is_empty());
        if !(sounds && says) {
            continue;
        }
        let message =
            format!("`{}` seems to say what of the turn is learnt, and is not known here", fields::shown(key));
        let help = if value.is_array() {
            "a turn is learnt or not; parts of a turn cannot be: split the turn, or take the field out".to_string()
        } else {
            format!(
                "the names are {}; `data.fields: {{train: {key}}}` reads it as `train`, or take it out",
                fields::list(LEARNT, "and")
            )
        };
        return Err(RowError::new([key.clone().into()], message).with_help(help));
    }
    Ok(())
}
