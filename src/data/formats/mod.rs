//! The formats of rows, one file each, and the registry that names them.
//!
//! A format turns the fields of a JSON row into an [`Example`]. It reads no file and knows no tokenizer.
//! A new format is one new file here and one line in `registry!`.

mod alpaca;
mod chat;
mod completion;
mod conversation;
mod fields;
mod learning;
mod multiple_choice;
mod nulls;
mod question_answer;
mod rendering;
mod roles;
mod row_format;
mod sharegpt;
mod template;
mod text;
mod tools;
mod turn;

use super::example::Example;
use serde::{Deserialize, Serialize};

pub use fields::{Row, RowError, Step};
pub use roles::Roles;
pub use row_format::RowFormat;

/// How the fields of a row become an [`Example`].
pub trait Format: Sync {
    /// The name in recipes, as [`FormatName`] writes it.
    fn name(&self) -> &'static str;

    /// The fields by which the format is recognised: of each of these lists a row must have one.
    fn required(&self) -> &'static [&'static [&'static str]];

    /// What else it reads, where a row has it.
    fn optional(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it reads in a row's turns under names that the recipe's `fields` may change.
    fn turn_fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether the recipe's `template` is for it.
    fn template(&self) -> TemplateUse {
        TemplateUse::None
    }

    /// Reads a row.
    ///
    /// # Errors
    /// Names the offending field, what was expected there, and what to do.
    fn read(&self, row: Row<'_>) -> Result<Example, RowError>;
}

/// What a format does with the recipe's `template`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateUse {
    /// It takes none.
    None,
    /// It replaces what the format would write.
    Optional,
    /// It cannot do without.
    Required,
}

macro_rules! registry {
    ($($(#[$attribute:meta])* $variant:ident => $format:expr,)*) => {
        /// The recipe's `data.format`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FormatName {
            /// `template` where the recipe has one, else recognised by the fields of the first row.
            #[default]
            Auto,
            $($(#[$attribute])* $variant,)*
        }

        /// All formats.
        pub const FORMATS: &[&dyn Format] = &[$(&$format),*];

        impl FormatName {
            /// All names but `auto`, as [`FORMATS`] has them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

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
    /// `text`, all of which is learnt.
    Text => text::Text,
    /// `prompt` and `completion`, joined as they are.
    Completion => completion::Completion,
    /// `instruction`, `input` and `output`, through the chat template.
    #[serde(alias = "instruct")]
    Alpaca => alpaca::Alpaca,
    /// `messages` of `role` and `content`, through the chat template.
    Chat => chat::Chat,
    /// `conversations` of `from` and `value`, through the chat template.
    #[serde(rename = "sharegpt")]
    ShareGpt => sharegpt::ShareGpt,
    /// `question`, maybe what it is asked about, and an answer, through the chat template.
    QuestionAnswer => question_answer::QuestionAnswer,
    /// `question`, `choices` and `answer`, through the chat template.
    MultipleChoice => multiple_choice::MultipleChoice,
    /// Any fields, by the recipe's `data.template`.
    Template => template::Template,
}
