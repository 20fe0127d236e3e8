//! What an upload would send, found without network: the folder's files, a card where there is none, and neither the paths
//! of this machine nor mistakes that the Hub would refuse. Nothing in the folder is changed.

use super::folder::{self, Content, Found, LeftOut};
use super::readme;
use super::upload::UploadOptions;
use crate::adapter::{CARD_BASE, CARD_REPO, CardFacts, CardKind, hub_id, model_card};
use crate::error::{Error, Result};
use crate::objectives::ObjectiveConfig;
use serde::Serialize;
use serde_json::Value as Json;
use serde_yaml::Value;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const RECIPE: &str = "recipe.yaml";
const README: &str = "README.md";
const MODELFILE: &str = "Modelfile";
/// The most bytes of a text that is looked into.
const MOST_TEXT: u64 = 4 << 20;
/// How many local paths a note lists.
const SHOWN: usize = 8;

/// What an upload would do.
#[derive(Debug, Clone, Serialize)]
pub struct UploadPlan {
    /// The repository.
    pub repo: String,
    /// What is sent, unless the repository has it.
    pub files: Vec<PlannedFile>,
    /// What stays here.
    pub left_out: Vec<LeftOut>,
    /// What one should know before.
    pub notes: Vec<String>,
    /// The card as it will be sent.
    pub card: Option<String>,
    #[serde(skip)]
    pub(super) contents: Vec<Found>,
}

#[cfg(test)]
impl UploadPlan {
    /// A plan of no folder, to be shown.
    pub(crate) fn of(repo: &str, files: Vec<PlannedFile>, left_out: Vec<LeftOut>) -> Self {
        Self { repo: repo.into(), files, left_out, notes: Vec::new(), card: None, contents: Vec::new() }
    }
}

/// A file that would be sent.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedFile {
    /// Its name in the repository.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// Whether it differs from the folder's file, or is in no folder.
    pub made_for_upload: bool,
}

/// Says what [`super::upload()`] would send. It asks nobody.
///
/// # Errors
/// When an option is wrong, the folder holds no adapter and no model, or something in it cannot be sent: a link that leads
/// out, a name that no repository has, a card whose front matter the Hub would refuse.
pub fn plan(folder: &Path, options: &UploadOptions) -> Result<UploadPlan> {
    options.validate("")?;
    let (mut contents, left_out) = folder::list(folder)?;
    let kind = kind(folder, &contents)?;
    let mut draft = Draft::read(kind, &contents, options)?;
    draft.name_the_base(options)?;
    draft.shorten_paths();
    draft.write_card(folder, options)?;
    let card = draft.readme.as_ref().map(|readme| readme.text.clone());
    for (path, text) in draft.texts() {
        let bytes: std::sync::Arc<[u8]> = text.into_bytes().into();
        let made = Found { path: path.into(), size: bytes.len() as u64, content: Content::Bytes(bytes) };
        match contents.iter_mut().find(|found| found.path == path) {
            Some(found) => *found = made,
            None => contents.push(made),
        }
    }
    contents.sort_by(|a, b| a.path.cmp(&b.path));
    draft.notes.extend(local_paths(&contents));
    let planned = |found: &Found| PlannedFile {
        path: found.path.clone(),
        bytes: found.size,
        made_for_upload: matches!(found.content, Content::Bytes(_)),
    };
    Ok(UploadPlan {
        repo: options.repo.clone(),
        files: contents.iter().map(planned).collect(),
        left_out,
        notes: draft.notes,
        card,
        contents,
    })
}

fn kind(folder: &Path, files: &[Found]) -> Result<CardKind> {
    let has = |test: &dyn Fn(&str) -> bool| files.iter().any(|file| !file.path.contains('/') && test(&file.path));
    let ends =
        |path: &str, extension: &str| Path::new(path).extension().is_some_and(|e| e.eq_ignore_ascii_case(extension));
    if has(&|path| path == CONFIG) && has(&|path| ends(path, "safetensors")) {
        return Ok(CardKind::Adapter);
    }
    if has(&|path| path == "config.json") && has(&|path| ends(path, "safetensors")) {
        return Ok(CardKind::Merged);
    }
    if has(&|path| ends(path, "gguf")) {
        return Ok(CardKind::Gguf);
    }
    Err(Error::file(folder, "holds no adapter and no model: nothing is sent").with_help(
        "name the folder that `train` or `export` wrote; of a run that was interrupted there is no adapter yet: \
         `equipoise train RECIPE --resume`",
    ))
}

