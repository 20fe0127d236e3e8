//! Keys that a recipe does not have: found in one walk, and answered all at once with the keys that were meant.

use super::diagnose::show;
use super::foreign::{Answer, answer, convert};
use super::keys::{Kind, keys_of, kind_at, sections_with};
use super::locate::join;
use super::source::Source;
use crate::error::Result;
use crate::objectives::{ObjectiveConfig, ObjectiveKind};
use serde_yaml::{Mapping, Value};
use std::fmt::Write as _;

/// Of so many unknown keys each gets a line.
const MAX_SHOWN: usize = 40;

struct Unknown<'a> {
    section: String,
    key: String,
    value: &'a Value,
}

/// What is said about one unknown key, and what can be written in its stead.
struct Reply {
    text: String,
    /// Our key and value, for the block that can be copied.
    ours: Option<(String, Value)>,
    /// Nothing close was found: the section's keys are worth listing.
    lost: bool,
}

/// Refuses keys that the recipe's structs do not have.
pub(super) fn check(root: &Value, source: &Source<'_>) -> Result<()> {
    let mut unknown = Vec::new();
    walk("", root, &mut unknown);
    // In the order of the file, the command line's last.
    unknown.sort_by_key(|found| source.line_of(&found.path()).unwrap_or(usize::MAX));
    let Some(first) = unknown.first() else { return Ok(()) };
    let mut message = format!("unknown key `{}` {}", first.key, place_name(&first.section));
    if unknown.len() > 1 {
        let _ = write!(message, ", and {} more", unknown.len() - 1);
    }
    Err(source.at_key(&first.path(), message).with_help(help(&unknown, root, source)))
}

impl Unknown<'_> {
    fn path(&self) -> String {
        join(&self.section, &self.key)
    }
}

fn place_name(section: &str) -> String {
    if section.is_empty() { "at the top of the recipe".into() } else { format!("in section `{section}`") }
}

fn walk<'a>(section: &str, value: &'a Value, unknown: &mut Vec<Unknown<'a>>) {
    let (Value::Mapping(mapping), Some(Kind::Section(keys))) = (value, kind_at(section)) else { return };
    for (key, value) in mapping {
        let name = show(key);
        if key.is_string() && keys.contains(&name.as_str()) {
            walk(&join(section, &name), value, unknown);
        } else {
            unknown.push(Unknown { section: section.to_owned(), key: name, value });
        }
    }
}

