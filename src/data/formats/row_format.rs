//! Which format the rows of a source have: named by the recipe, or told by the first row.

use super::fields::{list, names, shown};
use super::rendering::Templates;
use super::{FORMATS, Format, FormatName, Row, RowError, Step, TemplateUse};
use crate::data::config::RowTemplate;
use crate::data::example::Example;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// How the rows of one source are read: the format, the names that the rows have for its fields, and the template.
pub struct RowFormat {
    format: &'static dyn Format,
    fields: BTreeMap<String, String>,
    templates: Option<Templates>,
    reason: String,
}

/// A mistake in the recipe: the key below `data` (`template.user`), what is wrong, and what to do.
struct Mistake {
    key: String,
    message: String,
    help: Option<String>,
}

impl RowFormat {
    /// The format `name` or, for `auto`, `template` where there is one, else the one whose fields the first row has.
    ///
    /// `fields` gives the row's name for names of the format.
    ///
    /// # Errors
    /// When no format fits the row, or more than one does: lists the formats and the row's fields. When the row lacks what
    /// `fields` names. And what [`RowFormat::check`] finds.
    pub fn new(
        name: FormatName,
        fields: &BTreeMap<String, String>,
        template: Option<&RowTemplate>,
        first_row: &Map<String, Value>,
    ) -> Result<Self, RowError> {
        let (format, templates) = prepare(name, fields, template).map_err(|mistake| RowError {
            path: Vec::new(),
            message: format!("`data.{}`: {}", mistake.key, mistake.message),
            help: mistake.help,
        })?;
        promised(fields, first_row)?;
        let row = Row::with(first_row, fields, templates.as_ref());
        let (format, reason) = match format {
            Some(format) if name == FormatName::Auto => (format, "as the recipe has `template`".to_string()),
            Some(format) => (format, "set by `data.format`".to_string()),
            None => {
                let format = detect(row)?;
                let told = present(format, row).map(|field| row.column(field));
                (format, format!("told by the first row's fields {}", list(told, "and")))
            }
        };
        Ok(Self { format, fields: fields.clone(), templates, reason })
    }

    /// Checks what a recipe says, without a row. `key` is where it says so: `data`, or that of a source.
    ///
    /// # Errors
    /// Names the key: a template that is not valid, that the format needs or cannot use; a name in `fields` that the format
    /// does not have, with those it has.
    pub fn check(
        key: &str,
        name: FormatName,
        fields: &BTreeMap<String, String>,
        template: Option<&RowTemplate>,
    ) -> Result<()> {
        prepare(name, fields, template).map(drop).map_err(|mistake| Error::Invalid {
            message: format!("{key}.{}: {}", mistake.key, mistake.message),
            help: mistake.help,
        })
    }

    /// Reads a row.
    ///
    /// # Errors
    /// Names the offending field by the row's own name, what was expected there, and what to do.
    pub fn read(&self, row: &Map<String, Value>) -> Result<Example, RowError> {
        promised(&self.fields, row)?;
        self.format.read(Row::with(row, &self.fields, self.templates.as_ref()))
    }

    /// The format's name.
    pub fn name(&self) -> &'static str {
        self.format.name()
    }

    /// The format's name and why it was taken, for people.
    pub fn explain(&self) -> String {
        let from: Vec<_> =
            self.fields.iter().map(|(field, column)| format!("`{field}` is `{}`", shown(column))).collect();
        let from = if from.is_empty() { String::new() } else { format!("; {}", from.join(", ")) };
        format!("{} ({}{from})", self.name(), self.reason)
    }
}