/// The texts that are looked into, as they will be sent.
struct Draft {
    kind: CardKind,
    config: Option<Text>,
    recipe: Option<Text>,
    readme: Option<Text>,
    modelfile: Option<Text>,
    /// The base as the folder names it; empty where it does not.
    base: String,
    /// Whether the base, or the merged model, is a multimodal one.
    multimodal: bool,
    notes: Vec<String>,
}

struct Text {
    text: String,
    changed: bool,
}

impl Text {
    fn replace(&mut self, from: &str, to: &str) -> bool {
        let replaced = replace_whole(&self.text, from, to);
        let differs = replaced != self.text;
        self.text = replaced;
        self.changed |= differs;
        differs
    }
}

impl Draft {
    fn read(kind: CardKind, files: &[Found], options: &UploadOptions) -> Result<Self> {
        let text = |name: &str| -> Result<Option<Text>> {
            files
                .iter()
                .find(|file| file.path == name)
                .map(read_text)
                .transpose()
                .map(|text| text.map(|text| Text { text, changed: false }))
        };
        let mut draft = Self {
            kind,
            config: text(CONFIG)?,
            recipe: text(RECIPE)?,
            readme: text(README)?,
            modelfile: text(MODELFILE)?,
            base: String::new(),
            multimodal: false,
            notes: Vec::new(),
        };
        draft.multimodal = match kind {
            CardKind::Adapter => draft.config.as_ref().is_some_and(|config| config.text.contains(".language_model.")),
            CardKind::Merged => text("config.json")?.is_some_and(|config| config.text.contains("\"text_config\"")),
            CardKind::Gguf => false,
        };
        let of_recipe =
            draft.recipe_value().and_then(|recipe| Some(recipe.get("base")?.get("model")?.as_str()?.to_owned()));
        let of_config =
            draft.config_value()?.and_then(|config| Some(config.get(base_key(&config))?.as_str()?.to_owned()));
        draft.base = of_config.or(of_recipe).or_else(|| options.base_model.clone()).unwrap_or_default();
        Ok(draft)
    }

    fn config_value(&self) -> Result<Option<Json>> {
        let read = |text: &Text| {
            serde_json::from_str(&text.text)
                .map_err(|error| Error::file(CONFIG, format!("cannot be read as JSON: {error}")))
        };
        self.config.as_ref().map(read).transpose()
    }

    /// A recipe that cannot be read is sent as it is.
    fn recipe_value(&self) -> Option<Value> {
        serde_yaml::from_str(&self.recipe.as_ref()?.text).ok()
    }

    /// Puts `--base-model` where the folder names the base, or says that nobody else can load this one.
    fn name_the_base(&mut self, options: &UploadOptions) -> Result<()> {
        let old = self.base.clone();
        let new = match &options.base_model {
            Some(id) => id.clone(),
            None if self.config.is_none() || old.is_empty() || hub_id(&old).is_some() => return Ok(()),
            None => {
                let key = self.config_value()?.as_ref().map_or("", base_key);
                self.notes.push(format!(
                    "{CONFIG} names `{}`, a path of this machine, as `{key}`: others cannot load the \
                     adapter. --base-model ORG/NAME (in a recipe `hub.base`) puts the base's Hub id there",
                    shown(&old)
                ));
                last_part(&old)
            }
        };
        if new == old {
            return Ok(());
        }
        if let Some(config) = &mut self.config
            && let Ok(mut value) = serde_json::from_str::<Json>(&config.text)
        {
            let key = base_key(&value);
            value[key] = new.clone().into();
            if value.get("revision").is_some() {
                value["revision"] = Json::Null;
            }
            config.text = format!("{value:#}\n");
            config.changed = true;
        }
        // A bare word may stand in a text for anything.
        if old.contains('/') {
            for text in [&mut self.recipe, &mut self.readme].into_iter().flatten() {
                text.replace(&old, &new);
            }
        }
        // Our own card names a path by its last part alone, and leaves a place for the id in its commands.
        if let Some(readme) = self.readme.as_mut().filter(|_| hub_id(&new).is_some()) {
            readme.replace(CARD_BASE, &new);
            readme.replace(&format!("https://huggingface.co/{old}"), &format!("https://huggingface.co/{new}"));
            if !old.is_empty() {
                readme.replace(&format!("`{}`", last_part(&old)), &format!("`{new}`"));
            }
        }
        self.base = new;
        Ok(())
    }

