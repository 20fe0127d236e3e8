//! The chat templates of a base, each with its name.

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The folder of templates with names, beside `chat_template.jinja`.
pub const FOLDER: &str = "additional_chat_templates";

/// The name of the template for conversations without tools; a template without a name has it.
const DEFAULT: &str = "default";

/// The name of the template for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// Templates (Jinja) and their names, in the order of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates(Vec<(String, String)>);

impl ChatTemplates {
    /// Those of a Hugging Face folder: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, which go before what
    /// `tokenizer_config.json` has (one template, or a list of `{"name", "template"}`), and that before `chat_template.json`,
    /// which older processors of multimodal models have.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn of_folder(folder: &Path, tokenizer_config: &Map<String, Value>) -> Result<Self> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::io("read", path));
        let mut templates = Self::default();
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            templates.insert(DEFAULT, read(&path)?);
        }
        let mut named: Vec<_> = std::fs::read_dir(folder.join(FOLDER)).into_iter().flatten().flatten().collect();
        named.sort_by_key(std::fs::DirEntry::file_name);
        for entry in named {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_str().and_then(|name| name.strip_suffix(".jinja"));
            if let Some(name) = name.filter(|_| path.is_file()) {
                templates.insert(name, read(&path)?);
            }
        }
        if templates.0.is_empty() {
            templates = Self::of_config(tokenizer_config);
        }
        let path = folder.join("chat_template.json");
        if templates.0.is_empty() && path.is_file() {
            let config: Map<String, Value> = serde_json::from_str(&read(&path)?)
                .map_err(|error| Error::file(&path, format!("expected an object with `chat_template`: {error}")))?;
            templates = Self::of_config(&config);
        }
        Ok(templates)
    }

    fn of_config(tokenizer_config: &Map<String, Value>) -> Self {
        let mut templates = Self::default();
        match tokenizer_config.get("chat_template") {
            Some(Value::String(template)) => templates.insert(DEFAULT, template.clone()),
            Some(Value::Array(list)) => {
                for entry in list {
                    let text = |key: &str| entry.get(key).and_then(Value::as_str);
                    if let (Some(name), Some(template)) = (text("name"), text("template")) {
                        templates.insert(name, template.to_owned());
                    }
                }
            }
            // Some tools wrote an object of names.
            Some(Value::Object(named)) => {
                for (name, template) in named {
                    if let Some(template) = template.as_str() {
                        templates.insert(name, template.to_owned());
                    }
                }
            }
            _ => {}
        }
        templates
    }

    /// Adds a template, in place of one of the same name.
    pub fn insert(&mut self, name: &str, template: String) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), template));
    }

    /// The template for conversations without tools, and for all where there is none for tools.
    pub fn plain(&self) -> Option<&str> {
        self.get(DEFAULT)
    }

    /// The template for conversations with tools, where there is one of its own.
    pub fn tool_use(&self) -> Option<&str> {
        self.get(TOOL_USE)
    }

    /// The template of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, template)| template.as_str())
    }

    /// The templates besides the default one, with their names.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.iter().map(|(name, template)| (name.as_str(), template.as_str()));
        all.filter(|(name, _)| *name != DEFAULT)
    }
}
