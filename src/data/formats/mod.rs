//! The formats of rows, one file each, and the registry that names them.
//!
//! A format turns the fields of a JSON row into an [`Example`]. It reads no file and knows no tokenizer.
//! A new format is one new file here and one line in `registry!`.

mod chat;
mod completion;
mod fields;
mod instruct;

use super::example::Example;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use fields::{RowError, Step};

/// How the fields of a row become an [`Example`].
pub trait Format: Sync {
    /// The name in recipes, as [`FormatName`] writes it.
    fn name(&self) -> &'static str;

    /// The fields that every row must have; by them a format is told.
    fn required(&self) -> &'static [&'static str];

    /// Reads a row.
    ///
    /// # Errors
    /// Names the offending field, what was expected there, and what to do.
    fn read(&self, row: &Map<String, Value>) -> Result<Example, RowError>;
}

macro_rules! registry {
    ($($(#[$doc:meta])* $variant:ident => $format:expr,)*) => {
        /// The recipe's `data.format`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FormatName {
            /// Told by the fields of the first row.
            #[default]
            Auto,
            $($(#[$doc])* $variant,)*
        }

        /// All formats.
        pub const FORMATS: &[&dyn Format] = &[$(&$format),*];

        impl FormatName {
            /// The format of this name; `None` for [`FormatName::Auto`].
            pub fn format(self) -> Option<&'static dyn Format> {
                match self {
                    Self::Auto => None,
                    $(Self::$variant => Some(&$format),)*
                }
            }
        }
    };
}

registry! {
    /// `prompt` and `completion`, joined as they are.
    Completion => completion::Completion,
    /// Alpaca's `instruction`, `input` and `output`, through the chat template.
    Instruct => instruct::Instruct,
    /// `messages` of `role` and `content`, through the chat template.
    Chat => chat::Chat,
}

/// A format and why it was taken.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// The format, which holds for all rows.
    pub format: &'static dyn Format,
    detected: bool,
}

impl Chosen {
    /// The format that the recipe names or, for `auto`, the one whose fields the first row has.
    ///
    /// # Errors
    /// When no format fits the row, or more than one does: lists the formats and the row's fields.
    pub fn new(name: FormatName, first_row: &Map<String, Value>) -> Result<Self, RowError> {
        if let Some(format) = name.format() {
            return Ok(Self { format, detected: false });
        }
        let fits = |format: &&&dyn Format| format.required().iter().all(|field| first_row.contains_key(*field));
        let fitting: Vec<_> = FORMATS.iter().filter(fits).collect();
        if let [format] = fitting[..] {
            return Ok(Self { format: *format, detected: true });
        }
        let found: Vec<_> = first_row.keys().take(20).map(|field| format!("`{}`", fields::shown(field))).collect();
        let found = if found.is_empty() { "no fields".to_string() } else { found.join(", ") };
        if fitting.is_empty() {
            let choices: Vec<_> = FORMATS.iter().map(|format| describe(*format)).collect();
            return Err(RowError::new([], format!("no data format has the fields of this row: {found}"))
                .with_help(format!("rename the fields to those of a format: {}", choices.join("; "))));
        }
        let names: Vec<_> = fitting.iter().map(|format| format!("`{}`", format.name())).collect();
        let message = format!("the row's fields ({found}) fit more than one data format: {}", names.join(", "));
        Err(RowError::new([], message).with_help("name the one that is meant in the recipe, as `data.format`"))
    }

    /// The format's name and why it was taken, for people.
    pub fn explain(&self) -> String {
        if self.detected {
            format!("{} (told by the first row's fields {})", self.format.name(), list(self.format.required()))
        } else {
            format!("{} (set by `data.format`)", self.format.name())
        }
    }
}

fn describe(format: &dyn Format) -> String {
    format!("{} has {}", format.name(), list(format.required()))
}

fn list(fields: &[&str]) -> String {
    let quoted: Vec<_> = fields.iter().map(|field| format!("`{field}`")).collect();
    quoted.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn names_are_the_same_in_recipes_and_formats() {
        for name in [FormatName::Completion, FormatName::Instruct, FormatName::Chat] {
            let text = serde_json::to_value(name).unwrap();
            assert_eq!(text, name.format().unwrap().name());
        }
        assert_eq!(FORMATS.len(), 3);
    }

    #[test]
    fn the_fields_of_the_first_row_tell_the_format() {
        for (text, name) in [
            (r#"{"prompt": "a", "completion": "b"}"#, "completion"),
            (r#"{"instruction": "a", "output": "b"}"#, "instruct"),
            (r#"{"id": 1, "messages": []}"#, "chat"),
        ] {
            let chosen = Chosen::new(FormatName::Auto, &row(text)).ok().unwrap();
            assert_eq!(chosen.format.name(), name);
            assert!(chosen.explain().starts_with(&format!("{name} (told by")));
        }
    }

    #[test]
    fn what_cannot_be_told_lists_choices_and_fields() {
        let none = Chosen::new(FormatName::Auto, &row(r#"{"question": "a", "answer": "b"}"#)).err().unwrap();
        assert!(none.message.contains("`question`, `answer`"), "{none:?}");
        for format in FORMATS {
            assert!(none.help.as_ref().unwrap().contains(format.name()));
        }
        let both = r#"{"prompt": "a", "completion": "b", "messages": []}"#;
        let ambiguous = Chosen::new(FormatName::Auto, &row(both)).err().unwrap();
        assert!(ambiguous.message.contains("`completion`, `chat`"), "{ambiguous:?}");
        assert!(ambiguous.help.unwrap().contains("data.format"));
        assert!(Chosen::new(FormatName::Chat, &row(both)).is_ok());
    }
}
