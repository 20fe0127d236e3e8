//! Words for what is wrong: the YAML itself, a value of the wrong type, a value out of its range.

use super::foreign::our_word;
use super::keys::{Kind, keys_of, kind_at};
use super::source::Source;
use super::unknown::nearest;
use crate::error::{Error, Result};
use crate::export::lint::Server;
use serde_yaml::Value;

/// A value on one line, as YAML's flow style writes it. Long ones are cut.
pub(super) fn show(value: &Value) -> String {
    let text = match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Sequence(items) => format!("[{}]", items.iter().take(32).map(show).collect::<Vec<_>>().join(", ")),
        Value::Mapping(_) => "{...}".into(),
        Value::Tagged(tagged) => format!("{} ...", tagged.tag),
    };
    if text.chars().count() > 120 { format!("{}...", text.chars().take(117).collect::<String>()) } else { text }
}

/// A scalar's text; nothing for lists and mappings.
pub(super) fn plain(value: &Value) -> Option<String> {
    (!matches!(value, Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_))).then(|| show(value))
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(flag) => format!("`{flag}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => format!("the string `{}`", show(value)),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "keys and values".into(),
        Value::Tagged(tagged) => format!("the YAML tag `{}`", tagged.tag),
    }
}

/// What libyaml or serde says is wrong with a text, without its own line numbers.
pub(super) fn yaml_problem(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text);
    text.split(", while ").next().unwrap_or(text).to_owned()
}

/// A broken text above this size is refused by the locator's parser alone: the other one can take minutes over it.
const LARGE: usize = 1 << 15;

/// Refuses what is not YAML, or not the one mapping that a recipe is.
pub(super) fn parse(source: &Source<'_>) -> Result<Value> {
    if let Some(place) = source.locations.too_deep {
        return Err(source
            .at(place, "nested deeper than any recipe is".into())
            .with_help("check the brackets before this place"));
    }
    if let Some((place, problem)) = &source.locations.error
        && source.text().len() > LARGE
    {
        return Err(source
            .at(*place, format!("not valid YAML: {problem}"))
            .with_help("is this a recipe? It is large for one"));
    }
    let parsed: serde_yaml::Result<Value> = serde_yaml::from_str(source.text());
    if let Some(twice) = source.locations.duplicates.first() {
        let message = format!("the key `{}` stands here for the second time", twice.path);
        return Err(source
            .at(twice.second, message)
            .with_help(format!("the first is on line {}; keep one of the two", twice.first.line)));
    }
    let value = match parsed {
        Ok(value) => value,
        Err(error) => return Err(not_yaml(source, &error)),
    };
    match untagged(value) {
        Value::Mapping(mapping) => Ok(Value::Mapping(mapping)),
        Value::Null => Err(source.at_value("", "the recipe is empty".into()).with_help(MINIMUM)),
        other => {
            Err(source.at_value("", format!("expected keys and values, got {}", describe(&other))).with_help(MINIMUM))
        }
    }
}

/// A value without its YAML tags (`!name`), which say nothing in a recipe.
pub(super) fn untagged(value: Value) -> Value {
    match value {
        Value::Tagged(tagged) => untagged(tagged.value),
        Value::Mapping(mapping) => {
            Value::Mapping(mapping.into_iter().map(|(key, value)| (untagged(key), untagged(value))).collect())
        }
        Value::Sequence(items) => Value::Sequence(items.into_iter().map(untagged).collect()),
        scalar => scalar,
    }
}

const MINIMUM: &str =
    "the least that a recipe holds:\nbase:\n  model: org/name, a folder, or a .gguf file\ndata:\n  train: rows.jsonl";

fn not_yaml(source: &Source<'_>, error: &serde_yaml::Error) -> Error {
    let problem = yaml_problem(error);
    if let Some(second) = source.locations.second_document {
        return source
            .at(second, "a second document begins here".into())
            .with_help("a recipe is one document; delete this `---`");
    }
    let place = error.location().map_or(super::locate::Place { line: 1, column: 1, width: 1 }, |location| {
        super::locate::Place { line: location.line(), column: location.column(), width: 1 }
    });
    let indented_by_tab = |line: &str| line.trim_start_matches(' ').starts_with('\t');
    let tab =
        (place.line.saturating_sub(1)..=place.line).find(|&number| number > 0 && indented_by_tab(source.line(number)));
    if let Some(line) = tab {
        let column = 1 + source.line(line).chars().take_while(|&c| c == ' ').count();
        let place = super::locate::Place { line, column, width: 1 };
        return source.at(place, "a tab indents this line".into()).with_help("YAML is indented by spaces alone");
    }
    source.at(place, format!("not valid YAML: {problem}")).with_help(yaml_help(&problem, source, place.line))
}

