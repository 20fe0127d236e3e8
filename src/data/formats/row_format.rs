//! Which format the rows of a source have: named by the recipe, or recognised by the first row.

use super::fields::{PANDAS_HELP, list, names, shown};
use super::rendering::Templates;
use super::roles::Roles;
use super::{FORMATS, Format, FormatName, Row, RowError, Step, TemplateUse, turn};
use crate::data::config::RowTemplate;
use crate::data::example::Example;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The field of a row's weight, whatever the format.
const WEIGHT: &str = "weight";

/// How the rows of one source are read: the format, the names that the rows have for its fields, and the template.
pub struct RowFormat {
    format: &'static dyn Format,
    fields: BTreeMap<String, String>,
    templates: Option<Templates>,
    roles: Roles,
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
            teaches_nothing: false,
        })?;
        let format_of_turns = format.map_or(turn::FIELDS, Format::turn_fields);
        promised(fields, format_of_turns, first_row)?;
        let roles = Roles::default();
        let row = Row::with(first_row, fields, templates.as_ref(), &roles);
        let (format, reason) = match format {
            Some(format) if name == FormatName::Auto => (format, "as the recipe has `template`".to_string()),
            Some(format) => (format, "set by `data.format`".to_string()),
            None => {
                let format = detect(row)?;
                let told = present(format, row).map(|field| row.column(field));
                let told: Vec<_> = told.collect();
                let fields = if told.len() == 1 { "field" } else { "fields" };
                (format, format!("by the first row's {fields} {}", list(told, "and")))
            }
        };
        Ok(Self { format, fields: fields.clone(), templates, roles, reason })
    }

    /// The same, with the recipe's names for the roles of turns.
    #[must_use]
    pub fn with_roles(mut self, roles: &Roles) -> Self {
        self.roles = roles.clone();
        self
    }

    /// Whether the column of a table is read. What the others hold does not matter: it may not be text, damaged, or of any
    /// type.
    pub fn needs(&self, column: &str) -> bool {
        let known = |field: &str| known(self.format).any(|known| known == field) && !self.fields.contains_key(field);
        self.fields.values().any(|own| own == column)
            || self.templates.as_ref().is_some_and(|templates| templates.reads(column))
            || known(column)
            || self.weight_column() == Some(column)
    }

    /// What the rows call their weight: `weight`, or what `fields` says. Rows that a template reads have fields of any meaning, so that
    /// their weight must be named.
    fn weight_column(&self) -> Option<&str> {
        match self.fields.get(WEIGHT) {
            Some(column) => Some(column),
            None => (self.format.template() != TemplateUse::Required).then_some(WEIGHT),
        }
    }

    /// What a row's loss is multiplied by: its weight, 1 where it has none or it is null.
    ///
    /// # Errors
    /// When it is not a number of at least 0.
    pub fn weight(&self, row: &Map<String, Value>) -> Result<f32, RowError> {
        let given = self.weight_column().and_then(|column| Some((column, row.get(column)?)));
        let Some((column, value)) = given.filter(|(_, value)| !value.is_null()) else { return Ok(1.0) };
        let number = match value {
            // A table without a number here.
            Value::String(text) if text.trim().is_empty() => Some(1.0),
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        let weight = number.map(|number| number as f32).filter(|weight| weight.is_finite() && *weight >= 0.0);
        weight.ok_or_else(|| {
            RowError::new(
                [Step::from(column.to_owned())],
                format!("is the row's weight, which is a number of at least 0, and not {}", shown(&value.to_string())),
            )
            .with_help(
                "correct it; if the field means something else, give it another name, or write `data.fields: {weight: NAME}` with \
                 the field that holds weights",
            )
        })
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
        promised(&self.fields, self.format.turn_fields(), row)?;
        self.format.read(Row::with(row, &self.fields, self.templates.as_ref(), &self.roles))
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
            Some(format) => format.template() == TemplateUse::Required || has_field(format, field),
            None => FORMATS.iter().any(|format| has_field(*format, field)),
        };
        let mistake = |message, help: String| Mistake { key: format!("fields.{field}"), message, help: Some(help) };
        if !known {
            let (of, help) = match format {
                Some(format) => (format!("the format `{}` has", format.name()), fields_of(format)),
                None => ("any format has".to_string(), format!("the formats: {}", overview())),
            };
            return Err(mistake(format!("is not a field that {of}"), help));
        }
        if column.is_empty() {
            return Err(mistake("is empty".to_string(), "write the name that the rows have for it".to_string()));
        }
        if let Some(other) = twin(format, fields, field, column) {
            let message = format!("is `{}`, and so is `{other}`: a row has one value for the two", shown(column));
            return Err(mistake(message, "give each its own name, or take one of the two out".to_string()));
        }
    }
    Ok((format, templates))
}

