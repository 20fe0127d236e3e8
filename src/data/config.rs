//! The recipe's `data` section.

use super::formats::{FormatName, Roles, RowFormat};
use crate::error::{Error, Result};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The recipe's `data`: which rows are learnt, and how they become tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The rows to train on: a file, or one or several sources.
    pub train: Sources,
    /// The rows to validate on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Sources>,
    /// Without validation rows: the share of the rows that is held out for it, chosen by the seed.
    #[serde(default)]
    pub validation_split: f64,
    /// Which seed chooses the rows of `validation_split`; by default `training.seed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_seed: Option<u64>,
    /// What the rows look like, where a source does not say.
    #[serde(default)]
    pub format: FormatName,
    /// The format's field names, each with the name that the rows have for it, where a source does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "names_of_fields")]
    pub fields: BTreeMap<String, String>,
    /// Names of the rows for the roles of turns, where a source does not say.
    #[serde(default, skip_serializing_if = "Roles::is_empty")]
    pub roles: Roles,
    /// How a row becomes text, for the formats `template` and `multiple_choice`, where a source does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<RowTemplate>,
    /// In place of the base's chat template: a name (`chatml`, `llama3`, …), that of one of the base's own (`tool_use`), or the
    /// path of a Jinja file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Which of the assistant's turns are learnt.
    #[serde(default)]
    pub train_on_turns: TrainOnTurns,
    /// The most tokens of one row; 1024 by default, or as many as the base has positions where those are fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seq_len: Option<usize>,
    /// What happens to rows with more.
    #[serde(default)]
    pub overlong: Overlong,
    /// What happens to rows that cannot be read.
    #[serde(default)]
    pub on_bad_row: OnBadRow,
    /// Whether several samples share a row of up to `max_seq_len` tokens.
    #[serde(default)]
    pub packing: bool,
    /// Whether samples of like length share a step.
    #[serde(default)]
    pub group_by_length: bool,
    /// Where tokenised rows are kept.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Whether the model card shows one of the rows, with what the models answer.
    #[serde(default)]
    pub sample_in_card: bool,
}

/// One or several sources of rows: in a recipe a path, a source, or a list of these.
#[derive(Debug, Clone, PartialEq)]
pub struct Sources(pub Vec<SourceConfig>);

/// Where rows come from. In a recipe a path alone may stand for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// A file, a folder, or a pattern such as `data/*.jsonl.gz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// In place of `path`: a dataset on the Hugging Face Hub, `org/name` or `org/name@revision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Of a Hub dataset: which split; by default `train`, and `validation` or `test` under `data.validation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Of a Hub dataset: which of its configurations ("subset").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// Of a table (CSV, TSV) without a header: the names of its columns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Of a table: what stands between its fields: a character, or `tab`. Found by itself where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<String>,
    /// What its rows look like. Then `fields`, `roles` and `template` are its own too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// The format's field names, each with the name that its rows have for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "names_of_fields")]
    pub fields: BTreeMap<String, String>,
    /// Names of its rows for the roles of turns.
    #[serde(default, skip_serializing_if = "Roles::is_empty")]
    pub roles: Roles,
    /// How a row becomes text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<RowTemplate>,
    /// How often its rows come in an epoch: 2 is twice, 0.5 is half of them, other ones in each epoch (with `packing` the
    /// same ones).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The most rows that are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// What the rows of a source look like.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct RowSettings<'a> {
    pub format: FormatName,
    pub fields: &'a BTreeMap<String, String>,
    pub roles: &'a Roles,
    pub template: Option<&'a RowTemplate>,
}

/// How a row becomes text: minijinja templates over the row's fields. Either a conversation (`user`, `assistant`, and maybe
/// `system`) or plain text (`prompt` and `completion`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowTemplate {
    /// The system turn; left out where it renders to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The user's turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The answer, which is learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant: Option<String>,
    /// Plain text that is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Plain text that is learnt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<String>,
}

/// The recipe's `data.train_on_turns`: which of the assistant's turns are learnt, where a turn does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrainOnTurns {
    /// All of them.
    #[default]
    All,
    /// The last one.
    Last,
}

/// The recipe's `data.on_bad_row`: rows that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// An error that names the row.
    #[default]
    Error,
    /// Left out, counted and reported.
    Skip,
}

/// The recipe's `data.cache`: `auto`, `off`, or a folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CacheConfig {
    /// `$EQUIPOISE_CACHE`, else `equipoise` in `$XDG_CACHE_HOME` or `~/.cache`, for data that takes a while to tokenize.
    #[default]
    Auto,
    /// Nowhere: tokens are made anew at each start and held in memory.
    Off,
    /// This folder, however small the data.
    Folder(PathBuf),
}