fn yaml_help(problem: &str, source: &Source<'_>, line: usize) -> String {
    let glued = (line.saturating_sub(1)..=line).find(|&number| {
        let text = source.line(number).trim_start();
        let key = text.find(':').map_or("", |at| &text[..at]);
        !key.is_empty()
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && text[key.len() + 1..].starts_with(|c: char| !c.is_whitespace())
    });
    if let Some(number) = glued {
        return format!("line {number} wants a space after the `:`");
    }
    let help = match problem {
        text if text.contains("mapping values are not allowed") => {
            "a text that holds `: ` goes in quotes; a key stands in the same column as its neighbours"
        }
        text if text.contains("did not find expected key") || text.contains("block") => {
            "the keys of a section stand in one column, two spaces right of the section's name"
        }
        text if text.contains("',' or") => "a list in brackets is not closed: [q_proj, v_proj]",
        text if text.contains("quoted scalar") || text.contains("end of stream") => {
            "a quote or a bracket is not closed"
        }
        text if text.contains("cannot start any token") => "a text that begins with @, `, % or the like goes in quotes",
        text if text.contains("expected ':'") => "each line is `key: value`, with a space after the `:`",
        text if text.contains("repetition limit") => "the aliases (`*name`) repeat too much; write the values out",
        text if text.contains("recursion limit") => "it is nested deeper than any recipe is",
        text if text.contains("anchor") => "a text that begins with `*` or `&` goes in quotes",
        _ => "check indentation (spaces, no tabs), quotes and brackets around this line",
    };
    help.into()
}

/// Turns what serde says into an error at the value's place.
pub(super) fn wrong_value(source: &Source<'_>, root: &Value, path: &str, error: &serde_yaml::Error) -> Error {
    let serde_text = error.to_string();
    if let Some(field) = serde_text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        return missing(source, path, field);
    }
    let path = path.trim_start_matches('.');
    if let Some((field, fields)) = unknown_field(&serde_text) {
        let help = match nearest(field, fields.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?\nthe keys here: {}", fields.join(", ")),
            None => format!("the keys here: {}", fields.join(", ")),
        };
        let section = path.rsplit_once('.').map_or(path, |(section, _)| section);
        return source.at_key(path, format!("{section}: unknown key `{field}`")).with_help(help);
    }
    let value = at(root, path).cloned().unwrap_or(Value::Null);
    // What an element of a list takes, its list says.
    let key = path.split('[').next().unwrap_or(path);
    let kind = kind_at(key).unwrap_or(Kind::Other);
    let known = ["invalid type", "invalid value", "unknown variant", "data did not match", "invalid length"];
    if kind == Kind::Text && !known.iter().any(|start| serde_text.starts_with(start)) {
        // The type's own words.
        return helped(source.at_value(path, format!("{path}: {serde_text}")), word_help(path, &value, &[]));
    }
    let message = match (kind, &value) {
        // Sources, templates and their like say best themselves what they take.
        (Kind::Other, _)
            if key.starts_with("data.") || key.starts_with("evaluation.") || key == "export.for" && path != key =>
        {
            format!("{path}: {serde_text}")
        }
        (Kind::OneOf(_), Value::String(_)) => format!("{path}: there is no `{}`", show(&value)),
        _ => format!("{path}: expected {}, got {}", expected(kind, key), describe(&value)),
    };
    helped(source.at_value(path, message), value_help(source, path, kind, &value))
}

/// What to write for a word that is not a server, or for servers that are not in a list.
fn server_help(value: &Value) -> String {
    let text = plain(value).unwrap_or_default().to_lowercase();
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    match words.map(near_server).collect::<Option<Vec<_>>>() {
        Some(meant) if !meant.is_empty() && meant.join(",") == text.replace(' ', "") => {
            format!("a list goes in brackets: `for: [{}]`\n{}", meant.join(", "), servers())
        }
        Some(meant) if !meant.is_empty() => format!("did you mean `for: [{}]`?\n{}", meant.join(", "), servers()),
        _ => servers(),
    }
}

/// The server that a word may mean: `llama.cpp` is `llamacpp`.
fn near_server(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase().replace(['-', '_', '.'], "");
    nearest(&word, Server::ALL.into_iter().map(Server::name))
}

fn servers() -> String {
    format!("the servers: {}", Server::ALL.map(Server::name).join(", "))
}

/// An error with its help, where there is any.
fn helped(error: Error, help: String) -> Error {
    if help.is_empty() { error } else { error.with_help(help) }
}