fn help(unknown: &[Unknown<'_>], root: &Value, source: &Source<'_>) -> String {
    let replies: Vec<Reply> = unknown.iter().take(MAX_SHOWN).map(reply).collect();
    let mut lines = Vec::new();
    for (found, reply) in unknown.iter().zip(&replies) {
        lines.push(match (unknown.len(), source.line_of(&found.path())) {
            (1, _) => reply.text.clone(),
            (_, Some(line)) => format!("line {line}, `{}`: {}", found.key, reply.text),
            (_, None) => format!("`{}`: {}", found.key, reply.text),
        });
    }
    if unknown.len() > replies.len() {
        lines.push(format!("and {} more", unknown.len() - replies.len()));
    }
    let typed_on_the_line = unknown.iter().any(|found| source.is_override(&found.path()));
    let mut ours: Vec<(String, Value)> = replies.iter().filter_map(|reply| reply.ours.clone()).collect();
    let is_typed = root.get("objective").is_some_and(|objective| objective.get("type").is_some());
    if !is_typed {
        name_the_objective(unknown, &mut ours);
    }
    lines.extend(written_our_way(&ours, typed_on_the_line));
    let mut listed: Vec<&str> = Vec::new();
    for (found, _) in unknown.iter().zip(&replies).filter(|(_, reply)| reply.lost) {
        if !listed.contains(&found.section.as_str()) {
            listed.push(&found.section);
            let whose = if found.section.is_empty() {
                "a recipe's keys".into()
            } else {
                format!("the keys of `{}`", found.section)
            };
            lines.push(format!("{whose}: {}", keys_of(&found.section).join(", ")));
        }
    }
    lines.join("\n")
}

/// Adds the objective that its settings are of: without it they are refused. Others name it in front of them (`eaft_alpha`). Where they
/// name several, or switch it off, nobody can know which is meant, and none is written.
fn name_the_objective(unknown: &[Unknown<'_>], ours: &mut Vec<(String, Value)>) {
    let mut named: Vec<&ObjectiveKind> = Vec::new();
    for found in unknown {
        let Some(Answer::Ours(path)) = answer(&found.key) else { continue };
        let Some(setting) = path.strip_prefix("objective.").filter(|setting| *setting != "type") else { continue };
        let kinds = ObjectiveConfig::kinds_with(setting);
        let is_named = |kind: &&ObjectiveKind| found.key.to_lowercase().starts_with(kind.name());
        named.extend(kinds.iter().find(is_named).or(kinds.first()));
    }
    let is_off = |kind: &ObjectiveKind| {
        let is_switch = |found: &Unknown<'_>| answer(&found.key) == Some(Answer::IfTrue("objective.type", kind.name()));
        unknown.iter().any(|found| is_switch(found) && found.value.as_bool() == Some(false))
    };
    let Some(&kind) = named.first() else { return };
    let is_typed = |(path, value): &(String, Value)| path == "objective.type" && value.as_str() != Some(kind.name());
    if named.iter().any(|other| *other != kind) || is_off(kind) || ours.iter().any(is_typed) {
        ours.retain(|(path, _)| path == "objective.type" || !path.starts_with("objective."));
    } else if ours.iter().all(|(path, _)| path != "objective.type") {
        ours.insert(0, ("objective.type".to_owned(), kind.name().into()));
    }
}

/// The translated keys as YAML, or as `--set` arguments.
fn written_our_way(ours: &[(String, Value)], on_the_command_line: bool) -> Option<String> {
    if ours.is_empty() {
        return None;
    }
    if on_the_command_line {
        let set = |(path, value): &(String, Value)| {
            let value = show(value);
            if value.contains([' ', '[', '"', '\'']) {
                format!("--set '{path}={value}'")
            } else {
                format!("--set {path}={value}")
            }
        };
        return Some(format!("write {}", ours.iter().map(set).collect::<Vec<_>>().join(" ")));
    }
    let mut root = Mapping::new();
    for (path, value) in ours {
        match path.split_once('.') {
            None => {
                root.insert(path.as_str().into(), value.clone());
            }
            Some((section, key)) => {
                let below = root.entry(section.into()).or_insert_with(|| Value::Mapping(Mapping::new()));
                if let Value::Mapping(below) = below {
                    below.insert(key.into(), value.clone());
                }
            }
        }
    }
    Some(format!("write:\n{}", block(&root)))
}

/// A mapping of sections as YAML, with lists on one line.
fn block(root: &Mapping) -> String {
    let mut lines = Vec::new();
    for (key, value) in root {
        match value {
            Value::Mapping(below) => {
                lines.push(format!("{}:", show(key)));
                for (key, value) in below {
                    match nested(value) {
                        Some(nested) => lines.extend([format!("  {}:", show(key)), nested]),
                        None => lines.push(format!("  {}: {}", show(key), show(value))),
                    }
                }
            }
            _ => lines.push(format!("{}: {}", show(key), show(value))),
        }
    }
    lines.join("\n")
}

/// A mapping, or a list that holds one, as YAML of its own lines.
fn nested(value: &Value) -> Option<String> {
    let deep = value.is_mapping() || value.as_sequence().is_some_and(|list| list.iter().any(Value::is_mapping));
    let text = serde_yaml::to_string(value).ok().filter(|_| deep)?;
    Some(text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n"))
}

fn reply(found: &Unknown<'_>) -> Reply {
    let plain_name = found.key.replace('-', "_").to_lowercase();
    if keys_of(&found.section).contains(&plain_name.as_str()) {
        return Reply { text: format!("write `{plain_name}`"), ours: None, lost: false };
    }
    // LLaMA-Factory's `template: llama3` is a name; ours under `data` is another thing.
    let is_name = plain_name == "template" && found.value.is_string();
    // A base's revision is meant, not that of an upload.
    let of_base = plain_name == "revision" && found.section != "hub";
    if let Some(elsewhere) = own_key_elsewhere(found, &plain_name).filter(|_| !is_name && !of_base) {
        return elsewhere;
    }
    match answer(if is_name { "chat_template" } else { &found.key }) {
        Some(Answer::Ours(path)) => {
            let ours = translated(path, found.value);
            return Reply { text: format!("this is `{path}` here"), ours, lost: false };
        }
        Some(Answer::IfTrue(path, word)) => {
            let text = format!("this is `{path}: {word}` here");
            let ours = (found.value.as_bool() == Some(true)).then(|| (path.to_owned(), word.into()));
            return Reply { text, ours, lost: false };
        }
        Some(Answer::None(why)) => return Reply { text: why.into(), ours: None, lost: false },
        None => {}
    }
    let text = match nearest(&plain_name, keys_of(&found.section).iter().copied()) {
        Some(key) => format!("did you mean `{key}`?"),
        None => match nearest_anywhere(&plain_name) {
            Some(path) => format!("did you mean `{path}`?"),
            None => "there is no such setting".into(),
        },
    };
    Reply { text, ours: None, lost: true }
}

/// A key of ours that stands in the wrong section, or a section that stands in another.
fn own_key_elsewhere(found: &Unknown<'_>, name: &str) -> Option<Reply> {
    if let Some(&top) = keys_of("").iter().find(|&&top| top == name) {
        let ours = translated(top, found.value);
        return Some(Reply {
            text: "it stands at the top of the recipe, without indentation".to_owned(),
            ours,
            lost: false,
        });
    }
    let sections = sections_with(name);
    let text = match sections.as_slice() {
        [] => return None,
        [section] => format!("it belongs under `{section}:`"),
        several => format!(
            "it belongs under one of {}",
            several.iter().map(|s| format!("`{s}:`")).collect::<Vec<_>>().join(", ")
        ),
    };
    let ours = match sections.as_slice() {
        [section] => translated(&join(section, name), found.value),
        _ => None,
    };
    Some(Reply { text, ours, lost: false })
}

fn translated(path: &str, value: &Value) -> Option<(String, Value)> {
    convert(path, value).map(|value| (path.to_owned(), value))
}

/// The closest of `candidates`, if any is close.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let score = |candidate: &str| strsim::jaro_winkler(name, candidate);
    candidates
        .map(|candidate| (score(candidate), candidate))
        .filter(|(score, candidate)| *score > 0.85 || strsim::damerau_levenshtein(&cut(name), candidate) <= 1)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Names are user input; the distance takes time by the product of the lengths.
fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

fn nearest_anywhere(name: &str) -> Option<String> {
    let name = &cut(name);
    let sections = keys_of("").iter().copied();
    let all = sections.flat_map(|section| keys_of(section).iter().map(move |key| (section, *key)));
    all.map(|(section, key)| (strsim::jaro_winkler(name, key), join(section, key)))
        .filter(|(score, _)| *score > 0.9)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, path)| path)
}