type Prepared = (Option<&'static dyn Format>, Option<Templates>);

/// All that can be known without a row; no format where the first row has to tell it.
fn prepare(
    name: FormatName,
    fields: &BTreeMap<String, String>,
    template: Option<&RowTemplate>,
) -> Result<Prepared, Mistake> {
    let format = match (name, template) {
        (FormatName::Auto, Some(_)) => FormatName::Template.format(),
        _ => name.format(),
    };
    let templates = template.map(compile).transpose()?;
    if let Some(format) = format {
        check_template(format, templates.as_ref())?;
    }
    for (field, column) in fields {
        let known = match format {
            Some(format) => format.template() == TemplateUse::Required || known(format).any(|known| known == field),
            None => FORMATS.iter().any(|format| known(*format).any(|known| known == field)),
        };
        let mistake = |message, help: String| Mistake { key: format!("fields.{field}"), message, help: Some(help) };
        if !known {
            let (of, help) = match format {
                Some(format) => (
                    format!("the format `{}` has", format.name()),
                    format!("its fields are {}", list(self::known(format), "and")),
                ),
                None => ("any format has".to_string(), format!("the formats: {}", overview())),
            };
            return Err(mistake(format!("is no field that {of}"), help));
        }
        if column.is_empty() {
            return Err(mistake("is empty".to_string(), "write the name that the rows have for it".to_string()));
        }
    }
    Ok((format, templates))
}

fn compile(template: &RowTemplate) -> Result<Templates, Mistake> {
    Templates::new(template).map_err(|(key, message)| match key {
        "" => Mistake { key: "template".to_string(), message, help: Some(SHAPES.to_string()) },
        key => Mistake {
            key: format!("template.{key}"),
            message: format!("is no valid template: {message}"),
            help: Some(
                "the language is Jinja's: {{ field }}, {% if field %}…{% endif %}, {% for x in field %}…{% endfor %}"
                    .to_string(),
            ),
        },
    })
}

const SHAPES: &str = "write `user` and `assistant` (and maybe `system`), or `prompt` and `completion`";

/// Whether the format and the template go together.
fn check_template(format: &dyn Format, templates: Option<&Templates>) -> Result<(), Mistake> {
    let mistake = |message: String, help: &str| {
        Err(Mistake { key: "template".to_string(), message, help: Some(help.to_string()) })
    };
    let Some(templates) = templates else {
        return match format.template() {
            TemplateUse::Required => mistake(format!("the format `{}` needs it", format.name()), SHAPES),
            TemplateUse::None | TemplateUse::Optional => Ok(()),
        };
    };
    let learns = if templates.is_plain() { "completion" } else { "assistant" };
    match format.template() {
        TemplateUse::None => mistake(
            format!("the format `{}` takes none", format.name()),
            "remove it, or set the format to `template`, which reads any fields",
        ),
        // Where the format has texts of its own, a template may replace some; plain text it has none.
        TemplateUse::Optional if !templates.is_plain() => Ok(()),
        TemplateUse::Required | TemplateUse::Optional if templates.has(learns) => Ok(()),
        TemplateUse::Required | TemplateUse::Optional => {
            mistake(format!("says nothing of `{learns}`, which is what is learnt"), SHAPES)
        }
    }
}

/// What `fields` names must be in every row: a name that is mistyped would otherwise be a field left out.
fn promised(fields: &BTreeMap<String, String>, row: &Map<String, Value>) -> Result<(), RowError> {
    match fields.iter().find(|(_, column)| !row.contains_key(column.as_str())) {
        None => Ok(()),
        Some((field, column)) => Err(RowError::new(
            [Step::from(column.clone())],
            format!(
                "`{}` is missing, which the recipe's `fields` gives for `{}`; the fields here: {}",
                shown(column),
                shown(field),
                names(row)
            ),
        )
        .with_help("mend the name in `fields`; a row that has none of it says `null`")),
    }
}

/// All fields of a format.
fn known(format: &dyn Format) -> impl Iterator<Item = &'static str> + use<> {
    format.required().iter().copied().flatten().chain(format.optional()).copied()
}

/// The fields by which a format is told, as far as a row has them.
fn present<'a>(format: &dyn Format, row: Row<'a>) -> impl Iterator<Item = &'static str> + use<'a> {
    format.required().iter().copied().flatten().copied().filter(move |field| row.get(field).is_some())
}

fn detect(row: Row<'_>) -> Result<&'static dyn Format, RowError> {
    let fits = |format: &&&'static dyn Format| {
        let mut required = format.required().iter();
        format.template() != TemplateUse::Required
            && row.columns().keys().all(|field| known(**format).any(|known| known == field))
            && required.all(|names| names.iter().any(|field| row.get(field).is_some()))
    };
    let fitting: Vec<&'static dyn Format> = FORMATS.iter().filter(fits).copied().collect();
    // A format that asks for more of the row's fields is meant rather than one that asks for some of these.
    let covers = |more: &dyn Format, less: &dyn Format| {
        let covered = present(less, row).all(|field| present(more, row).any(|other| other == field));
        covered && present(more, row).count() > present(less, row).count()
    };
    let meant: Vec<_> = fitting.iter().filter(|less| !fitting.iter().any(|more| covers(*more, **less))).collect();
    match meant[..] {
        [format] => Ok(*format),
        [] => {
            let message = format!("no data format has the fields of this row: {}", names(row.object()));
            Err(RowError::new([], message).with_help(format!(
                "say with `data.fields` what the rows call a format's fields (`fields: {{question: Q}}`), or write a \
                 `data.template`, which reads any fields; a table without a header needs `columns` at its source. The formats: {}",
                overview()
            )))
        }
        _ => {
            let choices = list(meant.iter().map(|format| format.name()), "and");
            let message =
                format!("the row's fields ({}) fit more than one data format: {choices}", names(row.object()));
            Err(RowError::new([], message).with_help("name the one that is meant in the recipe, as `data.format`"))
        }
    }
}

/// The formats and the fields by which they are told.
fn overview() -> String {
    let group = |names: &&[&str]| match names {
        [one] => format!("`{one}`"),
        some => format!("({})", list(*some, "or")),
    };
    let told = FORMATS.iter().filter(|format| format.template() != TemplateUse::Required);
    let describe = |format: &&dyn Format| {
        let groups: Vec<_> = format.required().iter().map(group).collect();
        format!("{} has {}", format.name(), groups.join(" and "))
    };
    told.map(describe).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
#[path = "row_format_tests.rs"]
mod tests;