/// The field of serde's "unknown field" and those that there are.
fn unknown_field(serde_text: &str) -> Option<(&str, Vec<&str>)> {
    let mut quoted = serde_text.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let field = quoted.next()?;
    Some((field, quoted.collect()))
}

fn at<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').filter(|key| !key.is_empty()).try_fold(root, |value, key| {
        let (name, index) = key.split_once('[').map_or((key, None), |(name, rest)| (name, rest.strip_suffix(']')));
        let value = value.as_mapping()?.get(name)?;
        match index {
            Some(index) => value.as_sequence()?.get(index.parse::<usize>().ok()?),
            None => Some(value),
        }
    })
}

fn missing(source: &Source<'_>, path: &str, field: &str) -> Error {
    let section = path.trim_matches('.');
    let (message, help) = match (section, field) {
        ("", "base") => (
            "the recipe names no base model".to_owned(),
            "add:\nbase:\n  model: org/name, a folder, or a .gguf file".to_owned(),
        ),
        ("", "data") => ("the recipe names no data".into(), "add:\ndata:\n  train: rows.jsonl".into()),
        ("", field) => (format!("`{field}` is missing"), format!("add `{field}:`")),
        (section, field) => (
            format!("`{section}.{field}` is missing"),
            format!("the keys of `{section}`: {}", keys_of(section).join(", ")),
        ),
    };
    source.at_key(section, message).with_help(help)
}

fn expected(kind: Kind, path: &str) -> String {
    match kind {
        Kind::Section(keys) => format!("a section with the keys {}", keys.join(", ")),
        Kind::OneOf(words) => format!("one of {}", words.join(", ")),
        Kind::Number => "a number".into(),
        Kind::Count => match path.rsplit('.').next().unwrap_or(path) {
            "max_steps" | "warmup_steps" | "eval_steps" | "save_steps" | "early_stopping_patience" | "seed" => {
                "a whole number, at least 0".into()
            }
            _ => "a whole number, at least 1".into(),
        },
        Kind::Flag => "`true` or `false`".into(),
        Kind::Text => "text".into(),
        Kind::Other if path == "lora.target_modules" => "`all-linear` or a list of names".into(),
        Kind::Other if path == "export.for" => "a list of servers, such as `[vllm, peft]`".into(),
        Kind::Other => "something else".into(),
    }
}

fn value_help(source: &Source<'_>, path: &str, kind: Kind, value: &Value) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let text = plain(value);
    if value.is_null() && !matches!(kind, Kind::OneOf(_)) {
        return format!("give it a value, or delete the line to have the default{}", default_of(path));
    }
    match kind {
        Kind::Flag => match text.as_deref().map(str::to_lowercase).as_deref() {
            Some("yes" | "on" | "y" | "1") => format!("write `{key}: true`"),
            Some("no" | "off" | "n" | "0") => format!("write `{key}: false`"),
            _ => String::new(),
        },
        Kind::Number | Kind::Count => number_help(source, path, key, kind, value),
        Kind::OneOf(words) => word_help(path, value, words),
        Kind::Text => match text {
            Some(text) => format!("put it in quotes: `{key}: \"{text}\"`"),
            None => String::new(),
        },
        Kind::Other if path.starts_with("lora.target_modules") => {
            match text.as_deref().and_then(|t| our_word("lora.target_modules", t)) {
                Some(ours) => format!("write `{ours}`"),
                None => target_help(value),
            }
        }
        Kind::Other if path == "export.for" => server_help(value),
        Kind::Other if path.starts_with("export.for[") => match near_server(&text.unwrap_or_default()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => String::new(),
        },
        Kind::Other => String::new(),
        Kind::Section(_) => section_help(path, text.as_deref()),
    }
}

fn target_help(value: &Value) -> String {
    match value {
        Value::String(names) if names.contains("linear") => "did you mean `all-linear`?".into(),
        Value::String(names) => format!("a list goes in brackets: `target_modules: [{}]`", names.trim()),
        _ => "for example `target_modules: [q_proj, v_proj]`".into(),
    }
}

fn section_help(path: &str, text: Option<&str>) -> String {
    let first = match path {
        "base" => "model",
        "data" => "train",
        "quantization" | "objective" => "type",
        _ => return format!("write its keys on the lines below `{path}:`, indented by two spaces"),
    };
    let text = text.unwrap_or("...");
    format!("write:\n{path}:\n  {first}: {text}")
}

