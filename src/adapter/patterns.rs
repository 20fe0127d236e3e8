//! Which modules PEFT's settings name: regular expressions as Python's `re` reads them, lists of endings, and layers.

use crate::error::{Error, Result};
use onig::{MatchParam, Regex, RegexOptions, Region, SearchOptions, Syntax};
use serde_json::{Map, Value};
use std::path::Path;

/// A regular expression of a configuration.
#[derive(Debug)]
pub(super) struct Pattern {
    /// As it is written, with the key that holds it, for messages.
    said: String,
    /// The module's name, where no expression is needed.
    name: Option<String>,
    regex: Option<Regex>,
}

impl Pattern {
    /// A key of `rank_pattern` or `alpha_pattern`: `re.match(r"(.*\.)?(KEY)$", module)`.
    ///
    /// # Errors
    /// When it is not a regular expression.
    pub fn of_key(setting: &str, key: &str, path: &Path) -> Result<Self> {
        Self::new(setting, key, &format!("(.*\\.)?({key})$"), path)
    }

    /// `re.fullmatch(KEY, module)`, as `target_modules` and `exclude_modules` are read where they are text.
    ///
    /// # Errors
    /// When it is not a regular expression.
    pub fn whole(setting: &str, key: &str, path: &Path) -> Result<Self> {
        Self::new(setting, key, &format!("(?:{key})\\Z"), path)
    }

    /// The module of this name alone, which needs no expression.
    pub fn exactly(module: &str) -> Self {
        Self { said: module.to_owned(), name: Some(module.to_owned()), regex: None }
    }

    /// `re.match(r".*?\.PATTERN\.(?P<idx>\d+)\.", module)`, by which `layers_pattern` finds a module's layer.
    ///
    /// # Errors
    /// When it is not a regular expression.
    pub fn of_layer(pattern: &str, path: &Path) -> Result<Self> {
        Self::new("layers_pattern", pattern, &format!("(?:|.*?\\.){pattern}\\.(?P<idx>\\d+)\\."), path)
    }

    fn new(setting: &str, key: &str, expression: &str, path: &Path) -> Result<Self> {
        let said = format!("`{setting}`: `{key}`");
        let regex = Regex::with_options(&format!("\\A{expression}"), RegexOptions::REGEX_OPTION_NONE, Syntax::python());
        match regex {
            Ok(regex) => Ok(Self { said, name: None, regex: Some(regex) }),
            Err(error) => {
                let message = format!("{said} is not a regular expression that can be read: {}", error.description());
                Err(Error::file(path, message).with_help("PEFT reads it as Python's `re` does; check its brackets"))
            }
        }
    }

    /// Whether it names a module, by its path in the model: `model.layers.0.self_attn.q_proj`.
    ///
    /// # Errors
    /// When the expression takes too many tries.
    pub fn matches(&self, module: &str) -> Result<bool> {
        match &self.regex {
            Some(regex) => Ok(self.search(regex, module, None)?),
            None => Ok(self.name.as_deref() == Some(module)),
        }
    }

    /// What the last group of the expression that matches holds.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    fn last_group<'m>(&self, module: &'m str) -> Result<Option<&'m str>> {
        let Some(regex) = &self.regex else { return Ok(None) };
        let mut region = Region::new();
        if !self.search(regex, module, Some(&mut region))? {
            return Ok(None);
        }
        let group = (0..region.len()).rev().find_map(|at| region.pos(at));
        Ok(group.and_then(|(from, to)| module.get(from..to)))
    }

    /// onig's simpler functions panic where an expression takes too many tries.
    fn search(&self, regex: &Regex, module: &str, region: Option<&mut Region>) -> Result<bool> {
        regex
            .search_with_param(
                module,
                0,
                module.len(),
                SearchOptions::SEARCH_OPTION_NONE,
                region,
                MatchParam::default(),
            )
            .map(|place| place.is_some())
            .map_err(|error| {
                let message = format!("{} cannot be tried on {module}: {}", self.said, error.description());
                Error::invalid(message).with_help("write it so that it has fewer ways to fit, or as a list of names")
            })
    }
}

