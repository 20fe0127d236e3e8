//! The rules, in tables by what they look at. Each was read in the loader that its `source` names.

mod files;
mod formats;
mod method;
mod scale;
mod targets;
mod tensors;

use super::Rule;
use super::facts::{AdapterFacts, Layout};
use serde_json::Value;

/// All rules, whatever an adapter is laid out as.
pub(super) fn all() -> impl Iterator<Item = &'static Rule> {
    peft().chain(formats::RULES)
}

fn peft() -> impl Iterator<Item = &'static Rule> {
    [method::RULES, scale::RULES, targets::RULES, tensors::RULES, files::RULES].into_iter().flatten()
}

/// The rules for an adapter of this layout: those for PEFT's say nothing of other formats.
pub(super) fn of(layout: Layout) -> Vec<&'static Rule> {
    match layout {
        Layout::Peft | Layout::Planned => peft().collect(),
        Layout::Mlx | Layout::Gguf => formats::RULES.iter().collect(),
    }
}

/// What a rule found.
pub(super) struct Found {
    /// With the value.
    pub what: String,
    /// What to do, where the rule's own words are not enough.
    pub fix: Option<String>,
}

impl From<String> for Found {
    fn from(what: String) -> Self {
        Self { what, fix: None }
    }
}

impl Found {
    fn with_fix(what: String, fix: String) -> Self {
        Self { what, fix: Some(fix) }
    }
}

type Check = Option<Found>;

/// A value for a message, cut where it is long.
fn shown(value: &Value) -> String {
    cut(&value.to_string(), 80)
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    format!("{}…", text.chars().take(most).collect::<String>())
}

/// A key that says something.
fn key(facts: &AdapterFacts, key: &str) -> Check {
    facts.truthy(key).map(|value| format!("`{key}` is {}", shown(value)).into())
}

/// The first few names, and how many more there are.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut names = names.into_iter();
    let first: Vec<String> = names.by_ref().take(3).map(|name| format!("`{}`", cut(name, 120))).collect();
    if first.is_empty() {
        return None;
    }
    let more = names.count();
    let tail = if more == 0 { String::new() } else { format!(" and {more} more") };
    Some(first.join(", ") + &tail)
}

/// For tables: a rule that looks at the settings too takes them; the others do not.
macro_rules! facts_only {
    ($check:expr) => {
        |facts, _: &Settings| $check(facts)
    };
}
use facts_only;