fn number_help(source: &Source<'_>, path: &str, key: &str, kind: Kind, value: &Value) -> String {
    if let Some(number) = value.as_f64() {
        return match number {
            _ if kind == Kind::Number => String::new(),
            number if number < 0.0 && matches!(key, "max_steps") => "delete the line to have `epochs` decide".into(),
            number if number < 0.0 => String::new(),
            number if number.fract() == 0.0 && number < 1e15 => format!("write `{key}: {number:.0}`"),
            _ => String::new(),
        };
    }
    let Value::String(text) = value else { return String::new() };
    if let Some(help) = comma_help(key, kind, text.trim()) {
        return help;
    }
    let cleaned = text.trim().replace('_', "");
    // YAML reads a number with leading zeros as text.
    let without_zeros = cleaned.trim_start_matches('0');
    let cleaned = if without_zeros.starts_with(|c: char| c.is_ascii_digit()) { without_zeros } else { &cleaned };
    let is_quoted = source.typed(path).is_some_and(|typed| typed.starts_with(['"', '\'']));
    if let Some(share) = cleaned.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok()) {
        return format!("write `{key}: {}`", share / 100.0);
    }
    match cleaned.parse::<f64>() {
        Ok(number) if is_quoted && cleaned == text && number.is_finite() => {
            format!("leave the quotes away: `{key}: {text}`")
        }
        Ok(number) if number.is_finite() => format!("write `{key}: {cleaned}`"),
        _ => match default_of(path) {
            default if default.is_empty() => String::new(),
            default => format!("the default is{}", default.trim_start_matches(',')),
        },
    }
}

/// What a number with commas may mean: a decimal comma, as half the world writes it, or groups of thousands.
fn comma_help(key: &str, kind: Kind, text: &str) -> Option<String> {
    let (whole, fraction) = text.rsplit_once(',')?;
    let is_number = |text: &str| text.parse::<f64>().is_ok_and(f64::is_finite);
    let (grouped, decimal) = (text.replace(',', ""), format!("{}.{fraction}", whole.replace('.', "")));
    let three_digits = |part: &str| part.len() == 3 && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut groups = text.split('.').next().unwrap_or(text).split(',');
    let first = groups.next().unwrap_or_default();
    let has_groups = text.starts_with(&format!("{first},"));
    let may_group = has_groups && !first.starts_with('0') && groups.all(three_digits) && is_number(&grouped);
    let may_be_decimal = !whole.contains(',') && is_number(&decimal);
    match (may_group, may_be_decimal) {
        (true, true) if kind == Kind::Number => Some(format!("write `{key}: {decimal}`, or `{key}: {grouped}`")),
        (true, _) => Some(format!("write `{key}: {grouped}`")),
        (false, true) => Some(format!("a number has a decimal point, not a comma: write `{key}: {decimal}`")),
        (false, false) => None,
    }
}

fn word_help(path: &str, value: &Value, words: &[&'static str]) -> String {
    let text = plain(value).unwrap_or_default().to_lowercase();
    let list = if words.is_empty() { String::new() } else { format!("one of {}", words.join(", ")) };
    let folded = text.replace(['-', ' '], "_");
    if path == "objective.type"
        && ["dpo", "kto", "orpo", "grpo", "ppo", "simpo", "ipo", "rlhf", "reward"].contains(&text.as_str())
    {
        return format!("preference and reward training are not built: Equipoise learns from answers alone\n{list}");
    }
    let close = our_word(path, &text)
        .or_else(|| words.iter().copied().find(|word| *word == folded))
        .map(|word| format!("write `{word}`"))
        .or_else(|| nearest(&folded, words.iter().copied()).map(|word| format!("did you mean `{word}`?")));
    match close {
        Some(close) if list.is_empty() => close,
        Some(close) => format!("{close}\n{list}"),
        None => list,
    }
}

/// `, 0.0002`: the default of a key, where there is one.
fn default_of(path: &str) -> String {
    let minimum: serde_yaml::Result<super::RecipeFile> = serde_yaml::from_str("{base: {model: x}, data: {train: x}}");
    let defaults = minimum.and_then(serde_yaml::to_value).unwrap_or(Value::Null);
    let default = if path.starts_with("base") || path == "data.train" { None } else { at(&defaults, path) };
    default.and_then(plain).map_or(String::new(), |default| format!(", {default}"))
}

/// Blames `section.key: ...`, as the sections' own checks say it, on that key's line.
pub(super) fn out_of_range(source: &Source<'_>, error: Error) -> Error {
    let Error::Invalid { message, help } = error else { return error };
    let path = &message.split(": ").next().unwrap_or_default().to_owned();
    let is_path = !path.is_empty()
        && path.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.'));
    let error = if is_path { source.at_value(path, message) } else { source.at_value("", message) };
    match help {
        Some(help) => error.with_help(help),
        None => error,
    }
}