/// Pairs of names. YAML reads `{question:Frage}`, without a space, as one name without a value.
fn names_of_fields<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<String, String>, D::Error> {
    let fields = BTreeMap::<String, Option<String>>::deserialize(deserializer)?;
    let named = |(field, column): (String, Option<String>)| match (column, field.split_once(':')) {
        (Some(column), _) => Ok((field, column)),
        (None, Some((name, column))) => {
            let help = format!("`{field}` wants a space after the colon: `{{{name}: {column}}}`");
            Err(serde::de::Error::custom(help))
        }
        (None, None) => {
            let help =
                format!("`{field}` has no value: write the name that the rows have for it, as `{{{field}: NAME}}`");
            Err(serde::de::Error::custom(help))
        }
    };
    fields.into_iter().map(named).collect()
}

/// The most tokens of a row where the recipe says nothing.
const MAX_SEQ_LEN: usize = 1024;

/// The recipe's `data.overlong`: rows of more than `max_seq_len` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// Left out, counted and reported.
    #[default]
    Drop,
    /// Cut at the end, counted and reported; left out where nothing supervised remains.
    Truncate,
    /// An error that names the row.
    Error,
}

impl DataConfig {
    /// These rows to train on, and the defaults.
    pub fn new(train: Sources) -> Self {
        Self {
            train,
            validation: None,
            validation_split: 0.0,
            validation_seed: None,
            format: FormatName::default(),
            fields: BTreeMap::new(),
            roles: Roles::default(),
            template: None,
            chat_template: None,
            train_on_turns: TrainOnTurns::default(),
            max_seq_len: None,
            overlong: Overlong::default(),
            on_bad_row: OnBadRow::default(),
            packing: false,
            group_by_length: false,
            cache: CacheConfig::default(),
            sample_in_card: false,
        }
    }

    /// The most tokens of one row.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len.unwrap_or(MAX_SEQ_LEN)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Names the key and the values that it takes.
    pub fn validate(&self) -> Result<()> {
        if self.max_seq_len.is_some_and(|most| most < 2) {
            return Err(Error::invalid("data.max_seq_len: must be at least 2 tokens"));
        }
        if !(0.0..1.0).contains(&self.validation_split) {
            let split = self.validation_split;
            let error = Error::invalid(format!("data.validation_split: must be at least 0 and below 1, got {split}"));
            return Err(if (1.0..100.0).contains(&split) {
                error.with_help(format!("it is a share of the rows: {split}% is {}", split / 100.0))
            } else {
                error.with_help("it is the share of the rows that is held out: 0.1 is a tenth")
            });
        }
        if self.validation_seed.is_some() && self.validation_split == 0.0 {
            return Err(Error::invalid(
                "data.validation_seed: chooses the rows of `data.validation_split`, which is not set",
            )
            .with_help("set `data.validation_split: 0.1`, or delete the line"));
        }
        if self.validation.is_some() && self.validation_split > 0.0 {
            return Err(Error::invalid(
                "data.validation_split: cannot stand beside `data.validation`; keep one of the two",
            ));
        }
        if self.packing && self.group_by_length {
            return Err(Error::invalid(
                "data.group_by_length: cannot stand beside `data.packing`, which fills rows already; keep one of the two",
            ));
        }
        self.train.validate("data.train", self)?;
        self.validation.iter().try_for_each(|sources| sources.validate("data.validation", self))?;
        if self.validation.iter().flat_map(|sources| &sources.0).any(|source| source.weight.is_some()) {
            return Err(Error::invalid("data.validation: has no weights; each row is measured once"));
        }
        Ok(())
    }
}

impl Sources {
    /// A single file.
    pub fn file(path: impl Into<String>) -> Self {
        Self(vec![SourceConfig::file(path)])
    }

    fn validate(&self, key: &str, defaults: &DataConfig) -> Result<()> {
        if self.0.is_empty() {
            return Err(Error::invalid(format!("{key}: is empty")).with_help("give the path of a file"));
        }
        self.0.iter().try_for_each(|source| source.validate(key, defaults))
    }
}