    /// The folders above the recipe's paths are nobody's business: of each the last part is sent.
    fn shorten_paths(&mut self) {
        let mut paths = Vec::new();
        if let Some(recipe) = self.recipe_value() {
            absolute_paths(&recipe, &mut paths);
        }
        let from = self.modelfile.iter().flat_map(|text| text.text.lines()).find_map(|line| line.strip_prefix("FROM "));
        paths.extend(from.filter(|from| is_local(from)).map(str::to_owned));
        // The longest first, since one may be the beginning of another.
        paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
        paths.dedup();
        let mut shortened = Vec::new();
        for path in paths {
            let short = last_part(&path);
            let mut hit = false;
            for text in [&mut self.recipe, &mut self.readme, &mut self.modelfile].into_iter().flatten() {
                hit |= text.replace(&path, &short);
            }
            if hit {
                shortened.push(short);
            }
        }
        if !shortened.is_empty() {
            self.notes.push(format!(
                "paths of this machine are sent without their folders, in {RECIPE}, {MODELFILE} and the card: {}",
                listed(&shortened)
            ));
        }
    }

    fn write_card(&mut self, folder: &Path, options: &UploadOptions) -> Result<()> {
        let Some(readme) = &mut self.readme else {
            let card = self.card(options)?;
            self.readme = Some(Text { text: card, changed: true });
            return Ok(());
        };
        readme.replace(CARD_REPO, &options.repo);
        if options.base_model.is_some() || options.license.is_some() {
            let id = options.base_model.as_deref();
            if let Some(text) = readme::with(&readme.text, self.kind, id, options.license.as_deref()) {
                readme.changed |= text != readme.text;
                readme.text = text;
            }
        }
        self.notes.extend(readme::check(&readme.text, &folder.join(README))?);
        Ok(())
    }

    fn card(&self, options: &UploadOptions) -> Result<String> {
        let recipe = self.recipe_value();
        let objective = recipe.as_ref().map(|recipe| {
            let named = recipe.get("objective").and_then(|section| section.get("type")?.as_str());
            named.unwrap_or(ObjectiveConfig::default().kind.name()).to_owned()
        });
        let config = self.config_value()?;
        let r = config.and_then(|config| config["r"].as_u64()).and_then(|r| usize::try_from(r).ok());
        let datasets = recipe.as_ref().map(hub_datasets).unwrap_or_default();
        let name = options.repo.split('/').next_back().unwrap_or_default();
        Ok(model_card(&CardFacts {
            kind: self.kind,
            name,
            repo: Some(&options.repo),
            base_model: &self.base,
            multimodal: self.multimodal,
            r,
            objective: objective.as_deref(),
            datasets: &datasets,
            license: options.license.as_deref(),
            recipe: self.recipe.as_ref().map(|recipe| recipe.text.as_str()),
            ..CardFacts::default()
        }))
    }

    fn texts(&mut self) -> Vec<(&'static str, String)> {
        let all = [
            (CONFIG, self.config.take()),
            (RECIPE, self.recipe.take()),
            (README, self.readme.take()),
            (MODELFILE, self.modelfile.take()),
        ];
        let changed = |(name, text): (_, Option<Text>)| text.filter(|text| text.changed).map(|text| (name, text.text));
        all.into_iter().filter_map(changed).collect()
    }
}

/// Where an adapter's configuration names its base: mlx-lm's key is another than PEFT's.
fn base_key(config: &Json) -> &'static str {
    if config.get("fine_tune_type").is_some() { "model" } else { "base_model_name_or_path" }
}