/// `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`: to which modules PEFT gives an adapter. It
/// leaves the tensors of others out when it loads one.
#[derive(Debug, Default)]
pub(super) struct TargetRule {
    target: Option<Names>,
    exclude: Option<Names>,
    layers: Vec<u64>,
    layer_patterns: Vec<Pattern>,
}

#[derive(Debug)]
enum Names {
    All,
    Endings(Vec<String>),
    Expression(Pattern),
}

impl Names {
    fn read(map: &Map<String, Value>, setting: &str, path: &Path) -> Result<Option<Self>> {
        match map.get(setting) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) if setting == "target_modules" && text == "all-linear" => Ok(Some(Self::All)),
            Some(Value::String(text)) => Pattern::whole(setting, text, path).map(|one| Some(Self::Expression(one))),
            Some(Value::Array(names)) if names.is_empty() => Ok(None),
            Some(Value::Array(names)) if names.iter().all(Value::is_string) => {
                Ok(Some(Self::Endings(names.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect())))
            }
            Some(other) => Err(Error::file(
                path,
                format!("`{setting}`: expected a list of names or a regular expression, got {other}"),
            )),
        }
    }

    fn name(&self, module: &str) -> Result<bool> {
        Ok(match self {
            Self::All => module != "lm_head",
            Self::Endings(names) => names.iter().any(|name| {
                module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
            Self::Expression(pattern) => pattern.matches(module)?,
        })
    }
}

impl TargetRule {
    /// What a configuration says; of one that names no target all modules with tensors count.
    ///
    /// # Errors
    /// For settings of another kind than PEFT's.
    pub fn read(map: &Map<String, Value>, path: &Path) -> Result<Self> {
        let wrong = |key: &str, expected: &str, got: &Value| {
            Error::file(path, format!("`{key}`: expected {expected}, got {got}"))
        };
        let layers = match map.get("layers_to_transform") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(all)) if all.iter().all(Value::is_u64) => all.iter().filter_map(Value::as_u64).collect(),
            Some(value) => {
                vec![value.as_u64().ok_or_else(|| wrong("layers_to_transform", "layers by number", value))?]
            }
        };
        let patterns = match map.get("layers_pattern") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(one)) if one.is_empty() => Vec::new(),
            Some(Value::String(one)) => vec![one.as_str()],
            Some(Value::Array(all)) if all.iter().all(Value::is_string) => {
                all.iter().filter_map(Value::as_str).collect()
            }
            Some(value) => return Err(wrong("layers_pattern", "a regular expression, or a list", value)),
        };
        Ok(Self {
            target: Names::read(map, "target_modules", path)?,
            exclude: Names::read(map, "exclude_modules", path)?,
            layers,
            layer_patterns: patterns
                .into_iter()
                .map(|pattern| Pattern::of_layer(pattern, path))
                .collect::<Result<_>>()?,
        })
    }

    /// Whether PEFT gives the module an adapter.
    ///
    /// # Errors
    /// When an expression takes too many tries.
    pub fn includes(&self, module: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.name(module)?
        {
            return Ok(false);
        }
        let Some(target) = &self.target else { return Ok(true) };
        // A module that stands in the list by its whole name needs no layer.
        let by_name = matches!(target, Names::Endings(names) if names.iter().any(|name| name == module));
        let layered = matches!(target, Names::Endings(_)) && !by_name && !self.layers.is_empty();
        if !target.name(module)? {
            return Ok(false);
        }
        Ok(!layered || self.layer(module)?.is_some_and(|layer| self.layers.contains(&layer)))
    }

    /// The number of the module's layer: the first one behind two names, or behind what `layers_pattern` says.
    fn layer(&self, module: &str) -> Result<Option<u64>> {
        if self.layer_patterns.is_empty() {
            return Ok(module.split('.').skip(2).find_map(|part| part.parse().ok()));
        }
        for pattern in &self.layer_patterns {
            if let Some(layer) = pattern.last_group(module)?.and_then(|group| group.parse().ok()) {
                return Ok(Some(layer));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q10: &str = "model.layers.10.self_attn.q_proj";

    /// Expected by Python: `re.match(rf"(.*\.)?({key})$", module)`.
    #[test]
    fn keys_match_as_python_matches_them() {
        for (key, module, expected) in [
            ("q_proj", Q0, true),
            ("proj", Q0, false),
            ("^model.layers.0.self_attn.q_proj", Q0, true),
            ("^layers.0.self_attn.q_proj", Q0, false),
            (r".*layers\.0\.self_attn\.q_proj", Q0, true),
            (r"layers\.[01]\.self_attn\.(q|k)_proj", Q0, true),
            (r"layers\.[01]\.self_attn\.(q|k)_proj", Q10, false),
            (r"layers\.(?!0\.)\d+\..*", Q0, false),
            (r"layers\.(?!0\.)\d+\..*", Q10, true),
            (r"(?P<part>q|k)_proj", Q0, true),
            (r"layers\.\d{2,}\.self_attn\.q_proj", Q10, true),
            ("q_proj|v_proj", Q0, true),
            ("self_attn", Q0, false),
        ] {
            let pattern = Pattern::of_key("rank_pattern", key, Path::new("c.json")).unwrap();
            assert_eq!(pattern.matches(module).unwrap(), expected, "{key} on {module}");
        }
        let error = Pattern::of_key("rank_pattern", "q_(proj", Path::new("c.json")).unwrap_err().to_string();
        assert!(error.contains("rank_pattern") && error.contains("q_(proj"), "{error}");
    }

    /// Expected by PEFT's `check_target_module_exists`.
    #[test]
    fn targets_are_those_of_peft() {
        let includes = |config: &Value, module: &str| {
            TargetRule::read(config.as_object().unwrap(), Path::new("c.json")).unwrap().includes(module).unwrap()
        };
        for (config, module, expected) in [
            (json!({}), Q0, true),
            (json!({ "target_modules": ["q_proj"] }), Q0, true),
            (json!({ "target_modules": ["proj"] }), Q0, false),
            (json!({ "target_modules": "all-linear" }), Q0, true),
            (json!({ "target_modules": "all-linear" }), "lm_head", false),
            (json!({ "target_modules": r".*\.q_proj" }), Q0, true),
            (json!({ "target_modules": "q_proj" }), Q0, false),
            (json!({ "target_modules": r"model\.layers\.(?!0\.).*" }), Q0, false),
            (json!({ "target_modules": ["q_proj"], "exclude_modules": ["self_attn.q_proj"] }), Q0, false),
            (json!({ "target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*" }), Q0, false),
            (json!({ "target_modules": ["q_proj"], "layers_to_transform": [10] }), Q0, false),
            (json!({ "target_modules": ["q_proj"], "layers_to_transform": 10 }), Q10, true),
            (json!({ "target_modules": [Q0], "layers_to_transform": [10] }), Q0, true),
            (json!({ "target_modules": r".*q_proj", "layers_to_transform": [10] }), Q0, true),
            (json!({ "target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "layers" }), Q0, true),
            (json!({ "target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h"] }), Q0, false),
        ] {
            assert_eq!(includes(&config, module), expected, "{config} on {module}");
        }
    }

    /// Each of these takes more tries than are made: a file of somebody else's must not end the process.
    #[test]
    fn an_expression_that_takes_too_long_is_named() {
        let module = format!("model.{}xb.0.q_proj", "a".repeat(60));
        let hostile = "(?:a|a)*b";
        for config in [
            json!({ "target_modules": format!("model\\.{hostile}.*") }),
            json!({ "exclude_modules": format!("model\\.{hostile}.*") }),
            json!({ "target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": hostile }),
        ] {
            let rule = TargetRule::read(config.as_object().unwrap(), Path::new("c.json")).unwrap();
            let error = rule.includes(&module).unwrap_err().to_string();
            assert!(error.contains(hostile) && error.contains(&module), "{error}");
        }
        let error = TargetRule::read(json!({ "layers_pattern": "h(" }).as_object().unwrap(), Path::new("c.json"));
        assert!(error.unwrap_err().to_string().contains("`layers_pattern`: `h(`"));
    }
}