impl SourceConfig {
    /// A single file.
    pub fn file(path: impl Into<String>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// What its rows look like. A source with a format of its own has fields and template of its own too; what another says
    /// itself takes precedence over what the section says.
    pub(super) fn rows<'a>(&'a self, defaults: &'a DataConfig) -> RowSettings<'a> {
        let Self { fields, roles, .. } = self;
        if let Some(format) = self.format {
            return RowSettings { format, fields, roles, template: self.template.as_ref() };
        }
        RowSettings {
            format: defaults.format,
            fields: if fields.is_empty() { &defaults.fields } else { fields },
            roles: if roles.is_empty() { &defaults.roles } else { roles },
            template: self.template.as_ref().or(defaults.template.as_ref()),
        }
    }

    fn validate(&self, key: &str, defaults: &DataConfig) -> Result<()> {
        let empty = |text: &Option<String>| text.as_ref().is_some_and(|text| text.trim().is_empty());
        if empty(&self.path) || empty(&self.hub) {
            return Err(Error::invalid(format!("{key}: is empty")).with_help("give the path of a file"));
        }
        match (&self.path, &self.hub) {
            (None, None) => {
                return Err(Error::invalid(format!("{key}: a source needs `path` or `hub`")));
            }
            (Some(_), Some(_)) => {
                return Err(Error::invalid(format!("{key}: a source has `path` or `hub`, not both")));
            }
            (Some(_), None) if self.split.is_some() || self.subset.is_some() => {
                return Err(Error::invalid(format!("{key}: `split` and `subset` belong to a source with `hub`")));
            }
            _ => {}
        }
        if self.weight.is_some_and(|weight| !(weight > 0.0 && weight <= 1000.0)) {
            return Err(Error::invalid(format!("{key}: `weight` must be above 0, and at most 1000")));
        }
        let mut seen = std::collections::HashSet::new();
        if let Some(column) = self.columns.iter().find(|column| column.is_empty() || !seen.insert(*column)) {
            return Err(Error::invalid(format!(
                "{key}: `columns` must have different names that are not empty; `{column}` is not one"
            )));
        }
        if self.limit == Some(0) {
            return Err(Error::invalid(format!("{key}: `limit` must be at least 1")));
        }
        self.check_delimiter(key)?;
        let RowSettings { format, fields, roles, template } = self.rows(defaults);
        // What the source says itself is to be corrected there.
        let place = |own: bool| if own || self.format.is_some() { key } else { "data" };
        roles.check().map_err(|(role, message, help)| {
            Error::invalid(format!("{}.roles.{role}: {message}", place(!self.roles.is_empty()))).with_help(help)
        })?;
        let own = place(!self.fields.is_empty() || self.template.is_some());
        RowFormat::check(own, format, fields, template)
    }

    fn check_delimiter(&self, key: &str) -> Result<()> {
        match (&self.delimiter, self.delimiter_byte()) {
            (Some(text), None) => {
                Err(Error::invalid(format!("{key}: `delimiter` must be one character, and no quote; got `{text}`"))
                    .with_help("write it in quotes, as `delimiter: \";\"`; `tab` is the tab"))
            }
            _ => Ok(()),
        }
    }

    /// The byte between the fields of a table, where the recipe says it.
    pub(super) fn delimiter_byte(&self) -> Option<u8> {
        match self.delimiter.as_deref()? {
            "tab" | "\\t" | "\t" => Some(b'\t'),
            text => match text.as_bytes() {
                [byte] if !matches!(byte, b'"' | b'\r' | b'\n' | 0) && byte.is_ascii() => Some(*byte),
                _ => None,
            },
        }
    }

    /// What the recipe calls it.
    pub fn name(&self) -> &str {
        self.path.as_deref().or(self.hub.as_deref()).unwrap_or_default()
    }

    /// Whether nothing but the path is set.
    fn is_plain(&self) -> bool {
        *self == Self { path: self.path.clone(), ..Self::default() } && self.path.is_some()
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = Sources;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(
                    "a path, a source (`path` or `hub`, with its own `format`, `weight` and so on), or a list of these",
                )
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> std::result::Result<Sources, E> {
                Ok(Sources::file(path))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Sources, A::Error> {
                SourceConfig::deserialize(MapAccessDeserializer::new(map)).map(|source| Sources(vec![source]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Sources, A::Error> {
                let mut sources = Vec::new();
                while let Some(mut one) = list.next_element::<Sources>()? {
                    sources.append(&mut one.0);
                }
                Ok(Sources(sources))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let written = |source: &SourceConfig| match &source.path {
            Some(path) if source.is_plain() => serde_json::json!(path),
            _ => serde_json::json!(source),
        };
        match &self.0[..] {
            [one] => written(one).serialize(serializer),
            all => all.iter().map(written).collect::<Vec<_>>().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for CacheConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = CacheConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`auto`, `off`, or a folder")
            }

            // YAML reads `off` as text, and people write `false` too.
            fn visit_bool<E: serde::de::Error>(self, on: bool) -> std::result::Result<CacheConfig, E> {
                Ok(if on { CacheConfig::Auto } else { CacheConfig::Off })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<CacheConfig, E> {
                match text {
                    "auto" => Ok(CacheConfig::Auto),
                    "off" => Ok(CacheConfig::Off),
                    "" => Err(E::custom("is empty; `auto`, `off` or a folder is expected")),
                    folder => Ok(CacheConfig::Folder(folder.into())),
                }
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl Serialize for CacheConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Folder(folder) => folder.serialize(serializer),
        }
    }
}