fn read_text(found: &Found) -> Result<String> {
    if found.size > MOST_TEXT {
        return Err(Error::file(&found.path, "has more than 4 MiB, which no such file needs"));
    }
    let mut text = String::new();
    let read = found
        .content
        .open(0)
        .and_then(|file| std::io::Read::read_to_string(&mut file.take_at_most(MOST_TEXT), &mut text));
    read.map_err(|error| Error::file(&found.path, format!("cannot be read as text: {error}")))?;
    Ok(text)
}

/// `Read::take`, for a reader in a box.
trait TakeAtMost {
    fn take_at_most(self, bytes: u64) -> std::io::Take<Box<dyn std::io::Read + Send>>;
}

impl TakeAtMost for Box<dyn std::io::Read + Send> {
    fn take_at_most(self, bytes: u64) -> std::io::Take<Self> {
        std::io::Read::take(self, bytes)
    }
}

/// The Hub ids of `data.train`.
fn hub_datasets(recipe: &Value) -> Vec<String> {
    let sources = recipe.get("data").and_then(|data| data.get("train"));
    let all = match sources {
        Some(Value::Sequence(all)) => all.iter().collect(),
        one => one.into_iter().collect::<Vec<_>>(),
    };
    let id = |source: &Value| Some(source.get("hub")?.as_str()?.split('@').next()?.to_owned());
    let mut ids: Vec<String> = all.into_iter().filter_map(id).collect();
    ids.dedup();
    ids
}

fn absolute_paths(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) if is_local(text) => into.push(text.clone()),
        Value::Sequence(items) => items.iter().for_each(|item| absolute_paths(item, into)),
        Value::Mapping(map) => map.iter().for_each(|(_, item)| absolute_paths(item, into)),
        _ => {}
    }
}

/// Whether a text is a path that says where things lie on this machine.
fn is_local(text: &str) -> bool {
    let rest = text.strip_prefix("~/").or_else(|| text.strip_prefix('/')).unwrap_or_default();
    rest.starts_with(|c: char| c.is_alphanumeric() || "._".contains(c)) && rest.contains('/') && !text.contains('\n')
}

fn last_part(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// Replaces a path where it stands whole, not as the beginning of another one.
fn replace_whole(text: &str, from: &str, to: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let part = |c: char| c.is_alphanumeric() || "_-/".contains(c);
    while let Some(at) = rest.find(from).filter(|_| !from.is_empty()) {
        let (before, after) = (&rest[..at], &rest[at + from.len()..]);
        let begins =
            !before.chars().next_back().or_else(|| out.chars().next_back()).is_some_and(|c| part(c) || c == '.');
        let mut next = after.chars();
        let ends = match next.next() {
            Some('.') => !next.next().is_some_and(part),
            Some(c) => !part(c),
            None => true,
        };
        out += before;
        out += if begins && ends { to } else { from };
        rest = after;
    }
    out + rest
}

/// Says which paths of this machine are in what is sent.
fn local_paths(files: &[Found]) -> Option<String> {
    let looked_into = |file: &&Found| {
        let known = Path::new(&file.path).extension().and_then(|e| e.to_str()).unwrap_or_default();
        ["md", "yaml", "yml", "json"].contains(&known) && file.size <= 1 << 20 && !file.path.ends_with("tokenizer.json")
    };
    let home = std::env::var("HOME").ok().filter(|home| home.len() > 2);
    let mut seen = Vec::new();
    for file in files.iter().filter(looked_into) {
        let Ok(text) = read_text(file) else { continue };
        let apart = |c: char| c.is_whitespace() || "\"'`,;()[]{}<>|=".contains(c);
        for word in text.split(apart) {
            let word = word.trim_end_matches(['.', ':']);
            if is_local(word) || home.as_deref().is_some_and(|home| word.contains(home)) {
                seen.push(format!("{}: {}", file.path, shown(word)));
            }
        }
    }
    seen.dedup();
    let note = || format!("there are paths of this machine in what is sent: {}", listed(&seen));
    (!seen.is_empty()).then(note)
}

fn listed(all: &[String]) -> String {
    let more = all.len().saturating_sub(SHOWN);
    let list = all.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{list}, and {more} more") } else { list }
}

fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

#[cfg(test)]
pub(in crate::hub) mod tests;