/// Another field that is read from the same place: of a row, or of its turns. A format that is all template reads none by itself.
fn twin<'f>(
    format: Option<&'static dyn Format>,
    fields: &'f BTreeMap<String, String>,
    field: &str,
    column: &str,
) -> Option<&'f String> {
    if format.is_some_and(|format| format.template() == TemplateUse::Required) {
        return None;
    }
    let of_turns = |field: &str| match format {
        Some(format) => format.turn_fields().contains(&field),
        None => FORMATS.iter().any(|format| format.turn_fields().contains(&field)),
    };
    let is_twin = |(other, same): &(&String, &String)| {
        *other != field && same.as_str() == column && of_turns(other) == of_turns(field)
    };
    fields.iter().find(is_twin).map(|(other, _)| other)
}

fn compile(template: &RowTemplate) -> Result<Templates, Mistake> {
    Templates::new(template).map_err(|(key, message)| match key {
        "" => Mistake { key: "template".to_string(), message, help: Some(SHAPES.to_string()) },
        key => Mistake {
            key: format!("template.{key}"),
            message: format!("is not a valid template: {message}"),
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

/// What `fields` names must be in every row: a name that is mistyped would otherwise be a field left out. But for those of
/// a row's turns.
fn promised(fields: &BTreeMap<String, String>, of_turns: &[&str], row: &Map<String, Value>) -> Result<(), RowError> {
    let promised = |(field, column): &(&String, &String)| {
        !of_turns.contains(&field.as_str()) && !row.contains_key(column.as_str())
    };
    match fields.iter().find(promised) {
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
        .with_help("correct the name in `fields`; a row that has none of it says `null`")),
    }
}

/// Whether a format has a field, in a row or in a turn.
fn has_field(format: &dyn Format, field: &str) -> bool {
    field == WEIGHT || known(format).any(|known| known == field) || format.turn_fields().contains(&field)
}

/// The fields of a format, for people.
fn fields_of(format: &dyn Format) -> String {
    let turns = match format.turn_fields() {
        [] => String::new(),
        fields => format!("; those of its turns are {}", list(fields, "and")),
    };
    format!("its fields are {}{turns}", list(known(format), "and"))
}

/// All fields of a format's rows.
fn known(format: &dyn Format) -> impl Iterator<Item = &'static str> + use<> {
    format.required().iter().copied().flatten().chain(format.optional()).copied()
}

/// The fields by which a format is recognised, as far as a row has them.
fn present<'a>(format: &dyn Format, row: Row<'a>) -> impl Iterator<Item = &'static str> + use<'a> {
    format.required().iter().copied().flatten().copied().filter(move |field| row.get(field).is_some())
}

/// The format that a row has the fields of. A field that is null counts only where no format fits without it: joined
/// tables have the columns of each.
fn detect(row: Row<'_>) -> Result<&'static dyn Format, RowError> {
    let mut given = row.object().clone();
    given.retain(|_, value| !value.is_null());
    let given = Row::with(&given, row.columns(), row.templates(), row.roles());
    let found = fitting(given);
    if found.is_empty() { meant(&fitting(row), row) } else { meant(&found, given) }
}

/// The formats whose fields a row has.
fn fitting(row: Row<'_>) -> Vec<&'static dyn Format> {
    let fits = |format: &&&'static dyn Format| {
        let mut required = format.required().iter();
        format.template() != TemplateUse::Required
            && row.columns().keys().all(|field| has_field(**format, field))
            && required.all(|names| names.iter().any(|field| row.get(field).is_some()))
    };
    FORMATS.iter().filter(fits).copied().collect()
}

/// Of these formats, the one that is meant.
fn meant(fitting: &[&'static dyn Format], row: Row<'_>) -> Result<&'static dyn Format, RowError> {
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
            if let Some(help) = what_it_may_be(row) {
                return Err(RowError::new([], message).with_help(help));
            }
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

/// What to do about a row that has the shape of something else: of pairs to prefer, of a whole file, of a table by columns.
fn what_it_may_be(row: Row<'_>) -> Option<String> {
    let object = row.object();
    if let (Some(chosen), true) = (object.get("chosen"), object.contains_key("rejected")) {
        let fields = match (object.contains_key("prompt"), chosen) {
            (true, _) => "fields: {completion: chosen}",
            (false, Value::Array(_)) => "fields: {messages: chosen}",
            (false, _) => "fields: {text: chosen}",
        };
        return Some(format!(
            "these are pairs to prefer one of (DPO), and what is trained here is to answer; to learn the chosen ones alone, \
             write in `data`: `{fields}`"
        ));
    }
    let rows = |value: &Value| value.as_array().is_some_and(|list| list.first().is_some_and(Value::is_object));
    if let Some((name, _)) = object.iter().find(|(_, value)| rows(value)) {
        return Some(format!(
            "`{0}` is a list of objects, as if they were the rows: `jq '.[\"{0}\"]' FILE > rows.json` takes them out; if it is a \
             conversation, say so: `data.fields: {{messages: {0}}}`",
            shown(name)
        ));
    }
    if object.values().all(Value::is_object) && object.len() > 1 {
        return Some(if object.values().all(|value| value.get("0").is_some()) {
            format!("this is a table by columns, as pandas writes it; {PANDAS_HELP}")
        } else {
            "each field is an object, as if they were the rows: `jq -c '.[]' FILE > rows.jsonl` takes them out"
                .to_owned()
        });
    }
    None
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
